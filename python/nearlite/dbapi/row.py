"""Row: a row with names, as ``sqlite3.Row``."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from nearlite.dbapi.cursor import Cursor


class Row(Sequence):  # type: ignore[type-arg]  # generic only in stubs, as sqlite3.Row
    """A result row, by position and by column name (case-insensitively).

    Two rows are equal when their values and their column names are.
    """

    __slots__ = ("_description", "_values")
    _description: tuple[tuple[Any, ...], ...]
    _values: tuple[Any, ...]

    def __new__(cls, cursor: Cursor, data: tuple[Any, ...], /) -> Row:
        """Name the values of `data` by the description of `cursor`."""
        if not isinstance(data, tuple):
            raise TypeError(f"Row() argument 2 must be tuple, not {type(data).__name__}")
        if not issubclass(type(cursor), Cursor):  # what __class__ pretends does not count
            kind = type(cursor).__name__
            raise TypeError(f"Row() argument 1 must be nearlite.Cursor, not {kind}")
        row = super().__new__(cls)
        row._description = cursor._description or ()
        row._values = data
        return row

    def keys(self) -> list[str]:
        """Column names, in order."""
        return [column[0] for column in self._description]

    def __getitem__(self, key: Any) -> Any:
        if type(key) is str:
            wanted = key.lower() if key.isascii() else _ascii_lower(key)
            for value, column in zip(self._values, self._description, strict=False):
                name = column[0]
                if name == key or _ascii_lower(name) == wanted:
                    return value
            raise IndexError("No item with that key")
        if isinstance(key, str):
            return self[str(key)]
        if isinstance(key, slice):
            return self._values[key]
        try:
            index = operator.index(key)
        except TypeError:
            raise IndexError("Index must be int or string") from None
        return self._values[index]

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Row):
            return NotImplemented
        return self._values == other._values and self._description == other._description

    def __hash__(self) -> int:
        return hash(self._description) ^ hash(self._values)

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle 'nearlite.Row' object")

    def __repr__(self) -> str:
        return f"<nearlite.Row object at {id(self):#x}>"


def _ascii_lower(text: str) -> str:
    """SQLite and sqlite3.Row fold ASCII letters only: "É" and "é" are two names."""
    if text.isascii():
        return text.lower()
    return "".join(char.lower() if char.isascii() else char for char in text)
