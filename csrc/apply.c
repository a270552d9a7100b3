/*
** apply.c - one page set becomes one SQLite transaction on a replica.
**
** This file is included into sqlite_unit.c behind the amalgamation: it needs the private WAL and
** pager functions. SQLite itself is never edited.
**
** WHAT
**   A replica is an ordinary WAL-mode database whose byte 18 is 3, so that every SQLite reads it
**   and none writes it. Bytes 72..91 of page 1 hold lineage, generation, frame and state hash. The
**   applier lifts the read-only flag of its own private connection, appends the frames of a
**   verified page set and commits them with page 1, which carries the new position: data and
**   position are one transaction.
**
** ORDER OF CALLS (each numbered condition is tested where the number stands again below)
**   (1) begin read, clear BTS_READ_ONLY, begin write; retried on busy until the deadline. lockBtree
**       sets the flag again at every transaction start, therefore the two steps.
**   (2) position and state hash are read from page 1 *under the write lock*: several processes may
**       feed one file. A mismatch writes nothing.
**   (3) H(old) of every touched page comes from the page-hash table, or from the page itself, before
**       a frame of the same page is appended (afterwards the WAL would answer with our own frame).
**   (4) a WAL restart happens only while WAL_CKPT_LOCK is held: the reset race of SQLite before
**       3.51.3 sits in the checkpointer, and the checkpointer may be any old reader's.
**   (5) the first frame of a log and every commit frame go through sqlite3WalFrames itself: it
**       restarts the log, writes and syncs the WAL header, pads, syncs and publishes. Only the
**       frames between travel in bulk, with hdr.mxFrame advanced per write, so that walIndexAppend
**       never mistakes our own entries for a dead writer's.
**   (6) the state hash is compared as soon as all pages are there: before a byte is written, if they
**       came in one chunk, and always before the commit frame; page 1 is that frame.
**   (7) the end is commit *phase two only*: phase one may run an auto-vacuum with a stale page 1.
**       No pager or btree size is set by hand; the next read takes them from the wal-index.
**   (8) the page cache is dropped after the transaction has ended: while page 1 is referenced
**       pager_reset would zero it under its user.
**
** LOCKS    the connection is private and has no statements; every function takes db->mutex.
** MEMORY   one write buffer below 128 KiB, 8 bytes per database page for the hash table.
*/
#include "nl.h"
#include "bytes.h"
#include "codec_vfs.h"
#include "fault.h"
#include "frame.h"
#include "pageset.h"
#include "replica_header.h"

/* unixWrite keeps only the low 17 bits of a write's length: one xWrite stays below this. */
#define APPLY_WRITE_MAX 131071u

struct nl_applier {
    sqlite3 *db;            /* private connection, autocheckpoint off */
    uint64_t *hash;         /* page-hash table: hash[pgno-1]; 0 = not known yet */
    uint32_t hash_pages;    /* entries in use = pages of the database at `at` */
    uint32_t hash_room;     /* entries allocated */
    nl_position at;         /* state the table belongs to; void when it is all zero */
    uint8_t *buffer;        /* bulk frames on their way into the WAL, APPLY_WRITE_MAX bytes */
    uint8_t *page;          /* one page: reading old images, building page 1 */
    uint32_t page_size;     /* bytes */
    uint32_t forks;         /* nl_forks() at birth: in the child of a fork the handle is dead */
    int open;               /* 1 between begin and commit/rollback */
    int64_t deadline;       /* of waiting for locks, for begin and all that follows it */
    nl_set_header set;      /* the set being applied */
    uint64_t running;       /* state hash so far, starts at set.hash_from */
    uint32_t old_pages;     /* size of the database before the set */
    uint32_t last;          /* last page number of the set seen so far */
    uint32_t count;         /* pages of the set seen so far */
    int have_page1;         /* page 1 of the set is in `page` */
    int told;               /* it is a compact set: told from this replica's pages */
    int noted;              /* the page-hash table has entries of the set */
    int proved;             /* every page is in the running hash, and it is the announced one */
    uint32_t frames;        /* frames appended by this transaction so far */
    uint32_t rekeyed;       /* generation of the data key that rekey_begin found or made */
    uint32_t grown;         /* pages of the set that the database did not have before */
    int surveyed;           /* repair.c: the table is of every page as found under `surveyed_at` */
    WalIndexHdr surveyed_at;
};

