/*
** compare.c - which pages of a replica are not what the primary has: its page hashes against the table.
**
** Part of sqlite_unit.c, after changes.c. The replica says what it has in ranges of pages (ranges.h).
** Ranges of more than one page are answered by a bit each, which says that the replica has to look
** closer; single pages that differ, and those it wants, join the selection of a page set. What lies
** above the primary's last page is compared with nothing: the set cuts it off.
**
** Costs a pass over the table, 8 bytes per page, and no page is read.
*/
#include "nl.h"

#include "bytes.h"
#include "ranges.h"

int nl_tail_select_more(nl_tail *t, uint32_t first, uint32_t last, nl_error *err)
{
    int rc = NL_OK;

    if (last > t->pages) last = t->pages;
    for (uint64_t p = first; rc == NL_OK && p <= last; p++) rc = changes_add(t, (uint32_t)p, err);
    return rc;
}

int nl_tail_compare(
    nl_tail *t,
    const uint8_t *runs,
    size_t n,
    uint8_t *bits,
    nl_error *err)
{
    size_t at = 0, bit = 0;
    nl_run run;
    int rc = NL_OK;

    if (!t->reading) return nl_fail(err, NL_E_MISUSE, "no read transaction is open");
    while (rc == NL_OK && nl_ranges_next(runs, n, &at, &run)) {
        if (run.hashes == NULL) {
            rc = nl_tail_select_more(t, run.first, run.first + run.count - 1, err);
            continue;
        }
        const uint64_t span = (uint64_t)1 << run.span;
        for (uint32_t i = 0; rc == NL_OK && i < run.count; i++) {
            uint64_t first = run.first + i * span;
            uint64_t mine = nl_range_hash(t->table, t->pages, first, span);
            int same = mine == nl_get64(run.hashes + 8 * (size_t)i);
            if (span == 1 && !same) rc = changes_add(t, (uint32_t)first, err);
            if (span == 1) continue;
            if (!same) bits[bit / 8] |= (uint8_t)(1u << (bit % 8));
            bit++;
        }
    }
    return rc;
}
