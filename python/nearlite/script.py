"""Cuts a script into its statements, in one pass, without compiling anything.

A statement ends at a semicolon that is outside of quotes, comments and the body of a CREATE TRIGGER. That is
what sqlite3_complete() finds out for a text that ends in a semicolon; asking it again for every
semicolon of a script would read the script once for each. Here is its automaton instead (complete.c of
SQLite), run over the whole script; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

# Tokens, and states of the automaton, numbered as in complete.c.
_SEMI, _BLANK, _OTHER, _EXPLAIN, _CREATE, _TEMP, _TRIGGER, _END = range(8)
_COMPLETE: Final = 1
_INSIDE: Final = (2, 5)  # states that only a semicolon ends
_BETWEEN: Final = 6  # between two statements of a trigger
_NEXT: Final = (
    # SEMI BLANK OTHER EXPLAIN CREATE TEMP TRIGGER END
    (1, 0, 2, 3, 4, 2, 2, 2),  # nothing but blanks so far
    (1, 1, 2, 3, 4, 2, 2, 2),  # complete
    (1, 2, 2, 2, 2, 2, 2, 2),  # inside a statement
    (1, 3, 3, 2, 4, 2, 2, 2),  # EXPLAIN
    (1, 4, 2, 2, 2, 4, 5, 2),  # CREATE
    (6, 5, 5, 5, 5, 5, 5, 5),  # inside CREATE TRIGGER
    (6, 6, 5, 5, 5, 5, 5, 7),  # a semicolon in there
    (1, 7, 5, 5, 5, 5, 5, 5),  # its END
)
_WORDS: Final = {
    "explain": _EXPLAIN,
    "create": _CREATE,
    "temp": _TEMP,
    "temporary": _TEMP,
    "trigger": _TRIGGER,
    "end": _END,
}

# The next thing that matters inside a statement: its end, or what may hide one.
_MARK: Final = re.compile(r"""[;'"`\[]|--|/\*""")
_SKIPPED: Final = re.compile(r"[; \t\r\n\f]*")
# The next token where keywords matter.
_TOKEN: Final = re.compile(r"""[;'"`\[]|--|/\*|[ \t\r\n\f]+|[\w$\x80-\U0010ffff]+|.""", re.DOTALL)
_CLOSING: Final = {"'": "'", '"': '"', "`": "`", "[": "]", "--": "\n", "/*": "*/"}


_BLANK_PIECE: Final = re.compile(r"[; \t\r\n\f]+|--[^\n]*|/\*(?=.).*?(?:\*/|\Z)", re.DOTALL)


def holds_nothing(text: str) -> bool:
    """Whether a text is blanks, comments and semicolons, and no statement."""
    at = 0
    while at < len(text):
        piece = _BLANK_PIECE.match(text, at)
        if piece is None:
            return False
        at = piece.end()
    return True


def statements_of(script: str) -> Iterator[str]:
    """The statements of a script in order, each with its semicolon; together they are the script.

    What follows the last semicolon is the last one, unless it is blank. A lone semicolon or comment is a
    statement of its own.
    """
    start = at = 0
    state = 0
    while True:
        if state == _BETWEEN:
            at = _SKIPPED.match(script, at).end()  # type: ignore[union-attr]
        inside = state in _INSIDE
        found = _MARK.search(script, at) if inside else _TOKEN.match(script, at)
        if found is None:
            break
        token = found[0]
        closing = _CLOSING.get(token)
        if closing is None:
            at = found.end()
            kind = _kind(token)
        else:
            closed = script.find(closing, found.end())
            if closed < 0:
                break
            at = closed + len(closing)
            kind = _BLANK if token in ("--", "/*") else _OTHER
        state = _NEXT[state][kind]
        if state == _COMPLETE and kind == _SEMI:
            yield script[start:at]
            start, state = at, 0
    if script[start:].strip():
        yield script[start:]


def _kind(text: str) -> int:
    if text == ";":
        return _SEMI
    if text[0] in " \t\r\n\f":
        return _BLANK
    return _WORDS.get(text.lower(), _OTHER)
