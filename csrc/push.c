/*
** push.c - frames that somebody else's SQLite wrote become frames of our WAL, under the same numbers.
**
** Part of sqlite_unit.c, after roll.c. A libSQL client in offline mode writes to its own WAL, which is equal to
** ours up to some frame, and then sends what lies behind. What arrives here is appended frame by frame, page
** numbers, commit sizes and pages as they came, salts and checksums ours.
**
** Whoever may push may put anything into the pages, so nothing is shown to anybody before three judgements:
**
**   (1) the frames   pages that exist, none twice in a transaction but by its commit frame (libSQL's replicas would
**                    count frames in another way than we), no page that appears by growth without a frame
**   (2) page 1       what SQLite never changes in a file has not changed, the size in it is that of the commit, the
**                    counters have not gone back, and what is nearlite's own (bytes 18, 72..91) is as in a primary
**   (3) the content  PRAGMA quick_check finds nothing, and if the schema has changed its cookie says so, by which
**                    alone other connections notice (rule B7)
**
** ORDER
**   begin    the write lock. The log ends where the push begins, or nothing is done.
**   frames   of a transaction that is longer than one request, all but its end
**   commit   (a) frames are written without a commit mark: a crash leaves nothing of them.
**            (b) They are judged by a look at them: this connection's own view of the log ends behind them, that of
**                all others does not. Its cache is emptied, and the sizes that the pager and the b-tree know are set.
**            (c) What lies from the first commit frame on is written once more, commit marks included: a crash leaves
**                a prefix of whole transactions.
**            (d) The last frame goes through sqlite3WalFrames, which syncs and publishes all of them at once.
**
** When (c) or (d) fail, commit marks stand in the file that nobody was told of, and a crash before the next commit
** would bring them up: the first of them is taken back, so that the chain of checksums ends before it.
**
** LOCKS    the write lock from begin to commit or rollback; the connection is private.
** MEMORY   one write buffer, a set of the page numbers of one transaction, SQLite's cache while it checks.
*/
#include "nl.h"

#include "bytes.h"
#include "codec_vfs.h"
#include "fault.h"
#include "frame.h"

#define PUSH_CHECK_STEPS 1000 /* of the check, between two looks at the clock */
#define PUSH_HEADER 100       /* bytes of page 1 that are the file's header */

struct nl_pusher {
    sqlite3 *db;              /* private connection; no SQL but that of the check */
    uint8_t *buffer;          /* frames on their way into the WAL, APPLY_WRITE_MAX bytes */
    uint32_t page_size;       /* bytes */
    uint32_t forks;           /* nl_forks() at birth: in the child of a fork the handle is dead */
    int open;                 /* 1 between begin and commit or rollback */
    uint8_t before[PUSH_HEADER]; /* header of page 1 where the push begins */
    uint8_t head[PUSH_HEADER];   /* the same behind the frames judged so far */
    int have_page1;           /* they have page 1 */
    uint64_t schema;          /* digest of sqlite_schema where the push begins */
    uint32_t pages;           /* database size behind the transactions judged so far */
    uint32_t count;           /* frames judged of the transaction that has not ended */
    Bitvec *seen;             /* its pages; NULL: none */
    int64_t deadline;         /* of the check, by apply_now_ms() */
    volatile int stopped;     /* nl_pusher_stop was called */
};

static Btree *push_btree(const nl_pusher *p) { return p->db->aDb[0].pBt; }
static Pager *push_pager(const nl_pusher *p) { return sqlite3BtreePager(push_btree(p)); }
static Wal *push_wal(const nl_pusher *p) { return push_pager(p)->pWal; }

static void push_enter(nl_pusher *p) {
    sqlite3_mutex_enter(p->db->mutex);
    sqlite3BtreeEnter(push_btree(p));
}

static void push_leave(nl_pusher *p) {
    sqlite3BtreeLeave(push_btree(p));
    sqlite3_mutex_leave(p->db->mutex);
}

