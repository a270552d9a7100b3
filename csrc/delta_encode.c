/*
** delta_encode.c - how a page came from its base, told in few bytes (delta.c has the format).
** Pure.
**
** For each page the encoder makes guesses at what SQLite did, the likeliest first, and keeps
** the shortest record. A guess is a list of edits; carrying them out on the base shows what is
** left to mend, so that no guess needs to be right. The first that leaves nearly nothing ends
** the search:
**
**   (1) cells were inserted and deleted: who has a pointer of old has stayed
**   (2) the same, but defragmented or balanced: who has the bytes of a cell is that cell, wherever it
**       came from, also from another page of the set
**   (3) the same, and laid out anew; (2), (3), (5) start from the page that most of the cells were on
**   (4) a fresh page (of another kind than before, or new) that was filled with cells
**   (5) the same as (2), and each cell is where it is, when nobody finds out why
**   (6) bytes changed
**
** Nearly all pages of nearly all transactions end at (1), in a microsecond or two.
*/
#include "delta_encode.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"

/* ---------------------------------------------------------------- records */

static void encode_byte(encode_record *r, uint8_t b)
{
    if (r->size < r->room) r->bytes[r->size] = b;
    r->size++;
}

void encode_varint(encode_record *r, uint32_t x)
{
    for (; x >= 128; x >>= 7) encode_byte(r, (uint8_t)(x | 128));
    encode_byte(r, (uint8_t)x);
}

void encode_bytes(encode_record *r, const uint8_t *p, size_t n)
{
    if (r->size <= r->room && n <= r->room - r->size) memcpy(r->bytes + r->size, p, n);
    r->size += n;
}

static size_t encode_equal(const uint8_t *a, const uint8_t *b, size_t at, size_t n)
{
    for (; at + 8 <= n; at += 8) {
        uint64_t x, y;
        memcpy(&x, a + at, 8);
        memcpy(&y, b + at, 8);
        if (x != y) break;
    }
    while (at < n && a[at] == b[at]) at++;
    return at;
}

/* First offset from `at` on where the bytes are equal; n: nowhere. */
static size_t encode_differs(const uint8_t *a, const uint8_t *b, size_t at, size_t n)
{
    const uint64_t ones = 0x0101010101010101u;

    for (; at + 8 <= n; at += 8) {
        uint64_t x, y;
        memcpy(&x, a + at, 8);
        memcpy(&y, b + at, 8);
        x ^= y;
        if ((x - ones) & ~x & ones << 7) break; /* one of its bytes is zero */
    }
    while (at < n && a[at] != b[at]) at++;
    return at;
}

/* Spans that turn `from` into `to`, as long as that takes less than `limit` bytes. Two equal
** bytes between differences cost no more than a new span. */
static void encode_spans(
    encode_record *r, const uint8_t *from, const uint8_t *to, size_t n, size_t limit)
{
    size_t last = 0, at = encode_equal(from, to, 0, n);

    while (at < n && r->size < limit) {
        size_t end = at + 1, next;
        for (;;) {
            end = encode_differs(from, to, end, n);
            next = encode_equal(from, to, end, n);
            if (next == n || next - end > 2) break;
            end = next;
        }
        encode_varint(r, (uint32_t)(at - last));
        encode_varint(r, (uint32_t)(end - at));
        encode_bytes(r, to + at, end - at);
        last = end;
        at = next;
    }
}

/* ---------------------------------------------------------------- guesses */

