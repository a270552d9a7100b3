/*
** pageset.c - page sets: headers, the layout of chunks, and the only door to the applier. Pure.
**
** Bytes come from the network and are believed in nothing. A chunk becomes an nl_chunk, the one
** thing that can be applied, when every one of these holds:
**
**   (1) the body is exactly as long as the chunk header says, and that is what its pages need
**   (2) 1 .. NL_CHUNK_MAX_PAGES pages, of at most NL_CHUNK_MAX_PAGE_BYTES together
**   (3) page numbers ascend strictly, across chunks too, and none exceeds the set's size
**   (4) the lock-byte page is not among them (rule B6)
**   (5) every encoding is known and every length is the one that it implies
**   (6) bytes that carry nothing are zero
**   (7) page 1 is a plain page: a database of this page size, byte 18 is 2, bytes 72..91 are zero
**   (8) the digest over page numbers and page hashes is the announced one
**
** (6) and (7) are what makes (8) enough: every bit of a chunk is either hashed or fixed. The digest
** finds accidents. Whoever can forge it is the primary, whom a replica follows by choice; what the
** primary may still not do is make the applier read or write outside of what it was given.
*/
#include "pageset.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "frame.h"

static const uint8_t pageset_magic[8] = {'N', 'L', 'S', 'E', 'T', '\r', '\n', 0x1a};

#define PAGESET_CHUNK_SEED 0x4e4c4348554e4b01u /* "NLCHUNK", 1: keys the guard of chunk headers */
#define PAGESET_ENTRY 8                        /* bytes of a table entry */
#define PAGESET_ALIGN 64                       /* pages start at a multiple of this within a body */
#define PAGESET_LINEAGE_VERSION 28             /* top 4 bits of a lineage: a version, now 0 */

/* ---------------------------------------------------------------- set header */

static void pageset_put_position(uint8_t *p, const nl_position *position)
{
    nl_put32(p, position->lineage);
    nl_put32(p + 4, position->generation);
    nl_put32(p + 8, position->frame);
}

static void pageset_get_position(const uint8_t *p, nl_position *position)
{
    position->lineage = nl_get32(p);
    position->generation = nl_get32(p + 4);
    position->frame = nl_get32(p + 8);
}

void nl_set_header_encode(const nl_set_header *h, uint8_t out[NL_SET_HEADER_SIZE])
{
    memcpy(out, pageset_magic, 8);
    nl_put32(out + 8, NL_SET_VERSION);
    nl_put32(out + 12, h->flags);
    nl_put32(out + 16, h->page_size);
    nl_put32(out + 20, h->pages);
    nl_put32(out + 24, h->count);
    pageset_put_position(out + 28, &h->from);
    pageset_put_position(out + 40, &h->to);
    nl_put32(out + 52, 0);
    nl_put64(out + 56, h->hash_from);
    nl_put64(out + 64, h->hash_to);
    nl_put64(out + 72, (uint64_t)h->commit_ms);
    nl_put64(out + 80, 0);
    nl_put64(out + 88, nl_xxh3(out, 88, 0));
}

/* Pages that can exist in a database of `pages` pages: all but the lock-byte page. */
static uint32_t pageset_existing(uint32_t page_size, uint32_t pages)
{
    return nl_lock_page(page_size) <= pages ? pages - 1 : pages;
}

static int pageset_position_valid(const nl_position *p)
{
    return p->lineage != 0 && p->lineage >> PAGESET_LINEAGE_VERSION == 0 && p->generation != 0;
}

static int pageset_position_before(const nl_position *a, const nl_position *b)
{
    if (a->generation != b->generation) return a->generation < b->generation;
    return a->frame < b->frame;
}

/* NULL, or what is wrong with the movement a set describes. */
static const char *pageset_movement(const nl_set_header *h)
{
    const nl_position none = {0, 0, 0};

    if (!pageset_position_valid(&h->to)) return "the position it leads to is impossible";
    if (h->flags & NL_SET_SNAPSHOT) {
        if (memcmp(&h->from, &none, sizeof none) != 0 || h->hash_from != 0) {
            return "a snapshot starts nowhere, this one names a position";
        }
        if (!(h->flags & NL_SET_REPAIR) && h->count != pageset_existing(h->page_size, h->pages)) {
            return "a snapshot carries every page, this one does not";
        }
    }
    if (h->count > pageset_existing(h->page_size, h->pages)) {
        return "it carries more pages than the database has";
    }
    if (h->flags & NL_SET_SNAPSHOT) return NULL;
    if (h->flags & NL_SET_REPAIR) {
        if (memcmp(&h->from, &none, sizeof none) != 0 || h->hash_from != 0) {
            return "a repair starts from whatever there is, this one names a position";
        }
        return NULL;
    }
    if (!pageset_position_valid(&h->from)) return "the position it starts from is impossible";
    if (h->from.lineage != h->to.lineage) return "it leads from one lineage to another";
    if (!pageset_position_before(&h->from, &h->to)) return "it does not lead forwards";
    return NULL;
}

