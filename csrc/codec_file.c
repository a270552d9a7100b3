/*
** codec_file.c - the pages of a sealed database as SQLite reads and writes them.
**
**     offset        bytes
**     0             4096            header block (header_block.c)
**     4096          page size + 32  slot of page 1 (codec.c)
**     ...                           slot of page n at 4096 + (n - 1) * (page size + 32)
**
** A slot is longer than a page and shares sectors with its neighbours, and some reads of SQLite's happen
** without a lock, so that a slot may be met while it is being written (rule D4: in half of all reads, when
** one tries). Therefore a tag that is wrong is looked at again before it counts.
**
** No page is ever without a seal: what would be a hole of a plain file, which reads as zeros, is sealed
** zeros here. Zeros on the disk are therefore never taken for a page.
*/
#include "codec_vfs.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum {
    AGAIN = 10,                  /* looks at a slot whose tag is wrong */
    HEADER_READS = 100           /* bytes of page 1 that SQLite reads without a lock */
};

/* Room for slots. The kernel copies a tenth of a microsecond longer to addresses that are less aligned. */
static uint8_t *file_room(size_t n)
{
    void *p = NULL;

    return posix_memalign(&p, 64, n) == 0 ? p : NULL;
}

int nl_sealed_room(nl_sealed *f)
{
    free(f->scratch);
    f->scratch = file_room(NL_SEALED_BATCH * ((size_t)f->page_size + 2 * NL_SEAL_SIZE));
    return f->scratch ? SQLITE_OK : SQLITE_NOMEM;
}

static sqlite3_int64 file_slot(const nl_sealed *f)
{
    return (sqlite3_int64)f->page_size + NL_SEAL_SIZE;
}

static sqlite3_int64 file_offset(const nl_sealed *f, uint32_t pgno)
{
    return NL_BLOCK_SIZE + (sqlite3_int64)(pgno - 1) * file_slot(f);
}

int nl_sealed_main_size(nl_sealed *f, sqlite3_int64 *size)
{
    sqlite3_int64 below = 0;

    *size = 0;
    int rc = f->below->pMethods->xFileSize(f->below, &below);
    /* Rounded down: a slot that was torn at the end is covered by the WAL, like any other. */
    if (rc == SQLITE_OK && f->page_size && below > NL_BLOCK_SIZE) {
        *size = (below - NL_BLOCK_SIZE) / file_slot(f) * f->page_size;
    }
    return rc;
}

/* Reads slots from `pgno` on into f->ahead. Who reads page after page saves most of the system calls; what
** was read stays true as long as a read lock is held, because a checkpoint overwrites only pages that no
** reader takes from the file. Answers whether it has done so. */
static int file_ahead(nl_sealed *f, uint32_t pgno)
{
    const int slot = (int)file_slot(f);
    const uint32_t count = nl_sealed_at_once(slot, NL_SEALED_AHEAD);

    f->ahead_count = 0;
    if (count < 2) return 0;
    if (!f->ahead) f->ahead = file_room((size_t)slot * count);
    if (!f->ahead) return 0;
    /* Short near the end of the file, where pages are read one by one. */
    if (f->below->pMethods->xRead(f->below, f->ahead, slot * (int)count, file_offset(f, pgno)) != SQLITE_OK) return 0;
    f->ahead_first = pgno;
    f->ahead_count = count;
    return 1;
}

/* The slot of a page if it was read ahead, or is now; NULL: it has to be read. */
static const uint8_t *file_have(nl_sealed *f, uint32_t pgno)
{
    const int follows = f->reading > 0 && pgno == f->last + 1;

    f->last = pgno;
    if (pgno - f->ahead_first >= f->ahead_count && !(follows && file_ahead(f, pgno))) return NULL;
    return f->ahead + (pgno - f->ahead_first) * file_slot(f);
}

static int file_missing(nl_sealed *f, uint32_t pgno)
{
    nl_error why;

    nl_fail(&why, NL_E_TAG, "page %u is missing: the file has been cut off", pgno);
    why.page = pgno;
    return nl_sealed_fail(SQLITE_IOERR_CODEC, &why, f);
}

/* One page. SQLITE_IOERR_SHORT_READ: it lies beyond the end; zeros. */
static int file_page(nl_sealed *f, uint32_t pgno, uint8_t *page)
{
    const uint8_t *slot = file_have(f, pgno);
    nl_error why;

    for (int i = 0;; i++) {
        int rc = slot ? SQLITE_OK
                      : f->below->pMethods->xRead(f->below, f->scratch, (int)file_slot(f), file_offset(f, pgno));
        if (rc == SQLITE_IOERR_SHORT_READ) {
            memset(page, 0, f->page_size);
            /* Who was told a size without a look at the file has to be told when it is not that any more. */
            if (pgno <= f->answered) return file_missing(f, pgno);
        }
        if (rc != SQLITE_OK) return rc;
        int code = nl_codec_open_page(f->codec, pgno, slot ? slot : f->scratch, page, &why);
        if (code == NL_OK) return SQLITE_OK;
        if (code == NL_E_NOMEM) return SQLITE_IOERR_NOMEM;
        const int renewed = nl_sealed_again(f, &why);
        if (!renewed && (i >= AGAIN || why.code == NL_E_KEY)) return nl_sealed_fail(SQLITE_IOERR_CODEC, &why, f);
        slot = NULL;
        sched_yield();
    }
}

