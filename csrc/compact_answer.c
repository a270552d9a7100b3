/*
** compact_answer.c - the primary's half of compact page sets: images as they were for the reader.
**
** Part of sqlite_unit.c, after changes.c, whose selection it takes. A difference needs the page as the
** reader has it. As long as the reader stands in the running generation, the WAL still has that image,
** or the database file has it: R's end of the log is set back to the reader's frame for these reads,
** and SQLite finds what a transaction of that time would have found.
**
** Unless a checkpoint has copied newer frames over it, ours before a roll or another program's: the images
** are only believed if their hashes XOR to what the two state hashes say they must, which one wrong image
** makes false. Then the answer is a set of version 1.
*/
#include "nl.h"

#include "replica_header.h"

/* R's images of pages as of `frame` of this generation. */
static int compact_read_bases(
    nl_tail *t, uint32_t frame, const uint32_t *pgnos, uint32_t n, uint8_t *out, nl_error *err)
{
    WalIndexHdr *hdr = &tail_wal(t)->hdr;
    const u32 end = hdr->mxFrame;

    hdr->mxFrame = frame;
    int rc = tail_read_pages(t, pgnos, 0, n, out, err);
    hdr->mxFrame = end;
    if (rc == NL_OK && n > 0 && pgnos[0] == 1) nl_replica_neutral(out);
    return rc;
}

/* sel with page 1 before it, which a compact set always has. */
static int compact_add_first(nl_tail *t, nl_error *err)
{
    if (t->sel_count > 0 && t->sel[0] == 1) return NL_OK;
    int rc = tail_grow((void **)&t->sel, &t->sel_size, (uint64_t)t->sel_count + 1, sizeof *t->sel, err);
    if (rc != NL_OK) return rc;
    memmove(t->sel + 1, t->sel, t->sel_count * sizeof *t->sel);
    t->sel[0] = 1;
    t->sel_count++;
    return NL_OK;
}

/* How many selected pages the reader had; the others lie behind its end. */
static uint32_t compact_old(const nl_tail *t, uint32_t pages)
{
    uint32_t n = t->sel_count;

    while (n > 0 && t->sel[n - 1] > pages) n--;
    return n;
}

int nl_tail_compact(
    nl_tail *t,
    const nl_state *from,
    uint32_t frame,
    nl_set_header *set,
    uint8_t *out,
    size_t room,
    size_t *written,
    nl_error *err)
{
    const size_t size = t->page_size;
    uint8_t *images = NULL, *bases;
    const uint8_t **lists = NULL;
    int rc = NL_OK;

    *written = 0;
    if (!t->reading) return nl_fail(err, NL_E_MISUSE, "no read transaction is open");
    if (frame < t->start || frame > t->frame || set->pages < from->pages) return NL_OK;
    rc = compact_add_first(t, err);
    if (rc != NL_OK) return rc;
    const uint32_t n = t->sel_count, old = compact_old(t, from->pages);
    if (nl_chunk_size(t->page_size, n) == 0) return NL_OK;
    images = sqlite3_malloc64((n + old) * size);
    lists = sqlite3_malloc64(2 * (size_t)n * sizeof *lists);
    if (images == NULL || lists == NULL) {
        rc = nl_fail(err, NL_E_NOMEM, "no memory for a page set");
        goto done;
    }
    bases = images + n * size;
    rc = changes_load(t, 0, n, images, err);
    if (rc == NL_OK) rc = compact_read_bases(t, frame, t->sel, old, bases, err);
    if (rc != NL_OK) goto done;
    uint64_t difference = from->hash ^ set->hash_to;
    for (uint32_t i = 0; i < n; i++) {
        difference ^= t->image[i];
        lists[i] = i < old ? bases + i * size : NULL;
        lists[n + i] = images + i * size;
        if (i < old) difference ^= nl_page_hash(lists[i], t->page_size, t->sel[i]);
    }
    if (difference != 0) goto done; /* an image at `from` is gone */
    set->count = n;
    rc = nl_compact_encode(from, set, t->sel, lists, lists + n, out, room, written, err);

done:
    sqlite3_free(images);
    sqlite3_free(lists);
    return rc;
}
