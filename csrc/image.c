/*
** image.c - a whole database as bytes, and bytes as a database in memory. https://sqlite.org/c3ref/serialize.html
*/
#include "rows.h"

#include <string.h>

int nl_db_serialize(nl_db *db, const char *schema, uint8_t **out, int64_t *size, nl_error *err)
{
    sqlite3_int64 n = 0;
    int code = nl_db_enter(db, err);

    *out = NULL;
    if (code) return code;
    *out = sqlite3_serialize(db->sqlite, schema, &n, 0);
    *size = n;
    if (!*out && n != 0) {
        /* -1: there is no such schema (what the connection says then is of an earlier failure), or it could not
        ** be read; otherwise there was no memory for it. */
        const int rc = sqlite3_errcode(db->sqlite);
        const int known = sqlite3_db_readonly(db->sqlite, schema) >= 0;
        code = n < 0 && known && rc != SQLITE_OK && rc != SQLITE_ROW && rc != SQLITE_DONE
            ? nl_db_fail(db, rc, err)
            : nl_fail(err, n < 0 ? NL_E_BIND : NL_E_NOMEM, "unable to serialize '%s'", schema);
    }
    nl_db_leave(db);
    return code;
}

void nl_image_free(uint8_t *image)
{
    sqlite3_free(image);
}

int nl_db_deserialize(nl_db *db, const char *schema, const uint8_t *image, int64_t size, nl_error *err)
{
    int code = nl_db_enter(db, err);

    if (code) return code;
    unsigned char *copy = sqlite3_malloc64((uint64_t)size);
    if (!copy && size) {
        code = nl_fail(err, NL_E_NOMEM, "out of memory");
    } else {
        if (size) memcpy(copy, image, (size_t)size);
        /* It is SQLite's from here on, also when it refuses. */
        const int outer = db->own;
        db->own = 1; /* the ATTACH within is not the program's: its trace would attach in the middle of it */
        int rc = sqlite3_deserialize(db->sqlite, schema, copy, size, size,
            SQLITE_DESERIALIZE_FREEONCLOSE | SQLITE_DESERIALIZE_RESIZEABLE);
        db->own = outer;
        if (rc != SQLITE_OK) code = nl_db_fail(db, rc, err);
    }
    nl_db_leave(db);
    return code;
}
