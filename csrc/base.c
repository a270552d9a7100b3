/*
** base.c - where a generation begins, and what is known of it since.
**
** Part of sqlite_unit.c, after tail.c. A generation begins either with the page-hash table that the log
** kept of that moment, or by hashing every page as it is now; and either before the first frame of a
** WAL or after any commit in it (`start`), so that beginning one never has to wait for a reader.
*/
#include "nl.h"

#include "bytes.h"
#include "codec_vfs.h"
#include "replica_header.h"

/* ------------------------------------------------------------------ the base of a generation */

/* A generation begins at t->frame with what table, pages and hash say. */
static int tail_set_base(nl_tail *t, nl_error *err)
{
    int rc = tail_grow((void **)&t->commit, &t->commits_size, 1, sizeof *t->commit, err);
    if (rc != NL_OK) return rc;
    t->start = t->frame;
    t->commit[0] = (tail_commit){.frame = t->frame, .pages = t->pages, .hash = t->hash};
    t->commits = 1;
    t->ready = 1;
    return NL_OK;
}

int nl_tail_load(
    nl_tail *t,
    const uint8_t *table,
    uint32_t pages,
    const nl_tail_state *at,
    nl_error *err)
{
    int rc = tail_grow((void **)&t->table, &t->table_size, pages, sizeof *t->table, err);
    if (rc != NL_OK) return rc;
    t->hash = 0;
    for (uint32_t i = 0; i < pages; i++) {
        t->table[i] = nl_get64(table + 8 * (size_t)i);
        t->hash ^= t->table[i];
    }
    t->pages = pages;
    t->frame = at->frame;
    t->bound = 0;
    if (at->bound && at->frame != 0) { /* at frame 0 the WAL's header is the seed: bind later */
        rc = tail_read_header(t, err);
        if (rc != NL_OK) return rc;
        memcpy(t->chain.salt, at->salt, sizeof t->chain.salt);
        memcpy(t->chain.sum, at->checksum, sizeof t->chain.sum);
        t->bound = 1;
    }
    return tail_set_base(t, err);
}

int nl_tail_rebase(nl_tail *t, nl_error *err)
{
    if (tail_idle(t, err) != NL_OK) return NL_E_MISUSE;
    if (!t->ready) return nl_fail(err, NL_E_MISUSE, "the tail has no base");
    return tail_set_base(t, err);
}

/* Database size of R's snapshot. A fresh wal-index of an empty WAL says 0: then the file decides. */
static int tail_snapshot_pages(nl_tail *t, uint32_t *pages, nl_error *err)
{
    i64 bytes = 0;

    *pages = tail_wal(t)->hdr.nPage;
    if (*pages != 0) return NL_OK;
    int rc = sqlite3OsFileSize(tail_pager(t)->fd, &bytes);
    if (rc != SQLITE_OK) return tail_sqlite(err, t, rc);
    *pages = (uint32_t)(((uint64_t)bytes + t->page_size - 1) / t->page_size);
    return NL_OK;
}

/* Inside R's transaction: hash every page into table[0..pages). */
static int tail_hash_all(nl_tail *t, uint64_t *table, uint32_t pages, uint64_t *hash, nl_error *err)
{
    const uint32_t fit = TAIL_BLOCK / t->page_size;
    int rc = NL_OK;

    *hash = 0;
    for (uint32_t p = 1; rc == NL_OK && p <= pages; p += fit) {
        uint32_t n = pages - p + 1 < fit ? pages - p + 1 : fit;
        rc = tail_read_pages(t, NULL, p, n, t->block, err);
        if (rc == NL_OK) *hash ^= nl_page_hashes(t->block, t->page_size, p, n, table + p - 1);
    }
    /* Seldom done, and the memory is that of every database that is open. */
    madvise(t->block, TAIL_BLOCK_ALL, MADV_DONTNEED);
    return rc;
}

int nl_tail_scan(nl_tail *t, nl_error *err)
{
    uint32_t pages = 0;
    int rc = tail_enter(t, err);

    if (rc != NL_OK) return rc;
    const WalIndexHdr *hdr = &tail_wal(t)->hdr;
    t->ready = 0;
    rc = tail_snapshot_pages(t, &pages, err);
    if (rc == NL_OK) {
        rc = tail_grow((void **)&t->table, &t->table_size, pages, sizeof *t->table, err);
    }
    if (rc == NL_OK) rc = tail_hash_all(t, t->table, pages, &t->hash, err);
    if (rc == NL_OK) {
        t->pages = pages;
        t->frame = t->live = hdr->mxFrame;
        t->bound = 0;
        if (hdr->mxFrame != 0) rc = tail_bind(t, err);
        memcpy(t->chain.sum, hdr->aFrameCksum, sizeof t->chain.sum);
    }
    if (rc == NL_OK) rc = tail_set_base(t, err);
    nl_tail_end(t);
    return rc;
}

int nl_tail_verify(nl_tail *t, uint64_t *hash, uint32_t *bad, nl_error *err)
{
    *hash = 0;
    *bad = 0;
    if (!t->reading) return nl_fail(err, NL_E_MISUSE, "no read transaction is open");
    uint64_t *all = sqlite3_malloc64(8 * (uint64_t)t->pages + 8);
    if (all == NULL) return nl_fail(err, NL_E_NOMEM, "out of memory");
    int rc = tail_hash_all(t, all, t->pages, hash, err);
    for (uint32_t i = 0; rc == NL_OK && i < t->pages && *bad == 0; i++) {
        if (all[i] != t->table[i]) *bad = i + 1;
    }
    sqlite3_free(all);
    return rc;
}

