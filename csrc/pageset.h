/*
** pageset.h - the verified chunk, seen from our own C (the applier). Pure: no I/O, no SQLite.
**
** The struct is laid open for reading only: nl_chunk_verify is its one constructor, so that holding
** a chunk means that every condition listed in pageset.c was checked.
*/
#ifndef NL_PAGESET_H
#define NL_PAGESET_H

#include "nl.h"

struct nl_chunk {
    uint32_t page_size;
    uint32_t count;
    const uint8_t *pages;   /* borrowed: count * page_size bytes, in the order of pgnos */
    uint32_t *pgnos;        /* owned: strictly ascending, at least one */
    uint64_t *hashes;       /* owned: nl_page_hash of each */
    uint32_t (*shares)[2];  /* owned: share of each in a WAL's checksum (frame.h), in the machine's
                            ** byte order; NULL in a snapshot, which goes into no WAL */
};

/* All chunks of a set whose every byte is in memory: `in` is what follows the set's header, to its end.
** NL_E_PIECEMEAL when some are compressed or there are more than `room`. On failure none is left. Each
** chunk borrows `in` and is freed by the caller. */
int nl_set_verify(
    const nl_set_header *set,
    const uint8_t *in,
    size_t n,
    nl_chunk **out,         /* OUT: `count` of them */
    uint32_t room,
    uint32_t *count,        /* OUT */
    nl_error *err);

#endif
