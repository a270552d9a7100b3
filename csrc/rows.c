/*
** rows.c - running a statement: parameters in, rows out, one call.
**
** Values cross the boundary as MessagePack (bind.c, encode.c). A point select is one call: bind, step
** to the end, encode, reset.
**
** Lifetimes. Parameters are copied once into the statement's own buffer and bound from there without
** further copies (SQLITE_STATIC), so they live exactly as long as the statement may look at them.
** Rows are encoded into the statement's buffer `out`, which starts with NL_SMALL_BATCH bytes whose
** address never changes (Python keeps a view of them); a larger batch gets another buffer, which goes
** away when the statement is reset.
*/
#include "bytes.h"
#include "rows.h"

#include <stdlib.h>
#include <string.h>

#define ROWS_BOUND_KEEP 65536   /* a parameter buffer larger than this is not kept after a reset, bytes */
#define ROWS_HEADER 5           /* bytes of the array header that a batch starts with */

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
    return rc;
}

int nl_stmt_running(nl_stmt *s)
{
    return s->running;
}

int nl_stmt_reset(nl_stmt *s)
{
    if (s->running) return NL_E_MISUSE;
    if (s->db->sqlite && s->active) {
        if (nl_db_enter(s->db, NULL)) return nl_call_inside(s->db) ? NL_E_MISUSE : NL_E_BUSY;
        s->running = 1; /* an aggregate of it may end here, and come back */
        nl_stmt_finish(s);
        s->running = 0;
        nl_db_leave(s->db);
    }
    s->failed = 0;
    nl_buffer_shrink(&s->out);
    s->out.size = 0;
    return NL_OK;
}

int nl_stmt_begin(nl_stmt *s, int kind, nl_error *err)
{
    static const char *const words[] = {
        "", "BEGIN DEFERRED", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "BEGIN "};

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
    nl_input in = {b->data, b->data + n};
    return nl_input_bind(s, &in, err);
}

/* A statement that is running cannot be run by its own callbacks. Answers 1 when it is. */
static int rows_refuse(const nl_stmt *s, nl_error *err)
{
    if (s->running) nl_fail(err, NL_E_MISUSE, "Recursive use of cursors not allowed.");
    return s->running;
}

