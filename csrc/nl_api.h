/*
** nl_api.h - everything that crosses between C and Python, declared once.
**
** This file is included by our C through nl.h and fed verbatim to cffi's cdef(), therefore it
** holds no preprocessor directive but "#define NAME literal" and no include guard (nl.h has it).
**
** Conventions
**   int        every fallible function answers NL_OK (0) or one of NL_E_*; *err is filled on failure
**   pages      uint32_t, numbered from 1;  frames: uint32_t, numbered from 1 within a generation
**   sizes      size_t bytes unless the name says pages or frames
**   threads    a handle belongs to one thread at a time (callers serialise); functions marked
**              [any thread] may be called while another thread is inside the same handle
**   GIL        released by cffi around every call; Python is called back by what a program has defined
**              (callbacks.c, direct.c), and so that signal handlers run in long calls
*/

/* ------------------------------------------------------------------ errors (errors.c) */

#define NL_OK 0
#define NL_E_MISUSE 1     /* the caller broke a precondition: a bug of ours, never of the input */
#define NL_E_NOMEM 2
#define NL_E_SQLITE 3     /* SQLite failed: sqlite_rc holds its extended result code */
#define NL_E_IO 4         /* the operating system failed: os_errno */
#define NL_E_FORMAT 5     /* malformed, truncated or hostile bytes; nothing was changed */
#define NL_E_HASH 6       /* a digest or state hash differs from the announced one */
#define NL_E_POSITION 7   /* the page set does not start at this replica's position */
#define NL_E_NOT_REPLICA 8 /* byte 18 or the replica header says: not a replica */
#define NL_E_BUSY 9       /* a lock was not to be had before the deadline */
#define NL_E_TOO_BIG 10   /* a size above the documented bound */
#define NL_E_RESET 11     /* the WAL was restarted or replaced by somebody else */
#define NL_E_FULL 12      /* disk full */
#define NL_E_BIND 13      /* parameters do not match the statement */
#define NL_E_CONSTRAINT_DEFERRED 14
#define NL_E_PIECEMEAL 15 /* a page set has to be taken chunk by chunk; nothing was done */
#define NL_E_KEY 16       /* not the key of this sealed file, or none where one is needed */
#define NL_E_TAG 17       /* sealed bytes are not what was sealed: damaged, moved or forged */
#define NL_E_CONFLICT 18  /* a changeset does not fit what is there */
#define NL_E_UNSOUND 19   /* pages that were pushed do not make a sound database; nothing was changed */

typedef struct nl_error {
    int code;           /* NL_E_* */
    int sqlite_rc;      /* extended SQLite result code, or 0 */
    int os_errno;       /* errno, or 0 */
    int offset;         /* byte offset into SQL text or input, or -1 */
    uint32_t page;      /* page concerned, or 0 */
    uint32_t frame;     /* frame concerned, or 0 */
    char text[240];     /* short English text, NUL-terminated, never a secret, never user data */
} nl_error;

const char *nl_sqlite_version(void);      /* [any thread] static string */
const char *nl_openssl_version(void);     /* [any thread] static string */
int nl_init(nl_error *err);               /* once per process, before anything else; idempotent */

/* ------------------------------------------------------------------ process (ofd.c) */

/* Forks between the process that ran nl_init() and this one. A handle is dead, and must neither be
** used nor handed to SQLite, not even to close it, when this differs from the number at its birth. */
uint32_t nl_forks(void);              /* [any thread] */
/* 1: record locks survive other closes in this process, so that Python's own sqlite3 may open the
** same files. 0: this system has no OFD locks. */
int nl_ofd_active(void);              /* [any thread] */
/* Descriptors that SQLite has open now, and those parked for re-use. */
void nl_ofd_counts(uint32_t *open_fds, uint32_t *parked_fds);   /* [any thread] */

/* ------------------------------------------------------------------ faults (fault.c) */
/* In a build without NL_TEST these exist and answer NL_E_MISUSE, so that the header is one. */

#define NL_FAULT_KILL 1     /* raise SIGKILL on this process */
#define NL_FAULT_EIO 2      /* the next operation at the point fails with EIO */
#define NL_FAULT_ENOSPC 3   /* ... with ENOSPC */
#define NL_FAULT_STOP 4     /* SIGSTOP: lets a test look at the instant from outside */

int nl_fault_built(void);                               /* 1 in a test build */
int nl_fault_set(const char *point, int kind, uint32_t after); /* fire at the (after+1)-th pass */
void nl_fault_clear(void);
uint64_t nl_fault_passes(const char *point);            /* how often a point was passed */
int nl_fault_hit(const char *point);                    /* Python's own points; 0 or errno */
int nl_fault_names(char *buf, size_t size);             /* all names, separated by newlines */

/* ------------------------------------------------------------------ frame (frame.c, pure) */

#define NL_WAL_HEADER_SIZE 32
#define NL_FRAME_HEADER_SIZE 24
#define NL_REPLICA_HEADER_OFFSET 72   /* bytes 72..91 of page 1: lineage, generation, frame, state hash */
#define NL_REPLICA_HEADER_SIZE 20
#define NL_WRITE_VERSION_OFFSET 18    /* byte 18 of page 1: 2 = WAL, 3 = replica (read-only to all) */

/* Levels: 0 plain C, 1 what every CPU of the architecture has (SSE2, NEON), 2 AVX2, 3 AVX-512. */
int nl_simd_best(void);               /* [any thread] highest level this CPU offers; used from the start */
int nl_simd_use(int level);           /* tests and benches; answers the level now in use */

/* SQLite's WAL checksum (file format 4.2): n is a multiple of 8; s is read and updated. [any thread] */
void nl_wal_checksum(const uint8_t *data, size_t n, int big_endian, uint32_t s[2]);

/* What a frame of a WAL is checked against: constants of the WAL, and the checksum so far. */
typedef struct nl_wal_chain {
    uint32_t page_size;     /* bytes, power of two 512..65536 */
    int big_endian;         /* byte order in which the checksum reads words, not that of fields */
    uint32_t salt[2];
    uint32_t sum[2];        /* of the WAL header, then of the last frame accepted or written */
} nl_wal_chain;

/* NL_E_FORMAT unless the 32 bytes are a WAL header whose checksum is right. [any thread] */
int nl_wal_header_decode(const uint8_t *in, size_t n, nl_wal_chain *out, nl_error *err);
/* The other way; chain->sum is set to the header's checksum, where the frames' chain begins. */
void nl_wal_header_encode(nl_wal_chain *chain, uint32_t sequence, uint8_t out[32]);

/* How many of n whole frames, from the first on, continue the chain (salts, page number, checksum);
** chain->sum is then that of the last one accepted. *committed (may be NULL) is the number of
** frames up to and with the last commit frame among them, or 0. [any thread] */
uint32_t nl_frames_verify(nl_wal_chain *chain, const uint8_t *frames, uint32_t n, uint32_t *committed);

/* Write one frame (24 + page_size bytes) to out, continuing the chain. commit = 0: no commit frame;
** else the database size in pages. [any thread] */
void nl_frame_encode(
    nl_wal_chain *chain, uint32_t pgno, uint32_t commit, const uint8_t *page, uint8_t *out);

/* XXH3-64 of a page, seeded with its number; on page 1 byte 18 and bytes 72..91 count as zero. */
uint64_t nl_page_hash(const uint8_t *page, uint32_t page_size, uint32_t pgno); /* [any thread] */
uint64_t nl_xxh3(const uint8_t *data, size_t n, uint64_t seed);                /* [any thread] */
/* XOR of nl_page_hash over n consecutive pages, the first being first; the lock-byte page left out. */
uint64_t nl_state_hash(const uint8_t *pages, uint32_t page_size, uint32_t first, uint32_t n);
/* The same, and hashes[i] = hash of page first + i: a run of the page-hash table; lock-byte page: 0. */
uint64_t nl_page_hashes(
    const uint8_t *pages, uint32_t page_size, uint32_t first, uint32_t n, uint64_t *hashes);

/* The page that exists for no hash, snapshot, page set or repair (rule B6). */
uint32_t nl_lock_page(uint32_t page_size);   /* [any thread] pending byte / page_size + 1 */
/* Tests that move SQLite's pending byte (SQLITE_TESTCTRL_PENDING_BYTE) must tell this too; it is a
** process-wide setting, 0x40000000 from the start. */
void nl_lock_byte_use(uint32_t offset);

