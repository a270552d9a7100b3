/*
** ofd.h - record locks that no other close() in the process can drop, and the fork handlers.
*/
#ifndef NL_OFD_H
#define NL_OFD_H

/* Install both; called once by nl_init(), after sqlite3_initialize() and before the first open. */
void nl_ofd_install(void);

/* In sqlite_unit.c, for the child of a fork: empty the unix VFS's list of inodes, whose counts and
** lock states describe descriptors of the parent. */
void nl_unix_forget(void);

#endif
