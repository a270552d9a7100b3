/*
** delta.c - pages told as differences from their older images: the format, and its decoder.
** Pure.
**
** A set of pages is one stream: for each page, in ascending order of numbers,
**
**     varint  2 * size of its record + packed      0: the page equals its base
**             the record, or, packed, tokens that make it
**
** A varint holds seven bits a byte, low ones first, and 128 in every byte but the last.
**
** Record
** ------
** What happened to the page, as a program that starts from the base: its image at the position
** the set leads from. Where there is none (the database grew), it starts from zeros.
**
**     u8      DELTA_* bits
**     varint  OTHER: index in the set of the page whose base to start from
**     u8      FRESH: kind of b-tree page
**     varint  COMMITS: the change counter rises by that, and what goes with it is set: the size of
**             the file and the number of the change it is valid for
**     edits   CELLS: each a varint 8 * index + 4 * last + kind, and what its kind needs
**     u16     LAID: where each cell of the list lies, big-endian, as in the page itself
**     spans   up to the end: varint bytes to skip, varint bytes to replace, those bytes
**
** Balancing sorts the pages it has by their numbers, so that two pages may exchange what they
** hold: hence OTHER.
**
** Edits are those of btree_page.c. Together they predict the page; the spans mend what SQLite
** did in another way. A new row is then its cell and an index, where bytes show a pointer array
** that moved; a balance is which cells went where.
**
** A cell needs no length: it begins with one. MOVE takes cells from the base of any page in the
** set, because what leaves one page of a tree arrives in its neighbour.
**
** Tokens
** ------
** Copies and literals: u8 (literals << 4 | copied - 3), where 15 means that a varint to add
** follows (that of the literals at once, that of the copy before its distance), the literals,
** and, if the record is not complete, the varint distance of the copy. Low bits 0 mean no copy:
** only at the end. A distance counts backwards from the byte to be written: first the record
** itself, then the page's base from its end on, then the records before, at most DELTA_HISTORY
** bytes of them. A copy stays within one of the three. So a row is told by what it has in
** common with its neighbours on the page, and an index by the row it belongs to.
**
** Pages without a base have the dictionary of the page before them.
**
** What a reader checks: all reads and writes, against what is there. Whether the page is the
** right one is not to be seen here: its hash says so.
*/
#include "delta.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "frame.h"

typedef struct delta_reader {
    const uint8_t *at, *end;
} delta_reader;

typedef struct delta_decoder {
    delta_set set;
    uint8_t *spare;         /* page_size: for btree_page.c */
    uint8_t *records;       /* history, and the record being unpacked */
    size_t used;            /* bytes of history at the beginning of `records` */
    const uint8_t *dictionary; /* base that tokens copy from; NULL: none yet */
    nl_cell *cells;         /* list that REBUILD and LAID edit */
    uint32_t cells_max;     /* entries it has room for */
} delta_decoder;

/* ---------------------------------------------------------------- shared with the encoder */

void delta_make_plain(uint8_t *page)
{
    page[NL_WRITE_VERSION_OFFSET] = 2;
    memset(page + NL_REPLICA_HEADER_OFFSET, 0, NL_REPLICA_HEADER_SIZE);
}

int delta_check(const delta_set *s, nl_error *err)
{
    if (nl_chunk_size(s->page_size, s->count) == 0) {
        return nl_fail(err, NL_E_MISUSE, "no delta of %u pages of %u bytes", s->count,
            s->page_size);
    }
    return NL_OK;
}

void delta_plain_base(delta_set *s, uint8_t *plain)
{
    if (s->pgnos[0] != 1 || !s->bases[0]) return;
    memcpy(plain, s->bases[0], s->page_size);
    delta_make_plain(plain);
    s->plain = plain;
}

/* ---------------------------------------------------------------- reading */

static int delta_varint(delta_reader *r, uint32_t *out)
{
    uint64_t x = 0;

    for (int shift = 0; shift < 35; shift += 7) {
        if (r->at == r->end) return 0;
        uint8_t b = *r->at++;
        x |= (uint64_t)(b & 0x7f) << shift;
        if (b < 0x80) {
            *out = (uint32_t)x;
            return x <= UINT32_MAX;
        }
    }
    return 0;
}

