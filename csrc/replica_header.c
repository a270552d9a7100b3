/* replica_header.c - see replica_header.h. Pure: bytes in, bytes out. */
#include "replica_header.h"
#include "bytes.h"

#include <string.h>

int nl_replica_header(const uint8_t *page1, nl_position *position, uint64_t *hash, nl_error *err) {
    const uint8_t *h = page1 + NL_REPLICA_HEADER_OFFSET;
    position->lineage = nl_get32(h);
    position->generation = nl_get32(h + 4);
    position->frame = nl_get32(h + 8);
    *hash = nl_get64(h + 12);
    if (position->lineage == 0) {
        return nl_fail(err, NL_E_NOT_REPLICA, "the file carries no replica header");
    }
    if (page1[NL_WRITE_VERSION_OFFSET] != 3) {
        return nl_fail(err, NL_E_NOT_REPLICA,
                       "the file was a replica once, but is writable and may have been written");
    }
    if ((position->lineage >> 28) != 0) {
        return nl_fail(err, NL_E_NOT_REPLICA, "the replica header is of a later version");
    }
    return NL_OK;
}

void nl_replica_neutral(uint8_t *page1) {
    if (page1[NL_WRITE_VERSION_OFFSET] != 3) return;
    page1[NL_WRITE_VERSION_OFFSET] = 2;
    memset(page1 + NL_REPLICA_HEADER_OFFSET, 0, NL_REPLICA_HEADER_SIZE);
}

int nl_replica_page_one(
    uint8_t *page1,
    uint32_t page_size,
    nl_position position,
    uint64_t hash,
    nl_error *err
) {
    uint32_t size = (uint32_t)page1[16] << 8 | page1[17]; /* 1 stands for 65536 */
    if (memcmp(page1, "SQLite format 3", 16) != 0 || (size == 1 ? 65536 : size) != page_size ||
        page1[19] != 2 || page1[20] != 0) {
        return nl_fail(err, NL_E_FORMAT, "page 1 is not that of a WAL-mode database");
    }
    page1[NL_WRITE_VERSION_OFFSET] = 3;
    nl_put32(page1 + NL_REPLICA_HEADER_OFFSET, position.lineage);
    nl_put32(page1 + NL_REPLICA_HEADER_OFFSET + 4, position.generation);
    nl_put32(page1 + NL_REPLICA_HEADER_OFFSET + 8, position.frame);
    nl_put64(page1 + NL_REPLICA_HEADER_OFFSET + 12, hash);
    return NL_OK;
}
