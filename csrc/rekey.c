/*
** rekey.c - another key for a sealed database, while others read and write it.
**
** Part of sqlite_unit.c, after repair.c. A sealed file has data keys of its own, which the user's key opens; a
** change of the user's key is a change of the data key as well, or who had the old one could go on reading.
**
**   begin   both keys open the header block, and a new data key seals. Done under the write lock. Who writes or
**           checkpoints next sees it (codec_vfs.c), and who holds the checkpoint lock is waited for: from here on
**           nobody seals with the old data key.
**   pages   every page whose slot in the file was sealed with the old data key is written once more, through the
**           WAL, in transactions of some hundred pages. So a crash at any point leaves a whole database, there
**           is nothing to recover but what SQLite recovers, and a second attempt goes on where the slots say.
**   (a checkpoint that empties the WAL, and pages again, until none is left)
**   end     the new key alone opens the header block, and the old data key is gone from it.
**
** Each transaction ends with page 1, as those of the applier do, so that a replica stays a replica.
*/
#include "nl.h"

#include "bytes.h"
#include "codec_vfs.h"
#include "fault.h"
#include "header_block.h"

#define REKEY_BATCH 256u /* pages of one transaction: a mebibyte; others write in between */

/* The file, or NULL if it is not sealed. */
static nl_sealed *rekey_file(const nl_applier *a) {
    sqlite3_file *file = sqlite3BtreePager(apply_btree(a))->fd;
    return nl_sealed_below(file) == file ? NULL : (nl_sealed *)(void *)file;
}

static int rekey_ready(nl_applier *a, nl_error *err) {
    if (apply_idle(a, err) != NL_OK) return NL_E_MISUSE;
    if (rekey_file(a) == NULL) return nl_fail(err, NL_E_MISUSE, "the file is not sealed");
    return NL_OK;
}

/* The copy that does not count first: at every moment one of the two is whole. */
static int rekey_write(nl_sealed *f, const uint8_t *block, const uint8_t *copy) {
    const int first = nl_block_older(block);
    int rc = SQLITE_OK;
    for (int i = 0; rc == SQLITE_OK && i < 2; i++) {
        if (NL_FAULT("rekey.block")) return SQLITE_IOERR_WRITE;
        rc = f->below->pMethods->xWrite(f->below, copy, NL_BLOCK_SIZE / 2, (first ^ i) * (NL_BLOCK_SIZE / 2));
        if (rc == SQLITE_OK) rc = f->below->pMethods->xSync(f->below, SQLITE_SYNC_NORMAL);
    }
    return rc;
}

/* With the write lock held: the header block as `end` says. */
static int rekey_block(nl_applier *a, nl_key *new_key, int end, nl_error *err) {
    uint8_t block[NL_BLOCK_SIZE], copy[NL_BLOCK_SIZE / 2];
    nl_sealed *f = rekey_file(a);
    int rc = f->below->pMethods->xRead(f->below, block, sizeof block, 0);
    if (rc != SQLITE_OK) return apply_fail_sqlite(rc, "the header block could not be read", err);
    nl_block what;
    int code = nl_block_look(block, &what, err);
    if (code == NL_OK && end && what.previous != 0 && what.generation != a->rekeyed) {
        code = nl_fail(err, NL_E_KEY, "another change of its key was begun meanwhile, and has to be finished first");
    }
    if (code != NL_OK) return code;
    code = end ? nl_block_end_rekey(block, new_key, copy, err)
               : nl_block_begin_rekey(block, f->key, new_key, copy, err);
    if (!end) a->rekeyed = what.generation + (code == NL_OK);
    if (code == NL_E_POSITION) return NL_OK; /* begun before, and broken off */
    if (code == NL_OK) {
        rc = rekey_write(f, block, copy);
        if (rc != SQLITE_OK) code = apply_fail_sqlite(rc, "the header block could not be written", err);
    }
    return code;
}

/* Until those who checkpoint now have ended. */
static int rekey_barrier(nl_applier *a, int64_t deadline) {
    Wal *pWal = apply_wal(a);
    for (;;) {
        int rc = walLockExclusive(pWal, WAL_CKPT_LOCK, 1);
        if (rc == SQLITE_OK) walUnlockExclusive(pWal, WAL_CKPT_LOCK, 1);
        if ((rc & 0xff) != SQLITE_BUSY || apply_now_ms() >= deadline) return rc;
        apply_nap();
    }
}