/* ------------------------------------------------------------------ small private pieces */

static Btree *apply_btree(const nl_applier *a) { return a->db->aDb[0].pBt; }
static Wal *apply_wal(const nl_applier *a) { return sqlite3BtreePager(apply_btree(a))->pWal; }

static int apply_idle(const nl_applier *a, nl_error *err) {
    if (a->forks != nl_forks()) {
        return nl_fail(err, NL_E_MISUSE, "the replica was opened before a fork, by the parent process");
    }
    if (a->open) return nl_fail(err, NL_E_MISUSE, "a page set is being applied");
    return NL_OK;
}

static void apply_enter(nl_applier *a) {
    sqlite3_mutex_enter(a->db->mutex);
    sqlite3BtreeEnter(apply_btree(a));
}

static void apply_leave(nl_applier *a) {
    sqlite3BtreeLeave(apply_btree(a));
    sqlite3_mutex_leave(a->db->mutex);
}

/* Milliseconds of a clock that never jumps. */
static int64_t apply_now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void apply_nap(void) {
    struct timespec t = {0, 200000}; /* 0.2 ms: a commit of another process is shorter */
    nanosleep(&t, NULL);
}

/* The newest image of a page in the open transaction, without the page cache (a cached copy would
** only have to be dropped again). A page beyond the file reads as zeros, as SQLite itself does. */
static int apply_read_page(nl_applier *a, uint32_t pgno, uint8_t *out) {
    Pager *pager = sqlite3BtreePager(apply_btree(a));
    u32 frame = 0;
    int rc = sqlite3WalFindFrame(pager->pWal, pgno, &frame);
    if (rc != SQLITE_OK) return rc;
    if (frame != 0) return sqlite3WalReadFrame(pager->pWal, frame, (int)a->page_size, out);
    rc = sqlite3OsRead(pager->fd, out, (int)a->page_size,
                       (i64)(pgno - 1) * (i64)a->page_size);
    return rc == SQLITE_IOERR_SHORT_READ ? SQLITE_OK : rc; /* the rest is already zeroed */
}

static int apply_same_position(nl_position x, nl_position y) {
    return x.lineage == y.lineage && x.generation == y.generation && x.frame == y.frame;
}

/* Make the table fit `pages` entries; new entries are unknown. */
static int apply_table_fit(nl_applier *a, uint32_t pages) {
    if (pages > a->hash_room) {
        uint32_t room = pages + pages / 4 + 1024;
        uint64_t *grown = sqlite3_realloc64(a->hash, (sqlite3_uint64)room * sizeof *grown);
        if (grown == NULL) return SQLITE_NOMEM;
        a->hash = grown;
        a->hash_room = room;
    }
    if (pages > a->hash_pages) {
        memset(a->hash + a->hash_pages, 0, (size_t)(pages - a->hash_pages) * sizeof *a->hash);
    }
    a->hash_pages = pages;
    return SQLITE_OK;
}

static void apply_table_forget(nl_applier *a) {
    memset(&a->at, 0, sizeof a->at);
    if (a->hash_pages > 0) memset(a->hash, 0, (size_t)a->hash_pages * sizeof *a->hash);
}

/* H(old) of a page that exists at `from`: (3). */
static int apply_old_hash(
    nl_applier *a,
    uint32_t pgno,
    uint64_t *out              /* OUT: hash, 0 when the page did not exist */
) {
    *out = 0;
    if (pgno > a->old_pages || pgno == nl_lock_page(a->page_size)) return SQLITE_OK;
    if (pgno <= a->hash_pages && a->hash[pgno - 1] != 0) {
        *out = a->hash[pgno - 1];
        return SQLITE_OK;
    }
    uint8_t *image = a->buffer; /* free whenever this runs: frames leave it before they return */
    int rc = apply_read_page(a, pgno, image);
    if (rc == SQLITE_OK) *out = nl_page_hash(image, a->page_size, pgno);
    return rc;
}

/* ------------------------------------------------------------------ transaction: begin and end */