/* Steps and encodes until the batch is full, the rows end, or a failure. `rc` is the result of a
** step already made. Answers what nl_stmt_run answers. */
static int64_t rows_batch(nl_stmt *s, int rc, size_t target, nl_error *err)
{
    nl_db *db = s->db;
    uint32_t count = 0;

    s->out.size = ROWS_HEADER;
    rc = nl_stmt_put_rows(s, rc, target, &count);
    const int carries = db->carries;
    if ((rc == SQLITE_OK || rc == SQLITE_DONE) && nl_db_carried(db, err)) {
        nl_stmt_finish(s);
        return -1;
    }
    if (rc != SQLITE_OK && rc != SQLITE_DONE) {
        /* The message belongs to the statement until it is reset. */
        nl_db_fail(db, rc, &s->failure);
        nl_stmt_finish(s);
        /* An interrupt is told at once: nobody waits for rows any more. So is what Python has kept to be raised
        ** (KeyboardInterrupt in a function): it would be raised by whatever fails next. */
        if (!count || carries || (rc & 0xff) == SQLITE_INTERRUPT) {
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
    nl_put32(s->out.data + 1, count);
    return (int64_t)s->out.size * 16 + bits + (s->active || s->failed ? NL_RUN_MORE : 0);
}

int64_t nl_stmt_run(
    nl_stmt *s, const uint8_t *params, size_t n, int begin, size_t target, nl_error *err)
{
    nl_db *db = s->db;
    int64_t answer = -1;

    if (nl_db_enter(db, err)) return -1;
    if (rows_refuse(s, err)) {
        nl_db_leave(db);
        return NL_RUN_RUNNING;
    }
    const int outer = db->own;
    s->running = 1;
    db->own = s->own;
    db->step_flags = s->flags;
    if (!s->sqlite) {
        if (!nl_stmt_bind(s, params, n, err)) answer = 0;   /* it takes none */
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
        nl_stmt_announce_columns(s);
        changed = NL_RUN_COLUMNS;
    }
    answer = rows_batch(s, rc, target, err);
    if (answer >= 0) answer |= changed;
    db->status.changes = sqlite3_changes64(db->sqlite);
done:
    db->own = outer;
    s->running = 0;
    nl_db_leave(db);
    return answer;
}

int64_t nl_stmt_go(nl_stmt *s, const uint8_t *params, size_t n)
{
    return nl_stmt_run(s, params, n, s->db->begin, NL_SMALL_BATCH / 2, &s->db->error);
}

int64_t nl_stmt_more(nl_stmt *s, size_t target, nl_error *err)
{
    int64_t answer = 0;

    if (s->failed) {
        s->failed = 0;
        if (err) *err = s->failure;
        return -1;
    }
    /* Closed meanwhile, by another thread or by what rows are made with: rows are missing. */
    if (!s->db->sqlite) {
        nl_fail(err, NL_E_MISUSE, "Cannot operate on a closed database.");
        return -1;
    }
    if (!s->active) return 0;
    if (nl_db_enter(s->db, err)) return -1;
    if (rows_refuse(s, err)) {
        nl_db_leave(s->db);
        return -1;
    }
    const int outer = s->db->own;
    s->running = 1;
    s->db->own = s->own;
    s->db->step_flags = s->flags;
    answer = rows_batch(s, sqlite3_step(s->sqlite), target, err);
    s->db->own = outer;
    s->running = 0;
    s->db->status.changes = sqlite3_changes64(s->db->sqlite);
    nl_db_leave(s->db);
    return answer;
}

/* Steps a bound statement to its end; rows are thrown away. Answers how many it changed, -1: *err says why. */
static int64_t rows_once(nl_stmt *s, nl_error *err)
{
    int rc = SQLITE_ROW;

    while (rc == SQLITE_ROW) rc = sqlite3_step(s->sqlite);
    if (rc != SQLITE_DONE) {
        nl_db_fail(s->db, rc, err);
        sqlite3_reset(s->sqlite);
        return -1;
    }
    int64_t changes = sqlite3_changes64(s->db->sqlite);
    sqlite3_reset(s->sqlite);
    return changes;
}

int64_t nl_stmt_once(nl_stmt *s, const uint8_t *params, size_t n)
{
    nl_db *db = s->db;
    nl_error *err = &db->error;
    nl_input in = {params, params + n};
    int64_t changes = -1;

    if (nl_db_enter(db, err)) return -1;
    if (rows_refuse(s, err)) {
        nl_db_leave(db);
        return -1;
    }
    s->running = 1;
    db->step_flags = s->flags;
    if (!s->sqlite) {
        changes = 0;
    } else if (!nl_input_bind(s, &in, err)) {
        changes = rows_once(s, err);
        if (changes >= 0 && nl_db_carried(db, err)) changes = -1;
        sqlite3_clear_bindings(s->sqlite); /* the values lie in the caller's memory */
    }
    s->running = 0;
    nl_db_leave(db);
    return changes;
}

int nl_stmt_many(nl_stmt *s, const uint8_t *params, size_t n, int begin, nl_error *err)
{
    nl_db *db = s->db;
    nl_input in = {params, params + n};
    size_t count = 0;
    int code = nl_db_enter(db, err);

    if (code) return code;
    if (rows_refuse(s, err)) {
        nl_db_leave(db);
        return NL_E_MISUSE;
    }
    s->running = 1;
    db->step_flags = s->flags;
    db->status.changes = 0;
    db->status.done = 0;
    if (!s->sqlite) goto done;
    code = nl_input_array(&in, &count, err);
    if (!code) code = nl_stmt_begin(s, begin, err);
    for (size_t i = 0; !code && i < count; i++) {
        code = nl_input_bind(s, &in, err);
        if (code) break;
        const int64_t changes = rows_once(s, err);
        if (changes < 0) {
            code = NL_E_SQLITE;
            break;
        }
        db->status.changes += changes;
        db->status.done++;
        if (nl_db_carried(db, err)) code = NL_E_MISUSE;
    }
    /* The values lie in the caller's memory. */
    sqlite3_clear_bindings(s->sqlite);
done:
    s->running = 0;
    nl_db_leave(db);
    return code;
}
