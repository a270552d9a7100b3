/*
** rows.c - statements: parameters in, rows out, one call.
**
** Values cross the boundary as MessagePack, because SQLite's five types map one to one (NULL nil,
** INTEGER int, REAL float 64, TEXT str, BLOB bin) and Python decodes a batch of rows in one call. A
** point select is one call: bind, step to the end, encode, reset.
**
** Lifetimes. Parameters are copied once into the statement's own buffer and bound from there without
** further copies (SQLITE_STATIC), so they live exactly as long as the statement may look at them.
** Rows are encoded into the statement's buffer `out`, which starts with NL_SMALL_BATCH bytes whose
** address never changes while a batch fits (Python keeps a view of it); a larger batch gets a larger
** buffer, which goes away when the statement is reset.
**
** The parameters come from our own encoder, but the parser trusts nothing: every length is checked.
*/
#include "rows.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define ROWS_BOUND_KEEP 65536   /* a parameter buffer larger than this is not kept after a reset, bytes */
#define ROWS_HEADER 5           /* bytes of the array header that a batch starts with */

/* ---------------------------------------------------------------- buffers and big-endian */

int nl_buffer_reserve(nl_buffer *b, size_t n)
{
    size_t need = b->size + n;
    size_t cap = b->cap ? b->cap : 256;

    if (need < n) return NL_E_NOMEM;
    if (need <= b->cap) return NL_OK;
    while (cap < need) {
        if (cap > SIZE_MAX / 2) return NL_E_NOMEM;
        cap *= 2;
    }
    uint8_t *data = realloc(b->data, cap);
    if (!data) return NL_E_NOMEM;
    b->data = data;
    b->cap = cap;
    return NL_OK;
}

void nl_buffer_free(nl_buffer *b)
{
    free(b->data);
    memset(b, 0, sizeof *b);
}

static uint64_t rows_get(const uint8_t *p, size_t n)
{
    uint64_t v = 0;

    for (size_t i = 0; i < n; i++) v = v << 8 | p[i];
    return v;
}

static void rows_put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static void rows_put32(uint8_t *p, uint32_t v)
{
    v = __builtin_bswap32(v);
    memcpy(p, &v, 4);
}

static void rows_put64(uint8_t *p, uint64_t v)
{
    v = __builtin_bswap64(v);
    memcpy(p, &v, 8);
}

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "rows_put32 and rows_put64 swap bytes: write the big-endian case"
#endif

/* ---------------------------------------------------------------- rows out */

/* Header of a string of n bytes: `one`, `two`, `four` are the type bytes for 8, 16 and 32 bit lengths.
** Answers its size. */
static size_t rows_put_length(uint8_t *p, size_t n, const uint8_t types[3])
{
    if (n < 256) {
        p[0] = types[0];
        p[1] = (uint8_t)n;
        return 2;
    }
    if (n < 65536) {
        p[0] = types[1];
        rows_put16(p + 1, (uint32_t)n);
        return 3;
    }
    p[0] = types[2];
    rows_put32(p + 1, (uint32_t)n);
    return 5;
}

static size_t rows_put_int(uint8_t *p, int64_t v)
{
    if (v >= -32 && v < 128) {
        p[0] = (uint8_t)v;
        return 1;
    }
    if (v >= INT16_MIN && v <= INT16_MAX) {
        p[0] = 0xd1;
        rows_put16(p + 1, (uint32_t)(uint16_t)v);
        return 3;
    }
    if (v >= INT32_MIN && v <= INT32_MAX) {
        p[0] = 0xd2;
        rows_put32(p + 1, (uint32_t)v);
        return 5;
    }
    p[0] = 0xd3;
    rows_put64(p + 1, (uint64_t)v);
    return 9;
}

static int rows_put_bytes(nl_buffer *out, const void *data, size_t n, const uint8_t types[3], int ext)
{
    if (out->cap - out->size < n + 6 && nl_buffer_reserve(out, n + 6)) return SQLITE_NOMEM;
    uint8_t *p = out->data + out->size;
    size_t head = 1;
    if (n < 32 && types[0] == 0xd9) {
        p[0] = (uint8_t)(0xa0 | n);
    } else {
        head = rows_put_length(p, n, types);
    }
    if (ext) p[head++] = 1;
    if (n) memcpy(p + head, data, n);
    out->size += head + n;
    return SQLITE_OK;
}

