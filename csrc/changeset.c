/*
** changeset.c - changesets and patchsets: applied, undone, joined and read. https://sqlite.org/session.html
*/
#define SQLITE_ENABLE_SESSION 1         /* as sqlite_unit.c has them: sqlite3.h declares it then */
#define SQLITE_ENABLE_PREUPDATE_HOOK 1
#include "bytes.h"
#include "rows.h"

#include <limits.h>
#include <stdlib.h>

typedef struct changeset_conflicts {
    int answer;              /* SQLITE_CHANGESET_* */
    nl_conflicts *count;
} changeset_conflicts;

static int changeset_conflict(void *arg, int kind, sqlite3_changeset_iter *change)
{
    changeset_conflicts *c = arg;

    (void)change;
    switch (kind) {
    case SQLITE_CHANGESET_DATA: c->count->data++; break;
    case SQLITE_CHANGESET_NOTFOUND: c->count->missing++; break;
    case SQLITE_CHANGESET_CONFLICT: c->count->taken++; break;
    case SQLITE_CHANGESET_CONSTRAINT: c->count->constraint++; break;
    default: c->count->foreign_key++;
    }
    /* Only a row that is there can be replaced. */
    if (c->answer != SQLITE_CHANGESET_REPLACE || kind == SQLITE_CHANGESET_DATA
        || kind == SQLITE_CHANGESET_CONFLICT) {
        return c->answer;
    }
    return SQLITE_CHANGESET_OMIT;
}

static int changeset_fail(int rc, nl_error *err)
{
    if (rc == SQLITE_NOMEM) return nl_fail(err, NL_E_NOMEM, "out of memory");
    return nl_fail(err, NL_E_FORMAT, "not a changeset, or a damaged one; nothing was changed");
}

static int changeset_start(const uint8_t *data, size_t n, sqlite3_changeset_iter **iter, nl_error *err)
{
    *iter = NULL;
    if (n > INT_MAX) return nl_fail(err, NL_E_TOO_BIG, "a changeset is at most 2 GiB");
    int rc = sqlite3changeset_start(iter, (int)n, (void *)(uintptr_t)data);
    return rc == SQLITE_OK ? NL_OK : changeset_fail(rc, err);
}

/* A changeset that ends in the middle of a change is malformed before anything is applied. */
static int changeset_check(const uint8_t *data, size_t n, nl_error *err)
{
    sqlite3_changeset_iter *iter = NULL;
    int code = changeset_start(data, n, &iter, err);

    if (code) return code;
    while (sqlite3changeset_next(iter) == SQLITE_ROW) {}
    int rc = sqlite3changeset_finalize(iter);
    return rc == SQLITE_OK ? NL_OK : changeset_fail(rc, err);
}

int nl_changeset_apply(nl_db *db, const uint8_t *data, size_t n, int on_conflict, nl_conflicts *count, nl_error *err)
{
    static const int answers[] = {SQLITE_CHANGESET_ABORT, SQLITE_CHANGESET_OMIT, SQLITE_CHANGESET_REPLACE};
    changeset_conflicts c = {answers[on_conflict], count};
    int code = changeset_check(data, n, err);

    *count = (nl_conflicts){0, 0, 0, 0, 0};
    if (code) return code;
    code = nl_db_enter(db, err);
    if (code) return code;
    int rc = sqlite3changeset_apply(db->sqlite, (int)n, (void *)(uintptr_t)data, NULL, changeset_conflict, &c);
    if (rc == SQLITE_ABORT && on_conflict == NL_CONFLICT_ABORT) {
        code = nl_fail(err, NL_E_CONFLICT, "the changeset is in conflict with what is there; nothing was changed");
    } else if (rc != SQLITE_OK) {
        code = nl_db_fail(db, rc, err);
    }
    nl_db_leave(db);
    return code;
}

static int changeset_made(int rc, void *data, int n, uint8_t **out, int64_t *size, nl_error *err)
{
    *out = data;
    *size = n;
    if (rc == SQLITE_OK) return NL_OK;
    if (rc == SQLITE_NOMEM) return nl_fail(err, NL_E_NOMEM, "out of memory");
    return nl_fail(err, NL_E_FORMAT, rc == SQLITE_SCHEMA
        ? "the two changesets differ in what columns a table has" : "not a changeset, or a damaged one");
}

int nl_changeset_invert(const uint8_t *data, size_t n, uint8_t **out, int64_t *size, nl_error *err)
{
    void *made = NULL;
    int count = 0;
    int code = changeset_check(data, n, err);

    if (code) return code;
    int rc = sqlite3changeset_invert((int)n, data, &count, &made);
    return changeset_made(rc, made, count, out, size, err);
}

