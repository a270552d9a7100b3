/*
** codec_vfs.c - two VFSes over SQLite's own: "nearlite", the default, which knows a sealed file when it sees
** one and refuses it, and "nearlite-sealed", which opens them.
**
** **Plain files** get SQLite's own methods: the file object is theirs, nothing lies between.
**
** **Sealed ones fail closed.** On a connection that was opened with a key, a database is sealed, or was said
** to be plain (nl_sealing_with); a WAL belongs to one of those; everything else that SQLite may want to
** write - journals, temporary files - is refused. Temporary tables and sorts are in memory (temp_store), and a
** sealed database is always in WAL mode.
**
** The WAL is named <db>-nlwal: another SQLite that opens a sealed file finds no database, and when it closes
** it, would delete what it takes for the WAL of an empty one (rule D1). A -journal beside it is never played
** back: we write none, so it is somebody else's.
*/
#include "codec_vfs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "fault.h"
#include "key.h"

static sqlite3_vfs *vfs_below;
static sqlite3_vfs vfs_plain, vfs_sealed;

static nl_sealed *vfs_open;      /* all sealed databases of the process, under vfs_lock() */

/* One of SQLite's mutexes, because ofd.c sees to those around fork(). */
static void vfs_lock(void)
{
    sqlite3_mutex_enter(sqlite3_mutex_alloc(SQLITE_MUTEX_STATIC_APP3));
}

static void vfs_unlock(void)
{
    sqlite3_mutex_leave(sqlite3_mutex_alloc(SQLITE_MUTEX_STATIC_APP3));
}

/* ------------------------------------------------------------------ beside the result codes */

static _Thread_local nl_error vfs_failure;
static _Thread_local int vfs_failure_rc; /* what SQLite was told meanwhile */
static _Thread_local const nl_sealing *vfs_sealing;

const nl_sealing *nl_sealing_with(const nl_sealing *with)
{
    const nl_sealing *before = vfs_sealing;

    vfs_sealing = with;
    vfs_failure.code = NL_OK;
    return before;
}

int nl_sealed_failure(nl_error *err)
{
    const int code = vfs_failure.code;

    if (code != NL_OK && err) *err = vfs_failure;
    vfs_failure.code = NL_OK;
    return code;
}

int nl_sealed_explain(int rc, nl_error *err)
{
    const int told = rc > 0xff ? ~0 : 0xff; /* a plain code says less than the failure's own */

    if (vfs_failure.code == NL_OK || ((rc ^ vfs_failure_rc) & told) != 0) return NL_OK;
    return nl_sealed_failure(err);
}

static int vfs_fail(int rc, int code, const char *path, const char *what)
{
    vfs_failure_rc = rc;
    nl_fail(&vfs_failure, code, "%s %s", path ? path : "a temporary file", what);
    return rc;
}

int nl_sealed_fail(int rc, const nl_error *why, const nl_sealed *where)
{
    vfs_failure_rc = rc;
    nl_fail(&vfs_failure, why->code, "%s: %s", where->path, why->text);
    vfs_failure.os_errno = why->os_errno;
    vfs_failure.page = why->page;
    vfs_failure.frame = why->frame;
    return rc;
}

int nl_sealed_refuse(int rc, const nl_sealed *where, const char *what)
{
    vfs_failure_rc = rc;
    nl_fail(&vfs_failure, NL_E_MISUSE, "%s: %s", where->path, what);
    return rc;
}

/* ------------------------------------------------------------------ reports */

enum { REPORTS = 8 }; /* that wait; more are of the same trouble */

static char vfs_reports[REPORTS][NL_REPORT_MAX];
static int64_t vfs_report_count; /* atomic; both under vfs_lock() to change */

void nl_sealed_report(const nl_sealed *f, uint32_t frame, uint32_t follow)
{
    char *line;

    vfs_lock();
    if (vfs_report_count < REPORTS) {
        line = vfs_reports[vfs_report_count];
        if (follow > 0) {
            snprintf(line, NL_REPORT_MAX, "%s: the log ends before frame %u, whose seal is broken; %u frames of the same"
                     " log follow it, and what was committed by them is lost", f->path, frame, follow);
        } else {
            snprintf(line, NL_REPORT_MAX, "%s: the log ends before frame %u, its last, whose seal is broken: it was being"
                     " written when its process or machine stopped, or was damaged", f->path, frame);
        }
        __atomic_store_n(&vfs_report_count, vfs_report_count + 1, __ATOMIC_RELEASE);
    }
    vfs_unlock();
}