int nl_sealed_main_read(nl_sealed *f, void *out, int n, sqlite3_int64 at)
{
    int rc = SQLITE_OK;

    if (f->page_size == 0) {
        memset(out, 0, (size_t)n);
        return SQLITE_IOERR_SHORT_READ;
    }
    if (n == (int)f->page_size && (at & (f->page_size - 1)) == 0) {
        rc = file_page(f, (uint32_t)(at >> __builtin_ctz(f->page_size)) + 1, out);
        if (rc != SQLITE_OK) memset(out, 0, (size_t)n);
        return rc;
    }
    uint8_t *to = out, *page = f->scratch + NL_SEALED_BATCH / 2 * (f->page_size + 2 * NL_SEAL_SIZE);
    for (int done = 0; done < n && rc == SQLITE_OK;) {
        const uint32_t pgno = (uint32_t)((at + done) / f->page_size) + 1;
        const uint32_t within = (uint32_t)((at + done) % f->page_size);
        const uint32_t left = (uint32_t)(n - done);
        const uint32_t some = left < f->page_size - within ? left : f->page_size - within;
        if (some == f->page_size) {
            rc = file_page(f, pgno, to + done);
        } else {
            rc = file_page(f, pgno, page);
            memcpy(to + done, page + within, some);
        }
        if (rc != SQLITE_OK) memset(to + done, 0, (size_t)(n - done));
        done += (int)some;
    }
    /* SQLite then takes page 1 from the WAL; whole pages never get this answer. */
    if (rc == SQLITE_IOERR_CODEC && at + n <= HEADER_READS) rc = SQLITE_IOERR_SHORT_READ;
    return rc;
}

/* ------------------------------------------------------------------ writing */

/* The first page of a new file decides its page size. */
static int file_begin(nl_sealed *f, int n)
{
    nl_error why;
    uint8_t block[NL_BLOCK_SIZE];

    int code = nl_codec_create((uint32_t)n, f->key, block, &f->codec, &why);
    if (code != NL_OK) return nl_sealed_fail(SQLITE_IOERR_WRITE, &why, f);
    f->page_size = (uint32_t)n;
    int rc = nl_sealed_room(f);
    if (rc == SQLITE_OK) rc = f->below->pMethods->xWrite(f->below, block, sizeof block, 0);
    if (rc != SQLITE_OK) {
        nl_codec_free(f->codec);
        f->codec = NULL;
        f->page_size = 0;
    }
    return rc;
}

static int file_put(nl_sealed *f, uint32_t pgno, const uint8_t *page)
{
    nl_error why;

    f->ahead_count = 0;
    int code = nl_codec_seal_page(f->codec, pgno, page, f->scratch, &why);
    if (code != NL_OK) return nl_sealed_fail(SQLITE_IOERR_CODEC, &why, f);
    return f->below->pMethods->xWrite(f->below, f->scratch, (int)file_slot(f), file_offset(f, pgno));
}

/* Seals zeros from the end of the file up to, and without, page `pgno`. */
static int file_fill(nl_sealed *f, uint32_t pgno)
{
    sqlite3_int64 size;

    if (pgno <= f->known + 1) return SQLITE_OK;
    int rc = nl_sealed_main_size(f, &size);
    if (rc != SQLITE_OK) return rc;
    uint32_t pages = (uint32_t)(size / f->page_size);
    uint8_t *zeros = pages + 1 < pgno ? sqlite3_malloc64(f->page_size) : NULL;
    if (pages + 1 < pgno && !zeros) return SQLITE_IOERR_NOMEM;
    if (zeros) memset(zeros, 0, f->page_size);
    while (rc == SQLITE_OK && pages + 1 < pgno) rc = file_put(f, ++pages, zeros);
    sqlite3_free(zeros);
    if (rc == SQLITE_OK) f->known = pages;
    return rc;
}

/* Page 1 of what VACUUM INTO makes says that the database is in WAL mode, the only one that a sealed one has:
** to change it later would take a journal. */
static int file_put_first(nl_sealed *f, const uint8_t *page)
{
    uint8_t *first = f->scratch + NL_SEALED_BATCH / 2 * (f->page_size + 2 * NL_SEAL_SIZE);

    memcpy(first, page, f->page_size);
    first[18] = first[19] = 2;
    return file_put(f, 1, first);
}

int nl_sealed_main_write(nl_sealed *f, const void *in, int n, sqlite3_int64 at)
{
    int rc = f->page_size ? SQLITE_OK : file_begin(f, n);

    if (rc != SQLITE_OK) return rc;
    if (at % f->page_size || n != (int)f->page_size) {
        return nl_sealed_refuse(SQLITE_IOERR_WRITE, f, "a write of something else than a page");
    }
    const uint32_t pgno = (uint32_t)(at / f->page_size) + 1;
    rc = file_fill(f, pgno);
    if (rc == SQLITE_OK) rc = pgno == 1 && f->unlogged ? file_put_first(f, in) : file_put(f, pgno, in);
    if (rc == SQLITE_OK && pgno > f->known) f->known = pgno;
    return rc;
}

int nl_sealed_main_truncate(nl_sealed *f, sqlite3_int64 size)
{
    if (f->page_size == 0) return size == 0 ? SQLITE_OK : SQLITE_IOERR_TRUNCATE;
    if (size % f->page_size) return nl_sealed_refuse(SQLITE_IOERR_TRUNCATE, f, "a size of broken pages");
    const uint32_t pages = (uint32_t)(size / f->page_size);
    int rc = file_fill(f, pages + 1);
    f->known = f->ahead_count = 0;
    if (rc != SQLITE_OK) return rc;
    return f->below->pMethods->xTruncate(f->below, file_offset(f, pages + 1));
}
