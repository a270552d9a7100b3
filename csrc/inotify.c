/*
** inotify.c - Linux tells of changes of files: a descriptor to wait on, files and folders to hear of.
**
** Three system calls and nothing else: Python waits on the descriptor and reads it (os.read without the
** interpreter's lock), and what it reads is decoded there. A package would bring them through ctypes, which
** marshals every call and knows no errors but errno; these lines cost nothing to have.
**
** Every function answers a number that is not negative, or -errno; elsewhere than on Linux -ENOSYS.
*/
#include "nl.h"

#include <errno.h>

#ifdef __linux__

#include <sys/inotify.h>

int nl_inotify_open(void)
{
    int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);

    return fd >= 0 ? fd : -errno;
}

int nl_inotify_file(int fd, const char *path)
{
    /* Once: a program that writes without a pause pays for one event and not for each of its writes. */
    int watch = inotify_add_watch(fd, path, IN_MODIFY | IN_ONESHOT);

    return watch >= 0 ? watch : -errno;
}

int nl_inotify_folder(int fd, const char *path)
{
    int watch = inotify_add_watch(fd, path, IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_ONLYDIR);

    return watch >= 0 ? watch : -errno;
}

int nl_inotify_remove(int fd, int watch)
{
    return inotify_rm_watch(fd, watch) == 0 ? 0 : -errno;
}

#else

int nl_inotify_open(void)
{
    return -ENOSYS;
}

int nl_inotify_file(int fd, const char *path)
{
    (void)fd, (void)path;
    return -ENOSYS;
}

int nl_inotify_folder(int fd, const char *path)
{
    (void)fd, (void)path;
    return -ENOSYS;
}

int nl_inotify_remove(int fd, int watch)
{
    (void)fd, (void)watch;
    return -ENOSYS;
}

#endif
