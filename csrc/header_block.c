/*
** header_block.c - see header_block.h.
**
** The block holds two copies, so that one is whole whatever happens while the other is written:
**
**     offset  size  a copy (2048 bytes)
**          0    16  "nearlite sealed" and a zero byte
**         16     4  version, 1
**         20     4  page size
**         24     1  cipher, 1: AES-256-GCM
**         25     3  zeros
**         28     2  generation of the data key that seals, from 1
**         30     2  generation of the one before it, while the key is changed, else 0
**         32    16  file id, random
**         48     8  sequence: the copy with the higher number counts
**         56     8  zeros
**         64   128  first lock
**        192   128  second lock, while the key is changed, else zeros
**        320  1712  zeros
**       2032    16  the first half of the SHA-256 of all before it
**
**     a lock: the data keys, wrapped by a key that is derived from a user's key
**          0     1  0: none, 1: a key of 32 bytes, 2: a passphrase
**          1     1  log2 of scrypt's N (r = 8, p = 1), or 0
**          2     2  zeros
**          4    16  salt
**         20    12  nonce
**         32    64  AES-256-GCM of both data keys; aad: bytes 0..63 of the copy, 0..31 of the lock
**         96    16  tag
**        112    16  zeros
**
** The SHA-256 tells a torn copy, nothing more: who forges one is stopped by the tags, which cover every
** field. Zeros must be zeros, so that a later version can give them a meaning.
*/
#include "header_block.h"

#include <string.h>

#include "aead.h"
#include "bytes.h"
#include "frame.h"

enum {
    COPY = NL_BLOCK_SIZE / 2,
    FIXED = 64,                  /* bytes before the locks */
    LOCK = 128,
    LOCKS = 2,
    LOCK_HEAD = 32,
    DIGEST_AT = COPY - 16,
    DIGEST = 16,
    VERSION = 1,
    CIPHER = 1,
    KIND_KEY = 1,
    KIND_PHRASE = 2
};

static const uint8_t block_magic[16] = "nearlite sealed";

int nl_block_is_sealed(const uint8_t *first)
{
    return memcmp(first, block_magic, sizeof block_magic) == 0;
}

static int block_zeros(const uint8_t *p, size_t n)
{
    uint8_t any = 0;

    for (size_t i = 0; i < n; i++) any |= p[i];
    return any == 0;
}

static uint8_t *block_lock(uint8_t *copy, int i)
{
    return copy + FIXED + (size_t)i * LOCK;
}

/* ------------------------------------------------------------------ reading */

/* The fields of a lock; 0 if they are not as they must be. */
static int block_form(const uint8_t *lock, nl_key_form *out)
{
    if (!block_zeros(lock + 2, 2) || !block_zeros(lock + 112, 16)) return 0;
    out->phrase = lock[0] == KIND_PHRASE;
    out->log2_n = lock[1];
    memcpy(out->salt, lock + 4, NL_SALT_SIZE);
    if (lock[0] == KIND_KEY) return lock[1] == 0;
    return lock[0] == KIND_PHRASE && lock[1] >= 1 && lock[1] <= NL_SCRYPT_MAX;
}

static int block_fields(const uint8_t *copy, nl_block *out, nl_error *err)
{
    out->page_size = nl_get32(copy + 20);
    out->generation = nl_get32(copy + 28) >> 16;
    out->previous = nl_get32(copy + 28) & 0xffff;
    out->sequence = nl_get64(copy + 48);
    out->phrases = 0;
    memcpy(out->file_id, copy + 32, sizeof out->file_id);
    if (nl_get32(copy + 16) != VERSION || copy[24] != CIPHER) {
        return nl_fail(err, NL_E_FORMAT, "the file is sealed in version %u, cipher %u: this nearlite knows 1 and 1",
                       nl_get32(copy + 16), copy[24]);
    }
    int whole = nl_page_size_valid(out->page_size) && out->generation > 0 &&
                out->previous != out->generation && block_zeros(copy + 25, 3) && block_zeros(copy + 56, 8) &&
                block_zeros(copy + FIXED + LOCKS * LOCK, DIGEST_AT - FIXED - LOCKS * LOCK);
    for (int i = 0; whole && i < LOCKS; i++) {
        const uint8_t *lock = copy + FIXED + i * LOCK;
        nl_key_form form;
        if (i > 0 && block_zeros(lock, LOCK)) continue;
        whole = block_form(lock, &form);
        if (form.phrase) out->phrases |= 1u << i;
    }
    if (!whole) return nl_fail(err, NL_E_FORMAT, "the header block has impossible fields");
    return NL_OK;
}

