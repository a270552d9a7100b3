/*
** delta_balance.c - guesses at edits by the bytes of cells (delta_encode.c has the list). Pure.
**
** When a page is defragmented, or balanced with its neighbours, every cell may move, and some
** go to other pages. The cells of all bases are known by their hashes then: what is left to
** tell is which went where. The edits of a balance are those of SQLite's editPage: cells leave
** at both ends, others come in the order of keys, and if they do not fit all are laid out anew.
*/
#include "delta_encode.h"

#include <stdlib.h>
#include <string.h>

/* The b-tree page that the base of page i, which exists, may be. */
static int encode_read(const delta_encoder *e, uint32_t i, nl_btree *b)
{
    return nl_btree_read(b, delta_base(&e->set, i), e->set.page_size, delta_head(&e->set, i));
}

static encode_known *encode_slot(const delta_encoder *e, uint64_t hash)
{
    size_t at = (size_t)(hash >> e->known_shift); /* the upper bits depend on all bytes */

    while (e->known[at].source.page != ENCODE_NEW && e->known[at].hash != hash) {
        if (++at >> (64 - e->known_shift)) at = 0;
    }
    return &e->known[at];
}

/* Both ends of a cell: one of them has the row's number in it. Weak, but every use is followed
** by a comparison. Leaf cells and those of interior pages begin differently: they are not
** looked for in each other. */
static uint64_t encode_hash(nl_cell cell, uint8_t kind)
{
    const size_t n = cell.size < 8 ? 4 : 8;
    uint64_t first = 0, last = 0;

    memcpy(&first, cell.bytes, n);
    memcpy(&last, cell.bytes + cell.size - n, n);
    first = (first ^ cell.size * 64u ^ kind) * 0x9e3779b97f4a7c15u;
    last = (last ^ first >> 32) * 0xd6e8feb86659fd93u;
    return first ^ last;
}

/* The table of all cells of all bases; of equal ones the first. Answers 0 if there is no
** memory. */
static int encode_know_all(delta_encoder *e)
{
    size_t n = 0, size = 16;
    nl_btree b;

    if (e->known) return 1;
    for (uint32_t i = 0; i < e->set.count; i++) {
        const uint8_t *base = delta_base(&e->set, i);
        if (base && encode_read(e, i, &b)) n += b.cells;
    }
    for (e->known_shift = 60; size < 2 * n; e->known_shift--) size *= 2;
    e->known = malloc(size * sizeof *e->known);
    if (!e->known) return 0;
    for (size_t i = 0; i < size; i++) e->known[i].source.page = ENCODE_NEW;
    for (uint32_t i = 0; i < e->set.count; i++) {
        const uint8_t *base = delta_base(&e->set, i);
        if (!base || !encode_read(e, i, &b)) continue;
        for (uint32_t k = 0; k < b.cells; k++) {
            nl_cell cell = nl_btree_cell(&b, base, k);
            if (cell.size == 0) continue;
            uint64_t hash = encode_hash(cell, b.kind);
            encode_known *entry = encode_slot(e, hash);
            if (entry->source.page == ENCODE_NEW) *entry = (encode_known){hash, {i, k}};
        }
    }
    return 1;
}

/* Find out where the page's cells come from. Answers 0 if one makes no sense. *most: index of
** the page that gave more than half of them, if there is one. */
static int encode_by_content(delta_encoder *e, const encode_page *p, uint32_t *most)
{
    uint32_t votes = 0;

    if (!encode_know_all(e)) return 0;
    *most = p->start;
    for (uint32_t j = 0; j < p->now.cells; j++) {
        const nl_cell cell = nl_btree_cell(&p->now, p->image, j);
        if (cell.size == 0) return 0;
        encode_source source = encode_slot(e, encode_hash(cell, p->now.kind))->source;
        if (source.page != ENCODE_NEW) { /* a hash is no proof, and the reader has none */
            nl_btree b;
            const uint8_t *base = delta_base(&e->set, source.page);
            encode_read(e, source.page, &b);
            nl_cell known = nl_btree_cell(&b, base, source.cell);
            if (known.size != cell.size || memcmp(known.bytes, cell.bytes, cell.size) != 0) {
                source.page = ENCODE_NEW;
            }
        }
        e->sources[j] = source;
        if (source.page == ENCODE_NEW) continue;
        if (votes == 0) *most = source.page;
        if (source.page == *most) votes++;
        else votes--;
    }
    return 1;
}

/* Start from the base of page `start`. Answers 0 if it has no cells of the same kind. */
static int encode_start(const delta_encoder *e, encode_page *p, uint32_t start)
{
    p->start = start;
    p->base = delta_base(&e->set, start);
    if (start != p->index) p->bits = DELTA_OTHER;
    return p->base && encode_read(e, start, &p->old)
        && p->old.head == p->head && p->old.kind == p->now.kind
        && p->old.cells < delta_cells(e->set.page_size);
}

