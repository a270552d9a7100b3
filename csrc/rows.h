/*
** rows.h - the connection and statement handles, as the C files above them see them.
**
** Python knows nl_db and nl_stmt only by name (nl_api.h). The HTTP side (hrana.c) runs statements
** through the same handles and therefore shares their classification, busy wait and interruption.
*/
#ifndef NL_ROWS_H
#define NL_ROWS_H

#include "buffer.h"
#include "codec_vfs.h"

#include <pthread.h>
#include <sqlite3.h>

/* Of nl_db.running. Freeing is no call of the program's: it may be the garbage collector's, on any thread,
** and whoever comes meanwhile waits for those moments. */
#define NL_INSIDE 1
#define NL_FREEING 2

struct nl_db {
    sqlite3 *sqlite;         /* NULL once closed; written under `guard` */
    pthread_mutex_t guard;   /* held for moments: sqlite against interrupt, and `orphans` */
    int refs;                /* atomic: 1 for the owner, 1 for each statement */
    nl_stmt *first;          /* all statements, a list; touched only while `running` */
    nl_stmt *orphans;        /* freed by their owner, not yet by SQLite; under `guard` */
    int busy_ms;             /* how long a lock is waited for; < 0: for ever */
    uint32_t *collect;       /* flags of the statement being compiled; NULL: nothing is compiled */
    /* While compiling: tables of which no column is read ("count(*)"). SQLite reports them without
    ** their database when the text does not name it; nl_stmt_prepare looks them up afterwards. */
    char unplaced[4][64];
    int alters_main;         /* what is being compiled is an ALTER TABLE of the main database */
    int unplaced_count;      /* may exceed the room: then main is assumed */
    char pragma[32];         /* while compiling: name of the pragma */
    int pragma_set;          /* ... and whether it has a value */
    uint32_t forks;          /* nl_forks() at birth: in the child of a fork this handle is dead */
    nl_sealing sealing;      /* of what this connection opens; key NULL: it is plain */
    const nl_sealing *outer; /* while `running`: what this thread was about before */
    int running;             /* NL_INSIDE while a call is: a second thread is refused, not obeyed */
    uintptr_t caller;        /* atomic: thread in a callback that may use the connection; 0: none is */
    int again;               /* calls that such callbacks are in */
    int copies;              /* copies that are being made of it (backup.c) */
    int receives;            /* ... one is being put in its place: only that may use it */
    int depth;               /* callbacks that are running, one within the other */
    uint8_t *area;           /* NL_CALL_AREA bytes for their arguments; NULL before the first is defined */
    int64_t groups;          /* number of the last aggregate's instance */
    int64_t authorizer;      /* ids of the hooks; 0: none */
    int denied;              /* ... the authorizer forbade what was compiled last */
    int64_t progress;
    int64_t trace;
    int period;              /* VM steps between progress reports */
    int periods;             /* ... of which the hook is told every so many */
    int periods_left;
    int own;                 /* what is compiled or run now is no statement of the program's */
    int carries;             /* Python holds an exception that the statement has to fail with */
    uint32_t step_flags;     /* NL_STMT_* of the statement that was last begun to run */
    int64_t begun_ms;        /* monotonic time of the first progress report of this call; 0: none yet */
    int64_t tick_ms;         /* monotonic time of the next tick */
    int64_t busy_since_ms;   /* monotonic time at which the present wait for a lock began */
    int late;                /* the call has lasted long enough: a batch of rows ends here */
    int64_t budget;          /* VM steps a statement may take; < 0: no limit */
    int64_t steps_left;      /* of the budget, for the statement now running */
    int over_budget;         /* the last statement was stopped because its budget was used up */
    uint32_t schemas;        /* value of the counter in nl_db_distrust_schemas() that it has obeyed */
    int begin;               /* NL_BEGIN_* of nl_stmt_go */
    nl_error error;          /* of nl_stmt_go */
    nl_status status;        /* what the last statement did */
    char *message;           /* SQLite's whole text of the last failure (nl_error cuts it); or NULL */
    struct nl_watch *watch;  /* what its last transaction changed (watch.c); NULL: nobody counts */
};

struct nl_stmt {
    nl_db *db;               /* kept alive by a reference */
    nl_stmt *next, **link;   /* in db->first: the next one, and the pointer that points here */
    nl_stmt *next_orphan;
    sqlite3_stmt *sqlite;    /* NULL: the text held no statement, or the connection is closed */
    void *other;             /* instead of a statement: a blob (blob.c), a session (session.c); or NULL */
    void (*end)(void *);     /* ... and what ends it */
    uint32_t flags;          /* NL_STMT_* */
    int params;              /* number of parameters */
    int columns;             /* number of result columns as last announced */
    int active;              /* a row has been read and the end has not been reached */
    int running;             /* a call of ours steps it: callbacks of it must let it be */
    int own;                 /* no statement of the program's */
    int failed;              /* the batch before ended in `failure`, which is still to be told; of a blob: told */
    nl_error failure;
    int reprepared;          /* SQLite's count of recompilations when columns were last announced */
    int text_mode;           /* NL_TEXT_* */
    int special;             /* NL_RUN_SPECIAL or 0: part of every answer */
    char pragma[32];         /* name, cut to the size; "" if it is none */
    int pragma_set;          /* it has a value */
    size_t tail;             /* bytes of the text that this statement took */
    nl_buffer bound;         /* the parameters in use: values point into it while active */
    nl_buffer out;           /* rows of the last batch */
};

