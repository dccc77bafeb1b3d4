/* Preloaded library that makes a busy parallel file system of a local one: every open, opendir and stat of a path below
 * $SLOW_PREFIX first sleeps $SLOW_MICROSECONDS. Reads, writes and fstat of an open file cost what they cost.
 * Built and used by benchmarks/build.py: cc -shared -fPIC -O2 slow_files.c -o slow_files.so -ldl */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "preload.h"

static void wait_for(const char *path) {
    const char *prefix = getenv("SLOW_PREFIX"), *delay = getenv("SLOW_MICROSECONDS");
    if (prefix && delay && path && !strncmp(path, prefix, strlen(prefix))) usleep(atoi(delay));
}

int open(const char *path, int flags, ...) { MODE(flags); wait_for(path); return NEXT(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags); wait_for(path); return NEXT(open64)(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags); wait_for(path); return NEXT(openat)(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags); wait_for(path); return NEXT(openat64)(at, path, flags, mode); }
DIR *opendir(const char *path) { wait_for(path); return NEXT(opendir)(path); }
int stat(const char *path, struct stat *facts) { wait_for(path); return NEXT(stat)(path, facts); }
int stat64(const char *path, struct stat64 *facts) { wait_for(path); return NEXT(stat64)(path, facts); }
int lstat(const char *path, struct stat *facts) { wait_for(path); return NEXT(lstat)(path, facts); }
int lstat64(const char *path, struct stat64 *facts) { wait_for(path); return NEXT(lstat64)(path, facts); }
int fstatat(int at, const char *path, struct stat *facts, int flags) { wait_for(path); return NEXT(fstatat)(at, path, facts, flags); }
int fstatat64(int at, const char *path, struct stat64 *facts, int flags) { wait_for(path); return NEXT(fstatat64)(at, path, facts, flags); }
