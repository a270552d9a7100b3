/* Sealing and opening pages of 4096 bytes: the codec, and beside it a bare loop over libcrypto's EVP with the
** same cipher, nonce and aad sizes. In turns; prints nanoseconds of each as JSON, the median of the rounds. */
#include "nl.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SIZE = 4096, PAGES = 4000, ROUNDS = 31, AAD = 32 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static uint8_t page[SIZE], slot[SIZE + NL_SEAL_SIZE], out[SIZE], nonce[12], aad[AAD], tag[16];
static EVP_CIPHER_CTX *ctx;
static nl_codec *codec;

static void evp_seal(void)
{
    int n;
    EVP_CipherInit_ex2(ctx, NULL, NULL, nonce, 1, NULL);
    EVP_EncryptUpdate(ctx, NULL, &n, aad, AAD);
    EVP_EncryptUpdate(ctx, slot, &n, page, SIZE);
    EVP_EncryptFinal_ex(ctx, slot + n, &n);
    EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, 16, tag);
}

static void evp_open(void)
{
    int n;
    EVP_CipherInit_ex2(ctx, NULL, NULL, nonce, 0, NULL);
    EVP_DecryptUpdate(ctx, NULL, &n, aad, AAD);
    EVP_DecryptUpdate(ctx, out, &n, slot, SIZE);
    EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, 16, tag);
    if (EVP_DecryptFinal_ex(ctx, out + n, &n) != 1) abort();
}

static void codec_seal(void)
{
    if (nl_codec_seal_page(codec, 7, page, slot, NULL)) abort();
}

static void codec_open(void)
{
    if (nl_codec_open_page(codec, 7, slot, out, NULL)) abort();
}

static double timed(void (*work)(void))
{
    const double began = now();
    for (int i = 0; i < PAGES; i++) work();
    return (now() - began) / PAGES;
}

int main(void)
{
    static double found[4][ROUNDS];
    uint8_t block[NL_BLOCK_SIZE], key[NL_KEY_SIZE] = {1};
    nl_key *user;

    ctx = EVP_CIPHER_CTX_new();
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    EVP_CipherInit_ex2(ctx, cipher, key, nonce, 1, NULL);
    if (nl_key_raw(key, sizeof key, &user, NULL) || nl_codec_create(SIZE, user, block, &codec, NULL)) return 1;
    for (int round = -2; round < ROUNDS; round++) {
        const int at = round < 0 ? 0 : round;
        found[0][at] = timed(evp_seal);
        found[2][at] = timed(evp_open);
        found[1][at] = timed(codec_seal);
        found[3][at] = timed(codec_open);
    }
    for (int i = 0; i < 4; i++) qsort(found[i], ROUNDS, sizeof(double), compare);
    printf("{\"evp_seal\": %.1f, \"codec_seal\": %.1f, \"evp_open\": %.1f, \"codec_open\": %.1f}\n",
           found[0][ROUNDS / 2], found[1][ROUNDS / 2], found[2][ROUNDS / 2], found[3][ROUNDS / 2]);
    return 0;
}
