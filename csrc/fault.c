/*
** fault.c - the table behind NL_FAULT(): what is armed, and how often each point was passed.
**
** One table for the whole process, under one mutex: applier, tail and Python's own points fire from
** different threads. Names are copied, so that Python may pass temporary strings.
*/
#include "nl.h"

#include "fault.h"

#ifdef NL_TEST

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FAULT_POINTS 256   /* distinct names in one process; more is a mistake in the test */
#define FAULT_NAME 64      /* bytes of a name with its NUL */

typedef struct fault_point {
    char name[FAULT_NAME];
    uint64_t passes;   /* since the last clear */
    int kind;          /* NL_FAULT_*; 0 = not armed */
    uint32_t after;    /* passes still to let through before it fires */
} fault_point;

static pthread_mutex_t fault_mutex = PTHREAD_MUTEX_INITIALIZER;
static fault_point fault_table[FAULT_POINTS];
static int fault_count;

/* Under the mutex. NULL when the name is too long or the table is full. */
static fault_point *fault_find(const char *name)
{
    for (int i = 0; i < fault_count; i++) {
        if (strcmp(fault_table[i].name, name) == 0) return &fault_table[i];
    }
    if (fault_count == FAULT_POINTS || strlen(name) >= FAULT_NAME) return NULL;
    fault_point *p = &fault_table[fault_count++];
    memset(p, 0, sizeof *p);
    memcpy(p->name, name, strlen(name) + 1);
    return p;
}

int nl_fault_built(void)
{
    return 1;
}

int nl_fault_set(const char *point, int kind, uint32_t after)
{
    int rc = NL_E_MISUSE;

    if (kind < NL_FAULT_KILL || kind > NL_FAULT_STOP) return NL_E_MISUSE;
    pthread_mutex_lock(&fault_mutex);
    fault_point *p = fault_find(point);
    if (p) {
        p->kind = kind;
        p->after = after;
        rc = NL_OK;
    }
    pthread_mutex_unlock(&fault_mutex);
    return rc;
}

void nl_fault_clear(void)
{
    pthread_mutex_lock(&fault_mutex);
    fault_count = 0;
    pthread_mutex_unlock(&fault_mutex);
}

uint64_t nl_fault_passes(const char *point)
{
    uint64_t passes = 0;

    pthread_mutex_lock(&fault_mutex);
    for (int i = 0; i < fault_count; i++) {
        if (strcmp(fault_table[i].name, point) == 0) passes = fault_table[i].passes;
    }
    pthread_mutex_unlock(&fault_mutex);
    return passes;
}

/* An armed point fires once and is then disarmed: a transient fault. The mutex is released before a
** signal is raised, so that a stopped process that goes on finds it free. */
int nl_fault_hit(const char *point)
{
    int kind = 0;

    pthread_mutex_lock(&fault_mutex);
    fault_point *p = fault_find(point);
    if (p) {
        p->passes++;
        if (p->kind && p->after == 0) {
            kind = p->kind;
            p->kind = 0;
        } else if (p->kind) {
            p->after--;
        }
    }
    pthread_mutex_unlock(&fault_mutex);
    if (kind == NL_FAULT_KILL) kill(getpid(), SIGKILL);
    if (kind == NL_FAULT_STOP) kill(getpid(), SIGSTOP);
    return kind == NL_FAULT_EIO ? EIO : kind == NL_FAULT_ENOSPC ? ENOSPC : 0;
}

/* ---------------------------------------------------------------- the list of points */

#if defined(__APPLE__)
extern const char *const fault_first[] __asm("section$start$__DATA$nl_faults");
extern const char *const fault_end[] __asm("section$end$__DATA$nl_faults");
#else
extern const char *const fault_first[] __asm__("__start_nl_faults")
    __attribute__((visibility("hidden"), weak));
extern const char *const fault_end[] __asm__("__stop_nl_faults")
    __attribute__((visibility("hidden"), weak));
#endif

/* Answers the bytes that the whole list needs, its NUL included; writes it only if it fits. A point
** that stands at several places is listed as often. */
int nl_fault_names(char *buf, size_t size)
{
    size_t need = 1;

    for (const char *const *p = fault_first; p < fault_end; p++) need += strlen(*p) + 1;
    if (need > size) return (int)need;
    for (const char *const *p = fault_first; p < fault_end; p++) {
        size_t n = strlen(*p);
        memcpy(buf, *p, n);
        buf[n] = '\n';
        buf += n + 1;
    }
    *buf = 0;
    return (int)need;
}

/* ---------------------------------------------------------------- arming a child process */

static int fault_kind(const char *word)
{
    static const char *const words[] = {"kill", "eio", "enospc", "stop"};

    for (int i = 0; i < 4; i++) {
        if (strcmp(word, words[i]) == 0) return i + 1;
    }
    return 0;
}

const char *nl_fault_from_environment(void)
{
    char copy[1024];
    const char *value = getenv("NL_FAULT");
    char *save = NULL;

    if (!value || !*value) return NULL;
    if (strlen(value) >= sizeof copy) return "NL_FAULT is longer than 1023 bytes";
    memcpy(copy, value, strlen(value) + 1);
    for (char *one = strtok_r(copy, ",", &save); one; one = strtok_r(NULL, ",", &save)) {
        char *kind = strchr(one, ':');
        if (!kind) return "NL_FAULT must read name:kind[:after][,...]";
        *kind++ = 0;
        char *after = strchr(kind, ':');
        if (after) *after++ = 0;
        unsigned long n = after ? strtoul(after, NULL, 10) : 0;
        if (nl_fault_set(one, fault_kind(kind), (uint32_t)n) != NL_OK) {
            return "NL_FAULT names an unknown kind (kill, eio, enospc, stop) or too long a point";
        }
    }
    return NULL;
}

#else /* a build for users: the functions exist, because the header is one, and refuse */

int nl_fault_built(void)
{
    return 0;
}

int nl_fault_set(const char *point, int kind, uint32_t after)
{
    (void)point;
    (void)kind;
    (void)after;
    return NL_E_MISUSE;
}

void nl_fault_clear(void)
{
}

uint64_t nl_fault_passes(const char *point)
{
    (void)point;
    return 0;
}

int nl_fault_hit(const char *point)
{
    (void)point;
    return 0;
}

int nl_fault_names(char *buf, size_t size)
{
    if (size > 0) buf[0] = 0;
    return 1;
}

const char *nl_fault_from_environment(void)
{
    return NULL;
}

#endif
