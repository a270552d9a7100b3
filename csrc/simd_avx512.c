/* simd_avx512.c - the kernels of simd_level.h for AVX-512. */

#if defined(__x86_64__)
/* Every system header comes before the pragma: their inline functions keep the default target. */
#include "nl.h"

#include <immintrin.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw")
#endif

#define XXH_VECTOR 3 /* XXH_AVX512 */
#define LEVEL_TABLE nl_simd_avx512
#define LEVEL_NUMBER 3
#define LEVEL_BYTES 64
#define LEVEL_CHAINS 8
#include "simd_level.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