static int block_whole(const uint8_t *copy)
{
    uint8_t digest[DIGEST];

    if (!nl_block_is_sealed(copy)) return 0;
    if (nl_digest(copy, DIGEST_AT, digest, DIGEST, NULL) != NL_OK) return 0;
    return memcmp(digest, copy + DIGEST_AT, DIGEST) == 0;
}

/* The copy that counts, or NULL. */
static const uint8_t *block_copy(const uint8_t *block)
{
    const uint8_t *one = block_whole(block) ? block : NULL;
    const uint8_t *two = block_whole(block + COPY) ? block + COPY : NULL;

    if (one && two) return nl_get64(two + 48) > nl_get64(one + 48) ? two : one;
    return one ? one : two;
}

static int block_newest(const uint8_t *block, const uint8_t **copy, nl_block *out, nl_error *err)
{
    memset(out, 0, sizeof *out);
    *copy = block_copy(block);
    if (*copy) return block_fields(*copy, out, err);
    if (nl_block_is_sealed(block) || nl_block_is_sealed(block + COPY)) {
        return nl_fail(err, NL_E_FORMAT, "the header block of the sealed file is damaged in both of its copies");
    }
    return nl_fail(err, NL_E_FORMAT, "the file is not a sealed database");
}

int nl_block_look(const uint8_t *block, nl_block *out, nl_error *err)
{
    const uint8_t *copy;

    return block_newest(block, &copy, out, err);
}

int nl_block_unwrap(
    const uint8_t block[NL_BLOCK_SIZE], nl_key *key, nl_block *what, nl_data_keys *data, nl_error *err)
{
    const uint8_t *copy;
    uint8_t aad[FIXED + LOCK_HEAD], wrapping[NL_KEY_SIZE];
    nl_aead *aead = NULL;

    int rc = block_newest(block, &copy, what, err);
    if (rc != NL_OK) return rc;
    memcpy(aad, copy, FIXED);
    rc = NL_E_KEY;
    for (int i = 0; rc == NL_E_KEY && i < LOCKS; i++) {
        const uint8_t *lock = copy + FIXED + i * LOCK;
        nl_key_form form;
        if (!block_form(lock, &form)) continue; /* no second lock */
        memcpy(aad + FIXED, lock, LOCK_HEAD);
        rc = nl_key_wrapping(key, &form, wrapping, err);
        if (rc == NL_OK) rc = nl_aead_new(wrapping, &aead, err);
        if (rc == NL_OK) {
            rc = nl_aead_open(aead, lock + 20, aad, sizeof aad, lock + 32, sizeof *data, lock + 96,
                              (uint8_t *)data, err);
        }
        nl_aead_free(aead);
        aead = NULL;
        if (rc == NL_E_TAG) rc = nl_fail(err, NL_E_KEY, "this is not the key that the file was sealed with");
    }
    nl_wipe(wrapping, sizeof wrapping);
    return rc;
}

/* ------------------------------------------------------------------ writing */

