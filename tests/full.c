/* Preloaded: while the file named by NL_FULL exists, the disk that holds the folder named by NL_DISK is
** full: no write grows or changes a file there. While the one named by NL_BROKEN exists, no file there
** can be synced. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int on_disk(int fd, const char *name) {
    const char *marker = getenv(name), *disk = getenv("NL_DISK");
    char link[64], path[PATH_MAX];
    if (marker == NULL || disk == NULL || access(marker, F_OK) != 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX);
    size_t length = strlen(disk);
    return n >= (ssize_t)length && memcmp(path, disk, length) == 0;
}

static int full(int fd) { return on_disk(fd, "NL_FULL"); }

#define NEXT(name, type) ((type)dlsym(RTLD_NEXT, name))

ssize_t write(int fd, const void *data, size_t size) {
    if (full(fd)) return errno = ENOSPC, -1;
    return NEXT("write", ssize_t (*)(int, const void *, size_t))(fd, data, size);
}

#define PWRITE(name, offset_type)                                                        \
    ssize_t name(int fd, const void *data, size_t size, offset_type at) {                \
        if (full(fd)) return errno = ENOSPC, -1;                                         \
        return NEXT(#name, ssize_t (*)(int, const void *, size_t, offset_type))(fd, data, size, at); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define SYNC(name)                                                \
    int name(int fd) {                                            \
        if (on_disk(fd, "NL_BROKEN")) return errno = EIO, -1;     \
        return NEXT(#name, int (*)(int))(fd);                     \
    }
SYNC(fsync)
SYNC(fdatasync)