/* Begin and end of a stretch of work. Entering is refused (NL_E_MISUSE) while another thread, or the
** code that a signal handler interrupted, is inside, once the connection is closed, and in the child of a
** fork. Leaving refreshes db->status. */
int nl_db_enter(nl_db *db, nl_error *err);
int nl_db_enter_to_copy(nl_db *db, nl_error *err); /* by what puts a copy in its place */
void nl_db_leave(nl_db *db);

/* Enters a new statement into db->first and takes a reference. While `running`. */
void nl_db_adopt(nl_db *db, nl_stmt *s);
/* Ends what is open: the statement, or what is held instead. While `running`. */
void nl_stmt_end(nl_stmt *s);
/* Hands a statement over to be freed as soon as nobody is inside the connection: its owner may be
** Python's garbage collector on any thread. [any thread] */
void nl_db_orphan(nl_db *db, nl_stmt *s);
/* Flags of the tables in db->unplaced; empties it. After compiling. */
uint32_t nl_db_unplaced_flags(nl_db *db);
/* Progress reports as often as we need them, and every `steps` VM steps for the hook; 0: there is none. */
void nl_db_set_period(nl_db *db, int steps);
/* Whether this thread may call Python: at the interpreter's end only one may. (callbacks.c) [any thread] */
int nl_callbacks_allowed(void);
/* Whether a callback of this call raised something that Python keeps; then *err is filled, and the call
** has to fail whatever SQLite says. */
int nl_db_carried(nl_db *db, nl_error *err);
/* The hooks' answers, while one is set. (callbacks.c) */
int nl_call_authorizer(nl_db *db, int action, const char *const strings[4]);
int nl_call_progress(nl_db *db);
/* This thread is in a callback of `db`. (callbacks.c) */
int nl_call_inside(const nl_db *db);
/* Frees what nl_stmt_prepare allocated; the statement is finalised and in no list. (statement.c) */
void nl_stmt_release(nl_stmt *s);

/* Whether SQL is being compiled, a schema read, or the database vacuumed: a callback must not change what
** is looked at there. (counters.c) */
int nl_sqlite_occupied(sqlite3 *db);
/* Lets a connection read its schema again; 0: not now, a statement of it is half read. (counters.c) */
int nl_sqlite_forget_schema(sqlite3 *db);

/* Records SQLite's message of `rc` in db->message and *err. Answers NL_E_SQLITE. */
int nl_db_fail(nl_db *db, int rc, nl_error *err);

/* Starts a transaction of `kind` (NL_BEGIN_*) if `stmt` is one that the sqlite3 module begins one for. */
int nl_stmt_begin(nl_stmt *stmt, int kind, nl_error *err);

/* One position in MessagePack input. */
typedef struct nl_input {
    const uint8_t *p;
    const uint8_t *end;
} nl_input;

/* Reads an array header. Answers NL_OK or NL_E_MISUSE. (bind.c) */
int nl_input_array(nl_input *in, size_t *count, nl_error *err);
/* Binds one array of values to all parameters. The input must outlive the binding. (bind.c) */
int nl_input_bind(nl_stmt *s, nl_input *in, nl_error *err);
/* Appends values of SQLite (NULL: nil) as one array; strings (NULL: nil) as one, with an integer before them unless
** `first` is NULL; sizes NULL: they end in NUL. Answer a SQLite result code. (encode.c) */
int nl_put_values(nl_buffer *out, int count, sqlite3_value **values);
int nl_put_strings(
    nl_buffer *out, const int *first, int count, const char *const *strings, const int *sizes);
/* Appends one byte a flag, as bin; MessagePack that is there already. Answer a SQLite result code. (encode.c) */
int nl_put_flags(nl_buffer *out, int count, const uint8_t *flags);
int nl_put_raw(nl_buffer *out, const uint8_t *bytes, size_t n);
/* Appends rows to s->out until it holds `target` bytes, the rows end, or a failure; `rc` is the result of
** a step already made. Answers SQLITE_OK when there may be more, or SQLite's result. (encode.c) */
int nl_stmt_put_rows(nl_stmt *s, int rc, size_t target, uint32_t *count);

/* Notes how many columns the statement has now. (statement.c) */
void nl_stmt_announce_columns(nl_stmt *s);

/* Copies one MessagePack array of values into the statement and binds it. Inside nl_db_enter. */
int nl_stmt_bind(nl_stmt *s, const uint8_t *params, size_t n, nl_error *err);
/* The end of a run, whatever its outcome: resets. Answers SQLite's result of the run. */
int nl_stmt_finish(nl_stmt *s);

#endif
