/*
** target.h - what the fuzz targets share. Each is also a program that replays files, so that its
** corpus runs as ordinary tests with any compiler (tests/test_fuzz_corpus.py):
**
**     clang -fsanitize=fuzzer,address,undefined ...      fuzzes
**     cc -DTARGET_REPLAY -fsanitize=address,undefined ... replays the files it is given
*/
#ifndef NL_TARGET_H
#define NL_TARGET_H

#include "nl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "simd.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define REQUIRE(condition)                                                                  \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            fprintf(stderr, "%s:%d: violated: %s\n", __FILE__, __LINE__, #condition);      \
            abort();                                                                        \
        }                                                                                   \
    } while (0)

/* Exactly n bytes of the heap, so that the sanitizer sees every byte read beyond. */
static inline uint8_t *target_alloc(size_t n)
{
    uint8_t *p = malloc(n ? n : 1);
    REQUIRE(p);
    return p;
}

static inline const nl_simd *target_level(int level)
{
#if defined(__x86_64__)
    if (level == 2) return &nl_simd_avx2;
    if (level == 3) return &nl_simd_avx512;
#endif
    return level == 1 ? &nl_simd_base : &nl_simd_scalar;
}

#ifdef TARGET_REPLAY
int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        REQUIRE(f && fseek(f, 0, SEEK_END) == 0);
        size_t n = (size_t)ftell(f);
        uint8_t *data = target_alloc(n);
        rewind(f);
        REQUIRE(fread(data, 1, n, f) == n);
        fclose(f);
        LLVMFuzzerTestOneInput(data, n);
        free(data);
    }
    printf("%d inputs\n", argc - 1);
    return 0;
}
#endif

#endif
