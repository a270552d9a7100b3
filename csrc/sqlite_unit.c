/*
** sqlite_unit.c - SQLite and the parts of nearlite that need its private functions, as one
** translation unit.
**
** The amalgamation is obtained by build_ffi.py, pinned by hash, and never edited: what differs from
** stock is the list of options below, each with its reason. It is found through -isystem, so that
** the compiler's warnings, which are errors for our files, do not apply to it. Its functions keep external
** linkage but are hidden (-fvisibility=hidden): rows.c and others call them, no other library in
** the process can.
*/

/* ---- what the process needs */

/* 1 = the code for mutexes is there and each connection chooses: our handles are opened with
** NOMUTEX because their owner serialises calls, which costs nothing; the process-wide structures
** (page cache, VFS list, allocator) must be guarded, since every Python thread has its own connection. */
#define SQLITE_THREADSAFE 1
/* A counter under a global mutex at every malloc; nobody reads it. */
#define SQLITE_DEFAULT_MEMSTATUS 0
/* Deprecated by SQLite itself, and the applier's connection must be private (no second owner of its
** btree). `cache=shared` in a URI is then simply ignored. */
#define SQLITE_OMIT_SHARED_CACHE 1
/* KiB (negative: not pages) of pages that a connection keeps at most. SQLite's own 2 MiB date from 2016;
** a point select whose pages have to be read again costs 15 % more. PRAGMA cache_size changes it. */
#define SQLITE_DEFAULT_CACHE_SIZE (-8192)
/* Pages that a connection allocates with its first one. SQLite's 20 are 87 KiB, the larger half of a connection
** that reads a few pages now and then, of which a server of many databases has thousands. */
#define SQLITE_DEFAULT_PCACHE_INITSZ 0
/* What a C library of this century has. Without USLEEP/NANOSLEEP a busy handler sleeps whole
** seconds, without FDATASYNC each sync also writes the inode. */
#define HAVE_USLEEP 1
#define HAVE_GMTIME_R 1
#define HAVE_LOCALTIME_R 1
#if defined(__linux__)
#define HAVE_FDATASYNC 1
#define HAVE_MALLOC_H 1
#define HAVE_MALLOC_USABLE_SIZE 1 /* saves 8 bytes per allocation and the copy of the size */
#endif

/* ---- what replication needs */

#define SQLITE_ENABLE_SNAPSHOT 1       /* sqlite3_snapshot_get() keeps the pin off READ_LOCK(0) */
#define SQLITE_ENABLE_SESSION 1        /* changesets, for offline writes */
#define SQLITE_ENABLE_PREUPDATE_HOOK 1 /* sessions are built on it */
#define SQLITE_ENABLE_DBPAGE_VTAB 1    /* reading pages through SQL when diagnosing a file */
#define SQLITE_ENABLE_DBSTAT_VTAB 1    /* sizes per table in `status` */

/* ---- what programs expect of the standard library's SQLite */

#define SQLITE_ENABLE_FTS5 1
#define SQLITE_ENABLE_FTS4 1             /* databases with FTS3/4 tables exist and are replicated */
#define SQLITE_ENABLE_FTS3_PARENTHESIS 1 /* as the Linux distributions build it */
#define SQLITE_ENABLE_RTREE 1
#define SQLITE_ENABLE_MATH_FUNCTIONS 1
#define SQLITE_SOUNDEX 1
#define SQLITE_ENABLE_COLUMN_METADATA 1 /* origin of a result column: description, decltypes */
#define SQLITE_ENABLE_STAT4 1           /* without it sqlite_stat4 of a foreign file is ignored */
#define SQLITE_MAX_VARIABLE_NUMBER 250000 /* as Debian builds it; executemany of wide rows */
/* JSON and DESERIALIZE are on by default. LOAD_EXTENSION is compiled in and off until
** enable_load_extension(True) on one connection. SQLITE_DQS stays at SQLite's default: double-quoted
** strings are accepted, as by the SQLite under the standard library; a drop-in may not be stricter.
** SQLITE_ENABLE_SETLK_TIMEOUT stays off: with it the write lock is taken before the read
** transaction, which the applier's order of locks does not allow. */

#include <sqlite3.c>

/* Ours, in the order of their dependencies; the other files are listed in build_ffi.py. Not guarded
** by __has_include: ccache would hand out an object that was made before the file existed. */
#include "apply.c"
#include "repair.c"
#include "rekey.c"
#include "apply_whole.c"
#include "tail.c"
#include "base.c"
#include "changes.c"
#include "compare.c"
#include "compact_answer.c"
#include "roll.c"
#include "others.c"
#include "push.c"

/* For the child of a fork (ofd.c). The list says which locks the *process* holds, which is true of the
** parent only: a connection of the child that found its file there would believe itself locked. One
** more reference each, so that even closing an inherited connection never reaches the list. */
#include "ofd.h"
void nl_unix_forget(void)
{
    for (unixInodeInfo *p = inodeList; p; p = p->pNext) p->nRef++;
    inodeList = 0;
}

#include "counters.c"
