/*
** counters.c - what SQLite keeps of a connection and has no function for: counters, and its schema.
**
** Many streams share one writing connection, yet last_insert_rowid(), changes() and total_changes()
** must answer to each stream as if it had a connection of its own. SQLite has a setter for the
** first only; the other two are private fields, therefore this file is part of sqlite_unit.c.
**
** LOCKS    the connection belongs to the caller and runs no statement.
*/
#include "nl.h"
#include "rows.h"

int nl_db_set_counters(nl_db *handle, int64_t last_rowid, int64_t changes, int64_t total_changes)
{
    sqlite3 *db = handle->sqlite;

    if (!db || db->nVdbeActive) return NL_E_MISUSE;
    db->lastRowid = last_rowid;
    db->nChange = changes;
    db->nTotalChange = total_changes;
    return NL_OK;
}

int nl_sqlite_forget_schema(sqlite3 *db)
{
    if (db->nVdbeActive) return 0;
    sqlite3ExpirePreparedStatements(db, 0);
    sqlite3ResetAllSchemasOfConnection(db);
    return 1;
}

int nl_sqlite_occupied(sqlite3 *db)
{
    /* VACUUM holds pointers into the list of databases while it runs statements of its own. */
    return db->pParse != 0 || db->init.busy || (db->mDbFlags & DBFLAG_Vacuum) != 0;
}
