/*
** session.c - what a connection changes, recorded as changesets, and changesets applied.
** https://sqlite.org/sessionintro.html
**
** A session is held as a statement is (blob.c): it ends with its connection.
*/
#define SQLITE_ENABLE_SESSION 1         /* as sqlite_unit.c has them: sqlite3.h declares it then */
#define SQLITE_ENABLE_PREUPDATE_HOOK 1
#include "rows.h"

#include <limits.h>
#include <stdlib.h>

static void session_end(void *session)
{
    sqlite3session_delete(session);
}

int nl_session_open(nl_db *db, const char *schema, nl_session **out, nl_error *err)
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
    s->end = session_end;
    sqlite3_session *session = NULL;
    int rc = sqlite3session_create(db->sqlite, schema, &session);
    s->other = session;
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

static int session_enter(nl_session *s, nl_error *err)
{
    int code = nl_db_enter(s->db, err);

    if (code || s->other) return code;
    nl_db_leave(s->db);
    return nl_fail(err, NL_E_MISUSE, "Cannot operate on a closed session.");
}

int nl_session_attach(nl_session *s, const char *table, nl_error *err)
{
    int code = session_enter(s, err);

    if (code) return code;
    int rc = sqlite3session_attach(s->other, table);
    if (rc != SQLITE_OK) code = nl_db_fail(s->db, rc, err);
    nl_db_leave(s->db);
    return code;
}

int nl_session_switch(nl_session *s, int what, int value, int *now, nl_error *err)
{
    int code = session_enter(s, err);

    if (code) return code;
    switch (what) {
    case NL_SESSION_ENABLED: *now = sqlite3session_enable(s->other, value); break;
    case NL_SESSION_INDIRECT: *now = sqlite3session_indirect(s->other, value); break;
    default: *now = sqlite3session_isempty(s->other);
    }
    nl_db_leave(s->db);
    return NL_OK;
}

int nl_session_changes(nl_session *s, int patch, uint8_t **out, int64_t *size, nl_error *err)
{
    int n = 0;
    void *data = NULL;
    int code = session_enter(s, err);

    *out = NULL;
    *size = 0;
    if (code) return code;
    int rc = patch ? sqlite3session_patchset(s->other, &n, &data) : sqlite3session_changeset(s->other, &n, &data);
    if (rc != SQLITE_OK) code = nl_db_fail(s->db, rc, err);
    *out = data;
    *size = n;
    nl_db_leave(s->db);
    return code;
}

int nl_session_close(nl_session *s, nl_error *err)
{
    int code = nl_db_enter(s->db, err);

    if (code) return code;
    nl_stmt_end(s);
    nl_db_leave(s->db);
    return NL_OK;
}

void nl_session_free(nl_session *s)
{
    if (s) nl_db_orphan(s->db, s);
}

/* ---------------------------------------------------------------- changesets */

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

/* A changeset that ends in the middle of a change is malformed before anything is applied. */
static int changeset_check(const uint8_t *data, size_t n, nl_error *err)
{
    sqlite3_changeset_iter *iter = NULL;

    if (n > INT_MAX) return nl_fail(err, NL_E_TOO_BIG, "a changeset is at most 2 GiB");
    int rc = sqlite3changeset_start(&iter, (int)n, (void *)(uintptr_t)data);
    while (rc == SQLITE_OK && sqlite3changeset_next(iter) == SQLITE_ROW) {}
    int ended = iter ? sqlite3changeset_finalize(iter) : SQLITE_OK;
    if (rc == SQLITE_OK) rc = ended;
    if (rc == SQLITE_NOMEM) return nl_fail(err, NL_E_NOMEM, "out of memory");
    if (rc != SQLITE_OK) return nl_fail(err, NL_E_FORMAT, "not a changeset, or a damaged one; nothing was changed");
    return NL_OK;
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
