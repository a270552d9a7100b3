/*
** Invariant: whatever bytes come as a compact page set, even with the right guard, they are
** refused, or their pages ascend within the database and what they unpack to is a chunk that
** verifies; nothing outside of the input and the bases is read.
**
** Input: choices (guard made right, length made right, low lock byte), database size at the
** start, how many bytes are the set; the set; then bytes that fill the bases by turns.
*/
#include "target.h"

#include "bytes.h"

enum { HEAD = 4, PAGE = 512 };
enum { RIGHT_GUARD = 1, RIGHT_LENGTH = 2, LOW_LOCK = 4 };

static uint64_t target_key(const nl_state *s)
{
    uint8_t bytes[28];
    nl_put32(bytes, s->position.lineage);
    nl_put32(bytes + 4, s->position.generation);
    nl_put32(bytes + 8, s->position.frame);
    nl_put64(bytes + 12, s->hash);
    nl_put32(bytes + 20, s->pages);
    nl_put32(bytes + 24, s->page_size);
    return nl_xxh3(bytes, sizeof bytes, 0x4e4c434f4d504302u);
}

static void target_unpack(const nl_compact *c, const uint8_t *data, size_t n)
{
    const nl_set_header *set = nl_compact_set(c);
    const size_t size = nl_chunk_size(PAGE, set->count);
    const uint8_t **bases = (const uint8_t **)(void *)target_alloc(set->count * sizeof *bases);
    uint8_t *body = target_alloc(size);
    uint32_t before = 0;
    nl_chunk_header head;
    nl_chunk *chunk = NULL;
    nl_error err;
    int needs;

    REQUIRE(size > 0);
    for (uint32_t i = 0; i < set->count; i++) {
        uint32_t pgno = nl_compact_page(c, i, &needs);
        REQUIRE(pgno > before && pgno <= set->pages && pgno != nl_lock_page(PAGE));
        before = pgno;
        bases[i] = NULL;
        if (!needs) continue;
        uint8_t *base = target_alloc(PAGE);
        size_t have = n < PAGE ? n : PAGE;
        memset(base, 0, PAGE);
        if (have) memcpy(base, data, have);
        data += have;
        n -= have;
        bases[i] = base;
    }
    REQUIRE(nl_compact_page(c, 0, &needs) == 1 && nl_compact_page(c, set->count, &needs) == 0);
    int rc = nl_compact_unpack(c, bases, body, size, &head, &err);
    REQUIRE(rc == NL_OK || rc == NL_E_FORMAT);
    if (rc == NL_OK) {
        rc = nl_chunk_verify(set, &head, body, size, 0, &chunk, &err);
        REQUIRE(rc == NL_OK || (rc == NL_E_FORMAT && err.page == 1)); /* not a database's first page */
    }
    nl_chunk_free(chunk);
    for (uint32_t i = 0; i < set->count; i++) free((void *)(uintptr_t)bases[i]);
    free(bases);
    free(body);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < HEAD) return 0;
    nl_state from = {{7, 2, 10}, 0x1122334455667788u, data[1], PAGE, 0};
    const int choice = data[0];
    size_t size = data[2] * 256u + data[3];
    nl_compact *c = NULL;
    nl_error err;

    data += HEAD;
    n -= HEAD;
    if (size > n) size = n;
    uint8_t *set = target_alloc(size);
    if (size) memcpy(set, data, size);
    nl_lock_byte_use(choice & LOW_LOCK ? 1024 : 0x40000000);
    if (choice & RIGHT_LENGTH && size >= 4 && size < 131) {
        set[0] = 0xd2;
        set[2] = (uint8_t)(size - 3);
    }
    if (choice & RIGHT_GUARD && size >= 4) {
        nl_put32(set + size - 4, (uint32_t)nl_xxh3(set, size - 4, target_key(&from)));
    }
    int rc = nl_compact_open(set, size, &from, &c, &err);
    if (rc == NL_OK) {
        target_unpack(c, data + size, n - size);
    } else {
        REQUIRE(c == NULL && (rc == NL_E_FORMAT || rc == NL_E_HASH));
    }
    nl_compact_free(c);
    free(set);
    return 0;
}