int nl_changeset_concat(
    const uint8_t *a, size_t na, const uint8_t *b, size_t nb, uint8_t **out, int64_t *size, nl_error *err)
{
    void *made = NULL;
    int count = 0;
    int code = changeset_check(a, na, err);

    if (!code) code = changeset_check(b, nb, err);
    if (code) return code;
    int rc = sqlite3changeset_concat((int)na, (void *)(uintptr_t)a, (int)nb, (void *)(uintptr_t)b, &count, &made);
    return changeset_made(rc, made, count, out, size, err);
}

/* ---------------------------------------------------------------- reading */

#define CHANGES_BATCH 65536              /* bytes after which a batch is handed out */

struct nl_changes {
    sqlite3_changeset_iter *iter;
    nl_buffer out;
    int ended;
    int failed;              /* a result that is told behind the changes before it */
};

int nl_changes_open(const uint8_t *data, size_t n, nl_changes **out, nl_error *err)
{
    *out = NULL;
    nl_changes *c = calloc(1, sizeof *c);
    if (!c) return nl_fail(err, NL_E_NOMEM, "out of memory");
    int code = changeset_start(data, n, &c->iter, err);
    if (code) {
        free(c);
        return code;
    }
    *out = c;
    return NL_OK;
}

typedef int (*changes_side)(sqlite3_changeset_iter *, int, sqlite3_value **);

/* The values of one side as two arrays: which columns it holds, and their values (nil: not held). */
static int changes_put_side(nl_changes *c, int columns, changes_side side)
{
    sqlite3_value **values = calloc((size_t)columns, sizeof *values);
    uint8_t *held = malloc((size_t)columns);
    int rc = values && held ? SQLITE_OK : SQLITE_NOMEM;

    for (int i = 0; rc == SQLITE_OK && i < columns; i++) {
        rc = side(c->iter, i, &values[i]);
        held[i] = values[i] != NULL;
    }
    if (rc == SQLITE_OK) rc = nl_put_flags(&c->out, columns, held);
    if (rc == SQLITE_OK) rc = nl_put_values(&c->out, columns, values);
    free(held);
    free(values);
    return rc;
}

/* One change: [[operation, table], indirect, key, old held, old values, new held, new values]; a side that
** the operation does not have is two nils. */
static int changes_put(nl_changes *c)
{
    static const uint8_t seven = 0x97, nils[2] = {0xc0, 0xc0};
    const char *table;
    uint8_t *key;
    int columns, operation, indirect, known;
    int rc = sqlite3changeset_op(c->iter, &table, &columns, &operation, &indirect);

    if (rc == SQLITE_OK) rc = sqlite3changeset_pk(c->iter, &key, &known);
    if (rc != SQLITE_OK) return rc;
    if (columns <= 0 || columns > 32767) return SQLITE_CORRUPT; /* SQLITE_MAX_COLUMN at most */
    const uint8_t flag = indirect != 0;
    rc = nl_put_raw(&c->out, &seven, 1);
    if (rc == SQLITE_OK) rc = nl_put_strings(&c->out, &operation, 1, &table, NULL);
    if (rc == SQLITE_OK) rc = nl_put_raw(&c->out, &flag, 1);
    if (rc == SQLITE_OK) rc = nl_put_flags(&c->out, columns, key);
    if (rc == SQLITE_OK) {
        rc = operation == SQLITE_INSERT ? nl_put_raw(&c->out, nils, 2)
                                        : changes_put_side(c, columns, sqlite3changeset_old);
    }
    if (rc == SQLITE_OK) {
        rc = operation == SQLITE_DELETE ? nl_put_raw(&c->out, nils, 2)
                                        : changes_put_side(c, columns, sqlite3changeset_new);
    }
    return rc;
}

int nl_changes_next(nl_changes *c, const uint8_t **batch, size_t *size, nl_error *err)
{
    static const uint8_t array32[5] = {0xdd, 0, 0, 0, 0};
    uint32_t count = 0;
    int rc;

    *batch = NULL;
    *size = 0;
    c->out.size = 0;
    if (nl_put_raw(&c->out, array32, sizeof array32)) return changeset_fail(SQLITE_NOMEM, err);
    while (!c->ended && c->out.size < CHANGES_BATCH) {
        rc = sqlite3changeset_next(c->iter);
        const size_t start = c->out.size;
        if (rc == SQLITE_ROW) {
            rc = changes_put(c);
            if (rc == SQLITE_OK) {
                count++;
                continue;
            }
        }
        c->ended = 1;
        c->out.size = start;
        if (rc != SQLITE_DONE) c->failed = rc;
    }
    if (!count && c->failed) {
        if (c->failed == SQLITE_NOMEM) return changeset_fail(SQLITE_NOMEM, err);
        return nl_fail(err, NL_E_FORMAT, "not a changeset, or one that is damaged behind the changes that were read");
    }
    nl_put32(c->out.data + 1, count);
    *batch = c->out.data;
    *size = count ? c->out.size : 0;
    return NL_OK;
}

void nl_changes_free(nl_changes *c)
{
    if (!c) return;
    sqlite3changeset_finalize(c->iter);
    nl_buffer_free(&c->out);
    free(c);
}