int nl_set_header_decode(const uint8_t *in, size_t n, nl_set_header *out, nl_error *err)
{
    nl_set_header h;

    if (n < NL_SET_HEADER_SIZE) return nl_fail(err, NL_E_FORMAT, "the page set is cut short");
    if (memcmp(in, pageset_magic, 8) != 0) return nl_fail(err, NL_E_FORMAT, "not a page set");
    if (nl_get32(in + 8) != NL_SET_VERSION) {
        return nl_fail(err, NL_E_FORMAT, "page set of version %u, this program knows version %d",
            nl_get32(in + 8), NL_SET_VERSION);
    }
    if (nl_get64(in + 88) != nl_xxh3(in, 88, 0)) {
        return nl_fail(err, NL_E_FORMAT, "the header of the page set is damaged");
    }
    h.flags = nl_get32(in + 12);
    h.page_size = nl_get32(in + 16);
    h.pages = nl_get32(in + 20);
    h.count = nl_get32(in + 24);
    pageset_get_position(in + 28, &h.from);
    pageset_get_position(in + 40, &h.to);
    h.hash_from = nl_get64(in + 56);
    h.hash_to = nl_get64(in + 64);
    h.commit_ms = (int64_t)nl_get64(in + 72);
    if (h.flags & ~(uint32_t)(NL_SET_SNAPSHOT | NL_SET_REPAIR)) {
        return nl_fail(err, NL_E_FORMAT, "page set with flags %#x, this program does not know all"
            " of them", h.flags);
    }
    if (nl_get32(in + 52) != 0 || nl_get64(in + 80) != 0) {
        return nl_fail(err, NL_E_FORMAT, "reserved bytes of the page set's header are in use");
    }
    if (!nl_page_size_valid(h.page_size)) {
        return nl_fail(err, NL_E_FORMAT, "page set with the impossible page size %u", h.page_size);
    }
    if (h.pages == 0 || h.pages == UINT32_MAX) { /* SQLite's limit is 2^32 - 2 */
        return nl_fail(err, NL_E_FORMAT, "page set of an impossible database size");
    }
    const char *wrong = pageset_movement(&h);
    if (wrong) return nl_fail(err, NL_E_FORMAT, "malformed page set: %s", wrong);
    *out = h;
    return NL_OK;
}

/* ---------------------------------------------------------------- chunk header */

void nl_chunk_header_encode(const nl_chunk_header *h, uint8_t out[NL_CHUNK_HEADER_SIZE])
{
    nl_put32(out, h->flags);
    nl_put32(out + 4, h->count);
    nl_put32(out + 8, h->raw_size);
    nl_put32(out + 12, h->stored_size);
    nl_put64(out + 16, h->digest);
    nl_put64(out + 24, nl_xxh3(out, 24, PAGESET_CHUNK_SEED));
}

