/*
** tail.c - the primary's reader of its own WAL: pin, advance, page sets, state hash.
**
** Part of sqlite_unit.c: it calls SQLite's private WAL functions. It works on any WAL-mode database,
** whoever writes it, in this process or another.
**
** WHAT IT HOLDS
**   R       a private connection. It never reads through its page cache after it was opened: a read
**           transaction is opened on its Wal object alone, pages are read from the WAL or the
**           database file by frame and page number. Therefore the cached wal-index header is zeroed
**           whenever such a transaction ends, exactly as sqlite3WalCheckpoint() does, so that the
**           pager can never mistake its cache for current.
**   pins    two connections, one of which holds a read transaction that keeps the WAL from being
**           reset. Two, because a pin is moved by opening the second before releasing the first.
**   table   the page-hash table, 8 bytes per page, at the last commit taken. XOR of it is the state
**           hash, so a commit costs one XOR per changed page and none of the old page images.
**   frames  page number of each frame of the running generation (4 bytes), and per commit its
**           frame, database size and state hash (16 bytes): which pages changed since any position of
**           the generation is answered without touching the disk.
**
** A page set is made of the *numbers* kept here and of the images as they are now, read under a
** read transaction whose end is exactly the position announced. So no image of an old frame is ever
** needed, however old the replica; what a roll leaves behind of a generation is an index (log.py).
**
** THE END OF THE LOG (rule A7) is mxFrame of the consistent wal-index header with which the read
** transaction was opened, never a scan of the file: commit frames stand in the file before they are
** synced and published. Each frame up to there is checked by salts and checksum chain.
**
** WHEN IS A PIN A PIN (rule A2)
**   (1) readLock > 0: WAL restart needs that lock exclusively; or
**   (2) the WAL was empty: then READ_LOCK(0) keeps every checkpointer from copying anything, and
**       a WAL that is not fully copied is not reset.
** A plain BEGIN; SELECT on a fully copied WAL gives READ_LOCK(0) and satisfies neither.
**
** FILES  tail.c pins and takes frames; base.c begins generations and tells what is known; changes.c
**        makes page sets; roll.c ends a generation.
**
** THREADS  one at a time; the owner (primary.py) holds a mutex.
*/
#include "nl.h"

#include <sys/mman.h>

#include "bytes.h"
#include "codec_vfs.h"
#include "fault.h"
#include "key.h"

#define TAIL_BLOCK (256 * 1024) /* bytes read from the WAL or the database file at a time */
#define TAIL_BLOCK_ALL (TAIL_BLOCK + NL_FRAME_HEADER_SIZE + 65536)
#define TAIL_PIECE 126976       /* bytes of one read: 31 pages of 4096, below 2^17 */
#define TAIL_WAIT_MS 5000       /* for another process's WAL recovery */

typedef struct tail_commit {
    uint32_t frame;   /* commit frame */
    uint32_t pages;   /* database size in pages */
    uint64_t hash;    /* state hash */
} tail_commit;

struct nl_tail {
    sqlite3 *db;            /* R */
    nl_key *key;            /* of a sealed database, for readers that are detached; or NULL */
    sqlite3 *pin[2];        /* at most one inside a transaction, but while a pin moves */
    int pinned;             /* index of the pin that holds, or -1 */
    uint32_t forks;         /* nl_forks() at birth: in the child of a fork the handle is dead */
    uint32_t page_size;     /* bytes */
    uint32_t lock_page;     /* page that does not exist (rule B6) */

    /* the generation */
    int ready;              /* a base was loaded or scanned */
    int reading;            /* read transaction open on R */
    int rolling;            /* CKPT and WRITE held by roll.c */
    int bound;              /* salt is known: the WAL has had a frame in this generation */
    nl_wal_chain chain;     /* salts, byte order, checksum of the last frame taken */
    uint32_t start;         /* frame at which the generation begins, mostly 0 */
    uint32_t frame;         /* last commit frame taken */
    uint32_t live;          /* mxFrame at the latest look */
    uint32_t pages;         /* database size at `frame` */
    uint64_t hash;          /* state hash at `frame` */

