/*
** aead.h - AES-256-GCM and what makes its keys, from libcrypto. Pure: no I/O, no SQLite.
**
** Nothing here invents cryptography: AES-256-GCM is NIST SP 800-38D, the derivations are HKDF-Expand
** (RFC 5869, 2.3: our input keys are uniform, its Extract step is not needed) and scrypt (RFC 7914).
*/
#ifndef NL_AEAD_H
#define NL_AEAD_H

#include "nl.h"

#define NL_INFO_MAX 64 /* bytes that say what a derived key is for */

/* A key and its schedule, used again for every message. One thread at a time. */
typedef struct nl_aead nl_aead;

int nl_aead_new(const uint8_t key[NL_KEY_SIZE], nl_aead **out, nl_error *err);
void nl_aead_free(nl_aead *a);  /* wipes; NULL is allowed */

/* The output has the input's length and may be the same memory. `aad` is authenticated and not sealed. */
int nl_aead_seal(
    nl_aead *a,
    const uint8_t nonce[NL_NONCE_SIZE],
    const uint8_t *aad,
    size_t aad_n,
    const uint8_t *in,
    size_t n,
    uint8_t *out,
    uint8_t tag[NL_TAG_SIZE],
    nl_error *err);

/* NL_E_TAG: these are not the bytes that were sealed with this key, nonce and aad; `out` is zeros then,
** and was anything while it ran. */
int nl_aead_open(
    nl_aead *a,
    const uint8_t nonce[NL_NONCE_SIZE],
    const uint8_t *aad,
    size_t aad_n,
    const uint8_t *in,
    size_t n,
    const uint8_t tag[NL_TAG_SIZE],
    uint8_t *out,
    nl_error *err);

/* Nonces, random, each of them once. Drawn by the many: to ask the kernel takes a third of the time of sealing
** a page. Zeros at the beginning. One thread at a time. */
#define NL_NONCES 64
typedef struct nl_nonces {
    unsigned left;
    uint8_t bytes[NL_NONCES * NL_NONCE_SIZE];
} nl_nonces;
int nl_nonce_draw(nl_nonces *from, uint8_t out[NL_NONCE_SIZE], nl_error *err);

/* The first `size` bytes, at most 32, of the SHA-256 of a string. */
int nl_digest(const uint8_t *in, size_t n, uint8_t *out, size_t size, nl_error *err);

/* HKDF-Expand with SHA-256 to one key; `info` says what it is for. */
int nl_key_derive(
    const uint8_t key[NL_KEY_SIZE], const uint8_t *info, size_t n, uint8_t out[NL_KEY_SIZE], nl_error *err);

/* scrypt with cost 2^log2_n, r = 8, p = 1: 2^(log2_n + 10) bytes of memory while it runs. */
int nl_key_stretch(
    const uint8_t *phrase,
    size_t n,
    const uint8_t salt[NL_SALT_SIZE],
    int log2_n,
    uint8_t out[NL_KEY_SIZE],
    nl_error *err);

/* 1 when n bytes are equal, in a time that does not depend on them. */
int nl_same(const uint8_t *a, const uint8_t *b, size_t n);

/* Random bytes nobody can predict. */
int nl_random(uint8_t *out, size_t n, nl_error *err);

/* Memory for secrets: locked where that is allowed, never in a core file, zeros again when it is given
** back. In whole pages: for few and long-lived things. */
void *nl_secret_alloc(size_t n);      /* zeros; NULL without memory */
void nl_secret_free(void *p, size_t n);
void nl_wipe(void *p, size_t n);      /* not optimised away */

#endif
