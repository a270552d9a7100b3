/*
** changes.c - page sets of the primary: which pages, and their images as they are now.
**
** Part of sqlite_unit.c, after tail.c. Works inside a read transaction of the tail, whose end is the
** position the set leads to.
**
** Page numbers come from the frames of the running generation, and for older ones from the index a
** roll left behind: (page, last frame) pairs. They are gathered sorted by insertion while they are
** few, as after a small transaction, and in a bitmap over the database when they are many: 1 bit per
** page, so a set over 10 million changed pages costs as little memory as one over a hundred.
**
** Images are read now. Each is hashed and compared with the page-hash table before it leaves: a page
** that rotted on disk is an error here and not a copy of the damage on every replica.
*/
#include "nl.h"

#include "fault.h"
#include "replica_header.h"

#define CHANGES_SORTED 96 /* page numbers kept sorted by insertion; more go into the bitmap */

/* ------------------------------------------------------------------ which pages */

int nl_tail_select(nl_tail *t, nl_error *err)
{
    if (!t->reading) return nl_fail(err, NL_E_MISUSE, "no read transaction is open");
    t->sel_count = 0;
    t->sel_mapped = 0;
    return tail_grow((void **)&t->sel, &t->sel_size, CHANGES_SORTED + 1, sizeof *t->sel, err);
}

static int changes_map(nl_tail *t, nl_error *err)
{
    uint32_t words = t->pages / 64 + 1;
    int rc = tail_grow((void **)&t->bits, &t->bits_size, words, sizeof *t->bits, err);

    if (rc != NL_OK) return rc;
    memset(t->bits, 0, 8 * (size_t)words);
    for (uint32_t i = 0; i < t->sel_count; i++) {
        t->bits[t->sel[i] / 64] |= (uint64_t)1 << (t->sel[i] % 64);
    }
    t->sel_mapped = 1;
    return NL_OK;
}

static int changes_add(nl_tail *t, uint32_t pgno, nl_error *err)
{
    uint32_t i = t->sel_count;

    if (pgno == 0 || pgno > t->pages || pgno == t->lock_page) return NL_OK;
    if (t->sel_mapped) {
        t->bits[pgno / 64] |= (uint64_t)1 << (pgno % 64);
        return NL_OK;
    }
    while (i > 0 && t->sel[i - 1] > pgno) i--;
    if (i > 0 && t->sel[i - 1] == pgno) return NL_OK;
    memmove(t->sel + i + 1, t->sel + i, (t->sel_count - i) * sizeof *t->sel);
    t->sel[i] = pgno;
    t->sel_count++;
    return t->sel_count > CHANGES_SORTED ? changes_map(t, err) : NL_OK;
}

int nl_tail_select_pairs(
    nl_tail *t,
    const uint8_t *pairs,
    uint32_t n,
    uint32_t after,
    nl_error *err)
{
    int rc = NL_OK;

    for (uint32_t i = 0; rc == NL_OK && i < n; i++) {
        if (nl_get32(pairs + 8 * (size_t)i + 4) <= after) continue;
        rc = changes_add(t, nl_get32(pairs + 8 * (size_t)i), err);
    }
    return rc;
}

int nl_tail_select_frames(nl_tail *t, uint32_t after, nl_error *err)
{
    int rc = NL_OK;

    if (after < t->start) after = t->start;
    for (uint32_t f = after; rc == NL_OK && f < t->frame; f++) {
        rc = changes_add(t, t->pgno[f - t->start], err);
    }
    return rc;
}

int nl_tail_select_range(nl_tail *t, uint32_t first, uint32_t last, nl_error *err)
{
    int rc = nl_tail_select(t, err);

    if (rc != NL_OK) return rc;
    rc = tail_grow((void **)&t->sel, &t->sel_size, (uint64_t)(last - first) + 1, sizeof *t->sel,
                   err);
    for (uint32_t p = first; rc == NL_OK && p >= first && p <= last; p++) {
        if (p != t->lock_page) t->sel[t->sel_count++] = p;
    }
    return rc;
}

int nl_tail_selected(nl_tail *t, uint32_t *count, nl_error *err)
{
    int rc = NL_OK;

    if (t->sel_mapped) {
        uint32_t words = t->pages / 64 + 1;
        t->sel_count = 0;
        t->sel_mapped = 0;
        for (uint32_t w = 0; rc == NL_OK && w < words; w++) {
            uint64_t bits = t->bits[w];
            if (bits) {
                rc = tail_grow((void **)&t->sel, &t->sel_size, (uint64_t)t->sel_count + 64,
                               sizeof *t->sel, err);
            }
            for (; rc == NL_OK && bits; bits &= bits - 1) {
                t->sel[t->sel_count++] = w * 64 + (uint32_t)__builtin_ctzll(bits);
            }
        }
    }
    /* A page set carries a page, so that applying it is a transaction: after a roll nothing but the
    ** position changed, and page 1 is where a replica keeps it. */
    if (rc == NL_OK && t->sel_count == 0) t->sel[t->sel_count++] = 1;
    *count = t->sel_count;
    return rc;
}

/* ------------------------------------------------------------------ their images */

