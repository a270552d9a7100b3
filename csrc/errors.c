/*
** errors.c - what a failure looks like, which libraries we stand on, and the start of the process.
**
** A failure is one struct, filled where it is born and handed up unchanged; Python turns it into an
** exception once (python/nearlite/_native/_lib.py). A debugger stops at every birth with a
** breakpoint on nl_fail, nl_fail_os and nl_fail_sqlite.
*/
#include "nl.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <openssl/crypto.h>
#include <sqlite3.h>

#include "fault.h"
#include "ofd.h"

/* Bytes of `text` up to `size`, less a UTF-8 character cut in two at the end. */
static size_t errors_whole(const char *text, size_t size)
{
    size_t n = size;

    while (n > 0 && ((unsigned char)text[n - 1] & 0xC0) == 0x80) n--;
    if (n == 0) return 0;
    unsigned char lead = (unsigned char)text[n - 1];
    size_t need = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    return size - (n - 1) >= need ? size : n - 1;
}

static void errors_set(nl_error *err, int code, const char *text)
{
    size_t n = strlen(text);

    memset(err, 0, sizeof *err);
    err->code = code;
    err->offset = -1;
    if (n >= sizeof err->text) n = errors_whole(text, sizeof err->text - 1);
    memcpy(err->text, text, n);
    err->text[n] = 0;
}

int nl_fail(nl_error *err, int code, const char *format, ...)
{
    char text[2 * sizeof err->text];
    va_list args;

    if (!err) return code;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    errors_set(err, code, text);
    return code;
}

int nl_fail_os(nl_error *err, int errnum, const char *what)
{
    int code = NL_E_IO;

    if (errnum == ENOSPC || errnum == EDQUOT) code = NL_E_FULL;
    if (errnum == ENOMEM) code = NL_E_NOMEM;
    if (!err) return code;
    /* The number only: strerror_r has two shapes, and Python's os.strerror() words it anyway. */
    nl_fail(err, code, "%s failed (errno %d)", what, errnum);
    err->os_errno = errnum;
    return code;
}

int nl_fail_sqlite(nl_error *err, struct sqlite3 *db, int rc)
{
    if (!err) return NL_E_SQLITE;
    /* The connection's message belongs to its last failure; it is ours only if the codes agree.
    ** sqlite3_errmsg() of a closed or half-opened connection would be a use after free, hence NULL
    ** is passed there. */
    int own = db && (sqlite3_errcode(db) & 0xff) == (rc & 0xff);
    errors_set(err, NL_E_SQLITE, own ? sqlite3_errmsg(db) : sqlite3_errstr(rc));
    err->sqlite_rc = own && rc < 256 ? sqlite3_extended_errcode(db) : rc;
    if (own) err->offset = sqlite3_error_offset(db);
    return NL_E_SQLITE;
}

const char *nl_sqlite_version(void)
{
    return sqlite3_libversion();
}

const char *nl_sqlite_source_id(void)
{
    return sqlite3_sourceid();
}

const char *nl_openssl_version(void)
{
    return OpenSSL_version(OPENSSL_VERSION);
}

/* ---------------------------------------------------------------- start of the process */

static pthread_once_t errors_once = PTHREAD_ONCE_INIT;
static int errors_init_rc;           /* SQLite result of the one initialisation */
static const char *errors_init_text; /* static text when our own part of it failed */

static void errors_init(void)
{
    /* Configuration is possible only before sqlite3_initialize(). */
    errors_init_rc = sqlite3_initialize();
    if (errors_init_rc != SQLITE_OK) return;
    nl_ofd_install(); /* before the first file is opened */
    errors_init_text = nl_fault_from_environment();
}

int nl_init(nl_error *err)
{
    pthread_once(&errors_once, errors_init);
    if (errors_init_rc != SQLITE_OK) return nl_fail_sqlite(err, NULL, errors_init_rc);
    if (errors_init_text) return nl_fail(err, NL_E_MISUSE, "%s", errors_init_text);
    return NL_OK;
}