    uint64_t *table;        /* [pages], page p at p - 1; 0 = no such page */
    uint32_t table_size;    /* entries allocated */
    uint32_t *pgno;         /* page of frame start + 1 + i */
    uint32_t frames_size;   /* entries allocated */
    tail_commit *commit;    /* commit[0] is the base: frame == start */
    uint32_t commits;
    uint32_t commits_size;
    uint64_t *stage;        /* page hashes of the transaction being read */
    uint32_t stage_size;

    /* changes.c: page numbers of the page set being built, strictly ascending when finished */
    uint32_t *sel;
    uint32_t sel_count;
    uint32_t sel_size;
    uint64_t *bits;         /* bitmap, used when sel_mapped */
    uint32_t bits_size;     /* words allocated */
    int sel_mapped;
    uint64_t *image;        /* hashes of the pages of a chunk that is being made */
    uint32_t image_size;    /* entries allocated */
    uint64_t *expected;     /* hashes of sel[] in a detached reader, which has no table; else NULL */

    uint8_t *block;         /* TAIL_BLOCK + one frame of 65,536 bytes */
    uint8_t *bounce;        /* NULL or TAIL_PIECE bytes: frames whose headers are not wanted */
};

static Pager *tail_pager(const nl_tail *t)
{
    return sqlite3BtreePager(t->db->aDb[0].pBt);
}

static Wal *tail_wal(const nl_tail *t)
{
    return tail_pager(t)->pWal;
}

/* Make an array of `size` elements hold `need`; doubles, so that appending is linear in total. */
static int tail_grow(void **array, uint32_t *size, uint64_t need, size_t element, nl_error *err)
{
    uint64_t want = *size ? *size : 64;

    if (need <= *size) return NL_OK;
    if (need > 0xfffffff0u) return nl_fail(err, NL_E_TOO_BIG, "more than 2^32 entries");
    while (want < need) want *= 2;
    if (want > 0xfffffff0u) want = 0xfffffff0u;
    void *grown = sqlite3_realloc64(*array, want * element);
    if (grown == NULL) return nl_fail(err, NL_E_NOMEM, "no memory for the log of the primary");
    *array = grown;
    *size = (uint32_t)want;
    return NL_OK;
}

static int tail_sqlite(nl_error *err, const nl_tail *t, int rc)
{
    return nl_fail_sqlite(err, t->db, rc);
}

/* ------------------------------------------------------------------ pure: one transaction */

/* Pages that the new size cuts off leave the state hash. */
static void tail_shrink(nl_tail *t, uint32_t pages)
{
    for (uint32_t p = pages + 1; p <= t->pages; p++) {
        t->hash ^= t->table[p - 1];
        t->table[p - 1] = 0;
    }
}

/*
** Account for one committed transaction: n frames whose pages are pgno[] and hashes stage[].
** A frame counts only when (1) its page is not above the commit size, (2) it is not the lock-byte
** page, and the last frame of a page wins; WALs contain all three (rule B6). A page that appears by
** growth must have a frame (3): SQLite writes each, and without one its hash would be unknown.
*/
static int tail_commit_one(
    nl_tail *t,
    const uint32_t *pgno,
    const uint64_t *hash,
    uint32_t n,
    uint32_t frame,         /* its commit frame */
    uint32_t pages,         /* database size after it */
    nl_error *err)
{
    int rc = tail_grow((void **)&t->table, &t->table_size, pages, sizeof *t->table, err);
    if (rc == NL_OK) {
        rc = tail_grow((void **)&t->commit, &t->commits_size, (uint64_t)t->commits + 1,
                       sizeof *t->commit, err);
    }
    if (rc != NL_OK) return rc;
    uint32_t old = t->pages;
    tail_shrink(t, pages);
    for (uint32_t p = old + 1; p <= pages; p++) t->table[p - 1] = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (pgno[i] > pages || pgno[i] == t->lock_page) continue; /* (1) (2) */
        t->hash ^= t->table[pgno[i] - 1] ^ hash[i];
        t->table[pgno[i] - 1] = hash[i];
    }
    t->pages = pages;
    t->frame = frame;
    t->commit[t->commits++] = (tail_commit){.frame = frame, .pages = pages, .hash = t->hash};
    for (uint32_t p = old + 1; p <= pages; p++) { /* (3) */
        if (t->table[p - 1] == 0 && p != t->lock_page) {
            nl_fail(err, NL_E_RESET, "page %u appeared without a frame", p);
            if (err) err->page = p;
            return NL_E_RESET;
        }
    }
    return NL_OK;
}