/* The images of sel[at .. at + n) as R sees them; each must hash to what was committed. The hashes
** go to t->image, so that nobody computes them twice. */
static int changes_load(nl_tail *t, uint32_t at, uint32_t n, uint8_t *pages, nl_error *err)
{
    if (NL_FAULT("tail.read-page")) return nl_fail_sqlite(err, NULL, SQLITE_IOERR_READ);
    int rc = tail_grow((void **)&t->image, &t->image_size, n, sizeof *t->image, err);
    if (rc == NL_OK) rc = tail_read_pages(t, t->sel + at, 0, n, pages, err);
    for (uint32_t i = 0; rc == NL_OK && i < n; i++) {
        const uint32_t pgno = t->sel[at + i];
        uint8_t *page = pages + (size_t)i * t->page_size;
        const int cut_off = pgno > t->pages; /* since the snapshot that carries it began */
        if (cut_off) memset(page, 0, t->page_size);
        if (pgno == 1) nl_replica_neutral(page); /* a replica that serves replicas */
        t->image[i] = nl_page_hash(page, t->page_size, pgno);
        if (cut_off || t->image[i] == (t->expected ? t->expected[at + i] : t->table[pgno - 1])) {
            continue;
        }
        rc = nl_fail(err, NL_E_HASH, "page %u on disk is not what was committed", pgno);
        if (err) err->page = pgno;
    }
    return rc;
}

int nl_tail_chunk(
    nl_tail *t,
    uint32_t at,
    uint32_t n,
    uint8_t *out,
    size_t out_size,
    size_t *written,
    uint64_t *digest,
    nl_error *err)
{
    *written = 0;
    *digest = 0;
    if (!t->reading || at > t->sel_count || n > t->sel_count - at) {
        return nl_fail(err, NL_E_MISUSE, "no such part of the selection");
    }
    size_t size = nl_chunk_size(t->page_size, n);
    if (size == 0 || size > out_size) return nl_fail(err, NL_E_TOO_BIG, "no such chunk");
    int rc = changes_load(t, at, n, out + nl_chunk_pages_offset(n), err);
    if (rc != NL_OK) return rc;
    return nl_chunk_encode(t->page_size, t->sel + at, NULL, t->image, n, out, out_size, written, digest,
                           err);
}

int nl_tail_answer(
    nl_tail *t, nl_set_header *set, uint8_t *out, size_t out_size, size_t *written, nl_error *err)
{
    nl_chunk_header head = {0};
    uint8_t *body = out + NL_SET_HEADER_SIZE + NL_CHUNK_HEADER_SIZE;
    const size_t fixed = NL_SET_HEADER_SIZE + 2 * NL_CHUNK_HEADER_SIZE;
    size_t n = 0;

    *written = 0;
    int rc = nl_tail_selected(t, &set->count, err);
    if (rc != NL_OK) return rc;
    size_t size = nl_chunk_size(t->page_size, set->count);
    if (size == 0 || fixed + size > out_size) return NL_OK; /* the owner makes chunks */
    rc = nl_tail_chunk(t, 0, set->count, body, out_size - fixed, &n, &head.digest, err);
    if (rc != NL_OK) return rc;
    head.count = set->count;
    head.raw_size = head.stored_size = (uint32_t)n;
    nl_set_header_encode(set, out);
    nl_chunk_header_encode(&head, out + NL_SET_HEADER_SIZE);
    nl_chunk_header_encode(&(nl_chunk_header){0}, body + n);
    *written = fixed + n;
    return NL_OK;
}

/* ------------------------------------------------------------------ a reader of its own */

/*
** A large selection is read by a handle of its own, so that commits and small answers go on meanwhile.
** Its snapshot has to be the one the selection was made in: when another process committed between the
** two, the owner selects again.
*/
int nl_tail_detach(nl_tail *t, nl_tail **out, nl_error *err)
{
    nl_tail *r = NULL;
    int rc = NL_OK;

    *out = NULL;
    if (!t->reading) return nl_fail(err, NL_E_MISUSE, "no read transaction is open");
    r = sqlite3_malloc64(sizeof *r);
    if (r == NULL) return nl_fail(err, NL_E_NOMEM, "out of memory");
    memset(r, 0, sizeof *r);
    r->forks = t->forks;
    r->pinned = -1;
    r->page_size = t->page_size;
    r->lock_page = t->lock_page;
    r->pages = t->pages;
    const size_t n = t->sel_count;
    r->sel = sqlite3_malloc64((n + 1) * sizeof *r->sel);
    r->expected = sqlite3_malloc64((n + 1) * sizeof *r->expected);
    if (r->sel == NULL || r->expected == NULL) rc = nl_fail(err, NL_E_NOMEM, "out of memory");
    for (size_t i = 0; rc == NL_OK && i < n; i++) {
        r->sel[i] = t->sel[i];
        r->expected[i] = t->table[t->sel[i] - 1];
    }
    r->sel_count = t->sel_count;
    if (rc == NL_OK) rc = tail_connect(sqlite3_db_filename(t->db, "main"), t->key, &r->db, err);
    if (rc == NL_OK) rc = tail_enter(r, err);
    if (rc == NL_OK) {
        const WalIndexHdr *mine = &tail_wal(t)->hdr, *its = &tail_wal(r)->hdr;
        if (mine->mxFrame != its->mxFrame || memcmp(mine->aSalt, its->aSalt, 8) != 0) {
            rc = nl_fail(err, NL_E_BUSY, "another commit came in between");
        }
    }
    if (rc != NL_OK) {
        nl_tail_close(r);
        r = NULL;
    }
    *out = r;
    return rc;
}