/* (1) Read transaction, flag lifted, write transaction. */
static int apply_begin_write(nl_applier *a, int64_t deadline) {
    Btree *bt = apply_btree(a);
    for (;;) {
        int rc = sqlite3BtreeBeginTrans(bt, 0, 0);
        if (rc == SQLITE_OK) {
            bt->pBt->btsFlags &= (u16)~BTS_READ_ONLY;
            rc = sqlite3BtreeBeginTrans(bt, 1, 0);
            if (rc == SQLITE_OK) return SQLITE_OK;
            sqlite3BtreeCommitPhaseTwo(bt, 0); /* ends the read; nothing was written */
        }
        if ((rc & 0xff) != SQLITE_BUSY || apply_now_ms() >= deadline) return rc;
        apply_nap();
    }
}

static void apply_end_read(nl_applier *a) { sqlite3BtreeCommitPhaseTwo(apply_btree(a), 0); }

/* Undo everything: the replica is as it was. (8) */
static void apply_undo(nl_applier *a) {
    sqlite3BtreeRollback(apply_btree(a), SQLITE_OK, 0);
    pager_reset(sqlite3BtreePager(apply_btree(a)));
    a->open = 0;
    /* Entries of pages already seen are of a state that never came, and one of the others may be why it
    ** did not come. But where a compact set came out wrong the pages are the first to be doubted. */
    if (a->noted || !a->told) apply_table_forget(a);
    else a->hash_pages = a->old_pages; /* it may have been made to fit more */
}

static int apply_fail_sqlite(int rc, const char *what, nl_error *err) {
    int base = rc & 0xff, code = nl_sealed_explain(rc, err);
    if (code != NL_OK) return code;
    if (base == SQLITE_BUSY) {
        nl_fail(err, NL_E_BUSY, "another program holds the write lock of the replica");
    } else if (base == SQLITE_FULL) {
        nl_fail(err, NL_E_FULL, "the disk is full");
    } else {
        nl_fail(err, NL_E_SQLITE, "%s", what);
    }
    if (err != NULL) err->sqlite_rc = rc;
    return err != NULL ? err->code : NL_E_SQLITE;
}

/* What SQLite's own write would answer had it failed with this errno. */
static int apply_injected(int fault) {
    return fault == 0 ? SQLITE_OK : fault == ENOSPC ? SQLITE_FULL : SQLITE_IOERR_WRITE;
}

/* ------------------------------------------------------------------ frames into the WAL */

/* (4) Called with the write lock held, before the first frame of the transaction. */
static int apply_restart_guard(
    nl_applier *a,
    int *held                  /* OUT: 1 when WAL_CKPT_LOCK was taken */
) {
    Wal *pWal = apply_wal(a); /* SQLite's SEH_ macros, asserts in a debug build, want this name */
    u32 backfilled = 0;
    *held = 0;
    SEH_TRY { backfilled = walCkptInfo(pWal)->nBackfill; }
    SEH_EXCEPT(return SQLITE_IOERR_IN_PAGE;)
    if (pWal->readLock != 0 || backfilled == 0) return SQLITE_OK;
    for (;;) {
        int rc = walLockExclusive(pWal, WAL_CKPT_LOCK, 1);
        if (rc == SQLITE_OK) {
            pWal->ckptLock = 1;
            *held = 1;
            return SQLITE_OK;
        }
        if ((rc & 0xff) != SQLITE_BUSY || apply_now_ms() >= a->deadline) return rc;
        apply_nap();
    }
}

/* One frame through SQLite's own path: the first of a transaction, and the commit. (5) */
static int apply_stock_frame(
    nl_applier *a,
    uint32_t pgno,
    const uint8_t *page,
    uint32_t commit_size       /* pages after the commit, or 0 */
) {
    Wal *wal = apply_wal(a);
    Pager *pager = sqlite3BtreePager(apply_btree(a));
    PgHdr head;
    int held = 0;
    int rc = a->frames == 0 ? apply_restart_guard(a, &held) : SQLITE_OK;
    if (rc != SQLITE_OK) return rc;
    memset(&head, 0, sizeof head);
    head.pgno = pgno;
    head.pData = (void *)(uintptr_t)page; /* sqlite3WalFrames only reads it */
    rc = sqlite3WalFrames(wal, (int)a->page_size, &head, commit_size, commit_size != 0,
                          pager->walSyncFlags);
    if (held) {
        walUnlockExclusive(wal, WAL_CKPT_LOCK, 1);
        wal->ckptLock = 0;
    }
    if (rc == SQLITE_OK) a->frames++;
    return rc;
}

