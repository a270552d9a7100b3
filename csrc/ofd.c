/*
** ofd.c - record locks of our SQLite as OFD locks, through one canonical descriptor per inode.
**
** WHY
**
** POSIX record locks belong to (process, inode): close() of *any* descriptor of an inode drops all
** locks the process has on it. SQLite works around that inside one copy of itself. It cannot know
** about a second copy, and a Python process has one: module sqlite3. Without this file, closing a
** sqlite3.Connection, or open(path).close(), silently drops every lock that nearlite holds on that
** database; a third process then deletes the -wal under us and a committed INSERT is gone.
**
** HOW
**
** Locks made with F_OFD_SETLK belong to an open file description and end only with it or by an
** explicit unlock. SQLite's unix VFS calls the system through a table; three entries are replaced:
**
**   fcntl   F_SETLK, F_SETLKW and F_GETLK become their OFD twins on the inode's *canonical*
**           descriptor. One per inode, because SQLite counts locks per process: it locks through
**           one descriptor and unlocks through another.
**   close   a descriptor of a database or -shm file is parked instead of closed, because our
**           close() would drop the POSIX locks that Python's sqlite3 holds on the inode.
**   open    a parked descriptor of the same inode and access mode is handed out again.
**
** Both kinds of lock exclude each other in the kernel, also within one process.
**
** RULES
**
** (1) An inode's canonical descriptor is never closed while SQLite has a descriptor of it open. It is one
**     that SQLite does not know, see ofd_choose().
** (2) When SQLite closes its last descriptor of an inode, everything on it is unlocked: SQLite
**     leaves the -shm file's DMS lock to close(), which no longer does that.
** (3) A parked descriptor is closed when its file has no name left (looked at whenever a file is
**     opened or parked; until then a deleted file's space stays in use), or, when more than
**     OFD_PARKED are parked, when F_OFD_GETLK shows that nobody holds any lock on its inode: not
**     this process by POSIX locks, nor another one. Between that look and the close() another thread
**     may take a POSIX lock through the other SQLite and lose it: this window of microseconds is what
**     remains of the danger, only beyond OFD_PARKED, and only for files that were idle before it.
** (4) Files nobody ever locks (-wal, -journal, temporary) are closed as usual, unless (3)'s look
**     shows a lock after all: a database may have such a name.
** (5) A file system without OFD locks answers EINVAL to the first one: that inode then runs on
**     ordinary POSIX locks, as with a stock SQLite.
**
** FORK
**
** An OFD lock lives as long as any copy of its description, so a child that inherited one would
** keep it beyond the parent's death. The child therefore closes all of them at once; that closes
** nothing in the parent. Descriptors of SQLite's own inherited connections are pointed to /dev/null:
** whatever is done with such a connection cannot reach the file. nl_forks() lets the owners of
** handles refuse first, and they must: SQLite also works through shared memory and by path.
*/
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64

#include "nl.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <sqlite3.h>

#include "ofd.h"

static atomic_uint ofd_forks; /* see nl_forks() */

uint32_t nl_forks(void)
{
    return atomic_load_explicit(&ofd_forks, memory_order_relaxed);
}

#if defined(__linux__) && defined(F_OFD_SETLK)

#define OFD_PARKED 256  /* parked descriptors before idle ones are looked for */
#define OFD_BUCKETS 64  /* chains of the inode table */
#define OFD_NONE (-1)   /* no descriptor */

typedef struct ofd_inode {
    struct ofd_inode *next; /* chain of its bucket */
    dev_t dev;
    ino_t ino;
    int lock_fd;        /* the canonical descriptor */
    int reopened;       /* it is ours alone and not in the slot table: the usual case */
    int writable;       /* lock_fd can take write locks */
    int open;           /* descriptors that SQLite has open */
    int parked;         /* head of the list of parked descriptors, or OFD_NONE */
    atomic_int proven;  /* an OFD lock was taken: from then on EINVAL is an error like any other */
    atomic_int posix;   /* rule 5 */
} ofd_inode;

/* What we know about one descriptor number. */
enum { OFD_UNKNOWN, OFD_SIDE, OFD_OPEN, OFD_PARKED_FD, OFD_INHERITED };