/* Begin a record: what comes before the edits; `guess` becomes what the reader has then. */
void encode_begin(delta_encoder *e, const encode_page *p, uint8_t bits, nl_btree *b)
{
    encode_record *r = &e->trial;
    const uint32_t size = e->set.page_size;

    r->size = e->edit = 0;
    bits |= p->bits;
    encode_byte(r, bits);
    if (bits & DELTA_OTHER) encode_varint(r, p->start);
    if (p->base && !(bits & DELTA_BLANK)) memcpy(e->guess, p->base, size);
    else memset(e->guess, 0, size);
    *b = p->old;
    if (bits & DELTA_FRESH) {
        encode_byte(r, p->now.kind);
        nl_btree_clear(b, e->guess, size, p->head, p->now.kind);
    }
    if (bits & DELTA_COMMITS) {
        uint32_t counter = nl_get32(e->guess + DELTA_CHANGE_COUNTER) + p->commits;
        encode_varint(r, p->commits);
        nl_put32(e->guess + DELTA_CHANGE_COUNTER, counter);
        nl_put32(e->guess + DELTA_FILE_PAGES, e->set.pages);
        nl_put32(e->guess + DELTA_VERSION_VALID, counter);
    }
}

/* End it: mend, and keep it if it is the shortest. Answers 1 if no other guess is worth while.
** */
int encode_end(delta_encoder *e, const encode_page *p)
{
    const size_t edits = e->trial.size;

    if (e->edit && e->edit < e->trial.room) e->trial.bytes[e->edit] |= DELTA_LAST;
    encode_spans(&e->trial, e->guess, p->image, e->set.page_size, e->best.size);
    const size_t mended = e->trial.size - edits;
    if (e->trial.size < e->best.size && e->trial.size <= e->trial.room) {
        encode_record shorter = e->trial;
        e->trial = e->best;
        e->best = shorter;
    }
    return mended <= ENCODE_MENDED;
}

/* (6) */
int encode_plain(delta_encoder *e, const encode_page *p, uint8_t bits)
{
    nl_btree b;

    encode_begin(e, p, bits, &b);
    return encode_end(e, p);
}

void encode_edit_head(delta_encoder *e, uint32_t kind, uint32_t i)
{
    e->edit = e->trial.size;
    encode_varint(&e->trial, DELTA_INDEX * i + kind);
}

/* Insert cell `which` of the new page before cell i. */
int encode_insert(delta_encoder *e, const encode_page *p, nl_btree *b, uint32_t i, uint32_t which)
{
    const nl_cell cell = nl_btree_cell(&p->now, p->image, which);

    if (cell.size == 0) return 0;
    encode_edit_head(e, DELTA_INSERT, i);
    encode_bytes(&e->trial, cell.bytes, cell.size);
    return nl_btree_insert(b, e->guess, i, cell, e->spare);
}

int encode_delete(delta_encoder *e, nl_btree *b, uint32_t i, uint32_t n, int wide, int wipe)
{
    encode_edit_head(e, DELTA_DELETE, i);
    encode_varint(&e->trial, 2 * (n - 1) + (wide != 0));
    return nl_btree_delete(b, e->guess, i, n, wide, wipe);
}

/* ---------------------------------------------------------------- a page */

static void encode_guess(delta_encoder *e, const encode_page *p)
{
    const int same = p->is_old && p->is_now && p->old.kind == p->now.kind;

    if (same && encode_guess_small(e, p)) return;
    encode_guess_balance(e, p);
    if (e->best.size <= e->set.page_size / 16) return;
    (void)encode_plain(e, p, 0);
    if (p->base) (void)encode_plain(e, p, DELTA_BLANK);
}

static void encode_page_open(delta_encoder *e, encode_page *p, uint32_t i)
{
    const uint32_t size = e->set.page_size;

    *p = (encode_page){.index = i, .start = i, .head = delta_head(&e->set, i)};
    p->base = delta_base(&e->set, i);
    p->image = p->head ? e->image1 : e->images[i];
    /* More cells than fit: a damaged page, for which decoders have no room. */
    p->is_now = nl_btree_read(&p->now, p->image, size, p->head)
        && p->now.cells < delta_cells(size);
    p->is_old = p->base && nl_btree_read(&p->old, p->base, size, p->head)
        && p->old.cells < delta_cells(size);
    if (!p->is_old) p->old.cells = 0;
    if (p->head && p->base) {
        uint32_t now = nl_get32(p->image + DELTA_CHANGE_COUNTER);
        p->commits = now - nl_get32(p->base + DELTA_CHANGE_COUNTER);
        if (nl_get32(p->image + DELTA_VERSION_VALID) == now && (p->commits
            || nl_get32(p->image + DELTA_FILE_PAGES) != nl_get32(p->base + DELTA_FILE_PAGES))) {
            p->bits = DELTA_COMMITS;
        }
    }
}

