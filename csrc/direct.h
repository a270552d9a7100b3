/*
** direct.h - Python's functions called without a detour, where that is possible.
*/
#ifndef NL_DIRECT_H
#define NL_DIRECT_H

#include "callbacks.h"

/* Of these calls nothing was done: it is for the trampoline. */
#define NL_DIRECT_NOT (INT64_MIN + NL_ANSWERS - 1)

/* They answer what the trampolines do. After nl_call_begin. */
int64_t nl_direct_call(const nl_callable *callable, sqlite3_context *context, int count, sqlite3_value **values);
int64_t nl_direct_compare(const nl_callable *callable, int n1, const char *text1, int n2, const char *text2);
/* The instance of an aggregate that was made by the trampoline, borrowed; or NULL. */
void *nl_direct_instance(const nl_callable *callable, int64_t group);
/* Calls a method of it: NL_GROUP_STEP or NL_GROUP_INVERSE. */
int64_t nl_direct_take(
    const nl_callable *callable, void *instance, int what, int count, sqlite3_value **values);

#endif
