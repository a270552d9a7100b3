/* Preloaded into a process under test: notes what it does to files whose names begin with NL_RECORD_FOLDER (every
** write, sync, truncation, creation, link, renaming and removal), in order, in the file NL_RECORD. tests/power.py
** reads it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PATH 1024
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int record = -1;
static const char *folder;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("NL_RECORD");
    folder = getenv("NL_RECORD_FOLDER");
    if (path && folder) record = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void put(const void *p, size_t n)
{
    if (syscall(SYS_write, record, p, n) != (long)n) abort();
}

static int is_watched(const char *path)
{
    const size_t n = folder ? strlen(folder) : 0;
    return record >= 0 && !strncmp(path, folder, n) && (path[n] == '/' || path[n] == 0) && !strstr(path, "-shm");
}

/* Whether it is one of the files; then nobody else changes one until `leave`, so that the record has the order in
** which things were done. */
static int enter(const char *path)
{
    if (!is_watched(path)) return 0;
    pthread_mutex_lock(&mutex);
    return 1;
}

static int enter_fd(int fd, char *path)
{
    char link[64];

    if (record < 0 || fd == record) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    return enter(path);
}

static void leave(int entered)
{
    if (entered) pthread_mutex_unlock(&mutex);
}

static uint64_t inode_of(const char *path)
{
    struct stat st;
    return lstat(path, &st) ? 0 : st.st_ino;
}

static uint64_t inode_of_fd(int fd)
{
    struct stat st;
    return fstat(fd, &st) ? 0 : st.st_ino;
}

/* op u8, path length u16, other path length u16, inode u64, offset u64, bytes u32; then paths and bytes. All native. */
static void note(char op, const char *path, const char *other, uint64_t inode, uint64_t offset, const void *data, size_t size)
{
    uint16_t a = (uint16_t)strlen(path), b = (uint16_t)strlen(other);
    uint32_t n = (uint32_t)size;

    put(&op, 1), put(&a, 2), put(&b, 2), put(&inode, 8), put(&offset, 8), put(&n, 4);
    put(path, a), put(other, b);
    if (data) put(data, n);
}

/* ------------------------------------------------------------------ contents */

ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at)
{
    char path[PATH];
    int entered = enter_fd(fd, path);
    ssize_t done = NEXT(pwrite64)(fd, p, n, at);
    if (entered && done > 0) note('w', path, "", inode_of_fd(fd), (uint64_t)at, p, (size_t)done);
    leave(entered);
    return done;
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t at)
{
    return pwrite64(fd, p, n, at);
}

ssize_t write(int fd, const void *p, size_t n)
{
    char path[PATH];
    int entered = enter_fd(fd, path);
    ssize_t done = NEXT(write)(fd, p, n);
    if (entered && done > 0) note('w', path, "", inode_of_fd(fd), (uint64_t)(lseek(fd, 0, SEEK_CUR) - done), p, (size_t)done);
    leave(entered);
    return done;
}

static int sync_of(int fd, int (*sync)(int))
{
    char path[PATH];
    int entered = enter_fd(fd, path);
    int rc = sync(fd);
    if (entered && rc == 0) note('s', path, "", inode_of_fd(fd), 0, NULL, 0);
    leave(entered);
    return rc;
}

int fsync(int fd)
{
    return sync_of(fd, NEXT(fsync));
}

int fdatasync(int fd)
{
    return sync_of(fd, NEXT(fdatasync));
}

int ftruncate64(int fd, off64_t size)
{
    char path[PATH];
    int entered = enter_fd(fd, path);
    int rc = NEXT(ftruncate64)(fd, size);
    if (entered && rc == 0) note('t', path, "", inode_of_fd(fd), (uint64_t)size, NULL, 0);
    leave(entered);
    return rc;
}

int ftruncate(int fd, off_t size)
{
    return ftruncate64(fd, size);
}

/* ------------------------------------------------------------------ names */

static int open_noted(const char *path, int flags, mode_t mode)
{
    int entered = flags & (O_CREAT | O_TRUNC) ? enter(path) : 0;
    uint64_t before = entered ? inode_of(path) : 0;
    int fd = NEXT(open64)(path, flags, mode);
    if (entered && fd >= 0) {
        if (before == 0) note('c', path, "", inode_of_fd(fd), 0, NULL, 0);
        else if (flags & O_TRUNC) note('t', path, "", before, 0, NULL, 0);
    }
    leave(entered);
    return fd;
}

int open64(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open_noted(path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open_noted(path, flags, mode);
}

int mkdir(const char *path, mode_t mode)
{
    int entered = enter(path);
    int rc = NEXT(mkdir)(path, mode);
    if (entered && rc == 0) note('m', path, "", inode_of(path), 0, NULL, 0);
    leave(entered);
    return rc;
}

int unlink(const char *path)
{
    int entered = enter(path);
    uint64_t inode = entered ? inode_of(path) : 0;
    int rc = NEXT(unlink)(path);
    if (entered && rc == 0) note('u', path, "", inode, 0, NULL, 0);
    leave(entered);
    return rc;
}

int link(const char *path, const char *other)
{
    int entered = enter(path);
    int rc = NEXT(link)(path, other);
    if (entered && rc == 0) note('l', path, other, inode_of(path), 0, NULL, 0);
    leave(entered);
    return rc;
}

int rename(const char *path, const char *other)
{
    int entered = enter(path);
    uint64_t inode = entered ? inode_of(path) : 0;
    int rc = NEXT(rename)(path, other);
    if (entered && rc == 0) note('r', path, other, inode, 0, NULL, 0);
    leave(entered);
    return rc;
}