int64_t nl_reports(void)
{
    return __atomic_load_n(&vfs_report_count, __ATOMIC_ACQUIRE);
}

int nl_report_take(char out[NL_REPORT_MAX])
{
    vfs_lock();
    const int found = vfs_report_count > 0;
    if (found) {
        memcpy(out, vfs_reports[0], NL_REPORT_MAX);
        memmove(vfs_reports[0], vfs_reports[1], sizeof vfs_reports - NL_REPORT_MAX);
        __atomic_store_n(&vfs_report_count, vfs_report_count - 1, __ATOMIC_RELEASE);
    }
    vfs_unlock();
    return found;
}

/* ------------------------------------------------------------------ the list */

enum { OTHER, WAL, JOURNAL, NO_JOURNAL };

/* What a name is to the sealed databases that are open. NO_JOURNAL: of one that needs none. */
static int vfs_role(const char *name)
{
    int role = OTHER;

    vfs_lock();
    for (const nl_sealed *f = vfs_open; name && f && role == OTHER; f = f->next) {
        if (f->wal && strcmp(name, f->wal) == 0) role = WAL;
        if (f->journal && strcmp(name, f->journal) == 0) role = f->unlogged ? NO_JOURNAL : JOURNAL;
    }
    vfs_unlock();
    return role;
}

/* The database whose WAL this is, of the very connection that asks: SQLite passes its own string. */
static nl_sealed *vfs_find_own(const char *name)
{
    nl_sealed *f;

    vfs_lock();
    for (f = vfs_open; f && f->wal != name; f = f->next) {}
    vfs_unlock();
    return f;
}

static void vfs_enlist(nl_sealed *f)
{
    vfs_lock();
    f->next = vfs_open;
    vfs_open = f;
    vfs_unlock();
}

static void vfs_delist(nl_sealed *f)
{
    vfs_lock();
    for (nl_sealed **p = &vfs_open; *p; p = &(*p)->next) {
        if (*p != f) continue;
        *p = f->next;
        break;
    }
    vfs_unlock();
}

/* <db>-wal to <db>-nlwal, or NULL without memory. */
static char *vfs_wal_name(const char *wal)
{
    const size_t n = strlen(wal);

    return n < 4 ? NULL : sqlite3_mprintf("%.*s-nlwal", (int)(n - 4), wal);
}

/* ------------------------------------------------------------------ when the key is changed */

#define VFS_CHANGED "its key has been changed: open it with the new one"

/* What SQLite's read would answer had it failed. */
static int vfs_read_block(nl_sealed *f, uint8_t *block)
{
    if (NL_FAULT("codec.reload")) return SQLITE_IOERR_READ;
    return f->below->pMethods->xRead(f->below, block, NL_BLOCK_SIZE, 0);
}

int nl_sealed_reload(nl_sealed *f)
{
    uint8_t block[NL_BLOCK_SIZE];
    nl_codec *codec;
    nl_block what;
    nl_error why;

    if (!f->codec) return SQLITE_OK; /* an empty file */
    int rc = vfs_read_block(f, block);
    if (rc != SQLITE_OK) return rc;
    if (nl_block_look(block, &what, &why) != NL_OK) return nl_sealed_fail(SQLITE_IOERR_CODEC, &why, f);
    if (what.sequence == f->sequence) return SQLITE_OK;
    if (nl_codec_open(block, f->key, &codec, &why) != NL_OK) {
        if (why.code == NL_E_KEY) nl_fail(&why, NL_E_KEY, VFS_CHANGED);
        return nl_sealed_fail(SQLITE_IOERR_CODEC, &why, f);
    }
    if (!nl_codec_same_file(codec, f->codec)) {
        nl_codec_free(codec); /* buffers are of the page size that the file had when it was opened */
        nl_fail(&why, NL_E_TAG, "another file has been put in its place");
        return nl_sealed_fail(SQLITE_IOERR_CODEC, &why, f);
    }
    nl_codec_free(f->codec);
    f->codec = codec;
    f->sequence = what.sequence;
    f->ahead_count = 0;
    return SQLITE_OK;
}

