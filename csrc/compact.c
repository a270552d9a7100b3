/*
** compact.c - page sets of version 2: small ones, for a reader whose state is known. Pure.
**
** Who asks for changes names the position and the state hash it stands at. What follows from
** these need not travel: it is an input of both sides. So a commit of one integer is
** some 35 bytes:
**
**     u8      0xd2: version 2 (version 1 begins with 'N')
**     u8      bits 0..2: page size, 512 << that; 8 = GENERATION; 16 = BARE; the others are zero
**     varint  bytes that follow
**     varint  GENERATION: generations forwards. Then the frame there; otherwise frames forwards
**     varint  database size less that at the start, in pages: 2 n, or for -n 2 n - 1
**     6       the primary's clock at the end: milliseconds since 1970, big-endian
**     varint  pages beside page 1, which is always in the set, and not listed
**     varint  for each: its number less that of the page before, less 1
**     bitmap  BARE: pages told without a base though they have one; bit i % 8 of byte i / 8 is page i
**             of the set, page 1 being page 0. Unused bits are zero
**     u64     state hash at the end, XOR the XXH3 of all bytes before it, seeded with the key
**     deltas  of all pages (delta.c)
**     u32     guard: low half of the XXH3 of all bytes before it, seeded with the key
**
** The key is the XXH3 of what the two sides must agree on: position, state hash, pages and page
** size at the start. Whatever is damaged, or meant for another state, is refused by the guard
** before anything is looked at; and if the guard is right by accident (once in 2^32), the state
** hash comes out wrong, because every byte before it is part of it. So what is applied is
** proved with 64 bits, as in version 1.
**
** A reader checks, in this order:
**
**   (1) version, bits, length: exact
**   (2) the guard
**   (3) the header that version 1 would have had: positions, size (nl_set_header_decode)
**   (4) page numbers: ascending, within the database, not the lock-byte page; no more than one chunk
**       takes; unused bits are zero
**   (5) each delta, while it is carried out
**   (6) the result, as a chunk of version 1 (nl_chunk_verify)
**   (7) while applying: that the file stands at the start, and the state hash after
*/
#include "nl.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "frame.h"

#define COMPACT_VERSION 0xd2u
#define COMPACT_GENERATION 8u
#define COMPACT_BARE 16u
#define COMPACT_CLOCK 6     /* bytes of commit_ms */
#define COMPACT_GUARD 4     /* bytes of the guard */
#define COMPACT_LEAST 24    /* bytes of the smallest set */
#define COMPACT_MAX_PAGES INT32_MAX /* size of a database that can be told */
#define COMPACT_KEY_SEED 0x4e4c434f4d504302u /* "NLCOMPC", 2 */

struct nl_compact {
    nl_set_header set;
    uint32_t count;         /* pages, page 1 among them */
    const uint8_t *deltas;  /* borrowed */
    size_t deltas_size;
    uint32_t *pgnos;        /* in the same allocation, as is bare */
    uint8_t *bare;          /* 1: page i was told without its base, or has none */
};

static uint64_t compact_key(const nl_state *from)
{
    uint8_t bytes[28];

    nl_put32(bytes, from->position.lineage);
    nl_put32(bytes + 4, from->position.generation);
    nl_put32(bytes + 8, from->position.frame);
    nl_put64(bytes + 12, from->hash);
    nl_put32(bytes + 20, from->pages);
    nl_put32(bytes + 24, from->page_size);
    return nl_xxh3(bytes, sizeof bytes, COMPACT_KEY_SEED);
}

/* ---------------------------------------------------------------- writing */

typedef struct compact_out {
    uint8_t *bytes;
    size_t size, room;      /* size > room: it did not fit */
} compact_out;

static void compact_bytes(compact_out *o, const uint8_t *p, size_t n)
{
    if (o->size <= o->room && n <= o->room - o->size) memcpy(o->bytes + o->size, p, n);
    o->size += n;
}

static void compact_varint(compact_out *o, uint32_t x)
{
    uint8_t bytes[5];
    size_t n = 0;

    for (; x >= 128; x >>= 7) bytes[n++] = (uint8_t)(x | 128);
    bytes[n++] = (uint8_t)x;
    compact_bytes(o, bytes, n);
}

static uint32_t compact_page_size_code(uint32_t page_size)
{
    return (uint32_t)__builtin_ctz(page_size) - 9;
}