/* ------------------------------------------------------------------ pageset (pageset.c, pure) */
/*
** A page set on the wire: header (96 bytes), then chunks, then an end chunk. docs/formats.md has
** the byte tables. A chunk's digest is XXH3 over (pgno, page hash) pairs, so that checking a page
** set and computing the state hash are one pass over the bytes. Integers are big-endian.
** Page 1 travels as a plain WAL database has it: byte 18 is 2, bytes 72..91 are zero.
** All functions here are [any thread]; a chunk may be read by several threads.
*/
#define NL_SET_HEADER_SIZE 96
#define NL_CHUNK_HEADER_SIZE 32
#define NL_SET_VERSION 1
#define NL_SET_SNAPSHOT 1          /* flag: every page but the lock-byte page, fuzzy, `from` is void */
#define NL_SET_REPAIR 2            /* flag: what differed from a replica's pages, `from` is void. With
                                   ** NL_SET_SNAPSHOT: the pages of a snapshot from some page on */
#define NL_CHUNK_ZSTD 1            /* flag: stored bytes are one zstd frame of raw_size bytes */
#define NL_PAGE_RAW 0              /* encoding of one page: its bytes. Others are reserved */
#define NL_CHUNK_MAX_PAGES 1024
#define NL_CHUNK_MAX_PAGE_BYTES 8388608 /* pages of one chunk: 8 MiB, so 128 of 64 KiB */
#define NL_CHUNK_MAX_BYTES 8396800  /* raw body of a chunk: 8 MiB of pages and a table of 8 KiB */

typedef struct nl_position {
    uint32_t lineage;
    uint32_t generation;
    uint32_t frame;
} nl_position;

typedef struct nl_set_header {
    uint32_t flags;         /* NL_SET_* */
    uint32_t page_size;     /* bytes, power of two 512..65536 */
    uint32_t pages;         /* database size in pages after the set */
    uint32_t count;         /* pages carried by all chunks together */
    nl_position from;       /* all zero for a snapshot and a repair */
    nl_position to;
    uint64_t hash_from;     /* state hash at from; 0 for a snapshot and a repair */
    uint64_t hash_to;       /* state hash at to */
    int64_t commit_ms;      /* primary's clock at `to`, milliseconds since 1970 */
} nl_set_header;

typedef struct nl_chunk_header {
    uint32_t flags;         /* NL_CHUNK_* */
    uint32_t count;         /* pages in this chunk; 0 = end of the set */
    uint32_t raw_size;      /* bytes of the body once decompressed */
    uint32_t stored_size;   /* bytes that follow on the wire */
    uint64_t digest;        /* see above */
} nl_chunk_header;

/* Both decoders check everything that can be checked without the body: NL_E_FORMAT says what. */
void nl_set_header_encode(const nl_set_header *h, uint8_t out[96]);
int nl_set_header_decode(const uint8_t *in, size_t n, nl_set_header *out, nl_error *err);
void nl_chunk_header_encode(const nl_chunk_header *h, uint8_t out[32]);
int nl_chunk_header_decode(const uint8_t *in, size_t n, nl_chunk_header *out, nl_error *err);

/* A chunk that has been checked: the only thing that can be applied. Opaque; borrows `body`. */
typedef struct nl_chunk nl_chunk;
int nl_chunk_verify(
    const nl_set_header *set,
    const nl_chunk_header *head,
    const uint8_t *body,        /* raw body, head->raw_size bytes; must outlive the chunk */
    size_t n,
    uint32_t after,             /* last page number of the previous chunk of the set, or 0 */
    nl_chunk **out,             /* OUT: free with nl_chunk_free */
    nl_error *err);
uint32_t nl_chunk_count(const nl_chunk *c);
uint32_t nl_chunk_last(const nl_chunk *c);       /* highest page number in it */
int nl_chunk_page(const nl_chunk *c, uint32_t i, uint32_t *pgno, uint64_t *hash, const uint8_t **bytes);
void nl_chunk_free(nl_chunk *c);

/* Bytes of the raw body of a chunk of `count` pages; 0 when that many do not fit into one chunk. */
size_t nl_chunk_size(uint32_t page_size, uint32_t count);
size_t nl_chunk_pages_offset(uint32_t count);   /* where the first page lies in it: a multiple of 64 */

/* Lay out one chunk's raw body: table of `count` (pgno u32, encoding u8, length u24), then pages.
** pages[i] points at page_size bytes; pages == NULL: they lie in place already (the caller read them
** straight to out + nl_chunk_pages_offset(count)). Page 1 is made plain (see above).
** Answers bytes written to out, and the digest. */
int nl_chunk_encode(
    uint32_t page_size,
    const uint32_t *pgnos,      /* strictly ascending, from 1, the lock-byte page not among them */
    const uint8_t *const *pages,
    const uint64_t *hashes,     /* nl_page_hash of each, or NULL: not known yet */
    uint32_t count,             /* 1 .. NL_CHUNK_MAX_PAGES */
    uint8_t *out,
    size_t out_size,            /* at least nl_chunk_size(page_size, count) */
    size_t *written,            /* OUT */
    uint64_t *digest,           /* OUT */
    nl_error *err);

/* ------------------------------------------------------------------ ranges (ranges.c, pure) */

#define NL_RUN_SIZE 16             /* a run: first page u32, count u32, span u8, zeros; then its hashes */
#define NL_SPAN_MAX 31             /* log2 of the pages in a range */
#define NL_SPAN_WANTED 255         /* instead of a span: pages that are wanted, without hashes */

/* Hashes of n ranges of 2^span pages each, out of a table of `pages` page hashes: 8 bytes each, big-endian.
** [any thread] */
void nl_ranges_fold(
    const uint64_t *table, uint32_t pages, uint32_t first, uint32_t span, uint32_t n, uint8_t *out);
/* Check the runs of a repair's request: NL_E_FORMAT says what is wrong. [any thread] */
int nl_ranges_check(
    const uint8_t *in,
    size_t n,
    uint32_t *ranges,       /* OUT: ranges of more than one page: so many bits are the answer */
    uint32_t *pages,        /* OUT: single pages, compared or wanted */
    nl_error *err);

/* ------------------------------------------------------------------ keys (key.c, pure) */

#define NL_KEY_SIZE 32
#define NL_SALT_SIZE 16
#define NL_SCRYPT_LOG2 17        /* 128 MiB and about a third of a second */
#define NL_SCRYPT_MAX 20         /* 1 GiB: what a file may ask for */
#define NL_PHRASE_MAX 1024

/* A user's key, in memory that is locked, not dumped, and wiped. [any thread] */
typedef struct nl_key nl_key;
int nl_key_raw(const uint8_t *key, size_t n, nl_key **out, nl_error *err);     /* n: NL_KEY_SIZE */
/* The cost is that of files sealed with it from now on; others say their own. */
int nl_key_phrase(const uint8_t *phrase, size_t n, int log2_n, nl_key **out, nl_error *err);
void nl_key_free(nl_key *key);
/* From here on it is the other one, for all who have it. [any thread] */
int nl_key_become(nl_key *key, const nl_key *other, nl_error *err);
int nl_key_same(const nl_key *a, const nl_key *b);      /* in a time that says nothing of where they differ */
int nl_key_random(uint8_t out[32], nl_error *err);      /* 32 bytes for a new key */

/* AES-256-GCM of one message (aead.c), for published test vectors and for measuring. NL_E_TAG. */
int nl_gcm_seal(
    const uint8_t *key,     /* NL_KEY_SIZE */
    const uint8_t *nonce,   /* NL_NONCE_SIZE */
    const uint8_t *aad,
    size_t aad_n,
    const uint8_t *in,
    size_t n,
    uint8_t *out,           /* n */
    uint8_t *tag,           /* NL_TAG_SIZE */
    nl_error *err);
int nl_gcm_open(
    const uint8_t *key,
    const uint8_t *nonce,
    const uint8_t *aad,
    size_t aad_n,
    const uint8_t *in,
    size_t n,
    const uint8_t *tag,
    uint8_t *out,
    nl_error *err);

/* ------------------------------------------------------------------ codec (codec.c, pure) */

#define NL_NONCE_SIZE 12
#define NL_TAG_SIZE 16
#define NL_SEAL_SIZE 32          /* bytes by which a sealed page, and a sealed frame, is longer */
#define NL_BLOCK_SIZE 4096       /* of the header block at the beginning of a sealed file */
#define NL_EPOCHS 1024           /* keys among which the seals of one file are divided */