static int block_wrap_lock(uint8_t *copy, uint8_t *lock, nl_key *key, const nl_data_keys *data, nl_error *err)
{
    uint8_t aad[FIXED + LOCK_HEAD], wrapping[NL_KEY_SIZE];
    nl_aead *aead = NULL;
    nl_key_form form;

    int rc = nl_key_form_new(key, &form, err);
    if (rc != NL_OK) return rc;
    lock[0] = form.phrase ? KIND_PHRASE : KIND_KEY;
    lock[1] = (uint8_t)form.log2_n;
    memcpy(lock + 4, form.salt, NL_SALT_SIZE);
    rc = nl_random(lock + 20, NL_NONCE_SIZE, err);
    if (rc == NL_OK) rc = nl_key_wrapping(key, &form, wrapping, err);
    if (rc == NL_OK) rc = nl_aead_new(wrapping, &aead, err);
    if (rc == NL_OK) {
        memcpy(aad, copy, FIXED);
        memcpy(aad + FIXED, lock, LOCK_HEAD);
        rc = nl_aead_seal(aead, lock + 20, aad, sizeof aad, (const uint8_t *)data, sizeof *data, lock + 32,
                          lock + 96, err);
    }
    nl_aead_free(aead);
    nl_wipe(wrapping, sizeof wrapping);
    return rc;
}

int nl_block_wrap(
    const nl_block *what, nl_key *const keys[2], const nl_data_keys *data, uint8_t *copy, nl_error *err)
{
    memset(copy, 0, COPY);
    memcpy(copy, block_magic, sizeof block_magic);
    nl_put32(copy + 16, VERSION);
    nl_put32(copy + 20, what->page_size);
    copy[24] = CIPHER;
    nl_put32(copy + 28, what->generation << 16 | what->previous);
    memcpy(copy + 32, what->file_id, sizeof what->file_id);
    nl_put64(copy + 48, what->sequence);
    for (int i = 0; i < LOCKS && keys[i]; i++) {
        int rc = block_wrap_lock(copy, block_lock(copy, i), keys[i], data, err);
        if (rc != NL_OK) return rc;
    }
    return nl_digest(copy, DIGEST_AT, copy + DIGEST_AT, DIGEST, err);
}

/* ------------------------------------------------------------------ another key */

int nl_block_begin_rekey(const uint8_t block[NL_BLOCK_SIZE], nl_key *old, nl_key *new, uint8_t *copy, nl_error *err)
{
    nl_key *const keys[2] = {new, old};
    nl_data_keys data, other;
    nl_block what;

    int rc = nl_block_unwrap(block, old, &what, &data, err);
    if (rc == NL_OK && what.previous != 0) {
        rc = nl_block_unwrap(block, new, &what, &other, err);
        if (rc == NL_OK) rc = NL_E_POSITION;
        else nl_fail(err, rc, "another change of its key was begun and has to be finished first, with the key it was begun with");
        nl_wipe(&other, sizeof other);
    } else if (rc == NL_OK && what.generation == 0xffff) {
        rc = nl_fail(err, NL_E_TOO_BIG, "its key was changed 65,534 times: copy it into a new file");
    } else if (rc == NL_OK) {
        what.previous = what.generation++;
        what.sequence++;
        memcpy(data.previous, data.current, NL_KEY_SIZE);
        rc = nl_random(data.current, NL_KEY_SIZE, err);
        if (rc == NL_OK) rc = nl_block_wrap(&what, keys, &data, copy, err);
    }
    nl_wipe(&data, sizeof data);
    return rc;
}

int nl_block_end_rekey(const uint8_t block[NL_BLOCK_SIZE], nl_key *new, uint8_t *copy, nl_error *err)
{
    nl_key *const keys[2] = {new, NULL};
    nl_data_keys data;
    nl_block what;

    int rc = nl_block_unwrap(block, new, &what, &data, err);
    if (rc == NL_OK) {
        what.previous = 0;
        what.sequence++;
        nl_wipe(data.previous, NL_KEY_SIZE);
        rc = nl_block_wrap(&what, keys, &data, copy, err);
    }
    nl_wipe(&data, sizeof data);
    return rc;
}

int nl_block_older(const uint8_t block[NL_BLOCK_SIZE])
{
    return block_copy(block) == block;
}