static int push_fail_sqlite(const nl_pusher *p, int rc, nl_error *err) {
    int code = nl_sealed_explain(rc, err);
    if (code != NL_OK) return code;
    if ((rc & 0xff) == SQLITE_BUSY) {
        nl_fail(err, NL_E_BUSY, "another program holds the write lock of the database");
    } else if ((rc & 0xff) == SQLITE_FULL) {
        nl_fail(err, NL_E_FULL, "the disk is full");
    } else {
        return nl_fail_sqlite(err, p->db, rc);
    }
    if (err != NULL) err->sqlite_rc = rc;
    return err != NULL ? err->code : NL_E_SQLITE;
}

/* ------------------------------------------------------------------ judging frames (1) and page 1 (2) */

static int push_bad_frame(nl_error *err, uint32_t pgno, const char *what) {
    nl_fail(err, NL_E_FORMAT, "page %u of the pushed frames %s", pgno, what);
    if (err != NULL) err->page = pgno;
    return NL_E_FORMAT;
}

static void push_forget_seen(nl_pusher *p) {
    sqlite3BitvecDestroy(p->seen);
    p->seen = NULL;
    p->count = 0;
}

/* (2) What a page 1 that was pushed has to say. `now` is what stands behind this transaction. */
static int push_judge_header(const nl_pusher *p, uint32_t commit, nl_error *err) {
    const uint8_t *now = p->head, *was = p->before;
    const char *what = NULL;
    if (memcmp(now, zMagicHeader, 16) != 0) what = "is no page 1 of a database";
    else if (memcmp(now + 16, was + 16, 2) != 0) what = "has another page size";
    else if (now[18] != 2 || now[19] != 2) what = "is not that of a database in WAL mode";
    else if (memcmp(now + 20, was + 20, 4) != 0) what = "has other reserved bytes or payload fractions";
    else if (memcmp(now + 24, now + 92, 4) != 0 || nl_get32(now + 28) != commit) {
        what = "says another size than its commit frame";
    } else if ((int32_t)(nl_get32(now + 24) - nl_get32(was + 24)) < 0) what = "has an older change counter";
    else if (nl_get32(now + 44) < 1 || nl_get32(now + 44) > 4) what = "has an unknown schema format";
    else if (nl_get32(now + 56) < 1 || nl_get32(now + 56) > 3 ||
             (nl_get32(was + 56) != 0 && nl_get32(now + 56) != nl_get32(was + 56))) {
        what = "has another text encoding";
    } else {
        for (int i = 72; i < 92; i++) {
            if (now[i] != 0) what = "has bytes that are reserved";
        }
    }
    return what == NULL ? NL_OK : push_bad_frame(err, 1, what);
}

/* A transaction ends with this many pages. */
static int push_judge_commit(nl_pusher *p, uint32_t commit, nl_error *err) {
    const uint32_t lock_page = nl_lock_page(p->page_size);
    if (commit > p->pages) {
        if (commit - p->pages > p->count + 1) { /* + 1: the lock-byte page */
            return push_bad_frame(err, commit, "is beyond what they bring: pages are missing");
        }
        for (uint32_t pgno = p->pages + 1; pgno <= commit; pgno++) {
            if (pgno != lock_page && !sqlite3BitvecTest(p->seen, pgno)) {
                return push_bad_frame(err, pgno, "is missing, though the database grows by it");
            }
        }
    }
    if (p->have_page1) {
        int rc = push_judge_header(p, commit, err);
        if (rc != NL_OK) return rc;
    } else if (commit != p->pages) {
        return push_bad_frame(err, 1, "is missing, though the database has another size");
    }
    p->pages = commit;
    push_forget_seen(p);
    return NL_OK;
}