static int rows_put_text(nl_stmt *s, int i)
{
    static const uint8_t types[3][3] = {
        {0xd9, 0xda, 0xdb}, {0xc4, 0xc5, 0xc6}, {0xc7, 0xc8, 0xc9}};
    const unsigned char *text = sqlite3_column_text(s->sqlite, i);
    size_t n = (size_t)sqlite3_column_bytes(s->sqlite, i);

    if (!text) return SQLITE_NOMEM;
    return rows_put_bytes(&s->out, text, n, types[s->text_mode], s->text_mode == NL_TEXT_EXT);
}

static int rows_put_value(nl_stmt *s, int i)
{
    static const uint8_t bin[3] = {0xc4, 0xc5, 0xc6};
    nl_buffer *out = &s->out;
    uint8_t *p = out->data + out->size;   /* rows_put_row left room for 9 bytes */

    switch (sqlite3_column_type(s->sqlite, i)) {
    case SQLITE_INTEGER:
        out->size += rows_put_int(p, sqlite3_column_int64(s->sqlite, i));
        return SQLITE_OK;
    case SQLITE_FLOAT: {
        double v = sqlite3_column_double(s->sqlite, i);
        uint64_t bits;
        memcpy(&bits, &v, 8);
        p[0] = 0xcb;
        rows_put64(p + 1, bits);
        out->size += 9;
        return SQLITE_OK;
    }
    case SQLITE_TEXT:
        return rows_put_text(s, i);
    case SQLITE_BLOB: {
        const void *blob = sqlite3_column_blob(s->sqlite, i);
        size_t n = (size_t)sqlite3_column_bytes(s->sqlite, i);
        if (!blob && n) return SQLITE_NOMEM;
        return rows_put_bytes(out, blob, n, bin, 0);
    }
    default:
        p[0] = 0xc0;
        out->size += 1;
        return SQLITE_OK;
    }
}

static int rows_put_row(nl_stmt *s)
{
    nl_buffer *out = &s->out;
    int rc = SQLITE_OK;

    if (out->cap - out->size < 16 && nl_buffer_reserve(out, 16)) return SQLITE_NOMEM;
    if (s->columns < 16) {
        out->data[out->size++] = (uint8_t)(0x90 | s->columns);
    } else {
        out->data[out->size] = 0xdc;   /* SQLITE_MAX_COLUMN is at most 32767 */
        rows_put16(out->data + out->size + 1, (uint32_t)s->columns);
        out->size += 3;
    }
    for (int i = 0; rc == SQLITE_OK && i < s->columns; i++) {
        if (out->cap - out->size < 16 && nl_buffer_reserve(out, 16)) return SQLITE_NOMEM;
        rc = rows_put_value(s, i);
    }
    return rc;
}

/* ---------------------------------------------------------------- parameters in */

/* One position in MessagePack input. */
typedef struct rows_input {
    const uint8_t *p;
    const uint8_t *end;
} rows_input;

static int rows_bad_input(nl_error *err)
{
    return nl_fail(err, NL_E_MISUSE, "malformed parameters");
}

/* Reads an array header. Answers NL_OK or NL_E_MISUSE. */
static int rows_get_array(rows_input *in, size_t *count, nl_error *err)
{
    size_t left = (size_t)(in->end - in->p);

    if (left < 1) return rows_bad_input(err);
    uint8_t type = *in->p;
    size_t width = type == 0xdc ? 2 : type == 0xdd ? 4 : 0;
    if (width == 0 && (type & 0xf0) != 0x90) return rows_bad_input(err);
    if (left < 1 + width) return rows_bad_input(err);
    *count = width ? (size_t)rows_get(in->p + 1, width) : (size_t)(type & 0x0f);
    in->p += 1 + width;
    return NL_OK;
}