static int tail_broken(nl_error *err, uint32_t number)
{
    nl_fail(err, NL_E_RESET, "frame %u of the WAL does not continue the one before it", number);
    if (err) err->frame = number;
    return NL_E_RESET;
}

/* ------------------------------------------------------------------ reading files */

/* In pieces: SQLite's unix VFS takes the low 17 bits of a length. What lies beyond the end of the file
** is zeros, and SQLITE_IOERR_SHORT_READ comes back. */
static int tail_os_read(
    sqlite3_file *file,
    size_t unit,            /* a piece is of whole ones: a sealed page or frame is opened as a whole */
    uint8_t *out,
    size_t n,
    uint64_t offset
)
{
    const size_t most = TAIL_PIECE / unit * unit;
    int rc = SQLITE_OK;

    while (n > 0) {
        int piece = (int)(n < most ? n : most);
        int got = sqlite3OsRead(file, out, piece, (i64)offset);
        if (got != SQLITE_OK && got != SQLITE_IOERR_SHORT_READ) return got;
        if (got != SQLITE_OK) rc = got;
        out += piece;
        offset += (uint64_t)piece;
        n -= (size_t)piece;
    }
    return rc;
}

static size_t tail_frame_size(const nl_tail *t)
{
    return NL_FRAME_HEADER_SIZE + (size_t)t->page_size;
}

static uint64_t tail_frame_offset(const nl_tail *t, uint32_t frame)
{
    return NL_WAL_HEADER_SIZE + (uint64_t)(frame - 1) * tail_frame_size(t);
}

/* Frames that one read brings along with the first: 30 of 4 KiB. */
static uint32_t tail_frames_at_once(const nl_tail *t)
{
    return TAIL_PIECE / (uint32_t)tail_frame_size(t);
}

/* n frames that follow one another in the WAL, without their headers. */
static int tail_read_frames(nl_tail *t, uint32_t frame, uint32_t n, uint8_t *out)
{
    const size_t size = t->page_size, step = size + NL_FRAME_HEADER_SIZE;
    sqlite3_file *file = tail_wal(t)->pWalFd;
    const uint64_t offset = tail_frame_offset(t, frame);

    if (n > 1 && t->bounce == NULL) t->bounce = sqlite3_malloc64(TAIL_PIECE);
    if (n == 1 || t->bounce == NULL) {
        int rc = SQLITE_OK;
        for (uint32_t i = 0; rc == SQLITE_OK && i < n; i++) {
            rc = tail_os_read(file, size, out + i * size, size, offset + i * step + NL_FRAME_HEADER_SIZE);
        }
        return rc;
    }
    int rc = tail_os_read(file, step, t->bounce, n * step, offset);
    for (uint32_t i = 0; i < n; i++) memcpy(out + i * size, t->bounce + i * step + NL_FRAME_HEADER_SIZE, size);
    return rc;
}

