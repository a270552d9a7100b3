"""The parameter sets of ``executemany``, taken ahead of their execution.

The standard library runs each set before it asks the program's iterator for the next one. Here as many as
possible are asked for and then run in one call. So that this does not show, the sets that are waiting are
run first when the iterator itself uses the connection: it finds them in the tables, what it commits
holds them, and the transaction that began before the first set is not begun again after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from nearlite._native.database import NO_BEGIN, Statement
from nearlite.dbapi.binding import encode_sets

if TYPE_CHECKING:
    from nearlite.dbapi.connection import Connection

NO_THREAD: Final = 0
"""Of `Connection._thread`: nobody may go straight ahead."""

_SETS_AT_ONCE: Final = 4096  # parameter sets encoded into one buffer


class Asking:
    """While it is entered, the program's iterator is asked for sets, and may use the connection.

    Args:
      connection: whose.
      run: runs the sets that are waiting.
    """

    def __init__(self, connection: Connection, run: Callable[[], None]) -> None:
        self._connection = connection
        self._run = run
        self._thread = get_ident()
        self._failure: BaseException | None = None
        self._outside: tuple[Asking | None, int] = (None, NO_THREAD)

    def __enter__(self) -> None:
        connection = self._connection
        self._outside = connection._asking, connection._thread
        connection._asking, connection._thread = self, NO_THREAD

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self._connection._asking, self._connection._thread = self._outside
        if value is None:
            self.check()

    def settle(self) -> None:
        """Run what is waiting, because the iterator uses the connection now."""
        if get_ident() != self._thread or self._failure is not None:
            return
        connection = self._connection
        inside = connection._asking, connection._thread
        connection._asking, connection._thread = self._outside
        try:
            self._run()
        except BaseException as error:
            self._failure = error
            raise
        finally:
            connection._asking, connection._thread = inside

    def check(self) -> None:
        """Raise what a set failed with, if one did in `settle`: nothing more is to be run."""
        if self._failure is not None:
            raise self._failure

    @property
    def failed(self) -> bool:
        """Whether a set failed in `settle`."""
        return self._failure is not None


def run_sets(connection: Connection, statement: Statement, sets: Iterator[Any]) -> int:
    """Run a statement here once for every set, as many as possible in one call; the rows changed.

    Raises: what a set failed with, or the iterator: the sets before have been executed.
    """
    count = 0
    begin = connection._begin
    taken: list[Any] = []
    done = 0

    def run() -> None:
        nonlocal count, begin, done
        waiting = taken[done:] if done else taken
        done = len(taken)
        data, failure = encode_sets(waiting, statement.parameters)
        kind, begin = begin, NO_BEGIN
        statement.many(data, kind)
        count += connection._database.changes
        if failure is not None:
            raise failure

    asking = Asking(connection, run)
    while True:
        try:
            with asking:
                taken.extend(islice(sets, _SETS_AT_ONCE))
        except BaseException:
            if not asking.failed:
                run()
            raise
        ended = len(taken) < _SETS_AT_ONCE
        run()
        if ended:
            return count
        taken.clear()
        done = 0
