/*
** codec_wal.c - the WAL of a sealed database as SQLite reads and writes it.
**
**     offset        bytes
**     0             32              SQLite's WAL header, as it is: it says nothing about the contents
**     32            24 + page size + 32  sealed frame 1 (codec.c)
**     ...
**
** SQLite writes a frame as a header and then a page; later, in the same transaction, a page alone or a
** header alone (rule D2). A frame has one seal over both, so a header waits here until its page comes; either
** of them alone seals the frame anew, together with what the file has of it. Salts are always those of the
** frame itself (rule D3).
*/
#include "codec_vfs.h"

#include <string.h>

#include "frame.h"

static uint32_t wal_frame_size(const nl_sealed *f)
{
    return NL_FRAME_HEADER_SIZE + f->page_size;
}

static sqlite3_int64 wal_step(const nl_sealed *f)
{
    return (sqlite3_int64)wal_frame_size(f) + NL_SEAL_SIZE;
}

static sqlite3_int64 wal_offset(const nl_sealed *f, uint32_t frame)
{
    return NL_WAL_HEADER_SIZE + (sqlite3_int64)(frame - 1) * wal_step(f);
}

int nl_sealed_wal_size(nl_sealed *f, sqlite3_int64 *size)
{
    int rc = f->below->pMethods->xFileSize(f->below, size);

    if (rc == SQLITE_OK && *size > NL_WAL_HEADER_SIZE) {
        *size = NL_WAL_HEADER_SIZE + (*size - NL_WAL_HEADER_SIZE) / wal_step(f) * wal_frame_size(f);
    }
    /* A header that waits is a frame for whoever reads it back. */
    return rc;
}

/* ------------------------------------------------------------------ reading */

/* One whole frame, in clear. SQLITE_IOERR_SHORT_READ: beyond the end. */
static int wal_open(nl_sealed *f, uint32_t frame, uint8_t *out, nl_error *why)
{
    int rc = f->below->pMethods->xRead(f->below, f->scratch, (int)wal_step(f), wal_offset(f, frame));

    why->code = NL_OK;
    if (rc != SQLITE_OK) return rc;
    if (nl_codec_open_frames(f->main->codec, frame, 1, f->scratch, out, why) == NL_OK) return SQLITE_OK;
    if (nl_sealed_again(f->main, why) &&
        nl_codec_open_frames(f->main->codec, frame, 1, f->scratch, out, why) == NL_OK) return SQLITE_OK;
    return why->code == NL_E_NOMEM ? SQLITE_IOERR_NOMEM : SQLITE_IOERR_CODEC;
}

/* A bad frame that is met in recovery is the end of the log, for SQLite as for us: it cannot be told from
** one that was being written when the machine stopped (rule D5). What follows it is counted and said. */
static void wal_log_ends(nl_sealed *f, uint32_t frame)
{
    uint8_t head[16];
    uint32_t salt[2], follow = 0;
    sqlite3_int64 size = 0;

    if (f->below->pMethods->xRead(f->below, salt, sizeof salt, 16) != SQLITE_OK) return;
    if (f->below->pMethods->xFileSize(f->below, &size) != SQLITE_OK) return;
    for (uint32_t next = frame + 1; wal_offset(f, next + 1) <= size; next++) {
        if (f->below->pMethods->xRead(f->below, head, sizeof head, wal_offset(f, next)) != SQLITE_OK) break;
        follow += memcmp(head + 8, salt, sizeof salt) == 0;
    }
    if (f->below->pMethods->xRead(f->below, head, sizeof head, wal_offset(f, frame)) != SQLITE_OK) return;
    /* Left from before the WAL was begun anew: the ordinary end. */
    if (memcmp(head + 8, salt, sizeof salt) != 0 && follow == 0) return;
    nl_sealed_report(f->main, frame, follow);
}

