"""``executemany`` on a primary: parameter sets in as few requests as possible."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nearlite.asking import encode_values
from nearlite.dbapi.sets import Asking
from nearlite.errors import DatabaseError
from nearlite.upstream import SEND_BYTES

if TYPE_CHECKING:
    from nearlite.forwarding import ForwardingConnection

Names = tuple[str | None, ...]
"""Of a statement's parameters; None for a nameless one."""

_SETS_AT_ONCE: Final = 10_000  # parameter sets in one request
_STEP_BYTES: Final = 96  # of JSON around the values of a set
_END: Final = object()


class Batches:
    """One `executemany`: takes the sets from the program's iterator and sends them.

    In a transaction of the program's own the sets are statements in it. Outside of one, a transaction of
    ours is opened around all of them, for the sake of one commit; the sets before a failing one stay, as
    they would have locally, and when the iterator uses the connection, ours is committed first.

    Args:
      connection: whose.
      sql: exactly one statement.
      names: of its parameters; None: only the primary knows them.
    """

    def __init__(self, connection: ForwardingConnection, sql: str, names: Names | None) -> None:
        self._connection = connection
        self._stream = connection._stream
        self._sql = sql
        self._names = names
        self._taken: list[msgspec.Raw] = []
        self._told: list[list[Any]] = []  # ... as the trace is to hear of them
        self._size = 0
        self._begun = False  # what begins before the first set has begun
        self._ours = False  # the open transaction is ours
        self._count = 0

    def run(self, sets: Iterator[Any]) -> int:
        """Send all of them; rows changed.

        Raises: what a set failed with, or the iterator: the sets before have been executed.
        """
        asking = Asking(self._connection, self._settle)
        while True:
            try:
                with asking:
                    parameters = next(sets, _END)
                    if parameters is _END:
                        break
                    values = self._connection._arranged(self._sql, parameters, self._names)
                    if self._connection._traces():
                        self._told.append(values)
                    encoded = encode_values(values)
            except BaseException:
                if not asking.failed:
                    self._send(end=True)
                raise
            self._take(encoded)
        if not (self._begun or self._taken) and self._names is None:
            self._stream.parameters(self._sql)  # raises what compiling it raises
        self._send(end=True)
        return self._count

    def _take(self, values: msgspec.Raw) -> None:
        full = self._size + len(values) > SEND_BYTES or len(self._taken) == _SETS_AT_ONCE
        if self._taken and full:
            self._send(end=False)
        self._taken.append(values)
        self._size += _STEP_BYTES + len(values)

    def _settle(self) -> None:
        self._send(end=True)

    def _send(self, *, end: bool) -> None:
        """Send the sets that are waiting; `end`: the transaction, if it is ours, ends with them."""
        connection, stream = self._connection, self._stream
        opening: list[str] = []
        if not self._ours:
            opening = connection._pending() if self._begun else connection._openings(self._sql)
        self._begun = True
        if self._taken and not (self._ours or opening or stream.in_transaction):
            self._ours, opening = True, ["BEGIN"]
        if not (self._taken or opening or self._ours):
            return
        told, self._told = self._told, []
        for values in told:
            connection._tell(self._sql, values)
        sets, self._taken, self._size = self._taken, [], 0
        commit = self._ours and end
        connection._before_forward()
        try:
            self._count += stream.many(
                self._sql, sets, opening=opening, commit=commit,
                visible=connection._visible and commit,
            )  # fmt: skip
        except BaseException as error:
            self._failed(error, opening)
            raise
        finally:
            self._ours = self._ours and not commit
            connection._after_forward()

    def _failed(self, error: BaseException, opening: list[str]) -> None:
        """End a transaction that a local connection would not have left open."""
        stream = self._stream
        if self._ours and stream.in_transaction:
            stream.end("COMMIT", visible=self._connection._visible)
        elif opening and isinstance(error, DatabaseError):
            self._connection._undo_opening()
