/*
** session.c - what a connection changes, recorded as changesets.
** https://sqlite.org/sessionintro.html
**
** A session is held as a statement is (blob.c): it ends with its connection.
*/
#define SQLITE_ENABLE_SESSION 1         /* as sqlite_unit.c has them: sqlite3.h declares it then */
#define SQLITE_ENABLE_PREUPDATE_HOOK 1
#include "rows.h"

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
    /* SQLite may be in this very session: what it reads a table's columns with is traced. */
    if (nl_call_inside(s->db)) {
        return nl_fail(err, NL_E_MISUSE, "a session cannot be closed by a callback of its connection");
    }
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
