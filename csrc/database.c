/*
** database.c - one SQLite connection as the driver and the server use it.
**
** What is ours about it:
**
**  * One caller at a time. SQLite is opened without its mutexes; nl_db_enter() holds a flag instead,
**    and a second thread (or a signal handler that got in the way) is told so. A function of the program
**    that SQLite calls (callbacks.c) may come back in.
**  * It can be stopped. A progress handler runs every DATABASE_STEPS virtual machine steps and,
**    from time to time, the tick: a Python function of a few nanoseconds whose only purpose is that
**    Python runs its signal handlers, because the thread that would run them is in here. The same
**    holds while waiting for a lock, so a busy wait ends at Ctrl-C and at nl_db_interrupt().
**  * It knows what statements do. SQLite's compiler reports every object a statement touches to the
**    authorizer; while something is compiled these reports become NL_STMT_* flags. Setting an authorizer
**    expires all prepared statements, therefore it is set once, when the connection is opened.
*/
#include "key.h"
#include "rows.h"

#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DATABASE_STEPS 1000   /* VM steps between progress reports: some 20 microseconds */
#define DATABASE_TICK_MS 50   /* Ctrl-C is seen within this */
#define DATABASE_FREEING_TRIES 10000 /* a second: looks at whether a statement has been freed */
#define DATABASE_LATE_MS 20   /* a batch with rows in it ends after this, whatever its size */

static uint32_t database_schemas; /* how often nl_db_distrust_schemas() was called; atomic */
static int (*database_tick)(void); /* set once, when the Python module is imported */

void nl_set_tick(int (*tick)(void))
{
    database_tick = tick;
}

static int64_t database_now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---------------------------------------------------------------- entering, leaving, failing */

/* The handle came here by fork(). SQLite must not see it again, not even to close it: that would roll
** back or checkpoint the parent's transaction through the memory and the files both share. So whatever it
** owns is left as it is; the process's end takes it away. Looked at before any lock of the handle, which
** a thread of the parent may have held. */
static int database_inherited(const nl_db *db)
{
    return db->forks != nl_forks();
}

static void database_unref(nl_db *db)
{
    if (database_inherited(db)) return;
    if (__atomic_sub_fetch(&db->refs, 1, __ATOMIC_ACQ_REL)) return;
    pthread_mutex_destroy(&db->guard);
    nl_key_free(db->sealing.key);
    free(db->message);
    free(db->watch);
    free(db->area);
    free(db);
}

