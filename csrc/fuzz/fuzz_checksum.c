/*
** Invariant: every level of instructions computes the WAL checksum and XXH3 that plain C computes,
** for any bytes at any alignment, and reads nothing else.
*/
#include "target.h"

#include "simd.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 1) return 0;
    const uint32_t shift = data[0] % 64;
    const size_t size = n - 1, words = size / 8 * 8;
    uint8_t *block = target_alloc(shift + size), *bytes = block + shift;
    uint32_t start[2] = {(uint32_t)n * 2654435761u, ~(uint32_t)n};

    if (size) memcpy(bytes, data + 1, size);
    nl_simd_use(0);
    uint64_t hash = nl_xxh3(bytes, size, n);
    for (int level = 1; level <= nl_simd_best(); level++) {
        for (int swap = 0; swap <= 1; swap++) {
            uint32_t expected[2] = {start[0], start[1]}, sums[2] = {start[0], start[1]};
            nl_simd_scalar.checksum(bytes, words, swap, expected);
            target_level(level)->checksum(bytes, words, swap, sums);
            REQUIRE(memcmp(expected, sums, sizeof sums) == 0);
        }
        nl_simd_use(level);
        REQUIRE(hash == nl_xxh3(bytes, size, n));
        nl_simd_use(0);
    }
    free(block);
    return 0;
}
