/*
** backup.c - one connection's database copied into another's, page by page, while both are in use.
** https://sqlite.org/backup.html
*/
#include "rows.h"

#include <stdlib.h>

struct nl_backup {
    nl_db *from;
    nl_db *to;
    sqlite3_backup *sqlite;
};

/* Nobody waits to enter: a connection that is in use refuses, so two of these cannot block each other. */
static int backup_enter(const nl_backup *b, nl_error *err)
{
    int code = nl_db_enter(b->from, err);

    if (code) return code;
    code = b->sqlite ? nl_db_enter_to_copy(b->to, err) : nl_db_enter(b->to, err);
    if (code) nl_db_leave(b->from);
    return code;
}

static void backup_leave(const nl_backup *b)
{
    nl_db_leave(b->to);
    nl_db_leave(b->from);
}

int nl_db_copying(nl_db *db)
{
    return db->copies > 0 || db->receives;
}

int nl_backup_begin(
    nl_db *from, const char *from_name, nl_db *to, const char *to_name, nl_backup **out, nl_error *err)
{
    nl_backup *b = calloc(1, sizeof *b);

    *out = NULL;
    if (!b) return nl_fail(err, NL_E_NOMEM, "out of memory");
    b->from = from;
    b->to = to;
    int code = backup_enter(b, err);
    if (code) {
        free(b);
        return code;
    }
    b->sqlite = sqlite3_backup_init(to->sqlite, to_name, from->sqlite, from_name);
    if (b->sqlite) {
        from->copies++;
        to->receives = 1;
    } else {
        code = nl_db_fail(to, sqlite3_extended_errcode(to->sqlite), err);
    }
    backup_leave(b);
    if (code) {
        free(b);
        return code;
    }
    *out = b;
    return NL_OK;
}

int nl_backup_step(nl_backup *b, int pages, nl_backup_progress *progress, nl_error *err)
{
    int code = backup_enter(b, err);

    if (code) return code;
    int rc = sqlite3_backup_step(b->sqlite, pages);
    progress->rc = rc;
    progress->remaining = sqlite3_backup_remaining(b->sqlite);
    progress->pages = sqlite3_backup_pagecount(b->sqlite);
    const int waits = rc == SQLITE_OK || rc == SQLITE_DONE || rc == SQLITE_BUSY || rc == SQLITE_LOCKED;
    if (!waits) code = nl_db_fail(b->to, rc, err);
    backup_leave(b);
    return code;
}

int nl_backup_end(nl_backup *b, nl_error *err)
{
    if (!b) return NL_OK;
    int code = backup_enter(b, err);

    if (code) return code; /* inherited: SQLite must not see it again; or in use: it can be ended later */
    int rc = sqlite3_backup_finish(b->sqlite);
    b->from->copies--;
    b->to->receives = 0;
    /* Busy: given up while it waited, which is not a failure. */
    if (rc != SQLITE_OK && rc != SQLITE_BUSY && rc != SQLITE_LOCKED) code = nl_db_fail(b->to, rc, err);
    backup_leave(b);
    free(b);
    return code;
}
