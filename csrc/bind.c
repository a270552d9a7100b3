/*
** bind.c - one set of parameters out of MessagePack into a statement.
**
** Values are bound where they lie (SQLITE_STATIC): the input lives as long as the statement may look
** at it. It comes from our own encoder, but the parser trusts nothing: every length is checked.
*/
#include "rows.h"

#include <string.h>

static uint64_t bind_get(const uint8_t *p, size_t n)
{
    uint64_t v = 0;

    for (size_t i = 0; i < n; i++) v = v << 8 | p[i];
    return v;
}

static int bind_malformed(nl_error *err)
{
    return nl_fail(err, NL_E_MISUSE, "malformed parameters");
}

int nl_input_array(nl_input *in, size_t *count, nl_error *err)
{
    size_t left = (size_t)(in->end - in->p);

    if (left < 1) return bind_malformed(err);
    uint8_t type = *in->p;
    size_t width = type == 0xdc ? 2 : type == 0xdd ? 4 : 0;
    if (width == 0 && (type & 0xf0) != 0x90) return bind_malformed(err);
    if (left < 1 + width) return bind_malformed(err);
    *count = width ? (size_t)bind_get(in->p + 1, width) : (size_t)(type & 0x0f);
    in->p += 1 + width;
    return NL_OK;
}

static int bind_bytes(nl_stmt *s, int i, nl_input *in, size_t head, size_t n, int text)
{
    const uint8_t *p = in->p + head;

    if ((size_t)(in->end - in->p) - head < n) return -1;
    in->p = p + n;
    if (text) {
        return sqlite3_bind_text64(s->sqlite, i, (const char *)p, n, SQLITE_STATIC, SQLITE_UTF8);
    }
    return sqlite3_bind_blob64(s->sqlite, i, p, n, SQLITE_STATIC);
}

static int bind_double(nl_stmt *s, int i, const uint8_t *p)
{
    uint64_t bits = bind_get(p, 8);
    double v;

    memcpy(&v, &bits, 8);
    return sqlite3_bind_double(s->sqlite, i, v);
}

/* Binds the next value. Answers a SQLite result code, -1 for malformed input, -2 for an integer
** beyond 64 signed bits. */
static int bind_value(nl_stmt *s, int i, nl_input *in)
{
    static const uint8_t widths[32] = {
        /* c0 */ 0, 0, 0, 0, 1, 2, 4, 0, 0, 0, 0, 8, 1, 2, 4, 8,
        /* d0 */ 1, 2, 4, 8, 0, 0, 0, 0, 0, 1, 2, 4, 0, 0, 0, 0};
    size_t left = (size_t)(in->end - in->p);

    if (left < 1) return -1;
    const uint8_t *p = in->p;
    uint8_t type = *p;
    if (type < 0x80 || type >= 0xe0) {
        in->p++;
        return sqlite3_bind_int64(s->sqlite, i, (int8_t)type);
    }
    if ((type & 0xe0) == 0xa0) return bind_bytes(s, i, in, 1, type & 0x1f, 1);
    if (type < 0xc0) return -1;
    size_t width = widths[type - 0xc0];
    if (left < 1 + width) return -1;
    if (type >= 0xd9 || (type >= 0xc4 && type <= 0xc6)) {
        if (type > 0xdb) return -1;
        return bind_bytes(s, i, in, 1 + width, (size_t)bind_get(p + 1, width), type >= 0xd9);
    }
    in->p += 1 + width;
    switch (type) {
    case 0xc0: return sqlite3_bind_null(s->sqlite, i);
    case 0xc2: return sqlite3_bind_int64(s->sqlite, i, 0);
    case 0xc3: return sqlite3_bind_int64(s->sqlite, i, 1);
    case 0xcb: return bind_double(s, i, p + 1);
    case 0xcc: case 0xcd: case 0xce:
        return sqlite3_bind_int64(s->sqlite, i, (int64_t)bind_get(p + 1, width));
    case 0xcf: {
        uint64_t v = bind_get(p + 1, 8);
        return v > INT64_MAX ? -2 : sqlite3_bind_int64(s->sqlite, i, (int64_t)v);
    }
    case 0xd0: return sqlite3_bind_int64(s->sqlite, i, (int8_t)p[1]);
    case 0xd1: return sqlite3_bind_int64(s->sqlite, i, (int16_t)bind_get(p + 1, 2));
    case 0xd2: return sqlite3_bind_int64(s->sqlite, i, (int32_t)bind_get(p + 1, 4));
    case 0xd3: return sqlite3_bind_int64(s->sqlite, i, (int64_t)bind_get(p + 1, 8));
    default: return -1;
    }
}

int nl_input_bind(nl_stmt *s, nl_input *in, nl_error *err)
{
    size_t count = 0;
    int code = nl_input_array(in, &count, err);

    if (code) return code;
    if (count != (size_t)s->params) {
        return nl_fail(err, NL_E_BIND,
            "Incorrect number of bindings supplied. The current statement uses %d, and there are %zu "
            "supplied.", s->params, count);
    }
    for (int i = 1; i <= s->params; i++) {
        int rc = bind_value(s, i, in);
        if (rc == SQLITE_OK) continue;
        if (rc == -1) return bind_malformed(err);
        if (rc == -2) {
            return nl_fail(err, NL_E_TOO_BIG, "Python int too large to convert to SQLite INTEGER");
        }
        return nl_db_fail(s->db, rc, err);
    }
    return NL_OK;
}