/* What precedes the hash, the length aside. */
static void compact_put_head(
    compact_out *o, const nl_state *from, const nl_set_header *set, const uint32_t *pgnos)
{
    const uint32_t generations = set->to.generation - from->position.generation;
    const uint32_t grown = set->pages - from->pages;
    uint8_t clock[8];

    if (generations) compact_varint(o, generations);
    compact_varint(o, generations ? set->to.frame : set->to.frame - from->position.frame);
    compact_varint(o, set->pages >= from->pages ? 2 * grown : 2 * -grown - 1);
    nl_put64(clock, (uint64_t)set->commit_ms);
    compact_bytes(o, clock + 8 - COMPACT_CLOCK, COMPACT_CLOCK);
    compact_varint(o, set->count - 1);
    for (uint32_t i = 1; i < set->count; i++) compact_varint(o, pgnos[i] - pgnos[i - 1] - 1);
}

static uint8_t compact_put_bare(
    compact_out *o, const nl_state *from, const uint32_t *pgnos, const uint8_t *const *bases,
    uint32_t count)
{
    uint8_t bits[NL_CHUNK_MAX_PAGES / 8] = {0}, any = 0;

    for (uint32_t i = 0; i < count; i++) {
        if (bases[i] || pgnos[i] > from->pages) continue;
        bits[i / 8] |= (uint8_t)(1u << i % 8);
        any = COMPACT_BARE;
    }
    if (any) compact_bytes(o, bits, (count + 7) / 8);
    return any;
}

/* NULL, or why this cannot be a compact set. */
static const char *compact_unfit(
    const nl_state *from, const nl_set_header *set, const uint32_t *pgnos,
    const uint8_t *const *bases)
{
    if (set->flags) return "a snapshot starts from no state";
    if (set->page_size != from->page_size) return "the page size differs";
    if (memcmp(&set->from, &from->position, sizeof set->from) != 0
        || set->hash_from != from->hash) {
        return "it starts from another state";
    }
    if (nl_chunk_size(set->page_size, set->count) == 0) return "it is larger than a chunk";
    if (set->commit_ms < 0 || set->commit_ms >> (8 * COMPACT_CLOCK)) {
        return "its time is impossible";
    }
    if (set->pages > COMPACT_MAX_PAGES || from->pages > COMPACT_MAX_PAGES) {
        return "the database is too large";
    }
    const uint32_t lock_page = nl_lock_page(set->page_size);
    for (uint32_t i = 0; i < set->count; i++) {
        if (i == 0 ? pgnos[0] != 1 : pgnos[i] <= pgnos[i - 1]) {
            return "its pages are out of order";
        }
        if (pgnos[i] > set->pages || pgnos[i] == lock_page) return "a page does not exist";
        if (pgnos[i] > from->pages && bases[i]) return "a page beyond the old end has a base";
    }
    return NULL;
}

size_t nl_compact_bound(uint32_t page_size, uint32_t count)
{
    return 64 + 6 * (size_t)count + nl_delta_bound(page_size, count);
}

int nl_compact_encode(
    const nl_state *from,
    const nl_set_header *set,
    const uint32_t *pgnos,
    const uint8_t *const *bases,
    const uint8_t *const *images,
    uint8_t *out,
    size_t room,
    size_t *written,
    nl_error *err)
{
    const uint64_t key = compact_key(from);
    const char *unfit = compact_unfit(from, set, pgnos, bases);
    uint8_t start[7], tail[8];
    compact_out o = {NULL, 0, 0}, head = {start, 0, sizeof start};
    size_t deltas = 0, size;
    int rc;

    *written = 0;
    if (unfit) return nl_fail(err, NL_E_MISUSE, "no compact page set: %s", unfit);
    /* The head is written behind the room for version, bits and length, and moved down to them.
    ** */
    if (room <= sizeof start) return NL_OK;
    o.bytes = out + sizeof start;
    o.room = room - sizeof start;
    compact_put_head(&o, from, set, pgnos);
    uint8_t bits = (uint8_t)compact_page_size_code(set->page_size);
    if (set->to.generation != from->position.generation) bits |= COMPACT_GENERATION;
    bits |= compact_put_bare(&o, from, pgnos, bases, set->count);
    size = o.size;
    if (size + 8 + COMPACT_GUARD >= o.room) return NL_OK;
    rc = nl_delta_encode(set->page_size, set->pages, pgnos, bases, images, set->count,
        o.bytes + size + 8, o.room - size - 8 - COMPACT_GUARD, &deltas, err);
    if (rc || deltas == 0) return rc;

    start[0] = COMPACT_VERSION;
    start[1] = bits;
    head.size = 2;
    compact_varint(&head, (uint32_t)(size + 8 + deltas + COMPACT_GUARD));
    memcpy(out, start, head.size);
    memmove(out + head.size, o.bytes, size + 8 + deltas);
    size += head.size;
    nl_put64(out + size, set->hash_to ^ nl_xxh3(out, size, key));
    size += 8 + deltas;
    nl_put64(tail, nl_xxh3(out, size, key));
    memcpy(out + size, tail + 4, COMPACT_GUARD);
    *written = size + COMPACT_GUARD;
    return NL_OK;
}

