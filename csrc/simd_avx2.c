/* simd_avx2.c - the kernels of simd_level.h for AVX2. */

#if defined(__x86_64__)
/* Every system header comes before the pragma: their inline functions keep the default target. */
#include "nl.h"

#include <immintrin.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

#define XXH_VECTOR 2 /* XXH_AVX2 */
#define LEVEL_TABLE nl_simd_avx2
#define LEVEL_NUMBER 2
#define LEVEL_BYTES 32
#define LEVEL_CHAINS 8
#include "simd_level.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
