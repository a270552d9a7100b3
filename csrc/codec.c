/*
** codec.c - a page and its slot, a WAL frame and its sealed form. Pure: bytes in, bytes out.
**
**     a slot (page size + 32)              a sealed frame (24 + page size + 32)
**       sealed page      page size           page number, commit size, salts    16, plain
**       nonce                   12           nonce                              12
**       tag                     16           key id                              4
**       key id                   4           tag                                16
**                                            sealed: checksum 8, page           8 + page size
**
**     a sealed record, of the files beside a database: the record, then nonce, tag and key id as in a slot
**
**     aad   "nl-page1"  key id 4  page number 4   file id 16
**           "nl-frame"  key id 4  frame number 4  file id 16  the plain 16 bytes
**           "nl-recrd"  key id 4  its number 4    file id 16  the name of what it is a record of
**
** So a seal opens only where it was made: in this file, at this page or frame number, and a frame only
** with the salts of its WAL (rule D3: they are taken from the frame itself). An older slot of the same page
** of the same file does open (rule D5).
**
** **Keys and nonces.** Nonces are random, 96 bits, so no more than 2^32 seals may be made with one key (SP
** 800-38D, 8.3). No process counts what others have sealed. Instead the data key makes 1,024 page keys, by
** HKDF over the epoch, a number that each codec draws when it is opened and after each 2^20 seals: 2^41 pages
** of 4 KiB, 9 petabytes, can be written until one of them has sealed 2^32. More epochs would allow more, and
** make a scan of the file prepare more keys; a random epoch tells nobody when a page was written, which a
** date would. A frame's key comes from the salts, which every WAL draws anew; only frames with zero salts,
** which SQLite writes for a moment in the middle of a transaction, take an epoch as pages do.
**
** The child of a fork() has the parent's nonces before it; whoever owns a codec does not use it there
** (nl_forks()), as nothing of a connection may be used there.
*/
#include <stdlib.h>
#include <string.h>

#include "aead.h"
#include "bytes.h"
#include "frame.h"
#include "header_block.h"
#include "nl.h"

enum {
    PLAIN = 16,                  /* of a frame */
    FRAME_HEAD = PLAIN + NL_NONCE_SIZE + 4 + NL_TAG_SIZE,
    SUM = 8,
    AAD_PAGE = 32,
    AAD_FRAME = AAD_PAGE + PLAIN,
    AAD_RECORD = AAD_PAGE + NL_RECORD_NAME_MAX,
    WALS = 4,                    /* WAL keys that are kept: this WAL's, the one's before, zero salts' */
    SEALS_PER_EPOCH = 1 << 20
};

/* One data key and the keys that were derived from it so far. */
typedef struct codec_generation {
    uint32_t number;
    uint8_t key[NL_KEY_SIZE];
    nl_aead *epoch[NL_EPOCHS];   /* of pages */
    nl_aead *record[NL_EPOCHS];
} codec_generation;

typedef struct codec_wal {
    uint32_t id;                 /* key id */
    uint8_t salt[8];
    nl_aead *aead;               /* NULL: free */
} codec_wal;

struct nl_codec {
    uint32_t page_size;
    uint8_t file_id[16];
    codec_generation *current;   /* both in memory for secrets */
    codec_generation *previous;  /* or NULL */
    uint32_t epoch;
    uint32_t left;               /* seals until the next epoch */
    codec_wal wal[WALS];
    unsigned next_wal;           /* the one that is given up next */
    nl_nonces nonces;
};

/* ------------------------------------------------------------------ life */

static codec_generation *codec_generation_new(uint32_t number, const uint8_t key[NL_KEY_SIZE])
{
    codec_generation *g = nl_secret_alloc(sizeof *g);

    if (!g) return NULL;
    g->number = number;
    memcpy(g->key, key, NL_KEY_SIZE);
    return g;
}

static void codec_generation_free(codec_generation *g)
{
    if (!g) return;
    for (int i = 0; i < NL_EPOCHS; i++) {
        nl_aead_free(g->epoch[i]);
        nl_aead_free(g->record[i]);
    }
    nl_secret_free(g, sizeof *g);
}

void nl_codec_free(nl_codec *c)
{
    if (!c) return;
    codec_generation_free(c->current);
    codec_generation_free(c->previous);
    for (int i = 0; i < WALS; i++) nl_aead_free(c->wal[i].aead);
    free(c);
}

static int codec_draw_epoch(nl_codec *c, nl_error *err)
{
    uint8_t drawn[4];

    int rc = nl_random(drawn, sizeof drawn, err);
    if (rc != NL_OK) return rc;
    c->epoch = nl_get32(drawn) % NL_EPOCHS;
    c->left = SEALS_PER_EPOCH;
    return NL_OK;
}