/* ------------------------------------------------------------------ what is known */

static const tail_commit *tail_find_commit(const nl_tail *t, uint32_t frame)
{
    uint32_t low = 0, high = t->commits;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (t->commit[mid].frame < frame) low = mid + 1;
        else high = mid;
    }
    return low < t->commits && t->commit[low].frame == frame ? &t->commit[low] : NULL;
}

int nl_tail_lookup(const nl_tail *t, uint32_t frame, uint32_t *pages, uint64_t *hash)
{
    const tail_commit *c = tail_find_commit(t, frame);

    if (c == NULL) return 0;
    *pages = c->pages;
    *hash = c->hash;
    return 1;
}

/* Every transaction of the applier ends with page 1. */
int nl_tail_stands(nl_tail *t, uint32_t frame, nl_position *position, uint64_t *hash, nl_error *err)
{
    uint8_t page1[100];

    if (frame <= t->start || tail_find_commit(t, frame) == NULL) {
        return nl_fail(err, NL_E_MISUSE, "no such commit");
    }
    if (t->pgno[frame - t->start - 1] != 1) {
        return nl_fail(err, NL_E_NOT_REPLICA, "a commit of the WAL is not a replica's");
    }
    int rc = tail_os_read(tail_wal(t)->pWalFd, sizeof page1, page1, sizeof page1,
                          tail_frame_offset(t, frame) + NL_FRAME_HEADER_SIZE);
    if (rc != SQLITE_OK) return tail_sqlite(err, t, rc);
    return nl_replica_header(page1, position, hash, err);
}

void nl_tail_table(const nl_tail *t, uint32_t first, uint32_t n, uint8_t *out)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t p = first + i;
        nl_put64(out + 8 * (size_t)i, p >= 1 && p <= t->pages ? t->table[p - 1] : 0);
    }
}

uint32_t nl_tail_wal_step(const nl_tail *t)
{
    const int sealed = nl_sealed_below(tail_wal(t)->pWalFd) != tail_wal(t)->pWalFd;

    return (uint32_t)tail_frame_size(t) + (sealed ? NL_SEAL_SIZE : 0);
}

int nl_tail_read_wal(nl_tail *t, uint64_t offset, size_t n, uint8_t *out, nl_error *err)
{
    sqlite3_file *file = nl_sealed_below(tail_wal(t)->pWalFd);
    int rc = tail_os_read(file, 1, out, n, offset);
    return rc == SQLITE_OK ? NL_OK : tail_sqlite(err, t, rc);
}

uint32_t nl_tail_commits(const nl_tail *t, uint32_t after, uint8_t *out, uint32_t max)
{
    uint32_t n = 0, i = t->commits;

    while (i > 0 && t->commit[i - 1].frame > after) i--;
    for (; i < t->commits && n < max; i++, n++) {
        if (out == NULL) continue;
        nl_put32(out + 16 * (size_t)n, t->commit[i].frame);
        nl_put32(out + 16 * (size_t)n + 4, t->commit[i].pages);
        nl_put64(out + 16 * (size_t)n + 8, t->commit[i].hash);
    }
    return n;
}

uint32_t nl_tail_frames(const nl_tail *t, uint32_t after, uint8_t *out, uint32_t max)
{
    uint32_t n = 0;

    if (after < t->start) after = t->start;
    for (uint32_t f = after; f < t->frame && n < max; f++, n++) {
        nl_put32(out + 4 * (size_t)n, t->pgno[f - t->start]);
    }
    return n;
}

int nl_tail_index(nl_tail *t, uint8_t *out, uint32_t max, uint32_t *pairs, nl_error *err)
{
    uint32_t highest = 0, n = 0;

    for (uint32_t f = t->start; f < t->frame; f++) {
        if (t->pgno[f - t->start] > highest) highest = t->pgno[f - t->start];
    }
    uint32_t *last = sqlite3_malloc64(4 * (uint64_t)highest + 4);
    if (last == NULL) return nl_fail(err, NL_E_NOMEM, "no memory for the index of a generation");
    memset(last, 0, 4 * (size_t)highest + 4);
    for (uint32_t f = t->start; f < t->frame; f++) last[t->pgno[f - t->start]] = f + 1;
    for (uint32_t p = 1; p <= highest; p++) {
        if (last[p] == 0) continue;
        if (out != NULL && n < max) {
            nl_put32(out + 8 * (size_t)n, p);
            nl_put32(out + 8 * (size_t)n + 4, last[p]);
        }
        n++;
    }
    sqlite3_free(last);
    *pairs = n;
    return NL_OK;
}

/* ------------------------------------------------------------------ tests */

int nl_test_pending_byte(uint32_t offset)
{
#ifdef NL_TEST
    sqlite3_test_control(SQLITE_TESTCTRL_PENDING_BYTE, offset);
    nl_lock_byte_use(offset);
    return NL_OK;
#else
    (void)offset;
    return NL_E_MISUSE;
#endif
}
