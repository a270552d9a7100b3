"""A database as SQL statements: ``Connection.iterdump``, as the ``.dump`` of SQLite's shell writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from nearlite.errors import OperationalError

Run = Callable[[str, Sequence[Any]], Iterator[Sequence[Any]]]
"""Runs a statement with its parameters; answers its rows."""

_STATISTICS: Final = "sqlite_stat1"
_SEQUENCE: Final = "sqlite_sequence"


def dump(
    run: Run,
    like: str | None = None,
    *,
    lines: Run | None = None,
    rowids: bool = False,
    unchecked: bool = False,
) -> Iterator[str]:
    """Statements that make an empty database equal to this one, without their line ends.

    Args:
      run: on the database; what others commit meanwhile is kept out by a transaction of the caller's.
      like: only tables, views, indexes and triggers whose name is LIKE it.
      lines: the same as `run`, for those whose rows are one text: perhaps one that is no UTF-8.
      rowids: tables get their rowids as well, where they have some that no column names.
      unchecked: the whole is not read first to know whether all foreign keys hold; and the numbers that
        programs keep beside the schema are part of it.
    """
    lines = lines or run
    wanted, names = (" AND name LIKE ?", (like,)) if like else ("", ())
    virtual = False
    sequence: list[str] = []
    if unchecked or not _keys_hold(run):
        yield "PRAGMA foreign_keys=OFF;"
    yield "BEGIN TRANSACTION;"
    schema = "FROM sqlite_schema WHERE sql NOT NULL AND type"
    tables = run(f"SELECT name, sql {schema} = 'table'{wanted} ORDER BY name", names)
    for name, sql in list(tables):
        if name == _SEQUENCE:
            sequence = ['DELETE FROM "sqlite_sequence";', *_rows(run, lines, name)]
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
        yield from _rows(run, lines, name, rowids=rowids and name != _STATISTICS)
    others = run(f"SELECT sql {schema} IN ('index', 'trigger', 'view'){wanted}", names)
    for (sql,) in list(others):
        yield f"{sql};"
    if virtual:
        yield "PRAGMA writable_schema=OFF;"
    yield from sequence
    if unchecked:
        for number in ("user_version", "application_id"):
            ((value,),) = run(f"PRAGMA {number}", ())
            if value:
                yield f"PRAGMA {number}={value};"
    yield "COMMIT;"


def _keys_hold(run: Run) -> bool:
    """Whether all foreign keys do, and are such that SQLite can tell."""
    try:
        return not any(True for _ in run("PRAGMA foreign_key_check", ()))
    except OperationalError as error:
        if not str(error).startswith("foreign key mismatch"):
            raise
        return False


def _rows(run: Run, lines: Run, table: str, *, rowids: bool = False) -> Iterator[str]:
    """An INSERT for each row of a table. SQLite writes it: values become text that is read as they were."""
    name = _name(table)
    columns = [_name(row[1]) for row in run(f"PRAGMA table_info({name})", ())]
    into = f"INSERT INTO {name} VALUES("
    rowid = _rowid(run, table) if rowids else None
    if rowid is not None:
        columns.insert(0, rowid)
        into = f"INSERT INTO {name}({','.join(columns)}) VALUES("
    values = "||','||".join(map(_quoted, columns))
    into = into.replace("'", "''")
    for (line,) in lines(f"SELECT '{into}'||{values}||');' FROM {name}", ()):  # noqa: S608 - quoted
        yield line


def _rowid(run: Run, table: str) -> str | None:
    """What the rowids of a table are called; None: it has none, or a column that is its rowid."""
    kinds = run("SELECT type, wr FROM pragma_table_list(?) WHERE schema = 'main'", (table,))
    if list(kinds) != [("table", 0)]:
        return None
    columns = list(run("SELECT name, type, pk FROM pragma_table_xinfo(?)", (table,)))
    keys = [kind for _, kind, pk in columns if pk]
    if len(keys) == 1 and keys[0].upper() == "INTEGER":
        indexed = run("SELECT 1 FROM pragma_index_list(?) WHERE origin = 'pk'", (table,))
        if not list(indexed):  # otherwise it is INTEGER PRIMARY KEY DESC, a column like any other
            return None
    taken = {column.lower() for column, _, _ in columns}
    return next((name for name in ("rowid", "_rowid_", "oid") if name not in taken), None)


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