/* What a header block says to anybody. */
typedef struct nl_block {
    uint32_t page_size;
    uint32_t generation;         /* of the data key that seals */
    uint32_t previous;           /* of the one that still opens while the key is changed, or 0 */
    uint32_t phrases;            /* bit i: the i-th key of the two that open it is a passphrase */
    uint64_t sequence;           /* which of two copies is newer */
    uint8_t file_id[16];
} nl_block;

/* 1 if a file that begins with these 16 bytes is sealed. [any thread] */
int nl_block_is_sealed(const uint8_t *first);
/* NL_E_FORMAT: no header block, or one of another version, or damaged in both of its copies. [any thread] */
int nl_block_look(const uint8_t *block, nl_block *out, nl_error *err);

/* The data keys of one sealed file. One thread at a time. */
typedef struct nl_codec nl_codec;
/* A new file: its block, to be written at its beginning. */
int nl_codec_create(uint32_t page_size, nl_key *key, uint8_t *block, nl_codec **out, nl_error *err);
/* An existing one. NL_E_KEY: not with this key. */
int nl_codec_open(const uint8_t *block, nl_key *key, nl_codec **out, nl_error *err);
void nl_codec_free(nl_codec *c);
uint32_t nl_codec_generation(const nl_codec *c); /* of the data key that seals */
uint32_t nl_codec_page_size(const nl_codec *c);
/* Whether two are of one file, whatever its key was when each was opened. */
int nl_codec_same_file(const nl_codec *c, const nl_codec *other);
/* Key id of the seal that the next page gets: generation << 16 | epoch. For tests. */
uint32_t nl_codec_key_id(const nl_codec *c);
/* page_size bytes to page_size + NL_SEAL_SIZE and back. NL_E_TAG: err->page; `page` is zeros then.
** NL_E_KEY: sealed with a data key of a generation that this codec does not have. */
int nl_codec_seal_page(nl_codec *c, uint32_t pgno, const uint8_t *page, uint8_t *slot, nl_error *err);
int nl_codec_open_page(nl_codec *c, uint32_t pgno, const uint8_t *slot, uint8_t *page, nl_error *err);
/* WAL frames, header and page: 24 + page_size bytes each to 24 + page_size + NL_SEAL_SIZE and back. `first`
** is the number of the first one in the WAL, from 1. err->frame says which one failed. */
int nl_codec_seal_frames(
    nl_codec *c, uint32_t first, uint32_t n, const uint8_t *frames, uint8_t *sealed, nl_error *err);
int nl_codec_open_frames(
    nl_codec *c, uint32_t first, uint32_t n, const uint8_t *sealed, uint8_t *frames, nl_error *err);

/* A record of n bytes of a file beside the database to n + NL_SEAL_SIZE and back (there n is what is sealed).
** It opens under the same name, of at most NL_RECORD_NAME_MAX bytes, and number only. NL_E_TAG, NL_E_KEY. */
#define NL_RECORD_NAME_MAX 64
int nl_codec_seal_record(
    nl_codec *c, const char *name, uint32_t number, const uint8_t *record, size_t n, uint8_t *sealed, nl_error *err);
int nl_codec_open_record(
    nl_codec *c, const char *name, uint32_t number, const uint8_t *sealed, size_t n, uint8_t *record, nl_error *err);

/* What was met in sealed files and is no failure, one line each (codec_vfs.c). nl_reports: how many wait to be
** taken; 1: `out` holds the oldest. [any thread] */
#define NL_REPORT_MAX 512
int64_t nl_reports(void);
int nl_report_take(char out[512]);

/* ------------------------------------------------------------------ delta (delta.c, pure) */
/*
** Pages told as differences from their older images, the bases: those of the position at which a
** page set is applied. delta.c has the format. Both sides give the same bases in the same order.
** bases[i] == NULL: the page did not exist. Page 1 and its base count as a plain WAL database has
** them (see above), so that those of a replica may be given as they are. [any thread]
*/
int nl_delta_encode(
    uint32_t page_size,
    uint32_t pages,                 /* database size after the set, pages */
    const uint32_t *pgnos,          /* strictly ascending */
    const uint8_t *const *bases,
    const uint8_t *const *images,   /* the pages as they are now */
    uint32_t count,                 /* as many as fit into one chunk */
    uint8_t *out,
    size_t room,                    /* at most so many bytes are worth it */
    size_t *written,                /* OUT; 0: they do not fit */
    nl_error *err);
size_t nl_delta_bound(uint32_t page_size, uint32_t count); /* room for any delta */
/* NL_E_FORMAT: malformed; out holds anything then. Pages that were not the right bases are seen by
** their hashes alone. */
int nl_delta_decode(
    uint32_t page_size,
    uint32_t pages,
    const uint32_t *pgnos,
    const uint8_t *const *bases,
    uint32_t count,
    const uint8_t *in,
    size_t n,
    uint8_t *out,                   /* count * page_size bytes */
    nl_error *err);

/* ------------------------------------------------------------------ compact (compact.c, pure) */
/*
** Page sets of version 2: of one chunk, for a reader whose state the writer knows; compact.c has the
** format. Page 1 is always in the set, at index 0. [any thread]
*/

/* Where a replica file stands. */
typedef struct nl_state {
    nl_position position;
    uint64_t hash;          /* state hash at that position */
    uint32_t pages;         /* database size in pages */
    uint32_t page_size;     /* bytes */
    uint32_t wal_frames;    /* frames in the replica's own WAL */
} nl_state;

size_t nl_compact_bound(uint32_t page_size, uint32_t count);   /* room for any set of so many pages */
/* Write a whole set. *written == 0: it does not fit into `room`. NL_E_MISUSE also for what only
** version 1 can say: snapshots, more than a chunk, databases of 2^31 pages, a clock before 1970. */
int nl_compact_encode(
    const nl_state *from,           /* where the reader stands; wal_frames does not matter */
    const nl_set_header *set,       /* count: pages, page 1 among them */
    const uint32_t *pgnos,
    const uint8_t *const *bases,    /* images at `from`; NULL: there is none, or it is not at hand */
    const uint8_t *const *images,   /* images at set->to */
    uint8_t *out,
    size_t room,
    size_t *written,                /* OUT */
    nl_error *err);

/* A set whose bytes are undamaged and meant for `from`. Opaque; borrows `in`. */
typedef struct nl_compact nl_compact;
/* NL_E_HASH: damaged, or it leads from another state: nothing in it was looked at. */
int nl_compact_open(
    const uint8_t *in,              /* exactly one set; must outlive the handle */
    size_t n,
    const nl_state *from,           /* where this replica stands, and stays until it is applied */
    nl_compact **out,               /* OUT: free with nl_compact_free */
    nl_error *err);
const nl_set_header *nl_compact_set(const nl_compact *c);
/* Number of page i of the set, 0 beyond the last. needs_base: nl_compact_unpack wants its image. */
uint32_t nl_compact_page(const nl_compact *c, uint32_t i, int *needs_base);
/* Make a chunk of version 1, for nl_chunk_verify. */
int nl_compact_unpack(
    const nl_compact *c,
    const uint8_t *const *bases,    /* of pages that need one; others NULL */
    uint8_t *body,
    size_t size,                    /* nl_chunk_size of its pages */
    nl_chunk_header *head,          /* OUT */
    nl_error *err);
void nl_compact_free(nl_compact *c);

/* ------------------------------------------------------------------ connections (database.c) */

typedef struct nl_db nl_db;      /* one SQLite connection */
typedef struct nl_stmt nl_stmt;  /* one compiled statement of it */

#define NL_OPEN_READONLY 1
#define NL_OPEN_READWRITE 2
#define NL_OPEN_CREATE 4
#define NL_OPEN_URI 64
#define NL_OPEN_NO_CHECKPOINT 256    /* closing it never checkpoints, and no commit does */
#define NL_OPEN_FRUGAL 1024          /* one of thousands: less memory for compiling, had at once */
#define NL_OPEN_DEFENSIVE 512        /* SQL cannot damage the file: no raw pages, no shadow tables */

/* What the last statement of a connection did; read in place through nl_db_status(). */
typedef struct nl_status {
    int64_t last_rowid;     /* sqlite3_last_insert_rowid() */
    int64_t changes;        /* rows changed by the last INSERT, UPDATE or DELETE; a sum after many */
    int64_t done;           /* nl_stmt_many: parameter sets executed */
    int64_t in_transaction; /* 1 inside BEGIN ... COMMIT */
    int64_t reports;        /* nl_reports(), when the last call ended */
} nl_status;