/* ---------------------------------------------------------------- reading */

typedef struct compact_in {
    const uint8_t *at, *end;
} compact_in;

/* 1, or 0: it is too large, or does not end. */
static int compact_get(compact_in *r, uint32_t *out)
{
    uint64_t x = 0;

    for (int shift = 0; shift < 35 && r->at != r->end; shift += 7) {
        uint8_t b = *r->at++;
        x |= (uint64_t)(b & 0x7f) << shift;
        if (b >= 0x80) continue;
        *out = (uint32_t)x;
        return x <= UINT32_MAX;
    }
    return 0;
}

static int compact_bad(nl_error *err, const char *what)
{
    return nl_fail(err, NL_E_FORMAT, "malformed compact page set: %s", what);
}

/* (3): the movement it describes, judged by the decoder of version 1. */
static int compact_movement(
    compact_in *r, uint8_t bits, const nl_state *from, nl_set_header *set, nl_error *err)
{
    uint32_t generations = 0, frame, grown;
    uint8_t clock[8] = {0}, header[NL_SET_HEADER_SIZE];

    if (bits & COMPACT_GENERATION && (!compact_get(r, &generations) || generations == 0)) {
        return compact_bad(err, "its generation");
    }
    if (!compact_get(r, &frame) || !compact_get(r, &grown)) return compact_bad(err, "its position");
    if (r->end - r->at < COMPACT_CLOCK) return compact_bad(err, "it is cut short");
    memcpy(clock + 8 - COMPACT_CLOCK, r->at, COMPACT_CLOCK);
    r->at += COMPACT_CLOCK;
    if (!compact_get(r, &set->count) || set->count >= NL_CHUNK_MAX_PAGES) {
        return compact_bad(err, "its number of pages");
    }
    set->count++;
    set->flags = 0;
    set->page_size = from->page_size;
    set->pages = from->pages + (grown & 1 ? ~(grown / 2) : grown / 2);
    if (set->pages > COMPACT_MAX_PAGES) return compact_bad(err, "its database size");
    set->from = set->to = from->position;
    if (generations > UINT32_MAX - set->to.generation) return compact_bad(err, "its generation");
    set->to.generation += generations;
    if (!generations && frame > UINT32_MAX - set->to.frame) return compact_bad(err, "its position");
    set->to.frame = generations ? frame : set->to.frame + frame;
    set->hash_from = from->hash;
    set->hash_to = 0; /* not known yet */
    set->commit_ms = (int64_t)nl_get64(clock);
    if (nl_chunk_size(set->page_size, set->count) == 0) {
        return compact_bad(err, "its number of pages");
    }
    nl_set_header_encode(set, header);
    return nl_set_header_decode(header, sizeof header, set, err);
}

/* (4) */
static int compact_numbers(
    nl_compact *c, compact_in *r, uint8_t bits, uint32_t old_pages, nl_error *err)
{
    const uint32_t lock_page = nl_lock_page(c->set.page_size), bytes = (c->count + 7) / 8;

    c->pgnos[0] = 1;
    for (uint32_t i = 1; i < c->count; i++) {
        uint32_t gap, before = c->pgnos[i - 1];
        if (!compact_get(r, &gap) || gap >= c->set.pages - before) {
            return compact_bad(err, "a page beyond the end of the database");
        }
        c->pgnos[i] = before + 1 + gap;
        if (c->pgnos[i] == lock_page) return compact_bad(err, "the lock-byte page");
    }
    for (uint32_t i = 0; i < c->count; i++) c->bare[i] = c->pgnos[i] > old_pages;
    if (!(bits & COMPACT_BARE)) return NL_OK;
    if ((size_t)(r->end - r->at) < bytes) return compact_bad(err, "it is cut short");
    for (uint32_t i = 0; i < 8 * bytes; i++) {
        if (!(r->at[i / 8] >> i % 8 & 1)) continue;
        if (i >= c->count || c->bare[i]) return compact_bad(err, "bits of bases that are not");
        c->bare[i] = 1;
    }
    r->at += bytes;
    return NL_OK;
}

