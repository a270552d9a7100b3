"""What a statement is: where it may run, and whether it may run through a server at all."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

from nearlite._native import database as flags
from nearlite._native.hrana import HranaStatement
from nearlite.hrana import StatementError


class Kind(IntEnum):
    """Where a statement may run. A request runs where its most demanding statement must."""

    READ = 0
    """On a connection shared by all: reads the main database, changes nothing."""
    SLOW = 1
    """As READ, but known to last: not on the event loop."""
    WRITE = 2
    """In a group: writes the main database, keeps no state on its connection."""
    BEGIN = 3
    """Opens a transaction."""
    COMMIT = 4
    """Ends one."""
    ROLLBACK = 5
    """Ends one."""
    ALONE = 6
    """On a connection of the stream's own, which may go back to the others afterwards."""
    STICKY = 7
    """On a connection of the stream's own, which it changes: settings, temporary objects."""


# Pragmas that only look. Those of _LASTING read the whole database.
_LOOKING: Final = frozenset(
    [
        "table_list",
        "table_info",
        "table_xinfo",
        "index_list",
        "index_info",
        "index_xinfo",
        "foreign_key_list",
        "pragma_list",
        "compile_options",
        "database_list",
        "function_list",
        "module_list",
        "collation_list",
        "data_version",
        "freelist_count",
        "page_count",
    ]
)
_LASTING: Final = frozenset(["foreign_key_check", "integrity_check", "quick_check"])
# Pragmas that change the connection they run on.
_SETTING: Final = frozenset(
    [
        "foreign_keys",
        "defer_foreign_keys",
        "case_sensitive_like",
        "recursive_triggers",
        "query_only",
        "reverse_unordered_selects",
        "automatic_index",
        "analysis_limit",
        "ignore_check_constraints",
        "full_column_names",
        "short_column_names",
        "count_changes",
        "empty_result_callbacks",
        "legacy_alter_table",
        "cell_size_check",
        "read_uncommitted",
    ]
)
# Pragmas that write the database.
_WRITING: Final = frozenset(["user_version", "application_id", "incremental_vacuum", "optimize"])
# Pragmas that may be asked, but not set: the server depends on their values.
_ASKED: Final = frozenset(
    [
        "auto_vacuum",
        "busy_timeout",
        "cache_size",
        "cache_spill",
        "checkpoint_fullfsync",
        "encoding",
        "fullfsync",
        "hard_heap_limit",
        "journal_mode",
        "journal_size_limit",
        "locking_mode",
        "max_page_count",
        "mmap_size",
        "page_size",
        "schema_version",
        "secure_delete",
        "soft_heap_limit",
        "synchronous",
        "temp_store",
        "threads",
        "trusted_schema",
        "wal_autocheckpoint",
        "writable_schema",
    ]
)

# SQLite carries out many pragmas while it *compiles* them: they are recognised before that. A statement
# begins with its keyword, behind blanks and comments as SQLite's tokenizer knows them.
_BLANK = rb"(?:[\s;]|\xef\xbb\xbf|--[^\n]*(?:\n|\Z)|/\*.*?(?:\*/|\Z))*"
ONLY_BLANK = re.compile(_BLANK, re.DOTALL)
_PRAGMA = re.compile(
    rb"%b(?:EXPLAIN\b%b(?:QUERY\b%bPLAN\b%b)?)?PRAGMA\b" % ((_BLANK,) * 4),
    re.IGNORECASE | re.DOTALL,
)
_NAME = rb"[\"'`\[]?(\w+)[\"'`\]]?" + _BLANK
_PRAGMA_NAME = re.compile(rb"%b(?:%b\.%b)?%b(.?)" % (_BLANK, _NAME, _BLANK, _NAME), re.DOTALL)
_VACUUM = re.compile(rb"%bVACUUM\b(.*)" % _BLANK, re.IGNORECASE | re.DOTALL)


def _unsupported(sql: bytes, why: str) -> StatementError:
    text = sql[:100].decode("utf-8", "replace") + ("..." if len(sql) > 100 else "")
    return StatementError(
        f"SQL string could not be parsed: unsupported statement: {text} ({why})", "SQL_PARSE_ERROR"
    )


def pragma_kind(text: bytes) -> Kind | None:
    """Where a pragma may run; None for any other statement. To be asked before it is compiled.

    Raises:
      StatementError: the server depends on that setting.
    """
    start = _PRAGMA.match(text)
    if start is None:
        return None
    named = _PRAGMA_NAME.match(text, start.end())
    if named is None:
        return Kind.READ  # a syntax error
    name, following = named[2].decode("ascii", "replace").lower(), named[3]
    with_value = following in (b"=", b"(")
    if name in _LOOKING:
        return Kind.READ
    if name in _LASTING:
        return Kind.SLOW
    if name in _SETTING:
        return Kind.STICKY if with_value else Kind.READ
    if name in _WRITING:
        return Kind.ALONE if with_value or name in ("optimize", "incremental_vacuum") else Kind.READ
    if name in _ASKED and not with_value:
        return Kind.READ
    raise _unsupported(text, "the server manages this setting")


def is_setting(name: str) -> bool:
    """Whether a pragma of that name, in lower case, changes its connection."""
    return name in _SETTING


def setting_of(text: bytes) -> str:
    """The setting of its connection that a pragma changes, or ""."""
    start = _PRAGMA.match(text)
    named = _PRAGMA_NAME.match(text, start.end()) if start is not None else None
    name = named[2].decode("ascii", "replace").lower() if named is not None else ""
    return name if name in _SETTING else ""


def kind_of(text: bytes, statement: HranaStatement) -> Kind:
    """Where a compiled statement that is no pragma may run.

    Raises:
      StatementError: it may not run at all over a network: it would reach other files of the
        machine (ATTACH, VACUUM INTO).
    """
    what = statement.flags
    if what & flags.EXPLAIN:
        return Kind.READ
    if what & flags.ATTACH:
        raise _unsupported(text, "other files cannot be reached through a server")
    if what & flags.PRAGMA:  # a SELECT from a pragma_ table: SQLite offers only those that look
        return Kind.SLOW
    if what & flags.TRANSACTION:
        if what & flags.COMMIT:
            return Kind.COMMIT
        return Kind.ROLLBACK if what & flags.ROLLBACK else Kind.BEGIN
    if what & flags.SAVEPOINT:
        return Kind.ALONE
    if what & (flags.TEMP | flags.WRITES_TEMP):
        return Kind.STICKY
    if what & flags.READONLY:
        return Kind.READ
    vacuum = _VACUUM.match(text)
    if vacuum is not None:
        if re.search(rb"\bINTO\b", vacuum[1], re.IGNORECASE):
            raise _unsupported(text, "other files cannot be reached through a server")
        return Kind.ALONE  # VACUUM refuses to run inside a transaction
    return Kind.WRITE


class Prepared:
    """A compiled statement with its classification.

    Attributes:
      statement: the handle.
      kind: where it may run.
      readonly: SQLite's own answer: it changes no database file.
      rows: it has result columns.
      begins_readonly: it was written BEGIN READONLY.
      setting: of its connection that it changes, or "".
    """

    __slots__ = ("begins_readonly", "kind", "readonly", "rows", "setting", "statement")

    def __init__(self, statement: HranaStatement, kind: Kind) -> None:
        self.statement = statement
        self.kind = kind
        self.begins_readonly = False
        self.setting = ""
        self.readonly = bool(statement.flags & flags.READONLY)
        self.rows = bool(statement.flags & flags.ROWS)