/* Inside R's transaction: n pages as the snapshot has them. What one transaction wrote lies side by
** side in the WAL in the order of page numbers, so that a page set of it is few reads (a read for
** each page took twice as long). Beyond the end of the file: zeros; so is the lock-byte page, which in a
** sealed file may not open any more (rekey.c). */
static int tail_read_pages(
    nl_tail *t,
    const uint32_t *pgnos,  /* ascending; NULL: n consecutive pages */
    uint32_t first,         /* then the first of them */
    uint32_t n,
    uint8_t *out,           /* n pages */
    nl_error *err
)
{
    const size_t size = t->page_size;
    const uint32_t most = tail_frames_at_once(t) > 1 ? tail_frames_at_once(t) : 1;
    u32 frame = 0, next = 0;
    int rc = n > 0 ? sqlite3WalFindFrame(tail_wal(t), pgnos ? pgnos[0] : first, &frame) : SQLITE_OK;

    for (uint32_t i = 0, run; rc == SQLITE_OK && i < n; i += run, frame = next) {
        const uint32_t page = pgnos ? pgnos[i] : first + i;
        uint8_t *at = out + i * size;
        for (run = 1; i + run < n; run++) {
            const uint32_t then = pgnos ? pgnos[i + run] : first + i + run;
            rc = sqlite3WalFindFrame(tail_wal(t), then, &next);
            if (rc != SQLITE_OK) break;
            if (frame == 0 ? next != 0 || then != page + run : next != frame + run || run == most) {
                break;
            }
            if (page == t->lock_page || then == t->lock_page) break;
        }
        if (rc == SQLITE_OK && page == t->lock_page) {
            memset(at, 0, size);
        } else if (rc == SQLITE_OK && frame != 0) {
            rc = tail_read_frames(t, frame, run, at);
        } else if (rc == SQLITE_OK) {
            rc = tail_os_read(tail_pager(t)->fd, size, at, run * size, (uint64_t)(page - 1) * size);
            if (rc == SQLITE_IOERR_SHORT_READ) rc = SQLITE_OK;
        }
        if (rc != SQLITE_OK) {
            rc = nl_fail_sqlite(err, NULL, rc);
            if (err && err->page == 0) err->page = page; /* a seal knows which of the run */
            return rc;
        }
    }
    return rc == SQLITE_OK ? NL_OK : nl_fail_sqlite(err, NULL, rc); /* of the first look */
}

/* Whether R's wal-index speaks of the WAL that this generation is bound to. */
static int tail_same_salts(const nl_tail *t)
{
    const u8 *salt = (const u8 *)tail_wal(t)->hdr.aSalt; /* as in the file: big-endian */

    return nl_get32(salt) == t->chain.salt[0] && nl_get32(salt + 4) == t->chain.salt[1];
}

/* Read the WAL's header into the chain: salts, byte order, seed of the checksums. */
static int tail_read_header(nl_tail *t, nl_error *err)
{
    uint8_t head[NL_WAL_HEADER_SIZE];

    int rc = tail_os_read(tail_wal(t)->pWalFd, sizeof head, head, sizeof head, 0);
    if (rc != SQLITE_OK) return tail_sqlite(err, t, rc);
    if (nl_wal_header_decode(head, sizeof head, &t->chain, err) != NL_OK ||
        t->chain.page_size != t->page_size) {
        return nl_fail(err, NL_E_RESET, "the WAL has no valid header");
    }
    return NL_OK;
}

static int tail_bind(nl_tail *t, nl_error *err)
{
    int rc = tail_read_header(t, err);

    if (rc != NL_OK) return rc;
    if (!tail_same_salts(t)) {
        return nl_fail(err, NL_E_RESET, "the header of the WAL is not that of its index");
    }
    t->bound = 1;
    return NL_OK;
}

/* Frames `first`.. in t->block, n of them, into arrays and table. *open counts the frames of the
** transaction under way, whose hashes stand in t->stage. */
static int tail_take_block(nl_tail *t, uint32_t first, uint32_t n, uint32_t *open, nl_error *err)
{
    const size_t step = NL_FRAME_HEADER_SIZE + (size_t)t->page_size;
    int rc = tail_grow((void **)&t->pgno, &t->frames_size, (uint64_t)(first - t->start) + n,
                       sizeof *t->pgno, err);
    if (rc == NL_OK) {
        rc = tail_grow((void **)&t->stage, &t->stage_size, (uint64_t)*open + n, sizeof *t->stage,
                       err);
    }
    if (rc != NL_OK) return rc;
    uint32_t good = nl_frames_verify(&t->chain, t->block, n, NULL);
    if (good < n) return tail_broken(err, first + good);
    for (uint32_t i = 0; rc == NL_OK && i < n; i++) {
        const uint8_t *frame = t->block + i * step;
        uint32_t pgno = nl_get32(frame), pages = nl_get32(frame + 4);
        uint32_t *mine = t->pgno + (first + i - t->start - 1);
        *mine = pgno;
        t->stage[(*open)++] = nl_page_hash(frame + NL_FRAME_HEADER_SIZE, t->page_size, pgno);
        if (pages == 0) continue;
        rc = tail_commit_one(t, mine + 1 - *open, t->stage, *open, first + i, pages, err);
        *open = 0;
    }
    return rc;
}