/* (1) and (2); *r is what lies between the length and the guard. */
static int compact_guarded(
    const uint8_t *in, size_t n, const nl_state *from, uint64_t key, compact_in *r, nl_error *err)
{
    uint32_t follow;

    if (n > 0 && in[0] != COMPACT_VERSION) {
        return nl_fail(err, NL_E_FORMAT, "not a compact page set");
    }
    if (n < COMPACT_LEAST) return compact_bad(err, "it is cut short");
    *r = (compact_in){in + 2, in + n};
    if (!compact_get(r, &follow)) return compact_bad(err, "its length");
    if ((size_t)(r->end - r->at) < follow) return compact_bad(err, "it is cut short");
    if ((size_t)(r->end - r->at) > follow) return compact_bad(err, "bytes follow it");
    if (in[1] & ~(7u | COMPACT_GENERATION | COMPACT_BARE)) return compact_bad(err, "unknown bits");
    r->end -= COMPACT_GUARD;
    if (nl_get32(r->end) != (uint32_t)nl_xxh3(in, n - COMPACT_GUARD, key)) {
        return nl_fail(err, NL_E_HASH, "the page set is damaged, or leads from another state than"
            " that of this replica");
    }
    if (512u << (in[1] & 7) != from->page_size) return compact_bad(err, "another page size");
    return NL_OK;
}

int nl_compact_open(
    const uint8_t *in, size_t n, const nl_state *from, nl_compact **out, nl_error *err)
{
    const uint64_t key = compact_key(from);
    nl_compact *c = NULL;
    nl_set_header set = {0};
    compact_in r = {in, in};
    int rc;

    *out = NULL;
    rc = compact_guarded(in, n, from, key, &r, err);
    if (!rc) rc = compact_movement(&r, in[1], from, &set, err);
    if (rc) return rc;
    c = malloc(sizeof *c + (size_t)set.count * (sizeof *c->pgnos + 1));
    if (!c) return nl_fail(err, NL_E_NOMEM, "out of memory");
    c->set = set;
    c->count = set.count;
    c->pgnos = (uint32_t *)(void *)(c + 1);
    c->bare = (uint8_t *)(c->pgnos + set.count);
    rc = compact_numbers(c, &r, in[1], from->pages, err);
    if (!rc && r.end - r.at < 8) rc = compact_bad(err, "it is cut short");
    if (rc) goto done;
    c->set.hash_to = nl_get64(r.at) ^ nl_xxh3(in, (size_t)(r.at - in), key);
    c->deltas = r.at + 8;
    c->deltas_size = (size_t)(r.end - c->deltas);
    *out = c;
    c = NULL;

done:
    nl_compact_free(c);
    return rc;
}

const nl_set_header *nl_compact_set(const nl_compact *c)
{
    return &c->set;
}

uint32_t nl_compact_page(const nl_compact *c, uint32_t i, int *needs_base)
{
    if (i >= c->count) return 0;
    *needs_base = !c->bare[i];
    return c->pgnos[i];
}

int nl_compact_unpack(
    const nl_compact *c,
    const uint8_t *const *bases,
    uint8_t *body,
    size_t size,
    nl_chunk_header *head,
    nl_error *err)
{
    uint8_t *pages = body + nl_chunk_pages_offset(c->count);
    size_t written;
    int rc;

    if (size != nl_chunk_size(c->set.page_size, c->count)) {
        return nl_fail(err, NL_E_MISUSE, "%zu bytes for a chunk of %u pages", size, c->count);
    }
    for (uint32_t i = 0; i < c->count; i++) {
        if ((bases[i] != NULL) == c->bare[i]) {
            nl_fail(err, NL_E_MISUSE, "page %u %s a base", c->pgnos[i],
                c->bare[i] ? "has no" : "needs");
            if (err) err->page = c->pgnos[i];
            return NL_E_MISUSE;
        }
    }
    rc = nl_delta_decode(c->set.page_size, c->set.pages, c->pgnos, bases, c->count, c->deltas,
        c->deltas_size, pages, err);
    if (rc) return rc;
    *head = (nl_chunk_header){0, c->count, (uint32_t)size, (uint32_t)size, 0};
    return nl_chunk_encode(c->set.page_size, c->pgnos, NULL, NULL, c->count, body, size,
        &written, &head->digest, err);
}

void nl_compact_free(nl_compact *c)
{
    free(c);
}
