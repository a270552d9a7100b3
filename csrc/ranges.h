/*
** ranges.h - runs of page-hash ranges, as a replica sends them for repair (docs/formats.md). Pure.
**
** A run is a first page, a count and a span: `count` ranges of 2^span pages each follow one another.
** Each range has a hash, the XOR of its pages' hashes; a range of one page has the page's own. A run
** of pages that are wanted, whatever they are, has no hashes.
*/
#ifndef NL_RANGES_H
#define NL_RANGES_H

#include "nl.h"

typedef struct nl_run {
    uint32_t first;         /* page */
    uint32_t count;         /* ranges; of wanted pages: pages */
    uint32_t span;          /* log2 of pages in a range, or NL_SPAN_WANTED */
    const uint8_t *hashes;  /* 8 * count bytes, big-endian; NULL for wanted pages */
} nl_run;

/* The run at *at; 0 at the end. Only for bytes that nl_ranges_check has accepted. */
int nl_ranges_next(const uint8_t *in, size_t n, size_t *at, nl_run *out);

/* XOR of the hashes of pages first .. first + span - 1, as far as the table reaches. */
static inline uint64_t nl_range_hash(
    const uint64_t *table, uint32_t pages, uint64_t first, uint64_t span)
{
    uint64_t sum = 0, end = first + span;

    if (end > (uint64_t)pages + 1) end = (uint64_t)pages + 1;
    for (uint64_t p = first; p < end; p++) sum ^= table[p - 1];
    return sum;
}

#endif