static void encode_record_of(delta_encoder *e, uint32_t i)
{
    encode_page p;

    encode_page_open(e, &p, i);
    e->best.size = 0;
    if (p.base && memcmp(p.base, p.image, e->set.page_size) == 0) return;
    e->best.size = e->best.room + 1;
    encode_guess(e, &p);
}

/* ---------------------------------------------------------------- a set */

/* One allocation; the larger alignments come first. */
static int encode_open(delta_encoder *e, uint8_t **memory, nl_error *err)
{
    const size_t size = e->set.page_size, cells = delta_cells(e->set.page_size);
    const size_t room = delta_room(e->set.page_size), history = delta_history(&e->set);
    uint8_t *p = malloc(cells * (sizeof *e->cells + sizeof *e->sources + sizeof *e->edits * 2 + 1)
        + size * sizeof *e->at_pointer + 4 * size + 3 * room + history);

    if (!p) return nl_fail(err, NL_E_NOMEM, "out of memory");
    *memory = p;
    e->cells = (nl_cell *)(void *)p;
    e->sources = (encode_source *)(void *)(e->cells + cells);
    e->edits = (encode_edit *)(void *)(e->sources + cells);
    e->at_pointer = (uint16_t *)(void *)(e->edits + 2 * cells);
    memset(e->at_pointer, 0, size * sizeof *e->at_pointer);
    e->kept = (uint8_t *)(e->at_pointer + size);
    e->image1 = e->kept + cells;
    e->guess = e->image1 + size;
    e->spare = e->guess + size;
    e->best.bytes = e->spare + 2 * size;
    e->trial.bytes = e->best.bytes + room;
    e->best.room = e->trial.room = room;
    delta_tokens_open(&e->tokens, e->set.page_size, e->trial.bytes + room);
    delta_plain_base(&e->set, e->spare + size);
    if (e->set.pgnos[0] == 1) {
        memcpy(e->image1, e->images[0], size);
        delta_make_plain(e->image1);
    }
    return NL_OK;
}

size_t nl_delta_bound(uint32_t page_size, uint32_t count)
{
    return (size_t)count * (page_size + 16); /* one span, its head, and the size of the record */
}

int nl_delta_encode(
    uint32_t page_size,
    uint32_t pages,
    const uint32_t *pgnos,
    const uint8_t *const *bases,
    const uint8_t *const *images,
    uint32_t count,
    uint8_t *out,
    size_t room,
    size_t *written,
    nl_error *err)
{
    delta_encoder *e;
    uint8_t *memory = NULL;
    size_t size = 0;
    int rc;

    *written = 0;
    e = malloc(sizeof *e);
    if (!e) return nl_fail(err, NL_E_NOMEM, "out of memory");
    memset(e, 0, offsetof(delta_encoder, tokens));
    e->set = (delta_set){page_size, pages, count, pgnos, bases, NULL};
    e->images = images;
    rc = delta_check(&e->set, err);
    if (!rc) rc = encode_open(e, &memory, err);
    if (rc) goto done;
    for (uint32_t i = 0; i < count; i++) {
        delta_tokens_base(&e->tokens, delta_base(&e->set, i));
        encode_record_of(e, i);
        size_t n = delta_tokens_pack(
            &e->tokens, e->best.bytes, (uint32_t)e->best.size, out + size, room - size);
        if (n == 0) goto done; /* it does not fit */
        size += n;
    }
    *written = size;

done:
    free(e->known);
    free(memory);
    free(e);
    return rc;
}