/* After a failure: the chain stands at t->frame again, whose own header holds its checksum. */
static void tail_rewind(nl_tail *t)
{
    uint8_t head[NL_FRAME_HEADER_SIZE];

    if (t->frame == 0) {
        t->bound = 0; /* the WAL's header is the seed: bind again */
    } else if (tail_os_read(tail_wal(t)->pWalFd, sizeof head, head, sizeof head,
                            tail_frame_offset(t, t->frame)) == SQLITE_OK) {
        t->chain.sum[0] = nl_get32(head + 16);
        t->chain.sum[1] = nl_get32(head + 20);
    }
}

/*
** Take the frames up to R's header. The generation goes on only when salts are the same and the log
** has not become shorter; otherwise NL_E_RESET, and the owner closes the generation. A failure
** half way leaves the state at the last whole transaction.
*/
static int tail_advance(nl_tail *t, nl_error *err)
{
    const WalIndexHdr *hdr = &tail_wal(t)->hdr;
    const size_t step = NL_FRAME_HEADER_SIZE + (size_t)t->page_size;
    const uint32_t fit = (uint32_t)(TAIL_BLOCK / step) + 1;
    uint32_t open = 0, at = t->frame;
    int rc = NL_OK;

    t->live = hdr->mxFrame;
    if (hdr->mxFrame < t->frame || (t->bound && !tail_same_salts(t))) {
        return nl_fail(err, NL_E_RESET, "the WAL was reset by somebody else");
    }
    if (hdr->mxFrame == t->frame) return NL_OK;
    if (!t->bound) rc = tail_bind(t, err);
    while (rc == NL_OK && at < hdr->mxFrame) {
        uint32_t n = hdr->mxFrame - at < fit ? hdr->mxFrame - at : fit;
        int sqlite_rc = tail_os_read(tail_wal(t)->pWalFd, step, t->block, n * step,
                                     tail_frame_offset(t, at + 1));
        if (NL_FAULT("tail.read-frames")) sqlite_rc = SQLITE_IOERR_READ;
        if (sqlite_rc != SQLITE_OK) rc = tail_sqlite(err, t, sqlite_rc);
        else rc = tail_take_block(t, at + 1, n, &open, err);
        at += n;
    }
    if (rc == NL_OK && open != 0) {
        rc = nl_fail(err, NL_E_RESET, "the WAL ends inside a transaction");
    }
    if (rc != NL_OK) tail_rewind(t);
    return rc;
}

/* ------------------------------------------------------------------ pin */

/* Whether a read transaction keeps the WAL: conditions (1) and (2) of the essay. */
static int tail_pin_holds(Wal *pWal)
{
    int holds = 0;

    SEH_TRY {
        holds = pWal->readLock > 0 || /* (1) */
                (pWal->readLock == 0 && pWal->hdr.mxFrame == 0 &&
                 walCkptInfo(pWal)->nBackfill == 0); /* (2) */
    }
    SEH_EXCEPT( holds = 0; )
    return holds;
}

/* Open the other pin at the head of the log, then release the one that holds. */
static int tail_repin(nl_tail *t, nl_error *err)
{
    int next = t->pinned == 0 ? 1 : 0;
    sqlite3 *db = t->pin[next];
    sqlite3_snapshot *snapshot = NULL;

    int rc = sqlite3_exec(db, "BEGIN", NULL, NULL, NULL);
    if (rc != SQLITE_OK) return nl_fail_sqlite(err, db, rc);
    rc = sqlite3_snapshot_get(db, "main", &snapshot);
    sqlite3_snapshot_free(snapshot);
    Wal *wal = sqlite3BtreePager(db->aDb[0].pBt)->pWal;
    /* With an empty WAL there is nothing to name and SQLITE_ERROR comes back; the transaction is
    ** open all the same, and that is what counts. */
    int valid = wal != NULL && tail_pin_holds(wal);
    if (!valid) {
        if (rc == SQLITE_OK) rc = SQLITE_BUSY;
        rc = nl_fail_sqlite(err, NULL, rc);
        sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
        return rc;
    }
    if (t->pinned >= 0) sqlite3_exec(t->pin[t->pinned], "COMMIT", NULL, NULL, NULL);
    t->pinned = next;
    return NL_OK;
}