static int push_judge(nl_pusher *p, const uint8_t *frames, uint32_t n, nl_error *err) {
    const size_t step = NL_FRAME_HEADER_SIZE + (size_t)p->page_size;
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *frame = frames + i * step;
        nl_frame_header h;
        nl_frame_header_decode(frame, &h);
        if (h.pgno == 0 || h.pgno == UINT32_MAX || h.pgno == nl_lock_page(p->page_size)) {
            return push_bad_frame(err, h.pgno, "is none that a database has");
        }
        if (p->seen == NULL) p->seen = sqlite3BitvecCreate(UINT32_MAX - 1);
        if (sqlite3BitvecTest(p->seen, h.pgno)) {
            if (h.commit == 0) return push_bad_frame(err, h.pgno, "comes twice in one transaction");
        } else if (p->seen == NULL || sqlite3BitvecSet(p->seen, h.pgno) != SQLITE_OK) {
            return nl_fail(err, NL_E_NOMEM, "out of memory");
        }
        p->count++;
        if (h.pgno == 1) {
            memcpy(p->head, frame + NL_FRAME_HEADER_SIZE, PUSH_HEADER);
            p->have_page1 = 1;
        }
        int rc = h.commit ? push_judge_commit(p, h.commit, err) : NL_OK;
        if (rc != NL_OK) return rc;
    }
    return NL_OK;
}

/* ------------------------------------------------------------------ frames into the WAL */

/* One frame through SQLite's own path: the one that opens a log, and the commit. */
static int push_stock_frame(nl_pusher *p, const uint8_t *frame, uint32_t commit) {
    PgHdr head;
    memset(&head, 0, sizeof head);
    head.pgno = nl_get32(frame);
    head.pData = (void *)(uintptr_t)(frame + NL_FRAME_HEADER_SIZE); /* sqlite3WalFrames only reads it */
    return sqlite3WalFrames(push_wal(p), (int)p->page_size, &head, commit, commit != 0,
                            push_pager(p)->walSyncFlags);
}

/* Before the first frame: an empty log needs its header, and a reader of a log that is wholly in the database file
** a read lock of another kind. SQLite sees to both when it writes a frame; that one is then not counted. */
static int push_open_log(nl_pusher *p, const uint8_t *frame, nl_error *err) {
    Wal *wal = push_wal(p);
    const u32 at = wal->hdr.mxFrame;
    u32 sum[2] = {wal->hdr.aFrameCksum[0], wal->hdr.aFrameCksum[1]};
    if (at != 0 && wal->readLock > 0 && wal->szPage == p->page_size) return NL_OK;
    int rc = apply_injected(NL_FAULT("push.open"));
    if (rc == SQLITE_OK) rc = push_stock_frame(p, frame, 0);
    if (rc != SQLITE_OK) return push_fail_sqlite(p, rc, err);
    if (wal->hdr.mxFrame != at + 1) {
        return nl_fail(err, NL_E_RESET, "the WAL was restarted, though somebody keeps it");
    }
    if (at == 0) {
        uint8_t head[NL_WAL_HEADER_SIZE];
        rc = sqlite3OsRead(wal->pWalFd, head, sizeof head, 0);
        if (rc != SQLITE_OK) return push_fail_sqlite(p, rc, err);
        sum[0] = nl_get32(head + 24);
        sum[1] = nl_get32(head + 28);
    }
    wal->hdr.mxFrame = at;
    wal->hdr.aFrameCksum[0] = sum[0];
    wal->hdr.aFrameCksum[1] = sum[1];
    return NL_OK;
}

/* Write n encoded frames that stand in the buffer, and enter them into the wal-index. */
static int push_flush(nl_pusher *p, uint32_t n) {
    Wal *pWal = push_wal(p); /* SQLite's SEH_ macros, asserts in a debug build, want this name */
    const size_t step = NL_FRAME_HEADER_SIZE + (size_t)p->page_size;
    const u32 first = pWal->hdr.mxFrame + 1;
    int rc = apply_injected(NL_FAULT("push.write"));
    if (rc == SQLITE_OK) {
        rc = sqlite3OsWrite(pWal->pWalFd, p->buffer, (int)(n * step), walFrameOffset(first, (int)p->page_size));
    }
    if (rc == SQLITE_OK) rc = apply_injected(NL_FAULT("push.written"));
    SEH_TRY {
        for (uint32_t i = 0; rc == SQLITE_OK && i < n; i++) {
            rc = walIndexAppend(pWal, first + i, nl_get32(p->buffer + i * step));
        }
    }
    SEH_EXCEPT( rc = SQLITE_IOERR_IN_PAGE; )
    if (rc == SQLITE_OK) pWal->hdr.mxFrame = first + n - 1; /* private copy: nobody sees it before the commit */
    return rc;
}