int nl_db_open(
    const char *path,       /* UTF-8; "" is a temporary database */
    int flags,              /* NL_OPEN_* */
    int busy_ms,            /* how long to wait for a lock; < 0: for ever */
    nl_key *key,            /* NULL: a plain file */
    uint32_t page_size,     /* of a sealed file that is new; 0: 4096 */
    nl_db **out,            /* OUT: close with nl_db_close, then nl_db_free */
    nl_error *err);
/* Closes the connection and ends statements that are still held. The handle, and theirs, stay valid (and
** refuse everything) until they are freed. Idempotent. */
int nl_db_close(nl_db *db, nl_error *err);
/* ATTACH path AS name, with a key of its own; NULL: a plain file. NL_E_KEY: the connection has no key. */
int nl_db_attach(
    nl_db *db, const char *path, const char *name, nl_key *key, uint32_t page_size, nl_error *err);
void nl_db_free(nl_db *db);

/* ------------------------------------------------------------------ blobs (blob.c), images (image.c) */

typedef struct nl_stmt nl_blob;  /* one open sqlite3_blob: held, and freed, as a statement is */
int nl_blob_open(
    nl_db *db, const char *schema, const char *table, const char *column, int64_t row, int writable, nl_blob **out,
    nl_error *err);
int nl_blob_size(nl_blob *b, int64_t *size, nl_error *err);
int nl_blob_read(nl_blob *b, int64_t at, uint8_t *to, size_t n, nl_error *err);
int nl_blob_write(nl_blob *b, int64_t at, const uint8_t *from, size_t n, nl_error *err);
int nl_blob_close(nl_blob *b, nl_error *err);            /* idempotent; outside a transaction it commits */
void nl_blob_free(nl_blob *b);                           /* [any thread] */
/* The bytes of a database; nl_image_free() them. Size 0: it is empty. NL_E_BIND: there is none of that name. */
int nl_db_serialize(nl_db *db, const char *schema, uint8_t **out, int64_t *size, nl_error *err);
void nl_image_free(uint8_t *image);
/* Makes a copy of those bytes, in memory, the database of that name. */
int nl_db_deserialize(nl_db *db, const char *schema, const uint8_t *image, int64_t size, nl_error *err);

/* The text that SQLite makes of a REAL, NUL-terminated. */
#define NL_REAL_TEXT 40
void nl_real_text(double value, char out[40]);

/* ------------------------------------------------------------------ sessions and changesets (session.c, changeset.c) */

typedef struct nl_stmt nl_session; /* one sqlite3_session: held, and freed, as a statement is */
#define NL_SESSION_ENABLED 0     /* changes are recorded */
#define NL_SESSION_INDIRECT 1    /* ... as indirect ones */
#define NL_SESSION_EMPTY 2       /* nothing was recorded; only asked */
int nl_session_open(nl_db *db, const char *schema, nl_session **out, nl_error *err);
int nl_session_attach(nl_session *s, const char *table, nl_error *err);  /* NULL: all tables */
int nl_session_switch(nl_session *s, int what, int value, int *now, nl_error *err); /* value -1 only asks */
int nl_session_changes(nl_session *s, int patch, uint8_t **out, int64_t *size, nl_error *err); /* nl_image_free() */
int nl_session_close(nl_session *s, nl_error *err);     /* idempotent */
void nl_session_free(nl_session *s);                    /* [any thread] */

#define NL_CONFLICT_ABORT 0      /* undo everything: NL_E_CONFLICT */
#define NL_CONFLICT_OMIT 1       /* leave the change out */
#define NL_CONFLICT_REPLACE 2    /* overwrite the row that is there; where there is none, as OMIT */
/* How often a change did not fit: another content, no such row, the key is taken, a constraint, a foreign key. */
typedef struct nl_conflicts {
    int64_t data;
    int64_t missing;
    int64_t taken;
    int64_t constraint;
    int64_t foreign_key;
} nl_conflicts;
/* Applies a changeset or patchset as one unit. NL_E_FORMAT: it is none, and nothing was changed. */
int nl_changeset_apply(
    nl_db *db, const uint8_t *data, size_t n, int on_conflict, nl_conflicts *count, nl_error *err);
/* What undoes it; two of them as one. nl_image_free() what they answer. [any thread] */
int nl_changeset_invert(const uint8_t *data, size_t n, uint8_t **out, int64_t *size, nl_error *err);
int nl_changeset_concat(
    const uint8_t *a, size_t na, const uint8_t *b, size_t nb, uint8_t **out, int64_t *size, nl_error *err);
/* Reads a changeset or patchset change by change. The bytes must outlive it. [one thread at a time] */
typedef struct nl_changes nl_changes;
int nl_changes_open(const uint8_t *data, size_t n, nl_changes **out, nl_error *err);
/* The next ones as a MessagePack array, valid until the next call; size 0: that was all. Each is
** [[operation, table], indirect, key, old held, old values, new held, new values]: operation as
** SQLITE_INSERT, _UPDATE, _DELETE; key and held one byte a column; nil for a side that there is not. */
int nl_changes_next(nl_changes *c, const uint8_t **batch, size_t *size, nl_error *err);
void nl_changes_free(nl_changes *c);

/* ------------------------------------------------------------------ snapshots (snapshot.c) */

typedef struct nl_snapshot nl_snapshot; /* one sqlite3_snapshot: a state that the WAL still holds */
/* The state that the open transaction reads, or would read now. */
int nl_snapshot_get(nl_db *db, const char *schema, nl_snapshot **out, nl_error *err);
/* The open transaction, which has not written, and reads already, reads that state from now on. */
int nl_snapshot_open(nl_db *db, const char *schema, nl_snapshot *snapshot, nl_error *err);
/* Less than 0, 0, more than 0: `a` is older, the same, newer. Of one file. */
int nl_snapshot_compare(nl_snapshot *a, nl_snapshot *b);
void nl_snapshot_free(nl_snapshot *snapshot);            /* [any thread] */

/* ------------------------------------------------------------------ backup (backup.c) */

typedef struct nl_backup nl_backup;
typedef struct nl_backup_progress {
    int rc;                 /* SQLITE_OK, _DONE, _BUSY or _LOCKED: not yet, ready, somebody is in the way */
    int remaining;          /* pages */
    int pages;              /* of the source */
} nl_backup_progress;
int nl_backup_begin(
    nl_db *from, const char *from_name, nl_db *to, const char *to_name, nl_backup **out, nl_error *err);
int nl_backup_step(nl_backup *b, int pages, nl_backup_progress *progress, nl_error *err); /* pages < 0: all */
int nl_backup_end(nl_backup *b, nl_error *err);

/* ------------------------------------------------------------------ what a connection says (database.c) */

void nl_db_interrupt(nl_db *db);                     /* [any thread] */
nl_status *nl_db_status(nl_db *db);                  /* lives as long as the handle */
const char *nl_db_message(nl_db *db);                /* whole text of the last failure, or "" */
int64_t nl_db_total_changes(nl_db *db);
int nl_db_in_transaction(nl_db *db);
int nl_db_has_snapshot(nl_db *db);                   /* its transaction has read the main database */
/* Every connection of this process reads its schema again before its next statement: a repair may have
** changed it without changing the cookie by which connections notice that (rule B7). [any thread] */
void nl_db_distrust_schemas(void);
void nl_db_set_last_rowid(nl_db *db, int64_t rowid);
void nl_db_busy_timeout(nl_db *db, int busy_ms);
/* Transaction that nl_stmt_go begins before INSERT, UPDATE, DELETE, REPLACE: NL_BEGIN_*. */
void nl_db_set_begin(nl_db *db, int kind);
nl_error *nl_db_error(nl_db *db);                    /* of nl_stmt_go; lives as long as the handle */
void nl_db_budget(nl_db *db, int64_t steps);         /* VM steps per statement; < 0: no limit */
int nl_db_over_budget(nl_db *db);                    /* 1: the last failure was the budget's */
int nl_db_limit(nl_db *db, int id, int value);       /* sqlite3_limit(); value -1 only asks */
/* sqlite3_db_config() of one of the switches; value -1 only asks. `now`: OUT, what it is then. */
int nl_db_config(nl_db *db, int op, int value, int *now, nl_error *err);
/* Extensions: whether loading is allowed (also by the SQL function), and loading one. Of a shared library this runs
** code in this process. `entry`: its entry point; NULL: SQLite finds it. */
int nl_db_enable_extensions(nl_db *db, int on, nl_error *err);
int nl_db_load_extension(nl_db *db, const char *path, const char *entry, nl_error *err);
/* Runs statements of a script until its end or the first failure; rows are thrown away. */
int nl_db_exec(nl_db *db, const char *sql, size_t n, nl_error *err);
/* The tick is called about every 50 ms from inside a long call, on the thread that made it. An
** answer other than 0 stops the call with SQLITE_INTERRUPT. Signal handlers (Ctrl-C) run there. */
void nl_set_tick(int (*tick)(void));

