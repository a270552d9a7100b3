/*
** btree_page.c - the cells of one b-tree page, edited the way SQLite edits them. Pure.
**
** A b-tree page (https://sqlite.org/fileformat2.html#b_tree_pages), from its header on:
**
**      0  kind: 2, 5 interior of index, table; 10, 13 leaf of index, table
**      1  first freeblock, or 0          freeblock: offset of the next or 0, size (u16 each)
**      3  cells
**      5  where the cell content begins (0: 65536)
**      7  fragments: bytes in gaps too small for a freeblock
**      8  interior pages: page number of the right-most child
**      8 or 12: cell pointers, in the order of the keys; then the gap; then cells and freeblocks in
**      any order up to the end
**
** The edits follow SQLite's allocateSpace, pageFindSlot, freeSpace, defragmentPage, editPage
** and rebuildPage (btree.c; unchanged since 3.31 but for added checks of corruption). They are
** what inserts, deletes, updates and balancing consist of, so that a page can be told in terms
** of them: two numbers and the new cell in place of a pointer array that moved.
**
** Two things of SQLite's are left out, because both sides of a delta would need to know them:
** reserved bytes at the end of a page, and how much free space SQLite's own bookkeeping
** believes in.
*/
#include "btree_page.h"

#include <string.h>

#define BTREE_FREEBLOCK 1   /* offsets within the header */
#define BTREE_CELLS 3
#define BTREE_CONTENT 5
#define BTREE_FRAGMENTS 7

#define BTREE_MAX_FRAGMENTS 57 /* beyond this SQLite wastes no further bytes */

static uint32_t btree_get(const uint8_t *p)
{
    return p[0] * 256u + p[1];
}

static void btree_put(uint8_t *p, uint32_t x)
{
    p[0] = (uint8_t)(x >> 8);
    p[1] = (uint8_t)x;
}

static uint32_t btree_array(uint32_t head, uint8_t kind)
{
    return head + (kind & 8 ? 8 : 12);
}

static uint32_t btree_content(const nl_btree *b, const uint8_t *page)
{
    uint32_t at = btree_get(page + b->head + BTREE_CONTENT);
    return at ? at : 65536;
}

static int btree_kind_valid(uint8_t kind)
{
    return kind == 2 || kind == 5 || kind == 10 || kind == 13;
}

int nl_btree_read(nl_btree *b, const uint8_t *page, uint32_t size, uint32_t head)
{
    b->size = size;
    b->head = head;
    b->kind = page[head];
    if (!btree_kind_valid(b->kind)) return 0;
    b->array = btree_array(head, b->kind);
    b->cells = btree_get(page + head + BTREE_CELLS);
    return b->array + 2 * b->cells <= size;
}

int nl_btree_clear(nl_btree *b, uint8_t *page, uint32_t size, uint32_t head, uint8_t kind)
{
    if (!btree_kind_valid(kind)) return 0;
    *b = (nl_btree){size, head, btree_array(head, kind), 0, kind};
    page[head] = kind;
    memset(page + head + 1, 0, 7);
    btree_put(page + head + BTREE_CONTENT, size);
    return 1;
}

/* ---------------------------------------------------------------- cells */

/* A varint of SQLite's: answers its length, 0 when it does not end within `room`. */
static uint32_t btree_varint(const uint8_t *p, size_t room, uint64_t *out)
{
    uint64_t x = 0;

    for (uint32_t i = 0; i < 8; i++) {
        if (i >= room) return 0;
        x = x << 7 | (p[i] & 0x7f);
        if (p[i] < 0x80) {
            *out = x;
            return i + 1;
        }
    }
    if (room < 9) return 0;
    *out = x << 8 | p[8];
    return 9;
}

/* Bytes of a payload that lie in the cell, the number of its overflow page included. */
static uint64_t btree_local(const nl_btree *b, uint64_t payload)
{
    uint32_t most = b->kind == 13 ? b->size - 35 : (b->size - 12) * 64 / 255 - 23;
    uint32_t least = (b->size - 12) * 32 / 255 - 23;

    if (payload <= most) return payload;
    uint64_t local = least + (payload - least) % (b->size - 4);
    return (local <= most ? local : least) + 4;
}

