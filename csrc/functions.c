/*
** functions.c - functions, aggregates, window functions and collations that Python defines.
**
** What they do when a method is missing or raises is what the sqlite3 module of Python does, to the word.
*/
#include "direct.h"

#include <stdlib.h>

typedef struct functions_entry {
    nl_db *db;
    nl_callable callable;
} functions_entry;

/* What SQLite keeps of one group. */
typedef struct functions_group_state {
    int64_t group;      /* its number; 0: there is no instance */
    void *instance;     /* borrowed, see direct.c; NULL: not known */
} functions_group_state;

/* What SQLite says of a failure: an exception, a missing method. */
typedef struct functions_texts {
    const char *raised;
    const char *undefined;
} functions_texts;

static const functions_texts functions_call_texts = {"user-defined function raised exception", NULL};
#define FUNCTIONS_TEXTS(method) \
    {"user-defined aggregate's '" method "' method raised error", \
     "user-defined aggregate's '" method "' method not defined"}
static const functions_texts functions_group_texts[] = { /* by NL_GROUP_* */
    FUNCTIONS_TEXTS("step"), FUNCTIONS_TEXTS("inverse"), FUNCTIONS_TEXTS("value"), FUNCTIONS_TEXTS("finalize")};

static void functions_forget(void *arg)
{
    functions_entry *entry = arg;

    if (nl_python.forget && nl_callbacks_allowed()) nl_python.forget(entry->callable.id);
    free(entry);
}

/* ---------------------------------------------------------------- results */

/* The result, or the failure, that an answer stands for. `quiet`: results are not asked for. */
static void functions_answer(
    sqlite3_context *context, int64_t answer, const functions_texts *texts, int quiet)
{
    functions_entry *entry = sqlite3_user_data(context);

    switch (answer - INT64_MIN) {
    case NL_ANSWER_NULL:
        if (!quiet) sqlite3_result_null(context);
        return;
    case NL_ANSWER_PUT:
        return;
    case NL_ANSWER_NOMEM:
        sqlite3_result_error_nomem(context);
        return;
    case NL_ANSWER_TOO_BIG:
        sqlite3_result_error_toobig(context);
        return;
    case NL_ANSWER_UNDEFINED:
        sqlite3_result_error(context, texts->undefined, -1);
        return;
    case NL_ANSWER_NO_GROUP:
        sqlite3_result_error(context, "user-defined aggregate's '__init__' method raised error", -1);
        return;
    case NL_ANSWER_CARRY:
        entry->db->carries = 1;
        sqlite3_result_error(context, texts->raised, -1);
        return;
    case NL_ANSWER_RAISED:
        sqlite3_result_error(context, texts->raised, -1);
        return;
    default:
        if (!quiet) sqlite3_result_int64(context, answer);
    }
}

/* ---------------------------------------------------------------- what SQLite calls */

static void functions_call(sqlite3_context *context, int count, sqlite3_value **values)
{
    functions_entry *entry = sqlite3_user_data(context);
    const int type = count == 1 ? sqlite3_value_type(values[0]) : 0;
    int64_t answer = INT64_MIN + NL_ANSWER_NOMEM;
    nl_call call;

    if (!nl_call_begin(&call, entry->db, context, NL_CALL_FREE)) {
        sqlite3_result_error(context, functions_call_texts.raised, -1);
        return;
    }
    int64_t direct = nl_direct_call(&entry->callable, context, count, values);
    if (direct != NL_DIRECT_NOT) {
        answer = direct;
    } else if (type == SQLITE_INTEGER) {
        answer = nl_python.call_int(entry->callable.id, sqlite3_value_int64(values[0]));
    } else if (type == SQLITE_FLOAT) {
        answer = nl_python.call_float(entry->callable.id, sqlite3_value_double(values[0]));
    } else if (nl_call_values(&call, count, values) == SQLITE_OK) {
        answer = nl_python.call(entry->callable.id, call.n);
    }
    nl_call_end(&call);
    functions_answer(context, answer, &functions_call_texts, 0);
}

static void functions_group(sqlite3_context *context, int what, int count, sqlite3_value **values)
{
    functions_entry *entry = sqlite3_user_data(context);
    const int adds = what == NL_GROUP_STEP;
    const int takes = adds || what == NL_GROUP_INVERSE;
    functions_group_state *state = sqlite3_aggregate_context(context, adds ? sizeof *state : 0);
    int64_t answer = NL_DIRECT_NOT;
    nl_call call;

    if (!state && adds) {
        sqlite3_result_error_nomem(context);
        return;
    }
    if (!state || (!state->group && !adds)) return; /* no row came, or none could be taken: NULL */
    if (!nl_call_begin(&call, entry->db, context, NL_CALL_FREE)) {
        sqlite3_result_error(context, functions_group_texts[what].raised, -1);
        return;
    }
    const int first = !state->group;
    if (first) state->group = ++entry->db->groups;
    if (takes && state->instance) {
        answer = nl_direct_take(&entry->callable, state->instance, what, count, values);
    }
    if (answer == NL_DIRECT_NOT) {
        answer = INT64_MIN + NL_ANSWER_NOMEM;
        if (nl_call_values(&call, count, values) == SQLITE_OK) {
            answer = nl_python.group(entry->callable.id, state->group, what, call.n);
        }
        if (first) state->instance = nl_direct_instance(&entry->callable, state->group);
    }
    nl_call_end(&call);
    if (answer == INT64_MIN + NL_ANSWER_NO_GROUP) state->group = 0;
    functions_answer(context, answer, &functions_group_texts[what], takes);
}

