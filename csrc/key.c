/*
** key.c - a user's key: 32 bytes or a passphrase. Pure.
**
** It seals nothing itself. A file has data keys of its own, drawn at random when it is made; the header
** block holds them wrapped by a key that is derived from the user's and the block's salt (header_block.c).
** So one user key may serve any number of files.
*/
#include "key.h"

#include <string.h>

#include "aead.h"

/* A result of scrypt. Written once, and without a lock: one that a thread holds during fork() would be held
** for ever in the child. */
typedef struct key_known {
    int state;                   /* atomic: KNOWN_EMPTY, then _WRITING, then _READY */
    nl_key_form form;
    uint8_t key[NL_KEY_SIZE];
} key_known;

enum { KNOWN_EMPTY, KNOWN_WRITING, KNOWN_READY, KNOWN = 8 };

struct nl_key {
    int refs;                    /* atomic */
    nl_key *successor;           /* atomic: what it is now (nl_key_become); NULL: itself */
    int phrase;
    int log2_n;
    size_t n;
    uint8_t bytes[NL_PHRASE_MAX];
    key_known known[KNOWN];      /* of the first files that it opened */
};

static int key_new(const uint8_t *bytes, size_t n, int phrase, int log2_n, nl_key **out, nl_error *err)
{
    *out = NULL;
    nl_key *key = nl_secret_alloc(sizeof *key);
    if (!key) return nl_fail(err, NL_E_NOMEM, "no memory for a key");
    key->refs = 1;
    key->phrase = phrase;
    key->log2_n = log2_n;
    key->n = n;
    memcpy(key->bytes, bytes, n);
    *out = key;
    return NL_OK;
}

/* What is in a key never changes, so that threads may use it without a lock: it gets a successor instead. */
static nl_key *key_now(const nl_key *key)
{
    const nl_key *next;

    while ((next = __atomic_load_n(&key->successor, __ATOMIC_ACQUIRE)) != NULL) key = next;
    return (nl_key *)(uintptr_t)key;
}

int nl_key_become(nl_key *key, const nl_key *other, nl_error *err)
{
    const nl_key *from = key_now(other);
    nl_key *copy, *nobody = NULL;

    /* A copy, which nobody else has: no chain of successors ever comes back to where it began. */
    int rc = key_new(from->bytes, from->n, from->phrase, from->log2_n, &copy, err);
    if (rc != NL_OK) return rc;
    while (!__atomic_compare_exchange_n(&key_now(key)->successor, &nobody, copy, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
        nobody = NULL;
    }
    return NL_OK;
}

int nl_key_same(const nl_key *a, const nl_key *b)
{
    a = key_now(a);
    b = key_now(b);
    return a->phrase == b->phrase && a->n == b->n && nl_same(a->bytes, b->bytes, a->n);
}

int nl_key_raw(const uint8_t *key, size_t n, nl_key **out, nl_error *err)
{
    *out = NULL;
    if (n != NL_KEY_SIZE) return nl_fail(err, NL_E_KEY, "a key has 32 bytes, not %zu", n);
    return key_new(key, n, 0, 0, out, err);
}

int nl_key_phrase(const uint8_t *phrase, size_t n, int log2_n, nl_key **out, nl_error *err)
{
    *out = NULL;
    if (n == 0) return nl_fail(err, NL_E_KEY, "the passphrase is empty");
    if (n > NL_PHRASE_MAX) return nl_fail(err, NL_E_KEY, "a passphrase above %d bytes", NL_PHRASE_MAX);
    if (log2_n < 10 || log2_n > NL_SCRYPT_MAX) {
        return nl_fail(err, NL_E_KEY, "scrypt costs 2^10 to 2^%d, not 2^%d", NL_SCRYPT_MAX, log2_n);
    }
    return key_new(phrase, n, 1, log2_n, out, err);
}

nl_key *nl_key_share(nl_key *key)
{
    __atomic_add_fetch(&key->refs, 1, __ATOMIC_RELAXED);
    return key;
}

void nl_key_free(nl_key *key)
{
    while (key && __atomic_sub_fetch(&key->refs, 1, __ATOMIC_ACQ_REL) == 0) {
        nl_key *next = key->successor;
        nl_secret_free(key, sizeof *key);
        key = next;
    }
}

int nl_key_random(uint8_t out[NL_KEY_SIZE], nl_error *err)
{
    return nl_random(out, NL_KEY_SIZE, err);
}

int nl_key_form_new(const nl_key *key, nl_key_form *out, nl_error *err)
{
    key = key_now(key);
    out->phrase = key->phrase;
    out->log2_n = key->log2_n;
    return nl_random(out->salt, sizeof out->salt, err);
}

static const key_known *key_find(nl_key *key, const nl_key_form *form)
{
    for (int i = 0; i < KNOWN; i++) {
        const key_known *k = &key->known[i];
        if (__atomic_load_n(&k->state, __ATOMIC_ACQUIRE) != KNOWN_READY) continue;
        if (k->form.log2_n == form->log2_n && memcmp(k->form.salt, form->salt, NL_SALT_SIZE) == 0) return k;
    }
    return NULL;
}

static void key_remember(nl_key *key, const nl_key_form *form, const uint8_t made[NL_KEY_SIZE])
{
    for (int i = 0; i < KNOWN; i++) {
        key_known *k = &key->known[i];
        int empty = KNOWN_EMPTY;
        if (!__atomic_compare_exchange_n(&k->state, &empty, KNOWN_WRITING, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) continue;
        k->form = *form;
        memcpy(k->key, made, NL_KEY_SIZE);
        __atomic_store_n(&k->state, KNOWN_READY, __ATOMIC_RELEASE);
        return;
    }
}

int nl_key_wrapping(nl_key *key, const nl_key_form *form, uint8_t out[NL_KEY_SIZE], nl_error *err)
{
    static const char purpose[] = "nearlite: wraps data keys"; /* its 0 byte, too, before the salt */
    uint8_t info[sizeof purpose + NL_SALT_SIZE];
    int rc = NL_OK;

    key = key_now(key);
    if (form->phrase != key->phrase) {
        return nl_fail(err, NL_E_KEY, form->phrase ? "the file was sealed with a passphrase, not with a key"
                                                   : "the file was sealed with a key, not with a passphrase");
    }
    if (!key->phrase) {
        memcpy(info, purpose, sizeof purpose);
        memcpy(info + sizeof purpose, form->salt, NL_SALT_SIZE);
        return nl_key_derive(key->bytes, info, sizeof info, out, err);
    }
    const key_known *known = key_find(key, form);
    if (known) {
        memcpy(out, known->key, NL_KEY_SIZE);
        return NL_OK;
    }
    rc = nl_key_stretch(key->bytes, key->n, form->salt, form->log2_n, out, err);
    if (rc == NL_OK) key_remember(key, form, out);
    return rc;
}
