/*
** aead.c - see aead.h. All of libcrypto's API that nearlite uses is in this file.
**
** Contexts are reused: preparing one costs more than sealing a page. The cipher is fetched once per
** process, because an implicit fetch takes a lock and a search in every EVP_CipherInit.
**
** What is wiped: contexts by EVP_CIPHER_CTX_free, keys in memory of nl_secret_alloc by its end, copies
** on the stack before the function returns.
*/
#include "aead.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

struct nl_aead {
    EVP_CIPHER_CTX *seal;
    EVP_CIPHER_CTX *open;
};

static pthread_once_t aead_once = PTHREAD_ONCE_INIT;
static EVP_CIPHER *aead_cipher; /* lives as long as the process */

static void aead_fetch(void)
{
    aead_cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
}

/* libcrypto gives reasons only for misuse of it; out of memory is the one that is left. */
static int aead_failed(nl_error *err, const char *what)
{
    return nl_fail(err, NL_E_NOMEM, "%s failed in libcrypto", what);
}

int nl_aead_new(const uint8_t key[NL_KEY_SIZE], nl_aead **out, nl_error *err)
{
    *out = NULL;
    pthread_once(&aead_once, aead_fetch);
    if (!aead_cipher) return nl_fail(err, NL_E_MISUSE, "this libcrypto has no AES-256-GCM");
    nl_aead *a = calloc(1, sizeof *a);
    if (!a) return nl_fail(err, NL_E_NOMEM, "no memory for a key");
    a->seal = EVP_CIPHER_CTX_new();
    a->open = EVP_CIPHER_CTX_new();
    if (!a->seal || !a->open || EVP_EncryptInit_ex2(a->seal, aead_cipher, key, NULL, NULL) != 1 ||
        EVP_DecryptInit_ex2(a->open, aead_cipher, key, NULL, NULL) != 1) {
        nl_aead_free(a);
        return aead_failed(err, "preparing a key");
    }
    *out = a;
    return NL_OK;
}

void nl_aead_free(nl_aead *a)
{
    if (!a) return;
    EVP_CIPHER_CTX_free(a->seal);
    EVP_CIPHER_CTX_free(a->open);
    free(a);
}

int nl_aead_seal(
    nl_aead *a, const uint8_t nonce[NL_NONCE_SIZE], const uint8_t *aad, size_t aad_n, const uint8_t *in,
    size_t n, uint8_t *out, uint8_t tag[NL_TAG_SIZE], nl_error *err)
{
    int done = 0;

    if (aad_n > INT_MAX || n > INT_MAX) return nl_fail(err, NL_E_TOO_BIG, "a message above 2 GiB");
    if (EVP_EncryptInit_ex2(a->seal, NULL, NULL, nonce, NULL) != 1 ||
        EVP_EncryptUpdate(a->seal, NULL, &done, aad, (int)aad_n) != 1 ||
        EVP_EncryptUpdate(a->seal, out, &done, in, (int)n) != 1 ||
        EVP_EncryptFinal_ex(a->seal, out + done, &done) != 1 ||
        EVP_CIPHER_CTX_ctrl(a->seal, EVP_CTRL_AEAD_GET_TAG, NL_TAG_SIZE, tag) != 1) {
        return aead_failed(err, "sealing");
    }
    return NL_OK;
}

int nl_aead_open(
    nl_aead *a, const uint8_t nonce[NL_NONCE_SIZE], const uint8_t *aad, size_t aad_n, const uint8_t *in,
    size_t n, const uint8_t tag[NL_TAG_SIZE], uint8_t *out, nl_error *err)
{
    uint8_t expected[NL_TAG_SIZE]; /* libcrypto's parameter is not const */
    int done = 0;

    if (aad_n > INT_MAX || n > INT_MAX) return nl_fail(err, NL_E_TOO_BIG, "a message above 2 GiB");
    memcpy(expected, tag, sizeof expected);
    if (EVP_DecryptInit_ex2(a->open, NULL, NULL, nonce, NULL) != 1 ||
        EVP_DecryptUpdate(a->open, NULL, &done, aad, (int)aad_n) != 1 ||
        EVP_DecryptUpdate(a->open, out, &done, in, (int)n) != 1 ||
        EVP_CIPHER_CTX_ctrl(a->open, EVP_CTRL_AEAD_SET_TAG, NL_TAG_SIZE, expected) != 1) {
        memset(out, 0, n);
        return aead_failed(err, "opening");
    }
    if (EVP_DecryptFinal_ex(a->open, out + done, &done) != 1) {
        memset(out, 0, n); /* what was decrypted is nobody's */
        return nl_fail(err, NL_E_TAG, "sealed bytes do not match their tag");
    }
    return NL_OK;
}

/* ------------------------------------------------------------------ keys out of keys */

int nl_key_derive(
    const uint8_t key[NL_KEY_SIZE], const uint8_t *info, size_t n, uint8_t out[NL_KEY_SIZE], nl_error *err)
{
    uint8_t block[NL_INFO_MAX + 1];
    unsigned int size = 0;

    if (n > NL_INFO_MAX) return nl_fail(err, NL_E_MISUSE, "a derivation of %zu bytes", n);
    memcpy(block, info, n);
    block[n] = 1; /* T(1) = HMAC(PRK, info | 0x01), and one block of SHA-256 is one key */
    if (!HMAC(EVP_sha256(), key, NL_KEY_SIZE, block, n + 1, out, &size) || size != NL_KEY_SIZE) {
        return aead_failed(err, "deriving a key");
    }
    return NL_OK;
}

int nl_key_stretch(
    const uint8_t *phrase, size_t n, const uint8_t salt[NL_SALT_SIZE], int log2_n, uint8_t out[NL_KEY_SIZE],
    nl_error *err)
{
    const uint64_t r = 8, p = 1;

    if (log2_n < 1 || log2_n > NL_SCRYPT_MAX) {
        return nl_fail(err, NL_E_FORMAT, "scrypt with an impossible cost of 2^%d", log2_n);
    }
    const uint64_t cost = (uint64_t)1 << log2_n;
    /* 128 * N * r, and the few blocks beside it */
    const uint64_t memory = 128 * r * cost + (1 << 20);
    if (EVP_PBE_scrypt((const char *)phrase, n, salt, NL_SALT_SIZE, cost, r, p, memory, out, NL_KEY_SIZE) != 1) {
        return nl_fail(err, NL_E_NOMEM, "no memory for scrypt (%u MiB)", (unsigned)(memory >> 20));
    }
    return NL_OK;
}

int nl_random(uint8_t *out, size_t n, nl_error *err)
{
    if (n > INT_MAX || RAND_bytes(out, (int)n) != 1) return aead_failed(err, "the random generator");
    return NL_OK;
}

/* ------------------------------------------------------------------ memory for secrets */

static size_t aead_whole_pages(size_t n)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);

    return (n + page - 1) / page * page;
}

void *nl_secret_alloc(size_t n)
{
    const size_t size = aead_whole_pages(n);
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED) return NULL;
    /* Both may be refused (RLIMIT_MEMLOCK): then the key could reach swap space, which is not a reason
    ** to have no database. */
    (void)mlock(p, size);
#ifdef MADV_DONTDUMP
    (void)madvise(p, size, MADV_DONTDUMP);
#endif
    return p;
}

void nl_secret_free(void *p, size_t n)
{
    if (!p) return;
    nl_wipe(p, n);
    munmap(p, aead_whole_pages(n));
}

void nl_wipe(void *p, size_t n)
{
    OPENSSL_cleanse(p, n);
}