uint32_t nl_btree_cell_size(const nl_btree *b, const uint8_t *cell, size_t room)
{
    size_t at = b->kind & 8 ? 0 : 4; /* page number of the child */
    uint64_t payload = 0, rowid, size;
    uint32_t n;

    if (room < at) return 0;
    n = btree_varint(cell + at, room - at, &payload);
    if (n == 0) return 0;
    at += n;
    if (b->kind == 5) {
        payload = 0; /* it was the row id */
    } else if (b->kind == 13) {
        n = btree_varint(cell + at, room - at, &rowid);
        if (n == 0) return 0;
        at += n;
    }
    size = at + btree_local(b, payload);
    if (size < NL_BTREE_MIN_CELL) size = NL_BTREE_MIN_CELL;
    return size <= room ? (uint32_t)size : 0;
}

nl_cell nl_btree_cell(const nl_btree *b, const uint8_t *page, uint32_t i)
{
    nl_cell none = {NULL, 0};

    if (i >= b->cells) return none;
    uint32_t at = nl_btree_pointer(b, page, i);
    if (at >= b->size) return none;
    return (nl_cell){page + at, nl_btree_cell_size(b, page + at, b->size - at)};
}

/* ---------------------------------------------------------------- free space */

/* Bytes free for cells and pointers together; 0 when the chain of freeblocks makes no sense. */
static uint32_t btree_free(const nl_btree *b, const uint8_t *page)
{
    uint32_t from = b->array + 2 * b->cells;
    uint32_t free = page[b->head + BTREE_FRAGMENTS] + btree_content(b, page);
    uint32_t at = btree_get(page + b->head + BTREE_FREEBLOCK);

    while (at) {
        if (at > b->size - 4) return 0;
        free += btree_get(page + at + 2);
        uint32_t next = btree_get(page + at);
        if (next && next <= at) return 0;
        at = next;
    }
    return free > from ? free - from : 0;
}

/* pageFindSlot: the first freeblock that is large enough; it is used from its end on. 0: none.
** */
static uint32_t btree_slot(const nl_btree *b, uint8_t *page, uint32_t n)
{
    uint32_t link = b->head + BTREE_FREEBLOCK, at = btree_get(page + link);
    uint8_t *fragments = page + b->head + BTREE_FRAGMENTS;

    while (at && at <= b->size - n) { /* n >= 4: the freeblock's own header is inside */
        uint32_t size = btree_get(page + at + 2);
        if (size >= n && size - n < 4) {
            if (*fragments > BTREE_MAX_FRAGMENTS) return 0;
            memmove(page + link, page + at, 2);
            *fragments = (uint8_t)(*fragments + size - n);
            return at;
        }
        if (size >= n) {
            if (at + size > b->size) return 0;
            btree_put(page + at + 2, size - n);
            return at + size - n;
        }
        link = at;
        at = btree_get(page + at);
        if (at <= link) return 0;
    }
    return 0;
}

/* defragmentPage's short way: one or two freeblocks, the cells before them move up. Answers
** where the content begins then; 0: this way is not open. */
static uint32_t btree_close_gaps(const nl_btree *b, uint8_t *page)
{
    uint32_t top = btree_content(b, page), first, second, size, more = 0;

    first = btree_get(page + b->head + BTREE_FREEBLOCK);
    if (first == 0 || first > b->size - 4 || top >= first) return 0;
    second = btree_get(page + first);
    size = btree_get(page + first + 2);
    if (second > b->size - 4 || (second && btree_get(page + second))) return 0;
    if (second) {
        more = btree_get(page + second + 2);
        if (first + size > second || second + more > b->size) return 0;
        memmove(page + first + size + more, page + first + size, second - (first + size));
        size += more;
    } else if (first + size > b->size) {
        return 0;
    }
    memmove(page + top + size, page + top, first - top);
    for (uint32_t i = 0; i < b->cells; i++) {
        uint8_t *pointer = page + b->array + 2 * i;
        uint32_t at = btree_get(pointer);
        if (at < first) btree_put(pointer, at + size);
        else if (at < second) btree_put(pointer, at + more);
    }
    return top + size;
}