/* Whole frames by the many, in clear, as long as they are whole and as they were sealed; answers how many. */
static uint32_t wal_batches(nl_sealed *f, uint32_t first, uint32_t count, uint8_t *out)
{
    const uint32_t batch = nl_sealed_at_once(wal_step(f), NL_SEALED_BATCH);
    uint32_t done = 0;
    nl_error why;

    for (uint32_t some; batch > 1 && done + 1 < count; done += some) {
        some = count - done < batch ? count - done : batch;
        int rc = f->below->pMethods->xRead(f->below, f->scratch, (int)(some * wal_step(f)), wal_offset(f, first + done));
        uint8_t *to = out + (size_t)done * wal_frame_size(f);
        if (rc != SQLITE_OK || nl_codec_open_frames(f->main->codec, first + done, some, f->scratch, to, &why) != NL_OK) break;
    }
    return done;
}

static int wal_whole(nl_sealed *f, uint32_t first, int count, uint8_t *out)
{
    const size_t size = wal_frame_size(f);
    nl_error why;

    for (int i = (int)wal_batches(f, first, (uint32_t)count, out); i < count; i++) {
        const uint32_t frame = first + (uint32_t)i;
        int rc = wal_open(f, frame, out + (size_t)i * size, &why);
        if (rc == SQLITE_OK) continue;
        memset(out + (size_t)i * size, 0, (size_t)(count - i) * size);
        if (rc != SQLITE_IOERR_CODEC) return rc;
        if (!f->main->recovering) return nl_sealed_fail(rc, &why, f->main);
        wal_log_ends(f, frame);
        return SQLITE_OK; /* zeros are no frame */
    }
    if (count == 1) {
        memcpy(f->opened, out, size);
        f->opened_frame = first;
    }
    return SQLITE_OK;
}

/* Part of a frame. */
static int wal_piece(nl_sealed *f, uint32_t frame, uint32_t within, int n, uint8_t *out)
{
    nl_error why;

    f->opened_frame = 0;
    int rc = wal_open(f, frame, f->opened, &why);
    memcpy(out, f->opened + within, (size_t)n);
    if (rc != SQLITE_OK) memset(out, 0, (size_t)n);
    return rc == SQLITE_IOERR_CODEC ? nl_sealed_fail(rc, &why, f->main) : rc;
}

int nl_sealed_wal_read(nl_sealed *f, void *out, int n, sqlite3_int64 at)
{
    int rc = nl_sealed_wal_flush(f);
    if (rc != SQLITE_OK) return rc;
    if (at + n <= NL_WAL_HEADER_SIZE) return f->below->pMethods->xRead(f->below, out, n, at);
    if (at < NL_WAL_HEADER_SIZE) return nl_sealed_refuse(SQLITE_IOERR_READ, f->main, "a read across its log's header");
    const uint32_t size = wal_frame_size(f);
    uint8_t *to = out;
    while (n > 0 && rc == SQLITE_OK) {
        const uint32_t frame = (uint32_t)((at - NL_WAL_HEADER_SIZE) / size) + 1;
        const uint32_t within = (uint32_t)((at - NL_WAL_HEADER_SIZE) % size);
        const int whole = within == 0 ? n / (int)size : 0;
        const int some = whole ? whole * (int)size : n < (int)(size - within) ? n : (int)(size - within);
        rc = whole ? wal_whole(f, frame, whole, to) : wal_piece(f, frame, within, some, to);
        to += some;
        at += some;
        n -= some;
    }
    if (n > 0) memset(to, 0, (size_t)n);
    return rc;
}

/* ------------------------------------------------------------------ writing */

static int wal_put(nl_sealed *f, uint32_t first, uint32_t count, const uint8_t *frames)
{
    const uint32_t batch = nl_sealed_at_once(wal_step(f), NL_SEALED_BATCH);
    nl_error why;

    for (uint32_t i = 0; i < count; i += batch) {
        const uint32_t some = count - i < batch ? count - i : batch;
        const uint8_t *in = frames + (size_t)i * wal_frame_size(f);
        if (nl_codec_seal_frames(f->main->codec, first + i, some, in, f->scratch, &why) != NL_OK) {
            return nl_sealed_fail(SQLITE_IOERR_CODEC, &why, f->main);
        }
        int rc = f->below->pMethods->xWrite(f->below, f->scratch, (int)(some * wal_step(f)), wal_offset(f, first + i));
        if (rc != SQLITE_OK) return rc;
    }
    return SQLITE_OK;
}