static int push_write(nl_pusher *p, const uint8_t *frames, uint32_t n, int marks, nl_error *err) {
    Wal *wal = push_wal(p);
    const size_t step = NL_FRAME_HEADER_SIZE + (size_t)p->page_size;
    const uint32_t room = (uint32_t)(APPLY_WRITE_MAX / step);
    const uint8_t *salt = (const uint8_t *)wal->hdr.aSalt; /* kept as the file has it: big-endian */
    nl_wal_chain chain = {p->page_size, wal->hdr.bigEndCksum != 0,
                          {nl_get32(salt), nl_get32(salt + 4)},
                          {wal->hdr.aFrameCksum[0], wal->hdr.aFrameCksum[1]}};
    for (uint32_t i = 0, many; i < n; i += many) {
        many = n - i < room ? n - i : room;
        for (uint32_t k = 0; k < many; k++) {
            const uint8_t *frame = frames + (i + k) * step;
            nl_frame_encode(&chain, nl_get32(frame), marks ? nl_get32(frame + 4) : 0,
                            frame + NL_FRAME_HEADER_SIZE, p->buffer + k * step);
        }
        int rc = push_flush(p, many);
        if (rc != SQLITE_OK) return push_fail_sqlite(p, rc, err);
        wal->hdr.aFrameCksum[0] = chain.sum[0];
        wal->hdr.aFrameCksum[1] = chain.sum[1];
    }
    return NL_OK;
}

/* ------------------------------------------------------------------ a look at the result (3) */

/* Unsound content, where SQLite says so; a failure of this machine otherwise. */
static int push_unsound(nl_pusher *p, int rc, nl_error *err) {
    switch (rc & 0xff) {
    case SQLITE_ERROR: /* a schema that cannot be read */
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_FORMAT:
    case SQLITE_MISMATCH:
        return nl_fail(err, NL_E_UNSOUND, "what the pushed pages make of the database cannot be read: %s",
                       sqlite3_errmsg(p->db));
    case SQLITE_INTERRUPT:
        return nl_fail(err, NL_E_TOO_BIG, p->stopped ? "the server is about to end"
                                                     : "checking the database took longer than there is time");
    default:
        return push_fail_sqlite(p, rc, err);
    }
}

static int push_progress(void *arg) {
    const nl_pusher *p = arg;
    return p->stopped || apply_now_ms() >= p->deadline;
}

/* Digest of sqlite_schema as this connection sees it. */
static int push_schema(nl_pusher *p, uint64_t *out) {
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(p->db, "SELECT type, name, tbl_name, rootpage, sql FROM main.sqlite_schema",
                                -1, &stmt, NULL);
    *out = 0;
    while (rc == SQLITE_OK && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        for (int i = 0; i < 5; i++) {
            const void *text = sqlite3_column_blob(stmt, i);
            const int n = sqlite3_column_bytes(stmt, i);
            *out = nl_xxh3(text != NULL ? text : "", (size_t)n, *out + (uint64_t)(i + 1) * (uint64_t)(n + 1));
        }
        rc = SQLITE_OK;
    }
    if (rc == SQLITE_DONE) rc = SQLITE_OK;
    int end = sqlite3_finalize(stmt);
    return rc != SQLITE_OK ? rc : end;
}

/* The newest image of page 1 in the open transaction, without the page cache. */
static int push_read_page1(nl_pusher *p, uint8_t *out) {
    u32 frame = 0;
    int rc = sqlite3WalFindFrame(push_wal(p), 1, &frame);
    if (rc != SQLITE_OK) return rc;
    if (frame != 0) return sqlite3WalReadFrame(push_wal(p), frame, (int)p->page_size, out);
    return sqlite3OsRead(push_pager(p)->fd, out, (int)p->page_size, 0);
}

