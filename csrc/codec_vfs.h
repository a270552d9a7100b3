/*
** codec_vfs.h - sealed files under SQLite: what codec_vfs.c, codec_file.c and codec_wal.c share.
**
** SQLite sees a file of whole pages, and a WAL as its own; on disk both are sealed (codec.c). Methods that
** are not about bytes (locks, shared memory, sync) go to the file below, which is SQLite's own VFS's.
*/
#ifndef NL_CODEC_VFS_H
#define NL_CODEC_VFS_H

#include "nl.h"

#include <sqlite3.h>

/* Version, counter of commits, page size, frames, pages, checksum, salts (https://sqlite.org/walformat.html). */
#define NL_INDEX_HEADER_SIZE 48

/* An open sealed database or its WAL. The file below lies behind this in the same memory. */
typedef struct nl_sealed {
    sqlite3_file file;           /* first: what SQLite has */
    sqlite3_file *below;
    struct nl_sealed *main;      /* of a WAL: its database; of a database: itself */
    const char *path;            /* of the database, as SQLite says it */
    uint32_t page_size;          /* 0: an empty file, whose page size is that of the first write */
    uint8_t *scratch;            /* room for NL_SEALED_BATCH sealed frames */
    /* Of a database: */
    nl_codec *codec;             /* NULL with page_size 0 */
    nl_key *key;                 /* the user's, for when the header block has changed; shared */
    uint64_t sequence;           /* of the header block that the codec was made of */
    const char *wal;             /* what SQLite calls the WAL and the journal */
    const char *journal;
    struct nl_sealed *next;      /* in the list of all that are open */
    int unlogged;                /* it was empty: there is nothing that a journal could bring back */
    uint32_t known;              /* pages it has at least, while nobody else may truncate it; 0: unknown */
    int reading;                 /* read locks held: what the file has of pages cannot change meanwhile */
    const volatile uint8_t *index; /* the wal-index, which begins with its header; NULL: not mapped */
    uint8_t sized_at[NL_INDEX_HEADER_SIZE]; /* what that header said when the file had `sized` bytes of pages */
    sqlite3_int64 sized;         /* 0: unknown */
    uint32_t answered;           /* pages that this transaction was told from that */
    uint32_t last;               /* page that was read last; the next one is expected behind it */
    uint8_t *ahead;              /* slots `ahead_first`... as they are in the file; NULL: no room yet */
    uint32_t ahead_first;
    uint32_t ahead_count;        /* 0: none */
    int recovering;              /* this connection reads the WAL from its beginning, all others wait */
    struct nl_sealed *log;       /* the WAL, while it is open */
    /* Of a WAL: */
    char *name;                  /* where it really is */
    uint8_t held[24];            /* header of frame `held_frame`, which waits for its page */
    uint32_t held_frame;         /* 0: none */
    uint8_t *opened;             /* the last whole frame that was read, in clear */
    uint32_t opened_frame;       /* its number; 0: none */
    int broken;                  /* a header could not be written when nobody could be told */
} nl_sealed;

#define NL_SEALED_BATCH 16
#define NL_SEALED_AHEAD 8        /* slots read in one call by who reads page after page */

/* How many units of so many bytes, at most `most`, go to SQLite's own VFS in one call: it takes 17 bits of
** size and ignores the others. */
static inline uint32_t nl_sealed_at_once(sqlite3_int64 unit, uint32_t most)
{
    const uint32_t fit = (uint32_t)(0x1ffff / unit);

    return fit < most ? fit : most;
}

/* With what the databases that this thread opens next are sealed. */
typedef struct nl_sealing {
    nl_key *key;                 /* NULL: they are plain */
    uint32_t page_size;          /* of new ones */
    int empty;                   /* new ones get no page 1: VACUUM INTO wants to find nothing */
    int existing;                /* nothing is created, not even in an empty file: it was something else */
} nl_sealing;

/* Says so to "nearlite-sealed", on this thread, until the next call. Answers what was said before. */
const nl_sealing *nl_sealing_with(const nl_sealing *with);
/* What a failing call of SQLite's was about, if it was about a seal: fills *err, answers its code or NL_OK.
** Once. Of this thread. */
int nl_sealed_failure(nl_error *err);
/* The same of the call that answered `rc`: an older failure, of one that went well after all, stays unsaid. */
int nl_sealed_explain(int rc, nl_error *err);

/* sqlite3_open_v2 of an existing database, with a key, or without one of a plain file. */
int nl_sealed_connect(const char *path, int flags, nl_key *key, sqlite3 **out);

/* Keeps what SQLite's result codes cannot say for nl_sealed_failure(). Answers `rc`. */
int nl_sealed_fail(int rc, const nl_error *why, const nl_sealed *where);
int nl_sealed_refuse(int rc, const nl_sealed *where, const char *what);

/* Whether the main database of a connection was opened by "nearlite-sealed": a URI may name another VFS. */
int nl_sealed_is(sqlite3 *db);

/* The file as it lies on the disk: of a plain one itself. */
sqlite3_file *nl_sealed_below(sqlite3_file *file);

/* The header block is looked at again: if another process has changed the key meanwhile, the codec is made anew.
** Of a database. Fails when its key opens the file no more. */
int nl_sealed_reload(nl_sealed *f);
/* What a page or a frame that does not open means, once the newest keys are at hand. 1: try again. */
int nl_sealed_again(nl_sealed *main, nl_error *why);

/* For nl_report_take(): a broken frame was taken for the end of the log, and so many of the same log follow it. */
void nl_sealed_report(const nl_sealed *main, uint32_t frame, uint32_t follow);

/* Slots of the database (codec_file.c). nl_sealed_room allocates f->scratch for its page size. */
int nl_sealed_room(nl_sealed *f);
int nl_sealed_main_read(nl_sealed *f, void *out, int n, sqlite3_int64 at);
int nl_sealed_main_write(nl_sealed *f, const void *in, int n, sqlite3_int64 at);
int nl_sealed_main_truncate(nl_sealed *f, sqlite3_int64 size);
int nl_sealed_main_size(nl_sealed *f, sqlite3_int64 *size);

/* Frames of the WAL (codec_wal.c). */
int nl_sealed_wal_read(nl_sealed *f, void *out, int n, sqlite3_int64 at);
int nl_sealed_wal_write(nl_sealed *f, const void *in, int n, sqlite3_int64 at);
int nl_sealed_wal_truncate(nl_sealed *f, sqlite3_int64 size);
int nl_sealed_wal_size(nl_sealed *f, sqlite3_int64 *size);
int nl_sealed_wal_flush(nl_sealed *f);

/* A new database, complete: block and page 1, of a database in WAL mode without tables (codec_create.c).
** SQLITE_OK as well if somebody else was first. */
int nl_sealed_create(const char *path, const nl_sealing *with);
/* The same into an empty file that is open and locked. */
int nl_sealed_create_in(sqlite3_file *file, const char *path, const nl_sealing *with);

/* Registers the VFSes, as SQLite's default and as "nearlite-sealed". Answers SQLite's result. */
int nl_codec_vfs_install(void);

#endif