/* Makes an idle connection this thread's. */
static int database_claim(nl_db *db, int what, int *found)
{
    *found = 0;
    return __atomic_compare_exchange_n(&db->running, found, what, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* The same for a call, which waits for those who free; not for ever: it may be what interrupted them. */
static int database_claim_for_call(nl_db *db)
{
    const struct timespec moment = {0, 100000}; /* 0.1 ms */
    int found;

    for (int i = 0; i < DATABASE_FREEING_TRIES; i++) {
        if (database_claim(db, NL_INSIDE, &found)) return 1;
        if (found != NL_FREEING) return 0;
        if (i < 100) sched_yield();
        else nanosleep(&moment, NULL);
    }
    return 0;
}

/* Frees the orphans. While `running`. Answers how many: each held a reference. */
static int database_reap(nl_db *db)
{
    int n = 0;

    pthread_mutex_lock(&db->guard);
    nl_stmt *s = db->orphans;
    db->orphans = NULL;
    pthread_mutex_unlock(&db->guard);
    while (s) {
        nl_stmt *next = s->next_orphan;
        if (s->next) s->next->link = s->link;
        *s->link = s->next;
        nl_stmt_end(s);
        nl_stmt_release(s);
        s = next;
        n++;
    }
    return n;
}

/* Gives `running` back. An orphan that arrives between the last look and the store is seen by the
** next turn of the loop, so none is left behind. The references go last: they may free *db. */
static void database_exit(nl_db *db)
{
    int reaped = 0, found;

    do {
        if (__atomic_load_n(&db->orphans, __ATOMIC_RELAXED)) reaped += database_reap(db);
        __atomic_store_n(&db->running, 0, __ATOMIC_SEQ_CST);
    } while (__atomic_load_n(&db->orphans, __ATOMIC_SEQ_CST)
        && database_claim(db, NL_FREEING, &found));
    while (reaped-- > 0) database_unref(db);
}

void nl_db_distrust_schemas(void)
{
    __atomic_add_fetch(&database_schemas, 1, __ATOMIC_RELEASE);
}

/* Between two steps of a copy its target is half of one database and half of another. SQLite relies on nobody
** looking: pages that it has cached meanwhile end in memory that is not its own. */
static int database_receives(nl_error *err)
{
    return nl_fail(err, NL_E_MISUSE,
        "the connection cannot be used until the copy that is being put in its place is complete");
}

/* A callback uses the connection that calls it. What belongs to the call it is in (time, budget, seal)
** stays as it is. Until the call that begins here is over, nobody is let in: signal handlers may run in it. */
static int database_enter_again(nl_db *db, int copying, nl_error *err)
{
    if (!db->sqlite) return nl_fail(err, NL_E_MISUSE, "Cannot operate on a closed database.");
    if (db->receives && !copying) return database_receives(err);
    __atomic_store_n(&db->caller, 0, __ATOMIC_RELAXED);
    db->again++;
    return NL_OK;
}

static inline int database_enter(nl_db *db, int copying, nl_error *err)
{
    if (database_inherited(db)) {
        return nl_fail(err, NL_E_MISUSE,
            "the connection was opened before a fork, by the parent process, and works only there; "
            "nothing was done. Open a new connection in the child");
    }
    if (__atomic_load_n(&db->caller, __ATOMIC_RELAXED) == (uintptr_t)pthread_self()) {
        return database_enter_again(db, copying, err);
    }
    if (!database_claim_for_call(db)) {
        return nl_fail(err, NL_E_MISUSE, "%s", nl_call_inside(db)
            ? "the connection cannot be used here: it is in the middle of a step, which waits for this callback"
            : "the connection is in use by another call");
    }
    if (!db->sqlite) {
        database_exit(db);
        return nl_fail(err, NL_E_MISUSE, "Cannot operate on a closed database.");
    }
    if (db->receives && !copying) {
        database_exit(db);
        return database_receives(err);
    }
    if (db->sealing.key) {
        db->sealing.empty = 0;
        db->outer = nl_sealing_with(&db->sealing);
    }
    uint32_t schemas = __atomic_load_n(&database_schemas, __ATOMIC_ACQUIRE);
    if (db->schemas != schemas && nl_sqlite_forget_schema(db->sqlite)) db->schemas = schemas;
    db->begun_ms = 0;
    db->late = 0;
    db->over_budget = 0;
    db->steps_left = db->budget;
    return NL_OK;
}

int nl_db_enter(nl_db *db, nl_error *err)
{
    return database_enter(db, 0, err);
}

int nl_db_enter_to_copy(nl_db *db, nl_error *err)
{
    return database_enter(db, 1, err);
}

void nl_db_leave(nl_db *db)
{
    if (db->sqlite) {
        db->status.last_rowid = sqlite3_last_insert_rowid(db->sqlite);
        db->status.in_transaction = !sqlite3_get_autocommit(db->sqlite);
    }
    if (db->again) { /* back into the callback */
        db->again--;
        __atomic_store_n(&db->caller, (uintptr_t)pthread_self(), __ATOMIC_RELAXED);
        return;
    }
    if (db->sealing.key) {
        nl_sealing_with(db->outer);
        db->status.reports = nl_reports();
    }
    database_exit(db);
}

void nl_db_adopt(nl_db *db, nl_stmt *s)
{
    __atomic_add_fetch(&db->refs, 1, __ATOMIC_RELAXED);
    s->db = db;
    s->next = db->first;
    s->link = &db->first;
    if (s->next) s->next->link = &s->next;
    db->first = s;
}

void nl_db_orphan(nl_db *db, nl_stmt *s)
{
    if (database_inherited(db)) return;
    /* Once in the list, another thread may free the statement and with it the last reference. */
    __atomic_add_fetch(&db->refs, 1, __ATOMIC_RELAXED);
    pthread_mutex_lock(&db->guard);
    s->next_orphan = db->orphans;
    db->orphans = s;
    pthread_mutex_unlock(&db->guard);
    /* If somebody is inside, he frees it when he leaves. */
    int found;
    if (database_claim(db, NL_FREEING, &found)) database_exit(db);
    database_unref(db);
}

int nl_db_fail(nl_db *db, int rc, nl_error *err)
{
    /* A seal has more to say than any result code. */
    int code = nl_sealed_failure(err);
    db->carries = 0; /* Python raises what it kept instead of this */
    if (code != NL_OK) {
        free(db->message);
        db->message = err ? strdup(err->text) : NULL;
        return code;
    }
    code = nl_fail_sqlite(err, db->sqlite, rc);
    int own = db->sqlite && (sqlite3_errcode(db->sqlite) & 0xff) == (rc & 0xff);
    const char *text = own ? sqlite3_errmsg(db->sqlite) : sqlite3_errstr(rc);

    free(db->message);
    db->message = strdup(text); /* NULL when memory is out: nl_error has the beginning */
    return code;
}

/* ---------------------------------------------------------------- progress and waiting */

/* Lets Python run its signal handlers when that is due. Answers 1 when the call shall stop. */
static int database_pulse(nl_db *db, int64_t now)
{
    if (!db->begun_ms) {
        db->begun_ms = now;
        db->tick_ms = now + DATABASE_TICK_MS;
    }
    if (now - db->begun_ms >= DATABASE_LATE_MS) db->late = 1;
    if (now < db->tick_ms || !database_tick || !nl_callbacks_allowed()) return 0;
    db->tick_ms = now + DATABASE_TICK_MS;
    return database_tick() != 0;
}

static int database_progress(void *arg)
{
    nl_db *db = arg;

    if (db->budget >= 0) {
        db->steps_left -= db->period;
        if (db->steps_left < 0) {
            db->over_budget = 1;
            return 1;
        }
    }
    if (db->progress && --db->periods_left <= 0) {
        db->periods_left = db->periods;
        if (nl_call_progress(db)) return 1;
    }
    return database_pulse(db, database_now_ms());
}

void nl_db_set_period(nl_db *db, int steps)
{
    /* Of more steps than we can do without a report the hook is told every second, third ... time. */
    db->periods = steps > 0 ? 1 + (steps - 1) / DATABASE_STEPS : 1;
    db->periods_left = db->periods;
    db->period = steps > 0 ? steps / db->periods : DATABASE_STEPS;
    sqlite3_progress_handler(db->sqlite, db->period, database_progress, db);
}

/* Waits a little for a lock: 1, 2, 4 ... 32 ms. Answers 0 when the time is over or the wait is interrupted. */
static int database_busy(void *arg, int count)
{
    nl_db *db = arg;
    int64_t now = database_now_ms();
    int64_t nap = count < 5 ? 1 << count : 32;
    struct timespec pause;

    if (count == 0) db->busy_since_ms = now;
    if (db->busy_ms >= 0) {
        int64_t left = db->busy_since_ms + db->busy_ms - now;
        if (left <= 0) return 0;
        if (nap > left) nap = left;
    }
    if (database_pulse(db, now)) {
        sqlite3_interrupt(db->sqlite);
        return 0;
    }
    if (sqlite3_is_interrupted(db->sqlite)) return 0;
    pause.tv_sec = 0;
    pause.tv_nsec = (long)nap * 1000000;
    nanosleep(&pause, NULL);
    return 1;
}

/* ---------------------------------------------------------------- what statements do */

/* Which database a report is about: 0 main, 1 temp, 2 attached, -1 none. */
static int database_place(const char *name)
{
    if (!name) return -1;
    if (strcmp(name, "main") == 0) return 0;
    if (strcmp(name, "temp") == 0) return 1;
    return 2;
}

static uint32_t database_touch_flags(int place)
{
    static const uint32_t flags[3] = {NL_STMT_MAIN, NL_STMT_TEMP, NL_STMT_ATTACHED};

    return place < 0 ? 0 : flags[place];
}

static uint32_t database_write_flags(int place)
{
    static const uint32_t flags[3] = {
        NL_STMT_WRITES_MAIN, NL_STMT_WRITES_TEMP, NL_STMT_WRITES_ATTACHED};

    return place < 0 ? 0 : flags[place] | database_touch_flags(place);
}

static uint32_t database_transaction_flags(const char *what)
{
    uint32_t flags = NL_STMT_TRANSACTION;

    if (what && strcmp(what, "COMMIT") == 0) flags |= NL_STMT_COMMIT;
    if (what && strcmp(what, "ROLLBACK") == 0) flags |= NL_STMT_ROLLBACK;
    return flags;
}

/* One report of SQLite's compiler, as flags. https://sqlite.org/c3ref/c_alter_table.html */
static uint32_t database_report_flags(int action, const char *a, const char *b, const char *place)
{
    int where = database_place(place);

    switch (action) {
    case SQLITE_SELECT:
    case SQLITE_FUNCTION:
    case SQLITE_RECURSIVE:
        return 0;
    case SQLITE_READ:
        return database_touch_flags(where);
    case SQLITE_PRAGMA:
        return NL_STMT_PRAGMA | database_touch_flags(where);
    case SQLITE_TRANSACTION:
        return database_transaction_flags(a);
    case SQLITE_SAVEPOINT:
        return NL_STMT_SAVEPOINT;
    case SQLITE_ATTACH:
    case SQLITE_DETACH:
        return NL_STMT_ATTACH;
    case SQLITE_INSERT:
    case SQLITE_DELETE:
    case SQLITE_UPDATE:
        return database_write_flags(where);
    case SQLITE_ALTER_TABLE: /* the database is the first argument here */
        return NL_STMT_SCHEMA | database_write_flags(database_place(a));
    default: /* CREATE, DROP, REINDEX, ANALYZE and their virtual table and temp twins */
        (void)b;
        return NL_STMT_SCHEMA | database_write_flags(where);
    }
}

/* What a statement does itself, not through a trigger. The rows of the schema do not count. */
static uint32_t database_own_flags(int action, const char *table)
{
    if (table && (!strcmp(table, "sqlite_master") || !strcmp(table, "sqlite_temp_master"))) return 0;
    if (action == SQLITE_INSERT) return NL_STMT_INSERT;
    return action == SQLITE_UPDATE || action == SQLITE_DELETE ? NL_STMT_MODIFY : 0;
}

/* Keeps the name of a pragma, in lower case, for the statement that is being compiled. */
static void database_note_pragma(nl_db *db, const char *name, const char *value)
{
    size_t n = name ? strlen(name) : 0;

    if (n >= sizeof db->pragma) n = sizeof db->pragma - 1;
    for (size_t i = 0; i < n; i++) {
        char c = name[i];
        db->pragma[i] = (char)(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    }
    db->pragma[n] = 0;
    db->pragma_set = value != NULL;
}

static void database_note_unplaced(nl_db *db, const char *table)
{
    size_t n = table ? strlen(table) : 0;
    int i = db->unplaced_count++;

    if (i >= (int)(sizeof db->unplaced / sizeof db->unplaced[0])) return;
    if (n >= sizeof db->unplaced[i]) n = 0; /* found nowhere: main is assumed */
    if (n) memcpy(db->unplaced[i], table, n);
    db->unplaced[i][n] = 0;
}

/* Where SQLite finds a table that is named without its database: temp comes before main. A view
** counts as main's. */
static uint32_t database_find_flags(sqlite3 *sqlite, const char *table)
{
    /* The exception: without its database the schema is main's, but found in temp, too. */
    if (sqlite3_stricmp(table, "sqlite_master") == 0) return NL_STMT_MAIN;
    if (sqlite3_stricmp(table, "sqlite_schema") == 0) return NL_STMT_MAIN;
    if (sqlite3_table_column_metadata(sqlite, "temp", table, NULL, NULL, NULL, NULL, NULL, NULL)
        == SQLITE_OK) {
        return NL_STMT_TEMP;
    }
    if (sqlite3_table_column_metadata(sqlite, "main", table, NULL, NULL, NULL, NULL, NULL, NULL)
            != SQLITE_OK
        && sqlite3_table_column_metadata(sqlite, NULL, table, NULL, NULL, NULL, NULL, NULL, NULL)
            == SQLITE_OK) {
        return NL_STMT_ATTACHED;
    }
    return NL_STMT_MAIN;
}

uint32_t nl_db_unplaced_flags(nl_db *db)
{
    int room = (int)(sizeof db->unplaced / sizeof db->unplaced[0]);
    uint32_t flags = db->unplaced_count > room ? NL_STMT_MAIN : 0;

    for (int i = 0; i < db->unplaced_count && i < room; i++) {
        flags |= database_find_flags(db->sqlite, db->unplaced[i]);
    }
    db->unplaced_count = 0;
    return flags;
}

/* Notes a report for the statement that is being compiled. */
static void database_note(
    nl_db *db, int action, const char *a, const char *b, const char *place, const char *trigger)
{
    if (db->collect && action == SQLITE_ALTER_TABLE) db->alters_main = database_place(a) == 0;
    /* RENAME and DROP COLUMN always look for views and triggers in temp, too, that name the table. */
    if (db->alters_main && database_place(place) == 1) return;
    /* No ATTACH of ours is being compiled, nor compiled anew: it is VACUUM INTO that attaches its target. */
    if (action == SQLITE_ATTACH && !db->collect && !(db->step_flags & NL_STMT_ATTACH)) db->sealing.empty = 1;
    if (!db->collect) return;
    *db->collect |= database_report_flags(action, a, b, place);
    if (!trigger) *db->collect |= database_own_flags(action, a);
    if (action == SQLITE_PRAGMA) database_note_pragma(db, a, b);
    if (action == SQLITE_READ && !place) database_note_unplaced(db, a);
}

static int database_authorize(
    void *arg, int action, const char *a, const char *b, const char *place, const char *trigger)
{
    nl_db *db = arg;
    const char *const strings[4] = {a, b, place, trigger};

    database_note(db, action, a, b, place, trigger);
    if (!db->authorizer || db->own) return SQLITE_OK;
    int answer = nl_call_authorizer(db, action, strings);
    /* VACUUM takes for granted that what it has attached is there: SQLite would follow a null pointer. */
    const int vacuums = action == SQLITE_ATTACH && !db->collect && !(db->step_flags & NL_STMT_ATTACH);
    if (vacuums && answer == SQLITE_IGNORE) answer = SQLITE_DENY;
    if (answer == SQLITE_IGNORE && db->collect) *db->collect |= NL_STMT_IGNORED;
    if (answer != SQLITE_IGNORE && answer != SQLITE_OK) db->denied = 1;
    return answer;
}

int nl_db_denied(nl_db *db)
{
    return db->denied;
}

int nl_db_set_authorizer(nl_db *db, int64_t id, nl_error *err)
{
    if (nl_db_enter(db, err)) return NL_CALLS_REFUSED;
    db->authorizer = id;
    /* Statements that were compiled under another one are compiled anew. */
    sqlite3_set_authorizer(db->sqlite, database_authorize, db);
    nl_db_leave(db);
    return SQLITE_OK;
}

/* ---------------------------------------------------------------- opening and closing */

static int database_configure(nl_db *db, int flags, nl_error *err)
{
    int rc = sqlite3_extended_result_codes(db->sqlite, 1);

    if (rc == SQLITE_OK) rc = sqlite3_set_authorizer(db->sqlite, database_authorize, db);
    if (rc == SQLITE_OK) rc = sqlite3_busy_handler(db->sqlite, database_busy, db);
    if (rc == SQLITE_OK) {
        rc = sqlite3_db_config(db->sqlite, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0, NULL);
    }
    /* SQLite's 40 KiB are had when the connection is opened, whether it compiles anything or not. */
    if (rc == SQLITE_OK && (flags & NL_OPEN_FRUGAL)) {
        rc = sqlite3_db_config(db->sqlite, SQLITE_DBCONFIG_LOOKASIDE, NULL, 1200, 10);
    }
    if (rc == SQLITE_OK && (flags & NL_OPEN_DEFENSIVE)) {
        rc = sqlite3_db_config(db->sqlite, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    }
    if (rc == SQLITE_OK && (flags & NL_OPEN_NO_CHECKPOINT)) {
        rc = sqlite3_db_config(db->sqlite, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
        if (rc == SQLITE_OK) rc = sqlite3_wal_autocheckpoint(db->sqlite, 0);
    }
    if (rc != SQLITE_OK) return nl_db_fail(db, rc, err);
    nl_db_set_period(db, 0);
    return NL_OK;
}

/* Temporary tables, sorts and statement journals of a sealed connection; files are refused to it. */
static int database_keep_in_memory(nl_db *db, nl_error *err)
{
    if (!db->sealing.key) return NL_OK;
    int rc = sqlite3_exec(db->sqlite, "PRAGMA temp_store=2", NULL, NULL, NULL);
    return rc == SQLITE_OK ? NL_OK : nl_db_fail(db, rc, err);
}

int nl_db_open(
    const char *path, int flags, int busy_ms, nl_key *key, uint32_t page_size, nl_db **out, nl_error *err)
{
    int open_flags = SQLITE_OPEN_NOMUTEX;
    int code = NL_OK;
    nl_db *db = NULL;

    *out = NULL;
    code = nl_init(err);
    if (code) return code;
    db = calloc(1, sizeof *db);
    if (!db) return nl_fail(err, NL_E_NOMEM, "out of memory");
    pthread_mutex_init(&db->guard, NULL);
    db->refs = 1;
    db->forks = nl_forks();
    db->busy_ms = busy_ms;
    db->budget = -1;
    if (key) db->sealing = (nl_sealing){.key = nl_key_share(key), .page_size = page_size};
    if (flags & NL_OPEN_READONLY) open_flags |= SQLITE_OPEN_READONLY;
    if (flags & NL_OPEN_READWRITE) open_flags |= SQLITE_OPEN_READWRITE;
    if (flags & NL_OPEN_CREATE) open_flags |= SQLITE_OPEN_CREATE;
    if (flags & NL_OPEN_URI) open_flags |= SQLITE_OPEN_URI;
    const nl_sealing *outer = nl_sealing_with(key ? &db->sealing : NULL);
    int rc = sqlite3_open_v2(path, &db->sqlite, open_flags, key ? "nearlite-sealed" : NULL);
    if (rc != SQLITE_OK) {
        code = nl_db_fail(db, rc, err);
        goto done;
    }
    code = database_configure(db, flags, err);
    if (code == NL_OK && key && !nl_sealed_is(db->sqlite)) {
        code = nl_fail(err, NL_E_KEY, "%s names a VFS of its own, which would not seal the file", path);
    }
    if (code == NL_OK) code = database_keep_in_memory(db, err);
done:
    nl_sealing_with(outer);
    if (code) {
        nl_db_close(db, NULL);
        nl_db_free(db);
        return code;
    }
    *out = db;
    return NL_OK;
}

int nl_db_close(nl_db *db, nl_error *err)
{
    sqlite3 *sqlite = db->sqlite;

    if (!sqlite || database_inherited(db)) return NL_OK;
    if (nl_call_inside(db)) {
        return nl_fail(err, NL_E_MISUSE, "the connection cannot be closed by a callback that it waits for");
    }
    if (nl_db_enter(db, err)) return NL_E_MISUSE;
    if (db->copies) { /* SQLite would keep the file open, and locked, until the copy ends */
        nl_db_leave(db);
        return nl_fail(err, NL_E_MISUSE, "the connection cannot be closed while a copy of it is being made");
    }
    pthread_mutex_lock(&db->guard);
    db->sqlite = NULL;
    pthread_mutex_unlock(&db->guard);
    /* Statements that somebody still holds end here, so that the file is really closed; their
    ** handles stay valid and refuse. v2, because nothing may be used after it was freed even if
    ** something else (a blob, a backup) still hangs on the connection. */
    for (nl_stmt *s = db->first; s; s = s->next) nl_stmt_end(s);
    sqlite3_close_v2(sqlite);
    db->status.in_transaction = 0;
    nl_db_leave(db);
    return NL_OK;
}

int nl_db_attach(nl_db *db, const char *path, const char *name, nl_key *key, uint32_t page_size, nl_error *err)
{
    const nl_sealing with = {.key = key, .page_size = page_size};
    sqlite3_stmt *statement = NULL;

    if (key && !db->sealing.key) {
        return nl_fail(err, NL_E_KEY, "%s cannot be attached: what is sorted on a connection without a key goes"
                       " into files that are not sealed. Open the connection with a key", path);
    }
    if (nl_db_enter(db, err)) return NL_E_MISUSE;
    const nl_sealing *outer = db->sealing.key ? nl_sealing_with(&with) : NULL;
    int rc = sqlite3_prepare_v2(db->sqlite, "ATTACH ?1 AS ?2", -1, &statement, NULL);
    if (rc == SQLITE_OK) rc = sqlite3_bind_text(statement, 1, path, -1, SQLITE_STATIC);
    if (rc == SQLITE_OK) rc = sqlite3_bind_text(statement, 2, name, -1, SQLITE_STATIC);
    if (rc == SQLITE_OK) sqlite3_step(statement);
    const int ended = sqlite3_finalize(statement);
    if (rc == SQLITE_OK) rc = ended;
    const int code = rc == SQLITE_OK ? NL_OK : nl_db_fail(db, rc, err);
    if (outer) nl_sealing_with(outer);
    nl_db_leave(db);
    return code;
}

void nl_db_free(nl_db *db)
{
    if (!db) return;
    nl_db_close(db, NULL);
    database_unref(db);
}

void nl_db_interrupt(nl_db *db)
{
    if (database_inherited(db)) return;
    pthread_mutex_lock(&db->guard);
    if (db->sqlite) sqlite3_interrupt(db->sqlite);
    pthread_mutex_unlock(&db->guard);
}

/* ---------------------------------------------------------------- asking and setting */

nl_status *nl_db_status(nl_db *db)
{
    return &db->status;
}

const char *nl_db_message(nl_db *db)
{
    return db->message ? db->message : "";
}

int64_t nl_db_total_changes(nl_db *db)
{
    return db->sqlite ? sqlite3_total_changes64(db->sqlite) : 0;
}

int nl_db_in_transaction(nl_db *db)
{
    return db->sqlite && !sqlite3_get_autocommit(db->sqlite);
}

int nl_db_closed(nl_db *db)
{
    return !db->sqlite;
}

int nl_db_has_snapshot(nl_db *db)
{
    return db->sqlite && sqlite3_txn_state(db->sqlite, "main") != SQLITE_TXN_NONE;
}

void nl_db_set_last_rowid(nl_db *db, int64_t rowid)
{
    if (!db->sqlite) return;
    sqlite3_set_last_insert_rowid(db->sqlite, rowid);
    db->status.last_rowid = rowid;
}

void nl_db_busy_timeout(nl_db *db, int busy_ms)
{
    db->busy_ms = busy_ms;
}

void nl_db_set_begin(nl_db *db, int kind)
{
    db->begin = kind;
}

nl_error *nl_db_error(nl_db *db)
{
    return &db->error;
}

void nl_db_budget(nl_db *db, int64_t steps)
{
    db->budget = steps;
}

int nl_db_over_budget(nl_db *db)
{
    return db->over_budget;
}

int nl_db_limit(nl_db *db, int id, int value)
{
    return db->sqlite ? sqlite3_limit(db->sqlite, id, value) : -1;
}

int nl_db_config(nl_db *db, int op, int value, int *now, nl_error *err)
{
    int code = nl_db_enter(db, err);

    if (code) return code;
    int rc = sqlite3_db_config(db->sqlite, op, value, now);
    if (rc != SQLITE_OK) code = nl_db_fail(db, rc, err);
    nl_db_leave(db);
    return code;
}

int nl_db_enable_extensions(nl_db *db, int on, nl_error *err)
{
    int code = nl_db_enter(db, err);

    if (code) return code;
    int rc = sqlite3_enable_load_extension(db->sqlite, on);
    if (rc != SQLITE_OK) code = nl_db_fail(db, rc, err);
    nl_db_leave(db);
    return code;
}

int nl_db_load_extension(nl_db *db, const char *path, const char *entry, nl_error *err)
{
    char *why = NULL;
    int code = nl_db_enter(db, err);

    if (code) return code;
    int rc = sqlite3_load_extension(db->sqlite, path, entry, &why);
    if (rc != SQLITE_OK) {
        code = nl_fail(err, NL_E_SQLITE, "%s", why ? why : sqlite3_errstr(rc));
        if (err) err->sqlite_rc = rc;
    }
    sqlite3_free(why);
    nl_db_leave(db);
    return code;
}

/* ---------------------------------------------------------------- scripts */

/* sql[n] is a NUL, as behind all bytes of Python's. */
int nl_db_exec(nl_db *db, const char *sql, size_t n, nl_error *err)
{
    const char *end = sql + n;
    int rc = SQLITE_OK;

    if (n >= INT_MAX) return nl_fail(err, NL_E_TOO_BIG, "a script is shorter than 2 GiB");
    int code = nl_db_enter(db, err);
    if (code) return code;
    while (rc == SQLITE_OK && sql < end) {
        sqlite3_stmt *stmt = NULL;
        const char *tail = NULL;
        uint32_t flags = 0;
        db->collect = &flags;
        db->alters_main = 0;
        /* With the NUL behind it: without, SQLite would copy the whole rest for every statement. */
        rc = sqlite3_prepare_v2(db->sqlite, sql, (int)(end - sql) + 1, &stmt, &tail);
        db->collect = NULL;
        if (rc != SQLITE_OK) break;
        if (tail == sql) break; /* a NUL within: there is nothing behind it for SQLite */
        sql = tail;
        if (!stmt) continue;
        db->step_flags = flags;
        do {
            rc = sqlite3_step(stmt);
        } while (rc == SQLITE_ROW);
        rc = sqlite3_finalize(stmt);
        if (rc == SQLITE_OK && nl_db_carried(db, err)) code = NL_E_MISUSE;
        if (code) break;
    }
    if (rc != SQLITE_OK) code = nl_db_fail(db, rc, err);
    nl_db_leave(db);
    return code;
}