/* ------------------------------------------------------------------ callbacks (callbacks.c, functions.c) */

/*
** What SQLite calls while it runs and Python has defined. `id` is a number that Python gave.
**
** Arguments are one MessagePack array of n bytes at nl_db_call_area(), or, for n < 0, of -n bytes at
** nl_call_args(). An answer is the integer result itself or one of NL_ANSWER_*; other results are put by
** nl_result_* before. All run on the thread that called into the connection.
*/
typedef struct nl_trampolines {
    int64_t (*call)(int64_t id, int64_t n);
    int64_t (*call_int)(int64_t id, int64_t value);     /* a function of one argument, an integer */
    int64_t (*call_float)(int64_t id, double value);    /* ... a float */
    /* `group` is the number of an aggregate's instance, `what` NL_GROUP_*. */
    int64_t (*group)(int64_t id, int64_t group, int what, int64_t n);
    int64_t (*compare)(int64_t id, int64_t n);          /* a collation: two strings; -1, 0, 1 */
    int64_t (*authorize)(int64_t id, int64_t n);        /* action, four strings or nil; SQLITE_OK ... */
    int64_t (*progress)(int64_t id);                    /* other than 0: stop */
    int64_t (*trace)(int64_t id, int64_t n);            /* one string */
    void (*forget)(int64_t id);                         /* nothing calls this number any more */
} nl_trampolines;

/* Answers that are no integers: INT64_MIN + one of these. */
#define NL_ANSWER_NULL 1
#define NL_ANSWER_PUT 2           /* nl_result_* was called */
#define NL_ANSWER_RAISED 3        /* an exception */
#define NL_ANSWER_NOMEM 4         /* ... a MemoryError */
#define NL_ANSWER_TOO_BIG 5       /* ... an OverflowError */
#define NL_ANSWER_CARRY 6         /* ... that Python has kept, to raise it where the statement was run */
#define NL_ANSWER_UNDEFINED 7     /* of `group`: there is no such method */
#define NL_ANSWER_NO_GROUP 8      /* ... the class could not be called */
#define NL_ANSWERS 16
#define NL_CALL_AREA 4096         /* bytes at nl_db_call_area() */

#define NL_GROUP_STEP 0
#define NL_GROUP_INVERSE 1
#define NL_GROUP_VALUE 2
#define NL_GROUP_FINAL 3

void nl_set_trampolines(const nl_trampolines *trampolines);
/* Addresses of Python's objects, for a Python whose functions can be called without a trampoline (direct.c);
** 0: of no use. Whoever defines a callable keeps them alive until forget(). */
typedef struct nl_callable {
    int64_t id;
    int64_t callback;       /* what is told of failures */
    int64_t function;
    int64_t groups;         /* a dict: instances of an aggregate by their numbers */
} nl_callable;
/* Functions that judge a result, an exception, and an exception in a collation. All are given the callback as
** well, answer NL_ANSWER_*, and never raise. */
void nl_set_direct(int64_t answer, int64_t failed, int64_t kept);
/* From now on only this thread may call Python: the interpreter is about to end. */
void nl_callbacks_end(void);
const uint8_t *nl_db_call_area(nl_db *db);  /* stays where it is for the life of the handle; NULL: no memory */
const uint8_t *nl_call_args(void);          /* [inside a callback] */
void nl_result_int(int64_t value);          /* [inside a callback] one that would be taken for NL_ANSWER_* */
void nl_result_float(double value);         /* [inside a callback] */
void nl_result_text(const char *text, size_t n);   /* [inside a callback] UTF-8; copied */
void nl_result_blob(const char *data, size_t n);   /* [inside a callback] copied */
/* Whether this thread is inside a callback of the connection. */
int nl_db_calling(nl_db *db);
int nl_db_closed(nl_db *db);
/* Whether a copy of it is being made, or one is being put in its place: it cannot be closed. */
int nl_db_copying(nl_db *db);

#define NL_FUNCTION_SCALAR 0
#define NL_FUNCTION_AGGREGATE 1
#define NL_FUNCTION_WINDOW 2

/* These answer SQLite's result code, or NL_CALLS_REFUSED with *err. No callable: the name means nothing any more. */
#define NL_CALLS_REFUSED -1
int nl_db_create_function(
    nl_db *db,
    const char *name,
    int arguments,          /* -1: any number */
    int kind,               /* NL_FUNCTION_* */
    int deterministic,
    const nl_callable *callable, /* forget(id) follows in any case, sooner or later, unless refused */
    nl_error *err);
int nl_db_create_collation(nl_db *db, const char *name, const nl_callable *callable, nl_error *err);
/* Whether the authorizer forbade the statement that was compiled last. */
int nl_db_denied(nl_db *db);
/* The hooks; id 0: none. What was set before is not told to forget(). */
int nl_db_set_authorizer(nl_db *db, int64_t id, nl_error *err);
int nl_db_set_progress(nl_db *db, int64_t id, int steps, nl_error *err); /* every so many VM steps */
int nl_db_set_trace(nl_db *db, int64_t id, nl_error *err);
/* Tells the trace hook, if there is one, of a statement that is run elsewhere. NL_E_SQLITE with *err: what the
** hook raised is to be raised. */
int nl_db_trace(
    nl_db *db,
    nl_stmt *s,             /* the text, compiled here, to put its parameters in place; NULL: as it is */
    const uint8_t *params,  /* as of nl_stmt_run */
    size_t n,
    const char *text,
    nl_error *err);

/* ------------------------------------------------------------------ statements (statement.c, rows.c) */

/* What a statement does, as SQLite's own compiler told its authorizer. */
#define NL_STMT_READONLY 1        /* sqlite3_stmt_readonly(): changes no database file */
#define NL_STMT_WRITES_MAIN 2
#define NL_STMT_WRITES_TEMP 4
#define NL_STMT_WRITES_ATTACHED 8
#define NL_STMT_TRANSACTION 16    /* BEGIN, COMMIT, ROLLBACK */
#define NL_STMT_SAVEPOINT 32      /* SAVEPOINT, RELEASE, ROLLBACK TO */
#define NL_STMT_PRAGMA 64
#define NL_STMT_ATTACH 128        /* ATTACH, DETACH */
#define NL_STMT_TEMP 256          /* names an object of the temp database */
#define NL_STMT_EXPLAIN 512
#define NL_STMT_ROWS 1024         /* has result columns */
#define NL_STMT_DML 2048          /* begins with INSERT, UPDATE, DELETE or REPLACE (PEP 249 rules) */
#define NL_STMT_SCHEMA 4096       /* CREATE, DROP, ALTER, REINDEX, ANALYZE */
#define NL_STMT_ATTACHED 8192     /* names an object of an attached database */
#define NL_STMT_MAIN 16384        /* names an object of the main database */
#define NL_STMT_COMMIT 32768      /* COMMIT or END */
#define NL_STMT_ROLLBACK 65536    /* ROLLBACK of the whole transaction */
#define NL_STMT_EMPTY 131072      /* no statement: white space and comments */
#define NL_STMT_INSERT 262144     /* is itself an INSERT or REPLACE, whatever it begins with */
#define NL_STMT_IGNORED 1048576   /* the program's authorizer had a part of it ignored */
#define NL_STMT_MODIFY 524288     /* is itself an UPDATE or DELETE, or an upsert */

#define NL_BEGIN_NONE 0
#define NL_BEGIN_DEFERRED 1
#define NL_BEGIN_IMMEDIATE 2
#define NL_BEGIN_EXCLUSIVE 3
#define NL_BEGIN_PLAIN 4          /* the same as DEFERRED, but the text is "BEGIN " */

#define NL_TEXT_STR 0     /* TEXT travels as MessagePack str */
#define NL_TEXT_BIN 1     /* ... as bin */
#define NL_TEXT_EXT 2     /* ... as ext of type 1 */