int nl_chunk_header_decode(const uint8_t *in, size_t n, nl_chunk_header *out, nl_error *err)
{
    nl_chunk_header h;

    if (n < NL_CHUNK_HEADER_SIZE) return nl_fail(err, NL_E_FORMAT, "a chunk is cut short");
    if (nl_get64(in + 24) != nl_xxh3(in, 24, PAGESET_CHUNK_SEED)) {
        return nl_fail(err, NL_E_FORMAT, "the header of a chunk is damaged");
    }
    h.flags = nl_get32(in);
    h.count = nl_get32(in + 4);
    h.raw_size = nl_get32(in + 8);
    h.stored_size = nl_get32(in + 12);
    h.digest = nl_get64(in + 16);
    if (h.count == 0) {
        if (h.flags || h.raw_size || h.stored_size || h.digest) {
            return nl_fail(err, NL_E_FORMAT, "the end of the page set carries data");
        }
        *out = h;
        return NL_OK;
    }
    if (h.flags & ~(uint32_t)NL_CHUNK_ZSTD) {
        return nl_fail(err, NL_E_FORMAT, "chunk with flags %#x, this program does not know all of"
            " them", h.flags);
    }
    if (h.count > NL_CHUNK_MAX_PAGES || h.raw_size > NL_CHUNK_MAX_BYTES
        || h.raw_size <= nl_chunk_pages_offset(h.count)) {
        return nl_fail(err, NL_E_FORMAT, "chunk of %u pages in %u bytes: out of bounds", h.count,
            h.raw_size);
    }
    int stored_ok = (h.flags & NL_CHUNK_ZSTD)
        ? h.stored_size > 0 && h.stored_size < h.raw_size
        : h.stored_size == h.raw_size;
    if (!stored_ok) {
        return nl_fail(err, NL_E_FORMAT, "chunk of %u bytes stored in %u", h.raw_size,
            h.stored_size);
    }
    *out = h;
    return NL_OK;
}

/* ---------------------------------------------------------------- chunk bodies */

size_t nl_chunk_pages_offset(uint32_t count)
{
    size_t table = (size_t)count * PAGESET_ENTRY;
    return (table + PAGESET_ALIGN - 1) / PAGESET_ALIGN * PAGESET_ALIGN;
}

size_t nl_chunk_size(uint32_t page_size, uint32_t count)
{
    if (!nl_page_size_valid(page_size) || count == 0 || count > NL_CHUNK_MAX_PAGES) return 0;
    if ((size_t)count * page_size > NL_CHUNK_MAX_PAGE_BYTES) return 0;
    return nl_chunk_pages_offset(count) + (size_t)count * page_size;
}

/* The digest: XXH3 over `count` times (page number u32, page hash u64), big-endian. */
static void pageset_pair(uint8_t *pairs, uint32_t i, uint32_t pgno, uint64_t hash)
{
    nl_put32(pairs + 12 * (size_t)i, pgno);
    nl_put64(pairs + 12 * (size_t)i + 4, hash);
}

/* Make page 1 what a plain WAL database has, whatever a replica upstream keeps there. */
static void pageset_make_plain(uint8_t *page)
{
    page[NL_WRITE_VERSION_OFFSET] = 2;
    memset(page + NL_REPLICA_HEADER_OFFSET, 0, NL_REPLICA_HEADER_SIZE);
}

/* Condition (7). The page size is looked at because SQLite believes page 1 before anything else:
** a wrong one would make a whole replica unreadable in one commit. */
static int pageset_is_plain(const uint8_t *page, uint32_t page_size)
{
    static const uint8_t zeros[NL_REPLICA_HEADER_SIZE];
    uint32_t size = page[16] * 256u + page[17];

    return memcmp(page, "SQLite format 3", 16) == 0
        && (size == 1 ? 65536 : size) == page_size
        && page[NL_WRITE_VERSION_OFFSET] == 2
        && memcmp(page + NL_REPLICA_HEADER_OFFSET, zeros, sizeof zeros) == 0;
}

int nl_chunk_encode(
    uint32_t page_size,
    const uint32_t *pgnos,
    const uint8_t *const *pages,
    const uint64_t *hashes,
    uint32_t count,
    uint8_t *out,
    size_t out_size,
    size_t *written,
    uint64_t *digest,
    nl_error *err)
{
    const size_t size = nl_chunk_size(page_size, count), offset = nl_chunk_pages_offset(count);
    const uint32_t lock_page = size ? nl_lock_page(page_size) : 0;
    uint8_t *pairs;

    if (size == 0 || out_size < size) {
        return nl_fail(err, NL_E_MISUSE, "%u pages of %u bytes do not fit into the chunk", count,
            page_size);
    }
    pairs = malloc(12 * (size_t)count);
    if (!pairs) return nl_fail(err, NL_E_NOMEM, "out of memory");
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *entry = out + (size_t)i * PAGESET_ENTRY;
        uint8_t *page = out + offset + (size_t)i * page_size;

        if (pgnos[i] <= (i ? pgnos[i - 1] : 0) || pgnos[i] == lock_page) {
            free(pairs);
            return nl_fail(err, NL_E_MISUSE, "page %u cannot follow in a chunk", pgnos[i]);
        }
        if (pages) memcpy(page, pages[i], page_size);
        if (pgnos[i] == 1) pageset_make_plain(page);
        nl_put32(entry, pgnos[i]);
        nl_put32(entry + 4, (uint32_t)NL_PAGE_RAW << 24 | page_size);
        pageset_pair(pairs, i, pgnos[i],
            hashes ? hashes[i] : nl_page_hash(page, page_size, pgnos[i]));
    }
    memset(out + (size_t)count * PAGESET_ENTRY, 0, offset - (size_t)count * PAGESET_ENTRY);
    *digest = nl_xxh3(pairs, 12 * (size_t)count, 0);
    *written = size;
    free(pairs);
    return NL_OK;
}

