/*
** fail.c - how a failure is born. Pure: no I/O, no SQLite.
**
** A failure is one struct, filled where it is born and handed up unchanged; Python turns it into an
** exception once (python/nearlite/_native/_lib.py). A debugger stops at every birth with a
** breakpoint on nl_fail, nl_fail_os and nl_fail_sqlite (errors.c).
*/
#include "nl.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Bytes of `text` up to `size`, less a UTF-8 character cut in two at the end. */
static size_t fail_whole(const char *text, size_t size)
{
    size_t n = size;

    while (n > 0 && ((unsigned char)text[n - 1] & 0xC0) == 0x80) n--;
    if (n == 0) return 0;
    unsigned char lead = (unsigned char)text[n - 1];
    size_t need = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    return size - (n - 1) >= need ? size : n - 1;
}

static void fail_set(nl_error *err, int code, const char *text)
{
    size_t n = strlen(text);

    memset(err, 0, sizeof *err);
    err->code = code;
    err->offset = -1;
    if (n >= sizeof err->text) n = fail_whole(text, sizeof err->text - 1);
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
    fail_set(err, code, text);
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
