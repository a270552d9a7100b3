/*
** statement.c - a compiled statement: how it comes, what is known about it, how it goes.
**
** What it does is known from what SQLite's compiler reports (database.c); from its text nothing is
** taken but its end and, as the sqlite3 module of Python does, its first word.
*/
#include "rows.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---------------------------------------------------------------- text */

/* Skips white space and comments; answers the first byte of something else, or `end`. An unterminated
** comment reaches the end. */
static const char *statement_skip_blank(const char *p, const char *end)
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
static int statement_is_dml(const char *sql, const char *end)
{
    const char *p = statement_skip_blank(sql, end);
    size_t n = (size_t)(end - p);

    return (n >= 6 && (!strncasecmp(p, "insert", 6) || !strncasecmp(p, "update", 6)
                || !strncasecmp(p, "delete", 6)))
        || (n >= 7 && !strncasecmp(p, "replace", 7));
}

void nl_stmt_announce_columns(nl_stmt *s)
{
    s->columns = sqlite3_column_count(s->sqlite);
    s->reprepared = sqlite3_stmt_status(s->sqlite, SQLITE_STMTSTATUS_REPREPARE, 0);
}

int nl_stmt_prepare(
    nl_db *db, const char *sql, size_t n, int flags, nl_stmt **out, nl_error *err)
{
    const unsigned int sqlite_flags = flags & NL_PREPARE_PERSISTENT ? SQLITE_PREPARE_PERSISTENT : 0;
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
    nl_buffer_keep(&s->out);
    nl_db_adopt(db, s);
    s->own = flags & NL_PREPARE_OWN;
    const int outer = db->own;
    db->own = s->own;
    db->denied = 0;
    db->collect = &s->flags;
    db->unplaced_count = 0;
    db->alters_main = 0;
    db->pragma[0] = 0;
    db->pragma_set = 0;
    int rc = sqlite3_prepare_v3(db->sqlite, sql, (int)n, sqlite_flags, &s->sqlite, &tail);
    db->collect = NULL;
    db->own = outer;
    if (rc != SQLITE_OK) {
        code = nl_db_fail(db, rc, err);
        goto done;
    }
    if (db->unplaced_count) s->flags |= nl_db_unplaced_flags(db);
    memcpy(s->pragma, db->pragma, sizeof s->pragma);
    s->pragma_set = db->pragma_set;
    s->tail = (size_t)(statement_skip_blank(tail, sql + n) - sql);
    if (!s->sqlite) {
        s->flags = NL_STMT_EMPTY | NL_STMT_READONLY;
        goto done;
    }
    s->params = sqlite3_bind_parameter_count(s->sqlite);
    nl_stmt_announce_columns(s);
    if (s->columns) s->flags |= NL_STMT_ROWS;
    if (sqlite3_stmt_readonly(s->sqlite)) s->flags |= NL_STMT_READONLY;
    if (!(s->flags & NL_STMT_READONLY)) s->special = NL_RUN_SPECIAL;
    if (sqlite3_stmt_isexplain(s->sqlite)) s->flags |= NL_STMT_EXPLAIN;
    if (statement_is_dml(sql, tail)) s->flags |= NL_STMT_DML;
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

void nl_stmt_end(nl_stmt *s)
{
    sqlite3_finalize(s->sqlite);
    if (s->other) s->end(s->other);
    s->sqlite = NULL;
    s->other = NULL;
    s->active = 0;
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
    return statement_is_dml(sql, sql + n);
}

void nl_stmt_text_mode(nl_stmt *s, int mode)
{
    s->text_mode = mode;
}

void nl_stmt_set_special(nl_stmt *s)
{
    s->special = NL_RUN_SPECIAL;
}

void nl_real_text(double value, char out[40])
{
    sqlite3_snprintf(NL_REAL_TEXT, out, "%!.17g", value);
}
