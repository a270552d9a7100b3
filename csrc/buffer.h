/*
** buffer.h - a growable byte buffer. Pure: no I/O, no SQLite.
*/
#ifndef NL_BUFFER_H
#define NL_BUFFER_H

#include "nl.h"

/* `data` may be NULL while `cap` is 0. */
typedef struct nl_buffer {
    uint8_t *data;
    size_t size;   /* bytes used */
    size_t cap;    /* bytes allocated */
} nl_buffer;

/* Makes room for `n` more bytes. Answers NL_OK or NL_E_NOMEM. */
int nl_buffer_reserve(nl_buffer *b, size_t n);
void nl_buffer_free(nl_buffer *b);

#endif