static int rows_bind_bytes(nl_stmt *s, int i, rows_input *in, size_t head, size_t n, int text)
{
    const uint8_t *p = in->p + head;

    if ((size_t)(in->end - in->p) - head < n) return -1;
    in->p = p + n;
    if (text) {
        return sqlite3_bind_text64(s->sqlite, i, (const char *)p, n, SQLITE_STATIC, SQLITE_UTF8);
    }
    return sqlite3_bind_blob64(s->sqlite, i, p, n, SQLITE_STATIC);
}

static int rows_bind_double(nl_stmt *s, int i, const uint8_t *p)
{
    uint64_t bits = rows_get(p, 8);
    double v;

    memcpy(&v, &bits, 8);
    return sqlite3_bind_double(s->sqlite, i, v);
}

/* Binds the next value. Answers a SQLite result code, -1 for malformed input, -2 for an integer
** beyond 64 signed bits. */
static int rows_bind_value(nl_stmt *s, int i, rows_input *in)
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
    if ((type & 0xe0) == 0xa0) return rows_bind_bytes(s, i, in, 1, type & 0x1f, 1);
    if (type < 0xc0) return -1;
    size_t width = widths[type - 0xc0];
    if (left < 1 + width) return -1;
    if (type >= 0xd9 || (type >= 0xc4 && type <= 0xc6)) {
        if (type > 0xdb) return -1;
        return rows_bind_bytes(s, i, in, 1 + width, (size_t)rows_get(p + 1, width), type >= 0xd9);
    }
    in->p += 1 + width;
    switch (type) {
    case 0xc0: return sqlite3_bind_null(s->sqlite, i);
    case 0xc2: return sqlite3_bind_int64(s->sqlite, i, 0);
    case 0xc3: return sqlite3_bind_int64(s->sqlite, i, 1);
    case 0xcb: return rows_bind_double(s, i, p + 1);
    case 0xcc: case 0xcd: case 0xce:
        return sqlite3_bind_int64(s->sqlite, i, (int64_t)rows_get(p + 1, width));
    case 0xcf: {
        uint64_t v = rows_get(p + 1, 8);
        return v > INT64_MAX ? -2 : sqlite3_bind_int64(s->sqlite, i, (int64_t)v);
    }
    case 0xd0: return sqlite3_bind_int64(s->sqlite, i, (int8_t)p[1]);
    case 0xd1: return sqlite3_bind_int64(s->sqlite, i, (int16_t)rows_get(p + 1, 2));
    case 0xd2: return sqlite3_bind_int64(s->sqlite, i, (int32_t)rows_get(p + 1, 4));
    case 0xd3: return sqlite3_bind_int64(s->sqlite, i, (int64_t)rows_get(p + 1, 8));
    default: return -1;
    }
}

/* Binds one array of values to all parameters. The input must outlive the binding. */
static int rows_bind(nl_stmt *s, rows_input *in, nl_error *err)
{
    size_t count = 0;
    int code = rows_get_array(in, &count, err);

    if (code) return code;
    if (count != (size_t)s->params) {
        return nl_fail(err, NL_E_BIND,
            "Incorrect number of bindings supplied. The current statement uses %d, and there are %zu "
            "supplied.", s->params, count);
    }
    for (int i = 1; i <= s->params; i++) {
        int rc = rows_bind_value(s, i, in);
        if (rc == SQLITE_OK) continue;
        if (rc == -1) return rows_bad_input(err);
        if (rc == -2) {
            return nl_fail(err, NL_E_TOO_BIG, "Python int too large to convert to SQLite INTEGER");
        }
        return nl_db_fail(s->db, rc, err);
    }
    return NL_OK;
}

/* ---------------------------------------------------------------- compiling */

/* Skips white space and comments; answers the first byte of something else, or `end`. An unterminated
** comment reaches the end. */
static const char *rows_skip_blank(const char *p, const char *end)
{
    while (p < end) {
        if (*p == ' ' || *p == '\t' || *p == '\f' || *p == '\n' || *p == '\r') {
            p++;
        } else if (end - p >= 2 && p[0] == '-' && p[1] == '-') {
            while (p < end && *p != '\n') p++;
        } else if (end - p >= 2 && p[0] == '/' && p[1] == '*') {
            p += 2;
            while (end - p >= 2 && !(p[0] == '*' && p[1] == '/')) p++;
            if (end - p < 2) return end;
            p += 2;
        } else {
            break;
        }
    }
    return p;
}