/* Whether the next frame may be the first of a log: only then is there a restart to decide on and a
** WAL header to write, and the frame has to go through SQLite's own path. (5) */
static int apply_starts_log(const nl_applier *a) {
    const Wal *wal = apply_wal(a);
    return wal->readLock == 0 || wal->hdr.mxFrame == 0 || wal->szPage != a->page_size;
}

/* Write `n` encoded frames that stand in the buffer and enter them into the wal-index. */
static int apply_flush(nl_applier *a, const uint32_t *pgnos, uint32_t n) {
    Wal *pWal = apply_wal(a);
    uint32_t frame_size = a->page_size + NL_FRAME_HEADER_SIZE;
    uint32_t first = pWal->hdr.mxFrame + 1;
    int rc = apply_injected(NL_FAULT("apply.write"));
    if (rc != SQLITE_OK) return rc;
    rc = sqlite3OsWrite(pWal->pWalFd, a->buffer, (int)(n * frame_size),
                            walFrameOffset(first, a->page_size));
    if (rc != SQLITE_OK) return rc;
    rc = apply_injected(NL_FAULT("apply.written"));
    if (rc != SQLITE_OK) return rc;
    SEH_TRY {
        for (uint32_t i = 0; i < n && rc == SQLITE_OK; i++) {
            rc = walIndexAppend(pWal, first + i, pgnos[i]);
        }
    }
    SEH_EXCEPT(rc = SQLITE_IOERR_IN_PAGE;)
    if (rc != SQLITE_OK) return rc;
    pWal->hdr.mxFrame = first + n - 1; /* private copy: nobody sees it before the commit */
    a->frames += n;
    return apply_injected(NL_FAULT("apply.indexed"));
}

/* Pages `from`.. of a chunk in bulk. */
static int apply_bulk(nl_applier *a, const nl_chunk *c, uint32_t from) {
    Wal *wal = apply_wal(a);
    uint32_t frame_size = a->page_size + NL_FRAME_HEADER_SIZE;
    uint32_t room = APPLY_WRITE_MAX / frame_size;
    const uint8_t *salt = (const uint8_t *)wal->hdr.aSalt; /* kept as the file has it: big-endian */
    nl_wal_chain chain = {a->page_size, wal->hdr.bigEndCksum != 0,
                          {nl_get32(salt), nl_get32(salt + 4)},
                          {wal->hdr.aFrameCksum[0], wal->hdr.aFrameCksum[1]}};
    const int native = nl_wal_native(&chain);
    for (uint32_t i = from; i < c->count;) {
        uint32_t n = 0;
        for (; n < room && i + n < c->count; n++) {
            const uint8_t *page = c->pages + (size_t)(i + n) * a->page_size;
            uint8_t *frame = a->buffer + (size_t)n * frame_size;
            if (native) {
                nl_frame_header_encode(&chain, c->pgnos[i + n], 0, c->shares[i + n], frame);
                memcpy(frame + NL_FRAME_HEADER_SIZE, page, a->page_size);
            } else { /* a WAL begun on a machine of the other byte order */
                nl_frame_encode(&chain, c->pgnos[i + n], 0, page, frame);
            }
        }
        int rc = apply_flush(a, c->pgnos + i, n);
        if (rc != SQLITE_OK) return rc;
        wal->hdr.aFrameCksum[0] = chain.sum[0];
        wal->hdr.aFrameCksum[1] = chain.sum[1];
        i += n;
    }
    return SQLITE_OK;
}

/* ------------------------------------------------------------------ exported */

