/*
** fault.h - named fault points: make the N-th pass over one instant fail, stop or die.
**
** A point stands beside every write, sync, index update and commit:
**
**     int fail = NL_FAULT("apply.before-commit");
**     if (fail) return nl_fail_os(err, fail, "commit of a page set");
**
** It is 0, or the errno that the operation is to fail with; a point armed with NL_FAULT_KILL does
** not return. Outside a test build (NL_TEST) it is the constant 0 and the compiler drops the branch.
**
** The name must be a string literal, "<module>.<instant>". Each point puts a pointer to its name
** into a linker section, so that the list of all points needs no central table and a test can
** enumerate exactly what was compiled in (trait of SQLite's and bbolt's test suites: fail every
** point, for every kind of failure).
*/
#ifndef NL_FAULT_H
#define NL_FAULT_H

#ifdef NL_TEST

#if defined(__APPLE__)
#define NL_FAULT_SECTION "__DATA,nl_faults"
#else
#define NL_FAULT_SECTION "nl_faults"
#endif

#define NL_FAULT(name)                                                            \
    (__extension__({                                                              \
        static const char *const nl_fault_point                                   \
            __attribute__((section(NL_FAULT_SECTION), used)) = name;              \
        nl_fault_hit(nl_fault_point);                                             \
    }))

#else
#define NL_FAULT(name) 0
#endif

/* Arm what the environment variable NL_FAULT asks for: "name:kind[:after][,...]" with kind one of
** kill, eio, enospc, stop. Test builds only; NULL, or a static text that says what is wrong with it. */
const char *nl_fault_from_environment(void);

#endif
