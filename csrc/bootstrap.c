/*
** bootstrap.c - a replica's first file, written directly.
**
** A snapshot is fuzzy (its pages come from rising positions), so the file is no database until
** `changes` from the snapshot's start have been laid over it. It is written under a temporary name
** with plain pwrite, one call for each run of consecutive pages, and carries no replica header
** until the XOR over its page hashes equals the announced state hash. Placing it under its real
** name is the caller's: that is a matter of names and stale side files, not of pages.
**
** A sealed replica is written sealed: header block, then slots (codec_file.c has the layout). A slot that a
** broken-off download left torn does not open: its page counts as one that is not there.
**
** The descriptor is closed before the file gets its real name. Closing a descriptor of a *live*
** database would drop every POSIX lock that another SQLite in this process holds on it.
*/
#include "nl.h"
#include "bytes.h"
#include "fault.h"
#include "frame.h"
#include "pageset.h"
#include "replica_header.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* One pwrite at most. Larger ones are no faster, and leave the page cache in folios so large that
** each 4 KiB write of a later checkpoint costs three times as much (ext4 walks all of a folio's
** buffers: 8.8 us against 3.2). */
#define BOOTSTRAP_WRITE_MAX 65536u

struct nl_bootstrap {
    int fd;                 /* the temporary file: nobody else's, by the caller's lock */
    uint32_t page_size;     /* bytes */
    uint64_t *hash;         /* hash[pgno-1] of the image in the file; 0 = no such page yet */
    uint32_t pages;         /* entries in use: highest page written */
    uint32_t room;          /* entries allocated */
    uint8_t *page1;         /* newest image of page 1, page_size bytes */
    nl_codec *codec;        /* NULL: a plain file */
    uint8_t *slots;         /* of a sealed one: those that are written or read next */
};

/* Bytes that a page takes in the file, and where the first one is. */
static size_t bootstrap_unit(const nl_bootstrap *b) {
    return b->codec ? b->page_size + NL_SEAL_SIZE : b->page_size;
}

static off_t bootstrap_at(const nl_bootstrap *b, uint32_t pgno) {
    return (b->codec ? NL_BLOCK_SIZE : 0) + (off_t)(pgno - 1) * (off_t)bootstrap_unit(b);
}

static uint32_t bootstrap_at_once(const nl_bootstrap *b) {
    const uint32_t fit = BOOTSTRAP_WRITE_MAX / (uint32_t)bootstrap_unit(b);
    return fit > 0 ? fit : 1; /* the slot of a page of 64 KiB is longer */
}

static int bootstrap_open(
    const char *path, int flags, uint32_t page_size, nl_bootstrap **out, nl_error *err
) {
    nl_bootstrap *b = calloc(1, sizeof *b);
    *out = NULL;
    if (b == NULL) return nl_fail(err, NL_E_NOMEM, "out of memory");
    b->page_size = page_size;
    b->page1 = calloc(1, page_size);
    b->fd = open(path, O_RDWR | O_CLOEXEC | flags, 0644);
    if (b->page1 == NULL || b->fd < 0) {
        int rc = b->fd < 0 ? nl_fail_os(err, errno, "the new replica could not be created")
                           : nl_fail(err, NL_E_NOMEM, "out of memory");
        nl_bootstrap_close(b);
        return rc;
    }
    *out = b;
    return NL_OK;
}

static int bootstrap_write(nl_bootstrap *b, const uint8_t *bytes, size_t n, off_t at, nl_error *err) {
    int fault = NL_FAULT("bootstrap.write");
    if (fault != 0) return nl_fail_os(err, fault, "the new replica could not be written");
    while (n > 0) {
        size_t piece = n < BOOTSTRAP_WRITE_MAX ? n : BOOTSTRAP_WRITE_MAX;
        ssize_t done = pwrite(b->fd, bytes, piece, at);
        if (done < 0) {
            if (errno == EINTR) continue;
            return nl_fail_os(err, errno, "the new replica could not be written");
        }
        bytes += done;
        at += done;
        n -= (size_t)done;
    }
    return NL_OK;
}

/* Room for sealed pages, once there is a codec. */
static int bootstrap_room(nl_bootstrap *b, nl_error *err) {
    b->slots = malloc(bootstrap_at_once(b) * bootstrap_unit(b));
    return b->slots ? NL_OK : nl_fail(err, NL_E_NOMEM, "out of memory");
}

int nl_bootstrap_open(
    const char *path, nl_key *key, uint32_t page_size, nl_bootstrap **out, nl_error *err
) {
    uint8_t block[NL_BLOCK_SIZE];
    int rc = bootstrap_open(path, O_CREAT | O_EXCL, page_size, out, err);
    nl_bootstrap *b = *out;
    if (rc != NL_OK || key == NULL) return rc;
    rc = nl_codec_create(page_size, key, block, &b->codec, err);
    if (rc == NL_OK) rc = bootstrap_room(b, err);
    if (rc == NL_OK) rc = bootstrap_write(b, block, sizeof block, 0, err);
    if (rc == NL_OK) return NL_OK;
    nl_bootstrap_close(b);
    *out = NULL;
    return rc;
}