/* The header block could not be read. */
static void vfs_unread(nl_sealed *f, int rc, nl_error *why)
{
    int errnum = 0;

    f->below->pMethods->xFileControl(f->below, SQLITE_FCNTL_LAST_ERRNO, &errnum);
    nl_fail_os(why, rc == SQLITE_IOERR_NOMEM ? ENOMEM : errnum ? errnum : EIO, "reading the header block");
}

int nl_sealed_again(nl_sealed *f, nl_error *why)
{
    const uint64_t before = f->sequence;

    if (why->code != NL_E_KEY) return 0;
    vfs_failure.code = NL_OK;
    int rc = nl_sealed_reload(f);
    if (rc != SQLITE_OK) {
        /* Nobody knows then whether it has been changed. */
        if (nl_sealed_failure(why) == NL_OK) vfs_unread(f, rc, why);
        if (why->code == NL_E_KEY) nl_fail(why, NL_E_KEY, VFS_CHANGED); /* whose it is will be said once more */
        return 0;
    }
    if (f->sequence != before) return 1;
    why->code = NL_E_TAG; /* nobody has the key that its key id names */
    return 0;
}

/* Who may write next seals with the newest key: eight bytes of each copy of the block say whether that is ours. */
static int vfs_up_to_date(nl_sealed *f)
{
    uint8_t at[2][8];

    for (int i = 0; i < 2; i++) {
        int rc = f->below->pMethods->xRead(f->below, at[i], sizeof at[i], i * (NL_BLOCK_SIZE / 2) + 48);
        if (rc != SQLITE_OK) return rc;
    }
    const uint64_t one = nl_get64(at[0]), two = nl_get64(at[1]);
    return (one > two ? one : two) == f->sequence ? SQLITE_OK : nl_sealed_reload(f);
}

/* ------------------------------------------------------------------ methods of sealed files */

static nl_sealed *vfs_of(sqlite3_file *file)
{
    return (nl_sealed *)(void *)file;
}

static void vfs_release(nl_sealed *f)
{
    if (f->main == f) {
        nl_key_free(f->key);
        nl_codec_free(f->codec);
        free(f->scratch);
        free(f->ahead);
    }
    sqlite3_free(f->opened);
    sqlite3_free(f->name);
    f->file.pMethods = NULL;
}

static int main_close(sqlite3_file *file)
{
    nl_sealed *f = vfs_of(file);

    vfs_delist(f);
    int rc = f->below->pMethods->xClose(f->below);
    vfs_release(f);
    return rc;
}

static int wal_close(sqlite3_file *file)
{
    nl_sealed *f = vfs_of(file);

    f->main->log = NULL;
    int rc = f->below->pMethods->xClose(f->below);
    vfs_release(f);
    return rc;
}

static int main_read(sqlite3_file *file, void *out, int n, sqlite3_int64 at)
{
    return nl_sealed_main_read(vfs_of(file), out, n, at);
}

static int main_write(sqlite3_file *file, const void *in, int n, sqlite3_int64 at)
{
    return nl_sealed_main_write(vfs_of(file), in, n, at);
}

static int main_truncate(sqlite3_file *file, sqlite3_int64 size)
{
    return nl_sealed_main_truncate(vfs_of(file), size);
}

static const uint8_t *vfs_index(const nl_sealed *f)
{
    return (const uint8_t *)(uintptr_t)f->index;
}

/* Once the header has said anything else it never counts again: an index that is recovered begins as it did. */
static int vfs_still_sized(nl_sealed *f)
{
    if (f->sized && memcmp(vfs_index(f), f->sized_at, NL_INDEX_HEADER_SIZE) != 0) f->sized = 0;
    return f->sized != 0;
}