static void functions_step(sqlite3_context *context, int count, sqlite3_value **values)
{
    functions_group(context, NL_GROUP_STEP, count, values);
}

static void functions_inverse(sqlite3_context *context, int count, sqlite3_value **values)
{
    functions_group(context, NL_GROUP_INVERSE, count, values);
}

static void functions_value(sqlite3_context *context)
{
    functions_group(context, NL_GROUP_VALUE, 0, NULL);
}

static void functions_final(sqlite3_context *context)
{
    functions_group(context, NL_GROUP_FINAL, 0, NULL);
}

static int functions_compare(void *arg, int n1, const void *text1, int n2, const void *text2)
{
    functions_entry *entry = arg;
    const char *const strings[2] = {text1, text2};
    const int sizes[2] = {n1, n2};
    int64_t answer = NL_DIRECT_NOT;
    nl_call call;

    /* After an exception everything is equal: the statement fails when it ends. */
    if (entry->db->carries) return 0;
    if (!nl_call_begin(&call, entry->db, NULL, NL_CALL_BARRED)) return 0;
    answer = nl_direct_compare(&entry->callable, n1, text1, n2, text2);
    if (answer == NL_DIRECT_NOT && nl_call_strings(&call, NULL, 2, strings, sizes) == SQLITE_OK) {
        answer = nl_python.compare(entry->callable.id, call.n);
    }
    nl_call_end(&call);
    if (answer == INT64_MIN + NL_ANSWER_CARRY) entry->db->carries = 1;
    if (answer < INT64_MIN + NL_ANSWERS) return 0;
    return (answer > 0) - (answer < 0);
}

/* ---------------------------------------------------------------- defining them */

static functions_entry *functions_entry_of(nl_db *db, const nl_callable *callable)
{
    functions_entry *entry = malloc(sizeof *entry);

    if (entry) *entry = (functions_entry){.db = db, .callable = *callable};
    return entry;
}

static int functions_done(nl_db *db, int rc, nl_error *err)
{
    if (rc != SQLITE_OK) nl_db_fail(db, rc, err);
    nl_db_leave(db);
    return rc;
}

int nl_db_create_function(
    nl_db *db, const char *name, int arguments, int kind, int deterministic,
    const nl_callable *callable, nl_error *err)
{
    const int flags = SQLITE_UTF8 | (deterministic ? SQLITE_DETERMINISTIC : 0);
    functions_entry *entry = NULL;
    int rc = SQLITE_NOMEM;

    if (nl_db_enter(db, err)) return NL_CALLS_REFUSED;
    if (!callable) {
        rc = sqlite3_create_function_v2(db->sqlite, name, arguments, flags, NULL, NULL, NULL, NULL, NULL);
        return functions_done(db, rc, err);
    }
    entry = functions_entry_of(db, callable);
    if (!entry) {
        nl_python.forget(callable->id);
        return functions_done(db, rc, err);
    }
    /* SQLite calls functions_forget() also when it fails. */
    if (kind == NL_FUNCTION_SCALAR) {
        rc = sqlite3_create_function_v2(
            db->sqlite, name, arguments, flags, entry, functions_call, NULL, NULL, functions_forget);
    } else if (kind == NL_FUNCTION_AGGREGATE) {
        rc = sqlite3_create_function_v2(db->sqlite, name, arguments, flags, entry, NULL,
            functions_step, functions_final, functions_forget);
    } else {
        rc = sqlite3_create_window_function(db->sqlite, name, arguments, flags, entry,
            functions_step, functions_final, functions_value, functions_inverse, functions_forget);
    }
    return functions_done(db, rc, err);
}

int nl_db_create_collation(nl_db *db, const char *name, const nl_callable *callable, nl_error *err)
{
    functions_entry *entry = NULL;
    int rc = SQLITE_NOMEM;

    if (nl_db_enter(db, err)) return NL_CALLS_REFUSED;
    if (!callable) {
        rc = sqlite3_create_collation_v2(db->sqlite, name, SQLITE_UTF8, NULL, NULL, NULL);
        return functions_done(db, rc, err);
    }
    entry = functions_entry_of(db, callable);
    if (entry) {
        rc = sqlite3_create_collation_v2(
            db->sqlite, name, SQLITE_UTF8, entry, functions_compare, functions_forget);
    }
    rc = functions_done(db, rc, err);
    /* Unlike functions, a collation that was not taken is not given back. */
    if (rc != SQLITE_OK) {
        nl_python.forget(callable->id);
        free(entry);
    }
    return rc;
}
