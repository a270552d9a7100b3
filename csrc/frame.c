/*
** frame.c - checksums and hashes of pages, and the frames of a WAL. Pure: no I/O, no SQLite.
**
** A WAL (https://sqlite.org/fileformat2.html#walformat) is a header and then frames:
**
**     WAL header, 32 bytes              frame header, 24 bytes, then one page
**      0  magic 0x377f0682, +1: sums     0  page number
**         read words big-endian          4  database size in pages, or 0: no commit
**      4  format 3007000                 8  salts, equal to the WAL header's
**      8  page size                     16  checksum: chained over bytes 0..7 of the
**     12  checkpoint sequence               frame header and the page
**     16  salts
**     24  checksum over bytes 0..23
**
** A frame counts only if (1) its salts are the header's, (2) its page number is not zero and
** (3) its checksum continues the chain from the frame before. Whatever follows the first frame that
** fails is left over from an earlier life of the file.
**
** The page hash is what replication is verified with: XXH3-64, seeded with the page number so that
** the XOR of all of them notices exchanged pages. On page 1 the bytes in which a replica differs
** from its primary count as zero: byte 18 and the replica header.
*/
#include "frame.h"

#include <assert.h>
#include <string.h>

#include "bytes.h"
#include "simd.h"

#define FRAME_MAGIC 0x377f0682u
#define FRAME_FORMAT 3007000u

/* ---------------------------------------------------------------- choice of the kernels */

uint32_t nl_fib_down[NL_FIB_HIGH + NL_FIB_LOW + 1];

/* Written when the library is loaded and by tests; any thread reads them without a lock. */
static const nl_simd *frame_simd = &nl_simd_base;
static uint32_t frame_lock_byte = 0x40000000;

/* How a page moves the checksum before it (simd_level.h): F(N-1), F(N), F(N+1) modulo 2^32 for the N
** words of a page of 512 << i bytes. */
static uint32_t frame_leap[8][3];

int nl_simd_best(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) return 3;
    if (__builtin_cpu_supports("avx2")) return 2;
#endif
    return 1;
}

int nl_simd_use(int level)
{
    int best = nl_simd_best();

    if (level > best) level = best;
    if (level <= 0) {
        frame_simd = &nl_simd_scalar;
    } else {
        frame_simd = &nl_simd_base;
    }
#if defined(__x86_64__)
    if (level == 2) frame_simd = &nl_simd_avx2;
    if (level == 3) frame_simd = &nl_simd_avx512;
#endif
    return frame_simd->level;
}

/* F(n-1), F(n), F(n+1) for an even power of two n, by F(2k) = F(k) (F(k+1) + F(k-1)) and
** F(2k+1) = F(k+1)^2 + F(k)^2. */
static void frame_leap_of(uint32_t n, uint32_t f[3])
{
    uint32_t below = 0, at = 1; /* F(0), F(1) */
    for (uint32_t k = 1; k < n; k *= 2) {
        uint32_t above = below + at;
        uint32_t twice = at * (above + below), next = above * above + at * at;
        below = next - twice;
        at = twice;
    }
    f[0] = below;
    f[1] = at;
    f[2] = below + at;
}

/* Before any thread of ours exists, so that nothing needs to be atomic afterwards. */
__attribute__((constructor)) static void frame_load(void)
{
    nl_fib(0) = 0;
    nl_fib(1) = 1;
    for (int i = 2; i <= NL_FIB_HIGH; i++) nl_fib(i) = nl_fib(i - 1) + nl_fib(i - 2);
    for (int i = -1; i >= -NL_FIB_LOW; i--) nl_fib(i) = nl_fib(i + 2) - nl_fib(i + 1);
    for (int i = 0; i < 8; i++) frame_leap_of(128u << i, frame_leap[i]);
    nl_simd_use(nl_simd_best());
}

/* ---------------------------------------------------------------- WAL header and frames */

void nl_wal_checksum(const uint8_t *data, size_t n, int big_endian, uint32_t s[2])
{
    assert(n % 8 == 0);
    frame_simd->checksum(data, n, (big_endian != 0) != NL_HOST_BIG, s);
}

int nl_page_size_valid(uint32_t page_size)
{
    return page_size >= 512 && page_size <= 65536 && (page_size & (page_size - 1)) == 0;
}

int nl_wal_header_decode(const uint8_t *in, size_t n, nl_wal_chain *out, nl_error *err)
{
    nl_wal_chain chain;

    if (n < NL_WAL_HEADER_SIZE) return nl_fail(err, NL_E_FORMAT, "the WAL header is cut short");
    if ((nl_get32(in) & ~1u) != FRAME_MAGIC || nl_get32(in + 4) != FRAME_FORMAT) {
        return nl_fail(err, NL_E_FORMAT, "not a WAL of the format that SQLite 3.7.0 introduced");
    }
    chain.big_endian = nl_get32(in) & 1;
    chain.page_size = nl_get32(in + 8);
    if (!nl_page_size_valid(chain.page_size)) {
        return nl_fail(err, NL_E_FORMAT, "the WAL header names an impossible page size");
    }
    chain.salt[0] = nl_get32(in + 16);
    chain.salt[1] = nl_get32(in + 20);
    chain.sum[0] = chain.sum[1] = 0;
    nl_wal_checksum(in, 24, chain.big_endian, chain.sum);
    if (chain.sum[0] != nl_get32(in + 24) || chain.sum[1] != nl_get32(in + 28)) {
        return nl_fail(err, NL_E_FORMAT, "the checksum of the WAL header does not match");
    }
    *out = chain;
    return NL_OK;
}

