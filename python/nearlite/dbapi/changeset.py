"""Changesets and patchsets: what they say, what undoes them, two as one (https://sqlite.org/session.html)."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple

from nearlite._native import changeset as native

Buffer = Any  # collections.abc.Buffer of Python 3.12
OnConflict = Literal["abort", "omit", "replace"]
Operation = Literal["INSERT", "UPDATE", "DELETE"]

# SQLITE_INSERT, _UPDATE, _DELETE
_OPERATIONS: Final[dict[int, Operation]] = {18: "INSERT", 23: "UPDATE", 9: "DELETE"}


class Absent(enum.Enum):
    """The type of `ABSENT`."""

    ABSENT = "ABSENT"

    def __repr__(self) -> str:
        return "nearlite.ABSENT"


ABSENT: Final = Absent.ABSENT
"""Stands for a value that a changeset does not hold: None is NULL."""


class Conflicts(NamedTuple):
    """Changes of a changeset that did not fit, and were left out or replaced what was there.

    Attributes:
      data: the row had another content than the changeset says.
      missing: there was no such row.
      taken: there was a row with the key of one to insert.
      constraint: a constraint failed.
      foreign_key: so many foreign keys were violated at the end.
    """

    data: int
    missing: int
    taken: int
    constraint: int
    foreign_key: int


class RowChange(NamedTuple):
    """One row that a changeset inserts, updates or deletes.

    Attributes:
      operation: "INSERT", "UPDATE" or "DELETE".
      table: its name.
      old: the row's values before, None for an INSERT; `ABSENT` where nothing changed (but the primary key is
        there), and in a patchset all but the primary key.
      new: the row's values after, None for a DELETE; `ABSENT` where nothing changed.
      key: per column, whether it belongs to the primary key.
      indirect: made by a trigger or a foreign key, or recorded as such.
    """

    operation: Operation
    table: str
    old: tuple[Any, ...] | None
    new: tuple[Any, ...] | None
    key: tuple[bool, ...]
    indirect: bool


def read_changeset(changeset: Buffer, /) -> Iterator[RowChange]:
    """What a changeset or patchset says, change by change, in its order: table by table.

    Raises:
      DatabaseError: it is none, or is damaged; changes before the damage have been answered then.
      OperationalError: text in it is not UTF-8.
    """
    for (operation, table), indirect, key, had, old, has, new in native.read(changeset):
        yield RowChange(
            _OPERATIONS[operation],
            table,
            None if old is None else _held(had, old),
            None if new is None else _held(has, new),
            tuple(map(bool, key)),
            bool(indirect),
        )


def _held(held: bytes, values: tuple[Any, ...]) -> tuple[Any, ...]:
    if 0 not in held:
        return values
    return tuple(value if has else ABSENT for has, value in zip(held, values, strict=True))


def invert_changeset(changeset: Buffer, /) -> bytes:
    """The changeset that undoes one.

    Raises:
      DatabaseError: it is none, is damaged, or is a patchset, which does not say what was there.
    """
    return native.invert(changeset)


def concat_changesets(first: Buffer, second: Buffer, /) -> bytes:
    """One changeset with the effect of two, one after the other.

    Raises:
      DatabaseError: one of them is none or is damaged, or a table has other columns in the second.
    """
    return native.concat(first, second)
