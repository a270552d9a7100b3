/*
** repair.c - a replica of which nothing is believed becomes what its primary has, in one transaction.
**
** Part of sqlite_unit.c, after apply.c, whose transactions these are. A repair is three steps:
**
**   survey   every page is hashed as a reader sees it now. The header's position and state hash are
**            told, but nothing depends on them, and the file may be shorter than it says.
**   ranges   what the survey found, folded into ranges, for the primary to compare (ranges.h)
**   repair   the set of the pages that differ begins like any set, with two differences:
**            (1) it starts at what the survey found, not at a position. Under the write lock the
**                wal-index header has to be the one the survey read under: every commit and every
**                restart of the log changes it, whoever it was. Otherwise nothing is written, and
**                the survey is made again.
**            (2) the running state hash starts with the XOR of the surveyed hashes, so that what is
**                compared with the announced hash before the commit covers every page of the file.
**
** Readers go on meanwhile: to them it is one commit.
*/
#include "nl.h"
#include "bytes.h"
#include "codec_vfs.h"
#include "fault.h"
#include "frame.h"
#include "ranges.h"

/* SQLite refuses a database file that is shorter than page 1 says, unless the connection may write the
** schema, as it wants it for the same purpose: to repair. This connection runs no SQL. */
static void repair_tolerate(nl_applier *a) { a->db->flags |= SQLITE_WriteSchema; }

/* No page has this hash, as far as anybody can make one: that of a sealed page which does not open. */
#define REPAIR_BROKEN 1

/* Hash pages one by one, because the seal of one of them is broken. It differs from the primary's, whatever
** that is. */
static int repair_hash_each(nl_applier *a, uint32_t first, uint32_t n) {
    int rc = SQLITE_OK;
    for (uint32_t pgno = first; rc == SQLITE_OK && pgno < first + n; pgno++) {
        a->hash[pgno - 1] = 0;
        if (pgno == nl_lock_page(a->page_size)) continue;
        rc = apply_read_page(a, pgno, a->buffer);
        a->hash[pgno - 1] = rc == SQLITE_OK ? nl_page_hash(a->buffer, a->page_size, pgno) : REPAIR_BROKEN;
        if (rc == SQLITE_IOERR_CODEC) rc = SQLITE_OK;
    }
    nl_sealed_failure(NULL);
    return rc;
}

/* Hash pages first .. first + n - 1, which fit into the buffer. Pages that are not in the WAL come with
** one read: page by page a gigabyte takes three times as long. */
static int repair_hash_block(nl_applier *a, uint32_t first, uint32_t n) {
    Pager *pager = sqlite3BtreePager(apply_btree(a));
    const size_t size = a->page_size;
    u32 frame = 0;
    int in_wal = 0, rc = SQLITE_OK;
    for (uint32_t i = 0; rc == SQLITE_OK && !in_wal && i < n; i++) {
        rc = sqlite3WalFindFrame(pager->pWal, first + i, &frame);
        in_wal = frame != 0;
    }
    if (rc == SQLITE_OK && !in_wal) {
        rc = sqlite3OsRead(pager->fd, a->buffer, (int)(n * size), (i64)(first - 1) * (i64)size);
        if (rc == SQLITE_IOERR_SHORT_READ) rc = SQLITE_OK; /* the rest is already zeroed */
    }
    for (uint32_t i = 0; rc == SQLITE_OK && in_wal && i < n; i++) {
        rc = apply_read_page(a, first + i, a->buffer + i * size);
    }
    if (rc == SQLITE_OK) nl_page_hashes(a->buffer, a->page_size, first, n, a->hash + first - 1);
    return rc == SQLITE_IOERR_CODEC ? repair_hash_each(a, first, n) : rc;
}

/* Inside a read transaction: hash every page into the table. The lock-byte page has 0. */
static int repair_hash_all(nl_applier *a, uint32_t pages, int64_t deadline, nl_error *err) {
    const uint32_t most = APPLY_WRITE_MAX / a->page_size;
    apply_table_forget(a);
    a->hash_pages = 0;
    if (apply_table_fit(a, pages) != SQLITE_OK) {
        return nl_fail(err, NL_E_NOMEM, "no memory for the page-hash table");
    }
    for (uint64_t p = 1, n; p <= pages; p += n) {
        n = pages - p + 1 < most ? pages - p + 1 : most;
        int rc = repair_hash_block(a, (uint32_t)p, (uint32_t)n);
        if (rc != SQLITE_OK) {
            rc = apply_fail_sqlite(rc, "a page could not be read", err);
            if (err != NULL) err->page = (uint32_t)p;
            return rc;
        }
        if (deadline != 0 && apply_now_ms() >= deadline) {
            return nl_fail(err, NL_E_BUSY, "reading the whole file takes longer than there is time");
        }
    }
    return NL_OK;
}