/* Which of the base's cells stay. */
static void encode_keep(delta_encoder *e, const encode_page *p)
{
    uint32_t next = 0;

    memset(e->kept, 0, p->old.cells);
    for (uint32_t j = 0; j < p->now.cells; j++) {
        const encode_source *s = e->sources + j;
        if (s->page != p->start || s->cell < next) continue;
        e->kept[s->cell] = 1;
        next = s->cell + 1;
    }
}

/* Delete the cells that did not stay, a run at a time, as a balance does. */
static int encode_drop(
    delta_encoder *e, const encode_page *p, nl_btree *b, int wipe, int listed)
{
    uint32_t gone = 0, end;

    for (uint32_t i = 0; i < p->old.cells; i = end + 1) {
        end = i;
        while (end < p->old.cells && !e->kept[end]) end++;
        if (end == i) continue;
        int wide = i == 0 && end < p->old.cells;
        if (listed) {
            encode_edit_head(e, DELTA_DELETE, i - gone);
            encode_varint(&e->trial, 2 * (end - i - 1));
        } else if (!encode_delete(e, b, i - gone, end - i, wide, wipe)) {
            return 0;
        }
        gone += end - i;
    }
    return 1;
}

/* Cells that come from one base one after the other, from cell j on. */
static uint32_t encode_run(const delta_encoder *e, const encode_page *p, uint32_t j)
{
    const encode_source *s = e->sources + j;
    uint32_t n = 1;

    while (j + n < p->now.cells && s[n].page == s->page && s[n].cell == s->cell + n) n++;
    return n;
}

/* Tell what encode_by_content found. Answers 1 if no other guess is worth while. */
static int encode_balanced(delta_encoder *e, const encode_page *p, uint8_t bits)
{
    const int listed = bits & (DELTA_REBUILD | DELTA_LAID), fresh = bits & DELTA_FRESH;
    uint32_t next = 0, n;
    nl_btree b;

    if (listed) { /* the reader takes all of the base's cells before it drops some */
        for (uint32_t i = 0; i < p->old.cells; i++) {
            if (nl_btree_cell(&p->old, p->base, i).size == 0) return 0;
        }
    }
    encode_begin(e, p, bits | DELTA_CELLS, &b);
    if (!fresh && !encode_drop(e, p, &b, bits & DELTA_WIPE, listed)) return 0;
    for (uint32_t j = 0; j < p->now.cells && e->trial.size <= e->trial.room; j += n) {
        const encode_source *s = e->sources + j;
        n = 1;
        if (!fresh && s->page == p->start && s->cell >= next && e->kept[s->cell]) {
            next = s->cell + 1;
            continue;
        }
        if (s->page != ENCODE_NEW) {
            n = encode_run(e, p, j);
            if (!fresh && s->page == p->start) n = 1;
            encode_edit_head(e, DELTA_MOVE, j);
            encode_varint(&e->trial, s->page);
            encode_varint(&e->trial, s->cell);
            encode_varint(&e->trial, n - 1);
        } else {
            const nl_cell cell = nl_btree_cell(&p->now, p->image, j);
            encode_edit_head(e, DELTA_INSERT, j);
            encode_bytes(&e->trial, cell.bytes, cell.size);
        }
        for (uint32_t k = j; k < j + n && !listed; k++) {
            const nl_cell cell = nl_btree_cell(&p->now, p->image, k);
            if (!nl_btree_insert(&b, e->guess, k, cell, e->spare)) return 0;
        }
    }
    if (e->edit == 0) return 0;
    if (listed) {
        for (uint32_t j = 0; j < p->now.cells; j++) {
            e->cells[j] = nl_btree_cell(&p->now, p->image, j);
        }
        const uint8_t *pointers = p->image + p->now.array;
        if (bits & DELTA_LAID) encode_bytes(&e->trial, pointers, 2 * (size_t)p->now.cells);
        if (bits & DELTA_LAID
            ? !nl_btree_lay(&b, e->guess, e->cells, p->now.cells, pointers)
            : !nl_btree_rebuild(&b, e->guess, e->cells, p->now.cells)) return 0;
    }
    return encode_end(e, p);
}

/* (2), (3), (4). */
void encode_guess_balance(delta_encoder *e, const encode_page *p)
{
    encode_page from = *p;
    uint32_t most;

    if (!p->is_now || p->now.cells == 0 || !encode_by_content(e, p, &most)) return;
    if (encode_start(e, &from, most)) {
        encode_keep(e, &from);
        if (encode_balanced(e, &from, e->wipe)) return;
        if (encode_balanced(e, &from, DELTA_REBUILD)) return;
        if (encode_balanced(e, &from, e->wipe ^ DELTA_WIPE)) return;
        (void)encode_balanced(e, &from, DELTA_LAID);
    }
    if (encode_balanced(e, p, DELTA_FRESH)) return;
    if (p->base) (void)encode_balanced(e, p, DELTA_FRESH | DELTA_BLANK);
}