int nl_applier_open(const char *path, nl_key *key, int durable, nl_applier **out, nl_error *err) {
    nl_applier *a = sqlite3_malloc64(sizeof *a);
    int rc = SQLITE_NOMEM;
    *out = NULL;
    if (a == NULL) return nl_fail(err, NL_E_NOMEM, "out of memory");
    memset(a, 0, sizeof *a);
    a->forks = nl_forks();
    a->buffer = sqlite3_malloc64(APPLY_WRITE_MAX + 1);
    a->page = sqlite3_malloc64(65536);
    if (a->buffer == NULL || a->page == NULL) goto done;
    rc = nl_sealed_connect(path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_PRIVATECACHE, key, &a->db);
    if (rc != SQLITE_OK) goto done;
    sqlite3_busy_timeout(a->db, 5000);
    sqlite3_wal_autocheckpoint(a->db, 0);
    /* What PRAGMA synchronous does, without reading the schema first: it may be what is damaged. */
    sqlite3_mutex_enter(a->db->mutex);
    a->db->aDb[0].safety_level = durable ? PAGER_SYNCHRONOUS_FULL : PAGER_SYNCHRONOUS_NORMAL;
    a->db->aDb[0].bSyncSet = 1;
    setAllPagerFlags(a->db);
    sqlite3_mutex_leave(a->db->mutex);
done:
    if (rc != SQLITE_OK) {
        apply_fail_sqlite(rc, "the replica file could not be opened", err);
        nl_applier_close(a);
        return err != NULL ? err->code : NL_E_SQLITE;
    }
    *out = a;
    return NL_OK;
}

int nl_applier_adopt(nl_applier *a, const nl_state *at, const uint64_t *hashes, nl_error *err) {
    if (apply_idle(a, err) != NL_OK) return NL_E_MISUSE;
    apply_table_forget(a);
    a->hash_pages = 0;
    if (apply_table_fit(a, at->pages) != SQLITE_OK) {
        return nl_fail(err, NL_E_NOMEM, "no memory for the page-hash table");
    }
    if (at->pages > 0) memcpy(a->hash, hashes, at->pages * sizeof *hashes);
    a->at = at->position;
    return NL_OK;
}

void nl_applier_close(nl_applier *a) {
    /* An inherited handle is left as it is: closing it would reach into the parent's transaction. */
    if (a == NULL || a->forks != nl_forks()) return;
    if (a->open) nl_applier_rollback(a);
    sqlite3_close_v2(a->db);
    sqlite3_free(a->hash);
    sqlite3_free(a->buffer);
    sqlite3_free(a->page);
    sqlite3_free(a);
}

/* Inside a transaction: fill `out` from page 1, learn the page size. */
static int apply_state_locked(nl_applier *a, nl_state *out, nl_error *err) {
    BtShared *bt = apply_btree(a)->pBt;
    memset(out, 0, sizeof *out);
    a->page_size = bt->pageSize;
    out->page_size = bt->pageSize;
    out->pages = bt->nPage;
    if (bt->nPage == 0 || apply_wal(a) == NULL) {
        return nl_fail(err, NL_E_NOT_REPLICA, "the file is empty or not in WAL mode");
    }
    if (bt->usableSize != bt->pageSize) {
        return nl_fail(err, NL_E_NOT_REPLICA, "pages with a reserved tail are not replicated");
    }
    out->wal_frames = apply_wal(a)->hdr.mxFrame;
    return nl_replica_header(bt->pPage1->aData, &out->position, &out->hash, err);
}

int nl_applier_state(nl_applier *a, nl_state *out, nl_error *err) {
    if (apply_idle(a, err) != NL_OK) return NL_E_MISUSE;
    apply_enter(a);
    int rc = sqlite3BtreeBeginTrans(apply_btree(a), 0, 0);
    if (rc != SQLITE_OK) {
        rc = apply_fail_sqlite(rc, "the replica could not be read", err);
    } else {
        rc = apply_state_locked(a, out, err);
        apply_end_read(a);
    }
    apply_leave(a);
    return rc;
}

/* (2) under the write lock. */
static int apply_check_start(nl_applier *a, const nl_set_header *set, nl_state *at, nl_error *err) {
    int rc = apply_state_locked(a, at, err);
    if (rc != NL_OK) return rc;
    if (set->page_size != a->page_size) {
        return nl_fail(err, NL_E_FORMAT, "the page set has another page size than the replica");
    }
    if (!apply_same_position(set->from, at->position)) {
        return nl_fail(err, NL_E_POSITION, "the page set does not start at this position");
    }
    if (set->hash_from != at->hash) {
        return nl_fail(err, NL_E_HASH, "the state hash at the start differs");
    }
    if (!apply_same_position(a->at, at->position) || a->hash_pages != at->pages) {
        apply_table_forget(a); /* another process applied, or this is the first time */
        if (apply_table_fit(a, at->pages) != SQLITE_OK) {
            return nl_fail(err, NL_E_NOMEM, "no memory for the page-hash table");
        }
        a->at = at->position;
    }
    return NL_OK;
}

