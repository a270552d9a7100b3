/*
** aead.c - see aead.h. All of libcrypto's API that nearlite uses is in this file.
**
** Contexts are reused: preparing one costs as much as sealing a page.
**
** What is wiped: contexts by EVP_CIPHER_CTX_free, keys in memory of nl_secret_alloc by its end, copies
** on the stack before the function returns.
*/
#include "aead.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>

/* One context serves both directions: GCM opens with the schedule with which it seals. */
struct nl_aead {
    EVP_CIPHER_CTX *ctx;
};

/* What libcrypto has to look up under locks of its own, once; it lives as long as the process. A fork waits
** for that: a lock of libcrypto's that another thread held would be held for ever in the child. Nothing that
** is used later takes one, but scrypt. */
static struct {
    pthread_mutex_t mutex;
    int ready;                   /* atomic */
    EVP_CIPHER *gcm;
    EVP_CIPHER *ctr;
    EVP_MD *sha256;
} aead_crypto = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void aead_before_fork(void)
{
    pthread_mutex_lock(&aead_crypto.mutex);
}

static void aead_after_fork(void)
{
    pthread_mutex_unlock(&aead_crypto.mutex);
}

__attribute__((constructor)) static void aead_loaded(void)
{
    pthread_atfork(aead_before_fork, aead_after_fork, aead_after_fork);
}

/* Not when the library is loaded: it takes a millisecond, which only those spend who have a key. */
static int aead_start(nl_error *err)
{
    if (__atomic_load_n(&aead_crypto.ready, __ATOMIC_ACQUIRE)) return NL_OK;
    pthread_mutex_lock(&aead_crypto.mutex);
    if (!aead_crypto.gcm) aead_crypto.gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    if (!aead_crypto.ctr) aead_crypto.ctr = EVP_CIPHER_fetch(NULL, "AES-256-CTR", NULL);
    if (!aead_crypto.sha256) aead_crypto.sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    const int ready = aead_crypto.gcm && aead_crypto.ctr && aead_crypto.sha256;
    __atomic_store_n(&aead_crypto.ready, ready, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&aead_crypto.mutex);
    return ready ? NL_OK : nl_fail(err, NL_E_MISUSE, "this libcrypto has no AES-256 or SHA-256");
}

/* libcrypto gives reasons only for misuse of it; out of memory is the one that is left. */
static int aead_failed(nl_error *err, const char *what)
{
    return nl_fail(err, NL_E_NOMEM, "%s failed in libcrypto", what);
}

