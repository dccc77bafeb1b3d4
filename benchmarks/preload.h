/* What libraries that are preloaded need to stand before open() and others of the system's. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/types.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MODE(last) \
    mode_t mode = 0; \
    va_list list; \
    va_start(list, last); \
    if (flags & (O_CREAT | __O_TMPFILE)) mode = va_arg(list, mode_t); \
    va_end(list)
