/*
** frame.h - what our own C needs of frame.c beside nl_api.h: frame headers taken apart.
*/
#ifndef NL_FRAME_H
#define NL_FRAME_H

#include "nl.h"

typedef struct nl_frame_header {
    uint32_t pgno;
    uint32_t commit;   /* database size in pages after the commit, or 0: not a commit frame */
    uint32_t salt[2];
    uint32_t sum[2];
} nl_frame_header;

/* The fields, without any judgement: nl_frames_verify judges. */
void nl_frame_header_decode(const uint8_t in[NL_FRAME_HEADER_SIZE], nl_frame_header *out);

/* The checksum is linear, so that a page's share of it can be found before the frame's place in the
** WAL is known: its checksum from (0, 0), in the byte order of the chain. This writes the 24 bytes
** before a page with that share and continues the chain. */
void nl_frame_header_encode(
    nl_wal_chain *chain, uint32_t pgno, uint32_t commit, const uint32_t share[2],
    uint8_t out[NL_FRAME_HEADER_SIZE]);

/* 1 if the chain reads words in this machine's byte order, as every WAL begun here does. */
int nl_wal_native(const nl_wal_chain *chain);

/* 1 if `page_size` is one SQLite knows: a power of two, 512..65536. */
int nl_page_size_valid(uint32_t page_size);

#endif
