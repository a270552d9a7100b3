/*
** simd_level.h - the kernels, written once and compiled once per level. No guard: a file that
** includes it defines LEVEL_TABLE (name of its table), LEVEL_NUMBER, and for a vector checksum
** LEVEL_BYTES (bytes of a vector register) and LEVEL_CHAINS (independent recurrences in flight).
**
** The checksum as a polynomial
** ----------------------------
** SQLite's checksum walks pairs of 32-bit words x0 x1: s1 += x0 + s2; s2 += x1 + s1. Written as
** one sequence t with t[0] = s1, t[1] = s2 it is t[k+2] = t[k+1] + t[k] + x[k]: Fibonacci's
** recurrence with an input, linear modulo 2^32. After N words (N even)
**
**     s1' = F(N-1) s1 + F(N)   s2 + sum of x[k] F(N-1-k)
**     s2' = F(N)   s1 + F(N+1) s2 + sum of x[k] F(N-k)
**
** The two sums are dot products, but need not cost two multiplications a word. Let S be the even
** number of words that all chains take in one step, and look at one lane, which sees every S-th
** word: its weights are g(m) = F(S m + r), and F(S(m+1) + r) = L F(S m + r) - F(S(m-1) + r) with
** the Lucas number L = F(S+1) + F(S-1). Clenshaw's recurrence evaluates such a sum from its first
** word on with one multiplication by L a word:
**
**     b <- x + L b1 - b2;   b2 <- b1;   b1 <- b
**
** and at the end the sum is F(r) b1 + (F(S+r) - L F(r)) b2 = F(r) b1 - F(r-S) b2, once per lane.
** Measured against the plain dot product: 65 instead of 41 GB/s out of the L2 cache (AVX-512).
** A multiplication takes 10 cycles, hence several chains side by side.
**
** Anything shorter than a block goes through the scalar loop, which is also the twin for tests.
*/
#include "nl.h"
#include "simd.h"

#include <string.h>

/* gcc unrolls XXH3's accumulators only from -O3 on (without: half the rate in plain C, three quarters
** with SSE2). clang does it at -O2. */
#if defined(__OPTIMIZE__) && !defined(__clang__)
#pragma GCC optimize("O3")
#endif
#define XXH_INLINE_ALL
#include "xxhash.h"

static uint32_t level_swap(uint32_t x)
{
    return (x >> 24) | ((x >> 8) & 0xff00u) | ((x << 8) & 0xff0000u) | (x << 24);
}

/* Hides a value from the compiler, which would otherwise reorder the additions below so that two
** a word, not one, wait for the word before (with gcc 6.8 instead of 13 GB/s). */
#define LEVEL_KEEP(x) __asm__("" : "+r"(x))

static void level_checksum_scalar(const uint8_t *data, size_t n, int swap, uint32_t s[2])
{
    uint32_t s1 = s[0], s2 = s[1];
    for (size_t i = 0; i < n; i += 8) {
        uint32_t x[2];
        memcpy(x, data + i, sizeof x);
        if (swap) {
            x[0] = level_swap(x[0]);
            x[1] = level_swap(x[1]);
        }
        s1 += x[0];
        LEVEL_KEEP(s1);
        s1 += s2;
        s2 += x[1];
        LEVEL_KEEP(s2);
        s2 += s1;
    }
    s[0] = s1;
    s[1] = s2;
}

#ifdef LEVEL_BYTES

/* Unaligned loads: pages lie anywhere in network and frame buffers. */
typedef uint32_t level_vec __attribute__((vector_size(LEVEL_BYTES)));
typedef uint32_t level_mem __attribute__((vector_size(LEVEL_BYTES), aligned(1), may_alias));

#define LEVEL_LANES (LEVEL_BYTES / 4)
#define LEVEL_STEP (LEVEL_BYTES * LEVEL_CHAINS)   /* bytes all chains take together */
#define LEVEL_S (LEVEL_STEP / 4)                  /* the same in words: S above */
#define LEVEL_SMALL 512                           /* bytes: the smallest page */
#define LEVEL_LARGE 4096

#if defined(__clang__)
#define LEVEL_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LEVEL_UNROLL _Pragma("GCC unroll 16")
#endif
#define LEVEL_INLINE static inline __attribute__((always_inline))

LEVEL_INLINE uint32_t level_sum(const level_vec *v)
{
    uint32_t lanes[LEVEL_LANES], sum = 0;
    memcpy(lanes, v, sizeof lanes);
    for (int i = 0; i < LEVEL_LANES; i++) sum += lanes[i];
    return sum;
}