/* Whether the sqlite3 module of Python begins a transaction for this text: its rule is the first word,
** and programs rely on it ("WITH ... INSERT" begins none). Nothing else depends on text. */
static int rows_is_dml(const char *sql, const char *end)
{
    const char *p = rows_skip_blank(sql, end);
    size_t n = (size_t)(end - p);

    return (n >= 6 && (!strncasecmp(p, "insert", 6) || !strncasecmp(p, "update", 6)
                || !strncasecmp(p, "delete", 6)))
        || (n >= 7 && !strncasecmp(p, "replace", 7));
}

static void rows_announce_columns(nl_stmt *s)
{
    s->columns = sqlite3_column_count(s->sqlite);
    s->reprepared = sqlite3_stmt_status(s->sqlite, SQLITE_STMTSTATUS_REPREPARE, 0);
}

int nl_stmt_prepare(
    nl_db *db, const char *sql, size_t n, int persistent, nl_stmt **out, nl_error *err)
{
    unsigned int flags = persistent ? SQLITE_PREPARE_PERSISTENT : 0;
    const char *tail = sql;
    nl_stmt *s = NULL;
    int code = NL_OK;

    *out = NULL;
    if (n > INT_MAX) return nl_fail(err, NL_E_TOO_BIG, "query string is too large");
    code = nl_db_enter(db, err);
    if (code) return code;
    s = calloc(1, sizeof *s);
    if (!s || nl_buffer_reserve(&s->out, NL_SMALL_BATCH)) {
        code = nl_fail(err, NL_E_NOMEM, "out of memory");
        goto done;
    }
    nl_db_adopt(db, s);
    db->collect = &s->flags;
    db->unplaced_count = 0;
    db->alters_main = 0;
    db->pragma[0] = 0;
    db->pragma_set = 0;
    int rc = sqlite3_prepare_v3(db->sqlite, sql, (int)n, flags, &s->sqlite, &tail);
    db->collect = NULL;
    if (rc != SQLITE_OK) {
        code = nl_db_fail(db, rc, err);
        goto done;
    }
    if (db->unplaced_count) s->flags |= nl_db_unplaced_flags(db);
    memcpy(s->pragma, db->pragma, sizeof s->pragma);
    s->pragma_set = db->pragma_set;
    s->tail = (size_t)(rows_skip_blank(tail, sql + n) - sql);
    if (!s->sqlite) {
        s->flags = NL_STMT_EMPTY | NL_STMT_READONLY;
        goto done;
    }
    s->params = sqlite3_bind_parameter_count(s->sqlite);
    rows_announce_columns(s);
    if (s->columns) s->flags |= NL_STMT_ROWS;
    if (sqlite3_stmt_readonly(s->sqlite)) s->flags |= NL_STMT_READONLY;
    if (!(s->flags & NL_STMT_READONLY)) s->special = NL_RUN_SPECIAL;
    if (sqlite3_stmt_isexplain(s->sqlite)) s->flags |= NL_STMT_EXPLAIN;
    if (rows_is_dml(sql, tail)) s->flags |= NL_STMT_DML;
done:
    if (code && s) {
        if (s->db) {
            nl_db_orphan(db, s);
        } else {
            nl_stmt_release(s);
        }
        s = NULL;
    }
    nl_db_leave(db);
    *out = s;
    return code;
}

void nl_stmt_free(nl_stmt *s)
{
    if (s) nl_db_orphan(s->db, s);
}

void nl_stmt_release(nl_stmt *s)
{
    nl_buffer_free(&s->bound);
    nl_buffer_free(&s->out);
    free(s);
}

uint32_t nl_stmt_flags(nl_stmt *s)
{
    return s->flags;
}

size_t nl_stmt_tail(nl_stmt *s)
{
    return s->tail;
}

int nl_stmt_params(nl_stmt *s)
{
    return s->params;
}

