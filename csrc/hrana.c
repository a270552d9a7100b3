/*
** hrana.c - a statement's result, from SQLite's registers straight to Hrana JSON.
**
** The HTTP side never makes a Python object of a row: a statement runs here, in one call, and its
** whole StmtResult (or a cursor's entries) lies in the statement's output buffer as bytes that go
** into the answer unchanged.
**
**   {"type":"null"}   {"type":"integer","value":"-1"}   {"type":"float","value":1.5}
**   {"type":"text","value":"..."}   {"type":"blob","base64":"AQI"}
**
** Choices
**   * Integers are text, because a JSON number is a double to most readers.
**   * Base64 has no padding, as libSQL's server writes it; every client accepts that.
**   * Text that is not UTF-8 (SQLite stores any bytes) gets U+FFFD for each maximal bad part:
**     JSON has no way to carry it and an answer that no client can parse helps nobody. Beside it
**     stand the bytes themselves, "base64", for clients that know of it; others skip the member.
**   * An infinite double is written 1e999. JSON knows no infinity; this is still a number by its
**     grammar, and readers that use doubles turn it back into infinity. SQLite has no NaN.
**   * Doubles are printed with the fewest of 15, 16 or 17 digits that read back equal, and always
**     with a point or an exponent, whatever locale the embedding program has set.
**
** Columns are described after the first step: only then is it certain that the statement has not
** been recompiled against a newer schema.
*/
#include "nl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <sqlite3.h>

#include "rows.h"

/* Text is escaped in slices, so that room for the worst case (6 bytes for 1) stays small. */
#define HRANA_SLICE 4096u

/* ---------------------------------------------------------------- pure: bytes into a buffer */

/* The caller has reserved room. */
static void hrana_put(nl_buffer *b, const void *bytes, size_t n)
{
    memcpy(b->data + b->size, bytes, n);
    b->size += n;
}

#define HRANA_PUT(b, literal) hrana_put((b), (literal), sizeof(literal) - 1)

static void hrana_put_i64(nl_buffer *b, int64_t value)
{
    char digits[20];
    size_t i = sizeof digits;
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;

    do {
        digits[--i] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest);
    if (value < 0) HRANA_PUT(b, "-");
    hrana_put(b, digits + i, sizeof digits - i);
}

/* printf and strtod follow the locale's decimal point, which need not be one byte: everything that
** is not part of a number in the C locale stands for the point. */
static size_t hrana_plain_number(char *text, size_t n)
{
    size_t out = 0;
    int point = 0, exponent = 0;

    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if ((c >= '0' && c <= '9') || c == '-' || c == '+') {
            text[out++] = c;
        } else if (c == 'e') {
            exponent = 1;
            text[out++] = c;
        } else if (!point) {
            point = 1;
            text[out++] = '.';
        }
    }
    if (!point && !exponent) {
        text[out++] = '.';
        text[out++] = '0';
    }
    return out;
}

static void hrana_put_double(nl_buffer *b, double value)
{
    char text[64];
    int n = 0;

    if (value > 1.7976931348623157e308) {
        HRANA_PUT(b, "1e999");
        return;
    }
    if (value < -1.7976931348623157e308) {
        HRANA_PUT(b, "-1e999");
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        n = snprintf(text, sizeof text - 4, "%.*g", digits, value);
        double back = strtod(text, NULL);
        if (memcmp(&back, &value, sizeof back) == 0) break;
    }
    hrana_put(b, text, hrana_plain_number(text, (size_t)n));
}

static void hrana_put_base64(nl_buffer *b, const uint8_t *p, size_t n)
{
    static const char alphabet[65] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t *out = b->data + b->size;
    size_t i = 0;

    for (; i + 3 <= n; i += 3) {
        uint32_t v = (uint32_t)p[i] << 16 | (uint32_t)p[i + 1] << 8 | p[i + 2];
        *out++ = (uint8_t)alphabet[v >> 18];
        *out++ = (uint8_t)alphabet[v >> 12 & 63];
        *out++ = (uint8_t)alphabet[v >> 6 & 63];
        *out++ = (uint8_t)alphabet[v & 63];
    }
    if (n - i == 1) {
        *out++ = (uint8_t)alphabet[p[i] >> 2];
        *out++ = (uint8_t)alphabet[(p[i] & 3) << 4];
    } else if (n - i == 2) {
        *out++ = (uint8_t)alphabet[p[i] >> 2];
        *out++ = (uint8_t)alphabet[(p[i] & 3) << 4 | p[i + 1] >> 4];
        *out++ = (uint8_t)alphabet[(p[i + 1] & 15) << 2];
    }
    b->size = (size_t)(out - b->data);
}

