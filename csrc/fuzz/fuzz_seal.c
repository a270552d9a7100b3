/*
** Invariant: no bytes are opened that were not sealed. A header block that was not made with the key gives
** no codec; a slot, a frame or a record that was changed anywhere, cut short, or moved, gives zeros and an error.
**
** Input: what to do, a number (of the page, the frame, the record), then a header block, or changes to bytes
** that were sealed here: u16 where, u8 what to xor. Of a record what comes first are its size and how many
** bytes of its end are missing, u8 each.
*/
#include "target.h"

#include "aead.h"
#include "bytes.h"
#include "frame.h"
#include "header_block.h"

enum {
    BLOCK = 0, /* the block as it stands */
    FORGED,    /* its copies are digested anew, so that their fields are looked at */
    PAGE,
    FRAME,
    RECORD,
    HEAD = 5,
    SIZE = 512,
    HALF = NL_BLOCK_SIZE / 2
};

static const uint8_t secret[NL_KEY_SIZE] = {1, 2, 3};

static void target_block(const uint8_t *data, size_t n, nl_key *key, int forged)
{
    uint8_t *block = target_alloc(NL_BLOCK_SIZE);
    nl_codec *codec = NULL;
    nl_block what;
    nl_error err;

    memset(block, 0, NL_BLOCK_SIZE);
    memcpy(block, data, n < NL_BLOCK_SIZE ? n : NL_BLOCK_SIZE);
    if (forged) {
        REQUIRE(nl_digest(block, HALF - 16, block + HALF - 16, 16, &err) == NL_OK);
        REQUIRE(nl_digest(block + HALF, HALF - 16, block + NL_BLOCK_SIZE - 16, 16, &err) == NL_OK);
    }
    const int looks = nl_block_look(block, &what, &err);
    REQUIRE(looks == NL_OK || looks == NL_E_FORMAT);
    if (looks == NL_OK) REQUIRE(nl_page_size_valid(what.page_size) && what.generation != what.previous);
    const int opens = nl_codec_open(block, key, &codec, &err);
    REQUIRE(opens == (looks == NL_OK ? NL_E_KEY : looks) && codec == NULL);
    free(block);
}

/* Changes sealed bytes as the input says; whether any was. */
static int target_change(const uint8_t *data, size_t n, uint8_t *sealed, size_t size)
{
    uint8_t *before = target_alloc(size);

    memcpy(before, sealed, size);
    for (; n >= 3; data += 3, n -= 3) sealed[(data[0] << 8 | data[1]) % size] ^= data[2];
    const int changed = memcmp(before, sealed, size) != 0;
    free(before);
    return changed;
}

static int target_zeros(const uint8_t *p, size_t n)
{
    while (n > 0 && p[n - 1] == 0) n--;
    return n == 0;
}

static void target_seal(const uint8_t *data, size_t n, uint32_t number, nl_key *key, int is_frame)
{
    const size_t head = is_frame ? NL_FRAME_HEADER_SIZE : 0, plain = head + SIZE, size = plain + NL_SEAL_SIZE;
    uint8_t *in = target_alloc(plain), *sealed = target_alloc(size), *out = target_alloc(plain);
    uint8_t *block = target_alloc(NL_BLOCK_SIZE);
    nl_codec *codec, *again;
    nl_error err;

    for (size_t i = 0; i < plain; i++) in[i] = (uint8_t)(n > 0 ? data[i % n] + i : i);
    REQUIRE(nl_codec_create(SIZE, key, block, &codec, &err) == NL_OK);
    REQUIRE(nl_codec_open(block, key, &again, &err) == NL_OK);
    if (is_frame) {
        REQUIRE(nl_codec_seal_frames(codec, number, 1, in, sealed, &err) == NL_OK);
    } else {
        REQUIRE(nl_codec_seal_page(codec, number, in, sealed, &err) == NL_OK);
    }
    const int changed = target_change(data, n, sealed, size);
    for (uint32_t moved = 0; moved < 2; moved++) {
        int rc = is_frame ? nl_codec_open_frames(again, number + moved, 1, sealed, out, &err)
                          : nl_codec_open_page(again, number + moved, sealed, out, &err);
        if (changed || moved) {
            REQUIRE(rc == NL_E_TAG || rc == NL_E_KEY);
            REQUIRE((is_frame ? err.frame : err.page) == number + moved);
            /* The first 16 bytes of a frame are never sealed. */
            REQUIRE(target_zeros(out + (is_frame ? 16 : 0), plain - (is_frame ? 16 : 0)));
        } else {
            REQUIRE(rc == NL_OK && memcmp(in, out, plain) == 0);
        }
    }
    memset(sealed, 0, size); /* what a file system leaves of a write that was lost */
    REQUIRE((is_frame ? nl_codec_open_frames(again, number, 1, sealed, out, &err)
                      : nl_codec_open_page(again, number, sealed, out, &err)) == NL_E_TAG);
    nl_codec_free(codec);
    nl_codec_free(again);
    free(block);
    free(out);
    free(sealed);
    free(in);
}

static void target_record(const uint8_t *data, size_t n, uint32_t number, nl_key *key)
{
    const size_t plain = n > 0 ? data[0] : 0, size = plain + NL_SEAL_SIZE;
    const size_t missing = n > 1 ? data[1] % (size + 1) : 0;
    /* The second begins as the first does. */
    static const char *const names[] = {"state.json", "state.jso"};
    uint8_t *in = target_alloc(plain), *sealed = target_alloc(size), *block = target_alloc(NL_BLOCK_SIZE);
    nl_codec *codec, *again;
    nl_error err;

    for (size_t i = 0; i < plain; i++) in[i] = (uint8_t)(data[i % n] + i);
    REQUIRE(nl_codec_create(SIZE, key, block, &codec, &err) == NL_OK);
    REQUIRE(nl_codec_open(block, key, &again, &err) == NL_OK);
    REQUIRE(nl_codec_seal_record(codec, names[0], number, in, plain, sealed, &err) == NL_OK);
    const int changed = target_change(n > 2 ? data + 2 : NULL, n > 2 ? n - 2 : 0, sealed, size);
    const size_t left = size - missing;
    uint8_t *given = target_alloc(left);
    memcpy(given, sealed, left);
    for (uint32_t moved = 0; moved < 4; moved++) {
        const size_t room = left < NL_SEAL_SIZE ? 0 : left - NL_SEAL_SIZE;
        uint8_t *out = target_alloc(room);
        memset(out, 0, room);
        const int rc = nl_codec_open_record(again, names[moved & 1], number + (moved >> 1), given, left, out, &err);
        if (changed || missing || moved) {
            REQUIRE(rc == NL_E_TAG || rc == NL_E_KEY);
            REQUIRE(target_zeros(out, room));
        } else {
            REQUIRE(rc == NL_OK && memcmp(in, out, plain) == 0);
        }
        free(out);
    }
    nl_codec_free(codec);
    nl_codec_free(again);
    free(given);
    free(block);
    free(sealed);
    free(in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    nl_key *key;
    nl_error err;

    if (n < HEAD) return 0;
    REQUIRE(nl_key_raw(secret, sizeof secret, &key, &err) == NL_OK);
    const int what = data[0] % (RECORD + 1);
    if (what == BLOCK || what == FORGED) {
        target_block(data + HEAD, n - HEAD, key, what == FORGED);
    } else if (what == RECORD) {
        target_record(data + HEAD, n - HEAD, nl_get32(data + 1), key);
    } else {
        target_seal(data + HEAD, n - HEAD, nl_get32(data + 1), key, what == FRAME);
    }
    nl_key_free(key);
    return 0;
}
