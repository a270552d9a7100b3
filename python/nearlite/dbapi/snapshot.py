"""Snapshot: a state of a database in WAL mode that transactions can read again (https://sqlite.org/c3ref/snapshot.html)."""

from __future__ import annotations

from functools import total_ordering

from nearlite._native.snapshot import State


@total_ordering
class Snapshot:
    """A state of a database file. ``Connection.snapshot`` makes it, ``Connection.read_at`` reads it.

    It can be read while some transaction reads it, or until the WAL that holds it is checkpointed and begun
    anew. Snapshots of one file are ordered by age.
    """

    __slots__ = ("_file", "_state")

    def __init__(self, file: str, state: State) -> None:
        self._file, self._state = file, state

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Snapshot) or other._file != self._file:
            return NotImplemented
        return self._state.compared(other._state) == 0

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Snapshot) or other._file != self._file:
            return NotImplemented
        return self._state.compared(other._state) < 0

    def __hash__(self) -> int:
        return hash(self._file)

    def __repr__(self) -> str:
        return f"<nearlite.Snapshot of {self._file!r}>"