/* SQLite asks at the beginning of every transaction while the log has no frames, which is a tenth of a short
** one. The file is changed by checkpoints, and there is nothing to checkpoint until somebody commits, which
** changes the header of the wal-index: by the same header SQLite knows whether its cache is still true. */
static int main_size(sqlite3_file *file, sqlite3_int64 *size)
{
    nl_sealed *f = vfs_of(file);
    uint8_t now[NL_INDEX_HEADER_SIZE];
    uint32_t frames, pages;

    if (!f->index || f->reading == 0) return nl_sealed_main_size(f, size);
    if (vfs_still_sized(f)) {
        *size = f->sized;
        f->answered = (uint32_t)(f->sized / f->page_size);
        return SQLITE_OK;
    }
    memcpy(now, vfs_index(f), sizeof now);
    int rc = nl_sealed_main_size(f, size);
    memcpy(&frames, now + 16, sizeof frames);
    memcpy(&pages, now + 20, sizeof pages);
    const int empty = rc == SQLITE_OK && frames == 0 && pages == 0;
    memcpy(f->sized_at, now, sizeof now);
    f->sized = empty ? *size : 0;
    vfs_still_sized(f);
    return rc;
}

static int wal_read(sqlite3_file *file, void *out, int n, sqlite3_int64 at)
{
    return nl_sealed_wal_read(vfs_of(file), out, n, at);
}

static int wal_write(sqlite3_file *file, const void *in, int n, sqlite3_int64 at)
{
    return nl_sealed_wal_write(vfs_of(file), in, n, at);
}

static int wal_truncate(sqlite3_file *file, sqlite3_int64 size)
{
    return nl_sealed_wal_truncate(vfs_of(file), size);
}

static int wal_size(sqlite3_file *file, sqlite3_int64 *size)
{
    return nl_sealed_wal_size(vfs_of(file), size);
}

static int main_sync(sqlite3_file *file, int flags)
{
    nl_sealed *f = vfs_of(file);

    return f->below->pMethods->xSync(f->below, flags);
}

static int wal_sync(sqlite3_file *file, int flags)
{
    nl_sealed *f = vfs_of(file);
    int rc = nl_sealed_wal_flush(f);

    return rc == SQLITE_OK ? f->below->pMethods->xSync(f->below, flags) : rc;
}

static int main_lock(sqlite3_file *file, int level)
{
    nl_sealed *f = vfs_of(file);

    f->known = 0;
    return f->below->pMethods->xLock(f->below, level);
}

static int main_unlock(sqlite3_file *file, int level)
{
    nl_sealed *f = vfs_of(file);

    return f->below->pMethods->xUnlock(f->below, level);
}

static int main_reserved(sqlite3_file *file, int *out)
{
    nl_sealed *f = vfs_of(file);

    return f->below->pMethods->xCheckReservedLock(f->below, out);
}

static int main_sector(sqlite3_file *file)
{
    nl_sealed *f = vfs_of(file);

    return f->below->pMethods->xSectorSize(f->below);
}

static int main_characteristics(sqlite3_file *file)
{
    (void)file;
    /* Whatever the file below could do besides is not true of slots. */
    return SQLITE_IOCAP_POWERSAFE_OVERWRITE | SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN;
}

static int main_shm_map(sqlite3_file *file, int region, int size, int extend, void volatile **out)
{
    nl_sealed *f = vfs_of(file);

    int rc = f->below->pMethods->xShmMap(f->below, region, size, extend, out);
    if (rc == SQLITE_OK && region == 0) f->index = *out;
    return rc;
}

static int main_shm_lock(sqlite3_file *file, int offset, int n, int flags)
{
    /* WAL_WRITE_LOCK is 0; all of them part of the file format: https://sqlite.org/walformat.html */
    enum { CHECKPOINT = 1, RECOVER = 2, READ = 3 };
    nl_sealed *f = vfs_of(file);
    int rc = f->below->pMethods->xShmLock(f->below, offset, n, flags);

    if (rc == SQLITE_OK && (flags & SQLITE_SHM_EXCLUSIVE) && offset <= RECOVER && RECOVER < offset + n) {
        f->recovering = (flags & SQLITE_SHM_LOCK) != 0;
    }
    if (rc == SQLITE_OK && flags == (SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE) && offset <= CHECKPOINT) {
        rc = vfs_up_to_date(f);
        if (rc != SQLITE_OK) f->below->pMethods->xShmLock(f->below, offset, n, SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE);
        if (rc != SQLITE_OK) f->recovering = 0;
    }
    if (rc == SQLITE_OK && (flags & SQLITE_SHM_SHARED) && offset >= READ) {
        f->reading += flags & SQLITE_SHM_LOCK ? 1 : -1;
        f->ahead_count = f->answered = 0;
        vfs_still_sized(f);
    }
    return rc;
}

