/*
** encode.c - rows of SQLite as MessagePack.
**
** SQLite's five types map one to one (NULL nil, INTEGER int, REAL float 64, TEXT str, BLOB bin; TEXT
** as the statement's text mode says), and Python decodes a batch of rows in one call. Integers take
** the signed forms of 0, 16, 32 and 64 bits: MessagePack has more, which only others need.
*/
#include "bytes.h"
#include "rows.h"

static void encode_put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

/* Header of a string of n bytes: `one`, `two`, `four` are the type bytes for 8, 16 and 32 bit lengths.
** Answers its size. */
static size_t encode_length(uint8_t *p, size_t n, const uint8_t types[3])
{
    if (n < 256) {
        p[0] = types[0];
        p[1] = (uint8_t)n;
        return 2;
    }
    if (n < 65536) {
        p[0] = types[1];
        encode_put16(p + 1, (uint32_t)n);
        return 3;
    }
    p[0] = types[2];
    nl_put32(p + 1, (uint32_t)n);
    return 5;
}

static size_t encode_int(uint8_t *p, int64_t v)
{
    if (v >= -32 && v < 128) {
        p[0] = (uint8_t)v;
        return 1;
    }
    if (v >= INT16_MIN && v <= INT16_MAX) {
        p[0] = 0xd1;
        encode_put16(p + 1, (uint32_t)(uint16_t)v);
        return 3;
    }
    if (v >= INT32_MIN && v <= INT32_MAX) {
        p[0] = 0xd2;
        nl_put32(p + 1, (uint32_t)v);
        return 5;
    }
    p[0] = 0xd3;
    nl_put64(p + 1, (uint64_t)v);
    return 9;
}

static int encode_bytes(nl_buffer *out, const void *data, size_t n, const uint8_t types[3], int ext)
{
    if (out->cap - out->size < n + 6 && nl_buffer_reserve(out, n + 6)) return SQLITE_NOMEM;
    uint8_t *p = out->data + out->size;
    size_t head = 1;
    if (n < 32 && types[0] == 0xd9) {
        p[0] = (uint8_t)(0xa0 | n);
    } else {
        head = encode_length(p, n, types);
    }
    if (ext) p[head++] = 1;
    if (n) memcpy(p + head, data, n);
    out->size += head + n;
    return SQLITE_OK;
}

static int encode_text(nl_stmt *s, int i)
{
    static const uint8_t types[3][3] = {
        {0xd9, 0xda, 0xdb}, {0xc4, 0xc5, 0xc6}, {0xc7, 0xc8, 0xc9}};
    const unsigned char *text = sqlite3_column_text(s->sqlite, i);
    size_t n = (size_t)sqlite3_column_bytes(s->sqlite, i);

    if (!text) return SQLITE_NOMEM;
    return encode_bytes(&s->out, text, n, types[s->text_mode], s->text_mode == NL_TEXT_EXT);
}

static int encode_value(nl_stmt *s, int i)
{
    static const uint8_t bin[3] = {0xc4, 0xc5, 0xc6};
    nl_buffer *out = &s->out;
    uint8_t *p = out->data + out->size;   /* encode_row left room for 9 bytes */

    switch (sqlite3_column_type(s->sqlite, i)) {
    case SQLITE_INTEGER:
        out->size += encode_int(p, sqlite3_column_int64(s->sqlite, i));
        return SQLITE_OK;
    case SQLITE_FLOAT: {
        double v = sqlite3_column_double(s->sqlite, i);
        uint64_t bits;
        memcpy(&bits, &v, 8);
        p[0] = 0xcb;
        nl_put64(p + 1, bits);
        out->size += 9;
        return SQLITE_OK;
    }
    case SQLITE_TEXT:
        return encode_text(s, i);
    case SQLITE_BLOB: {
        const void *blob = sqlite3_column_blob(s->sqlite, i);
        size_t n = (size_t)sqlite3_column_bytes(s->sqlite, i);
        if (!blob && n) return SQLITE_NOMEM;
        return encode_bytes(out, blob, n, bin, 0);
    }
    default:
        p[0] = 0xc0;
        out->size += 1;
        return SQLITE_OK;
    }
}