/* (b) From here on this connection reads what was written. Page 1 is held by the transaction, so that the cache
** keeps it, emptied. */
static int push_look(nl_pusher *p) {
    Pager *pager = push_pager(p);
    BtShared *shared = push_btree(p)->pBt;
    uint8_t *page1 = shared->pPage1->aData;
    sqlite3ResetAllSchemasOfConnection(p->db);
    pager_reset(pager);
    int rc = push_read_page1(p, page1);
    if (rc != SQLITE_OK) return rc;
    shared->pPage1->isInit = 0;
    shared->nPage = p->pages;
    shared->autoVacuum = nl_get32(page1 + 52) != 0;
    shared->incrVacuum = nl_get32(page1 + 64) != 0;
    pager->dbSize = pager->dbOrigSize = pager->dbFileSize = pager->dbHintSize = p->pages;
    return SQLITE_OK;
}

static int push_quick_check(nl_pusher *p, nl_error *err) {
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(p->db, "PRAGMA main.quick_check(1)", -1, &stmt, NULL), code = NL_OK;
    if (rc == SQLITE_OK) rc = sqlite3_step(stmt);
    if (rc != SQLITE_ROW) {
        code = push_unsound(p, rc, err);
    } else {
        const char *found = (const char *)sqlite3_column_text(stmt, 0);
        if (found == NULL || strcmp(found, "ok") != 0) {
            code = nl_fail(err, NL_E_UNSOUND, "the pushed pages would damage the database: %s",
                           found != NULL ? found : "?");
        }
    }
    sqlite3_finalize(stmt);
    return code;
}

/* Rule B7: connections that know the schema look at nothing but the cookie. */
static int push_check_schema(nl_pusher *p, nl_error *err) {
    const int32_t step = (int32_t)(nl_get32(p->head + 40) - nl_get32(p->before + 40));
    uint64_t now = 0;
    int rc = push_schema(p, &now);
    if (rc != SQLITE_OK) return push_unsound(p, rc, err);
    if (step < 0 || (step == 0 && now != p->schema)) {
        return nl_fail(err, NL_E_UNSOUND, "the pushed pages change the schema, and its version does not go on");
    }
    return NL_OK;
}

static int push_check(nl_pusher *p, int check_ms, nl_error *err) {
    int rc = push_look(p);
    if (rc != SQLITE_OK) return push_fail_sqlite(p, rc, err);
    p->deadline = apply_now_ms() + check_ms;
    sqlite3_progress_handler(p->db, PUSH_CHECK_STEPS, push_progress, p);
    p->db->autoCommit = 0; /* the end of a statement is not that of the transaction */
    int code = push_quick_check(p, err);
    if (code == NL_OK) code = push_check_schema(p, err);
    p->db->autoCommit = 1;
    sqlite3_progress_handler(p->db, 0, NULL, NULL);
    return code;
}

/* ------------------------------------------------------------------ the transaction */

static int push_begin_write(nl_pusher *p, int wait_ms) {
    const int64_t deadline = apply_now_ms() + wait_ms;
    for (;;) {
        int rc = apply_injected(NL_FAULT("push.begin"));
        if (rc == SQLITE_OK) rc = sqlite3BtreeBeginTrans(push_btree(p), 1, 0);
        if ((rc & 0xff) != SQLITE_BUSY || apply_now_ms() >= deadline) return rc;
        apply_nap();
    }
}

/* The log and everything this connection knows are as they were. The wal-index first: SQLite's own undo expects no
** frame of page 1 (rule B2). */
static void push_undo(nl_pusher *p) {
    Wal *pWal = push_wal(p);
    if (pWal != NULL && pWal->writeLock) {
        SEH_TRY {
            memcpy(&pWal->hdr, (const void *)walIndexHdr(pWal), sizeof pWal->hdr);
            walCleanupHash(pWal);
        }
        SEH_EXCEPT( ; )
    }
    sqlite3BtreeRollback(push_btree(p), SQLITE_OK, 0);
    pager_reset(push_pager(p));
    sqlite3ResetAllSchemasOfConnection(p->db);
    push_forget_seen(p);
    p->open = 0;
}