/* The state hash of the table. */
static uint64_t repair_sum(const nl_applier *a) {
    return nl_range_hash(a->hash, a->hash_pages, 1, a->hash_pages);
}

int nl_applier_survey(
    nl_applier *a,
    int adopt,
    int wait_ms,
    nl_state *at,
    uint64_t *hash,
    uint32_t *cookie,
    nl_error *err
) {
    *hash = 0;
    if (apply_idle(a, err) != NL_OK) return NL_E_MISUSE;
    apply_enter(a);
    a->surveyed = 0;
    repair_tolerate(a);
    int rc = sqlite3BtreeBeginTrans(apply_btree(a), 0, 0);
    if (rc != SQLITE_OK) {
        rc = apply_fail_sqlite(rc, "the file could not be read", err);
        goto done;
    }
    rc = apply_state_locked(a, at, err);
    if (rc == NL_E_NOT_REPLICA && adopt && at->pages != 0 && apply_wal(a) != NULL &&
        apply_btree(a)->pBt->usableSize == a->page_size) {
        memset(&at->position, 0, sizeof at->position); /* a database of another kind, or none of it */
        at->hash = 0;
        rc = NL_OK;
    }
    if (rc == NL_OK) {
        *cookie = nl_get32(apply_btree(a)->pBt->pPage1->aData + 40);
        rc = repair_hash_all(a, at->pages, wait_ms < 0 ? 0 : apply_now_ms() + wait_ms, err);
    }
    if (rc == NL_OK) {
        *hash = repair_sum(a);
        a->surveyed_at = apply_wal(a)->hdr;
        a->surveyed = 1;
    }
    apply_end_read(a);
done:
    pager_reset(sqlite3BtreePager(apply_btree(a))); /* page 1 may be what is damaged */
    apply_leave(a);
    return rc;
}

int nl_applier_claim(nl_applier *a, nl_state *out, nl_error *err) {
    if (apply_idle(a, err) != NL_OK) return NL_E_MISUSE;
    repair_tolerate(a);
    int rc = nl_applier_state(a, out, err);
    a->db->flags &= ~(u64)SQLITE_WriteSchema; /* page sets are applied to whole files only */
    return rc;
}

void nl_applier_ranges(
    const nl_applier *a, uint32_t first, uint32_t span, uint32_t n, uint8_t *out
) {
    nl_ranges_fold(a->hash, a->hash_pages, first, span, n, out);
}

int nl_applier_repair(
    nl_applier *a,
    const nl_set_header *set,
    int wait_ms,
    nl_error *err
) {
    if (apply_idle(a, err) != NL_OK) return NL_E_MISUSE;
    if (!a->surveyed || set->flags != NL_SET_REPAIR) {
        return nl_fail(err, NL_E_MISUSE, "a repair begins with a survey and a set for it");
    }
    if (set->page_size != a->page_size) {
        return nl_fail(err, NL_E_FORMAT, "the page set has another page size than the replica");
    }
    apply_enter(a);
    a->deadline = apply_now_ms() + wait_ms;
    int rc = apply_injected(NL_FAULT("repair.begin"));
    if (rc == SQLITE_OK) rc = apply_begin_write(a, a->deadline);
    if (rc != SQLITE_OK) {
        rc = apply_fail_sqlite(rc, "the write lock of the replica was not to be had", err);
    } else if (memcmp(&apply_wal(a)->hdr, &a->surveyed_at, sizeof a->surveyed_at) != 0) { /* (1) */
        a->surveyed = 0;
        sqlite3BtreeRollback(apply_btree(a), SQLITE_OK, 0);
        pager_reset(sqlite3BtreePager(apply_btree(a)));
        rc = nl_fail(err, NL_E_POSITION, "the file has changed since it was surveyed");
    } else {
        apply_open(a, set, repair_sum(a), a->hash_pages); /* (2) */
    }
    a->surveyed = 0; /* the table is the set's from here on */
    apply_leave(a);
    return rc;
}
