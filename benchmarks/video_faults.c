/* Preloaded library that strikes what FFmpeg reads, which Python does not see: open and read of videos below $CHAOS_DATA
 * fail (EIO, ESTALE) or hang once while $CHAOS/order says so; see benchmarks/faults.py, which strikes all else.
 * Built and used by benchmarks/chaos.py: cc -shared -fPIC -O2 video_faults.c -o video_faults.so -ldl */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "preload.h"

struct order { int number; char kind[32]; double until; };

static int is_on(const char *folder, struct order *now) {
    char path[PATH_MAX], text[256];
    snprintf(path, sizeof path, "%s/order", folder);
    int handle = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY);
    if (handle < 0) return 0;
    long size = syscall(SYS_read, handle, text, sizeof text - 1);
    syscall(SYS_close, handle);
    text[size > 0 ? size : 0] = 0;
    if (sscanf(text, "{\"number\": %d, \"kind\": \"%31[^\"]\", \"until\": %lf}", &now->number, now->kind, &now->until) != 3) return 0;
    struct timespec clock;
    clock_gettime(CLOCK_MONOTONIC, &clock);
    return clock.tv_sec + clock.tv_nsec / 1e9 < now->until;
}

static void note(const char *folder, int number) {
    char path[PATH_MAX], line[16];
    snprintf(path, sizeof path, "%s/struck", folder);
    int handle = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    syscall(SYS_write, handle, line, snprintf(line, sizeof line, "%d\n", number));
    syscall(SYS_close, handle);
}

static int is_video(const char *path) {
    const char *data = getenv("CHAOS_DATA"), *end = strrchr(path, '.');
    return data && end && !strncmp(path, data, strlen(data)) && (!strcmp(end, ".mp4") || !strcmp(end, ".webm") || !strcmp(end, ".avi"));
}

/* The error with which a read of `path` (or of an open file) fails now; 0: it does not. */
static int fault(const char *path, int handle) {
    static int hung = -1;
    const char *folder = getenv("CHAOS");
    struct order now;
    if (!folder || !is_on(folder, &now)) return 0;
    char link[64], target[PATH_MAX];
    if (!path) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
        long size = readlink(link, target, sizeof target - 1);
        target[size > 0 ? size : 0] = 0;
        path = target;
    }
    if (!is_video(path)) return 0;
    int number = !strcmp(now.kind, "EIO") ? EIO : !strcmp(now.kind, "ESTALE") ? ESTALE : 0;
    int hangs = !strcmp(now.kind, "hanging read") && __sync_lock_test_and_set(&hung, now.number) != now.number;
    if (number || hangs) note(folder, now.number);
    if (hangs) usleep(400000);
    return number;
}

#define FAIL_IF_STRUCK(path, handle) \
    int number = fault(path, handle); \
    if (number) { errno = number; return -1; }

int open(const char *path, int flags, ...) { MODE(flags); FAIL_IF_STRUCK(path, -1); return NEXT(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags); FAIL_IF_STRUCK(path, -1); return NEXT(open64)(path, flags, mode); }
ssize_t read(int handle, void *data, size_t size) { FAIL_IF_STRUCK(NULL, handle); return NEXT(read)(handle, data, size); }