static void main_shm_barrier(sqlite3_file *file)
{
    nl_sealed *f = vfs_of(file);

    /* What is published next must be in the file. */
    if (f->log && f->log->held_frame && nl_sealed_wal_flush(f->log) != SQLITE_OK) f->log->broken = 1;
    f->below->pMethods->xShmBarrier(f->below);
}

static int main_shm_unmap(sqlite3_file *file, int remove)
{
    nl_sealed *f = vfs_of(file);

    f->index = NULL;
    f->sized = 0;
    return f->below->pMethods->xShmUnmap(f->below, remove);
}

/* ------------------------------------------------------------------ what is asked of a file */

/* SQLite takes whatever it does not know for some level, 7 and 00 for OFF. */
static int vfs_pragma_syncs(const char *value)
{
    static const char *const levels[] = {"normal", "full", "extra", "1", "2", "3", "on", "yes", "true"};

    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        if (!sqlite3_stricmp(value, levels[i])) return 1;
    }
    return 0;
}

/* Why a setting would take the seal off something, or NULL. */
static const char *vfs_pragma_refused(const char *name, const char *value)
{
    if (!value) return NULL;
    if (!sqlite3_stricmp(name, "journal_mode") && sqlite3_stricmp(value, "wal")) {
        return "a sealed database stays in WAL mode: a journal would not be sealed";
    }
    if (!sqlite3_stricmp(name, "temp_store") && sqlite3_stricmp(value, "memory") && strcmp(value, "2")) {
        return "with a sealed database temporary data stays in memory: files would not be sealed";
    }
    if (!sqlite3_stricmp(name, "synchronous") && !vfs_pragma_syncs(value)) {
        return "a sealed database takes synchronous=NORMAL, FULL or EXTRA: a page torn by a crash could not be opened again";
    }
    if (!sqlite3_stricmp(name, "locking_mode") && !sqlite3_stricmp(value, "exclusive")) {
        return "a sealed database does not take locking_mode=EXCLUSIVE";
    }
    return NULL;
}

static int vfs_pragma(char **arguments)
{
    const char *refused = vfs_pragma_refused(arguments[1], arguments[2]);

    if (!refused) return SQLITE_NOTFOUND;
    arguments[0] = sqlite3_mprintf("%s", refused);
    return SQLITE_ERROR;
}

static int main_control(sqlite3_file *file, int op, void *arg)
{
    nl_sealed *f = vfs_of(file);

    switch (op) {
    case SQLITE_FCNTL_PRAGMA:
        return vfs_pragma(arg);
    case SQLITE_FCNTL_MMAP_SIZE:
        *(sqlite3_int64 *)arg = 0;
        return SQLITE_OK;
    case SQLITE_FCNTL_SIZE_HINT: /* sizes of SQLite's, not of the file's */
    case SQLITE_FCNTL_CHUNK_SIZE:
    case SQLITE_FCNTL_POWERSAFE_OVERWRITE:
        return SQLITE_OK;
    case SQLITE_FCNTL_BEGIN_ATOMIC_WRITE:
    case SQLITE_FCNTL_COMMIT_ATOMIC_WRITE:
    case SQLITE_FCNTL_ROLLBACK_ATOMIC_WRITE:
        return SQLITE_NOTFOUND;
    case SQLITE_FCNTL_CKPT_START:
        f->known = 0;
        break;
    default:
        break;
    }
    return f->below->pMethods->xFileControl(f->below, op, arg);
}

