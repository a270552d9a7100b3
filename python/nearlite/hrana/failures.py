"""What can be wrong with a request, and the codes that clients are told."""

from __future__ import annotations

import re

MAX_STATEMENT = 1 << 20
"""Longest SQL text, bytes of UTF-8 (the agreed limit for everything that comes over a network)."""


class ProtocolError(Exception):
    """The request breaks the protocol: answered with status 400, and its stream is dropped."""

    def __init__(self, message: str, code: str = "PROTOCOL_ERROR", status: int = 400) -> None:
        self.message = message
        self.code = code
        self.status = status
        super().__init__(message)


class StatementError(Exception):
    """One statement or one request failed; its neighbours are unaffected.

    Attributes:
      message: text for people.
      code: Hrana error code, ``SQLITE_*`` when SQLite failed.
      extended_code: SQLite's extended result code, or 0. Clients that know it rebuild the exact
        exception; all others ignore the key.
    """

    def __init__(self, message: str, code: str, extended_code: int = 0) -> None:
        self.message = message
        self.code = code
        self.extended_code = extended_code
        super().__init__(message)


_READONLY_BEGIN = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*BEGIN\s+(?:TRANSACTION\s+)?READONLY\s*;?\s*",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)


def is_readonly_begin(sql: str) -> bool:
    """Whether the text is libSQL's ``BEGIN [TRANSACTION] READONLY``, which SQLite does not know."""
    # A search for the word first: the pattern is not tried on every statement.
    return len(sql) < 4096 and "readonly" in sql.lower() and bool(_READONLY_BEGIN.fullmatch(sql))


def check_length(sql: str) -> None:
    """Raise StatementError when a text is longer than the agreed limit."""
    # A character takes at most four bytes: short texts need no encoding to be measured.
    if len(sql) * 4 > MAX_STATEMENT and len(sql.encode()) > MAX_STATEMENT:
        raise StatementError(
            f"The SQL text is longer than {MAX_STATEMENT} bytes, which is the limit",
            "SQL_TOO_LONG",
        )


def sqlite_error(text: str, code: int, offset: int = -1) -> StatementError:
    """The statement error for a failure of SQLite.

    Args:
      text: SQLite's message.
      code: extended result code, or 0.
      offset: byte offset into the SQL text where compiling failed, or -1.
    """
    if offset >= 0:
        return StatementError(
            f"SQL input error: {text} (at offset {offset})", "SQL_INPUT_ERROR", code
        )
    name = PRIMARY_NAMES.get(code & 0xFF, "SQLITE_UNKNOWN")
    return StatementError(f"SQLite error: {text}", name, code)


_REFUSED_CODES = frozenset(
    [
        "SQL_NO_STATEMENT",
        "SQL_MANY_STATEMENTS",
        "SQL_PARSE_ERROR",
        "SQL_TOO_LONG",
        "ARGS_INVALID",
        "ARGS_BOTH_POSITIONAL_AND_NAMED",
    ]
)
_BUSY = 5
_SYNTAX = (": near ", ": incomplete input", ": unrecognized token")


def is_refusal(error: StatementError) -> bool:
    """Whether a statement could never have run, whatever ran before it (not: a missing table)."""
    return error.code in _REFUSED_CODES or any(text in error.message for text in _SYNTAX)


def too_large(most: int) -> StatementError:
    """The rows do not fit into the answer."""
    return StatementError(
        f"The rows are more than one answer may hold ({most} bytes); nothing of the statement was kept",
        "RESPONSE_TOO_LARGE",
    )


def too_many_rows(most: int) -> StatementError:
    """They are more than a statement may answer."""
    return StatementError(
        f"The result has more than {most} rows, which is the limit; nothing of the statement was kept",
        "TOO_MANY_ROWS",
    )


def is_excess(error: StatementError) -> bool:
    """Whether a statement failed because of what it answers: SQLite has not undone it."""
    return error.code in ("RESPONSE_TOO_LARGE", "TOO_MANY_ROWS")


def is_busy(error: StatementError) -> bool:
    """Whether another connection's lock was in the way."""
    return error.extended_code & 0xFF == _BUSY


PRIMARY_NAMES = {
    1: "SQLITE_ERROR",
    2: "SQLITE_INTERNAL",
    3: "SQLITE_PERM",
    4: "SQLITE_ABORT",
    5: "SQLITE_BUSY",
    6: "SQLITE_LOCKED",
    7: "SQLITE_NOMEM",
    8: "SQLITE_READONLY",
    9: "SQLITE_INTERRUPT",
    10: "SQLITE_IOERR",
    11: "SQLITE_CORRUPT",
    12: "SQLITE_NOTFOUND",
    13: "SQLITE_FULL",
    14: "SQLITE_CANTOPEN",
    15: "SQLITE_PROTOCOL",
    16: "SQLITE_EMPTY",
    17: "SQLITE_SCHEMA",
    18: "SQLITE_TOOBIG",
    19: "SQLITE_CONSTRAINT",
    20: "SQLITE_MISMATCH",
    21: "SQLITE_MISUSE",
    22: "SQLITE_NOLFS",
    23: "SQLITE_AUTH",
    24: "SQLITE_FORMAT",
    25: "SQLITE_RANGE",
    26: "SQLITE_NOTADB",
}