typedef struct ofd_slot {
    ofd_inode *inode;   /* OFD_OPEN and OFD_PARKED_FD only */
    int state;
    int access;         /* O_RDONLY or O_RDWR */
    int next;           /* next parked descriptor of the inode, or OFD_NONE */
} ofd_slot;

/* Guards everything below. SQLite's static mutexes may be held when it is taken, never vice versa;
** system calls are made under it only if they cannot wait for another process. */
static pthread_mutex_t ofd_mutex = PTHREAD_MUTEX_INITIALIZER;
static ofd_inode *ofd_buckets[OFD_BUCKETS];
static ofd_slot *ofd_slots;             /* indexed by descriptor */
static int ofd_slots_size;
static int ofd_parked;                  /* descriptors in state OFD_PARKED_FD */
static int ofd_evict_above = OFD_PARKED;
static int ofd_installed;

/* ---------------------------------------------------------------- tables (under the mutex) */

static ofd_inode **ofd_bucket(ino_t ino)
{
    return &ofd_buckets[((uint64_t)ino * 0x9E3779B97F4A7C15u) >> 58];
}

static ofd_inode *ofd_find(const struct stat *st)
{
    ofd_inode *p = *ofd_bucket(st->st_ino);

    while (p && (p->ino != st->st_ino || p->dev != st->st_dev)) p = p->next;
    return p;
}

/* The slot of a descriptor, the table grown to hold it; NULL without memory. */
static ofd_slot *ofd_slot_of(int fd)
{
    if (fd >= ofd_slots_size) {
        int size = fd < 64 ? 128 : 2 * fd;
        ofd_slot *grown = realloc(ofd_slots, (size_t)size * sizeof *grown);
        if (!grown) return NULL;
        memset(grown + ofd_slots_size, 0, (size_t)(size - ofd_slots_size) * sizeof *grown);
        ofd_slots = grown;
        ofd_slots_size = size;
    }
    return &ofd_slots[fd];
}

/* The descriptor still is what we parked. Daemons close descriptors they do not know, and the number
** may be somebody else's file by now. */
static int ofd_is(int fd, const ofd_inode *inode, struct stat *st)
{
    return fstat(fd, st) == 0 && st->st_ino == inode->ino && st->st_dev == inode->dev;
}

static void ofd_unlist(ofd_inode *inode, int fd)
{
    int *link = &inode->parked;

    while (*link != OFD_NONE && *link != fd) link = &ofd_slots[*link].next;
    if (*link == fd) {
        *link = ofd_slots[fd].next;
        ofd_parked--;
    }
}

static void ofd_free(ofd_inode *inode)
{
    ofd_inode **link = ofd_bucket(inode->ino);

    while (*link != inode) link = &(*link)->next;
    *link = inode->next;
    free(inode);
}

/* Close parked descriptors of an inode; all of them and the inode itself when SQLite has none open
** (rule 1). */
static void ofd_discard(ofd_inode *inode)
{
    struct stat st;
    int keep = inode->open > 0 ? inode->lock_fd : OFD_NONE;

    for (int fd = inode->parked, next; fd != OFD_NONE; fd = next) {
        next = ofd_slots[fd].next;
        if (fd == keep) continue;
        ofd_unlist(inode, fd);
        memset(&ofd_slots[fd], 0, sizeof ofd_slots[fd]);
        if (ofd_is(fd, inode, &st)) close(fd);
    }
    if (inode->open > 0) return;
    if (inode->reopened && ofd_is(inode->lock_fd, inode, &st)) close(inode->lock_fd);
    ofd_free(inode);
}

/* Anybody has any lock on the file of `fd`, our own canonical descriptor excepted. When the kernel
** cannot say, the answer is yes. */
static int ofd_locked(int fd)
{
    struct flock look = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    return fcntl(fd, F_OFD_GETLK, &look) != 0 || look.l_type != F_UNLCK;
}

/* Discard what lost its name; with `idle` also what nobody holds a lock on (rule 3). */
static void ofd_sweep(int idle)
{
    struct stat st;

    for (int i = 0; i < OFD_BUCKETS; i++) {
        for (ofd_inode *p = ofd_buckets[i], *next; p; p = next) {
            next = p->next;
            if (p->parked == OFD_NONE) continue;
            int gone = p->open == 0 && (!ofd_is(p->lock_fd, p, &st) || st.st_nlink == 0);
            if (gone || (idle && !ofd_locked(p->lock_fd))) ofd_discard(p);
        }
    }
    /* When most are in use, the next look is due only after as many again were parked. */
    if (idle) ofd_evict_above = 2 * ofd_parked > OFD_PARKED ? 2 * ofd_parked : OFD_PARKED;
}

