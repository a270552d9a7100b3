"""What the answer of a foreign server to a pipeline says beside rows: whether a transaction is open, and counters."""

from __future__ import annotations

import contextlib

import msgspec


class _Rows(msgspec.Struct):
    affected_row_count: int = 0
    last_insert_rowid: str | int | None = None
    step_results: list[_Rows | None] = []
    is_autocommit: bool | None = None


class _Response(msgspec.Struct):
    type: str = ""
    result: _Rows | None = None
    is_autocommit: bool | None = None


class _Result(msgspec.Struct):
    response: _Response | None = None


class _Answer(msgspec.Struct):
    results: list[_Result] = []


class Told:
    """What the answer to a pipeline says beside rows.

    Attributes:
      outside: no transaction is open after it, as far as it says.
    """

    def __init__(self, answer: _Answer) -> None:
        self._rows: list[_Rows] = []
        self.outside = True
        for result in answer.results:
            response = result.response
            if response is None:
                continue
            if response.is_autocommit is not None:
                self.outside = response.is_autocommit
            if response.result is not None:
                self._rows += [response.result, *filter(None, response.result.step_results)]

    @classmethod
    def of(cls, answer: bytes) -> Told:
        """Never raises: what cannot be read is told to whoever reads the whole of it."""
        try:
            return cls(msgspec.json.decode(answer, type=_Answer))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return cls(_Answer())

    def counted(self, before: tuple[int, int, int]) -> tuple[int, int, int]:
        """last_insert_rowid(), changes() and total_changes() after it, where the server does not tell."""
        rowid, changes, total = before
        for rows in self._rows:
            if rows.affected_row_count > 0:
                changes = rows.affected_row_count
                total += changes
            if rows.last_insert_rowid is not None:
                with contextlib.suppress(ValueError):
                    rowid = int(rows.last_insert_rowid) or rowid
        return rowid, changes, total