/* Bytes at the start of p that JSON takes as they are: no control, quote, backslash, non-ASCII.
** Eight at a time: a byte below 0x20, or equal to a wanted one, borrows into its top bit. */
static size_t hrana_plain(const uint8_t *p, size_t n)
{
    const uint64_t ones = 0x0101010101010101u, tops = 0x8080808080808080u;
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        uint64_t w;
        memcpy(&w, p + i, 8);
        uint64_t quote = w ^ ones * '"', slash = w ^ ones * '\\';
        uint64_t special = (w - ones * 0x20) | (quote - ones) | (slash - ones) | w;
        if (special & tops) break;
    }
    while (i < n && p[i] >= 0x20 && p[i] < 0x80 && p[i] != '"' && p[i] != '\\') i++;
    return i;
}

/* Length of the well-formed UTF-8 character at p (Unicode 15, table 3-7), or 0 with *bad set to
** the length of the maximal part that could have begun one. */
static size_t hrana_utf8(const uint8_t *p, size_t n, size_t *bad)
{
    uint8_t low = 0x80, high = 0xBF;
    size_t need;

    *bad = 1;
    if (p[0] >= 0xC2 && p[0] <= 0xDF) {
        need = 2;
    } else if (p[0] >= 0xE0 && p[0] <= 0xEF) {
        need = 3;
        if (p[0] == 0xE0) low = 0xA0;
        if (p[0] == 0xED) high = 0x9F;
    } else if (p[0] >= 0xF0 && p[0] <= 0xF4) {
        need = 4;
        if (p[0] == 0xF0) low = 0x90;
        if (p[0] == 0xF4) high = 0x8F;
    } else {
        return 0;
    }
    for (size_t i = 1; i < need; i++) {
        if (i >= n || p[i] < low || p[i] > high) {
            *bad = i;
            return 0;
        }
        low = 0x80;
        high = 0xBF;
    }
    return need;
}

static void hrana_put_escape(nl_buffer *b, uint8_t c)
{
    static const char hex[17] = "0123456789abcdef";
    char text[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};

    switch (c) {
    case '"': HRANA_PUT(b, "\\\""); return;
    case '\\': HRANA_PUT(b, "\\\\"); return;
    case '\n': HRANA_PUT(b, "\\n"); return;
    case '\r': HRANA_PUT(b, "\\r"); return;
    case '\t': HRANA_PUT(b, "\\t"); return;
    default: hrana_put(b, text, sizeof text);
    }
}

/* A JSON string, quotes included. *malformed becomes 1 when it is not all of the bytes. */
static int hrana_put_text(nl_buffer *b, const uint8_t *p, size_t n, int *malformed)
{
    int rc = nl_buffer_reserve(b, 2);
    size_t i = 0, bad;

    if (rc) return rc;
    HRANA_PUT(b, "\"");
    while (i < n) {
        size_t end = n - i > HRANA_SLICE ? i + HRANA_SLICE : n;
        /* The last character of a slice may reach 3 bytes beyond it; U+FFFD takes 3 for 1. */
        if ((rc = nl_buffer_reserve(b, 6 * (end - i) + 16)) != NL_OK) return rc;
        while (i < end) {
            size_t plain = hrana_plain(p + i, end - i);
            hrana_put(b, p + i, plain);
            i += plain;
            if (i >= end) break;
            if (p[i] < 0x80) {
                hrana_put_escape(b, p[i++]);
                continue;
            }
            size_t good = hrana_utf8(p + i, n - i, &bad);
            if (good) {
                hrana_put(b, p + i, good);
                i += good;
            } else {
                HRANA_PUT(b, "\xEF\xBF\xBD");
                *malformed = 1;
                i += bad;
            }
        }
    }
    if ((rc = nl_buffer_reserve(b, 1)) != NL_OK) return rc;
    HRANA_PUT(b, "\"");
    return NL_OK;
}

static int hrana_put_string(nl_buffer *b, const uint8_t *p, size_t n)
{
    int malformed = 0;

    return hrana_put_text(b, p, n, &malformed);
}

