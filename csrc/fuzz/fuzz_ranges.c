/*
** Invariant: runs that are accepted ascend, do not overlap, reach no page beyond 2^32 - 2 with their
** first pages, are read to the last byte and no further, and are counted right; reading them costs no
** more than their bytes. Whatever is refused is refused without reading beyond its end.
*/
#include "target.h"

#include "ranges.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    uint8_t *in = target_alloc(n);
    uint32_t ranges = 0, pages = 0;
    uint64_t many = 0, single = 0, after = 1;
    size_t at = 0;
    nl_error err;
    nl_run run;

    if (n) memcpy(in, data, n);
    if (nl_ranges_check(in, n, &ranges, &pages, &err) == NL_OK) {
        while (nl_ranges_next(in, n, &at, &run)) {
            const uint64_t span = run.hashes ? (uint64_t)1 << run.span : 1;
            REQUIRE(run.count > 0 && run.first >= after);
            REQUIRE(run.first + (run.count - 1) * span < UINT32_MAX);
            if (run.hashes) REQUIRE(run.hashes + 8 * (size_t)run.count <= in + n);
            after = run.first + run.count * span;
            *(span > 1 ? &many : &single) += run.count;
        }
        REQUIRE(at == n && many == ranges && single == pages);
    } else {
        REQUIRE(err.code == NL_E_FORMAT);
    }
    free(in);
    return 0;
}