/* The long way: every cell is laid down again, in the order of the keys, from the end on. */
static uint32_t btree_pack(const nl_btree *b, uint8_t *page, uint8_t *spare)
{
    uint32_t top = b->size, end = b->array + 2 * b->cells;

    memcpy(spare, page, b->size);
    for (uint32_t i = 0; i < b->cells; i++) {
        nl_cell cell = nl_btree_cell(b, spare, i);
        if (cell.size == 0 || cell.size > top - end) return 0;
        top -= cell.size;
        memcpy(page + top, cell.bytes, cell.size);
        btree_put(page + b->array + 2 * i, top);
    }
    page[b->head + BTREE_FRAGMENTS] = 0;
    return top;
}

/* defragmentPage. `most`: fragments that may stay if the short way is open. */
static int btree_defragment(const nl_btree *b, uint8_t *page, uint32_t most, uint8_t *spare)
{
    uint32_t end = b->array + 2 * b->cells, top = 0;

    if (page[b->head + BTREE_FRAGMENTS] <= most) top = btree_close_gaps(b, page);
    if (top == 0) top = btree_pack(b, page, spare);
    if (top < end || top > b->size) return 0;
    btree_put(page + b->head + BTREE_CONTENT, top);
    btree_put(page + b->head + BTREE_FREEBLOCK, 0);
    memset(page + end, 0, top - end);
    return 1;
}

/* allocateSpace: where n bytes go; 0: nowhere. */
static uint32_t btree_allocate(const nl_btree *b, uint8_t *page, uint32_t n, uint8_t *spare)
{
    uint32_t gap = b->array + 2 * b->cells, top = btree_content(b, page), at;

    if (gap > top || top > b->size || n > b->size) return 0;
    if (btree_get(page + b->head + BTREE_FREEBLOCK) && gap + 2 <= top) {
        at = btree_slot(b, page, n);
        if (at) return at > gap ? at : 0;
    }
    if (gap + 2 + n > top) {
        uint32_t free = btree_free(b, page);
        if (free < 2 + n) return 0;
        if (!btree_defragment(b, page, free - 2 - n < 4 ? free - 2 - n : 4, spare)) return 0;
        top = btree_content(b, page);
        if (gap + 2 + n > top) return 0;
    }
    top -= n;
    btree_put(page + b->head + BTREE_CONTENT, top);
    return top;
}

/* freeSpace: give back n bytes, merged with the freeblocks beside them. */
static int btree_release(const nl_btree *b, uint8_t *page, uint32_t at, uint32_t n, int wipe)
{
    uint32_t first = b->head + BTREE_FREEBLOCK, link = first, next, end = at + n, fragments = 0;
    uint32_t top = btree_content(b, page);
    uint8_t *wasted = page + b->head + BTREE_FRAGMENTS;

    for (next = btree_get(page + link); next && next < at; next = btree_get(page + link)) {
        if (next <= link) return 0;
        link = next; /* < at, and a cell of four bytes lies there: within the page */
    }
    if (next > b->size - 4) return 0;
    if (next && end + 3 >= next) {
        if (end > next) return 0;
        fragments = next - end;
        end = next + btree_get(page + next + 2);
        if (end > b->size) return 0;
        next = btree_get(page + next);
    }
    if (link > first) {
        uint32_t before = link + btree_get(page + link + 2);
        if (before > at) return 0;
        if (before + 3 >= at) {
            fragments += at - before;
            at = link;
        }
    }
    if (fragments > *wasted) return 0;
    *wasted = (uint8_t)(*wasted - fragments);
    if (wipe) memset(page + at, 0, end - at);
    if (at <= top) { /* the gap grows */
        if (at < top || link != first) return 0;
        btree_put(page + first, next);
        btree_put(page + b->head + BTREE_CONTENT, end);
        return 1;
    }
    if (at != link) btree_put(page + link, at);
    btree_put(page + at, next);
    btree_put(page + at + 2, end - at);
    return 1;
}