static int rekey_change(nl_applier *a, nl_key *new_key, int end, int wait_ms, nl_error *err) {
    if (rekey_ready(a, err) != NL_OK) return NL_E_MISUSE;
    apply_enter(a);
    const int64_t deadline = apply_now_ms() + wait_ms;
    int rc = apply_begin_write(a, deadline), code;
    if (rc != SQLITE_OK) {
        code = apply_fail_sqlite(rc, "the write lock was not to be had", err);
    } else if (apply_wal(a) == NULL) {
        code = nl_fail(err, NL_E_MISUSE, "the file is not in WAL mode");
    } else {
        code = rekey_block(a, new_key, end, err);
    }
    if (rc == SQLITE_OK) {
        sqlite3BtreeRollback(apply_btree(a), SQLITE_OK, 0);
        pager_reset(sqlite3BtreePager(apply_btree(a)));
    }
    if (code == NL_OK && !end) {
        rc = nl_sealed_reload(rekey_file(a));
        if (rc == SQLITE_OK) rc = rekey_barrier(a, deadline);
        if (rc != SQLITE_OK) code = apply_fail_sqlite(rc, "the checkpoint lock was not to be had", err);
    }
    apply_leave(a);
    return code;
}

int nl_applier_rekey_begin(nl_applier *a, nl_key *new_key, int wait_ms, nl_error *err) {
    return rekey_change(a, new_key, 0, wait_ms, err);
}

int nl_applier_rekey_end(nl_applier *a, nl_key *new_key, int wait_ms, nl_error *err) {
    return rekey_change(a, new_key, 1, wait_ms, err);
}

/* Whether the slot of a page was sealed with an older data key. Pages that only the WAL has were not. */
static int rekey_is_old(nl_applier *a, uint32_t pgno, int *old) {
    nl_sealed *f = rekey_file(a);
    const i64 slot = (i64)a->page_size + NL_SEAL_SIZE;
    uint8_t id[4];
    *old = 0;
    if (pgno == nl_lock_page(a->page_size)) return SQLITE_OK; /* nobody's content (rule B6) */
    int rc = f->below->pMethods->xRead(f->below, id, sizeof id, NL_BLOCK_SIZE + (i64)pgno * slot - (i64)sizeof id);
    if (rc == SQLITE_IOERR_SHORT_READ) return SQLITE_OK;
    *old = nl_get32(id) >> 16 != nl_codec_generation(f->codec);
    return rc;
}

/* Under the write lock. */
static int rekey_batch(nl_applier *a, uint32_t *at, uint32_t *count) {
    const uint32_t pages = apply_btree(a)->pBt->nPage;
    int old = 0, rc = SQLITE_OK;
    for (; rc == SQLITE_OK && *at <= pages && *count < REKEY_BATCH; ++*at) {
        rc = rekey_is_old(a, *at, &old);
        if (rc != SQLITE_OK || !old) continue;
        rc = apply_read_page(a, *at, a->page);
        if (rc == SQLITE_OK) rc = apply_injected(NL_FAULT("rekey.page"));
        if (rc == SQLITE_OK) rc = apply_stock_frame(a, *at, a->page, 0);
        ++*count;
    }
    if (rc == SQLITE_OK && *count > 0) {
        rc = apply_read_page(a, 1, a->page);
        if (rc == SQLITE_OK) rc = apply_injected(NL_FAULT("rekey.commit"));
        if (rc == SQLITE_OK) rc = apply_stock_frame(a, 1, a->page, pages);
    }
    if (rc == SQLITE_OK && *at > pages) *at = 0;
    return rc;
}

int nl_applier_rekey_pages(nl_applier *a, uint32_t *at, uint32_t *count, int wait_ms, nl_error *err) {
    *count = 0;
    if (rekey_ready(a, err) != NL_OK) return NL_E_MISUSE;
    apply_enter(a);
    a->deadline = apply_now_ms() + wait_ms;
    int rc = apply_begin_write(a, a->deadline);
    if (rc != SQLITE_OK) {
        rc = apply_fail_sqlite(rc, "the write lock was not to be had", err);
        apply_leave(a);
        return rc;
    }
    a->page_size = apply_btree(a)->pBt->pageSize;
    a->frames = 0;
    rc = rekey_batch(a, at, count);
    if (rc == SQLITE_OK && *count > 0) sqlite3BtreeCommitPhaseTwo(apply_btree(a), 0);
    else sqlite3BtreeRollback(apply_btree(a), SQLITE_OK, 0);
    pager_reset(sqlite3BtreePager(apply_btree(a)));
    if (rc != SQLITE_OK) rc = apply_fail_sqlite(rc, "a page could not be sealed anew", err);
    apply_leave(a);
    return rc;
}
