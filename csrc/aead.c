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
#include <time.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

/* One context serves both directions: GCM opens with the schedule with which it seals. */
struct nl_aead {
    EVP_CIPHER_CTX *ctx;
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
    nl_aead *a = malloc(sizeof *a);
    if (!a) return nl_fail(err, NL_E_NOMEM, "no memory for a key");
    a->ctx = EVP_CIPHER_CTX_new();
    if (!a->ctx || EVP_CipherInit_ex2(a->ctx, aead_cipher, key, NULL, 1, NULL) != 1) {
        nl_aead_free(a);
        return aead_failed(err, "preparing a key");
    }
    *out = a;
    return NL_OK;
}

void nl_aead_free(nl_aead *a)
{
    if (!a) return;
    EVP_CIPHER_CTX_free(a->ctx);
    free(a);
}

int nl_aead_seal(
    nl_aead *a, const uint8_t nonce[NL_NONCE_SIZE], const uint8_t *aad, size_t aad_n, const uint8_t *in,
    size_t n, uint8_t *out, uint8_t tag[NL_TAG_SIZE], nl_error *err)
{
    int done = 0;

    if (aad_n > INT_MAX || n > INT_MAX) return nl_fail(err, NL_E_TOO_BIG, "a message above 2 GiB");
    if (EVP_CipherInit_ex2(a->ctx, NULL, NULL, nonce, 1, NULL) != 1 ||
        EVP_EncryptUpdate(a->ctx, NULL, &done, aad, (int)aad_n) != 1 ||
        EVP_EncryptUpdate(a->ctx, out, &done, in, (int)n) != 1 ||
        EVP_EncryptFinal_ex(a->ctx, out + done, &done) != 1 ||
        EVP_CIPHER_CTX_ctrl(a->ctx, EVP_CTRL_AEAD_GET_TAG, NL_TAG_SIZE, tag) != 1) {
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
    if (EVP_CipherInit_ex2(a->ctx, NULL, NULL, nonce, 0, NULL) != 1 ||
        EVP_DecryptUpdate(a->ctx, NULL, &done, aad, (int)aad_n) != 1 ||
        EVP_DecryptUpdate(a->ctx, out, &done, in, (int)n) != 1 ||
        EVP_CIPHER_CTX_ctrl(a->ctx, EVP_CTRL_AEAD_SET_TAG, NL_TAG_SIZE, expected) != 1) {
        memset(out, 0, n);
        return aead_failed(err, "opening");
    }
    if (EVP_DecryptFinal_ex(a->ctx, out + done, &done) != 1) {
        memset(out, 0, n); /* what was decrypted is nobody's */
        return nl_fail(err, NL_E_TAG, "sealed bytes do not match their tag");
    }
    return NL_OK;
}

int nl_gcm_seal(
    const uint8_t *key, const uint8_t *nonce, const uint8_t *aad, size_t aad_n, const uint8_t *in, size_t n,
    uint8_t *out, uint8_t *tag, nl_error *err)
{
    nl_aead *a;

    int rc = nl_aead_new(key, &a, err);
    if (rc == NL_OK) rc = nl_aead_seal(a, nonce, aad, aad_n, in, n, out, tag, err);
    nl_aead_free(a);
    return rc;
}

int nl_gcm_open(
    const uint8_t *key, const uint8_t *nonce, const uint8_t *aad, size_t aad_n, const uint8_t *in, size_t n,
    const uint8_t *tag, uint8_t *out, nl_error *err)
{
    nl_aead *a;

    int rc = nl_aead_new(key, &a, err);
    if (rc == NL_OK) rc = nl_aead_open(a, nonce, aad, aad_n, in, n, tag, out, err);
    nl_aead_free(a);
    return rc;
}

int nl_nonce_draw(nl_nonces *from, uint8_t out[NL_NONCE_SIZE], nl_error *err)
{
    struct timespec now = {0};
    uint64_t ticks;

    if (from->left == 0) {
        int rc = nl_random(from->bytes, sizeof from->bytes, err);
        if (rc != NL_OK) return rc;
        from->left = NL_NONCES;
    }
    from->left--;
    memcpy(out, from->bytes + (size_t)from->left * NL_NONCE_SIZE, NL_NONCE_SIZE);
    /* A virtual machine that goes on twice from one image has these bytes twice, as it has the state of the
    ** generator twice. Its clocks part; what is random stays so when they are added. */
    clock_gettime(CLOCK_MONOTONIC, &now);
    memcpy(&ticks, out, sizeof ticks);
    ticks ^= (uint64_t)now.tv_sec << 32 ^ (uint64_t)now.tv_nsec;
    memcpy(out, &ticks, sizeof ticks);
    return NL_OK;
}

int nl_digest(const uint8_t *in, size_t n, uint8_t *out, size_t size, nl_error *err)
{
    uint8_t sum[32];

    if (size > sizeof sum) return nl_fail(err, NL_E_MISUSE, "a digest of %zu bytes", size);
    if (EVP_Digest(in, n, sum, NULL, EVP_sha256(), NULL) != 1) return aead_failed(err, "a digest");
    memcpy(out, sum, size);
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
