/*
** ranges.c - see ranges.h. Pure: bytes from the network in, bounds checked before anything is done.
**
** A request is accepted when
**
**   (1) it consists of whole runs
**   (2) spans are known, counts are not zero, unused bytes are zero
**   (3) runs ascend and do not overlap, and none reaches beyond page 2^32 - 2: so the work that a
**       request makes is bounded by the size of the database plus that of the request
*/
#include "ranges.h"

#include "bytes.h"

int nl_ranges_next(const uint8_t *in, size_t n, size_t *at, nl_run *out)
{
    if (*at == n) return 0;
    const uint8_t *p = in + *at;
    out->first = nl_get32(p);
    out->count = nl_get32(p + 4);
    out->span = p[8];
    out->hashes = out->span == NL_SPAN_WANTED ? NULL : p + NL_RUN_SIZE;
    *at += NL_RUN_SIZE + (out->hashes ? 8 * (size_t)out->count : 0);
    return 1;
}

void nl_ranges_fold(
    const uint64_t *table, uint32_t pages, uint32_t first, uint32_t span, uint32_t n, uint8_t *out)
{
    for (uint32_t i = 0; i < n; i++) {
        uint64_t from = first + ((uint64_t)i << span);
        nl_put64(out + 8 * (size_t)i, nl_range_hash(table, pages, from, (uint64_t)1 << span));
    }
}

int nl_ranges_check(
    const uint8_t *in, size_t n, uint32_t *ranges, uint32_t *pages, nl_error *err)
{
    uint64_t after = 1; /* first page that may follow */

    *ranges = *pages = 0;
    for (size_t at = 0; at < n;) {
        nl_run run;
        const uint8_t *p = in + at;
        if (n - at < NL_RUN_SIZE) return nl_fail(err, NL_E_FORMAT, "a run is cut short"); /* (1) */
        for (int i = 9; i < NL_RUN_SIZE; i++) { /* (2) */
            if (p[i]) return nl_fail(err, NL_E_FORMAT, "unused bytes of a run are in use");
        }
        size_t left = n - at - NL_RUN_SIZE;
        if (p[8] > NL_SPAN_MAX && p[8] != NL_SPAN_WANTED) {
            return nl_fail(err, NL_E_FORMAT, "a run with the impossible span %u", p[8]);
        }
        if (p[8] != NL_SPAN_WANTED && nl_get32(p + 4) > left / 8) {
            return nl_fail(err, NL_E_FORMAT, "a run is cut short");
        }
        nl_ranges_next(in, n, &at, &run);
        uint64_t span = run.hashes ? (uint64_t)1 << run.span : 1;
        if (run.count == 0) return nl_fail(err, NL_E_FORMAT, "a run of nothing");
        if (run.first < after) return nl_fail(err, NL_E_FORMAT, "runs that overlap or go back");
        /* the last range may reach beyond the last page, as far as its span is long */
        if (run.first + (run.count - 1) * span >= UINT32_MAX) { /* (3) */
            return nl_fail(err, NL_E_FORMAT, "a run beyond the last possible page");
        }
        after = run.first + run.count * span;
        if (run.hashes && run.span > 0) *ranges += run.count;
        else *pages += run.count;
    }
    return NL_OK;
}