int nl_pusher_open(const char *path, nl_key *key, int durable, nl_pusher **out, nl_error *err) {
    nl_pusher *p = sqlite3_malloc64(sizeof *p);
    int rc = SQLITE_NOMEM;
    *out = NULL;
    if (p == NULL) return nl_fail(err, NL_E_NOMEM, "out of memory");
    memset(p, 0, sizeof *p);
    p->forks = nl_forks();
    p->buffer = sqlite3_malloc64(APPLY_WRITE_MAX + 1);
    if (p->buffer == NULL) goto done;
    rc = nl_sealed_connect(path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_PRIVATECACHE, key, &p->db);
    if (rc != SQLITE_OK) goto done;
    sqlite3_wal_autocheckpoint(p->db, 0);
    sqlite3_db_config(p->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    sqlite3_db_config(p->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL); /* the schema it reads is anybody's */
    sqlite3_db_config(p->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    rc = sqlite3_exec(p->db, durable ? "PRAGMA synchronous=FULL" : "PRAGMA synchronous=NORMAL", NULL, NULL, NULL);
done:
    if (rc != SQLITE_OK) {
        rc = p->db != NULL ? push_fail_sqlite(p, rc, err) : nl_fail(err, NL_E_NOMEM, "out of memory");
        nl_pusher_close(p);
        return rc;
    }
    *out = p;
    return NL_OK;
}

void nl_pusher_close(nl_pusher *p) {
    /* An inherited handle is left as it is: closing it would reach into the parent's transaction. */
    if (p == NULL || p->forks != nl_forks()) return;
    nl_pusher_rollback(p);
    sqlite3_close_v2(p->db);
    push_forget_seen(p);
    sqlite3_free(p->buffer);
    sqlite3_free(p);
}

/* Under the write lock: whether the log ends where the push begins, and what it begins with. */
static int push_stand(nl_pusher *p, uint32_t frame, const uint32_t salt[2], nl_error *err) {
    BtShared *shared = push_btree(p)->pBt;
    Wal *wal = push_wal(p);
    if (wal == NULL || shared->nPage == 0 || shared->usableSize != shared->pageSize) {
        return nl_fail(err, NL_E_MISUSE, "the database is not one that a primary has");
    }
    const uint8_t *now = (const uint8_t *)wal->hdr.aSalt;
    if (wal->hdr.mxFrame != frame ||
        (frame != 0 && (nl_get32(now) != salt[0] || nl_get32(now + 4) != salt[1]))) {
        return nl_fail(err, NL_E_POSITION, "the log does not end where the push begins");
    }
    wal->padToSectorBoundary = 0; /* it would repeat the commit frame, and the numbers are the client's */
    p->page_size = shared->pageSize;
    p->pages = shared->nPage;
    memcpy(p->before, shared->pPage1->aData, PUSH_HEADER);
    memcpy(p->head, p->before, PUSH_HEADER);
    p->have_page1 = 0;
    p->db->autoCommit = 0;
    int rc = push_schema(p, &p->schema);
    p->db->autoCommit = 1;
    return rc == SQLITE_OK ? NL_OK : push_fail_sqlite(p, rc, err);
}

int nl_pusher_begin(nl_pusher *p, uint32_t frame, const uint32_t salt[2], int wait_ms, nl_error *err) {
    if (p->forks != nl_forks()) {
        return nl_fail(err, NL_E_MISUSE, "the primary was opened before a fork, by the parent process");
    }
    if (p->open) return nl_fail(err, NL_E_MISUSE, "a push was begun already");
    push_enter(p);
    int rc = push_begin_write(p, wait_ms), code;
    if (rc != SQLITE_OK) {
        code = push_fail_sqlite(p, rc, err);
    } else {
        p->open = 1;
        code = push_stand(p, frame, salt, err);
        if (code != NL_OK) push_undo(p);
    }
    push_leave(p);
    return code;
}

int nl_pusher_frames(nl_pusher *p, const uint8_t *frames, uint32_t n, nl_error *err) {
    if (!p->open) return nl_fail(err, NL_E_MISUSE, "no push was begun");
    if (n == 0) return NL_OK;
    push_enter(p);
    const int first = p->count == 0;
    const uint32_t counted = p->count;
    int rc = push_judge(p, frames, n, err);
    if (rc == NL_OK && p->count != counted + n) rc = nl_fail(err, NL_E_MISUSE, "a transaction ends in the middle");
    if (rc == NL_OK && first) rc = push_open_log(p, frames, err);
    if (rc == NL_OK) rc = push_write(p, frames, n, 0, err);
    push_leave(p);
    return rc;
}

/* (c) and (d). */
static int push_publish(
    nl_pusher *p,
    const uint8_t *frames,     /* from the first commit frame of the push on */
    uint32_t n,
    nl_error *err
) {
    const uint8_t *last = frames + (size_t)(n - 1) * (NL_FRAME_HEADER_SIZE + p->page_size);
    int code = push_write(p, frames, n - 1, 1, err);
    if (code != NL_OK) return code;
    int rc = apply_injected(NL_FAULT("push.commit"));
    if (rc == SQLITE_OK) rc = push_stock_frame(p, last, nl_get32(last + 4));
    if (rc == SQLITE_OK) {
        (void)NL_FAULT("push.committed"); /* published: only a kill makes sense from here on */
        return NL_OK;
    }
    return push_fail_sqlite(p, rc, err);
}

static int push_commit(nl_pusher *p, const uint8_t *frames, uint32_t n, int check_ms, nl_error *err) {
    const size_t step = NL_FRAME_HEADER_SIZE + (size_t)p->page_size;
    Wal *wal = push_wal(p);
    const int first = p->count == 0;
    uint32_t plain = 0; /* frames before the first commit frame: they are written once */
    int rc = push_judge(p, frames, n, err);
    if (rc == NL_OK && p->count != 0) rc = nl_fail(err, NL_E_FORMAT, "the push ends inside a transaction");
    while (rc == NL_OK && nl_get32(frames + plain * step + 4) == 0) plain++;
    if (rc == NL_OK && first) rc = push_open_log(p, frames, err);
    if (rc == NL_OK) rc = push_write(p, frames, plain, 0, err);
    if (rc != NL_OK) return rc;
    const WalIndexHdr marked = wal->hdr;
    frames += plain * step;
    n -= plain;
    rc = push_write(p, frames, n, 0, err); /* (a) */
    if (rc == NL_OK && NL_FAULT("push.unchecked")) rc = push_fail_sqlite(p, SQLITE_IOERR, err);
    if (rc == NL_OK) rc = push_check(p, check_ms, err); /* (b) */
    if (rc != NL_OK) return rc;
    wal->hdr = marked;
    rc = push_publish(p, frames, n, err);
    if (rc != NL_OK) { /* nobody may ever find the commit marks */
        wal->hdr = marked;
        (void)push_write(p, frames, 1, 0, NULL);
    }
    return rc;
}

int nl_pusher_commit(nl_pusher *p, const uint8_t *frames, uint32_t n, int check_ms, nl_error *err) {
    if (!p->open || n == 0) return nl_fail(err, NL_E_MISUSE, "no push was begun, or it has no frames");
    push_enter(p);
    int rc = push_commit(p, frames, n, check_ms, err);
    if (rc != NL_OK) {
        push_undo(p);
    } else {
        sqlite3BtreeCommitPhaseTwo(push_btree(p), 0);
        pager_reset(push_pager(p));
        sqlite3ResetAllSchemasOfConnection(p->db);
        p->open = 0;
    }
    push_leave(p);
    return rc;
}

void nl_pusher_rollback(nl_pusher *p) {
    if (!p->open || p->forks != nl_forks()) return;
    push_enter(p);
    push_undo(p);
    push_leave(p);
}

void nl_pusher_stop(nl_pusher *p) { p->stopped = 1; }