static void tail_unpin(nl_tail *t)
{
    if (t->pinned >= 0) sqlite3_exec(t->pin[t->pinned], "COMMIT", NULL, NULL, NULL);
    t->pinned = -1;
}


/* ------------------------------------------------------------------ open and close */

static int tail_connect(const char *path, nl_key *key, sqlite3 **out, nl_error *err)
{
    int rc = nl_sealed_connect(path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_PRIVATECACHE, key, out);

    if (rc == SQLITE_OK) {
        sqlite3_busy_timeout(*out, TAIL_WAIT_MS);
        sqlite3_wal_autocheckpoint(*out, 0);
        rc = sqlite3_db_config(*out, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    }
    /* It compiles next to nothing: 48 KiB for that, three times for each database, are better not had. */
    if (rc == SQLITE_OK) rc = sqlite3_db_config(*out, SQLITE_DBCONFIG_LOOKASIDE, NULL, 0, 0);
    /* FULL also for a primary of durability `normal`: these connections only checkpoint. The SELECT
    ** opens the WAL, before which snapshot_get() could not keep off READ_LOCK(0). */
    if (rc == SQLITE_OK) {
        rc = sqlite3_exec(*out, "PRAGMA synchronous=FULL; PRAGMA mmap_size=0;"
                                "SELECT count(*) FROM sqlite_schema", NULL, NULL, NULL);
    }
    return rc == SQLITE_OK ? NL_OK : nl_fail_sqlite(err, *out, rc);
}

int nl_tail_open(const char *path, nl_key *key, nl_tail **out, nl_error *err)
{
    nl_tail *t = sqlite3_malloc64(sizeof *t);
    int rc = NL_OK;

    *out = NULL;
    if (t == NULL) return nl_fail(err, NL_E_NOMEM, "out of memory");
    memset(t, 0, sizeof *t);
    t->forks = nl_forks();
    t->pinned = -1;
    if (key) t->key = nl_key_share(key);
    rc = tail_connect(path, key, &t->db, err);
    for (int i = 0; rc == NL_OK && i < 2; i++) rc = tail_connect(path, key, &t->pin[i], err);
    if (rc != NL_OK) goto done;
    if (tail_wal(t) == NULL || tail_wal(t)->exclusiveMode) {
        rc = nl_fail(err, NL_E_MISUSE, "the database is not in WAL mode");
        goto done;
    }
    if (sqlite3BtreeGetReserveNoMutex(t->db->aDb[0].pBt) != 0) {
        rc = nl_fail(err, NL_E_MISUSE, "pages with a reserved tail cannot be replicated");
        goto done;
    }
    t->page_size = (uint32_t)sqlite3BtreeGetPageSize(t->db->aDb[0].pBt);
    t->lock_page = nl_lock_page(t->page_size);
    /* From the system: most of it is seldom touched, and what malloc hands out was somebody's before. */
    t->block = mmap(NULL, TAIL_BLOCK_ALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (t->block == MAP_FAILED) t->block = NULL;
    if (t->block == NULL) rc = nl_fail(err, NL_E_NOMEM, "out of memory");
    if (rc == NL_OK) rc = tail_repin(t, err);
done:
    if (rc != NL_OK) {
        nl_tail_close(t);
        t = NULL;
    }
    *out = t;
    return rc;
}

void nl_tail_close(nl_tail *t)
{
    /* An inherited handle is left as it is: closing it would reach into the parent's locks. */
    if (t == NULL || t->forks != nl_forks()) return;
    if (t->rolling) nl_roll_abort(t);
    nl_tail_end(t);
    tail_unpin(t);
    for (int i = 0; i < 2; i++) sqlite3_close_v2(t->pin[i]);
    sqlite3_close_v2(t->db);
    nl_key_free(t->key);
    sqlite3_free(t->table);
    sqlite3_free(t->pgno);
    sqlite3_free(t->commit);
    sqlite3_free(t->stage);
    sqlite3_free(t->sel);
    sqlite3_free(t->expected);
    sqlite3_free(t->bits);
    sqlite3_free(t->image);
    if (t->block != NULL) munmap(t->block, TAIL_BLOCK_ALL);
    sqlite3_free(t->bounce);
    sqlite3_free(t);
}

/* ------------------------------------------------------------------ read transactions on R */

/* Neither reading nor rolling, and not inherited by fork. */
static int tail_idle(const nl_tail *t, nl_error *err)
{
    if (t->forks != nl_forks()) {
        return nl_fail(err, NL_E_MISUSE, "the primary was opened before a fork, by the parent process");
    }
    if (t->reading || t->rolling) return nl_fail(err, NL_E_MISUSE, "the tail is already in use");
    return NL_OK;
}

static int tail_enter(nl_tail *t, nl_error *err)
{
    int changed = 0, rc = SQLITE_OK;

    if (tail_idle(t, err) != NL_OK) return NL_E_MISUSE;
    for (int waited = 0; waited < TAIL_WAIT_MS * 10; waited++) {
        rc = sqlite3WalBeginReadTransaction(tail_wal(t), &changed);
        if ((rc & 0xff) != SQLITE_BUSY) break;
        sqlite3OsSleep(t->db->pVfs, 100);
    }
    if (rc != SQLITE_OK) return nl_fail_sqlite(err, NULL, rc);
    t->reading = 1;
    return NL_OK;
}

void nl_tail_end(nl_tail *t)
{
    if (!t->reading) return;
    Wal *wal = tail_wal(t);
    sqlite3WalEndReadTransaction(wal);
    memset(&wal->hdr, 0, sizeof wal->hdr); /* see the essay: the pager's cache is not current */
    t->reading = 0;
}

int nl_tail_repin(nl_tail *t, nl_error *err)
{
    return tail_idle(t, err) == NL_OK ? tail_repin(t, err) : NL_E_MISUSE;
}

int nl_tail_begin(nl_tail *t, nl_error *err)
{
    if (!t->ready) return nl_fail(err, NL_E_RESET, "the tail has no base, or lost its pin");
    int rc = tail_enter(t, err);
    if (rc != NL_OK) return rc;
    rc = tail_advance(t, err);
    if (rc != NL_OK) nl_tail_end(t);
    return rc;
}

void nl_tail_get(const nl_tail *t, nl_tail_state *out)
{
    memset(out, 0, sizeof *out);
    out->page_size = t->page_size;
    out->pages = t->pages;
    out->start = t->start;
    out->frame = t->frame;
    out->live = t->live;
    out->bound = (uint32_t)t->bound;
    out->hash = t->hash;
    memcpy(out->checksum, t->chain.sum, sizeof out->checksum);
    memcpy(out->salt, t->chain.salt, sizeof out->salt);
    if (t->pinned >= 0) {
        out->mark = (uint32_t)sqlite3BtreePager(t->pin[t->pinned]->aDb[0].pBt)->pWal->readLock;
    }
}

int nl_tail_look(nl_tail *t, uint32_t frame, nl_tail_state *out, uint8_t page1[100], nl_error *err)
{
    uint8_t head[NL_FRAME_HEADER_SIZE];
    int rc = tail_enter(t, err);

    if (rc != NL_OK) return rc;
    const WalIndexHdr *hdr = &tail_wal(t)->hdr;
    nl_tail_get(t, out);
    out->live = hdr->mxFrame;
    out->salt[0] = nl_get32((const u8 *)hdr->aSalt);
    out->salt[1] = nl_get32((const u8 *)hdr->aSalt + 4);
    out->checksum[0] = out->checksum[1] = 0;
    if (frame != 0 && frame <= hdr->mxFrame) {
        int got = tail_os_read(tail_wal(t)->pWalFd, sizeof head, head, sizeof head, tail_frame_offset(t, frame));
        if (got != SQLITE_OK) rc = tail_sqlite(err, t, got);
        out->checksum[0] = nl_get32(head + 16);
        out->checksum[1] = nl_get32(head + 20);
    }
    if (rc == NL_OK) rc = tail_read_pages(t, NULL, 1, 1, t->block, err);
    if (rc == NL_OK) memcpy(page1, t->block, 100);
    nl_tail_end(t);
    return rc;
}
