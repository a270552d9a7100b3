/*
** others.c - what other processes do to the tail's database, told by the locks that they hold on it.
**
** Part of sqlite_unit.c, after roll.c. A database that any program writes needs two things which a
** primary does not whose only writers are its own connections:
**
**   nl_tail_others  which of SQLite's locks others hold. F_GETLK tells without taking any, so that nobody
**                   finds a lock busy because of a look. On Linux our locks are of one open file
**                   description (ofd.c): locks of this process are not "others'" and are not told.
**   nl_tail_unpin   let the WAL go, for a checkpoint of others that waits for our pin while it holds
**                   WRITE and CKPT, and with them everybody who writes (rule A6).
**
** A lock that is seen to be free may be taken a moment later. So a look is for deciding when to look again,
** and never for deciding what is true of the WAL: that is said by salts and checksums alone (tail_advance).
*/
#include "nl.h"

#include <errno.h>
#include <fcntl.h>

#include "codec_vfs.h"

/* Whether another process holds one of `n` shm locks from `slot` on. */
static int others_hold(int fd, int slot, int n, int *held)
{
    struct flock lock;

    memset(&lock, 0, sizeof lock);
    lock.l_type = F_WRLCK; /* in conflict with shared and exclusive ones */
    lock.l_whence = SEEK_SET;
    lock.l_start = UNIX_SHM_BASE + slot;
    lock.l_len = n;
    while (osFcntl(fd, F_GETLK, &lock) != 0) {
        if (errno != EINTR) return SQLITE_IOERR_LOCK;
    }
    *held = lock.l_type != F_UNLCK;
    return SQLITE_OK;
}

int nl_tail_others(nl_tail *t, uint32_t *locks, nl_error *err)
{
    static const struct {
        uint32_t bit;
        int slot, n;
    } asked[] = {
        {NL_OTHERS_WRITE, WAL_WRITE_LOCK, 1},
        {NL_OTHERS_CHECKPOINT, WAL_CKPT_LOCK, 1},
        {NL_OTHERS_READ, WAL_READ_LOCK(1), WAL_NREADER - 1},
    };
    const unixFile *file = (const unixFile *)nl_sealed_below(tail_pager(t)->fd);

    *locks = 0;
    if (t->forks != nl_forks()) return nl_fail(err, NL_E_MISUSE, "the primary was opened by the parent process");
    /* The index is mapped since nl_tail_open has read through it; without a file it is of memory only. */
    if (file->pShm == NULL || file->pShm->pShmNode->hShm < 0) return NL_OK;
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        int held = 0, rc = others_hold(file->pShm->pShmNode->hShm, asked[i].slot, asked[i].n, &held);
        if (rc != SQLITE_OK) return nl_fail_sqlite(err, NULL, rc);
        if (held) *locks |= asked[i].bit;
    }
    return NL_OK;
}

int nl_tail_unpin(nl_tail *t, nl_error *err)
{
    if (tail_idle(t, err) != NL_OK) return NL_E_MISUSE;
    tail_unpin(t);
    return NL_OK;
}