/* The canonical descriptor is a description of its own, for two reasons. SQLite maps the -shm file, and
** a mapping keeps the description it was made from, with its locks, alive in a child of fork() where no
** handler can end it. And it must be able to take write locks, also when SQLite opens the file for reading
** first and for writing later: locks cannot move to another description. Where the file cannot be
** opened once more (no /proc; no permission to write), `fd` itself has to do. */
static void ofd_choose(ofd_inode *inode, int fd, int access)
{
    char path[32];

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    inode->lock_fd = open(path, O_RDWR | O_CLOEXEC);
    if (inode->lock_fd < 0 && access != O_RDWR) inode->lock_fd = open(path, O_RDONLY | O_CLOEXEC);
    inode->reopened = inode->lock_fd >= 0;
    inode->writable = access == O_RDWR;
    if (!inode->reopened) {
        inode->lock_fd = fd;
    } else {
        inode->writable = (fcntl(inode->lock_fd, F_GETFL) & O_ACCMODE) == O_RDWR;
    }
}

/* Take a better canonical descriptor while nothing is locked. The old one is parked like any other:
** closing it could drop somebody's locks. */
static void ofd_choose_again(ofd_inode *inode, int fd, int access)
{
    int old = inode->lock_fd;
    ofd_slot *slot = inode->reopened ? ofd_slot_of(old) : NULL;

    if (inode->reopened && !slot) return;
    ofd_choose(inode, fd, access);
    if (!slot) return;
    *slot = (ofd_slot){inode, OFD_PARKED_FD, O_RDONLY, inode->parked};
    inode->parked = old;
    ofd_parked++;
}

/* Count `fd` as a descriptor of its inode, which is entered if it is new. 0, or -1 without memory. */
static int ofd_enter(int fd, const struct stat *st)
{
    ofd_inode *inode = ofd_find(st);
    int access = ofd_slots[fd].access;

    if (!inode) {
        inode = calloc(1, sizeof *inode);
        if (!inode) return -1;
        inode->dev = st->st_dev;
        inode->ino = st->st_ino;
        inode->parked = OFD_NONE;
        ofd_choose(inode, fd, access);
        inode->next = *ofd_bucket(st->st_ino);
        *ofd_bucket(st->st_ino) = inode;
    } else if (!inode->writable && access == O_RDWR && inode->open == 0) {
        ofd_choose_again(inode, fd, access);
    }
    inode->open++;
    ofd_slots[fd] = (ofd_slot){inode, OFD_OPEN, access, OFD_NONE};
    return 0;
}

/* ---------------------------------------------------------------- open */

/* Files that SQLite never locks: see rule 4. SQLite's names are <database>-wal, -journal and
** -mj<hex> for a super-journal; O_EXCL is set for temporary files only. */
static int ofd_is_side(const char *path, int flags)
{
    static const char *const suffixes[] = {"-wal", "-journal"};
    size_t n = strlen(path);

    if (flags & O_EXCL) return 1;
    for (int i = 0; i < 2; i++) {
        size_t m = strlen(suffixes[i]);
        if (n > m && strcmp(path + n - m, suffixes[i]) == 0) return 1;
    }
    const char *mj = strrchr(path, '-');
    return mj && strncmp(mj, "-mj", 3) == 0 && strspn(mj + 3, "0123456789ABCDEFabcdef") == strlen(mj + 3);
}