static int codec_new(const nl_block *what, const nl_data_keys *data, nl_codec **out, nl_error *err)
{
    nl_codec *c = calloc(1, sizeof *c);

    *out = NULL;
    if (!c) return nl_fail(err, NL_E_NOMEM, "no memory for a codec");
    c->page_size = what->page_size;
    memcpy(c->file_id, what->file_id, sizeof c->file_id);
    c->current = codec_generation_new(what->generation, data->current);
    if (what->previous) c->previous = codec_generation_new(what->previous, data->previous);
    int rc = codec_draw_epoch(c, err);
    if (rc == NL_OK && (!c->current || (what->previous && !c->previous))) {
        rc = nl_fail(err, NL_E_NOMEM, "no memory for a codec");
    }
    if (rc != NL_OK) {
        nl_codec_free(c);
        return rc;
    }
    *out = c;
    return NL_OK;
}

int nl_codec_create(uint32_t page_size, nl_key *key, uint8_t *block, nl_codec **out, nl_error *err)
{
    nl_block what = {.page_size = page_size, .generation = 1, .sequence = 1};
    nl_key *const keys[2] = {key, NULL};
    nl_data_keys data;

    *out = NULL;
    if (!nl_page_size_valid(page_size)) return nl_fail(err, NL_E_MISUSE, "a page size of %u", page_size);
    memset(&data, 0, sizeof data);
    int rc = nl_random(what.file_id, sizeof what.file_id, err);
    if (rc == NL_OK) rc = nl_random(data.current, sizeof data.current, err);
    if (rc == NL_OK) rc = nl_block_wrap(&what, keys, &data, block, err);
    if (rc == NL_OK) {
        memcpy(block + NL_BLOCK_SIZE / 2, block, NL_BLOCK_SIZE / 2);
        rc = codec_new(&what, &data, out, err);
    }
    nl_wipe(&data, sizeof data);
    return rc;
}

int nl_codec_open(const uint8_t *block, nl_key *key, nl_codec **out, nl_error *err)
{
    nl_block what;
    nl_data_keys data;

    *out = NULL;
    int rc = nl_block_unwrap(block, key, &what, &data, err);
    if (rc == NL_OK) rc = codec_new(&what, &data, out, err);
    nl_wipe(&data, sizeof data);
    return rc;
}

uint32_t nl_codec_generation(const nl_codec *c)
{
    return c->current->number;
}

int nl_codec_same_file(const nl_codec *c, const nl_codec *other)
{
    return c->page_size == other->page_size && memcmp(c->file_id, other->file_id, sizeof c->file_id) == 0;
}

uint32_t nl_codec_page_size(const nl_codec *c)
{
    return c->page_size;
}

uint32_t nl_codec_key_id(const nl_codec *c)
{
    return c->current->number << 16 | c->epoch;
}

/* ------------------------------------------------------------------ keys */

static codec_generation *codec_generation_of(nl_codec *c, uint32_t id)
{
    if (c->current->number == id >> 16) return c->current;
    if (c->previous && c->previous->number == id >> 16) return c->previous;
    return NULL;
}

/* Generations are counted from 1; zeros on the disk were never sealed. */
static int codec_possible(uint32_t id)
{
    return id >> 16 != 0 && (id & 0xffff) < NL_EPOCHS;
}

static int codec_unknown(uint32_t id, nl_error *err)
{
    return nl_fail(err, NL_E_KEY, "sealed with the data key of generation %u, which is not at hand", id >> 16);
}

static int codec_derive(
    const codec_generation *g, const char *purpose, uint32_t epoch, const uint8_t salt[8], nl_aead **out,
    nl_error *err)
{
    uint8_t info[NL_INFO_MAX], key[NL_KEY_SIZE];
    const size_t n = strlen(purpose) + 1;

    memcpy(info, purpose, n);
    nl_put32(info + n, epoch);
    memcpy(info + n + 4, salt, 8);
    int rc = nl_key_derive(g->key, info, n + 12, key, err);
    if (rc == NL_OK) rc = nl_aead_new(key, out, err);
    nl_wipe(key, sizeof key);
    return rc;
}

/* The key of pages, or of records. */
static int codec_epoch_key(nl_codec *c, uint32_t id, int record, nl_aead **out, nl_error *err)
{
    static const uint8_t none[8];
    codec_generation *g = codec_generation_of(c, id);
    const uint32_t epoch = id & 0xffff;

    if (!codec_possible(id)) return nl_fail(err, NL_E_TAG, "an impossible key id");
    if (!g) return codec_unknown(id, err);
    nl_aead **kept = record ? &g->record[epoch] : &g->epoch[epoch];
    if (!*kept) {
        int rc = codec_derive(g, record ? "nearlite: records" : "nearlite: pages", epoch, none, kept, err);
        if (rc != NL_OK) return rc;
    }
    *out = *kept;
    return NL_OK;
}

