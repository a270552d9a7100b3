/*
** callbacks.h - one call from SQLite into Python, as the C files that make such calls see it.
*/
#ifndef NL_CALLBACKS_H
#define NL_CALLBACKS_H

#include "rows.h"

/* Lives on the stack of whoever calls. */
typedef struct nl_call {
    nl_db *db;
    sqlite3_context *context;   /* of a function; nl_result_* go there */
    struct nl_call *outer;      /* the call of this thread that this one is within */
    uintptr_t caller;           /* db->caller before */
    uint8_t *own;               /* memory of arguments that do not lie in the connection's area; or NULL */
    int64_t n;                  /* what the trampoline is told of them */
} nl_call;

/* May the program's function use the connection that calls it? SQLite allows it in functions and in the
** trace, not where it is in the middle of something: comparing, compiling, counting steps. */
#define NL_CALL_FREE 1
#define NL_CALL_BARRED 0

extern nl_trampolines nl_python;

/* Begins a call. Answers 0 when Python is not there any more: then nothing is to be called, nor ended. */
int nl_call_begin(nl_call *call, nl_db *db, sqlite3_context *context, int use);
void nl_call_end(nl_call *call);
/* Encodes arguments, after nl_call_begin. Answer a SQLite result code. */
int nl_call_values(nl_call *call, int count, sqlite3_value **values);
int nl_call_strings(
    nl_call *call, const int *first, int count, const char *const *strings, const int *sizes);

#endif