/* A parked descriptor for `path`, or OFD_NONE. As open() would, it looks at today's permissions. */
static int ofd_reuse(const char *path, int flags)
{
    struct stat st, now;
    int access = flags & O_ACCMODE;
    int follow = flags & O_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0;

    if (ofd_parked == 0 || fstatat(AT_FDCWD, path, &st, follow) || !S_ISREG(st.st_mode)) {
        return OFD_NONE;
    }
    ofd_inode *inode = ofd_find(&st);
    if (!inode) return OFD_NONE;
    int fd = inode->parked;
    while (fd != OFD_NONE && ofd_slots[fd].access != access) fd = ofd_slots[fd].next;
    if (fd == OFD_NONE || !ofd_is(fd, inode, &now)) return OFD_NONE;
    if (faccessat(AT_FDCWD, path, access == O_RDWR ? R_OK | W_OK : R_OK, AT_EACCESS)) return OFD_NONE;
    ofd_unlist(inode, fd);
    ofd_slots[fd].state = OFD_OPEN;
    ofd_slots[fd].next = OFD_NONE;
    inode->open++;
    return fd;
}

/* Note what a new descriptor is. 0, or -1 without memory. */
static int ofd_opened(int fd, const char *path, int flags)
{
    struct stat st;
    ofd_slot *slot = ofd_slot_of(fd);

    if (!slot) return -1;
    /* Somebody closed the number behind our back, otherwise it would not be new. */
    if (slot->state == OFD_PARKED_FD) ofd_unlist(slot->inode, fd);
    if (slot->state == OFD_OPEN) slot->inode->open--;
    memset(slot, 0, sizeof *slot);
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) return 0;
    slot->access = flags & O_ACCMODE;
    if (ofd_is_side(path, flags)) {
        slot->state = OFD_SIDE;
        return 0;
    }
    ofd_sweep(0);
    return ofd_enter(fd, &st);
}

static int ofd_open(const char *path, int flags, int mode)
{
    int fd = OFD_NONE;

    pthread_mutex_lock(&ofd_mutex);
    if (!(flags & (O_EXCL | O_TRUNC))) fd = ofd_reuse(path, flags);
    pthread_mutex_unlock(&ofd_mutex);
    if (fd != OFD_NONE) return fd;

    fd = open(path, flags, mode); /* outside the mutex: it may wait for a file system */
    int why = errno;
    pthread_mutex_lock(&ofd_mutex);
    if (fd < 0 && why == EMFILE && ofd_parked > 0) {
        ofd_sweep(1);
        fd = open(path, flags, mode);
        why = errno;
    }
    if (fd >= 0 && ofd_opened(fd, path, flags)) {
        /* Not closed: that is what must not happen to a file we know nothing about. */
        fd = -1;
        why = ENOMEM;
    }
    pthread_mutex_unlock(&ofd_mutex);
    errno = why;
    return fd;
}

/* ---------------------------------------------------------------- close */

/* SQLite is done with `fd`: park it. Answers 1 when the caller is to close it (rule 5). */
static int ofd_park(int fd, ofd_slot *slot)
{
    struct flock all = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    struct stat st;
    ofd_inode *inode = slot->inode;

    inode->open--;
    if (atomic_load(&inode->posix)) {
        memset(slot, 0, sizeof *slot);
        if (fd == inode->lock_fd) inode->lock_fd = OFD_NONE;
        if (inode->open == 0) ofd_discard(inode);
        return 1;
    }
    if (inode->open == 0) fcntl(inode->lock_fd, F_OFD_SETLK, &all); /* rule 2 */
    slot->state = OFD_PARKED_FD;
    slot->next = inode->parked;
    inode->parked = fd;
    ofd_parked++;
    if (fstat(fd, &st) == 0 && st.st_nlink == 0) ofd_discard(inode);
    if (ofd_parked > ofd_evict_above) ofd_sweep(1);
    return 0;
}

static int ofd_close(int fd)
{
    struct stat st;
    int really = 1;

    pthread_mutex_lock(&ofd_mutex);
    ofd_slot *slot = fd >= 0 && fd < ofd_slots_size ? &ofd_slots[fd] : NULL;
    if (slot && slot->state == OFD_SIDE && fstat(fd, &st) == 0 && st.st_nlink > 0 && ofd_locked(fd)) {
        (void)ofd_enter(fd, &st); /* without memory it stays OFD_SIDE and is closed */
        slot = &ofd_slots[fd];
    }
    if (slot && slot->state == OFD_OPEN) {
        really = ofd_park(fd, slot);
    } else if (slot) {
        memset(slot, 0, sizeof *slot);
    }
    pthread_mutex_unlock(&ofd_mutex);
    return really ? close(fd) : 0;
}