/* Under the write lock: a set begins, on a database of `pages` pages and this state hash. */
static void apply_open(nl_applier *a, const nl_set_header *set, uint64_t hash, uint32_t pages) {
    a->open = 1;
    a->set = *set;
    a->running = hash;
    a->old_pages = pages;
    a->last = 0;
    a->count = 0;
    a->frames = 0;
    a->grown = 0;
    a->have_page1 = 0;
    a->proved = 0;
    a->noted = 0;
    a->told = 0;
}

int nl_applier_begin(
    nl_applier *a,
    const nl_set_header *set,
    int wait_ms,
    nl_state *at,
    nl_error *err
) {
    if (apply_idle(a, err) != NL_OK) return NL_E_MISUSE;
    if (set->flags != 0 || set->pages == 0) {
        return nl_fail(err, NL_E_FORMAT, "this page set cannot be applied to a replica");
    }
    apply_enter(a);
    a->deadline = apply_now_ms() + wait_ms;
    int rc = apply_injected(NL_FAULT("apply.begin"));
    if (rc == SQLITE_OK) rc = apply_begin_write(a, a->deadline);
    if (rc != SQLITE_OK) {
        rc = apply_fail_sqlite(rc, "the write lock of the replica was not to be had", err);
    } else {
        rc = apply_check_start(a, set, at, err);
        if (rc == NL_OK) {
            apply_open(a, set, set->hash_from, at->pages);
        } else {
            sqlite3BtreeRollback(apply_btree(a), SQLITE_OK, 0);
            pager_reset(sqlite3BtreePager(apply_btree(a)));
        }
    }
    apply_leave(a);
    return rc;
}

/* Hashes of a chunk's pages enter the running state hash; page 1 is put aside. */
static int apply_account(nl_applier *a, const nl_chunk *c) {
    uint32_t last = c->pgnos[c->count - 1];
    int rc = last > a->hash_pages ? apply_table_fit(a, last) : SQLITE_OK;
    for (uint32_t i = 0; rc == SQLITE_OK && i < c->count; i++) {
        uint64_t old;
        rc = apply_old_hash(a, c->pgnos[i], &old);
        a->running ^= old ^ c->hashes[i];
        a->grown += c->pgnos[i] > a->old_pages;
    }
    if (c->pgnos[0] == 1) {
        memcpy(a->page, c->pages, a->page_size);
        a->have_page1 = 1;
    }
    return rc;
}

/* They enter the table: not before a set of one chunk is proved, so that the table is still right for the
** state that stays. Where the file is damaged only the table knows what was there. */
static void apply_note(nl_applier *a, const nl_chunk *c) {
    a->noted = 1;
    for (uint32_t i = 0; i < c->count; i++) a->hash[c->pgnos[i] - 1] = c->hashes[i];
}

/* Pages that the set cuts off leave the hash. */
static int apply_account_shrink(nl_applier *a) {
    int rc = SQLITE_OK;
    for (uint32_t pgno = a->set.pages + 1; rc == SQLITE_OK && pgno <= a->old_pages; pgno++) {
        uint64_t old;
        rc = apply_old_hash(a, pgno, &old);
        a->running ^= old;
    }
    return rc;
}

/* Pages that the database gains have to be in the set, all but the lock-byte page: what no frame says
** would be read as whatever lies behind the end of the file. */
static int apply_check_growth(nl_applier *a, nl_error *err) {
    uint32_t lock_page = nl_lock_page(a->page_size);
    if (a->set.pages <= a->old_pages) return NL_OK;
    uint32_t gained = a->set.pages - a->old_pages;
    if (lock_page > a->old_pages && lock_page <= a->set.pages) gained--;
    if (a->grown != gained) {
        return nl_fail(err, NL_E_FORMAT, "the page set leaves out pages that the database gains");
    }
    if (apply_table_fit(a, a->set.pages) != SQLITE_OK) { /* the lock-byte page may be the last */
        return nl_fail(err, NL_E_NOMEM, "no memory for the page-hash table");
    }
    return NL_OK;
}