/* Without xFetch and xUnfetch: nothing is mapped. */
static const sqlite3_io_methods main_methods = {
    .iVersion = 2, .xClose = main_close, .xRead = main_read, .xWrite = main_write, .xTruncate = main_truncate,
    .xSync = main_sync, .xFileSize = main_size, .xLock = main_lock, .xUnlock = main_unlock,
    .xCheckReservedLock = main_reserved, .xFileControl = main_control, .xSectorSize = main_sector,
    .xDeviceCharacteristics = main_characteristics, .xShmMap = main_shm_map, .xShmLock = main_shm_lock,
    .xShmBarrier = main_shm_barrier, .xShmUnmap = main_shm_unmap,
};
static const sqlite3_io_methods wal_methods = {
    .iVersion = 1, .xClose = wal_close, .xRead = wal_read, .xWrite = wal_write, .xTruncate = wal_truncate,
    .xSync = wal_sync, .xFileSize = wal_size, .xLock = main_lock, .xUnlock = main_unlock,
    .xCheckReservedLock = main_reserved, .xFileControl = main_control, .xSectorSize = main_sector,
    .xDeviceCharacteristics = main_characteristics,
};

/* ------------------------------------------------------------------ a journal that keeps nothing */

/* VACUUM INTO opens one for its target, which had no page before: no page is ever written to it. */

static int null_close(sqlite3_file *file)
{
    file->pMethods = NULL;
    return SQLITE_OK;
}

static int null_read(sqlite3_file *file, void *out, int n, sqlite3_int64 at)
{
    (void)file, (void)at;
    memset(out, 0, (size_t)n);
    return SQLITE_IOERR_SHORT_READ;
}

static int null_write(sqlite3_file *file, const void *in, int n, sqlite3_int64 at)
{
    (void)file, (void)in, (void)n, (void)at;
    return SQLITE_OK;
}

static int null_truncate(sqlite3_file *file, sqlite3_int64 size)
{
    (void)file, (void)size;
    return SQLITE_OK;
}

static int null_sync(sqlite3_file *file, int flags)
{
    (void)file, (void)flags;
    return SQLITE_OK;
}

static int null_size(sqlite3_file *file, sqlite3_int64 *size)
{
    (void)file;
    *size = 0;
    return SQLITE_OK;
}

static int null_lock(sqlite3_file *file, int level)
{
    (void)file, (void)level;
    return SQLITE_OK;
}

static int null_reserved(sqlite3_file *file, int *out)
{
    (void)file;
    *out = 0;
    return SQLITE_OK;
}

static int null_control(sqlite3_file *file, int op, void *arg)
{
    (void)file, (void)op, (void)arg;
    return SQLITE_NOTFOUND;
}

static int null_sector(sqlite3_file *file)
{
    (void)file;
    return 4096;
}

static const sqlite3_io_methods null_methods = {
    .iVersion = 1, .xClose = null_close, .xRead = null_read, .xWrite = null_write, .xTruncate = null_truncate,
    .xSync = null_sync, .xFileSize = null_size, .xLock = null_lock, .xUnlock = null_lock,
    .xCheckReservedLock = null_reserved, .xFileControl = null_control, .xSectorSize = null_sector,
    .xDeviceCharacteristics = main_characteristics,
};

/* ------------------------------------------------------------------ opening */

/* Another process may be at it, too, or have the empty file open for something else. */
static int vfs_fill_empty(nl_sealed *f, const nl_sealing *with)
{
    sqlite3_int64 size = 0;
    int rc = f->below->pMethods->xLock(f->below, SQLITE_LOCK_SHARED);

    if (rc == SQLITE_OK) rc = f->below->pMethods->xLock(f->below, SQLITE_LOCK_EXCLUSIVE);
    if (rc == SQLITE_OK) rc = f->below->pMethods->xFileSize(f->below, &size);
    if (rc == SQLITE_OK && size == 0) rc = nl_sealed_create_in(f->below, f->path, with);
    f->below->pMethods->xUnlock(f->below, SQLITE_LOCK_NONE);
    return rc;
}