int nl_aead_new(const uint8_t key[NL_KEY_SIZE], nl_aead **out, nl_error *err)
{
    *out = NULL;
    int rc = aead_start(err);
    if (rc != NL_OK) return rc;
    nl_aead *a = malloc(sizeof *a);
    if (!a) return nl_fail(err, NL_E_NOMEM, "no memory for a key");
    a->ctx = EVP_CIPHER_CTX_new();
    if (!a->ctx || EVP_CipherInit_ex2(a->ctx, aead_crypto.gcm, key, NULL, 1, NULL) != 1) {
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

/* The tag as libcrypto's provider takes and gives it. EVP_CIPHER_CTX_ctrl asks the same, and takes a fortieth of the
** time of a page longer. */
#define AEAD_TAG(bytes) \
    {OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, (bytes), NL_TAG_SIZE), OSSL_PARAM_END}

int nl_aead_seal(
    nl_aead *a, const uint8_t nonce[NL_NONCE_SIZE], const uint8_t *aad, size_t aad_n, const uint8_t *in,
    size_t n, uint8_t *out, uint8_t tag[NL_TAG_SIZE], nl_error *err)
{
    OSSL_PARAM made[] = AEAD_TAG(tag);
    int done = 0;

    if (aad_n > INT_MAX || n > INT_MAX) return nl_fail(err, NL_E_TOO_BIG, "a message above 2 GiB");
    if (EVP_CipherInit_ex2(a->ctx, NULL, NULL, nonce, 1, NULL) != 1 ||
        EVP_EncryptUpdate(a->ctx, NULL, &done, aad, (int)aad_n) != 1 ||
        EVP_EncryptUpdate(a->ctx, out, &done, in, (int)n) != 1 ||
        EVP_EncryptFinal_ex(a->ctx, out + done, &done) != 1 ||
        EVP_CIPHER_CTX_get_params(a->ctx, made) != 1) {
        return aead_failed(err, "sealing");
    }
    return NL_OK;
}

int nl_aead_open(
    nl_aead *a, const uint8_t nonce[NL_NONCE_SIZE], const uint8_t *aad, size_t aad_n, const uint8_t *in,
    size_t n, const uint8_t tag[NL_TAG_SIZE], uint8_t *out, nl_error *err)
{
    uint8_t copy[NL_TAG_SIZE]; /* libcrypto's parameter is not const */
    OSSL_PARAM expected[] = AEAD_TAG(copy);
    int done = 0;

    if (aad_n > INT_MAX || n > INT_MAX) return nl_fail(err, NL_E_TOO_BIG, "a message above 2 GiB");
    memcpy(copy, tag, sizeof copy);
    if (EVP_CipherInit_ex2(a->ctx, NULL, NULL, nonce, 0, NULL) != 1 ||
        EVP_DecryptUpdate(a->ctx, NULL, &done, aad, (int)aad_n) != 1 ||
        EVP_DecryptUpdate(a->ctx, out, &done, in, (int)n) != 1 ||
        EVP_CIPHER_CTX_set_params(a->ctx, expected) != 1) {
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

/* New ones: what AES-256-CTR makes under a key that is drawn for this and forgotten. */
static int aead_fill(nl_nonces *nonces, nl_error *err)
{
    static const uint8_t zeros[sizeof nonces->bytes];
    uint8_t seed[NL_KEY_SIZE + 16];
    int done = 0;

    int rc = aead_start(err);
    if (rc == NL_OK) rc = nl_random(seed, sizeof seed, err);
    if (rc != NL_OK) return rc;
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    const int made = ctx && EVP_CipherInit_ex2(ctx, aead_crypto.ctr, seed, seed + NL_KEY_SIZE, 1, NULL) == 1 &&
                     EVP_EncryptUpdate(ctx, nonces->bytes, &done, zeros, sizeof zeros) == 1;
    EVP_CIPHER_CTX_free(ctx);
    nl_wipe(seed, sizeof seed);
    if (!made) return aead_failed(err, "drawing nonces");
    nonces->left = NL_NONCES;
    return NL_OK;
}

int nl_nonce_draw(nl_nonces *from, uint8_t out[NL_NONCE_SIZE], nl_error *err)
{
    struct timespec now = {0};
    uint64_t ticks;

    if (from->left == 0) {
        int rc = aead_fill(from, err);
        if (rc != NL_OK) return rc;
    }
    from->left--;
    memcpy(out, from->bytes + (size_t)from->left * NL_NONCE_SIZE, NL_NONCE_SIZE);
    /* A virtual machine that goes on twice from one image has these bytes twice. Its clocks part; what is
    ** random stays so when they are added. */
    clock_gettime(CLOCK_MONOTONIC, &now);
    memcpy(&ticks, out, sizeof ticks);
    ticks ^= (uint64_t)now.tv_sec << 32 ^ (uint64_t)now.tv_nsec;
    memcpy(out, &ticks, sizeof ticks);
    return NL_OK;
}

/* The SHA-256 of two strings, one behind the other. */
static int aead_sha256(
    const uint8_t *a, size_t a_n, const uint8_t *b, size_t b_n, uint8_t out[32], nl_error *err)
{
    int rc = aead_start(err);
    if (rc != NL_OK) return rc;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    const int made = ctx && EVP_DigestInit_ex2(ctx, aead_crypto.sha256, NULL) == 1 &&
                     EVP_DigestUpdate(ctx, a, a_n) == 1 && EVP_DigestUpdate(ctx, b, b_n) == 1 &&
                     EVP_DigestFinal_ex(ctx, out, NULL) == 1;
    EVP_MD_CTX_free(ctx);
    return made ? NL_OK : aead_failed(err, "a digest");
}

int nl_digest(const uint8_t *in, size_t n, uint8_t *out, size_t size, nl_error *err)
{
    uint8_t sum[32];

    if (size > sizeof sum) return nl_fail(err, NL_E_MISUSE, "a digest of %zu bytes", size);
    int rc = aead_sha256(in, n, NULL, 0, sum, err);
    if (rc == NL_OK) memcpy(out, sum, size);
    return rc;
}

/* ------------------------------------------------------------------ keys out of keys */

/* HMAC (RFC 2104) with SHA-256 and a key shorter than its block. libcrypto's own looks its digest up by name
** each time, under a lock. */
static int aead_hmac(
    const uint8_t key[NL_KEY_SIZE], const uint8_t *in, size_t n, uint8_t out[32], nl_error *err)
{
    uint8_t inner[64] = {0}, outer[64] = {0};

    memcpy(inner, key, NL_KEY_SIZE);
    memcpy(outer, key, NL_KEY_SIZE);
    for (size_t i = 0; i < sizeof inner; i++) {
        inner[i] ^= 0x36;
        outer[i] ^= 0x5c;
    }
    int rc = aead_sha256(inner, sizeof inner, in, n, out, err);
    if (rc == NL_OK) rc = aead_sha256(outer, sizeof outer, out, 32, out, err);
    nl_wipe(inner, sizeof inner);
    nl_wipe(outer, sizeof outer);
    return rc;
}

int nl_key_derive(
    const uint8_t key[NL_KEY_SIZE], const uint8_t *info, size_t n, uint8_t out[NL_KEY_SIZE], nl_error *err)
{
    uint8_t block[NL_INFO_MAX + 1];

    if (n > NL_INFO_MAX) return nl_fail(err, NL_E_MISUSE, "a derivation of %zu bytes", n);
    memcpy(block, info, n);
    block[n] = 1; /* T(1) = HMAC(PRK, info | 0x01), and one block of SHA-256 is one key */
    return aead_hmac(key, block, n + 1, out, err);
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

/* The kernel's: it has no state in this process that a fork or a copied virtual machine would double. */
int nl_random(uint8_t *out, size_t n, nl_error *err)
{
    for (size_t at = 0; at < n;) {
        const size_t some = n - at < 256 ? n - at : 256; /* the most that getentropy() takes */
        if (getentropy(out + at, some) != 0) return nl_fail_os(err, errno, "draw random bytes");
        at += some;
    }
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

int nl_same(const uint8_t *a, const uint8_t *b, size_t n)
{
    return CRYPTO_memcmp(a, b, n) == 0;
}
