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
**   GIL        released by cffi around every call; no function calls back into Python
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
const char *nl_sqlite_source_id(void);    /* [any thread] static string */
const char *nl_openssl_version(void);     /* [any thread] static string */
int nl_init(nl_error *err);               /* once per process, before anything else; idempotent */

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
#define NL_SET_REPAIR 2            /* flag: reserved for repair; refused until understood */
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
    nl_position from;       /* all zero for a snapshot */
    nl_position to;
    uint64_t hash_from;     /* state hash at from; 0 for a snapshot */
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
    uint32_t count,             /* 1 .. NL_CHUNK_MAX_PAGES */
    uint8_t *out,
    size_t out_size,            /* at least nl_chunk_size(page_size, count) */
    size_t *written,            /* OUT */
    uint64_t *digest,           /* OUT */
    nl_error *err);
