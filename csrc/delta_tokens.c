/*
** delta_tokens.c - records packed into copies and literals (delta.c has the format). Pure.
**
** Greedy, one candidate from the page's base and one from what came before, each the latest
** place with the same four bytes. The base is looked through only for records that hold more
** than a few bytes: it costs more than all the rest.
*/
#include "delta_tokens.h"

#include <string.h>

#include "delta.h"

#define TOKENS_SMALL 16u /* a shorter record is not worth looking for copies */

typedef struct tokens_out {
    uint8_t *at, *end;
    int full;
} tokens_out;

static void tokens_byte(tokens_out *o, uint8_t b)
{
    if (o->at == o->end) o->full = 1;
    else *o->at++ = b;
}

static void tokens_varint(tokens_out *o, uint32_t x)
{
    for (; x >= 128; x >>= 7) tokens_byte(o, (uint8_t)(x | 128));
    tokens_byte(o, (uint8_t)x);
}

static void tokens_bytes(tokens_out *o, const uint8_t *p, size_t n)
{
    if (n > (size_t)(o->end - o->at)) {
        o->full = 1;
    } else {
        memcpy(o->at, p, n);
        o->at += n;
    }
}

static uint32_t tokens_slot(const uint8_t *p)
{
    uint32_t x;
    memcpy(&x, p, 4);
    return x * 2654435761u >> 20;
}

static uint32_t tokens_match(const uint8_t *a, const uint8_t *b, uint32_t most)
{
    uint32_t n = 0;
    while (n < most && a[n] == b[n]) n++;
    return n;
}

void delta_tokens_open(delta_tokens *t, uint32_t page_size, uint8_t *records)
{
    t->dictionary = NULL;
    t->page_size = page_size;
    t->indexed = 0;
    t->records = records;
    t->used = 0;
    memset(t->recent, 0, sizeof t->recent);
}

void delta_tokens_base(delta_tokens *t, const uint8_t *base)
{
    if (!base || base == t->dictionary) return;
    t->dictionary = base;
    t->indexed = 0;
}

static void tokens_index(delta_tokens *t)
{
    const uint8_t *base = t->dictionary;
    const uint32_t n = t->page_size - 3;

    memset(t->base_at, 0, sizeof t->base_at);
    for (uint32_t i = 0; i < n; i++) t->base_at[tokens_slot(base + i)] = (uint16_t)(i + 1);
    t->indexed = 1;
}

typedef struct tokens_copy {
    uint32_t size, distance;
} tokens_copy;

/* The longer of the two candidates at record[at]; size 0: none. */
static tokens_copy tokens_find(
    const delta_tokens *t, const uint8_t *record, uint32_t at, uint32_t size)
{
    const uint32_t slot = tokens_slot(record + at), most = size - at;
    uint32_t have = t->dictionary ? t->page_size : 0;
    tokens_copy best = {0, 0};

    if (t->recent[slot]) {
        uint32_t from = t->recent[slot] - 1;
        size_t back = t->used + at - from;      /* from record[at] */
        uint32_t room = from >= t->used ? most : (uint32_t)(t->used - from);
        if (back <= at + DELTA_HISTORY) {
            best.size = tokens_match(t->records + from, record + at, most < room ? most : room);
            best.distance = (uint32_t)back + (from >= t->used ? 0 : have);
        }
    }
    if (have && t->base_at[slot]) {
        uint32_t from = t->base_at[slot] - 1, room = have - from;
        uint32_t n = tokens_match(t->dictionary + from, record + at, most < room ? most : room);
        if (n > best.size) best = (tokens_copy){n, at + room};
    }
    if (best.size < DELTA_COPY_MIN) best.size = 0;
    return best;
}

static void tokens_put(tokens_out *o, const uint8_t *literals, uint32_t n, tokens_copy copy)
{
    uint32_t extra = copy.size ? copy.size - (DELTA_COPY_MIN - 1) : 0;

    tokens_byte(o, (uint8_t)((n < 15 ? n : 15) << 4 | (extra < 15 ? extra : 15)));
    if (n >= 15) tokens_varint(o, n - 15);
    tokens_bytes(o, literals, n);
    if (copy.size == 0) return;
    if (extra >= 15) tokens_varint(o, extra - 15);
    tokens_varint(o, copy.distance);
}

static void tokens_write(delta_tokens *t, const uint8_t *record, uint32_t size, tokens_out *o)
{
    const uint32_t offset = (uint32_t)t->used + 1;
    uint32_t at = 0, literals = 0;

    while (at + DELTA_COPY_MIN <= size) {
        tokens_copy copy = tokens_find(t, record, at, size);
        t->recent[tokens_slot(record + at)] = offset + at;
        if (copy.size == 0) {
            at++;
            continue;
        }
        tokens_put(o, record + literals, at - literals, copy);
        for (uint32_t k = 1; k < copy.size && at + k + 4 <= size; k++) {
            t->recent[tokens_slot(record + at + k)] = offset + at + k;
        }
        at += copy.size;
        literals = at;
    }
    if (literals < size) tokens_put(o, record + literals, size - literals, (tokens_copy){0, 0});
}

/* Keep no more history than the decoder does. */
static void tokens_forget(delta_tokens *t)
{
    const uint32_t gone = (uint32_t)t->used - DELTA_HISTORY;

    memmove(t->records, t->records + gone, DELTA_HISTORY);
    t->used = DELTA_HISTORY;
    for (uint32_t i = 0; i < TOKENS_SLOTS; i++) {
        t->recent[i] = t->recent[i] > gone ? t->recent[i] - gone : 0;
    }
}

size_t delta_tokens_pack(
    delta_tokens *t, const uint8_t *bytes, uint32_t size, uint8_t *out, size_t room)
{
    tokens_out o = {out, out + room, 0};

    if (t->used > 2 * DELTA_HISTORY) tokens_forget(t);
    uint8_t *record = t->records + t->used;
    if (size) memcpy(record, bytes, size);
    if (size >= TOKENS_SMALL) {
        if (t->dictionary && !t->indexed) tokens_index(t);
        tokens_varint(&o, 2 * size + 1);
        tokens_write(t, record, size, &o);
    }
    if (size < TOKENS_SMALL || o.full || (size_t)(o.at - out) > size) {
        o = (tokens_out){out, out + room, 0};
        tokens_varint(&o, 2 * size);
        tokens_bytes(&o, bytes, size);
    }
    t->used += size;
    return o.full ? 0 : (size_t)(o.at - out);
}
