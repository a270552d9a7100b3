/*
** snapshot.c - states of a database in WAL mode, named and read again. https://sqlite.org/c3ref/snapshot.html
*/
#define SQLITE_ENABLE_SNAPSHOT 1        /* as sqlite_unit.c has it: sqlite3.h declares them then */
#include "rows.h"

/* sqlite3_snapshot_get() and _open() leave no message with the connection. */
static int snapshot_fail(int rc, const char *why, nl_error *err)
{
    nl_fail(err, NL_E_SQLITE, "%s", why);
    err->sqlite_rc = rc;
    return NL_E_SQLITE;
}

/* A state belongs to a transaction that reads. */
static int snapshot_enter(nl_db *db, const char *schema, nl_error *err)
{
    int code = nl_db_enter(db, err);

    if (code) return code;
    const char *why = NULL;
    if (sqlite3_db_readonly(db->sqlite, schema) < 0) {
        why = "there is no database of that name";
    } else if (sqlite3_get_autocommit(db->sqlite)) {
        why = "a snapshot is read in a transaction, and none is open";
    } else if (sqlite3_txn_state(db->sqlite, schema) == SQLITE_TXN_WRITE) {
        why = "a snapshot is of what was committed, and the open transaction has written, or may";
    }
    if (!why) return NL_OK;
    nl_db_leave(db);
    return snapshot_fail(SQLITE_ERROR, why, err);
}

int nl_snapshot_get(nl_db *db, const char *schema, nl_snapshot **out, nl_error *err)
{
    sqlite3_snapshot *snapshot = NULL;

    *out = NULL;
    int code = snapshot_enter(db, schema, err);
    if (code) return code;
    int rc = sqlite3_snapshot_get(db->sqlite, schema, &snapshot);
    if (rc == SQLITE_ERROR) {
        code = snapshot_fail(rc, "there is no snapshot of a database that is not in WAL mode, or whose WAL is "
                                 "empty: nothing was written since it was last emptied", err);
    } else if (rc != SQLITE_OK) {
        code = snapshot_fail(rc, sqlite3_errstr(rc), err);
    }
    nl_db_leave(db);
    *out = (nl_snapshot *)snapshot;
    return code;
}

int nl_snapshot_open(nl_db *db, const char *schema, nl_snapshot *snapshot, nl_error *err)
{
    int code = snapshot_enter(db, schema, err);

    if (code) return code;
    int rc = sqlite3_snapshot_open(db->sqlite, schema, (sqlite3_snapshot *)snapshot);
    if (rc == SQLITE_BUSY_SNAPSHOT || rc == SQLITE_ERROR_SNAPSHOT) {
        code = snapshot_fail(rc, "the snapshot is no longer there: the WAL was checkpointed, or begun anew, and "
                                 "no open transaction was reading it", err);
    } else if (rc == SQLITE_ERROR) {
        code = snapshot_fail(rc, "the snapshot cannot be read: rows of another state are being fetched in the open "
                                 "transaction, or the database is not in WAL mode", err);
    } else if (rc != SQLITE_OK) {
        code = snapshot_fail(rc, sqlite3_errstr(rc), err);
    }
    nl_db_leave(db);
    return code;
}

int nl_snapshot_compare(nl_snapshot *a, nl_snapshot *b)
{
    return sqlite3_snapshot_cmp((sqlite3_snapshot *)a, (sqlite3_snapshot *)b);
}

void nl_snapshot_free(nl_snapshot *snapshot)
{
    if (snapshot) sqlite3_snapshot_free((sqlite3_snapshot *)snapshot);
}
