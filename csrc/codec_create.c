/*
** codec_create.c - a sealed database that did not exist before.
**
** It appears complete, by link(2): a file with half of a header block would be damaged for ever, and SQLite
** cannot write page 1 itself, since it does so before a database is in WAL mode, with a journal.
*/
#include "codec_vfs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "aead.h"
#include "bytes.h"

typedef struct create_file {
    nl_codec *codec;
    uint32_t page_size;
    uint8_t block[NL_BLOCK_SIZE];
    uint8_t *slot;
} create_file;

/* Page 1 as SQLite makes it for an empty database: https://sqlite.org/fileformat2.html */
static void create_page1(uint8_t *page, uint32_t size)
{
    memset(page, 0, size);
    memcpy(page, "SQLite format 3", 16);
    page[16] = (uint8_t)(size >> 8); /* 65536 is written as 1 */
    page[17] = (uint8_t)(size >> 16);
    page[18] = page[19] = 2;         /* WAL */
    page[21] = 64;                   /* the three fractions are constants */
    page[22] = page[23] = 32;
    nl_put32(page + 24, 1);          /* changes so far */
    nl_put32(page + 28, 1);          /* pages */
    nl_put32(page + 92, 1);          /* the number of changes for which the sizes above hold */
    nl_put32(page + 96, SQLITE_VERSION_NUMBER);
    page[100] = 0x0d;                /* a leaf of a table, without cells; 65536 is written as 0 */
    page[105] = (uint8_t)(size >> 8);
    page[106] = (uint8_t)size;
}

static int create_make(create_file *made, const char *path, const nl_sealing *with)
{
    nl_error why;
    uint8_t *page = NULL;

    memset(made, 0, sizeof *made);
    made->page_size = with->page_size ? with->page_size : 4096;
    int code = nl_codec_create(made->page_size, with->key, made->block, &made->codec, &why);
    if (code == NL_OK) {
        page = malloc(made->page_size);
        made->slot = malloc(made->page_size + NL_SEAL_SIZE);
        if (!page || !made->slot) code = nl_fail(&why, NL_E_NOMEM, "no memory for a page");
    }
    if (code == NL_OK) {
        create_page1(page, made->page_size);
        code = nl_codec_seal_page(made->codec, 1, page, made->slot, &why);
    }
    free(page);
    if (code == NL_OK) return SQLITE_OK;
    const nl_sealed where = {.path = path};
    return nl_sealed_fail(SQLITE_CANTOPEN, &why, &where);
}

static void create_done(create_file *made)
{
    nl_codec_free(made->codec);
    free(made->slot);
}

static int create_write(int fd, const uint8_t *bytes, size_t n)
{
    while (n > 0) {
        ssize_t done = write(fd, bytes, n);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return -1;
        bytes += done;
        n -= (size_t)done;
    }
    return 0;
}

/* A failure of the operating system under a path. */
static int create_failed(int errnum, const char *path, const char *what)
{
    const nl_sealed where = {.path = path};
    nl_error why;

    nl_fail_os(&why, errnum, what);
    return nl_sealed_fail(errnum == ENOSPC ? SQLITE_FULL : SQLITE_CANTOPEN, &why, &where);
}

static void create_sync_folder(const char *path)
{
    char *folder = strdup(path), *slash = folder ? strrchr(folder, '/') : NULL;

    if (slash) {
        slash[1] = 0;
        int fd = open(folder, O_RDONLY | O_CLOEXEC | O_DIRECTORY);
        if (fd >= 0) {
            (void)fsync(fd);
            close(fd);
        }
    }
    free(folder);
}

int nl_sealed_create(const char *path, const nl_sealing *with)
{
    create_file made;
    nl_error why;
    uint8_t drawn[8];
    char *other = NULL;
    int fd = -1, failed = 0;

    int rc = create_make(&made, path, with);
    if (rc == SQLITE_OK && nl_random(drawn, sizeof drawn, &why) != NL_OK) rc = SQLITE_NOMEM;
    if (rc == SQLITE_OK) {
        other = sqlite3_mprintf("%s-nlnew-%08x%08x", path, nl_get32(drawn), nl_get32(drawn + 4));
        if (!other) rc = SQLITE_NOMEM;
    }
    if (rc == SQLITE_OK) {
        fd = open(other, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd < 0) rc = create_failed(errno, path, "create the file");
    }
    if (fd >= 0) {
        failed = create_write(fd, made.block, sizeof made.block)
            || create_write(fd, made.slot, made.page_size + NL_SEAL_SIZE) || fsync(fd);
        if (failed) rc = create_failed(errno, path, "write the new file");
        close(fd);
        if (!failed && link(other, path) && errno != EEXIST) rc = create_failed(errno, path, "link the new file");
        unlink(other);
        create_sync_folder(path);
    }
    sqlite3_free(other);
    create_done(&made);
    return rc;
}

int nl_sealed_create_in(sqlite3_file *file, const char *path, const nl_sealing *with)
{
    create_file made;

    int rc = create_make(&made, path, with);
    /* The block last: without it the file still counts as empty... to whoever reads its first bytes. */
    if (rc == SQLITE_OK) {
        rc = file->pMethods->xWrite(file, made.slot, (int)(made.page_size + NL_SEAL_SIZE), NL_BLOCK_SIZE);
    }
    if (rc == SQLITE_OK) rc = file->pMethods->xSync(file, SQLITE_SYNC_NORMAL);
    if (rc == SQLITE_OK) rc = file->pMethods->xWrite(file, made.block, sizeof made.block, 0);
    if (rc == SQLITE_OK) rc = file->pMethods->xSync(file, SQLITE_SYNC_NORMAL);
    create_done(&made);
    return rc;
}