static int vfs_unlock_block(nl_sealed *f, const nl_sealing *with)
{
    uint8_t block[NL_BLOCK_SIZE];
    sqlite3_int64 size = 0;
    nl_error why;

    int rc = f->below->pMethods->xFileSize(f->below, &size);
    if (rc == SQLITE_OK && size == 0 && with->empty) {
        f->unlogged = 1;
        return SQLITE_OK;
    }
    if (rc == SQLITE_OK && size == 0 && with->existing) {
        return vfs_fail(SQLITE_NOTADB, NL_E_FORMAT, f->path, "is empty: there is no sealed database in it");
    }
    if (rc == SQLITE_OK && size == 0) rc = vfs_fill_empty(f, with);
    if (rc == SQLITE_OK) rc = f->below->pMethods->xRead(f->below, block, sizeof block, 0);
    if (rc != SQLITE_OK && rc != SQLITE_IOERR_SHORT_READ) return rc;
    if (memcmp(block, "SQLite format 3", 16) == 0) {
        return vfs_fail(SQLITE_NOTADB, NL_E_KEY, f->path, "is not sealed: open it without a key, or seal it first");
    }
    if (nl_codec_open(block, with->key, &f->codec, &why) != NL_OK) return nl_sealed_fail(SQLITE_NOTADB, &why, f);
    nl_block what;
    if (nl_block_look(block, &what, &why) == NL_OK) f->sequence = what.sequence;
    f->page_size = nl_codec_page_size(f->codec);
    rc = nl_sealed_main_size(f, &size);
    if (rc != SQLITE_OK) return rc;
    /* It had one when it was made. To SQLite it would be an empty database, and in order. */
    if (size == 0) return vfs_fail(SQLITE_NOTADB, NL_E_FORMAT, f->path, "is damaged: it ends before its first page does");
    return nl_sealed_room(f);
}

static int vfs_open_main(nl_sealed *f, const char *name, int flags, int *out, const nl_sealing *with)
{
    int exists = 1, rc = SQLITE_OK;

    if ((flags & SQLITE_OPEN_CREATE) && !with->empty) {
        rc = vfs_below->xAccess(vfs_below, name, SQLITE_ACCESS_EXISTS, &exists);
        /* SQLite's xAccess takes an empty file for none. */
        if (rc == SQLITE_OK && !exists) rc = nl_sealed_create(name, with);
    }
    if (rc == SQLITE_OK) rc = vfs_below->xOpen(vfs_below, name, f->below, flags, out);
    if (rc != SQLITE_OK) return rc;
    f->main = f;
    f->path = name;
    f->key = nl_key_share(with->key);
    f->wal = sqlite3_filename_wal(name);
    f->journal = sqlite3_filename_journal(name);
    rc = vfs_unlock_block(f, with);
    if (rc != SQLITE_OK) {
        f->below->pMethods->xClose(f->below);
        vfs_release(f);
        return rc;
    }
    f->file.pMethods = &main_methods;
    vfs_enlist(f);
    return SQLITE_OK;
}

static int vfs_open_wal(nl_sealed *f, nl_sealed *database, const char *name, int flags, int *out)
{
    f->name = vfs_wal_name(name);
    f->main = database;
    f->page_size = database->page_size;
    f->scratch = database->scratch;
    f->opened = sqlite3_malloc64(NL_FRAME_HEADER_SIZE + (sqlite3_uint64)f->page_size);
    int rc = f->name && f->opened ? SQLITE_OK : SQLITE_NOMEM;
    if (rc == SQLITE_OK) rc = vfs_below->xOpen(vfs_below, f->name, f->below, flags, out);
    if (rc != SQLITE_OK) {
        vfs_release(f);
        return rc;
    }
    f->file.pMethods = &wal_methods;
    database->log = f;
    return SQLITE_OK;
}

static int vfs_is_sealed(sqlite3_file *file)
{
    uint8_t first[16];

    return file->pMethods->xRead(file, first, sizeof first, 0) == SQLITE_OK && nl_block_is_sealed(first);
}

/* A plain file: the object becomes SQLite's own. */
static int vfs_open_plain(const char *name, sqlite3_file *file, int flags, int *out)
{
    int rc = vfs_below->xOpen(vfs_below, name, file, flags, out);

    if (rc != SQLITE_OK || !(flags & SQLITE_OPEN_MAIN_DB) || !vfs_is_sealed(file)) return rc;
    file->pMethods->xClose(file);
    file->pMethods = NULL;
    return vfs_fail(SQLITE_NOTADB, NL_E_KEY, name, "is sealed: it takes its key to open it");
}

static int plain_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out)
{
    (void)vfs;
    return vfs_open_plain(name, file, flags, out);
}

