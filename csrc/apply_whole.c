/*
** apply_whole.c - page sets whose every byte is in memory: verified and applied in one call.
**
** Part of sqlite_unit.c, after apply.c, whose order of calls and numbers hold here, too. While half a
** megabyte of pages goes by, everything else leaves the nearest caches; the fewer calls, the better.
**
** A compact set (compact.c) is told by differences from the pages of this replica. What can be checked
** without them is checked before any lock is taken. Then, under the write lock and at the right position, the old
** pages are read and the new ones made, verified as a chunk like any other, and their state hash is
** compared before a byte is written: a base that is not what the primary thinks is refused there.
*/
#include "nl.h"

#include "pageset.h"

/* Chunks of a set that is taken whole: a primary makes one of each mebibyte. */
#define APPLY_WHOLE_CHUNKS 16u

int nl_applier_receive(
    nl_applier *a,
    const nl_set_header *set,
    const uint8_t *in,
    size_t n,
    int wait_ms,
    nl_state *out,
    nl_error *err
) {
    nl_chunk *chunks[APPLY_WHOLE_CHUNKS];
    uint32_t count;
    int rc = nl_set_verify(set, in, n, chunks, APPLY_WHOLE_CHUNKS, &count, err);
    if (rc != NL_OK) return rc;
    rc = nl_applier_apply(a, set, chunks, count, wait_ms, out, err);
    while (count > 0) nl_chunk_free(chunks[--count]);
    return rc;
}

/* Memory of one compact set on its way to a chunk. */
typedef struct whole_work {
    uint8_t *body;          /* of the chunk that it becomes */
    uint8_t *bases;         /* old images, one after the other */
    const uint8_t **list;   /* of each page its old image, or NULL */
} whole_work;

static void whole_free(whole_work *w) {
    sqlite3_free(w->body);
    sqlite3_free(w->bases);
    sqlite3_free(w->list);
}

/* Old images of the pages that are told as differences; inside the write transaction. */
static int whole_read_bases(nl_applier *a, const nl_compact *c, whole_work *w, nl_error *err) {
    const uint32_t count = nl_compact_set(c)->count;
    for (uint32_t i = 0; i < count; i++) {
        int needs = 0;
        uint32_t pgno = nl_compact_page(c, i, &needs);
        w->list[i] = NULL;
        if (!needs) continue;
        uint8_t *base = w->bases + (size_t)i * a->page_size;
        int rc = apply_read_page(a, pgno, base);
        if (rc != SQLITE_OK) return apply_fail_sqlite(rc, "an old page could not be read", err);
        w->list[i] = base;
    }
    return NL_OK;
}

/* Inside begin/commit: the set becomes a chunk and is written. */
static int whole_write(nl_applier *a, const nl_compact *c, nl_error *err) {
    const nl_set_header *set = nl_compact_set(c);
    const size_t size = nl_chunk_size(set->page_size, set->count);
    whole_work w = {
        sqlite3_malloc64(size),
        sqlite3_malloc64((sqlite3_uint64)set->count * set->page_size),
        sqlite3_malloc64(set->count * sizeof *w.list),
    };
    nl_chunk_header head;
    nl_chunk *chunk = NULL;
    int rc = NL_OK;

    if (w.body == NULL || w.bases == NULL || w.list == NULL) {
        rc = nl_fail(err, NL_E_NOMEM, "no memory for a page set");
        goto done;
    }
    apply_enter(a);
    rc = whole_read_bases(a, c, &w, err);
    apply_leave(a);
    if (rc == NL_OK) rc = nl_compact_unpack(c, w.list, w.body, size, &head, err);
    if (rc == NL_OK) rc = nl_chunk_verify(set, &head, w.body, size, 0, &chunk, err);
    if (rc == NL_OK) rc = nl_applier_chunk(a, chunk, err);
done:
    nl_chunk_free(chunk);
    whole_free(&w);
    return rc;
}

int nl_applier_compact(
    nl_applier *a,
    const nl_state *from,
    const uint8_t *in,
    size_t n,
    int wait_ms,
    nl_set_header *set,
    nl_state *out,
    nl_error *err
) {
    nl_compact *c = NULL;
    int rc = nl_compact_open(in, n, from, &c, err);
    if (rc != NL_OK) return rc;
    *set = *nl_compact_set(c);
    rc = nl_applier_begin(a, set, wait_ms, out, err);
    if (rc == NL_OK) a->told = 1;
    if (rc == NL_OK && out->pages != from->pages) {
        nl_applier_rollback(a);
        rc = nl_fail(err, NL_E_HASH, "the replica has %u pages, the page set starts from %u", out->pages,
                     from->pages);
    } else if (rc == NL_OK) {
        rc = whole_write(a, c, err);
        if (rc == NL_OK) rc = nl_applier_commit(a, out, err);
        else nl_applier_rollback(a);
    }
    nl_compact_free(c);
    return rc;
}
