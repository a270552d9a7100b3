/*
** nl.h - the one header that every C file of ours includes first.
**
** nl_api.h has no include guard because cffi reads it too; the guard is here. Declared below is
** what C files share with each other and Python never sees.
*/
#ifndef NL_H
#define NL_H

#include <stddef.h>
#include <stdint.h>

#include "nl_api.h"

/* Fill *err (which may be NULL) and answer `code`, so that a failure reads `return nl_fail(...)`.
** The text is cut at the last whole UTF-8 character that fits. */
int nl_fail(
    nl_error *err,
    int code,               /* NL_E_* */
    const char *format,
    ...) __attribute__((format(printf, 3, 4)));

/* The operating system failed: `errnum` is its errno. ENOSPC and EDQUOT answer NL_E_FULL, ENOMEM
** NL_E_NOMEM, everything else NL_E_IO. `what` names the operation: "write to the WAL". */
int nl_fail_os(nl_error *err, int errnum, const char *what);

/* SQLite failed with `rc` (primary or extended). `db` may be NULL: then the text is SQLite's
** standard one for the code. Call it before anything else is done with `db`. */
struct sqlite3;
int nl_fail_sqlite(nl_error *err, struct sqlite3 *db, int rc);

#endif
