/*
** delta_place.c - guesses at edits by the pointers of cells (delta_encode.c has the list).
** Pure.
**
** A cell that SQLite neither inserted nor deleted keeps its offset on the page, unless the page
** was defragmented or balanced. So both pointer arrays are alike but for the edits, and in what
** order cells were inserted can be seen from their offsets: the gap fills downwards.
*/
#include "delta_encode.h"

#include <stdlib.h>
#include <string.h>

/* Which cells stay: those at a pointer of old, in order. Answers the number of edits. */
static uint32_t encode_by_pointers(delta_encoder *e, const encode_page *p)
{
    const nl_btree *old = &p->old, *now = &p->now;
    uint32_t start = 0, old_end = old->cells, now_end = now->cells, next, n = 0, i;

    while (start < old_end && start < now_end
        && nl_btree_pointer(old, p->base, start) == nl_btree_pointer(now, p->image, start)) {
        start++;
    }
    while (old_end > start && now_end > start
        && nl_btree_pointer(old, p->base, old_end - 1)
            == nl_btree_pointer(now, p->image, now_end - 1)) {
        old_end--;
        now_end--;
    }
    for (i = start; i < old_end; i++) {
        uint32_t at = nl_btree_pointer(old, p->base, i);
        if (at < old->size) e->at_pointer[at] = (uint16_t)(i + 1);
    }
    next = i = start;
    for (uint32_t j = start; j <= now_end; j++) {
        uint32_t stays = old_end;
        if (j < now_end) {
            uint32_t at = nl_btree_pointer(now, p->image, j);
            uint32_t found = at < now->size ? e->at_pointer[at] : 0;
            if (found == 0 || found - 1 < next) continue;
            stays = found - 1;
        }
        /* between two that stay: the cells before `stays` and before j, in pairs */
        while (next < stays || i < j) {
            encode_edit *edit = &e->edits[n++];
            edit->rank = n - 1;
            edit->before = next;
            edit->old = next < stays ? next++ : ENCODE_NEW;
            edit->new = i < j ? i++ : ENCODE_NEW;
            edit->time = edit->new == ENCODE_NEW ? 0
                : 65536 - nl_btree_pointer(now, p->image, edit->new);
        }
        next = stays + 1;
        i = j + 1;
    }
    for (i = start; i < old_end; i++) {
        uint32_t at = nl_btree_pointer(old, p->base, i);
        if (at < old->size) e->at_pointer[at] = 0;
    }
    return n;
}

/* Deletes first, then inserts as the gap fills: from the end of the page downwards. */
static int encode_earlier(const void *a, const void *b)
{
    const encode_edit *x = a, *y = b;
    if (x->time != y->time) return x->time < y->time ? -1 : 1;
    return x->rank < y->rank ? -1 : 1;
}

/* Index of the place of edits[k] in the page as the edits before it in the array have left it.
** */
static uint32_t encode_index(const encode_edit *edits, uint32_t k)
{
    uint32_t i = edits[k].before;

    for (uint32_t m = 0; m < k; m++) {
        if (edits[m].rank > edits[k].rank) continue;
        if (edits[m].old != ENCODE_NEW) i--;
        if (edits[m].new != ENCODE_NEW) i++;
    }
    return i;
}

/* Set e->wipe by what the first deleted cell that is large enough to tell has left. */
static void encode_wiped(delta_encoder *e, const encode_page *p, uint32_t n)
{
    for (uint32_t k = 0; k < n; k++) {
        if (e->edits[k].old == ENCODE_NEW) continue;
        const nl_cell cell = nl_btree_cell(&p->old, p->base, e->edits[k].old);
        if (cell.size < 6) continue;
        const uint8_t *now = p->image + (cell.bytes - p->base);
        e->wipe = now[cell.size - 1] == 0 && now[cell.size - 2] == 0 ? DELTA_WIPE : 0;
        return;
    }
}

/* 1 if so many cells are elsewhere that it was no program that put them there one by one. */
static int encode_many(const encode_page *p, uint32_t n)
{
    const uint32_t grown = p->now.cells > p->old.cells ? p->now.cells - p->old.cells : 0;

    return n > 8 + grown + p->old.cells / 4;
}

/* Tell the edits that encode_by_pointers found. Answers 1 if no other guess is worth while. */
static int encode_in_place(delta_encoder *e, const encode_page *p, uint32_t n)
{
    const int sorted = n <= ENCODE_SORTED;
    uint32_t moved = 0; /* inserted less deleted so far, modulo 2^32 */
    nl_btree b;

    encode_wiped(e, p, n);
    encode_begin(e, p, DELTA_CELLS | e->wipe, &b);
    if (sorted) qsort(e->edits, n, sizeof *e->edits, encode_earlier);
    for (uint32_t k = 0; k < n && e->trial.size <= e->trial.room; k++) {
        const encode_edit *edit = &e->edits[k];
        uint32_t i = sorted ? encode_index(e->edits, k) : edit->before + moved;
        if (edit->old != ENCODE_NEW) {
            if (!encode_delete(e, &b, i, 1, 0, e->wipe)) return 0;
            moved--;
        }
        if (edit->new != ENCODE_NEW) {
            if (!encode_insert(e, p, &b, i, edit->new)) return 0;
            moved++;
        }
    }
    return encode_end(e, p);
}

/* (1), (6). Answers 1 if no other guess is worth while. */
int encode_guess_small(delta_encoder *e, const encode_page *p)
{
    const uint32_t n = encode_by_pointers(e, p);

    if (n == 0) return encode_plain(e, p, 0);
    return !encode_many(p, n) && encode_in_place(e, p, n);
}
