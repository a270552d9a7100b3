"""The parameter sets of ``executemany``.

The standard library runs each set before it asks the program's iterator for the next one, and so does this
(`run_sets`). Where sets are sent elsewhere as many as possible are asked for and then sent together; so that
this does not show, those that are waiting are run first when the iterator itself uses the connection
(`Asking`): it finds them in the tables, what it commits holds them, and the transaction that began before
the first set is not begun again after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from nearlite._native.database import NO_BEGIN, Statement, once
from nearlite.dbapi.binding import PLAIN, encode, encode_one, encode_plain, encode_sets

if TYPE_CHECKING:
    from nearlite.dbapi.connection import Connection

NO_THREAD: Final = 0
"""Of `Connection._thread`: nobody may go straight ahead."""

_SETS_AT_ONCE: Final = 4096  # parameter sets encoded into one buffer
_NO_SETS: Final = b"\x90"  # MessagePack: an array of none


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


def run_sets(connection: Connection, statement: Statement, parameters: Iterable[Any]) -> int:
    """Run a statement here once for every set; the rows changed.

    Plain values in a list or a tuple are run many at a time, in C. Everything else is code of the program's
    (an iterator, which may use one list again for every set, or go on after a failure; an adapter): each set
    is run before the next one is asked for, as the standard library does it.

    Raises: what a set failed with, or the iterator: the sets before have been executed.
    """
    statement.many(_NO_SETS, connection._begin)
    if type(parameters) is not list and type(parameters) is not tuple:
        return _run_each(connection, statement, parameters)
    count = at = 0
    while batch := parameters[at : at + _SETS_AT_ONCE]:
        at += _SETS_AT_ONCE
        data = encode_sets(batch)
        if data is None:
            count += _run_each(connection, statement, batch)
        else:
            statement.many(data, NO_BEGIN)
            count += connection._database.changes
    return count


def _run_each(connection: Connection, statement: Statement, sets: Iterable[Any]) -> int:
    database, names, handle = connection._database, statement.parameters, statement.handle
    nameless = all(name is None or name.isdigit() for name in names)  # of others Python warns
    count = 0
    for one in sets:
        kind = type(one)
        if nameless and (kind is tuple or kind is list) and PLAIN.issuperset(map(type, one)):
            try:
                data = encode(one)
            except OverflowError:
                data = encode_plain(one)
        else:
            data = encode_one(one, names)
        changes = once(handle, data, len(data))
        if changes < 0:
            database.fail()
        count += changes
    return count