#define NL_SMALL_BATCH 4096      /* capacity of a statement's own output buffer, bytes */
#define NL_RUN_MORE 1            /* there may be more rows: ask nl_stmt_more */
#define NL_RUN_COLUMNS 2         /* the schema changed: the result columns may be others than before */
#define NL_RUN_LARGE 4           /* the batch is in another buffer: ask nl_stmt_out, and reset at the end */
#define NL_RUN_SPECIAL 8         /* the statement writes, or nl_stmt_set_special was called */

#define NL_RUN_RUNNING -2

#define NL_PREPARE_PERSISTENT 1  /* it will live in a cache */
#define NL_PREPARE_OWN 2         /* not the program's: its authorizer and its trace do not hear of it */

int nl_stmt_prepare(
    nl_db *db,
    const char *sql,        /* UTF-8, need not end in NUL */
    size_t n,
    int flags,              /* NL_PREPARE_* */
    nl_stmt **out,          /* OUT: free with nl_stmt_free */
    nl_error *err);
void nl_stmt_free(nl_stmt *s);
uint32_t nl_stmt_flags(nl_stmt *s);
size_t nl_stmt_tail(nl_stmt *s);                    /* bytes of sql this statement took */
int nl_stmt_params(nl_stmt *s);
const char *nl_stmt_param_name(nl_stmt *s, int i);  /* 1-based; NULL: nameless. With its prefix */
int nl_stmt_columns(nl_stmt *s);
const char *nl_stmt_column_name(nl_stmt *s, int i); /* 0-based */
const char *nl_stmt_column_decltype(nl_stmt *s, int i); /* NULL: an expression */
const char *nl_stmt_pragma(nl_stmt *s);             /* name of a PRAGMA, in lower case; else "" */
int nl_stmt_pragma_set(nl_stmt *s);                 /* 1: it was written with a value */
int nl_sql_is_dml(const char *sql, size_t n);       /* [any thread] the rule of NL_STMT_DML */
void nl_stmt_text_mode(nl_stmt *s, int mode);       /* NL_TEXT_* */
void nl_stmt_set_special(nl_stmt *s);   /* its rows need more than decoding: say so in every answer */

/*
** Runs a statement from the start: bind, step, encode rows, and reset when the end is reached, in
** one call. Rows come as one MessagePack array of arrays.
**
** Answers 16 * bytes of output (0: no rows) + NL_RUN_* bits, or -1 with *err; NL_RUN_RUNNING with *err: nothing
** was done, because the statement is running, and a callback of it is who called. The output lies in
** nl_stmt_out() until the next call with this statement.
** A failure after the first row ends the batch before it: the rows come now, the failure comes from nl_stmt_more.
*/
int64_t nl_stmt_run(
    nl_stmt *s,
    const uint8_t *params,  /* one MessagePack array of nil, bool, int, float, str, bin */
    size_t n,
    int begin,              /* NL_BEGIN_*: transaction to begin before INSERT, UPDATE, DELETE, REPLACE */
    size_t target,          /* bytes of output after which the batch ends */
    nl_error *err);
/* The same with the connection's defaults (nl_db_set_begin, nl_db_error) and a batch of at most
** NL_SMALL_BATCH / 2 bytes: every argument of a call from Python costs. */
int64_t nl_stmt_go(nl_stmt *s, const uint8_t *params, size_t n);
/* Runs it once with one array of values, throws its rows away and begins no transaction. Answers how many rows
** were changed; -1: nl_db_error says why. */
int64_t nl_stmt_once(nl_stmt *s, const uint8_t *params, size_t n);
int64_t nl_stmt_more(nl_stmt *s, size_t target, nl_error *err);
const uint8_t *nl_stmt_out(nl_stmt *s);
/* Ends it early; gives large buffers back. NL_E_MISUSE: it is running, and a callback of it is who called. */
int nl_stmt_reset(nl_stmt *s);
int nl_stmt_running(nl_stmt *s);                    /* a callback of it is who asks */

/* Runs a statement once per parameter set; rows are thrown away. status.changes is the sum. */
int nl_stmt_many(
    nl_stmt *s,
    const uint8_t *params,  /* MessagePack array of arrays */
    size_t n,
    int begin,              /* NL_BEGIN_* */
    nl_error *err);
/* ------------------------------------------------------------------ apply (apply.c) */

#define NL_CHECKPOINT_PASSIVE 0
#define NL_CHECKPOINT_RESTART 2
#define NL_CHECKPOINT_TRUNCATE 3

/* The writer of one replica file: a private connection. One thread at a time. */
typedef struct nl_applier nl_applier;
int nl_applier_open(
    const char *path,
    nl_key *key,            /* NULL: a plain file */
    int durable,
    nl_applier **out,
    nl_error *err);
void nl_applier_close(nl_applier *a);
/* Position and state hash as every reader sees them now. NL_E_NOT_REPLICA when there are none. */
int nl_applier_state(nl_applier *a, nl_state *out, nl_error *err);
/* A whole set in one call: begin, chunks, commit. NL_E_POSITION and NL_E_HASH: `out` holds the
** replica's own state and nothing was written. Any failure leaves the replica as it was. */
int nl_applier_apply(
    nl_applier *a,
    const nl_set_header *set,
    nl_chunk *const *chunks,
    uint32_t n,
    int wait_ms,                /* for locks */
    nl_state *out,              /* OUT: state after */
    nl_error *err);
/* The same with a set whose every byte is in memory, nothing of it verified yet: `in` is what follows
** its header, to its end. All of it is verified before any lock is taken. NL_E_FORMAT, NL_E_HASH: also
** for what was found then. NL_E_PIECEMEAL: chunks are compressed, or they are many. */
int nl_applier_receive(
    nl_applier *a,
    const nl_set_header *set,
    const uint8_t *in,
    size_t n,
    int wait_ms,                /* for locks */
    nl_state *out,              /* OUT: state after */
    nl_error *err);
/* The same with a compact set: `in` is all of it. `from` is what the request for it named, and where the
** replica must still stand (NL_E_POSITION). NL_E_HASH: damaged, or this replica's pages are not what
** the primary takes them for. Nothing is written before the state hash is known to come out right. */
int nl_applier_compact(
    nl_applier *a,
    const nl_state *from,
    const uint8_t *in,
    size_t n,
    int wait_ms,                /* for locks */
    nl_set_header *set,         /* OUT: header of the set */
    nl_state *out,              /* OUT: state after */
    nl_error *err);
/* The same for a set larger than memory. begin takes the write lock until commit or rollback. */
int nl_applier_begin(nl_applier *a, const nl_set_header *set, int wait_ms, nl_state *at, nl_error *err);
int nl_applier_chunk(nl_applier *a, const nl_chunk *c, nl_error *err); /* on failure: roll back */
int nl_applier_commit(nl_applier *a, nl_state *out, nl_error *err);    /* on failure: rolled back */
void nl_applier_rollback(nl_applier *a);
int nl_applier_checkpoint(
    nl_applier *a,
    int mode,                   /* NL_CHECKPOINT_* */
    int wait_ms,                /* how long RESTART and TRUNCATE may wait for readers */
    uint32_t *wal_frames,       /* OUT: frames in the WAL */
    uint32_t *moved,            /* OUT: of them already in the database file */
    nl_error *err);
/* Hash every page: `hash` beside the header's own claim in `at`. Fills the page-hash table. */
int nl_applier_full_hash(nl_applier *a, nl_state *at, uint64_t *hash, nl_error *err);
/* Take over a table of page hashes that belongs to `at`: the next changes then read no old page back.
** hashes[i] is that of page i + 1; 0 = not known; at->pages entries. Forgotten unless the file stands at
** `at` when a set is applied; a wrong entry makes the set's state hash differ, and it is refused. */
int nl_applier_adopt(nl_applier *a, const nl_state *at, const uint64_t *hashes, nl_error *err);
/* Repair (repair.c). Survey: hash every page as it is, whatever the header says. `at` is what it says;
** with `adopt` a file that is no replica counts, too, and has the position zero. wait_ms < 0: as long as
** it takes. */
int nl_applier_survey(
    nl_applier *a,
    int adopt,
    int wait_ms,
    nl_state *at,
    uint64_t *hash,             /* OUT: state hash of the pages */
    uint32_t *cookie,           /* OUT: schema cookie of page 1 */
    nl_error *err);