void nl_wal_header_encode(nl_wal_chain *chain, uint32_t sequence, uint8_t out[NL_WAL_HEADER_SIZE])
{
    assert(nl_page_size_valid(chain->page_size));
    nl_put32(out, FRAME_MAGIC | (chain->big_endian != 0));
    nl_put32(out + 4, FRAME_FORMAT);
    nl_put32(out + 8, chain->page_size);
    nl_put32(out + 12, sequence);
    nl_put32(out + 16, chain->salt[0]);
    nl_put32(out + 20, chain->salt[1]);
    chain->sum[0] = chain->sum[1] = 0;
    nl_wal_checksum(out, 24, chain->big_endian, chain->sum);
    nl_put32(out + 24, chain->sum[0]);
    nl_put32(out + 28, chain->sum[1]);
}

void nl_frame_header_decode(const uint8_t in[NL_FRAME_HEADER_SIZE], nl_frame_header *out)
{
    out->pgno = nl_get32(in);
    out->commit = nl_get32(in + 4);
    out->salt[0] = nl_get32(in + 8);
    out->salt[1] = nl_get32(in + 12);
    out->sum[0] = nl_get32(in + 16);
    out->sum[1] = nl_get32(in + 20);
}

uint32_t nl_frames_verify(
    nl_wal_chain *chain, const uint8_t *frames, uint32_t n, uint32_t *committed)
{
    const size_t frame_size = NL_FRAME_HEADER_SIZE + (size_t)chain->page_size;
    uint32_t i, commit = 0;

    for (i = 0; i < n; i++) {
        const uint8_t *frame = frames + i * frame_size;
        uint32_t sum[2] = {chain->sum[0], chain->sum[1]};
        nl_frame_header h;

        nl_frame_header_decode(frame, &h);
        if (h.salt[0] != chain->salt[0] || h.salt[1] != chain->salt[1]) break; /* (1) */
        if (h.pgno == 0) break;                                                /* (2) */
        nl_wal_checksum(frame, 8, chain->big_endian, sum);
        nl_wal_checksum(frame + NL_FRAME_HEADER_SIZE, chain->page_size, chain->big_endian, sum);
        if (h.sum[0] != sum[0] || h.sum[1] != sum[1]) break;                   /* (3) */
        chain->sum[0] = sum[0];
        chain->sum[1] = sum[1];
        if (h.commit) commit = i + 1;
    }
    if (committed) *committed = commit;
    return i;
}

int nl_wal_native(const nl_wal_chain *chain)
{
    return (chain->big_endian != 0) == NL_HOST_BIG;
}

void nl_frame_header_encode(
    nl_wal_chain *chain, uint32_t pgno, uint32_t commit, const uint32_t share[2],
    uint8_t out[NL_FRAME_HEADER_SIZE])
{
    const uint32_t *f = frame_leap[__builtin_ctz(chain->page_size) - 9];
    uint32_t s[2] = {chain->sum[0], chain->sum[1]};

    assert(pgno > 0 && nl_page_size_valid(chain->page_size));
    nl_put32(out, pgno);
    nl_put32(out + 4, commit);
    nl_put32(out + 8, chain->salt[0]);
    nl_put32(out + 12, chain->salt[1]);
    nl_wal_checksum(out, 8, chain->big_endian, s);
    chain->sum[0] = f[0] * s[0] + f[1] * s[1] + share[0];
    chain->sum[1] = f[1] * s[0] + f[2] * s[1] + share[1];
    nl_put32(out + 16, chain->sum[0]);
    nl_put32(out + 20, chain->sum[1]);
}

void nl_frame_encode(
    nl_wal_chain *chain, uint32_t pgno, uint32_t commit, const uint8_t *page, uint8_t *out)
{
    uint32_t share[2] = {0, 0};

    nl_wal_checksum(page, chain->page_size, chain->big_endian, share);
    nl_frame_header_encode(chain, pgno, commit, share, out);
    memcpy(out + NL_FRAME_HEADER_SIZE, page, chain->page_size);
}

/* ---------------------------------------------------------------- hashes */

uint64_t nl_xxh3(const uint8_t *data, size_t n, uint64_t seed)
{
    return frame_simd->xxh3(data, n, seed);
}

uint64_t nl_page_hash(const uint8_t *page, uint32_t page_size, uint32_t pgno)
{
    assert(nl_page_size_valid(page_size) && pgno > 0);
    if (pgno == 1) return frame_simd->xxh3_masked(page, page_size, pgno);
    return frame_simd->xxh3(page, page_size, pgno);
}

uint32_t nl_lock_page(uint32_t page_size)
{
    return frame_lock_byte / page_size + 1;
}

void nl_lock_byte_use(uint32_t offset)
{
    frame_lock_byte = offset;
}

uint64_t nl_page_hashes(
    const uint8_t *pages, uint32_t page_size, uint32_t first, uint32_t n, uint64_t *hashes)
{
    const uint32_t lock_page = nl_lock_page(page_size);
    uint64_t state = 0;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t pgno = first + i;
        const uint8_t *page = pages + (size_t)i * page_size;
        uint64_t hash = pgno == lock_page ? 0 : nl_page_hash(page, page_size, pgno);
        if (hashes) hashes[i] = hash;
        state ^= hash;
    }
    return state;
}

uint64_t nl_state_hash(const uint8_t *pages, uint32_t page_size, uint32_t first, uint32_t n)
{
    return nl_page_hashes(pages, page_size, first, n, NULL);
}
