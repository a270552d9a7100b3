/* simd_scalar.c - the kernels in plain C: the twin that the others are tested against. */
#define XXH_VECTOR 0 /* XXH_SCALAR */
#define LEVEL_TABLE nl_simd_scalar
#define LEVEL_NUMBER 0
#include "simd_level.h"
