/*
** header_block.h - the first 4096 bytes of a sealed file: who may open it, and its data keys, wrapped. Pure.
*/
#ifndef NL_HEADER_BLOCK_H
#define NL_HEADER_BLOCK_H

#include "key.h"
#include "nl.h"

/* Two data keys: the one that seals, and while a key is changed the one before it, or zeros. */
typedef struct nl_data_keys {
    uint8_t current[NL_KEY_SIZE];
    uint8_t previous[NL_KEY_SIZE];
} nl_data_keys;

/* One copy of the block, NL_BLOCK_SIZE / 2 bytes, that each of the keys opens. keys[1] may be NULL. */
int nl_block_wrap(
    const nl_block *what, nl_key *const keys[2], const nl_data_keys *data, uint8_t *copy, nl_error *err);

/* The newest copy that is whole, opened. NL_E_KEY: not with this key; NL_E_FORMAT: see nl_block_look. */
int nl_block_unwrap(
    const uint8_t block[NL_BLOCK_SIZE], nl_key *key, nl_block *what, nl_data_keys *data, nl_error *err);

/* A change of key: the copy that begins it, which both keys open, with a new data key; and the one that ends
** it, which the new key opens alone. NL_E_POSITION: it was begun already, with this key: nothing to write. */
int nl_block_begin_rekey(
    const uint8_t block[NL_BLOCK_SIZE], nl_key *old, nl_key *new, uint8_t *copy, nl_error *err);
int nl_block_end_rekey(const uint8_t block[NL_BLOCK_SIZE], nl_key *new, uint8_t *copy, nl_error *err);

/* Which of the two copies does not count and is to be written first: 0 or 1. */
int nl_block_older(const uint8_t block[NL_BLOCK_SIZE]);

#endif
