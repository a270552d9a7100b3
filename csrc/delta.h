/*
** delta.h - what encoder and decoder of page deltas share (delta.c has the format). Pure.
*/
#ifndef NL_DELTA_H
#define NL_DELTA_H

#include "btree_page.h"
#include "nl.h"

/* Bits of the first byte of a record. */
#define DELTA_BLANK 1       /* start from zeros, not from the base */
#define DELTA_FRESH 2       /* make it an empty b-tree page; its kind (u8) follows */
#define DELTA_CELLS 4       /* edits of cells follow */
#define DELTA_WIPE 8        /* what these edits free becomes zero */
#define DELTA_REBUILD 16    /* they are edits of the list of cells, which is then laid out anew */
#define DELTA_COMMITS 32    /* page 1: commits (varint) counted by the file's change counter */
#define DELTA_OTHER 64      /* start from the base of another page of the set (varint: its index) */
#define DELTA_LAID 128      /* like REBUILD; where each cell lies (u16) follows the edits */

/* An edit begins with a varint: kind, whether it is the last, and from bit 3 on the index of a
** cell. */
#define DELTA_KIND 3
#define DELTA_LAST 4
#define DELTA_INDEX 8
#define DELTA_INSERT 0      /* cell: where SQLite would put it */
#define DELTA_DELETE 1      /* varint: 2 * (cells - 1) + wide */
#define DELTA_MOVE 2        /* varints: page, first cell, cells - 1: of a base, one after the other */

#define DELTA_HISTORY 16384u    /* bytes of earlier records that a copy reaches back to */
#define DELTA_COPY_MIN 4u       /* shortest copy, bytes */

#define DELTA_CHANGE_COUNTER 24 /* offsets within page 1 */
#define DELTA_FILE_PAGES 28
#define DELTA_VERSION_VALID 92

/* The bases of a set, as both sides see them. */
typedef struct delta_set {
    uint32_t page_size;             /* bytes */
    uint32_t pages;                 /* database size after, pages */
    uint32_t count;                 /* pages of the set */
    const uint32_t *pgnos;          /* ascending */
    const uint8_t *const *bases;    /* NULL: there is none */
    uint8_t *plain;                 /* page 1's base without what replicas keep there; or NULL */
} delta_set;

/* Base of page i of the set; NULL: none. */
static inline const uint8_t *delta_base(const delta_set *s, uint32_t i)
{
    return i == 0 && s->plain ? s->plain : s->bases[i];
}

static inline uint32_t delta_head(const delta_set *s, uint32_t i)
{
    return s->pgnos[i] == 1 ? 100 : 0;
}

/* Largest record, bytes. */
static inline size_t delta_room(uint32_t page_size)
{
    return 2 * (size_t)page_size;
}

/* Cells that a page has room for. */
static inline uint32_t delta_cells(uint32_t page_size)
{
    return page_size / (NL_BTREE_MIN_CELL + 2) + 1;
}

/* Bytes of earlier records to make room for. */
static inline size_t delta_history(const delta_set *s)
{
    size_t all = (s->count - 1) * delta_room(s->page_size);
    return all < 2 * DELTA_HISTORY ? all : 2 * DELTA_HISTORY;
}

/* NL_E_MISUSE unless the pages fit into one chunk. */
int delta_check(const delta_set *s, nl_error *err);
/* Make page 1's base plain in `plain` (page_size bytes), if it is in the set. */
void delta_plain_base(delta_set *s, uint8_t *plain);
void delta_make_plain(uint8_t *page);

#endif