/* Bytes in base64, with quotes. */
static int hrana_put_bytes(nl_buffer *b, const uint8_t *p, size_t n)
{
    int rc = nl_buffer_reserve(b, n / 3 * 4 + 8);

    if (rc) return rc;
    HRANA_PUT(b, "\"");
    hrana_put_base64(b, p, n);
    HRANA_PUT(b, "\"");
    return NL_OK;
}

/* ---------------------------------------------------------------- values, rows, columns */

static int hrana_value(nl_buffer *b, sqlite3_stmt *stmt, int i)
{
    const uint8_t *bytes;
    size_t n;
    int malformed = 0;
    int rc = nl_buffer_reserve(b, 96);

    if (rc) return rc;
    switch (sqlite3_column_type(stmt, i)) {
    case SQLITE_INTEGER:
        HRANA_PUT(b, "{\"type\":\"integer\",\"value\":\"");
        hrana_put_i64(b, sqlite3_column_int64(stmt, i));
        HRANA_PUT(b, "\"}");
        return NL_OK;
    case SQLITE_FLOAT:
        HRANA_PUT(b, "{\"type\":\"float\",\"value\":");
        hrana_put_double(b, sqlite3_column_double(stmt, i));
        HRANA_PUT(b, "}");
        return NL_OK;
    case SQLITE_TEXT:
        /* The text before its size: asking for it may convert, which changes the size. */
        bytes = sqlite3_column_text(stmt, i);
        n = (size_t)sqlite3_column_bytes(stmt, i);
        if (!bytes) return NL_E_NOMEM;
        HRANA_PUT(b, "{\"type\":\"text\",\"value\":");
        if ((rc = hrana_put_text(b, bytes, n, &malformed)) != NL_OK) return rc;
        if (!malformed) break;
        if ((rc = nl_buffer_reserve(b, 16)) != NL_OK) return rc;
        HRANA_PUT(b, ",\"base64\":");
        if ((rc = hrana_put_bytes(b, bytes, n)) != NL_OK) return rc;
        break;
    case SQLITE_BLOB:
        bytes = sqlite3_column_blob(stmt, i);
        n = (size_t)sqlite3_column_bytes(stmt, i);
        if (!bytes && n) return NL_E_NOMEM;
        HRANA_PUT(b, "{\"type\":\"blob\",\"base64\":");
        if ((rc = hrana_put_bytes(b, bytes, n)) != NL_OK) return rc;
        break;
    default:
        HRANA_PUT(b, "{\"type\":\"null\"}");
        return NL_OK;
    }
    if ((rc = nl_buffer_reserve(b, 1)) != NL_OK) return rc;
    HRANA_PUT(b, "}");
    return NL_OK;
}

static int hrana_row(nl_buffer *b, sqlite3_stmt *stmt, int shape, size_t index)
{
    int columns = sqlite3_data_count(stmt);
    int rc = nl_buffer_reserve(b, 32);

    if (rc) return rc;
    if (shape == NL_HRANA_CURSOR) {
        HRANA_PUT(b, "{\"type\":\"row\",\"row\":");
    } else if (index) {
        HRANA_PUT(b, ",");
    }
    HRANA_PUT(b, "[");
    for (int i = 0; i < columns; i++) {
        if (i) HRANA_PUT(b, ",");
        if ((rc = hrana_value(b, stmt, i)) != NL_OK) return rc;
        if ((rc = nl_buffer_reserve(b, 8)) != NL_OK) return rc;
    }
    HRANA_PUT(b, "]");
    if (shape == NL_HRANA_CURSOR) HRANA_PUT(b, "}\n");
    return NL_OK;
}

static int hrana_columns(nl_buffer *b, sqlite3_stmt *stmt)
{
    int columns = sqlite3_column_count(stmt);
    int rc = nl_buffer_reserve(b, 16);

    if (rc) return rc;
    HRANA_PUT(b, "\"cols\":[");
    for (int i = 0; i < columns; i++) {
        const char *name = sqlite3_column_name(stmt, i);
        const char *type = sqlite3_column_decltype(stmt, i);
        if (!name) return NL_E_NOMEM;
        if ((rc = nl_buffer_reserve(b, 40)) != NL_OK) return rc;
        if (i) HRANA_PUT(b, ",");
        HRANA_PUT(b, "{\"name\":");
        if ((rc = hrana_put_string(b, (const uint8_t *)name, strlen(name))) != NL_OK) return rc;
        if ((rc = nl_buffer_reserve(b, 40)) != NL_OK) return rc;
        HRANA_PUT(b, ",\"decltype\":");
        if (!type) {
            HRANA_PUT(b, "null");
        } else if ((rc = hrana_put_string(b, (const uint8_t *)type, strlen(type))) != NL_OK) {
            return rc;
        }
        if ((rc = nl_buffer_reserve(b, 16)) != NL_OK) return rc;
        HRANA_PUT(b, "}");
    }
    HRANA_PUT(b, "]");
    return NL_OK;
}