/* Conditions (3), (4) and (5) for every entry; page numbers go to c->pgnos. */
static int pageset_check_table(
    nl_chunk *c, const nl_set_header *set, const uint8_t *table, uint32_t after, nl_error *err)
{
    const uint32_t lock_page = nl_lock_page(set->page_size);

    for (uint32_t i = 0; i < c->count; i++) {
        uint32_t pgno = nl_get32(table + (size_t)i * PAGESET_ENTRY);
        uint32_t how = nl_get32(table + (size_t)i * PAGESET_ENTRY + 4);
        const char *wrong = NULL;

        if (pgno <= after) wrong = "is out of order";
        else if (pgno > set->pages) wrong = "lies beyond the end of the database";
        else if (pgno == lock_page) wrong = "is the lock-byte page";
        else if (how >> 24 != NL_PAGE_RAW) wrong = "has an unknown encoding";
        else if ((how & 0xffffff) != set->page_size) wrong = "has a wrong length";
        if (wrong) {
            nl_fail(err, NL_E_FORMAT, "malformed page set: page %u %s", pgno, wrong);
            if (err) err->page = pgno;
            return NL_E_FORMAT;
        }
        c->pgnos[i] = after = pgno;
    }
    const size_t offset = nl_chunk_pages_offset(c->count);
    for (size_t i = (size_t)c->count * PAGESET_ENTRY; i < offset; i++) { /* (6) */
        if (table[i]) return nl_fail(err, NL_E_FORMAT, "malformed page set: padding is in use");
    }
    if (c->pgnos[0] == 1 && !pageset_is_plain(c->pages, c->page_size)) { /* (7) */
        nl_fail(err, NL_E_FORMAT, "malformed page set: page 1 is not that of a plain database with"
            " pages of %u bytes", c->page_size);
        if (err) err->page = 1;
        return NL_E_FORMAT;
    }
    return NL_OK;
}

/* One allocation holds the struct, the hashes, the shares, the page numbers and the pairs to be
** digested. */
static nl_chunk *pageset_allocate(uint32_t count, uint8_t **pairs)
{
    size_t n = count;
    nl_chunk *c = malloc(
        sizeof *c + n * (sizeof *c->hashes + sizeof *c->shares + sizeof *c->pgnos + 12));

    if (!c) return NULL;
    c->count = count;
    c->hashes = (uint64_t *)(void *)(c + 1);
    c->shares = (uint32_t (*)[2])(void *)(c->hashes + n);
    c->pgnos = (uint32_t *)(void *)(c->shares + n);
    *pairs = (uint8_t *)(c->pgnos + n);
    return c;
}

/* Everything that is ever computed from a page's bytes, while they are in the nearest cache: the one
** pass over memory that has just arrived. The processor's own prefetching ends at each 4 KiB, hence
** ours, one page ahead (measured: 252 instead of 334 ns a page; the shares come along for 17 ns). */
static void pageset_compute(nl_chunk *c, uint8_t *pairs)
{
    const size_t size = c->page_size, ahead = size < 4096 ? size : 4096;

    for (uint32_t i = 0; i < c->count; i++) {
        const uint8_t *page = c->pages + i * size;
        if (i + 1 < c->count) {
            for (size_t at = 0; at < ahead; at += 64) __builtin_prefetch(page + size + at);
        }
        c->hashes[i] = nl_page_hash(page, c->page_size, c->pgnos[i]);
        pageset_pair(pairs, i, c->pgnos[i], c->hashes[i]);
        if (c->shares) {
            c->shares[i][0] = c->shares[i][1] = 0;
            nl_wal_checksum(page, size, NL_HOST_BIG, c->shares[i]);
        }
    }
}

