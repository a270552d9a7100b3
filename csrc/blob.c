/*
** blob.c - one value of a table, read and written in place, piece by piece. https://sqlite.org/c3ref/blob.html
**
** A blob is held as a statement is, and in the same list: it ends with its connection, and whoever lets go of
** it, on any thread, leaves its end to whoever is inside.
*/
#include "rows.h"

#include <limits.h>
#include <stdlib.h>

static void blob_end(void *blob)
{
    sqlite3_blob_close(blob);
}

int nl_blob_open(nl_db *db, const char *schema, const char *table, const char *column, int64_t row, int writable,
    nl_blob **out, nl_error *err)
{
    nl_stmt *s = NULL;

    *out = NULL;
    int code = nl_db_enter(db, err);
    if (code) return code;
    s = calloc(1, sizeof *s);
    if (!s) {
        code = nl_fail(err, NL_E_NOMEM, "out of memory");
        goto done;
    }
    nl_db_adopt(db, s);
    s->end = blob_end;
    sqlite3_blob *blob = NULL;
    int rc = sqlite3_blob_open(db->sqlite, schema, table, column, row, writable, &blob);
    s->other = blob;
    if (rc != SQLITE_OK) {
        code = nl_db_fail(db, rc, err);
        nl_db_orphan(db, s);
        s = NULL;
    }
done:
    nl_db_leave(db);
    *out = s;
    return code;
}

/* Enters the connection; refuses when the blob is closed. */
static int blob_enter(nl_blob *b, nl_error *err)
{
    int code = nl_db_enter(b->db, err);

    if (code || b->other) return code;
    nl_db_leave(b->db);
    return nl_fail(err, NL_E_MISUSE, "Cannot operate on a closed blob.");
}

int nl_blob_size(nl_blob *b, int64_t *size, nl_error *err)
{
    int code = blob_enter(b, err);

    if (code) return code;
    *size = sqlite3_blob_bytes(b->other);
    nl_db_leave(b->db);
    return NL_OK;
}

int nl_blob_read(nl_blob *b, int64_t at, uint8_t *to, size_t n, nl_error *err)
{
    int code = blob_enter(b, err);

    if (code) return code;
    b->running = 1; /* hooks may come here */
    int rc = n > INT_MAX || at > INT_MAX ? SQLITE_ERROR : sqlite3_blob_read(b->other, to, (int)n, (int)at);
    b->running = 0;
    if (rc != SQLITE_OK) {
        b->failed = 1;
        code = nl_db_fail(b->db, rc, err);
    }
    nl_db_leave(b->db);
    return code;
}

int nl_blob_write(nl_blob *b, int64_t at, const uint8_t *from, size_t n, nl_error *err)
{
    int code = blob_enter(b, err);

    if (code) return code;
    b->running = 1;
    int rc = n > INT_MAX || at > INT_MAX ? SQLITE_ERROR : sqlite3_blob_write(b->other, from, (int)n, (int)at);
    b->running = 0;
    if (rc != SQLITE_OK) {
        b->failed = 1;
        code = nl_db_fail(b->db, rc, err);
    }
    nl_db_leave(b->db);
    return code;
}

int nl_blob_close(nl_blob *b, nl_error *err)
{
    if (b->running) return nl_fail(err, NL_E_MISUSE, "the value is being read or written by the call that this is in");
    int code = nl_db_enter(b->db, err);
    if (code) return code;
    sqlite3_blob *blob = b->other;
    b->other = NULL;
    int rc = sqlite3_blob_close(blob);
    /* Outside a transaction the close is the commit. What a read or write failed with is not told again. */
    if (rc != SQLITE_OK && !b->failed) code = nl_db_fail(b->db, rc, err);
    nl_db_leave(b->db);
    return code;
}

void nl_blob_free(nl_blob *b)
{
    if (b) nl_db_orphan(b->db, b);
}
