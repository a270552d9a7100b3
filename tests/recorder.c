/* Preloaded into a process under test: notes every write, sync, truncation, link and removal of files whose
** names begin with NL_RECORD_FOLDER, in order, in the file NL_RECORD. tests/power.py reads it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

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

/* op u8, path length u16, other path length u16, offset u64, bytes u32; then paths and bytes. All native. */
static void note(char op, const char *path, const char *other, uint64_t offset, const void *data, uint32_t n)
{
    uint16_t a = (uint16_t)strlen(path), b = (uint16_t)strlen(other);

    if (record < 0 || strncmp(path, folder, strlen(folder)) || strstr(path, "-shm")) return;
    pthread_mutex_lock(&mutex);
    put(&op, 1), put(&a, 2), put(&b, 2), put(&offset, 8), put(&n, 4);
    put(path, a), put(other, b);
    if (data) put(data, n);
    pthread_mutex_unlock(&mutex);
}

static void note_fd(char op, int fd, uint64_t offset, const void *data, size_t n)
{
    char link[64], path[1024];

    if (record < 0 || fd == record) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0) return;
    path[size] = 0;
    note(op, path, "", offset, data, (uint32_t)n);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at)
{
    ssize_t done = NEXT(pwrite64)(fd, p, n, at);
    if (done > 0) note_fd('w', fd, (uint64_t)at, p, (size_t)done);
    return done;
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t at)
{
    return pwrite64(fd, p, n, at);
}

ssize_t write(int fd, const void *p, size_t n)
{
    off_t at = record < 0 ? 0 : lseek(fd, 0, SEEK_CUR);
    ssize_t done = NEXT(write)(fd, p, n);
    if (done > 0 && at >= 0) note_fd('w', fd, (uint64_t)at, p, (size_t)done);
    return done;
}

int fsync(int fd)
{
    int rc = NEXT(fsync)(fd);
    if (rc == 0) note_fd('s', fd, 0, NULL, 0);
    return rc;
}

int fdatasync(int fd)
{
    int rc = NEXT(fdatasync)(fd);
    if (rc == 0) note_fd('s', fd, 0, NULL, 0);
    return rc;
}

int ftruncate64(int fd, off64_t size)
{
    int rc = NEXT(ftruncate64)(fd, size);
    if (rc == 0) note_fd('t', fd, (uint64_t)size, NULL, 0);
    return rc;
}

int ftruncate(int fd, off_t size)
{
    return ftruncate64(fd, size);
}

int unlink(const char *path)
{
    int rc = NEXT(unlink)(path);
    if (rc == 0) note('u', path, "", 0, NULL, 0);
    return rc;
}

int link(const char *path, const char *other)
{
    int rc = NEXT(link)(path, other);
    if (rc == 0) note('l', path, other, 0, NULL, 0);
    return rc;
}