static int encode_row(nl_stmt *s)
{
    nl_buffer *out = &s->out;
    int rc = SQLITE_OK;

    if (out->cap - out->size < 16 && nl_buffer_reserve(out, 16)) return SQLITE_NOMEM;
    if (s->columns < 16) {
        out->data[out->size++] = (uint8_t)(0x90 | s->columns);
    } else {
        out->data[out->size] = 0xdc;   /* SQLITE_MAX_COLUMN is at most 32767 */
        encode_put16(out->data + out->size + 1, (uint32_t)s->columns);
        out->size += 3;
    }
    for (int i = 0; rc == SQLITE_OK && i < s->columns; i++) {
        if (out->cap - out->size < 16 && nl_buffer_reserve(out, 16)) return SQLITE_NOMEM;
        rc = encode_value(s, i);
    }
    return rc;
}

int nl_stmt_put_rows(nl_stmt *s, int rc, size_t target, uint32_t *count)
{
    while (rc == SQLITE_ROW) {
        size_t start = s->out.size;
        rc = encode_row(s);
        if (rc != SQLITE_OK) {
            s->out.size = start;
            break;
        }
        ++*count;
        s->active = 1;
        if (s->out.size >= target || s->db->late) break;
        rc = sqlite3_step(s->sqlite);
    }
    return rc;
}

/* ---------------------------------------------------------------- arguments of callbacks */

static const uint8_t encode_str[3] = {0xd9, 0xda, 0xdb}, encode_bin[3] = {0xc4, 0xc5, 0xc6};

static int encode_array(nl_buffer *out, int count)
{
    if (nl_buffer_reserve(out, 3)) return SQLITE_NOMEM;
    uint8_t *p = out->data + out->size;
    if (count < 16) {
        p[0] = (uint8_t)(0x90 | count);
        out->size += 1;
    } else {
        p[0] = 0xdc;   /* arguments: at most 1000; columns of a changeset: 32767 */
        encode_put16(p + 1, (uint32_t)count);
        out->size += 3;
    }
    return SQLITE_OK;
}

static int encode_argument(nl_buffer *out, sqlite3_value *value)
{
    if (nl_buffer_reserve(out, 16)) return SQLITE_NOMEM;
    uint8_t *p = out->data + out->size;
    switch (value ? sqlite3_value_type(value) : SQLITE_NULL) {
    case SQLITE_INTEGER:
        out->size += encode_int(p, sqlite3_value_int64(value));
        return SQLITE_OK;
    case SQLITE_FLOAT: {
        double v = sqlite3_value_double(value);
        uint64_t bits;
        memcpy(&bits, &v, 8);
        p[0] = 0xcb;
        nl_put64(p + 1, bits);
        out->size += 9;
        return SQLITE_OK;
    }
    case SQLITE_TEXT: {
        const unsigned char *text = sqlite3_value_text(value);
        if (!text) return SQLITE_NOMEM;
        return encode_bytes(out, text, (size_t)sqlite3_value_bytes(value), encode_str, 0);
    }
    case SQLITE_BLOB: {
        const void *blob = sqlite3_value_blob(value);
        size_t n = (size_t)sqlite3_value_bytes(value);
        if (!blob && n) return SQLITE_NOMEM;
        return encode_bytes(out, blob, n, encode_bin, 0);
    }
    default:
        p[0] = 0xc0;
        out->size += 1;
        return SQLITE_OK;
    }
}

int nl_put_values(nl_buffer *out, int count, sqlite3_value **values)
{
    int rc = encode_array(out, count);

    for (int i = 0; rc == SQLITE_OK && i < count; i++) rc = encode_argument(out, values[i]);
    return rc;
}

int nl_put_strings(
    nl_buffer *out, const int *first, int count, const char *const *strings, const int *sizes)
{
    int rc = encode_array(out, count + (first != NULL));

    if (rc == SQLITE_OK && nl_buffer_reserve(out, 16)) rc = SQLITE_NOMEM;
    if (rc == SQLITE_OK && first) out->size += encode_int(out->data + out->size, *first);
    for (int i = 0; rc == SQLITE_OK && i < count; i++) {
        if (strings[i]) {
            size_t n = sizes ? (size_t)sizes[i] : strlen(strings[i]);
            rc = encode_bytes(out, strings[i], n, encode_str, 0);
        } else if (nl_buffer_reserve(out, 1)) {
            rc = SQLITE_NOMEM;
        } else {
            out->data[out->size++] = 0xc0;
        }
    }
    return rc;
}

int nl_put_flags(nl_buffer *out, int count, const uint8_t *flags)
{
    return encode_bytes(out, flags, (size_t)count, encode_bin, 0);
}

int nl_put_raw(nl_buffer *out, const uint8_t *bytes, size_t n)
{
    if (nl_buffer_reserve(out, n)) return SQLITE_NOMEM;
    memcpy(out->data + out->size, bytes, n);
    out->size += n;
    return SQLITE_OK;
}