/* ---------------------------------------------------------------- edits */

static void btree_link(nl_btree *b, uint8_t *page, uint32_t i, uint32_t at)
{
    uint8_t *pointer = page + b->array + 2 * i;

    memmove(pointer + 2, pointer, 2 * (size_t)(b->cells - i));
    btree_put(pointer, at);
    b->cells++;
    btree_put(page + b->head + BTREE_CELLS, b->cells);
}

int nl_btree_insert(nl_btree *b, uint8_t *page, uint32_t i, nl_cell cell, uint8_t *spare)
{
    if (i > b->cells || cell.size < NL_BTREE_MIN_CELL) return 0;
    uint32_t at = btree_allocate(b, page, cell.size, spare);
    if (at == 0 || at + cell.size > b->size || b->array + 2 * b->cells + 2 > at) return 0;
    memcpy(page + at, cell.bytes, cell.size);
    btree_link(b, page, i, at);
    return 1;
}

int nl_btree_delete(nl_btree *b, uint8_t *page, uint32_t i, uint32_t n, int wide, int wipe)
{
    uint32_t from[10], to[10], runs = 0; /* as many as pageFreeArray collects before it frees */

    if (n == 0 || i >= b->cells || n > b->cells - i) return 0;
    for (uint32_t k = i; k < i + n; k++) {
        nl_cell cell = nl_btree_cell(b, page, k);
        if (cell.size == 0) return 0;
        uint32_t at = (uint32_t)(cell.bytes - page), end = at + cell.size, r;
        for (r = 0; r < runs; r++) {
            if (from[r] == end) {
                from[r] = at;
                break;
            }
            if (to[r] == at) {
                to[r] = end;
                break;
            }
        }
        if (r < runs) continue;
        if (runs == 10) {
            for (r = 0; r < runs; r++) {
                if (!btree_release(b, page, from[r], to[r] - from[r], wipe)) return 0;
            }
            runs = 0;
        }
        from[runs] = at;
        to[runs++] = end;
    }
    for (uint32_t r = 0; r < runs; r++) {
        if (!btree_release(b, page, from[r], to[r] - from[r], wipe)) return 0;
    }

    uint8_t *pointer = page + b->array + 2 * i;
    size_t move = 2 * (size_t)(b->cells - i - (wide ? 0 : n));
    if (b->array + 2 * (i + n) + move > b->size) return 0;
    memmove(pointer, pointer + 2 * n, move);
    b->cells -= n;
    btree_put(page + b->head + BTREE_CELLS, b->cells);
    if (b->cells == 0) nl_btree_clear(b, page, b->size, b->head, b->kind);
    return 1;
}

int nl_btree_rebuild(nl_btree *b, uint8_t *page, const nl_cell *cells, uint32_t n)
{
    uint32_t end = b->array + 2 * n, top = b->size;

    if (n > b->size / 2 || end > b->size) return 0;
    for (uint32_t i = 0; i < n; i++) {
        if (cells[i].size > top - end) return 0;
        top -= cells[i].size;
        memcpy(page + top, cells[i].bytes, cells[i].size);
        btree_put(page + b->array + 2 * i, top);
    }
    b->cells = n;
    btree_put(page + b->head + BTREE_FREEBLOCK, 0);
    btree_put(page + b->head + BTREE_CELLS, n);
    btree_put(page + b->head + BTREE_CONTENT, top);
    page[b->head + BTREE_FRAGMENTS] = 0;
    return 1;
}

int nl_btree_lay(
    nl_btree *b, uint8_t *page, const nl_cell *cells, uint32_t n, const uint8_t *pointers)
{
    if (n > b->size / 2 || b->array + 2 * n > b->size) return 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = btree_get(pointers + 2 * i);
        if (at > b->size || cells[i].size > b->size - at) return 0;
        memcpy(page + at, cells[i].bytes, cells[i].size);
    }
    memcpy(page + b->array, pointers, 2 * (size_t)n);
    b->cells = n;
    btree_put(page + b->head + BTREE_CELLS, n);
    return 1;
}
