"""`nearlite shell`: SQL by hand, on a file, a replica or a remote primary."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nearlite import errors

HELP = """\
SQL ends with a semicolon and may span lines.
.tables          names of tables and views
.schema [NAME]   the statements that created them
.sync            bring what others wrote (replicas)
.help            this text
.quit            leave (or Ctrl-D)"""

_MAX_CELL = 200  # characters of one value on a terminal; piped output is never cut
_TABLES = (
    "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite%' "
    "ORDER BY name"
)
_SCHEMA = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND (?1 IS NULL OR name = ?1)"


class Shell:
    """Reads statements and dot commands from lines, prints rows.

    Args:
      connection: any nearlite connection, in autocommit.
      console: where rows go; on a terminal as a table, otherwise as tab-separated lines.
      interactive: go on after an error, show prompts.

    """

    def __init__(self, connection: Any, console: Console, *, interactive: bool) -> None:
        self._connection = connection
        self._console = console
        self._interactive = interactive

    def run(self, lines: IO[str]) -> bool:
        """Everything up to the end of input or `.quit`; False if a statement failed."""
        good, pending = True, ""
        for line in self._prompted(lines):
            if not pending and line.strip().startswith("."):
                if line.split()[0] in (".quit", ".exit"):
                    break
                good = self._guarded(self._dot, line.split()) and good
            else:
                whole, pending = split(pending + line)
                for sql in whole:
                    good = self._guarded(self.execute, sql) and good
                    if not good and not self._interactive:
                        return False
            if not good and not self._interactive:
                return False
        if pending:  # the last statement of a script needs no semicolon
            good = self._guarded(self.execute, pending) and good
        return good or self._interactive

    def _prompted(self, lines: IO[str]) -> Iterable[str]:
        if not self._interactive:
            return lines
        try:  # history and editing where the system has them
            import readline  # noqa: F401 - loading it is what installs it
        except ImportError:
            pass
        return iter(_ask, None)

    def _guarded(self, work: Any, argument: Any) -> bool:
        try:
            work(argument)
        except (errors.Error, errors.Warning, sqlite3.Error) as error:
            print(f"error: {error}", file=sys.stderr)
            return False
        return True

    def execute(self, sql: str) -> None:
        """One statement, its rows printed."""
        cursor = self._connection.execute(sql)
        if cursor.description is not None:
            self._print([column[0] for column in cursor.description], cursor)

    def _dot(self, words: list[str]) -> None:
        if words[0] == ".tables":
            for (name,) in self._connection.execute(_TABLES):
                print(name)
        elif words[0] == ".schema":
            name = words[1] if len(words) > 1 else None
            for (sql,) in self._connection.execute(_SCHEMA, (name,)):
                print(f"{sql};")
        elif words[0] == ".sync":
            done = self._connection.sync()
            print(f"{done.position}: {done.pages} pages, {done.bytes} bytes, {done.seconds:.3f} s")
        else:
            print(HELP)

    def _print(self, names: list[str], rows: Iterable[tuple[object, ...]]) -> None:
        if not self._console.is_terminal:
            for row in rows:
                print(*map(_plain, row), sep="\t")
            return
        table = Table()
        for name in names:
            table.add_column(Text(name))
        for row in rows:
            table.add_row(*(Text(_plain(value)[:_MAX_CELL]) for value in row))
        self._console.print(table)


def split(text: str) -> tuple[list[str], str]:
    """The complete statements at the beginning of `text`, and what is left, "" if it is blank."""
    whole, start = [], 0
    for index, character in enumerate(text):
        if character == ";" and sqlite3.complete_statement(text[start : index + 1]):
            whole.append(text[start : index + 1])
            start = index + 1
    rest = text[start:]
    return whole, rest if rest.strip() else ""


def _ask() -> str | None:
    try:
        return input("nearlite> ") + "\n"
    except EOFError:
        print()
        return None


def _plain(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"X'{value.hex()}'"
    return str(value)