const char *nl_stmt_param_name(nl_stmt *s, int i)
{
    return s->sqlite ? sqlite3_bind_parameter_name(s->sqlite, i) : NULL;
}

int nl_stmt_columns(nl_stmt *s)
{
    return s->columns;
}

const char *nl_stmt_column_name(nl_stmt *s, int i)
{
    return s->sqlite ? sqlite3_column_name(s->sqlite, i) : NULL;
}

const char *nl_stmt_column_decltype(nl_stmt *s, int i)
{
    return s->sqlite ? sqlite3_column_decltype(s->sqlite, i) : NULL;
}

const char *nl_stmt_pragma(nl_stmt *s)
{
    return s->pragma;
}

int nl_stmt_pragma_set(nl_stmt *s)
{
    return s->pragma_set;
}

int nl_sql_is_dml(const char *sql, size_t n)
{
    return rows_is_dml(sql, sql + n);
}

void nl_stmt_text_mode(nl_stmt *s, int mode)
{
    s->text_mode = mode;
}

/* ---------------------------------------------------------------- running */

const uint8_t *nl_stmt_out(nl_stmt *s)
{
    return s->out.data;
}

/* The end of a run, whatever its outcome. Answers SQLite's result of the run. */
int nl_stmt_finish(nl_stmt *s)
{
    int rc = sqlite3_reset(s->sqlite);

    s->active = 0;
    if (s->bound.cap > ROWS_BOUND_KEEP) {
        sqlite3_clear_bindings(s->sqlite);
        nl_buffer_free(&s->bound);
    }
    if (s->flags & (NL_STMT_SCHEMA | NL_STMT_ATTACH)) s->db->epoch++;
    return rc;
}

void nl_stmt_reset(nl_stmt *s)
{
    if (s->db->sqlite && s->active) {
        if (nl_db_enter(s->db, NULL)) return;
        nl_stmt_finish(s);
        nl_db_leave(s->db);
    }
    s->failed = 0;
    if (s->out.cap > NL_SMALL_BATCH) {
        uint8_t *small = realloc(s->out.data, NL_SMALL_BATCH);
        if (small) {
            s->out.data = small;
            s->out.cap = NL_SMALL_BATCH;
        }
    }
    s->out.size = 0;
}

int nl_stmt_begin(nl_stmt *s, int kind, nl_error *err)
{
    static const char *const words[] = {"", "BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"};

    if (kind == NL_BEGIN_NONE || !(s->flags & NL_STMT_DML)) return NL_OK;
    if (!sqlite3_get_autocommit(s->db->sqlite)) return NL_OK;
    int rc = sqlite3_exec(s->db->sqlite, words[kind], NULL, NULL, NULL);
    return rc == SQLITE_OK ? NL_OK : nl_db_fail(s->db, rc, err);
}

/* Copies the parameters into the statement and binds them. */
int nl_stmt_bind(nl_stmt *s, const uint8_t *params, size_t n, nl_error *err)
{
    nl_buffer *b = &s->bound;

    b->size = 0;
    if (nl_buffer_reserve(b, n)) return nl_fail(err, NL_E_NOMEM, "out of memory");
    if (n) memcpy(b->data, params, n);
    b->size = n;
    rows_input in = {b->data, b->data + n};
    return rows_bind(s, &in, err);
}