int nl_chunk_verify(
    const nl_set_header *set,
    const nl_chunk_header *head,
    const uint8_t *body,
    size_t n,
    uint32_t after,
    nl_chunk **out,
    nl_error *err)
{
    const size_t size = nl_chunk_size(set->page_size, head->count);
    nl_chunk *c = NULL;
    uint8_t *pairs = NULL;
    int rc = NL_OK;

    *out = NULL;
    if (size == 0 || head->raw_size != size || n != size) { /* (1), (2) */
        return nl_fail(err, NL_E_FORMAT, "malformed page set: %u pages of %u bytes in a chunk of"
            " %u bytes, %zu given", head->count, set->page_size, head->raw_size, n);
    }
    c = pageset_allocate(head->count, &pairs);
    if (!c) return nl_fail(err, NL_E_NOMEM, "out of memory");
    c->page_size = set->page_size;
    c->pages = body + nl_chunk_pages_offset(c->count);
    rc = pageset_check_table(c, set, body, after, err);
    if (rc) goto done;
    if (set->flags & NL_SET_SNAPSHOT) c->shares = NULL;
    pageset_compute(c, pairs);
    if (nl_xxh3(pairs, 12 * (size_t)c->count, 0) != head->digest) { /* (8) */
        rc = nl_fail(err, NL_E_HASH, "a chunk of %u pages from page %u on does not have the"
            " announced digest", c->count, c->pgnos[0]);
        goto done;
    }
    *out = c;
    c = NULL;

done:
    free(c);
    return rc;
}

/* The next chunk of a set in memory; NL_OK with *out == NULL at the end of the set. */
static int pageset_next(
    const nl_set_header *set,
    const uint8_t *in,
    size_t n,
    size_t *at,            /* IN, OUT: bytes used */
    uint32_t left,         /* pages that the set has yet to bring */
    uint32_t after,        /* last page number so far */
    nl_chunk **out,        /* OUT */
    nl_error *err)
{
    nl_chunk_header head;
    int rc = nl_chunk_header_decode(in + *at, n - *at, &head, err);

    *out = NULL;
    if (rc) return rc;
    *at += NL_CHUNK_HEADER_SIZE;
    if (head.count == 0) {
        if (left) return nl_fail(err, NL_E_FORMAT, "the page set ends %u pages early", left);
        if (*at == n) return NL_OK;
        return nl_fail(err, NL_E_FORMAT, "%zu bytes follow the end of the page set", n - *at);
    }
    if (head.count > left) {
        return nl_fail(err, NL_E_FORMAT, "the page set carries more pages than it announced");
    }
    if (n - *at < head.stored_size) return nl_fail(err, NL_E_FORMAT, "a chunk is cut short");
    if (head.flags & NL_CHUNK_ZSTD) return nl_fail(err, NL_E_PIECEMEAL, "a chunk is compressed");
    rc = nl_chunk_verify(set, &head, in + *at, head.stored_size, after, out, err);
    *at += head.stored_size;
    return rc;
}

int nl_set_verify(
    const nl_set_header *set,
    const uint8_t *in,
    size_t n,
    nl_chunk **out,
    uint32_t room,
    uint32_t *count,
    nl_error *err)
{
    uint32_t have = 0, left = set->count, after = 0;
    size_t at = 0;
    int rc;

    for (;;) {
        nl_chunk *c;
        rc = pageset_next(set, in, n, &at, left, after, &c, err);
        if (rc || !c) break;
        if (have == room) {
            nl_chunk_free(c);
            rc = nl_fail(err, NL_E_PIECEMEAL, "the page set has more than %u chunks", room);
            break;
        }
        left -= c->count;
        after = c->pgnos[c->count - 1];
        out[have++] = c;
    }
    while (rc && have > 0) nl_chunk_free(out[--have]);
    *count = have;
    return rc;
}

uint32_t nl_chunk_count(const nl_chunk *c)
{
    return c->count;
}

uint32_t nl_chunk_last(const nl_chunk *c)
{
    return c->pgnos[c->count - 1];
}

int nl_chunk_page(
    const nl_chunk *c, uint32_t i, uint32_t *pgno, uint64_t *hash, const uint8_t **bytes)
{
    if (i >= c->count) return NL_E_MISUSE;
    *pgno = c->pgnos[i];
    *hash = c->hashes[i];
    *bytes = c->pages + (size_t)i * c->page_size;
    return NL_OK;
}

void nl_chunk_free(nl_chunk *c)
{
    free(c);
}
