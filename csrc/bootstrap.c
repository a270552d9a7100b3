/*
** bootstrap.c - a replica's first file, written directly.
**
** A snapshot is fuzzy (its pages come from rising positions), so the file is no database until
** `changes` from the snapshot's start have been laid over it. It is written under a temporary name
** with plain pwrite, one call for each run of consecutive pages, and carries no replica header
** until the XOR over its page hashes equals the announced state hash. Placing it under its real
** name is the caller's: that is a matter of names and stale side files, not of pages.
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
};

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

int nl_bootstrap_open(const char *path, uint32_t page_size, nl_bootstrap **out, nl_error *err) {
    return bootstrap_open(path, O_CREAT | O_EXCL, page_size, out, err);
}

void nl_bootstrap_close(nl_bootstrap *b) {
    if (b == NULL) return;
    if (b->fd >= 0) close(b->fd);
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

/* Hash the whole pages that are in the file. What was being written when the process ended is among
** them: nothing is believed of them but their hashes, which the primary compares. */
static int bootstrap_hash_all(nl_bootstrap *b, uint32_t pages, uint8_t *block, nl_error *err) {
    const uint32_t most = BOOTSTRAP_WRITE_MAX / b->page_size;
    for (uint32_t first = 1, n; first <= pages; first += n) {
        n = pages - first + 1 < most ? pages - first + 1 : most;
        size_t size = (size_t)n * b->page_size;
        ssize_t got = pread(b->fd, block, size, (off_t)(first - 1) * (off_t)b->page_size);
        if (got != (ssize_t)size) {
            return nl_fail_os(err, got < 0 ? errno : EIO, "the new replica could not be read");
        }
        nl_page_hashes(block, b->page_size, first, n, b->hash + first - 1);
        if (first == 1) memcpy(b->page1, block, b->page_size);
    }
    return NL_OK;
}

int nl_bootstrap_resume(
    const char *path, uint32_t page_size, nl_bootstrap **out, uint32_t *pages, nl_error *err
) {
    struct stat st;
    uint8_t *block = malloc(BOOTSTRAP_WRITE_MAX);
    nl_bootstrap *b = NULL;
    int rc = block == NULL ? nl_fail(err, NL_E_NOMEM, "out of memory")
                           : bootstrap_open(path, 0, page_size, &b, err);
    *out = NULL;
    *pages = 0;
    if (rc == NL_OK && fstat(b->fd, &st) != 0) {
        rc = nl_fail_os(err, errno, "the new replica could not be read");
    }
    if (rc == NL_OK) {
        uint64_t whole = (uint64_t)st.st_size / page_size;
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
        int rc = bootstrap_write(b, c->pages + (size_t)i * b->page_size, (size_t)n * b->page_size,
                                 (off_t)(c->pgnos[i] - 1) * (off_t)b->page_size, err);
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
    if (rc == NL_OK) rc = bootstrap_write(b, b->page1, b->page_size, 0, err);
    if (rc != NL_OK) return rc;
    /* a shrink between snapshot and changes left a tail; the lock-byte page may be the last */
    if (ftruncate(b->fd, (off_t)at->pages * (off_t)b->page_size) != 0) {
        return nl_fail_os(err, errno, "the new replica could not be cut to size");
    }
    return NL_OK;
}

int nl_bootstrap_sync(nl_bootstrap *b, nl_error *err) {
    if (fsync(b->fd) != 0) return nl_fail_os(err, errno, "the new replica could not be synced");
    return NL_OK;
}