/* The vector at byte offset `at`, in the wanted byte order. */
LEVEL_INLINE level_vec level_load(const uint8_t *data, int at, int swap)
{
    level_vec x = *(const level_mem *)(const void *)(data + at);
    if (swap) {
        x = (((x << 8) | (x >> 24)) & 0x00ff00ffu) | (((x << 24) | (x >> 8)) & 0xff00ff00u);
    }
    return x;
}

/* One block of a size known at compile time; swap is a literal too, so that each use becomes
** straight code. Words run upwards in memory, so lane k of a step has r = S-1-k. */
LEVEL_INLINE void level_block(const uint8_t *data, int bytes, int swap, uint32_t s[2])
{
    const level_vec lucas = (level_vec){0} + (nl_fib(LEVEL_S + 1) + nl_fib(LEVEL_S - 1));
    level_vec b1[LEVEL_CHAINS], b2[LEVEL_CHAINS];
    LEVEL_UNROLL
    for (int c = 0; c < LEVEL_CHAINS; c++) {
        b1[c] = level_load(data, LEVEL_BYTES * c, swap);
        b2[c] = (level_vec){0};
    }
    for (int at = LEVEL_STEP; at < bytes; at += LEVEL_STEP) {
        LEVEL_UNROLL
        for (int c = 0; c < LEVEL_CHAINS; c++) {
            level_vec x = level_load(data, at + LEVEL_BYTES * c, swap);
            level_vec b = (x - b2[c]) + lucas * b1[c];
            b2[c] = b1[c];
            b1[c] = b;
        }
    }

    level_vec sum1 = {0}, sum2 = {0};
    LEVEL_UNROLL
    for (int c = 0; c < LEVEL_CHAINS; c++) {
        /* nl_fib_down runs backwards: w[0..] = F(S-1-k), w[S..] = F(-1-k) for k = LANES*c .. */
        const uint32_t *w = &nl_fib(LEVEL_S - 1) + LEVEL_LANES * c;
        sum1 += b1[c] * *(const level_mem *)(const void *)w;
        sum1 -= b2[c] * *(const level_mem *)(const void *)(w + LEVEL_S);
        sum2 += b1[c] * *(const level_mem *)(const void *)(w - 1);
        sum2 -= b2[c] * *(const level_mem *)(const void *)(w - 1 + LEVEL_S);
    }
    uint32_t s1 = s[0], s2 = s[1];
    int words = bytes / 4;
    s[0] = nl_fib(words - 1) * s1 + nl_fib(words) * s2 + level_sum(&sum1);
    s[1] = nl_fib(words) * s1 + nl_fib(words + 1) * s2 + level_sum(&sum2);
}

LEVEL_INLINE void level_blocks(const uint8_t *data, size_t n, int swap, uint32_t s[2])
{
    size_t at = 0;
    for (; n - at >= LEVEL_LARGE; at += LEVEL_LARGE) level_block(data + at, LEVEL_LARGE, swap, s);
    for (; n - at >= LEVEL_SMALL; at += LEVEL_SMALL) level_block(data + at, LEVEL_SMALL, swap, s);
    level_checksum_scalar(data + at, n - at, swap, s);
}

static void level_checksum(const uint8_t *data, size_t n, int swap, uint32_t s[2])
{
    if (swap) {
        level_blocks(data, n, 1, s);
    } else {
        level_blocks(data, n, 0, s);
    }
}

#else /* no vector multiplication worth having: 32-bit lanes came with SSE4.1 */

static void level_checksum(const uint8_t *data, size_t n, int swap, uint32_t s[2])
{
    level_checksum_scalar(data, n, swap, s);
}
#endif

static uint64_t level_xxh3(const void *data, size_t n, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, n, seed);
}

/* Streamed, because a masked copy of a page may need 64 KiB and thread stacks can be small. */
static uint64_t level_xxh3_masked(const uint8_t *page, size_t n, uint64_t seed)
{
    static const uint8_t zeros[NL_REPLICA_HEADER_SIZE];
    const size_t version = NL_WRITE_VERSION_OFFSET, header = NL_REPLICA_HEADER_OFFSET;
    const size_t rest = header + sizeof zeros;
    XXH3_state_t state;
    XXH3_INITSTATE(&state); /* reset reads the old seed */
    XXH3_64bits_reset_withSeed(&state, seed);
    XXH3_64bits_update(&state, page, version);
    XXH3_64bits_update(&state, zeros, 1);
    XXH3_64bits_update(&state, page + version + 1, header - version - 1);
    XXH3_64bits_update(&state, zeros, sizeof zeros);
    XXH3_64bits_update(&state, page + rest, n - rest);
    return XXH3_64bits_digest(&state);
}

const nl_simd LEVEL_TABLE = {
    LEVEL_NUMBER, level_checksum, level_xxh3, level_xxh3_masked,
};