/* (6) Once all pages are accounted for: of a set of one chunk before a byte is written. */
static int apply_prove(nl_applier *a, nl_error *err) {
    int rc = apply_check_growth(a, err);
    if (rc != NL_OK) return rc;
    rc = apply_account_shrink(a);
    if (rc != SQLITE_OK) return apply_fail_sqlite(rc, "an old page could not be read", err);
    if (a->running != a->set.hash_to) {
        return nl_fail(err, NL_E_HASH, "the state after the page set is not the announced one");
    }
    a->proved = 1;
    return NL_OK;
}

static int apply_chunk_locked(nl_applier *a, const nl_chunk *c, nl_error *err) {
    uint32_t first = c->pgnos[0] == 1 ? 1 : 0; /* page 1 waits for the commit */
    int rc = apply_account(a, c);
    if (rc != SQLITE_OK) return apply_fail_sqlite(rc, "an old page could not be read", err);
    a->last = c->pgnos[c->count - 1];
    a->count += c->count;
    if (a->count == a->set.count) {
        rc = apply_prove(a, err);
        if (rc != NL_OK) return rc;
    }
    apply_note(a, c);
    if (first < c->count && a->frames == 0 && apply_starts_log(a)) {
        rc = apply_stock_frame(a, c->pgnos[first], c->pages + (size_t)first * a->page_size, 0);
        first++;
    }
    if (rc == SQLITE_OK && first < c->count) rc = apply_bulk(a, c, first);
    if (rc != SQLITE_OK) rc = apply_fail_sqlite(rc, "the page set could not be written", err);
    return rc;
}

int nl_applier_chunk(nl_applier *a, const nl_chunk *c, nl_error *err) {
    if (!a->open) return nl_fail(err, NL_E_MISUSE, "no page set is being applied");
    if (c->shares == NULL || c->page_size != a->page_size || c->pgnos[0] <= a->last ||
        c->pgnos[c->count - 1] > a->set.pages || c->count > a->set.count - a->count) {
        return nl_fail(err, NL_E_FORMAT, "the chunk does not continue its page set");
    }
    apply_enter(a);
    int rc = apply_chunk_locked(a, c, err);
    apply_leave(a);
    return rc;
}

/* Page 1 with the new position, from the set or from the replica itself: as the file has it, because
** SQLite corrects the size of the database in its own copy when it begins to write. */
static int apply_page_one(nl_applier *a, nl_error *err) {
    if (!a->have_page1) {
        int rc = apply_read_page(a, 1, a->page);
        if (rc != SQLITE_OK) return apply_fail_sqlite(rc, "page 1 could not be read", err);
        if (a->hash[0] != 0 && nl_page_hash(a->page, a->page_size, 1) != a->hash[0]) {
            return nl_fail(err, NL_E_HASH, "page 1 is not what it was when it was hashed");
        }
    }
    return nl_replica_page_one(a->page, a->page_size, a->set.to, a->set.hash_to, err);
}

static int apply_finish_locked(nl_applier *a, nl_state *out, nl_error *err) {
    if (a->count != a->set.count) {
        return nl_fail(err, NL_E_FORMAT, "the page set ended early");
    }
    int rc = a->proved ? NL_OK : apply_prove(a, err); /* not yet: a set without a page */
    if (rc != NL_OK) return rc;
    rc = apply_page_one(a, err);
    if (rc != NL_OK) return rc;
    rc = apply_injected(NL_FAULT("apply.commit"));
    if (rc == SQLITE_OK) {
        rc = apply_stock_frame(a, 1, a->page, a->set.pages);
    }
    if (rc != SQLITE_OK) return apply_fail_sqlite(rc, "the commit could not be written", err);
    (void)NL_FAULT("apply.committed"); /* published: only a kill makes sense from here on */
    out->wal_frames = apply_wal(a)->hdr.mxFrame;
    return NL_OK;
}

int nl_applier_commit(nl_applier *a, nl_state *out, nl_error *err) {
    if (!a->open) return nl_fail(err, NL_E_MISUSE, "no page set is being applied");
    apply_enter(a);
    memset(out, 0, sizeof *out);
    int rc = apply_finish_locked(a, out, err);
    if (rc != NL_OK) {
        apply_undo(a);
    } else {
        sqlite3BtreeCommitPhaseTwo(apply_btree(a), 0); /* (7) */
        pager_reset(sqlite3BtreePager(apply_btree(a)));  /* (8) */
        a->open = 0;
        a->hash_pages = a->set.pages; /* a smaller database forgets the cut-off entries */
        a->at = a->set.to;
        out->position = a->set.to;
        out->hash = a->set.hash_to;
        out->pages = a->set.pages;
        out->page_size = a->page_size;
    }
    apply_leave(a);
    return rc;
}