static int sealed_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out)
{
    nl_sealed *f = vfs_of(file);
    const nl_sealing *with = vfs_sealing;

    (void)vfs;
    memset(f, 0, sizeof *f);
    f->below = (sqlite3_file *)(void *)(f + 1);
    f->below->pMethods = NULL;
    if (flags & SQLITE_OPEN_MAIN_DB) {
        if (!with) return vfs_fail(SQLITE_CANTOPEN, NL_E_KEY, name, "was to be opened without saying with which key");
        if (!with->key) return vfs_open_plain(name, file, flags, out);
        return vfs_open_main(f, name, flags, out, with);
    }
    if (flags & SQLITE_OPEN_WAL) {
        nl_sealed *database = vfs_find_own(name);
        if (database) return vfs_open_wal(f, database, name, flags, out);
    }
    const int role = vfs_role(name);
    if ((flags & (SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL)) && role == OTHER) {
        return vfs_open_plain(name, file, flags, out); /* of a plain file that was attached as such */
    }
    if ((flags & SQLITE_OPEN_MAIN_JOURNAL) && role == NO_JOURNAL) {
        file->pMethods = &null_methods;
        return SQLITE_OK;
    }
    return vfs_fail(SQLITE_CANTOPEN, NL_E_MISUSE, name, "would have been written without a seal");
}

static int sealed_delete(sqlite3_vfs *vfs, const char *name, int sync)
{
    const int role = vfs_role(name);

    (void)vfs;
    if (role == JOURNAL || role == NO_JOURNAL) return SQLITE_OK; /* never there, or somebody else's */
    if (role == OTHER) return vfs_below->xDelete(vfs_below, name, sync);
    char *real = vfs_wal_name(name);
    if (!real) return SQLITE_NOMEM;
    int rc = vfs_below->xDelete(vfs_below, real, sync);
    sqlite3_free(real);
    return rc;
}

static int sealed_access(sqlite3_vfs *vfs, const char *name, int flags, int *out)
{
    const int role = vfs_role(name);

    (void)vfs;
    *out = 0;
    if (role == JOURNAL || role == NO_JOURNAL) return SQLITE_OK;
    if (role == OTHER) return vfs_below->xAccess(vfs_below, name, flags, out);
    char *real = vfs_wal_name(name);
    if (!real) return SQLITE_NOMEM;
    int rc = vfs_below->xAccess(vfs_below, real, flags, out);
    sqlite3_free(real);
    return rc;
}

int nl_sealed_connect(const char *path, int flags, nl_key *key, sqlite3 **out)
{
    const nl_sealing with = {.key = key, .existing = 1};
    const nl_sealing *outer = nl_sealing_with(key ? &with : NULL);
    int rc = sqlite3_open_v2(path, out, flags, key ? "nearlite-sealed" : NULL);

    vfs_sealing = outer; /* and what was said about a failure stays said */
    return rc;
}

sqlite3_file *nl_sealed_below(sqlite3_file *file)
{
    return file->pMethods == &wal_methods || file->pMethods == &main_methods ? vfs_of(file)->below : file;
}

int nl_sealed_is(sqlite3 *db)
{
    sqlite3_vfs *vfs = NULL;

    return sqlite3_file_control(db, "main", SQLITE_FCNTL_VFS_POINTER, &vfs) == SQLITE_OK && vfs == &vfs_sealed;
}

/* ------------------------------------------------------------------ installing */

int nl_codec_vfs_install(void)
{
    vfs_below = sqlite3_vfs_find(NULL);
    if (!vfs_below) return SQLITE_ERROR;
    vfs_plain = *vfs_below;
    vfs_plain.pNext = NULL;
    vfs_plain.zName = "nearlite";
    vfs_plain.xOpen = plain_open;
    vfs_sealed = vfs_plain;
    vfs_sealed.zName = "nearlite-sealed";
    vfs_sealed.szOsFile = (int)sizeof(nl_sealed) + vfs_below->szOsFile;
    vfs_sealed.xOpen = sealed_open;
    vfs_sealed.xDelete = sealed_delete;
    vfs_sealed.xAccess = sealed_access;
    int rc = sqlite3_vfs_register(&vfs_plain, 1);
    return rc == SQLITE_OK ? sqlite3_vfs_register(&vfs_sealed, 0) : rc;
}
