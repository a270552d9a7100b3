/* simd_base.c - the kernels for every CPU of the architecture: SSE2, NEON or none. */
#define LEVEL_TABLE nl_simd_base
#define LEVEL_NUMBER 1
#include "simd_level.h"
