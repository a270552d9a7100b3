/*
** roll.c - ends a generation: one critical section under CKPT and WRITE.
**
** Part of sqlite_unit.c, after changes.c. With SQLite's public checkpoint call a roll loses commits of
** other processes (rule A1): between the last copy of frames and the WRITE lock that the call takes
** itself, and again between its release and our new pin. Here the locks are held from before the last
** frame is taken until the new pin stands:
**
**   nl_roll_begin    CKPT, WRITE; wal-index header; take the rest of the frames
**                    (the owner makes archive, index and page-hash table durable)
**   nl_roll_finish   release the pin; checkpoint TRUNCATE without a busy handler, or the same with a
**                    file that keeps its size; new pin on the empty WAL, whose READ_LOCK(0) keeps the base; release WRITE, CKPT
**
** A reader that still needs the WAL makes the checkpoint answer BUSY: then the pin is taken again
** before WRITE is released, and the generation goes on as if nothing had been tried.
**
** CKPT before WRITE is SQLite's own order (sqlite3WalCheckpoint), so no deadlock with a checkpointer.
**
** A checkpoint that fails after it has reset the wal-index (truncating the file failed) has ended the
** generation all the same: the next writer starts at frame 1. Therefore what counts is the wal-index
** after the attempt, not only the return code.
*/
#include "nl.h"

#include "fault.h"

#define ROLL_POLL_US 200

static int roll_lock(nl_tail *t, int lock, int64_t deadline_us)
{
    Wal *pWal = tail_wal(t);
    int rc;

    while ((rc = walLockExclusive(pWal, lock, 1)) == SQLITE_BUSY && deadline_us > 0) {
        sqlite3OsSleep(t->db->pVfs, ROLL_POLL_US);
        deadline_us -= ROLL_POLL_US;
    }
    return rc;
}

static void roll_unlock(nl_tail *t)
{
    Wal *pWal = tail_wal(t);

    memset(&pWal->hdr, 0, sizeof pWal->hdr); /* the pager's cache is not current: essay of tail.c */
    if (pWal->writeLock) walUnlockExclusive(pWal, WAL_WRITE_LOCK, 1);
    pWal->writeLock = 0;
    if (pWal->ckptLock) walUnlockExclusive(pWal, WAL_CKPT_LOCK, 1);
    pWal->ckptLock = 0;
    t->rolling = 0;
}

static int roll_read_header(nl_tail *t)
{
    Wal *pWal = tail_wal(t);
    int changed = 0, rc;

    SEH_TRY {
        rc = walIndexReadHdr(pWal, &changed);
    }
    SEH_EXCEPT( rc = SQLITE_IOERR_IN_PAGE; )
    return rc;
}

/* On the idle pin, which nothing but a moving pin uses: readers of R are not kept waiting for the
** fsyncs of a checkpoint. The pin is on a read mark, so frames up to it may be copied and the WAL
** cannot be reset. */
int nl_roll_passive(nl_tail *t, uint32_t *copied, nl_error *err)
{
    sqlite3 *idle = t->pin[t->pinned == 0 ? 1 : 0];
    int log = 0, done = 0;

    *copied = 0;
    int rc = sqlite3_wal_checkpoint_v2(idle, "main", SQLITE_CHECKPOINT_PASSIVE, &log, &done);
    if ((rc & 0xff) == SQLITE_BUSY) return NL_OK; /* somebody else is copying */
    if (rc != SQLITE_OK) return nl_fail_sqlite(err, idle, rc);
    *copied = done > 0 ? (uint32_t)done : 0;
    return NL_OK;
}

int nl_roll_begin(nl_tail *t, int wait_ms, nl_error *err)
{
    Wal *pWal = tail_wal(t);
    const int64_t wait = (int64_t)wait_ms * 1000;

    if (tail_idle(t, err) != NL_OK) return NL_E_MISUSE;
    if (!t->ready) return nl_fail(err, NL_E_RESET, "the tail has no base, or lost its pin");
    int rc = roll_lock(t, WAL_CKPT_LOCK, wait);
    if (rc == SQLITE_OK) {
        pWal->ckptLock = 1;
        rc = roll_lock(t, WAL_WRITE_LOCK, wait);
        if (rc == SQLITE_OK) pWal->writeLock = 1;
    }
    t->rolling = 1;
    if (rc == SQLITE_OK) rc = roll_read_header(t);
    if (rc != SQLITE_OK) {
        roll_unlock(t);
        if (rc == SQLITE_BUSY) return nl_fail(err, NL_E_BUSY, "another process writes or checkpoints");
        return nl_fail_sqlite(err, NULL, rc);
    }
    rc = tail_advance(t, err);
    if (rc != NL_OK) roll_unlock(t);
    return rc;
}