/* A length of which `nibble` is the beginning. */
static int delta_length(delta_reader *r, uint32_t nibble, uint32_t *out)
{
    uint32_t more = 0;

    if (nibble == 15 && !delta_varint(r, &more)) return 0;
    *out = nibble + (more > UINT32_MAX - 15 ? UINT32_MAX - 15 : more);
    return 1;
}

/* Where the copy of n bytes at `distance` from record[done] begins; NULL: it is not within one
** part. */
static const uint8_t *delta_source(
    const delta_decoder *d, const uint8_t *record, uint32_t done, uint32_t distance, uint32_t n)
{
    uint32_t size = d->dictionary ? d->set.page_size : 0;
    size_t history = d->used < DELTA_HISTORY ? d->used : DELTA_HISTORY;

    if (distance == 0) return NULL;
    if (distance <= done) return record + done - distance;
    distance -= done;
    if (distance <= size) return n <= distance ? d->dictionary + size - distance : NULL;
    distance -= size;
    return distance <= history && n <= distance ? record - distance : NULL;
}

static int delta_unpack(const delta_decoder *d, delta_reader *r, uint8_t *record, uint32_t size)
{
    uint32_t done = 0, literals, n, distance;

    for (;;) {
        if (r->at == r->end) return 0;
        uint8_t token = *r->at++;
        if (!delta_length(r, token >> 4, &literals)) return 0;
        if (literals > size - done || literals > (size_t)(r->end - r->at)) return 0;
        memcpy(record + done, r->at, literals);
        r->at += literals;
        done += literals;
        if (done == size) return (token & 15) == 0;
        if ((token & 15) == 0 || !delta_length(r, token & 15, &n)) return 0;
        n += DELTA_COPY_MIN - 1;
        if (n > size - done || !delta_varint(r, &distance)) return 0;
        const uint8_t *from = delta_source(d, record, done, distance, n);
        if (!from) return 0;
        for (uint32_t i = 0; i < n; i++) record[done + i] = from[i]; /* they may overlap */
        done += n;
        if (done == size) return 1;
    }
}

/* ---------------------------------------------------------------- edits */

/* What edits change: the page itself or, with REBUILD and LAID, a list of cells. */
typedef struct delta_target {
    nl_btree b;
    uint8_t *page;
    int listed;             /* REBUILD, LAID */
    uint32_t listed_count;
    int wipe;
    uint32_t budget;        /* cells that may still be inserted: hostile edits must end, too */
} delta_target;

static int delta_list_open(delta_decoder *d, delta_target *t)
{
    if (t->b.cells > d->cells_max) return 0;
    memcpy(d->spare, t->page, t->b.size); /* the cells must outlive the layout */
    for (uint32_t i = 0; i < t->b.cells; i++) {
        d->cells[i] = nl_btree_cell(&t->b, d->spare, i);
        if (d->cells[i].size == 0) return 0;
    }
    t->listed_count = t->b.cells;
    return 1;
}

static int delta_insert(delta_decoder *d, delta_target *t, uint32_t i, nl_cell cell)
{
    if (t->budget-- == 0) return 0;
    if (!t->listed) return nl_btree_insert(&t->b, t->page, i, cell, d->spare);
    if (i > t->listed_count || t->listed_count == d->cells_max) return 0;
    memmove(d->cells + i + 1, d->cells + i, (t->listed_count - i) * sizeof *d->cells);
    d->cells[i] = cell;
    t->listed_count++;
    return 1;
}

static int delta_delete(delta_decoder *d, delta_target *t, uint32_t i, uint32_t how)
{
    uint32_t n = how / 2 + 1;

    if (!t->listed) return nl_btree_delete(&t->b, t->page, i, n, how & 1, t->wipe);
    if (i >= t->listed_count || n > t->listed_count - i) return 0;
    memmove(d->cells + i, d->cells + i + n, (t->listed_count - i - n) * sizeof *d->cells);
    t->listed_count -= n;
    return 1;
}