/* ---------------------------------------------------------------- running a statement */

static int64_t hrana_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* What the connection looks like now; a statement that is not a write changed nothing. */
static void hrana_look(nl_stmt *s, nl_hrana_report *out)
{
    sqlite3 *db = s->db->sqlite;
    int now = 0, high = 0;
    int64_t total = sqlite3_total_changes64(db);

    out->changes = sqlite3_changes64(db);
    out->total_changes = total;
    out->last_rowid = sqlite3_last_insert_rowid(db);
    out->in_transaction = !sqlite3_get_autocommit(db);
    out->writing = sqlite3_txn_state(db, "main") == SQLITE_TXN_WRITE;
    out->over_budget = s->db->over_budget;
    out->written = total - out->total_before;
    sqlite3_db_status(db, SQLITE_DBSTATUS_DEFERRED_FKS, &now, &high, 0);
    out->deferred = now != 0;
}

/* Whether SQLite counted its changes: an INSERT, UPDATE or DELETE, but not as a part of DDL. */
static int hrana_counts(const nl_stmt *s)
{
    return (s->flags & (NL_STMT_INSERT | NL_STMT_MODIFY)) && !(s->flags & NL_STMT_SCHEMA);
}

/* The rest of a StmtResult, or a cursor's step_end. */
static int hrana_finish(nl_buffer *b, nl_stmt *s, int shape, nl_hrana_report *out)
{
    int64_t us = (hrana_now() - out->began_ns) / 1000;
    int rc = nl_buffer_reserve(b, 320);

    out->us = us;
    out->notable = us >= NL_HRANA_NOTABLE_US;
    out->all++;
    out->all_rows += out->rows;
    out->all_written += out->written;
    out->all_us += us;
    if (rc) return rc;
    if (shape == NL_HRANA_CURSOR) {
        HRANA_PUT(b, "{\"type\":\"step_end\"");
    } else {
        HRANA_PUT(b, "]");
    }
    HRANA_PUT(b, ",\"affected_row_count\":");
    hrana_put_i64(b, hrana_counts(s) ? out->changes : 0);
    HRANA_PUT(b, ",\"last_insert_rowid\":");
    if (hrana_counts(s) && (s->flags & NL_STMT_INSERT)) {
        HRANA_PUT(b, "\"");
        hrana_put_i64(b, out->last_rowid);
        HRANA_PUT(b, "\"");
    } else {
        HRANA_PUT(b, "null");
    }
    if (shape == NL_HRANA_CURSOR) {
        HRANA_PUT(b, "}\n");
        return NL_OK;
    }
    HRANA_PUT(b, ",\"replication_index\":null,\"rows_read\":");
    hrana_put_i64(b, out->rows);
    HRANA_PUT(b, ",\"rows_written\":");
    hrana_put_i64(b, out->written);
    HRANA_PUT(b, ",\"query_duration_ms\":");
    hrana_put_i64(b, us / 1000);
    char fraction[4] = {
        '.', (char)('0' + us / 100 % 10), (char)('0' + us / 10 % 10), (char)('0' + us % 10)};
    hrana_put(b, fraction, sizeof fraction);
    HRANA_PUT(b, "}");
    return NL_OK;
}

/* Opens the object or the cursor's step, once the columns are certain. */
static int hrana_open(nl_buffer *b, nl_stmt *s, int shape, nl_hrana_report *out)
{
    int rc = nl_buffer_reserve(b, 64);

    if (rc) return rc;
    if (shape == NL_HRANA_CURSOR) {
        HRANA_PUT(b, "{\"type\":\"step_begin\",\"step\":");
        hrana_put_i64(b, out->step);
        HRANA_PUT(b, ",");
    } else {
        HRANA_PUT(b, "{");
    }
    if ((rc = hrana_columns(b, s->sqlite)) != NL_OK) return rc;
    if ((rc = nl_buffer_reserve(b, 16)) != NL_OK) return rc;
    if (shape == NL_HRANA_CURSOR) {
        HRANA_PUT(b, "}\n");
    } else {
        HRANA_PUT(b, ",\"rows\":[");
    }
    return NL_OK;
}

