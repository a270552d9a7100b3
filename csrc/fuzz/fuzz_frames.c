/*
** Invariant: of any bytes offered as a WAL, nl_frames_verify accepts a first part that encodes back to
** the very same bytes, and nothing behind the first frame that was changed.
**
** Input: page size, byte order, where to change something and how; then pages. The frames are made
** valid here, because no mutation would guess a checksum.
*/
#include "target.h"

#include "bytes.h"

enum { HEAD = 12 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < HEAD) return 0;
    nl_wal_chain chain = {512u << (data[0] & 3), data[1] & 1, {nl_get32(data + 4), n & 7}, {0, 0}};
    const size_t page_size = chain.page_size, frame_size = NL_FRAME_HEADER_SIZE + page_size;
    const uint32_t count = (uint32_t)((n - HEAD + page_size - 1) / page_size);
    const size_t size = NL_WAL_HEADER_SIZE + count * frame_size;
    uint8_t *wal = target_alloc(size), *again = target_alloc(size), *page = target_alloc(page_size);
    uint32_t committed, last = 0;
    nl_error err;

    nl_wal_header_encode(&chain, nl_get32(data + 8), wal);
    nl_wal_chain from = chain;
    for (uint32_t i = 0; i < count; i++) {
        size_t at = HEAD + i * page_size, have = n - at < page_size ? n - at : page_size;
        memset(page, 0, page_size);
        memcpy(page, data + at, have);
        uint32_t commit = page[0] & 1 ? i + 1 : 0;
        if (commit) last = commit;
        nl_frame_encode(&chain, i + 1, commit, page, wal + NL_WAL_HEADER_SIZE + i * frame_size);
    }
    memcpy(again, wal, size);

    nl_wal_chain found;
    REQUIRE(nl_wal_header_decode(wal, size, &found, &err) == NL_OK);
    REQUIRE(memcmp(&found, &from, sizeof found) == 0);
    REQUIRE(nl_frames_verify(&found, wal + NL_WAL_HEADER_SIZE, count, &committed) == count);
    REQUIRE(committed == last);
    REQUIRE(found.sum[0] == chain.sum[0] && found.sum[1] == chain.sum[1]);

    if (data[2]) { /* change one byte: the chain ends there at the latest */
        size_t at = (nl_get32(data + 8) ^ nl_get32(data + 4)) % size;
        wal[at] ^= data[2];
        found = from;
        if (at < NL_WAL_HEADER_SIZE) {
            REQUIRE(nl_wal_header_decode(wal, size, &found, &err) == NL_E_FORMAT);
        } else {
            uint32_t damaged = (uint32_t)((at - NL_WAL_HEADER_SIZE) / frame_size);
            uint32_t valid = nl_frames_verify(&found, wal + NL_WAL_HEADER_SIZE, count, &committed);
            REQUIRE(valid == damaged && committed <= valid);
            REQUIRE(memcmp(wal, again, NL_WAL_HEADER_SIZE + valid * frame_size) == 0);
        }
    }

    /* The raw bytes, too: nearly always refused, never read beyond. */
    uint8_t *raw = target_alloc(n);
    memcpy(raw, data, n);
    if (nl_wal_header_decode(raw, n, &found, &err) == NL_OK) {
        uint32_t whole = (uint32_t)((n - NL_WAL_HEADER_SIZE)
            / (NL_FRAME_HEADER_SIZE + (size_t)found.page_size));
        REQUIRE(nl_frames_verify(&found, raw + NL_WAL_HEADER_SIZE, whole, NULL) <= whole);
    }
    free(raw);
    free(page);
    free(again);
    free(wal);
    return 0;
}