/* The next cell of the record. */
static int delta_literal(const delta_target *t, delta_reader *r, nl_cell *cell)
{
    *cell = (nl_cell){r->at, nl_btree_cell_size(&t->b, r->at, (size_t)(r->end - r->at))};
    r->at += cell->size;
    return cell->size != 0;
}

static int delta_move(delta_decoder *d, delta_target *t, uint32_t i, delta_reader *r)
{
    uint32_t page, first, more;
    nl_btree from;

    if (!delta_varint(r, &page) || !delta_varint(r, &first) || !delta_varint(r, &more)) return 0;
    if (page >= d->set.count || !delta_base(&d->set, page)) return 0;
    const uint8_t *base = delta_base(&d->set, page);
    if (!nl_btree_read(&from, base, d->set.page_size, delta_head(&d->set, page))) return 0;
    if (first >= from.cells || more >= from.cells - first) return 0;
    for (uint32_t k = 0; k <= more; k++) {
        nl_cell cell = nl_btree_cell(&from, base, first + k);
        if (cell.size == 0 || !delta_insert(d, t, i + k, cell)) return 0;
    }
    return 1;
}

static int delta_edit(delta_decoder *d, delta_target *t, uint32_t what, delta_reader *r)
{
    const uint32_t i = what / DELTA_INDEX;
    uint32_t x;
    nl_cell cell;

    switch (what & DELTA_KIND) {
    case DELTA_INSERT:
        return delta_literal(t, r, &cell) && delta_insert(d, t, i, cell);
    case DELTA_DELETE:
        return delta_varint(r, &x) && delta_delete(d, t, i, x);
    case DELTA_MOVE:
        return delta_move(d, t, i, r);
    default:
        return 0;
    }
}

static int delta_edits(
    delta_decoder *d, uint8_t *page, uint32_t head, uint8_t bits, delta_reader *r)
{
    delta_target t = {
        .page = page, .listed = bits & (DELTA_REBUILD | DELTA_LAID), .wipe = bits & DELTA_WIPE,
        .budget = 2 * d->cells_max,
    };
    uint32_t what;

    if (!nl_btree_read(&t.b, page, d->set.page_size, head)) return 0;
    if (t.listed && !delta_list_open(d, &t)) return 0;
    do {
        if (!delta_varint(r, &what) || !delta_edit(d, &t, what, r)) return 0;
    } while (!(what & DELTA_LAST));
    if (bits & DELTA_REBUILD) return nl_btree_rebuild(&t.b, page, d->cells, t.listed_count);
    if (!(bits & DELTA_LAID)) return 1;
    if (2 * (size_t)t.listed_count > (size_t)(r->end - r->at)) return 0;
    const uint8_t *pointers = r->at;
    r->at += 2 * (size_t)t.listed_count;
    return nl_btree_lay(&t.b, page, d->cells, t.listed_count, pointers);
}

/* ---------------------------------------------------------------- records */

static int delta_spans(delta_reader *r, uint8_t *page, uint32_t page_size)
{
    uint32_t at = 0, skip, n;

    while (r->at != r->end) {
        if (!delta_varint(r, &skip) || !delta_varint(r, &n)) return 0;
        if (skip > page_size - at || n > page_size - at - skip) return 0;
        if (n > (size_t)(r->end - r->at)) return 0;
        at += skip;
        memcpy(page + at, r->at, n);
        r->at += n;
        at += n;
    }
    return 1;
}

static int delta_commits(const delta_set *s, uint8_t *page, delta_reader *r)
{
    uint32_t commits, counter;

    if (!delta_varint(r, &commits)) return 0;
    counter = nl_get32(page + DELTA_CHANGE_COUNTER) + commits;
    nl_put32(page + DELTA_CHANGE_COUNTER, counter);
    nl_put32(page + DELTA_FILE_PAGES, s->pages);
    nl_put32(page + DELTA_VERSION_VALID, counter);
    return 1;
}

