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
    uint8_t *data = realloc(b->data == b->kept ? NULL : b->data, cap);
    if (!data) return NL_E_NOMEM;
    if (b->kept && b->data == b->kept) memcpy(data, b->kept, b->size);
    b->data = data;
    b->cap = cap;
    return NL_OK;
}

void nl_buffer_keep(nl_buffer *b)
{
    b->kept = b->data;
    b->kept_cap = b->cap;
}

void nl_buffer_shrink(nl_buffer *b)
{
    if (b->data == b->kept) return;
    free(b->data);
    b->data = b->kept;
    b->cap = b->kept_cap;
    b->size = 0;
}

void nl_buffer_free(nl_buffer *b)
{
    if (b->data != b->kept) free(b->data);
    free(b->kept);
    memset(b, 0, sizeof *b);
}