/* Seals a frame anew with another header or another page than the file has. */
static int wal_change(nl_sealed *f, uint32_t frame, const uint8_t *with, size_t at, size_t n)
{
    nl_error why;

    int rc = f->opened_frame == frame ? SQLITE_OK : wal_open(f, frame, f->opened, &why);
    f->opened_frame = 0;
    if (rc == SQLITE_IOERR_CODEC) return nl_sealed_fail(rc, &why, f->main);
    if (rc == SQLITE_IOERR_SHORT_READ) return nl_sealed_refuse(SQLITE_IOERR_WRITE, f->main, "half a frame at the end of its log");
    if (rc != SQLITE_OK) return rc;
    memcpy(f->opened + at, with, n);
    return wal_put(f, frame, 1, f->opened);
}

int nl_sealed_wal_flush(nl_sealed *f)
{
    if (f->broken) return nl_sealed_refuse(SQLITE_IOERR_WRITE, f->main, "its log could not be written");
    if (f->held_frame == 0) return SQLITE_OK;
    const uint32_t frame = f->held_frame;
    f->held_frame = 0;
    return wal_change(f, frame, f->held, 0, NL_FRAME_HEADER_SIZE);
}

static int wal_header(nl_sealed *f, uint32_t frame, const uint8_t *header)
{
    int rc = nl_sealed_wal_flush(f);

    if (rc != SQLITE_OK) return rc;
    /* SQLite has just read the frame whose checksum it writes anew: nothing follows. */
    if (f->opened_frame == frame) return wal_change(f, frame, header, 0, NL_FRAME_HEADER_SIZE);
    memcpy(f->held, header, NL_FRAME_HEADER_SIZE);
    f->held_frame = frame;
    return SQLITE_OK;
}

static int wal_page(nl_sealed *f, uint32_t frame, const uint8_t *page)
{
    if (f->held_frame != frame) {
        int rc = nl_sealed_wal_flush(f);
        return rc == SQLITE_OK ? wal_change(f, frame, page, NL_FRAME_HEADER_SIZE, f->page_size) : rc;
    }
    memcpy(f->opened, f->held, NL_FRAME_HEADER_SIZE);
    memcpy(f->opened + NL_FRAME_HEADER_SIZE, page, f->page_size);
    f->held_frame = 0;
    return wal_put(f, frame, 1, f->opened);
}

int nl_sealed_wal_write(nl_sealed *f, const void *in, int n, sqlite3_int64 at)
{
    if (at == 0 && n == NL_WAL_HEADER_SIZE) {
        f->held_frame = f->opened_frame = 0;
        return f->below->pMethods->xWrite(f->below, in, n, at);
    }
    const uint32_t size = wal_frame_size(f);
    const uint32_t frame = (uint32_t)((at - NL_WAL_HEADER_SIZE) / size) + 1;
    const uint32_t within = (uint32_t)((at - NL_WAL_HEADER_SIZE) % size);
    if (at >= NL_WAL_HEADER_SIZE && within == 0 && n == NL_FRAME_HEADER_SIZE) return wal_header(f, frame, in);
    if (at >= NL_WAL_HEADER_SIZE && within == NL_FRAME_HEADER_SIZE && n == (int)f->page_size) {
        int rc = wal_page(f, frame, in);
        f->opened_frame = 0;
        return rc;
    }
    int rc = nl_sealed_wal_flush(f);
    f->opened_frame = 0;
    if (rc != SQLITE_OK) return rc;
    if (at >= NL_WAL_HEADER_SIZE && within == 0 && (uint32_t)n % size == 0) return wal_put(f, frame, (uint32_t)n / size, in);
    return nl_sealed_refuse(SQLITE_IOERR_WRITE, f->main, "a write to its log of something else than a frame");
}

int nl_sealed_wal_truncate(nl_sealed *f, sqlite3_int64 size)
{
    f->held_frame = f->opened_frame = 0;
    if (size > NL_WAL_HEADER_SIZE) size = wal_offset(f, (uint32_t)((size - NL_WAL_HEADER_SIZE) / wal_frame_size(f)) + 1);
    return f->below->pMethods->xTruncate(f->below, size);
}
