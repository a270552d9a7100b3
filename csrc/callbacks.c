/*
** callbacks.c - from SQLite into Python and back: how a call is made, and the hooks of a connection.
**
** Python's functions are static (build_ffi.py: CALLBACKS) and get the number of what the program
** defined. Arguments are encoded like rows (encode.c) into an area whose address Python knows; only those
** that do not fit, or that are made while another callback of the connection runs, lie elsewhere. Results
** are the answer itself where they are integers.
**
** The thread that is in a callback may use the connection again, where SQLite allows it: db->caller names
** it, and nl_db_enter() lets it in. Closing the connection, or ending a statement that runs, is refused.
**
** An exception that the program has to see (KeyboardInterrupt, what a collation raised) is kept by Python.
** db->carries says so, and whatever call the connection is in fails with it.
*/
#include "callbacks.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CALLBACKS_DEPTH 48 /* a callback this deep in others may not use the connection: the stack has an end */

nl_trampolines nl_python;

static __thread nl_call *callbacks_current;
static int callbacks_ended;          /* atomic: handlers of atexit are running, or the interpreter ends */
static pthread_t callbacks_last;     /* who runs them, and ends it */
static int (*callbacks_finalizing)(void); /* whether it ends now; NULL: Python does not say */

void nl_set_trampolines(const nl_trampolines *trampolines)
{
    nl_python = *trampolines;
    /* Public since 3.13, and there before. It may be called without the interpreter's lock. */
    void *found = dlsym(RTLD_DEFAULT, "Py_IsFinalizing");
    if (!found) found = dlsym(RTLD_DEFAULT, "_Py_IsFinalizing");
    memcpy(&callbacks_finalizing, &found, sizeof found);
}

void nl_callbacks_end(void)
{
    callbacks_last = pthread_self();
    __atomic_store_n(&callbacks_ended, 1, __ATOMIC_RELEASE);
}

int nl_callbacks_allowed(void)
{
    if (!__atomic_load_n(&callbacks_ended, __ATOMIC_ACQUIRE)) return 1;
    if (pthread_equal(callbacks_last, pthread_self())) return 1;
    /* Handlers that were registered before ours run behind it, and may wait for other threads. */
    return callbacks_finalizing && !callbacks_finalizing();
}

/* ---------------------------------------------------------------- one call */

int nl_call_begin(nl_call *call, nl_db *db, sqlite3_context *context, int use)
{
    if (!nl_python.call) return 0;
    /* The interpreter ends, and with it the process: a thread that would have to be told so stays
    ** here, as CPython's own threads do. A failure would come as a traceback out of nowhere. */
    while (!nl_callbacks_allowed()) pause();
    *call = (nl_call){.db = db, .context = context, .outer = callbacks_current, .caller = db->caller};
    callbacks_current = call;
    db->depth++;
    /* A function may run while SQLite compiles, for its planner to know the result, or in VACUUM, for an index;
    ** an aggregate may end with its connection. */
    if (db->depth > CALLBACKS_DEPTH || !db->sqlite || nl_sqlite_occupied(db->sqlite)) use = NL_CALL_BARRED;
    uintptr_t caller = use == NL_CALL_FREE ? (uintptr_t)pthread_self() : 0;
    __atomic_store_n(&db->caller, caller, __ATOMIC_RELAXED);
    return 1;
}

void nl_call_end(nl_call *call)
{
    nl_db *db = call->db;

    __atomic_store_n(&db->caller, call->caller, __ATOMIC_RELAXED);
    db->depth--;
    callbacks_current = call->outer;
    free(call->own);
}

/* Room for arguments of at most n bytes. The area is free only outside other callbacks: in Python's
** function, before it has decoded them, a signal handler may come and use the connection. */
static int callbacks_room(nl_call *call, size_t n, nl_buffer *out)
{
    if (n <= NL_CALL_AREA && call->db->depth == 1 && call->db->area) {
        *out = (nl_buffer){.data = call->db->area, .cap = NL_CALL_AREA};
        return SQLITE_OK;
    }
    *out = (nl_buffer){.data = malloc(n), .cap = n};
    call->own = out->data;
    return call->own ? SQLITE_OK : SQLITE_NOMEM;
}

static void callbacks_encoded(nl_call *call, const nl_buffer *out)
{
    call->n = call->own ? -(int64_t)out->size : (int64_t)out->size;
}

int nl_call_values(nl_call *call, int count, sqlite3_value **values)
{
    size_t n = 16;
    nl_buffer out;

    for (int i = 0; i < count; i++) {
        int type = sqlite3_value_type(values[i]);
        n += 32;
        if (type == SQLITE_TEXT || type == SQLITE_BLOB) n += (size_t)sqlite3_value_bytes(values[i]);
    }
    int rc = callbacks_room(call, n, &out);
    if (rc == SQLITE_OK) rc = nl_put_values(&out, count, values);
    callbacks_encoded(call, &out);
    return rc;
}

int nl_call_strings(
    nl_call *call, const int *first, int count, const char *const *strings, const int *sizes)
{
    size_t n = 32;
    nl_buffer out;

    for (int i = 0; i < count; i++) {
        n += 32;
        if (strings[i]) n += sizes ? (size_t)sizes[i] : strlen(strings[i]);
    }
    int rc = callbacks_room(call, n, &out);
    if (rc == SQLITE_OK) rc = nl_put_strings(&out, first, count, strings, sizes);
    callbacks_encoded(call, &out);
    return rc;
}