/* Under CKPT and WRITE: copy every frame. The pin moves to the head, or it would keep frames behind it from
** being copied. Those who begin to read afterwards take READ_LOCK(0) and are in nobody's way. */
int nl_roll_copy(nl_tail *t, nl_error *err)
{
    Wal *pWal = tail_wal(t);
    Pager *pager = tail_pager(t);
    int rc;

    if (!t->rolling) return nl_fail(err, NL_E_MISUSE, "no roll was begun");
    rc = tail_repin(t, err);
    if (rc != NL_OK) return rc;
    if (NL_FAULT("roll.copy")) return nl_fail_sqlite(err, NULL, SQLITE_IOERR_WRITE);
    SEH_TRY {
        rc = walCheckpoint(pWal, t->db, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL, pager->walSyncFlags,
                           (u8 *)pager->pTmpSpace);
    }
    SEH_EXCEPT( rc = SQLITE_IOERR_IN_PAGE; )
    return (rc & 0xff) == SQLITE_BUSY || rc == SQLITE_OK ? NL_OK : nl_fail_sqlite(err, NULL, rc);
}

/* What TRUNCATE does but for giving the file's blocks back, which takes half a millisecond for each mebibyte, and
** the next writer longer to have them again. The file goes on as after a restart by any writer: what stands in
** it is in the database file, and the first frame is preceded by a header of other salts. Found after a crash
** of all who had it open it is the generation before, which start-up knows by its salts. */
static int roll_restart(Wal *pWal)
{
    u32 salt;
    int rc = walLockExclusive(pWal, WAL_READ_LOCK(1), WAL_NREADER - 1);

    if (rc != SQLITE_OK) return rc;
    sqlite3_randomness(sizeof salt, &salt);
    walRestartHdr(pWal, salt);
    walUnlockExclusive(pWal, WAL_READ_LOCK(1), WAL_NREADER - 1);
    return SQLITE_OK;
}

/* The static function, because the public one takes the locks itself. No busy handler: the section
** ends at once when a reader is in the way. */
static int roll_checkpoint(nl_tail *t, int keep)
{
    Wal *pWal = tail_wal(t);
    Pager *pager = tail_pager(t);
    int rc;

    if (NL_FAULT("roll.checkpoint")) return SQLITE_IOERR_WRITE;
    SEH_TRY {
        rc = walCheckpoint(pWal, t->db, keep ? SQLITE_CHECKPOINT_RESTART : SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL,
                           pager->walSyncFlags, (u8 *)pager->pTmpSpace);
        if (rc == SQLITE_OK && keep) rc = roll_restart(pWal);
    }
    SEH_EXCEPT( rc = SQLITE_IOERR_IN_PAGE; )
    return rc;
}

/* The tables stay, positions start again. */
static int roll_next_generation(nl_tail *t, nl_error *err)
{
    t->frame = 0;
    t->live = 0;
    t->bound = 0;
    memset(&t->chain, 0, sizeof t->chain);
    return tail_set_base(t, err);
}

int nl_roll_finish(nl_tail *t, int keep, nl_error *err)
{
    if (!t->rolling) return nl_fail(err, NL_E_MISUSE, "no roll was begun");
    (void)NL_FAULT("roll.before-unpin");
    tail_unpin(t);
    (void)NL_FAULT("roll.before-checkpoint");
    int rc = roll_checkpoint(t, keep);
    (void)NL_FAULT("roll.after-checkpoint");
    int header = roll_read_header(t);
    int emptied = header == SQLITE_OK && tail_wal(t)->hdr.mxFrame == 0;

    int pin = tail_repin(t, err); /* still under WRITE: nobody can have written */
    if (pin != NL_OK) {
        /* Without a pin nothing may be shown of this WAL: the owner starts over. */
        t->ready = 0;
        roll_unlock(t);
        return pin;
    }
    (void)NL_FAULT("roll.after-pin");
    if (emptied) {
        rc = roll_next_generation(t, err);
    } else if (rc == SQLITE_BUSY || rc == SQLITE_OK) {
        rc = nl_fail(err, NL_E_BUSY, "a reader still needs the WAL");
    } else {
        rc = nl_fail_sqlite(err, NULL, rc);
    }
    roll_unlock(t);
    return rc;
}

void nl_roll_abort(nl_tail *t)
{
    if (t->rolling && t->forks == nl_forks()) roll_unlock(t);
}