/* ---------------------------------------------------------------- locks */

/* The inode of an open descriptor. NULL: *why is the errno to fail with, or 0 for a plain fcntl. */
static ofd_inode *ofd_inode_of(int fd, int *why)
{
    struct stat st;
    ofd_inode *inode = NULL;

    *why = 0;
    pthread_mutex_lock(&ofd_mutex);
    ofd_slot *slot = fd >= 0 && fd < ofd_slots_size ? &ofd_slots[fd] : NULL;
    if (slot && slot->state == OFD_SIDE && fstat(fd, &st) == 0 && ofd_enter(fd, &st)) {
        *why = ENOMEM; /* a database with the name of a side file */
    }
    if (slot) slot = &ofd_slots[fd]; /* the table may have moved */
    if (slot && slot->state == OFD_OPEN) inode = slot->inode;
    if (slot && slot->state == OFD_INHERITED) *why = EPERM;
    pthread_mutex_unlock(&ofd_mutex);
    return inode;
}

static int ofd_fcntl(int fd, int cmd, ...)
{
    int twin, why;
    va_list args;

    va_start(args, cmd);
    void *arg = va_arg(args, void *);
    va_end(args);
    switch (cmd) {
    case F_SETLK: twin = F_OFD_SETLK; break;
    case F_SETLKW: twin = F_OFD_SETLKW; break;
    case F_GETLK: twin = F_OFD_GETLK; break;
    default: return fcntl(fd, cmd, arg);
    }
    ofd_inode *inode = ofd_inode_of(fd, &why);
    if (why) {
        errno = why;
        return -1;
    }
    if (!inode || atomic_load(&inode->posix)) return fcntl(fd, cmd, arg);

    /* Outside the mutex, because it may wait. The inode stays: SQLite has `fd` open. */
    struct flock *lock = arg;
    lock->l_pid = 0; /* the kernel insists */
    int rc = fcntl(inode->lock_fd, twin, lock);
    if (rc == 0 || errno != EINVAL) {
        if (rc == 0 && cmd != F_GETLK) atomic_store(&inode->proven, 1);
        /* Opened for reading while the file could not be written, and it can be now: that heals
        ** with the last close. EACCES makes it "busy" instead of an I/O error. */
        if (rc != 0 && errno == EBADF && !inode->writable) errno = EACCES;
        return rc;
    }
    if (atomic_load(&inode->proven)) return rc;
    atomic_store(&inode->posix, 1);
    return fcntl(fd, cmd, arg);
}

/* ---------------------------------------------------------------- the child of a fork */

static void ofd_child(void)
{
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

    for (int i = 0; i < OFD_BUCKETS; i++) {
        for (ofd_inode *p = ofd_buckets[i]; p; p = p->next) {
            if (p->reopened) close(p->lock_fd);
        }
        ofd_buckets[i] = NULL; /* not freed: malloc is not to be trusted between fork and exec */
    }
    for (int fd = 0; fd < ofd_slots_size; fd++) {
        ofd_slot *slot = &ofd_slots[fd];
        if (slot->state == OFD_PARKED_FD) {
            close(fd);
            slot->state = OFD_UNKNOWN;
        } else if (slot->state != OFD_UNKNOWN && fd != null) {
            /* The number stays taken, so that no later file of the child gets it. */
            if (null < 0 || dup3(null, fd, O_CLOEXEC) < 0) close(fd);
            slot->state = OFD_INHERITED;
        }
        slot->inode = NULL;
    }
    if (null >= 0) close(null);
    ofd_parked = 0;
    ofd_evict_above = OFD_PARKED;
}

static void ofd_before_fork(void)
{
    pthread_mutex_lock(&ofd_mutex);
}

static void ofd_after_fork(void)
{
    pthread_mutex_unlock(&ofd_mutex);
}

/* ---------------------------------------------------------------- installing */

/* One descriptor is asked whether the kernel has OFD locks at all (Linux 3.15). */
static int ofd_supported(void)
{
    struct flock look = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int rc = fd < 0 ? -1 : fcntl(fd, F_OFD_GETLK, &look);

    if (fd >= 0) close(fd);
    return rc == 0;
}

