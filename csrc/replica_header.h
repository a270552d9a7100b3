/*
** replica_header.h - the twenty bytes of page 1 that make a file a replica (docs/formats.md).
**
**   18       1   file-format write version: 3, so that every SQLite refuses to write the file
**   72..75   4   lineage; its top 4 bits are the version of this header, 0
**   76..79   4   generation
**   80..83   4   commit frame
**   84..91   8   state hash at that position
**
** The header counts only while byte 18 is 3: a copy made by the backup API into a WAL-mode file
** keeps bytes 72..91 but is writable (rule C2).
*/
#ifndef NL_REPLICA_HEADER_H
#define NL_REPLICA_HEADER_H

#include "nl.h"

int nl_replica_header(
    const uint8_t *page1,
    nl_position *position,      /* OUT */
    uint64_t *hash,             /* OUT: state hash at that position */
    nl_error *err);             /* NL_E_NOT_REPLICA */

/* Turn a primary's page 1 into a replica's, in place. NL_E_FORMAT when it is not the first page
** of a WAL-mode database of this page size without reserved bytes. */
int nl_replica_page_one(
    uint8_t *page1,
    uint32_t page_size,
    nl_position position,
    uint64_t hash,
    nl_error *err);

/* A replica's page 1 as its primary has it, in place: the only form in which page 1 travels. */
void nl_replica_neutral(uint8_t *page1);

#endif
