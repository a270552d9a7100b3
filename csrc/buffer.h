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
    uint8_t *kept; /* what nl_buffer_keep() was called for; NULL: nothing */
    size_t kept_cap;
} nl_buffer;

/* Makes room for `n` more bytes. Answers NL_OK or NL_E_NOMEM. */
int nl_buffer_reserve(nl_buffer *b, size_t n);
/* The memory it has now stays where it is until the buffer is freed: what needs more goes elsewhere, and
** nl_buffer_shrink() comes back to it. */
void nl_buffer_keep(nl_buffer *b);
void nl_buffer_shrink(nl_buffer *b);
void nl_buffer_free(nl_buffer *b);

#endif