void nl_bootstrap_close(nl_bootstrap *b) {
    if (b == NULL) return;
    if (b->fd >= 0) close(b->fd);
    nl_codec_free(b->codec);
    free(b->slots);
    free(b->hash);
    free(b->page1);
    free(b);
}

static int bootstrap_fit(nl_bootstrap *b, uint32_t pages) {
    if (pages > b->room) {
        size_t room = (size_t)pages + pages / 2 + 1024;
        uint64_t *grown = realloc(b->hash, room * sizeof *grown);
        if (grown == NULL) return NL_E_NOMEM;
        memset(grown + b->room, 0, (room - b->room) * sizeof *grown);
        b->hash = grown;
        b->room = (uint32_t)room;
    }
    if (pages > b->pages) b->pages = pages;
    return NL_OK;
}

/* Pages first.. that lie side by side in memory. */
static int bootstrap_put(nl_bootstrap *b, uint32_t first, uint32_t n, const uint8_t *pages, nl_error *err) {
    const uint32_t most = bootstrap_at_once(b);
    const size_t unit = bootstrap_unit(b);
    int rc = NL_OK;
    if (b->codec == NULL) return bootstrap_write(b, pages, n * unit, bootstrap_at(b, first), err);
    for (uint32_t i = 0, some; rc == NL_OK && i < n; i += some) {
        some = n - i < most ? n - i : most;
        for (uint32_t k = 0; rc == NL_OK && k < some; k++) {
            const uint8_t *page = pages + (size_t)(i + k) * b->page_size;
            rc = nl_codec_seal_page(b->codec, first + i + k, page, b->slots + k * unit, err);
        }
        if (rc == NL_OK) rc = bootstrap_write(b, b->slots, some * unit, bootstrap_at(b, first + i), err);
    }
    return rc;
}

/* Hash the whole pages that are in the file. What was being written when the process ended is among
** them: nothing is believed of them but their hashes, which the primary compares. */
static int bootstrap_hash_all(nl_bootstrap *b, uint32_t pages, uint8_t *block, nl_error *err) {
    const uint32_t most = bootstrap_at_once(b);
    const size_t unit = bootstrap_unit(b);
    for (uint32_t first = 1, n; first <= pages; first += n) {
        n = pages - first + 1 < most ? pages - first + 1 : most;
        ssize_t got = pread(b->fd, b->codec ? b->slots : block, n * unit, bootstrap_at(b, first));
        if (got != (ssize_t)(n * unit)) {
            return nl_fail_os(err, got < 0 ? errno : EIO, "the new replica could not be read");
        }
        for (uint32_t i = 0; b->codec && i < n; i++) {
            uint8_t *page = block + (size_t)i * b->page_size;
            int rc = nl_codec_open_page(b->codec, first + i, b->slots + i * unit, page, err);
            if (rc == NL_E_NOMEM) return rc;
            b->hash[first + i - 1] = rc == NL_OK ? nl_page_hash(page, b->page_size, first + i) : 0;
        }
        if (!b->codec) nl_page_hashes(block, b->page_size, first, n, b->hash + first - 1);
        if (first == 1) memcpy(b->page1, block, b->page_size);
    }
    return NL_OK;
}

/* What an earlier download began is sealed with this key, or not at all. */
static int bootstrap_codec(nl_bootstrap *b, nl_key *key, nl_error *err) {
    uint8_t block[NL_BLOCK_SIZE];
    if (key == NULL) return NL_OK;
    ssize_t got = pread(b->fd, block, sizeof block, 0);
    if (got < 0) return nl_fail_os(err, errno, "the new replica could not be read");
    memset(block + got, 0, sizeof block - (size_t)got);
    int rc = nl_codec_open(block, key, &b->codec, err);
    if (rc != NL_OK) return rc;
    if (nl_codec_page_size(b->codec) != b->page_size) {
        return nl_fail(err, NL_E_FORMAT, "the new replica was begun with another page size");
    }
    return bootstrap_room(b, err);
}