/* Steps and encodes until the batch is full, the rows end, or a failure. `rc` is the result of a
** step already made. Answers what nl_stmt_run answers. */
static int64_t rows_batch(nl_stmt *s, int rc, size_t target, nl_error *err)
{
    nl_db *db = s->db;
    uint32_t count = 0;
    size_t row_start = ROWS_HEADER;

    s->out.size = ROWS_HEADER;
    while (rc == SQLITE_ROW) {
        row_start = s->out.size;
        rc = rows_put_row(s);
        if (rc != SQLITE_OK) break;
        count++;
        s->active = 1;
        if (s->out.size >= target || db->late) break;
        rc = sqlite3_step(s->sqlite);
    }
    if (rc == SQLITE_NOMEM && s->active) s->out.size = row_start;
    if (rc != SQLITE_OK && rc != SQLITE_DONE) {
        /* The message belongs to the statement until it is reset. */
        nl_db_fail(db, rc, &s->failure);
        nl_stmt_finish(s);
        /* An interrupt is told at once: nobody waits for rows any more. */
        if (!count || (rc & 0xff) == SQLITE_INTERRUPT) {
            if (err) *err = s->failure;
            return -1;
        }
        s->failed = 1;
    }
    if (rc == SQLITE_DONE) {
        rc = nl_stmt_finish(s);
        if (rc != SQLITE_OK) {
            nl_db_fail(db, rc, err);
            return -1;
        }
    }
    int64_t bits = s->special | (s->out.cap > NL_SMALL_BATCH ? NL_RUN_LARGE : 0);
    if (!count) return bits;
    s->out.data[0] = 0xdd;
    rows_put32(s->out.data + 1, count);
    return (int64_t)s->out.size * 16 + bits + (s->active || s->failed ? NL_RUN_MORE : 0);
}

int64_t nl_stmt_run(
    nl_stmt *s, const uint8_t *params, size_t n, int begin, size_t target, nl_error *err)
{
    nl_db *db = s->db;
    int64_t answer = -1;

    if (nl_db_enter(db, err)) return -1;
    if (!s->sqlite) {
        answer = 0;
        goto done;
    }
    if (s->active) {
        nl_fail(err, NL_E_MISUSE, "the statement has rows that nobody fetched");
        goto done;
    }
    s->failed = 0;
    if (nl_stmt_bind(s, params, n, err)) goto done;
    if (nl_stmt_begin(s, begin, err)) goto done;
    int rc = sqlite3_step(s->sqlite);
    int changed = 0;
    if (sqlite3_stmt_status(s->sqlite, SQLITE_STMTSTATUS_REPREPARE, 0) != s->reprepared) {
        rows_announce_columns(s);
        changed = NL_RUN_COLUMNS;
    }
    answer = rows_batch(s, rc, target, err);
    if (answer >= 0) answer |= changed;
    db->status.changes = sqlite3_changes64(db->sqlite);
done:
    nl_db_leave(db);
    return answer;
}

int64_t nl_stmt_go(nl_stmt *s, const uint8_t *params, size_t n)
{
    return nl_stmt_run(s, params, n, s->db->begin, NL_SMALL_BATCH / 2, &s->db->error);
}

void nl_stmt_set_special(nl_stmt *s)
{
    s->special = NL_RUN_SPECIAL;
}

int64_t nl_stmt_more(nl_stmt *s, size_t target, nl_error *err)
{
    int64_t answer = 0;

    if (s->failed) {
        s->failed = 0;
        if (err) *err = s->failure;
        return -1;
    }
    if (!s->active) return 0;
    if (nl_db_enter(s->db, err)) return -1;
    answer = rows_batch(s, sqlite3_step(s->sqlite), target, err);
    s->db->status.changes = sqlite3_changes64(s->db->sqlite);
    nl_db_leave(s->db);
    return answer;
}

int nl_stmt_many(nl_stmt *s, const uint8_t *params, size_t n, int begin, nl_error *err)
{
    nl_db *db = s->db;
    rows_input in = {params, params + n};
    size_t count = 0;
    int code = nl_db_enter(db, err);

    if (code) return code;
    db->status.changes = 0;
    db->status.done = 0;
    if (!s->sqlite) goto done;
    code = rows_get_array(&in, &count, err);
    if (!code) code = nl_stmt_begin(s, begin, err);
    for (size_t i = 0; !code && i < count; i++) {
        code = rows_bind(s, &in, err);
        if (code) break;
        int rc = SQLITE_ROW;
        while (rc == SQLITE_ROW) rc = sqlite3_step(s->sqlite);
        if (rc != SQLITE_DONE) {
            code = nl_db_fail(db, rc, err);
            sqlite3_reset(s->sqlite);
            break;
        }
        db->status.changes += sqlite3_changes64(db->sqlite);
        sqlite3_reset(s->sqlite);
        db->status.done++;
    }
    /* The values lie in the caller's memory. */
    sqlite3_clear_bindings(s->sqlite);
done:
    nl_db_leave(db);
    return code;
}
