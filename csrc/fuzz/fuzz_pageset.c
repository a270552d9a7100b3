/*
** Invariant: whatever bytes come, even from somebody who computes every digest right, a chunk is
** verified only if its pages ascend, lie within the database and are not the lock-byte page, and then
** encoding them again gives the same body and digest; nothing outside of the input is read.
**
** Input: one byte of choices, set header (96), chunk header (32), body. The choices say which guards
** and digests are made right before the code under test sees them.
*/
#include "target.h"

#include "bytes.h"
#include "frame.h"
#include "pageset.h"

enum { HEAD = 1 + NL_SET_HEADER_SIZE + NL_CHUNK_HEADER_SIZE };
enum { RIGHT_GUARDS = 1, RIGHT_MAGIC = 2, RIGHT_SIZES = 4, RIGHT_DIGEST = 8, LOW_LOCK = 16 };

static const uint64_t target_chunk_seed = 0x4e4c4348554e4b01u;

/* The digest of what the table names, without any of the checks. */
static uint64_t target_digest(const uint8_t *body, uint32_t page_size, uint32_t count)
{
    uint8_t *pairs = target_alloc(12 * (size_t)count);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t pgno = nl_get32(body + 8 * (size_t)i);
        const uint8_t *page = body + nl_chunk_pages_offset(count) + (size_t)i * page_size;
        nl_put32(pairs + 12 * (size_t)i, pgno);
        nl_put64(pairs + 12 * (size_t)i + 4, pgno ? nl_page_hash(page, page_size, pgno) : 0);
    }
    uint64_t digest = nl_xxh3(pairs, 12 * (size_t)count, 0);
    free(pairs);
    return digest;
}

static void target_check(const nl_set_header *set, const nl_chunk_header *head, const nl_chunk *c,
    const uint8_t *body, size_t n)
{
    const uint32_t count = nl_chunk_count(c);
    const uint8_t **pages = (const uint8_t **)(void *)target_alloc(count * sizeof *pages);
    uint32_t *pgnos = (uint32_t *)(void *)target_alloc(count * sizeof *pgnos), before = 0;
    uint8_t *again = target_alloc(n);
    uint64_t hash, digest;
    size_t written;

    REQUIRE(count == head->count && count > 0);
    for (uint32_t i = 0; i < count; i++) {
        REQUIRE(nl_chunk_page(c, i, &pgnos[i], &hash, &pages[i]) == NL_OK);
        REQUIRE(pgnos[i] > before && pgnos[i] <= set->pages);
        REQUIRE(pgnos[i] != nl_lock_page(set->page_size));
        REQUIRE(pages[i] >= body && pages[i] + set->page_size <= body + n);
        REQUIRE(hash == nl_page_hash(pages[i], set->page_size, pgnos[i]));
        before = pgnos[i];
    }
    REQUIRE(nl_chunk_last(c) == before);
    REQUIRE(nl_chunk_page(c, count, &before, &hash, pages) == NL_E_MISUSE);
    for (uint32_t i = 0; i < count; i++) (void)nl_chunk_page(c, i, &before, &hash, &pages[i]);
    REQUIRE(nl_chunk_encode(set->page_size, pgnos, pages, NULL, count, again, n, &written, &digest, NULL)
        == NL_OK);
    REQUIRE(written == n && digest == head->digest && memcmp(again, body, n) == 0);
    free(again);
    free(pgnos);
    free(pages);
}

/* The set taken as a whole: its chunks are those that come one by one. */
static void target_whole(const nl_set_header *set, const uint8_t *in, size_t n)
{
    nl_chunk *chunks[2];
    uint32_t count = 7, pages = 0, after = 0;
    nl_error err;

    if (nl_set_verify(set, in, n, chunks, 2, &count, &err) != NL_OK) {
        REQUIRE(count == 0 && (err.code == NL_E_FORMAT || err.code == NL_E_HASH
            || err.code == NL_E_PIECEMEAL));
        return;
    }
    REQUIRE(count <= 2);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t first;
        uint64_t hash;
        const uint8_t *page;
        REQUIRE(nl_chunk_page(chunks[i], 0, &first, &hash, &page) == NL_OK && first > after);
        REQUIRE(page >= in && page + set->page_size <= in + n);
        after = nl_chunk_last(chunks[i]);
        pages += nl_chunk_count(chunks[i]);
        nl_chunk_free(chunks[i]);
    }
    REQUIRE(pages == set->count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < HEAD) return 0;
    const int choice = data[0];
    const size_t body_size = n - HEAD;
    uint8_t *body = target_alloc(body_size);
    uint8_t top[NL_SET_HEADER_SIZE], middle[NL_CHUNK_HEADER_SIZE], back[NL_SET_HEADER_SIZE];
    nl_set_header set;
    nl_chunk_header head;
    nl_chunk *chunk = NULL;
    nl_error err;

    nl_lock_byte_use(choice & LOW_LOCK ? 1024 : 0x40000000);
    memcpy(top, data + 1, sizeof top);
    memcpy(middle, data + 1 + sizeof top, sizeof middle);
    if (body_size) memcpy(body, data + HEAD, body_size);
    if (choice & RIGHT_MAGIC) memcpy(top, "NLSET\r\n\x1a\0\0\0\1", 12);
    if (choice & RIGHT_GUARDS) nl_put64(top + 88, nl_xxh3(top, 88, 0));
    if (nl_set_header_decode(top, sizeof top, &set, &err) != NL_OK) goto done;
    nl_set_header_encode(&set, back);
    REQUIRE(memcmp(top, back, sizeof top) == 0);

    target_whole(&set, data + 1 + sizeof top, n - 1 - sizeof top); /* as it is: its digests are its own */
    if (choice & RIGHT_SIZES) {
        nl_put32(middle, 0);
        nl_put32(middle + 8, (uint32_t)body_size);
        nl_put32(middle + 12, (uint32_t)body_size);
    }
    uint32_t count = nl_get32(middle + 4);
    if (choice & RIGHT_DIGEST && body_size && nl_chunk_size(set.page_size, count) == body_size) {
        nl_put64(middle + 16, target_digest(body, set.page_size, count));
    }
    if (choice & RIGHT_GUARDS) nl_put64(middle + 24, nl_xxh3(middle, 24, target_chunk_seed));
    if (nl_chunk_header_decode(middle, sizeof middle, &head, &err) != NL_OK) goto done;
    nl_chunk_header_encode(&head, back);
    REQUIRE(memcmp(middle, back, sizeof middle) == 0);
    if (head.count == 0) goto done;

    if (nl_chunk_verify(&set, &head, body, body_size, 0, &chunk, &err) == NL_OK) {
        target_check(&set, &head, chunk, body, body_size);
        uint8_t *whole = target_alloc(body_size + 2 * sizeof middle);
        memcpy(whole, middle, sizeof middle);
        memcpy(whole + sizeof middle, body, body_size);
        nl_chunk_header_encode(&(nl_chunk_header){0}, whole + sizeof middle + body_size);
        target_whole(&set, whole, body_size + 2 * sizeof middle);
        free(whole);
    } else {
        REQUIRE(chunk == NULL && (err.code == NL_E_FORMAT || err.code == NL_E_HASH));
    }

done:
    nl_chunk_free(chunk);
    free(body);
    return 0;
}
