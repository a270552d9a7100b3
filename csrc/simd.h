/*
** simd.h - the two kernels that are worth vector instructions, one table of them per level.
**
** simd_level.h holds the code; simd_scalar.c, simd_base.c, simd_avx2.c and simd_avx512.c compile it
** once each under their own target pragma (setuptools has no flags per file, and xxhash.h can be
** inlined only once per translation unit). frame.c picks a table when the library is loaded.
*/
#ifndef NL_SIMD_H
#define NL_SIMD_H

#include <stddef.h>
#include <stdint.h>

typedef struct nl_simd {
    int level;

    /* WAL checksum over n bytes, n a multiple of 8; s is read and updated.
    ** swap: the words are of the other byte order than this machine's. */
    void (*checksum)(const uint8_t *data, size_t n, int swap, uint32_t s[2]);

    uint64_t (*xxh3)(const void *data, size_t n, uint64_t seed);

    /* XXH3 of a page, byte 18 and bytes 72..91 counted as zero. */
    uint64_t (*xxh3_masked)(const uint8_t *page, size_t n, uint64_t seed);
} nl_simd;

extern const nl_simd nl_simd_scalar; /* plain C: the twin the others are tested against */
extern const nl_simd nl_simd_base;   /* what every CPU of the architecture has: SSE2, NEON */
#if defined(__x86_64__)
extern const nl_simd nl_simd_avx2;
extern const nl_simd nl_simd_avx512;
#endif

/* Weights of the vector checksum (simd_level.h has the algebra): Fibonacci numbers modulo 2^32,
** stored downwards because a word's weight falls as its address rises. Filled at load time. */
#define NL_FIB_HIGH 1026
#define NL_FIB_LOW 130
extern uint32_t nl_fib_down[NL_FIB_HIGH + NL_FIB_LOW + 1];
#define nl_fib(i) (nl_fib_down[NL_FIB_HIGH - (i)]) /* F(i), -NL_FIB_LOW <= i <= NL_FIB_HIGH */

#endif
