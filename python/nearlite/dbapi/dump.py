"""A database as SQL statements: ``Connection.iterdump``, as the ``.dump`` of SQLite's shell writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

Run = Callable[[str, Sequence[Any]], Iterator[Sequence[Any]]]
"""Runs a statement with its parameters; answers its rows."""

_STATISTICS: Final = "sqlite_stat1"
_SEQUENCE: Final = "sqlite_sequence"


def dump(run: Run, like: str | None = None) -> Iterator[str]:
    """Statements that make an empty database equal to this one, without their line ends.

    Args:
      run: on the database; what others commit meanwhile is kept out by a transaction of the caller's.
      like: only tables, views, indexes and triggers whose name is LIKE it.
    """
    wanted, names = (" AND name LIKE ?", (like,)) if like else ("", ())
    virtual = False
    sequence: list[str] = []
    if any(True for _ in run("PRAGMA foreign_key_check", ())):
        yield "PRAGMA foreign_keys=OFF;"
    yield "BEGIN TRANSACTION;"
    schema = "FROM sqlite_schema WHERE sql NOT NULL AND type"
    tables = run(f"SELECT name, sql {schema} = 'table'{wanted} ORDER BY name", names)
    for name, sql in list(tables):
        if name == _SEQUENCE:
            sequence = ['DELETE FROM "sqlite_sequence";', *_rows(run, name)]
            continue
        if name == _STATISTICS:
            yield 'ANALYZE "sqlite_master";'
        elif name.startswith("sqlite_"):
            continue
        elif sql.startswith("CREATE VIRTUAL TABLE"):
            # Its module would make the tables that it keeps its content in, which come by themselves.
            if not virtual:
                virtual = True
                yield "PRAGMA writable_schema=ON;"
            text = _text(name)
            yield (
                "INSERT INTO sqlite_master(type,name,tbl_name,rootpage,sql)"
                f"VALUES('table',{text},{text},0,{_text(sql)});"
            )
            continue
        else:
            yield f"{sql};"
        yield from _rows(run, name)
    others = run(f"SELECT sql {schema} IN ('index', 'trigger', 'view'){wanted}", names)
    for (sql,) in list(others):
        yield f"{sql};"
    if virtual:
        yield "PRAGMA writable_schema=OFF;"
    yield from sequence
    yield "COMMIT;"


def _rows(run: Run, table: str) -> Iterator[str]:
    """An INSERT for each row of a table. SQLite writes it: values become text that is read as they were."""
    name = _name(table)
    columns = [_name(row[1]) for row in run(f"PRAGMA table_info({name})", ())]
    values = "||','||".join(map(_quoted, columns))
    into = f"INSERT INTO {name} VALUES(".replace("'", "''")
    for (line,) in run(f"SELECT '{into}'||{values}||');' FROM {name}", ()):  # noqa: S608 - quoted
        yield line


def _quoted(column: str) -> str:
    """An expression for a value as a literal. quote() ends a text at its first NUL, and so would the reader."""
    return (
        f"CASE WHEN typeof({column})='text' AND instr(CAST({column} AS BLOB),x'00') "
        f"THEN 'CAST(x'''||hex({column})||''' AS TEXT)' ELSE quote({column}) END"
    )


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
