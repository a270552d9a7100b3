/*
** watch.c - how many rows of which tables the last transaction of a connection has changed.
**
** SQLite reports every row to the update hook while it is changed. The commit hook makes what was counted that
** of a whole transaction, and the next row begins the next one; so whoever wants to know asks behind a commit,
** and where nobody does there is nothing to be cleared.
**
** What SQLite does not report is not counted: rows of WITHOUT ROWID tables, and those of a DELETE without WHERE,
** which it frees page by page. What only a savepoint has undone is counted all the same.
*/
#include "rows.h"

#include <stdlib.h>
#include <string.h>

typedef struct nl_watch {
    int whole;      /* the counts are of a transaction that was committed */
    uint32_t n;     /* tables in use */
    uint32_t last;  /* the one that a row was changed in last: mostly it is the next one's, too */
    uint32_t lost;  /* rows of tables that there was no room for */
    nl_changed tables[NL_CHANGED_TABLES];
} nl_watch;

static nl_changed *watch_table(nl_watch *w, const char *table)
{
    size_t length = strlen(table);

    if (w->last < w->n && !strcmp(w->tables[w->last].table, table)) return &w->tables[w->last];
    for (uint32_t i = 0; i < w->n; i++) {
        if (!strcmp(w->tables[i].table, table)) {
            w->last = i;
            return &w->tables[i];
        }
    }
    if (w->n == NL_CHANGED_TABLES || length >= NL_CHANGED_NAME) return NULL;
    nl_changed *made = &w->tables[w->n];
    memset(made, 0, sizeof *made);
    memcpy(made->table, table, length);
    w->last = w->n++;
    return made;
}

static void watch_row(void *watch, int what, const char *schema, const char *table, sqlite3_int64 rowid)
{
    nl_watch *w = watch;

    (void)rowid;
    if (strcmp(schema, "main")) return;
    if (w->whole) {
        w->whole = 0;
        w->n = w->lost = 0;
    }
    nl_changed *changed = watch_table(w, table);
    if (!changed) w->lost++;
    else if (what == SQLITE_INSERT) changed->inserted++;
    else if (what == SQLITE_UPDATE) changed->updated++;
    else changed->deleted++;
}

static int watch_commit(void *watch)
{
    nl_watch *w = watch;

    if (w->whole) w->n = w->lost = 0; /* a transaction without a row */
    w->whole = 1;
    return 0;
}

static void watch_rollback(void *watch)
{
    nl_watch *w = watch;

    w->whole = 1;
    w->n = w->lost = 0;
}

int nl_db_watch(nl_db *db, nl_error *err)
{
    if (nl_db_enter(db, err)) return NL_E_MISUSE;
    if (!db->watch) db->watch = calloc(1, sizeof *db->watch);
    if (db->watch) {
        sqlite3_update_hook(db->sqlite, watch_row, db->watch);
        sqlite3_commit_hook(db->sqlite, watch_commit, db->watch);
        sqlite3_rollback_hook(db->sqlite, watch_rollback, db->watch);
    }
    nl_db_leave(db);
    return db->watch ? NL_OK : nl_fail(err, NL_E_NOMEM, "out of memory");
}

const nl_changed *nl_db_changed(nl_db *db, uint32_t *n, uint32_t *lost)
{
    nl_watch *w = db->watch;

    *n = *lost = 0;
    if (!w || !w->whole) return NULL;
    *n = w->n;
    *lost = w->lost;
    w->n = w->lost = 0;
    return w->tables;
}