int nl_bootstrap_resume(
    const char *path, nl_key *key, uint32_t page_size, nl_bootstrap **out, uint32_t *pages, nl_error *err
) {
    struct stat st;
    uint8_t *block = malloc(BOOTSTRAP_WRITE_MAX);
    nl_bootstrap *b = NULL;
    int rc = block == NULL ? nl_fail(err, NL_E_NOMEM, "out of memory")
                           : bootstrap_open(path, 0, page_size, &b, err);
    *out = NULL;
    *pages = 0;
    if (rc == NL_OK) rc = bootstrap_codec(b, key, err);
    if (rc == NL_OK && fstat(b->fd, &st) != 0) {
        rc = nl_fail_os(err, errno, "the new replica could not be read");
    }
    if (rc == NL_OK) {
        const off_t rest = st.st_size - bootstrap_at(b, 1);
        uint64_t whole = rest > 0 ? (uint64_t)rest / bootstrap_unit(b) : 0;
        *pages = whole > UINT32_MAX - 1 ? UINT32_MAX - 1 : (uint32_t)whole;
        if (bootstrap_fit(b, *pages) != NL_OK) {
            rc = nl_fail(err, NL_E_NOMEM, "no memory for the page-hash table");
        }
    }
    if (rc == NL_OK) rc = bootstrap_hash_all(b, *pages, block, err);
    free(block);
    if (rc != NL_OK) {
        nl_bootstrap_close(b);
        return rc;
    }
    *out = b;
    return NL_OK;
}

int nl_bootstrap_chunk(nl_bootstrap *b, const nl_chunk *c, nl_error *err) {
    uint32_t last = c->pgnos[c->count - 1];
    if (c->page_size != b->page_size) {
        return nl_fail(err, NL_E_FORMAT, "the chunk has another page size");
    }
    if (bootstrap_fit(b, last) != NL_OK) {
        return nl_fail(err, NL_E_NOMEM, "no memory for the page-hash table");
    }
    for (uint32_t i = 0; i < c->count; i++) b->hash[c->pgnos[i] - 1] = c->hashes[i];
    if (c->pgnos[0] == 1) memcpy(b->page1, c->pages, b->page_size);
    for (uint32_t i = 0, n; i < c->count; i += n) {
        n = 1; /* a run of consecutive pages lies in one piece in the chunk and in the file */
        while (i + n < c->count && c->pgnos[i + n] == c->pgnos[i] + n) n++;
        int rc = bootstrap_put(b, c->pgnos[i], n, c->pages + (size_t)i * b->page_size, err);
        if (rc != NL_OK) return rc;
    }
    return NL_OK;
}

uint64_t nl_bootstrap_hash(const nl_bootstrap *b, uint32_t pages) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < pages && i < b->pages; i++) sum ^= b->hash[i];
    return sum;
}

void nl_bootstrap_hashes(const nl_bootstrap *b, uint64_t *out, uint32_t pages) {
    uint32_t known = pages < b->pages ? pages : b->pages;
    if (known > 0) memcpy(out, b->hash, known * sizeof *out);
    if (pages > known) memset(out + known, 0, (pages - known) * sizeof *out);
}

/* Every page of 1..pages is there but the lock-byte page, which never travels. */
static uint32_t bootstrap_missing(const nl_bootstrap *b, uint32_t pages) {
    uint32_t lock = nl_lock_page(b->page_size);
    for (uint32_t pgno = 1; pgno <= pages; pgno++) {
        if (pgno == lock) continue;
        if (pgno > b->pages || b->hash[pgno - 1] == 0) return pgno;
    }
    return 0;
}

/* The lock-byte page never travels. A plain file has a hole there; no page of a sealed one is without a seal. */
static int bootstrap_lock_page(nl_bootstrap *b, uint32_t pages, nl_error *err) {
    const uint32_t lock = nl_lock_page(b->page_size);
    if (b->codec == NULL || lock > pages) return NL_OK;
    uint8_t *zeros = calloc(1, b->page_size);
    int rc = zeros ? bootstrap_put(b, lock, 1, zeros, err) : nl_fail(err, NL_E_NOMEM, "out of memory");
    free(zeros);
    return rc;
}

int nl_bootstrap_finish(nl_bootstrap *b, const nl_state *at, nl_error *err) {
    uint32_t missing = bootstrap_missing(b, at->pages);
    if (at->pages == 0 || missing != 0) {
        nl_fail(err, NL_E_FORMAT, "the snapshot ended before all pages were there");
        if (err != NULL) err->page = missing;
        return NL_E_FORMAT;
    }
    if (nl_bootstrap_hash(b, at->pages) != at->hash) {
        return nl_fail(err, NL_E_HASH, "the pages do not hash to the announced state");
    }
    int rc = nl_replica_page_one(b->page1, b->page_size, at->position, at->hash, err);
    if (rc == NL_OK) rc = bootstrap_put(b, 1, 1, b->page1, err);
    if (rc == NL_OK) rc = bootstrap_lock_page(b, at->pages, err);
    if (rc != NL_OK) return rc;
    /* a shrink between snapshot and changes left a tail; the lock-byte page may be the last */
    if (ftruncate(b->fd, bootstrap_at(b, at->pages + 1)) != 0) {
        return nl_fail_os(err, errno, "the new replica could not be cut to size");
    }
    return NL_OK;
}

int nl_bootstrap_sync(nl_bootstrap *b, nl_error *err) {
    if (fsync(b->fd) != 0) return nl_fail_os(err, errno, "the new replica could not be synced");
    return NL_OK;
}