static int codec_page_key(nl_codec *c, uint32_t id, nl_aead **out, nl_error *err)
{
    return codec_epoch_key(c, id, 0, out, err);
}

static int codec_wal_key(nl_codec *c, uint32_t id, const uint8_t salt[8], nl_aead **out, nl_error *err)
{
    for (int i = 0; i < WALS; i++) {
        if (c->wal[i].aead && c->wal[i].id == id && memcmp(c->wal[i].salt, salt, 8) == 0) {
            *out = c->wal[i].aead;
            return NL_OK;
        }
    }
    codec_generation *g = codec_generation_of(c, id);
    codec_wal *free_one = &c->wal[c->next_wal];
    if (!codec_possible(id)) return nl_fail(err, NL_E_TAG, "an impossible key id");
    if (!g) return codec_unknown(id, err);
    nl_aead_free(free_one->aead);
    memset(free_one, 0, sizeof *free_one);
    int rc = codec_derive(g, "nearlite: frames", id & 0xffff, salt, &free_one->aead, err);
    if (rc != NL_OK) return rc;
    free_one->id = id;
    memcpy(free_one->salt, salt, 8);
    c->next_wal = (c->next_wal + 1) % WALS;
    *out = free_one->aead;
    return NL_OK;
}

/* ------------------------------------------------------------------ pages */

static void codec_aad(const nl_codec *c, const char kind[9], uint32_t id, uint32_t number, uint8_t *aad)
{
    memcpy(aad, kind, 8);
    nl_put32(aad + 8, id);
    nl_put32(aad + 12, number);
    memcpy(aad + 16, c->file_id, 16);
}

/* One seal more: its nonce, and another epoch when it is time for one. */
static int codec_count(nl_codec *c, uint8_t nonce[NL_NONCE_SIZE], nl_error *err)
{
    if (c->left == 0) {
        int rc = codec_draw_epoch(c, err);
        if (rc != NL_OK) return rc;
    }
    c->left--;
    return nl_nonce_draw(&c->nonces, nonce, err);
}

int nl_codec_seal_page(nl_codec *c, uint32_t pgno, const uint8_t *page, uint8_t *slot, nl_error *err)
{
    uint8_t aad[AAD_PAGE], *nonce = slot + c->page_size;
    nl_aead *aead;

    int rc = codec_count(c, nonce, err);
    const uint32_t id = nl_codec_key_id(c);
    if (rc == NL_OK) rc = codec_page_key(c, id, &aead, err);
    if (rc != NL_OK) return rc;
    codec_aad(c, "nl-page1", id, pgno, aad);
    nl_put32(nonce + NL_NONCE_SIZE + NL_TAG_SIZE, id);
    return nl_aead_seal(aead, nonce, aad, sizeof aad, page, c->page_size, slot, nonce + NL_NONCE_SIZE, err);
}

int nl_codec_open_page(nl_codec *c, uint32_t pgno, const uint8_t *slot, uint8_t *page, nl_error *err)
{
    const uint8_t *nonce = slot + c->page_size;
    const uint32_t id = nl_get32(nonce + NL_NONCE_SIZE + NL_TAG_SIZE);
    uint8_t aad[AAD_PAGE];
    nl_aead *aead;

    int rc = codec_page_key(c, id, &aead, err);
    if (rc == NL_OK) {
        codec_aad(c, "nl-page1", id, pgno, aad);
        rc = nl_aead_open(aead, nonce, aad, sizeof aad, slot, c->page_size, nonce + NL_NONCE_SIZE, page, err);
    } else {
        memset(page, 0, c->page_size);
    }
    if (rc == NL_E_TAG) nl_fail(err, rc, "page %u is not what was sealed: damaged, moved or forged", pgno);
    if (rc != NL_OK && err) err->page = pgno;
    return rc;
}

/* ------------------------------------------------------------------ frames */

static int codec_seal_frame(
    nl_codec *c, uint32_t number, const uint8_t *frame, uint8_t *out, nl_error *err)
{
    static const uint8_t zeros[8];
    uint8_t aad[AAD_FRAME], *nonce = out + PLAIN;
    nl_aead *aead;

    int rc = codec_count(c, nonce, err);
    if (rc != NL_OK) return rc;
    const uint32_t epoch = memcmp(frame + 8, zeros, 8) == 0 ? c->epoch : 0;
    const uint32_t id = c->current->number << 16 | epoch;
    rc = codec_wal_key(c, id, frame + 8, &aead, err);
    if (rc != NL_OK) return rc;
    codec_aad(c, "nl-frame", id, number, aad);
    memcpy(aad + AAD_PAGE, frame, PLAIN);
    memcpy(out, frame, PLAIN);
    nl_put32(out + PLAIN + NL_NONCE_SIZE, id);
    return nl_aead_seal(aead, nonce, aad, sizeof aad, frame + PLAIN, SUM + (size_t)c->page_size,
                        out + FRAME_HEAD, out + FRAME_HEAD - NL_TAG_SIZE, err);
}

