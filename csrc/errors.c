/*
** errors.c - SQLite's failures, which libraries we stand on, and the start of the process.
*/
#include "nl.h"

#include <pthread.h>
#include <string.h>

#include <openssl/crypto.h>
#include <sqlite3.h>

#include "codec_vfs.h"
#include "fault.h"
#include "ofd.h"

int nl_fail_sqlite(nl_error *err, struct sqlite3 *db, int rc)
{
    if (!err) return NL_E_SQLITE;
    /* A seal has more to say than any result code. */
    int code = nl_sealed_explain(rc, err);
    if (code != NL_OK) return code;
    /* The connection's message belongs to its last failure; it is ours only if the codes agree.
    ** sqlite3_errmsg() of a closed or half-opened connection would be a use after free, hence NULL
    ** is passed there. */
    int own = db && (sqlite3_errcode(db) & 0xff) == (rc & 0xff);
    nl_fail(err, NL_E_SQLITE, "%s", own ? sqlite3_errmsg(db) : sqlite3_errstr(rc));
    err->sqlite_rc = own && rc < 256 ? sqlite3_extended_errcode(db) : rc;
    if (own) err->offset = sqlite3_error_offset(db);
    return NL_E_SQLITE;
}

const char *nl_sqlite_version(void)
{
    return sqlite3_libversion();
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
    errors_init_rc = nl_codec_vfs_install();
    errors_init_text = nl_fault_from_environment();
}

int nl_init(nl_error *err)
{
    pthread_once(&errors_once, errors_init);
    if (errors_init_rc != SQLITE_OK) return nl_fail_sqlite(err, NULL, errors_init_rc);
    if (errors_init_text) return nl_fail(err, NL_E_MISUSE, "%s", errors_init_text);
    return NL_OK;
}
