/*
** delta_tokens.h - records packed into copies and literals (delta.c has the format). Pure.
*/
#ifndef NL_DELTA_TOKENS_H
#define NL_DELTA_TOKENS_H

#include <stddef.h>
#include <stdint.h>

#define TOKENS_SLOTS 4096u /* entries of a table from hashes of four bytes to where they are */

typedef struct delta_tokens {
    const uint8_t *dictionary;      /* base to copy from, `page_size` bytes; NULL: none */
    uint32_t page_size;
    int indexed;                    /* 1: `base_at` is that of the dictionary */
    uint8_t *records;               /* owned by the encoder: history, then the record at `used` */
    size_t used;
    uint16_t base_at[TOKENS_SLOTS]; /* offset + 1 in the dictionary; 0: none */
    uint32_t recent[TOKENS_SLOTS];  /* offset + 1 in `records` */
} delta_tokens;

void delta_tokens_open(delta_tokens *t, uint32_t page_size, uint8_t *records);
void delta_tokens_base(delta_tokens *t, const uint8_t *base);

/* Take `size` bytes as the next record and write what stands for them, its length included, to
** `out`; answers the number of bytes, or 0 when `room` is too small. */
size_t delta_tokens_pack(
    delta_tokens *t, const uint8_t *bytes, uint32_t size, uint8_t *out, size_t room);

#endif
