/*
** btree_page.h - the cells of one b-tree page, edited the way SQLite edits them. Pure.
**
** For delta.c, which describes a page as edits of an older one: what is written here has to
** predict SQLite's own layout, not to be right about it. A wrong prediction costs bytes and
** nothing else. Every function takes arbitrary bytes for a page: it answers failure instead of
** leaving the page.
*/
#ifndef NL_BTREE_PAGE_H
#define NL_BTREE_PAGE_H

#include "nl.h"

typedef struct nl_btree {
    uint32_t size;      /* bytes of the page, all of them usable */
    uint32_t head;      /* offset of the b-tree header: 100 on page 1, else 0 */
    uint32_t array;     /* offset of the cell pointer array */
    uint32_t cells;     /* entries in it */
    uint8_t kind;       /* 2, 5 interior pages of index, table; 10, 13 their leaves */
} nl_btree;

typedef struct nl_cell {
    const uint8_t *bytes;
    uint32_t size;
} nl_cell;

#define NL_BTREE_MIN_CELL 4 /* bytes: no cell is smaller, so that it can become a freeblock */

/* 1 if the page has the header of a b-tree page and room for as many pointers as it claims. */
int nl_btree_read(nl_btree *b, const uint8_t *page, uint32_t size, uint32_t head);
/* Make it an empty b-tree page; answers 0 when there is no such kind. Only its header is
** written. */
int nl_btree_clear(nl_btree *b, uint8_t *page, uint32_t size, uint32_t head, uint8_t kind);

/* Bytes of the cell that begins at `cell`; 0 when that is more than the `room` bytes there. */
uint32_t nl_btree_cell_size(const nl_btree *b, const uint8_t *cell, size_t room);
/* Cell i; size 0 when there is none, or it reaches beyond the page. */
nl_cell nl_btree_cell(const nl_btree *b, const uint8_t *page, uint32_t i);
static inline uint32_t nl_btree_pointer(const nl_btree *b, const uint8_t *page, uint32_t i)
{
    return page[b->array + 2 * i] * 256u + page[b->array + 2 * i + 1];
}

/* Edits answer 1, or 0: impossible, then the page holds anything. `spare` has room for a page.
** */

/* Insert a cell before cell i where SQLite would put it: a freeblock, the gap, or after making
** one. */
int nl_btree_insert(nl_btree *b, uint8_t *page, uint32_t i, nl_cell cell, uint8_t *spare);
/* Delete cells i .. i+n-1. wide: the pointers are moved as a balance moves them, n entries
** further than the array reaches. wipe: what becomes free is zeroed (secure_delete). */
int nl_btree_delete(nl_btree *b, uint8_t *page, uint32_t i, uint32_t n, int wide, int wipe);
/* Lay out these cells anew, from the end of the page downwards. None of them may lie in `page`.
** */
int nl_btree_rebuild(nl_btree *b, uint8_t *page, const nl_cell *cells, uint32_t n);
/* The same at the offsets in `pointers`, n times a u16; what is free is not looked at. */
int nl_btree_lay(
    nl_btree *b, uint8_t *page, const nl_cell *cells, uint32_t n, const uint8_t *pointers);

#endif