/* Carry out the record of page i. */
static int delta_run(
    delta_decoder *d, uint32_t i, const uint8_t *record, uint32_t n, uint8_t *page)
{
    delta_reader r = {record, record + n};
    const uint8_t *base = delta_base(&d->set, i);
    const uint32_t head = delta_head(&d->set, i), size = d->set.page_size;
    const uint8_t bits = n ? *r.at++ : 0;
    uint32_t other;
    nl_btree b;

    if (bits & DELTA_OTHER) {
        if (!delta_varint(&r, &other) || other >= d->set.count) return 0;
        base = delta_base(&d->set, other);
    }
    if ((bits & (DELTA_WIPE | DELTA_REBUILD | DELTA_LAID)) && !(bits & DELTA_CELLS)) return 0;
    if (bits & DELTA_REBUILD && bits & DELTA_LAID) return 0;
    if (base && !(bits & DELTA_BLANK)) memcpy(page, base, size);
    else memset(page, 0, size);
    if (bits & DELTA_FRESH) {
        if (r.at == r.end || !nl_btree_clear(&b, page, size, head, *r.at++)) return 0;
    }
    if (bits & DELTA_COMMITS && (head == 0 || !delta_commits(&d->set, page, &r))) return 0;
    if (bits & DELTA_CELLS && !delta_edits(d, page, head, bits, &r)) return 0;
    return delta_spans(&r, page, size);
}

/* Room for another record behind the history, of which only so much is kept as is needed. */
static uint8_t *delta_next_record(delta_decoder *d)
{
    if (d->used > 2 * DELTA_HISTORY) {
        memmove(d->records, d->records + d->used - DELTA_HISTORY, DELTA_HISTORY);
        d->used = DELTA_HISTORY;
    }
    return d->records + d->used;
}

static int delta_page(delta_decoder *d, uint32_t i, delta_reader *r, uint8_t *page)
{
    uint8_t *record = delta_next_record(d);
    uint32_t size;

    if (delta_base(&d->set, i)) d->dictionary = delta_base(&d->set, i);
    if (!delta_varint(r, &size)) return 0;
    int packed = size & 1;
    size /= 2;
    if (size > delta_room(d->set.page_size)) return 0;
    if (packed) {
        if (!delta_unpack(d, r, record, size)) return 0;
    } else {
        if (size > (size_t)(r->end - r->at)) return 0;
        memcpy(record, r->at, size);
        r->at += size;
    }
    d->used += size;
    return delta_run(d, i, record, size, page);
}

static int delta_decoder_open(delta_decoder *d, nl_error *err)
{
    const size_t page_size = d->set.page_size;

    d->cells_max = delta_cells(d->set.page_size);
    d->cells = malloc(d->cells_max * sizeof *d->cells + 2 * page_size + delta_history(&d->set)
        + delta_room(d->set.page_size));
    if (!d->cells) return nl_fail(err, NL_E_NOMEM, "out of memory");
    d->spare = (uint8_t *)(d->cells + d->cells_max);
    d->records = d->spare + 2 * page_size;
    delta_plain_base(&d->set, d->spare + page_size);
    return NL_OK;
}

int nl_delta_decode(
    uint32_t page_size,
    uint32_t pages,
    const uint32_t *pgnos,
    const uint8_t *const *bases,
    uint32_t count,
    const uint8_t *in,
    size_t n,
    uint8_t *out,
    nl_error *err)
{
    delta_decoder d = {.set = {page_size, pages, count, pgnos, bases, NULL}};
    delta_reader r = {in, in + n};
    int rc = NL_OK;

    rc = delta_check(&d.set, err);
    if (!rc) rc = delta_decoder_open(&d, err);
    if (rc) return rc;
    for (uint32_t i = 0; i < count; i++) {
        if (delta_page(&d, i, &r, out + (size_t)i * page_size)) continue;
        rc = nl_fail(err, NL_E_FORMAT, "malformed delta of page %u", pgnos[i]);
        if (err) err->page = pgnos[i];
        goto done;
    }
    if (r.at != r.end) rc = nl_fail(err, NL_E_FORMAT, "malformed delta: it goes on");

done:
    free(d.cells);
    return rc;
}
