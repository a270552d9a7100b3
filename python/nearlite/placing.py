"""Where a statement of a replica's connection runs.

That is decided from what SQLite's own compiler says about it (the flags of a compiled statement), never
from its text. docs/design.md has the whole table.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

from nearlite._native import database as flags
from nearlite._native.database import NO_PARAMETERS, Database, Statement
from nearlite.batches import Names
from nearlite.dbapi.binding import encode
from nearlite.errors import NotSupportedError

# Pragmas that change what a statement does where it runs: writes on the primary run under them, too.
_SETTINGS: Final = frozenset(
    ["foreign_keys", "recursive_triggers", "ignore_check_constraints", "case_sensitive_like"]
)

# Pragmas that tell something of a database, and nothing of the connection.
_MAIN_PRAGMAS: Final = frozenset(
    [
        "application_id",
        "foreign_key_check",
        "foreign_key_list",
        "freelist_count",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "page_count",
        "quick_check",
        "schema_version",
        "table_info",
        "table_list",
        "table_xinfo",
        "user_version",
    ]
)

# Of a pragma: (name), = name, quoted or not.
_ARGUMENT: Final = re.compile(r"""[=(]\s*["'`\[]?(.*?)["'`\]]?\s*\)?[\s;]*\Z""", re.DOTALL)
_SEARCHED: Final = {"temp": 0, "main": 1}  # then the attached files

# Of objects that exist only on this connection.
_OWN: Final = flags.TEMP | flags.ATTACHED | flags.WRITES_TEMP | flags.WRITES_ATTACHED


class Place(Enum):
    """Where a statement runs."""

    HERE = auto()
    """Inside a write transaction on the primary, there, if it reads the main database (`Route`)."""
    THERE = auto()
    CONTROL = auto()
    """BEGIN, COMMIT, ROLLBACK, SAVEPOINT ...: wherever the transaction is."""
    SETTING = auto()
    """Here, and remembered for the primary."""
    BOTH = auto()
    """Needs the main database and this connection's own: not inside a transaction there."""
    ANYWHERE = auto()
    """Of a script only: it reads, and its rows are thrown away."""


class Route:
    """Where a text runs, with what is needed to send it.

    Args:
      database: of the connection.
      sql: the text.
      statement: the same, compiled by `database`.

    Attributes:
      reads_main: the answer depends on the main database: inside a transaction it is the primary's.

    Raises:
      NotSupportedError: it uses what exists only here, and writes what is written only there.
    """

    __slots__ = ("flags", "names", "place", "reads_main")

    def __init__(self, database: Database, sql: str, statement: Statement) -> None:
        self.place = _place(database, sql, statement)
        self.flags = statement.flags
        self.names: Names = statement.parameters
        self.reads_main = _reads_main(database, sql, statement)


def place_in_script(database: Database, sql: str, statement: Statement) -> Place:
    """HERE, THERE, CONTROL, or ANYWHERE. Raises NotSupportedError as `Route` does."""
    place = _place(database, sql, statement)
    if place in (Place.THERE, Place.CONTROL):
        return place
    what = statement.flags
    reads = what & (flags.READONLY | flags.EXPLAIN) and not what & (_OWN | flags.ATTACH)
    if what & flags.PRAGMA:
        reads = reads and statement.pragma in _MAIN_PRAGMAS
    return Place.ANYWHERE if reads and place is Place.HERE else Place.HERE


def _place(database: Database, sql: str, statement: Statement) -> Place:
    what = statement.flags
    if what & (flags.EMPTY | flags.EXPLAIN | flags.ATTACH):
        return Place.HERE
    if what & (flags.TRANSACTION | flags.SAVEPOINT):
        return Place.CONTROL
    own = what & _OWN
    if what & flags.PRAGMA:
        return _place_of_pragma(statement, bool(own))
    if what & flags.WRITES_MAIN:
        if own:
            raise NotSupportedError(
                "the statement writes the main database, which happens on the primary, and uses "
                "a TEMP table, TEMP trigger or attached file, which exist only here; nothing was "
                "executed. Read the rows first and write them in a second statement"
            )
        return Place.THERE
    if own:
        return Place.BOTH if what & flags.MAIN else Place.HERE
    if what & flags.READONLY or _vacuums_into(database, sql):
        return Place.HERE
    return Place.THERE  # VACUUM


def _place_of_pragma(statement: Statement, own: bool) -> Place:
    if not statement.readonly and not own:
        return Place.THERE
    if statement.pragma in _SETTINGS and statement.pragma_has_value:
        return Place.SETTING
    return Place.HERE


def _reads_main(database: Database, sql: str, statement: Statement) -> bool:
    what = statement.flags
    if what & flags.MAIN or not what & flags.PRAGMA:
        return bool(what & flags.MAIN)
    if what & _OWN or statement.pragma not in _MAIN_PRAGMAS:
        return False
    # The compiler does not tell which of several tables of that name a pragma is about.
    named = _ARGUMENT.search(sql)
    return named is None or not _is_own(database, named[1])


def _is_own(database: Database, name: str) -> bool:
    """Whether SQLite finds a name in TEMP or, when main has none, in an attached file."""
    places = [
        row[1] for row in database.prepare("PRAGMA database_list", own=True).run(NO_PARAMETERS)
    ]
    for place in sorted(places, key=lambda place: _SEARCHED.get(place, 2)):
        schema = "sqlite_temp_schema" if place == "temp" else f"{_quoted(place)}.sqlite_schema"
        sql = f"SELECT 1 FROM {schema} WHERE name = ? COLLATE NOCASE"  # noqa: S608 - quoted
        if database.prepare(sql, own=True).run(encode([name])):
            return bool(place != "main")
    return False


def _vacuums_into(database: Database, sql: str) -> bool:
    """Whether VACUUM writes another file: its opcode then names a register with the file's name."""
    explain = database.prepare("EXPLAIN " + sql, own=True)
    plan = explain.run(encode([None] * len(explain.parameters)))
    return any(row[1] == "Vacuum" and row[3] > 0 for row in plan)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