/* nl_applier_state of a file that may have become shorter than page 1 says. */
int nl_applier_claim(nl_applier *a, nl_state *out, nl_error *err);
/* Hashes of n ranges of 2^span pages each as surveyed, big-endian. */
void nl_applier_ranges(const nl_applier *a, uint32_t first, uint32_t span, uint32_t n, uint8_t *out);
/* Instead of nl_applier_begin, for a set with NL_SET_REPAIR. NL_E_POSITION: the file has changed since
** the survey; nothing was written. */
int nl_applier_repair(nl_applier *a, const nl_set_header *set, int wait_ms, nl_error *err);
/* Another key for a sealed database (rekey.c). Begin: both keys open it from then on, and a new data key seals;
** once more with the same new key: goes on. NL_E_KEY: a change to a third key is under way. */
int nl_applier_rekey_begin(nl_applier *a, nl_key *new_key, int wait_ms, nl_error *err);
/* One transaction: seals some of the pages anew that are in the file under the old data key. */
int nl_applier_rekey_pages(
    nl_applier *a,
    uint32_t *at,           /* IN: page to look at first, from 1. OUT: where to go on, 0: it was the last */
    uint32_t *count,        /* OUT: pages written */
    int wait_ms,
    nl_error *err);
/* No page and no frame is left that the old data key sealed: the new key alone opens the file from then on. */
int nl_applier_rekey_end(nl_applier *a, nl_key *new_key, int wait_ms, nl_error *err);
/* Flush the database file itself to the disk (fdatasync), through a connection of its own. */
int nl_sync_database(const char *path, nl_key *key, nl_error *err);

/* ------------------------------------------------------------------ bootstrap (bootstrap.c) */

/* A replica's first file under a temporary name. One thread at a time. */
typedef struct nl_bootstrap nl_bootstrap;
int nl_bootstrap_open(
    const char *path,
    nl_key *key,            /* NULL: a plain file */
    uint32_t page_size,
    nl_bootstrap **out,
    nl_error *err);
/* Go on with a file that an earlier one left: its pages are hashed as they are. `pages` is how many whole
** ones there are. NL_E_KEY, NL_E_FORMAT: it is not sealed with this key. */
int nl_bootstrap_resume(
    const char *path,
    nl_key *key,
    uint32_t page_size,
    nl_bootstrap **out,
    uint32_t *pages,
    nl_error *err);
int nl_bootstrap_chunk(nl_bootstrap *b, const nl_chunk *c, nl_error *err);
uint64_t nl_bootstrap_hash(const nl_bootstrap *b, uint32_t pages);   /* XOR over pages 1..pages */
/* Check completeness and state hash, write page 1 with the replica header, cut to size. */
int nl_bootstrap_finish(nl_bootstrap *b, const nl_state *at, nl_error *err);
int nl_bootstrap_sync(nl_bootstrap *b, nl_error *err);
/* Hashes of pages 1..pages as they are in the file; 0 = no such page. */
void nl_bootstrap_hashes(const nl_bootstrap *b, uint64_t *out, uint32_t pages);
void nl_bootstrap_close(nl_bootstrap *b);


/* ------------------------------------------------------------------ counters (counters.c) */

/* What last_insert_rowid(), changes() and total_changes() answer next. No statement may be under way. */
int nl_db_set_counters(nl_db *db, int64_t last_rowid, int64_t changes, int64_t total_changes);

/* ------------------------------------------------------------------ what a transaction changed (watch.c) */

#define NL_CHANGED_TABLES 64 /* tables of one transaction that are told apart */
#define NL_CHANGED_NAME 128  /* bytes of a name, its end included */

typedef struct nl_changed {
    int64_t inserted;            /* rows */
    int64_t updated;
    int64_t deleted;
    char table[NL_CHANGED_NAME]; /* of the main database, as it was created */
} nl_changed;

/* Count the rows that each transaction changes from now on. */
int nl_db_watch(nl_db *db, nl_error *err);
/* Those of the last transaction, if it was committed and has not been asked for: n tables, and `lost` rows of
** tables beyond the room. Nothing may run on the connection until the answer has been read. */
const nl_changed *nl_db_changed(nl_db *db, uint32_t *n, uint32_t *lost);

/* ------------------------------------------------------------------ hrana (hrana.c) */

#define NL_HRANA_RESULT 0    /* one StmtResult object */
#define NL_HRANA_NO_ROWS 1   /* the same with an empty list of rows */
#define NL_HRANA_CURSOR 2    /* cursor entries, one per line: step_begin, row, step_end */

typedef struct nl_hrana_report {
    int64_t step;           /* IN: number of the step, for a cursor's step_begin */
    int64_t most_rows;      /* IN: rows that a result may have, 0: no limit; not of a cursor */
    size_t size;            /* bytes in nl_stmt_out() */
    int64_t rows;           /* rows so far */
    int64_t last_rowid;     /* IN and out: the connection's counters, before and after it */
    int64_t changes;
    int64_t total_changes;
    int64_t written;        /* rows changed by it, triggers included */
    int64_t began_ns;       /* monotonic clock */
    int64_t total_before;   /* total_changes() before */
    int32_t in_transaction; /* 1 inside BEGIN ... COMMIT, after the statement */
    int32_t writing;        /* 1: that transaction holds the write lock of the main database */
    int32_t deferred;       /* 1: a deferred foreign key is violated now */
    int32_t over_budget;    /* 1: it was stopped because it used up nl_db_budget() */
    int32_t more;           /* 1: a cursor that goes on with nl_hrana_more */
    int32_t notable;        /* 1: the statement took NL_HRANA_NOTABLE_US or more */
    int64_t us;             /* that it took, where it came to its end */
    int64_t all;            /* statements that came to their end; this and the rest are never set back */
    int64_t all_rows;       /* that they answered */
    int64_t all_written;    /* that they changed */
    int64_t all_us;         /* that they took */
} nl_hrana_report;
#define NL_HRANA_NOTABLE_US 1000

/* Bind, step to the end, encode, reset: one call. A result above `target` bytes or `most_rows` is
** NL_E_TOO_BIG; a cursor stops behind `target` with `more` set. On failure the rows so far are in nl_stmt_out(). */
int nl_hrana_run(
    nl_stmt *s,
    const uint8_t *params,      /* one MessagePack array; its length is that of the parameters */
    size_t n,
    int shape,                  /* NL_HRANA_* */
    size_t target,
    nl_hrana_report *out,
    nl_error *err);
int nl_hrana_more(nl_stmt *s, size_t target, nl_hrana_report *out, nl_error *err);

/* ------------------------------------------------------------------ tail (tail.c, base.c, changes.c) */

/* The primary's reader of one WAL: connections, pin, page-hash table. One thread at a time. */
typedef struct nl_tail nl_tail;

typedef struct nl_tail_state {
    uint32_t page_size;     /* bytes */
    uint32_t pages;         /* database size at `frame` */
    uint32_t start;         /* frame at which the generation begins; mostly 0 */
    uint32_t frame;         /* last commit frame taken */
    uint32_t live;          /* last commit frame in the WAL at the latest look */
    uint32_t bound;         /* 1: `salt` is that of this generation's WAL; 0: it had no frame yet */
    uint32_t mark;          /* read lock of the pin: 0 = that of an empty WAL */
    uint32_t checksum[2];   /* running WAL checksum after `frame` */
    uint32_t salt[2];       /* of the WAL */
    uint64_t hash;          /* state hash at `frame` */
} nl_tail_state;

/* Opens a WAL-mode database and pins its WAL. The path is opened by SQLite alone. */
int nl_tail_open(const char *path, nl_key *key, nl_tail **out, nl_error *err);
void nl_tail_close(nl_tail *t);              /* releases pin and locks; never checkpoints */
int nl_tail_repin(nl_tail *t, nl_error *err); /* move the pin to the head of the log */

/* Look without taking frames: live, salt, checksum of `frame` (0 when the WAL has no such frame),
** and the first 100 bytes of page 1. */
int nl_tail_look(nl_tail *t, uint32_t frame, nl_tail_state *out, uint8_t page1[100], nl_error *err);
/* The base of a generation, either from a page-hash table (8 bytes per page, big-endian) that was
** right at `at` (frame, bound, salt, checksum), or by hashing every page as it is now. */
int nl_tail_load(
    nl_tail *t, const uint8_t *table, uint32_t pages, const nl_tail_state *at, nl_error *err);
int nl_tail_scan(nl_tail *t, nl_error *err);
/* The next generation begins where this one stands, in the same WAL. */
int nl_tail_rebase(nl_tail *t, nl_error *err);