int nl_codec_seal_frames(
    nl_codec *c, uint32_t first, uint32_t n, const uint8_t *frames, uint8_t *sealed, nl_error *err)
{
    const size_t step = NL_FRAME_HEADER_SIZE + (size_t)c->page_size;

    for (uint32_t i = 0; i < n; i++) {
        int rc = codec_seal_frame(c, first + i, frames + i * step, sealed + i * (step + NL_SEAL_SIZE), err);
        if (rc != NL_OK) return rc;
    }
    return NL_OK;
}

static int codec_open_frame(nl_codec *c, uint32_t number, const uint8_t *in, uint8_t *frame, nl_error *err)
{
    const uint32_t id = nl_get32(in + PLAIN + NL_NONCE_SIZE);
    const size_t n = SUM + (size_t)c->page_size;
    uint8_t aad[AAD_FRAME];
    nl_aead *aead;

    int rc = codec_wal_key(c, id, in + 8, &aead, err);
    memcpy(frame, in, PLAIN);
    if (rc != NL_OK) {
        memset(frame + PLAIN, 0, n);
        return rc;
    }
    codec_aad(c, "nl-frame", id, number, aad);
    memcpy(aad + AAD_PAGE, in, PLAIN);
    return nl_aead_open(aead, in + PLAIN, aad, sizeof aad, in + FRAME_HEAD, n, in + FRAME_HEAD - NL_TAG_SIZE,
                        frame + PLAIN, err);
}

int nl_codec_open_frames(
    nl_codec *c, uint32_t first, uint32_t n, const uint8_t *sealed, uint8_t *frames, nl_error *err)
{
    const size_t step = NL_FRAME_HEADER_SIZE + (size_t)c->page_size;

    for (uint32_t i = 0; i < n; i++) {
        uint8_t *frame = frames + i * step;
        int rc = codec_open_frame(c, first + i, sealed + i * (step + NL_SEAL_SIZE), frame, err);
        if (rc == NL_OK) continue;
        if (rc == NL_E_TAG) {
            nl_fail(err, rc, "frame %u of the WAL is not what was sealed: damaged, moved or forged", first + i);
        }
        if (err) err->frame = first + i;
        return rc;
    }
    return NL_OK;
}

/* ------------------------------------------------------------------ records */

/* Answers the bytes of the aad. */
static size_t codec_record_aad(
    const nl_codec *c, const char *name, uint32_t id, uint32_t number, uint8_t aad[AAD_RECORD])
{
    const size_t n = strnlen(name, NL_RECORD_NAME_MAX);

    codec_aad(c, "nl-recrd", id, number, aad);
    memcpy(aad + AAD_PAGE, name, n);
    return AAD_PAGE + n;
}

int nl_codec_seal_record(
    nl_codec *c, const char *name, uint32_t number, const uint8_t *record, size_t n, uint8_t *sealed, nl_error *err)
{
    uint8_t aad[AAD_RECORD], *nonce = sealed + n;
    nl_aead *aead;

    int rc = codec_count(c, nonce, err);
    const uint32_t id = nl_codec_key_id(c);
    if (rc == NL_OK) rc = codec_epoch_key(c, id, 1, &aead, err);
    if (rc != NL_OK) return rc;
    const size_t aad_n = codec_record_aad(c, name, id, number, aad);
    nl_put32(nonce + NL_NONCE_SIZE + NL_TAG_SIZE, id);
    return nl_aead_seal(aead, nonce, aad, aad_n, record, n, sealed, nonce + NL_NONCE_SIZE, err);
}

int nl_codec_open_record(
    nl_codec *c, const char *name, uint32_t number, const uint8_t *sealed, size_t n, uint8_t *record, nl_error *err)
{
    uint8_t aad[AAD_RECORD];
    nl_aead *aead;

    if (n < NL_SEAL_SIZE) return nl_fail(err, NL_E_TAG, "a record of %s is too short", name);
    const size_t size = n - NL_SEAL_SIZE;
    const uint8_t *nonce = sealed + size;
    const uint32_t id = nl_get32(nonce + NL_NONCE_SIZE + NL_TAG_SIZE);
    int rc = codec_epoch_key(c, id, 1, &aead, err);
    if (rc != NL_OK) return rc;
    const size_t aad_n = codec_record_aad(c, name, id, number, aad);
    rc = nl_aead_open(aead, nonce, aad, aad_n, sealed, size, nonce + NL_NONCE_SIZE, record, err);
    if (rc == NL_E_TAG) nl_fail(err, rc, "%s is not what was sealed: damaged, moved or forged", name);
    return rc;
}