/* ---------------------------------------------------------------- what Python asks during a call */

const uint8_t *nl_db_call_area(nl_db *db)
{
    if (!db->area) db->area = malloc(NL_CALL_AREA);
    return db->area;
}

const uint8_t *nl_call_args(void)
{
    return callbacks_current->own;
}

void nl_result_int(int64_t value)
{
    sqlite3_result_int64(callbacks_current->context, value);
}

void nl_result_float(double value)
{
    sqlite3_result_double(callbacks_current->context, value);
}

void nl_result_text(const char *text, size_t n)
{
    sqlite3_result_text64(callbacks_current->context, text, n, SQLITE_TRANSIENT, SQLITE_UTF8);
}

void nl_result_blob(const char *data, size_t n)
{
    if (n) sqlite3_result_blob64(callbacks_current->context, data, n, SQLITE_TRANSIENT);
    else sqlite3_result_zeroblob(callbacks_current->context, 0);
}

int nl_call_inside(const nl_db *db)
{
    for (const nl_call *call = callbacks_current; call; call = call->outer) {
        if (call->db == db) return 1;
    }
    return 0;
}

int nl_db_calling(nl_db *db)
{
    return nl_call_inside(db);
}

int nl_db_carried(nl_db *db, nl_error *err)
{
    if (!db->carries) return 0;
    db->carries = 0;
    nl_fail(err, NL_E_MISUSE, "a callback was ended by an exception on another thread");
    return 1;
}

/* ---------------------------------------------------------------- hooks */

/* What an answer that is no integer comes to for a hook. */
static int callbacks_hook(nl_db *db, int64_t answer, int failed)
{
    if (answer == INT64_MIN + NL_ANSWER_CARRY) db->carries = 1;
    return answer < INT64_MIN + NL_ANSWERS ? failed : (int)answer;
}

int nl_call_authorizer(nl_db *db, int action, const char *const strings[4])
{
    int result = SQLITE_DENY;
    nl_call call;

    if (!nl_call_begin(&call, db, NULL, NL_CALL_BARRED)) return SQLITE_DENY;
    if (nl_call_strings(&call, &action, 4, strings, NULL) == SQLITE_OK) {
        result = callbacks_hook(db, nl_python.authorize(db->authorizer, call.n), SQLITE_DENY);
    }
    nl_call_end(&call);
    return result;
}

int nl_call_progress(nl_db *db)
{
    nl_call call;

    if (!nl_call_begin(&call, db, NULL, NL_CALL_BARRED)) return 0;
    int stop = callbacks_hook(db, nl_python.progress(db->progress), 1);
    nl_call_end(&call);
    return stop;
}

/* `statement`: with its parameters bound; NULL: there is only a text. */
static void callbacks_tell(nl_db *db, sqlite3_stmt *statement, const char *text)
{
    nl_call call;

    if (!nl_call_begin(&call, db, NULL, NL_CALL_FREE)) return;
    char *expanded = statement ? sqlite3_expanded_sql(statement) : NULL;
    const char *const shown = expanded ? expanded : text;
    const int too_long = statement && !expanded;
    if (nl_call_strings(&call, &too_long, 1, &shown, NULL) == SQLITE_OK) {
        callbacks_hook(db, nl_python.trace(db->trace, call.n), 0);
    }
    sqlite3_free(expanded);
    nl_call_end(&call);
}

static int callbacks_trace(unsigned int type, void *arg, void *statement, void *text)
{
    nl_db *db = arg;

    if (type == SQLITE_TRACE_STMT && !db->own) callbacks_tell(db, statement, text);
    return 0;
}

int nl_db_trace(nl_db *db, nl_stmt *s, const uint8_t *params, size_t n, const char *text, nl_error *err)
{
    int code = nl_db_enter(db, err);

    if (code) return code;
    if (db->trace && s && s->sqlite && !s->running && !s->active) {
        code = nl_stmt_bind(s, params, n, err);
        s->running = 1;
        if (!code) callbacks_tell(db, s->sqlite, text);
        s->running = 0;
        sqlite3_clear_bindings(s->sqlite);
    } else if (db->trace) {
        callbacks_tell(db, NULL, text);
    }
    if (!code && nl_db_carried(db, err)) code = NL_E_SQLITE;
    nl_db_leave(db);
    return code;
}

int nl_db_set_trace(nl_db *db, int64_t id, nl_error *err)
{
    if (nl_db_enter(db, err)) return NL_CALLS_REFUSED;
    db->trace = id;
    sqlite3_trace_v2(db->sqlite, id ? SQLITE_TRACE_STMT : 0, id ? callbacks_trace : NULL, db);
    nl_db_leave(db);
    return SQLITE_OK;
}

int nl_db_set_progress(nl_db *db, int64_t id, int steps, nl_error *err)
{
    if (nl_db_enter(db, err)) return NL_CALLS_REFUSED;
    db->progress = steps > 0 ? id : 0;
    nl_db_set_period(db, db->progress ? steps : 0);
    nl_db_leave(db);
    return SQLITE_OK;
}