/* Open a read transaction at the head of the log and take every frame up to it. NL_E_RESET: the
** generation does not go on; nothing is open then. end() is idempotent. */
int nl_tail_begin(nl_tail *t, nl_error *err);
void nl_tail_end(nl_tail *t);
void nl_tail_get(const nl_tail *t, nl_tail_state *out);
/* Inside begin/end: hash every page again. `bad` is the first page that differs from the table. */
int nl_tail_verify(nl_tail *t, uint64_t *hash, uint32_t *bad, nl_error *err);

/* Size and state hash at a commit of this generation; answers 0 when `frame` is none. */
int nl_tail_lookup(const nl_tail *t, uint32_t frame, uint32_t *pages, uint64_t *hash);
/* On a replica: the primary's position and state hash at a commit of this generation but its first.
** NL_E_NOT_REPLICA when it has not written them. */
int nl_tail_stands(nl_tail *t, uint32_t frame, nl_position *position, uint64_t *hash, nl_error *err);
/* Entries of the page-hash table, big-endian; 0 beyond the database. */
void nl_tail_table(const nl_tail *t, uint32_t first, uint32_t n, uint8_t *out);
/* Commits after a frame: frame u32, pages u32, hash u64, big-endian. Answers how many. out may be NULL. */
uint32_t nl_tail_commits(const nl_tail *t, uint32_t after, uint8_t *out, uint32_t max);
/* Page numbers of the frames after `after`, u32 big-endian. Answers how many. */
uint32_t nl_tail_frames(const nl_tail *t, uint32_t after, uint8_t *out, uint32_t max);
/* (page u32, last frame u32) of every page in this generation, ascending. out may be NULL to count. */
int nl_tail_index(nl_tail *t, uint8_t *out, uint32_t max, uint32_t *pairs, nl_error *err);
/* Bytes that a frame takes in the WAL file; more than in memory where it is sealed. */
uint32_t nl_tail_wal_step(const nl_tail *t);
/* Bytes of the WAL file as they are, sealed or not (the pin keeps them). */
int nl_tail_read_wal(nl_tail *t, uint64_t offset, size_t n, uint8_t *out, nl_error *err);

/* Page sets, inside begin/end: empty the selection, add page numbers to it (those of older
** generations as (page, last frame) pairs, counted when last frame > after), finish it, lay out
** chunks from it. `selected` answers at least page 1. */
int nl_tail_select(nl_tail *t, nl_error *err);
int nl_tail_select_pairs(
    nl_tail *t, const uint8_t *pairs, uint32_t n, uint32_t after, nl_error *err);
int nl_tail_select_frames(nl_tail *t, uint32_t after, nl_error *err);
int nl_tail_select_range(nl_tail *t, uint32_t first, uint32_t last, nl_error *err);
/* Pages first..last, as far as there are any, in addition. */
int nl_tail_select_more(nl_tail *t, uint32_t first, uint32_t last, nl_error *err);
/* Compare a replica's runs, which nl_ranges_check has accepted, with the page-hash table. Single pages
** that differ or are wanted join the selection; ranges that differ set their bit (lowest first) in
** `bits`, which is zeroed and has room for all of them. */
int nl_tail_compare(nl_tail *t, const uint8_t *runs, size_t n, uint8_t *bits, nl_error *err);
int nl_tail_selected(nl_tail *t, uint32_t *count, nl_error *err);
/* Raw body of one chunk: pages number at..at+n of the selection. NL_E_HASH: a page on disk is not
** what was committed. */
int nl_tail_chunk(
    nl_tail *t,
    uint32_t at,
    uint32_t n,
    uint8_t *out,
    size_t out_size,
    size_t *written,        /* OUT */
    uint64_t *digest,       /* OUT */
    nl_error *err);
/* A handle of its own on the finished selection and the transaction it was made in: nl_tail_chunk
** reads from it beside whatever the tail does next; nl_tail_close ends it. NL_E_BUSY: a commit came in
** between; select again. */
int nl_tail_detach(nl_tail *t, nl_tail **out, nl_error *err);
/* Finish the selection; if it is one chunk and fits, write the whole set (header, chunk, end) to out.
** *written == 0: it does not; set->count holds how many pages there are. */
int nl_tail_answer(
    nl_tail *t,
    nl_set_header *set,     /* all but count; count is set here */
    uint8_t *out,
    size_t out_size,
    size_t *written,        /* OUT */
    nl_error *err);

/* Test builds only: move the lock-byte page of SQLite and of frame.c, before anything is opened. */
int nl_test_pending_byte(uint32_t offset);

/* Inside begin/end, after `selected`: the selection as a compact set for a reader that stands at `from`,
** frame `frame` of this generation. *written == 0: it cannot be (the images of that time are gone, the
** database shrank, more than a chunk) or does not fit into `room`; the selection then still serves. */
int nl_tail_compact(
    nl_tail *t,
    const nl_state *from,
    uint32_t frame,
    nl_set_header *set,     /* all but count; count is set here */
    uint8_t *out,
    size_t room,
    size_t *written,        /* OUT */
    nl_error *err);

/* ------------------------------------------------------------------ roll (roll.c) */

/* Copy frames up to the pin into the database file without hindering anybody. May run while another
** thread reads through the handle, but not beside repin, roll or close. */
int nl_roll_passive(nl_tail *t, uint32_t *copied, nl_error *err);
/* Take CKPT and WRITE (NL_E_BUSY after wait_ms), then every frame. Nobody commits until finish or
** abort; a read transaction of this handle must not be open. */
int nl_roll_begin(nl_tail *t, int wait_ms, nl_error *err);
/* In between, and not needed: copy every frame into the database file, so that who begins to read now does
** not need the WAL. */
int nl_roll_copy(nl_tail *t, nl_error *err);
/* Checkpoint, empty the WAL, pin anew, release the locks. NL_E_BUSY: a reader needs the WAL; it was
** pinned again and the generation goes on. NL_OK: the next generation begins, at frame 0. */
int nl_roll_finish(
    nl_tail *t,
    int keep,               /* the file keeps its size, to be written over */
    nl_error *err);
void nl_roll_abort(nl_tail *t);

/* ------------------------------------------------------------------ others (others.c) */

#define NL_OTHERS_WRITE 1       /* somebody writes, or checkpoints FULL or beyond */
#define NL_OTHERS_CHECKPOINT 2  /* somebody checkpoints */
#define NL_OTHERS_READ 4        /* somebody reads out of the WAL, or is about to write */

/* Locks that other processes hold on the database; takes none. */
int nl_tail_others(nl_tail *t, uint32_t *locks, nl_error *err);
/* Give up the pin: the WAL may be emptied from here on, until nl_tail_repin. */
int nl_tail_unpin(nl_tail *t, nl_error *err);

/* ------------------------------------------------------------------ inotify (inotify.c) */

/* What is not negative, or -errno; -ENOSYS where there is no inotify. */
int nl_inotify_open(void);                          /* a descriptor that does not block */
int nl_inotify_file(int fd, const char *path);      /* hear of the next write to it; the watch */
int nl_inotify_folder(int fd, const char *path);    /* hear of names that come and go in it; the watch */
int nl_inotify_remove(int fd, int watch);

/* ------------------------------------------------------------------ push (push.c) */

typedef struct nl_pusher nl_pusher;

/* A private connection on a primary's database, for one push. durable: a commit is synced. */
int nl_pusher_open(const char *path, nl_key *key, int durable, nl_pusher **out, nl_error *err);
/* Take the write lock (NL_E_BUSY after wait_ms). NL_E_POSITION: the log does not end at `frame` of the WAL with these
** salts (any, if `frame` is 0); nothing was done. */
int nl_pusher_begin(nl_pusher *p, uint32_t frame, const uint32_t salt[2], int wait_ms, nl_error *err);
/* Frames of a transaction that goes on in the next call: none of them is a commit frame. Their salts and checksums
** do not count. NL_E_FORMAT: they are none that SQLite writes. */
int nl_pusher_frames(nl_pusher *p, const uint8_t *frames, uint32_t n, nl_error *err);
/* The last frames of the push; the very last is a commit frame. When it fails all of the push is undone. NL_E_UNSOUND:
** what results is no sound database. NL_E_TOO_BIG: that took longer to find out than check_ms. */
int nl_pusher_commit(nl_pusher *p, const uint8_t *frames, uint32_t n, int check_ms, nl_error *err);
void nl_pusher_rollback(nl_pusher *p);    /* idempotent */
void nl_pusher_stop(nl_pusher *p);        /* [any thread] a check under way ends */
void nl_pusher_close(nl_pusher *p);