/* Steps until the end, a failure, or `target` bytes. `rc` is the result of the step just made. */
static int hrana_rows(nl_stmt *s, int shape, size_t target, int rc, nl_hrana_report *out, nl_error *err)
{
    nl_buffer *b = &s->out;
    int failed = NL_OK;

    for (; rc == SQLITE_ROW; rc = sqlite3_step(s->sqlite)) {
        if (shape != NL_HRANA_NO_ROWS) {
            failed = hrana_row(b, s->sqlite, shape, (size_t)out->rows);
            if (failed) return nl_fail(err, failed, "out of memory while encoding a row");
        }
        out->rows++;
        if (out->most_rows && out->rows > out->most_rows && shape != NL_HRANA_CURSOR) {
            return nl_fail(err, NL_E_TOO_BIG, "the result has more than %lld rows", (long long)out->most_rows);
        }
        if (b->size <= target) continue;
        if (shape == NL_HRANA_CURSOR) {
            out->more = 1;
            return NL_OK;
        }
        return nl_fail(err, NL_E_TOO_BIG, "the result is larger than %zu bytes", target);
    }
    return rc == SQLITE_DONE ? NL_OK : nl_db_fail(s->db, rc, err);
}

/* The end of a statement, good or bad. The connection is looked at after sqlite3_reset: a statement
** that returned rows and is ended early commits or rolls back only there. */
static int hrana_close(nl_stmt *s, int shape, int rc, nl_hrana_report *out, nl_error *err)
{
    if (rc == NL_OK && out->more) {
        s->active = 1; /* nl_stmt_reset() ends it if nobody wants the rest */
        out->size = s->out.size;
        return NL_OK;
    }
    nl_stmt_finish(s);
    hrana_look(s, out);
    if (rc == NL_OK) {
        rc = hrana_finish(&s->out, s, shape, out);
        if (rc) rc = nl_fail(err, rc, "out of memory while encoding a result");
    }
    out->size = s->out.size;
    return rc;
}

int nl_hrana_run(
    nl_stmt *s,
    const uint8_t *params,
    size_t n,
    int shape,
    size_t target,
    nl_hrana_report *out,
    nl_error *err)
{
    nl_hrana_report in = *out;
    int rc;

    memset(out, 0, sizeof *out);
    out->step = in.step;
    out->most_rows = in.most_rows;
    out->last_rowid = in.last_rowid;
    out->changes = in.changes;
    out->total_changes = in.total_changes;
    out->all = in.all;
    out->all_rows = in.all_rows;
    out->all_written = in.all_written;
    out->all_us = in.all_us;
    if ((rc = nl_db_enter(s->db, err)) != NL_OK) return rc;
    if (!s->sqlite) {
        nl_db_leave(s->db);
        return nl_fail(err, NL_E_MISUSE, "there is no statement to run");
    }
    /* Refused while another statement is open: then the counters are the connection's own. */
    (void)nl_db_set_counters(s->db, in.last_rowid, in.changes, in.total_changes);
    out->began_ns = hrana_now();
    out->total_before = sqlite3_total_changes64(s->db->sqlite);
    s->out.size = 0;
    rc = nl_stmt_bind(s, params, n, err);
    if (rc == NL_OK) {
        int stepped = sqlite3_step(s->sqlite);
        if (stepped != SQLITE_ROW && stepped != SQLITE_DONE) {
            rc = nl_db_fail(s->db, stepped, err);
        } else if ((rc = hrana_open(&s->out, s, shape, out)) != NL_OK) {
            nl_fail(err, rc, "out of memory while describing columns");
        } else {
            rc = hrana_rows(s, shape, target, stepped, out, err);
        }
    }
    rc = hrana_close(s, shape, rc, out, err);
    nl_db_leave(s->db);
    return rc;
}

int nl_hrana_more(nl_stmt *s, size_t target, nl_hrana_report *out, nl_error *err)
{
    int rc;

    if (!out->more) return nl_fail(err, NL_E_MISUSE, "no cursor is open");
    if ((rc = nl_db_enter(s->db, err)) != NL_OK) return rc;
    out->more = 0;
    s->out.size = 0;
    rc = hrana_rows(s, NL_HRANA_CURSOR, target, sqlite3_step(s->sqlite), out, err);
    rc = hrana_close(s, NL_HRANA_CURSOR, rc, out, err);
    nl_db_leave(s->db);
    return rc;
}
