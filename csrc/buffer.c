/*
** buffer.c - the growable byte buffer that rows and parameters lie in. Its room doubles, so that a byte
** is copied about once however long a result becomes.
*/
#include "buffer.h"

#include <stdlib.h>
#include <string.h>

int nl_buffer_reserve(nl_buffer *b, size_t n)
{
    size_t need = b->size + n;
    size_t cap = b->cap ? b->cap : 256;

    if (need < n) return NL_E_NOMEM;
    if (need <= b->cap) return NL_OK;
    while (cap < need) {
        if (cap > SIZE_MAX / 2) return NL_E_NOMEM;
        cap *= 2;
    }
    uint8_t *data = realloc(b->data, cap);
    if (!data) return NL_E_NOMEM;
    b->data = data;
    b->cap = cap;
    return NL_OK;
}

void nl_buffer_free(nl_buffer *b)
{
    free(b->data);
    memset(b, 0, sizeof *b);
}