static void ofd_install_calls(void)
{
    sqlite3_vfs *vfs = sqlite3_vfs_find("unix");

    if (!vfs || vfs->iVersion < 3 || !ofd_supported()) return;
    vfs->xSetSystemCall(vfs, "open", (sqlite3_syscall_ptr)ofd_open);
    vfs->xSetSystemCall(vfs, "close", (sqlite3_syscall_ptr)ofd_close);
    vfs->xSetSystemCall(vfs, "fcntl", (sqlite3_syscall_ptr)ofd_fcntl);
    ofd_installed = 1;
}

int nl_ofd_active(void)
{
    return ofd_installed;
}

void nl_ofd_counts(uint32_t *open_fds, uint32_t *parked_fds)
{
    *open_fds = *parked_fds = 0;
    pthread_mutex_lock(&ofd_mutex);
    for (int fd = 0; fd < ofd_slots_size; fd++) {
        *open_fds += ofd_slots[fd].state == OFD_OPEN || ofd_slots[fd].state == OFD_SIDE;
        *parked_fds += ofd_slots[fd].state == OFD_PARKED_FD;
    }
    pthread_mutex_unlock(&ofd_mutex);
}

#else /* systems without OFD locks: only fork is handled */

static void ofd_child(void) {}
static void ofd_before_fork(void) {}
static void ofd_after_fork(void) {}
static void ofd_install_calls(void) {}

int nl_ofd_active(void)
{
    return 0;
}

void nl_ofd_counts(uint32_t *open_fds, uint32_t *parked_fds)
{
    *open_fds = *parked_fds = 0;
}

#endif

/* ---------------------------------------------------------------- fork handlers, everywhere */

/* SQLite's process-wide mutexes are taken around fork(): a thread that held one at that instant does
** not exist in the child, which would wait for it for ever. All or none, by trying, because SQLite
** does not document their order. After OFD_FORK_TRIES (about a second) the fork goes on without them:
** somebody waits for a disk with a mutex held, and a fork that hangs is worse than a child that might. */
#define OFD_FORK_TRIES 10000

static const int ofd_static[] = {
    SQLITE_MUTEX_STATIC_MAIN, SQLITE_MUTEX_STATIC_MEM,  SQLITE_MUTEX_STATIC_OPEN,
    SQLITE_MUTEX_STATIC_PRNG, SQLITE_MUTEX_STATIC_LRU,  SQLITE_MUTEX_STATIC_PMEM,
    SQLITE_MUTEX_STATIC_APP1, SQLITE_MUTEX_STATIC_APP2, SQLITE_MUTEX_STATIC_APP3,
    SQLITE_MUTEX_STATIC_VFS1, SQLITE_MUTEX_STATIC_VFS2, SQLITE_MUTEX_STATIC_VFS3,
};
#define OFD_STATIC ((int)(sizeof ofd_static / sizeof ofd_static[0]))

static int ofd_static_held; /* set and read by the forking thread only, under the mutexes */

static void ofd_leave_static(int n)
{
    while (n-- > 0) sqlite3_mutex_leave(sqlite3_mutex_alloc(ofd_static[n]));
}

static int ofd_enter_static(void)
{
    for (int i = 0; i < OFD_STATIC; i++) {
        if (sqlite3_mutex_try(sqlite3_mutex_alloc(ofd_static[i])) == SQLITE_OK) continue;
        ofd_leave_static(i);
        return 0;
    }
    return 1;
}

static void ofd_prepare(void)
{
    const struct timespec pause = {0, 100000}; /* 0.1 ms */
    int held = 0;

    for (int i = 0; i < OFD_FORK_TRIES && !(held = ofd_enter_static()); i++) nanosleep(&pause, NULL);
    ofd_before_fork();
    ofd_static_held = held;
}

static void ofd_parent(void)
{
    int held = ofd_static_held;

    ofd_after_fork();
    if (held) ofd_leave_static(OFD_STATIC);
}

static void ofd_in_child(void)
{
    int held = ofd_static_held;

    atomic_fetch_add(&ofd_forks, 1);
    ofd_child();
    nl_unix_forget();
    ofd_after_fork();
    if (held) ofd_leave_static(OFD_STATIC);
}

void nl_ofd_install(void)
{
    ofd_install_calls();
    pthread_atfork(ofd_prepare, ofd_parent, ofd_in_child);
}