void nl_applier_rollback(nl_applier *a) {
    if (!a->open || a->forks != nl_forks()) return;
    apply_enter(a);
    apply_undo(a);
    apply_leave(a);
}

int nl_applier_apply(
    nl_applier *a,
    const nl_set_header *set,
    nl_chunk *const *chunks,
    uint32_t n,
    int wait_ms,
    nl_state *out,
    nl_error *err
) {
    int rc = nl_applier_begin(a, set, wait_ms, out, err);
    if (rc != NL_OK) return rc;
    for (uint32_t i = 0; rc == NL_OK && i < n; i++) rc = nl_applier_chunk(a, chunks[i], err);
    if (rc == NL_OK) return nl_applier_commit(a, out, err);
    nl_applier_rollback(a);
    return rc;
}

int nl_applier_checkpoint(
    nl_applier *a,
    int mode,
    int wait_ms,
    uint32_t *wal_frames,
    uint32_t *moved,
    nl_error *err
) {
    int log = 0, done = 0;
    if (apply_idle(a, err) != NL_OK) return NL_E_MISUSE;
    int rc = apply_injected(NL_FAULT("apply.checkpoint"));
    if (rc != SQLITE_OK) return apply_fail_sqlite(rc, "the checkpoint failed", err);
    sqlite3_busy_timeout(a->db, wait_ms);
    rc = sqlite3_wal_checkpoint_v2(a->db, "main", mode, &log, &done);
    sqlite3_busy_timeout(a->db, 5000);
    *wal_frames = log > 0 ? (uint32_t)log : 0;
    *moved = done > 0 ? (uint32_t)done : 0;
    if (rc == SQLITE_OK) return NL_OK;
    return apply_fail_sqlite(rc, "the checkpoint failed", err);
}

int nl_applier_full_hash(nl_applier *a, nl_state *at, uint64_t *hash, nl_error *err) {
    if (apply_idle(a, err) != NL_OK) return NL_E_MISUSE;
    apply_enter(a);
    int rc = sqlite3BtreeBeginTrans(apply_btree(a), 0, 0);
    if (rc != SQLITE_OK) {
        rc = apply_fail_sqlite(rc, "the replica could not be read", err);
        goto done;
    }
    rc = apply_state_locked(a, at, err);
    *hash = 0;
    if (rc == NL_OK) {
        apply_table_forget(a);
        a->hash_pages = 0;
        if (apply_table_fit(a, at->pages) != SQLITE_OK) {
            rc = nl_fail(err, NL_E_NOMEM, "no memory for the page-hash table");
        }
    }
    for (uint32_t pgno = 1; rc == NL_OK && pgno <= at->pages; pgno++) {
        if (pgno == nl_lock_page(a->page_size)) continue;
        int sqlite_rc = apply_read_page(a, pgno, a->page);
        if (sqlite_rc != SQLITE_OK) {
            rc = apply_fail_sqlite(sqlite_rc, "a page could not be read", err);
            if (err != NULL) err->page = pgno;
            break;
        }
        a->hash[pgno - 1] = nl_page_hash(a->page, a->page_size, pgno);
        *hash ^= a->hash[pgno - 1];
    }
    if (rc == NL_OK && *hash == at->hash) a->at = at->position;
    apply_end_read(a);
done:
    apply_leave(a);
    return rc;
}

int nl_sync_database(const char *path, nl_key *key, nl_error *err) {
    nl_applier *a = NULL;
    int rc = nl_applier_open(path, key, 0, &a, err);
    if (rc != NL_OK) return rc;
    apply_enter(a);
    rc = sqlite3BtreeBeginTrans(apply_btree(a), 0, 0);
    if (rc == SQLITE_OK) {
        rc = sqlite3OsSync(sqlite3BtreePager(apply_btree(a))->fd, SQLITE_SYNC_NORMAL);
        apply_end_read(a);
    }
    if (rc != SQLITE_OK) rc = apply_fail_sqlite(rc, "the database file was not synced", err);
    apply_leave(a);
    nl_applier_close(a);
    return rc;
}
