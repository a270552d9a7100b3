/*
** key.h - what codec.c needs of a user's key beside nl_api.h.
*/
#ifndef NL_KEY_H
#define NL_KEY_H

#include "nl.h"

/* How a key opens a file: part of the file's header block. */
typedef struct nl_key_form {
    int phrase;                  /* 1: a passphrase, 0: 32 bytes */
    int log2_n;                  /* of scrypt; 0 without a passphrase */
    uint8_t salt[NL_SALT_SIZE];
} nl_key_form;

/* One more owner, who gives it up by nl_key_free(). */
nl_key *nl_key_share(nl_key *key);

/* How a file that is sealed with this key now is to be opened later: a new salt. */
int nl_key_form_new(const nl_key *key, nl_key_form *out, nl_error *err);

/* The key that wraps a file's data keys. NL_E_KEY: a passphrase where the file wants a key, or the other way
** round. Results of scrypt are kept: it is meant to be slow, and a pool opens one file many times. */
int nl_key_wrapping(nl_key *key, const nl_key_form *form, uint8_t out[NL_KEY_SIZE], nl_error *err);

#endif
