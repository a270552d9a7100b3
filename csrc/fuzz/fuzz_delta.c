/*
** Invariant: whatever bytes come as a delta, of whatever bytes as bases, the decoder answers or
** refuses, within the buffers it was given; and what the encoder makes of any two pages decodes
** to the second.
**
** Input: choices (page size, which pages have a base, whether page 1 is among them), one byte
** for how much of the rest is the delta; then the delta, then bytes that fill bases and images
** by turns.
*/
#include "target.h"

enum { HEAD = 3, PAGES = 3 };

/* A page of the input's bytes; what is missing is as in `before`, or zero. */
static void target_fill(
    const uint8_t **data, size_t *n, const uint8_t *before, uint8_t *page, size_t size)
{
    size_t have = *n < size ? *n : size;

    if (before) memcpy(page, before, size);
    else memset(page, 0, size);
    if (have) memcpy(page, *data, have);
    *data += have;
    *n -= have;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < HEAD) return 0;
    const uint32_t page_size = 512u << (data[0] & 3);
    const int with_first = data[0] & 4, bases_mask = data[0] >> 3;
    const uint32_t pgnos[PAGES] = {with_first ? 1 : 2, 3, 4};
    const size_t most = nl_delta_bound(page_size, PAGES);
    const uint8_t *bases[PAGES], *images[PAGES];
    uint8_t *pages[2 * PAGES], *delta, *out = target_alloc(PAGES * page_size);
    size_t size = data[1] * 256u + data[2], written;
    nl_error err;

    data += HEAD;
    n -= HEAD;
    if (size > n) size = n;
    delta = target_alloc(size);
    if (size) memcpy(delta, data, size);
    data += size;
    n -= size;
    for (int i = 0; i < PAGES; i++) {
        pages[2 * i] = target_alloc(page_size);
        pages[2 * i + 1] = target_alloc(page_size);
        target_fill(&data, &n, NULL, pages[2 * i], page_size);
        bases[i] = bases_mask >> i & 1 ? NULL : pages[2 * i];
    }
    for (int i = 0; i < PAGES; i++) {
        const uint8_t *before = pages[2 * (bases_mask & 8 ? (i + 1) % PAGES : i)];
        target_fill(&data, &n, before, pages[2 * i + 1], page_size);
        images[i] = pages[2 * i + 1];
    }

    int rc = nl_delta_decode(page_size, 9, pgnos, bases, PAGES, delta, size, out, &err);
    REQUIRE(rc == NL_OK || rc == NL_E_FORMAT);
    free(delta);

    delta = target_alloc(most);
    rc = nl_delta_encode(
        page_size, 9, pgnos, bases, images, PAGES, delta, most, &written, &err);
    REQUIRE(rc == NL_OK);
    REQUIRE(written > 0 && written <= most);
    rc = nl_delta_decode(page_size, 9, pgnos, bases, PAGES, delta, written, out, &err);
    REQUIRE(rc == NL_OK);
    if (with_first) {
        pages[1][NL_WRITE_VERSION_OFFSET] = 2;
        memset(pages[1] + NL_REPLICA_HEADER_OFFSET, 0, NL_REPLICA_HEADER_SIZE);
    }
    for (int i = 0; i < PAGES; i++) REQUIRE(memcmp(out + i * page_size, images[i], page_size) == 0);
    free(delta);
    free(out);
    for (int i = 0; i < 2 * PAGES; i++) free(pages[i]);
    return 0;
}
