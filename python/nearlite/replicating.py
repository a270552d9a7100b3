"""What a replica's connection says about replication and what it can be asked for, beside SQL.

How old its reads may be is decided before a statement runs and never inside: `freshness` other than
"local" takes compiled statements out of the reach of the cursor's straight way, so that each comes by
here first; a connection that reads what is here pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from nearlite._native.database import NO_PARAMETERS, Statement
from nearlite.dbapi.connection import _new
from nearlite.dbapi.cursor import Cursor
from nearlite.durations import duration
from nearlite.errors import Error, ProgrammingError, StaleReadError
from nearlite.forwarding import ForwardingConnection
from nearlite.freshness import Freshness, checked, freshen, wait_for
from nearlite.listening import Callback
from nearlite.position import Position
from nearlite.pulling import SyncResult
from nearlite.receiving import ProgressCallback
from nearlite.replica import Replica
from nearlite.tally import Stats

_HEADER: Final = Struct(">IIIQ")  # bytes 72..91 of a replica's page 1 (docs/formats.md)
_PAGE_1: Final = "SELECT data FROM sqlite_dbpage('main') WHERE pgno = 1"


class _OutOfReach(dict[str, Statement]):
    """Compiled statements that a cursor does not find before the connection has been asked."""

    def get(self, _sql: str, default: Any = None, /) -> Any:
        return default


class ReplicatingConnection(ForwardingConnection):
    """A connection to the file of a :class:`Replica`, without the SQL."""

    _replica: Replica
    _network_timeout: float
    _progress: ProgressCallback | None
    _local_statements: dict[str, Statement]
    _freshness: Freshness = "local"

    # ------------------------------------------------------------ bringing changes

    def sync(self, *, timeout: float | None = None, repair: bool = False) -> SyncResult:
        """Bring the replica to the position that the primary has when asked.

        Args:
          timeout: seconds for the whole call; None: network_timeout.
          repair: compare every page, and overwrite what differs even where the replica holds a history
            that the primary does not: a restored primary, or another one.

        Raises:
          SyncError: one of its subclasses; the replica is as it was.
        """
        if timeout is not None:
            timeout = duration("timeout", timeout, zero=True)
        self._check()
        self._settle()
        with self._guard():
            self._before_forward()
            return self._replica.sync(
                timeout=timeout,
                network_timeout=self._network_timeout,
                progress=self._progress,
                repair=repair,
            )

    def follow(self) -> None:
        """Bring every change as it happens from now on, in the background; returns at once.

        As ``sync_interval="live"`` does from the beginning.
        """
        self._check_open()
        self._replica.follow()

    def on_change(self, callback: Callback) -> Callable[[], None]:
        """Call `callback` with a `Change` (`position`, `tables`) after every change of the file from now on.

        What is answered ends that. See :meth:`nearlite.replica.Replica.on_change`.
        """
        self._check_open()
        return self._replica.on_change(callback)

    # ------------------------------------------------------------ how it stands

    @property
    def position(self) -> Position:
        """Where the replica stands."""
        self._check_open()
        return self._replica.position()

    @property
    def lag(self) -> float | None:
        """Seconds since the replica was last known to equal its primary; None: not known yet."""
        self._check_open()
        return self._replica.lag

    @property
    def last_sync_error(self) -> Error | None:
        """What the last sync failed with, or None."""
        self._check_open()
        return self._replica.last_error

    def stats(self, *, ask: bool = False) -> Stats:
        """Position, lag, what was received and how long it took.

        Args:
          ask: hear from the primary first how far it is ahead. Otherwise nobody is asked, and that is
            what the last answer said.

        Raises:
          SyncError: it was asked, and did not answer within network_timeout.
        """
        self._check_open()
        return self._replica.stats(ask=ask, network_timeout=self._network_timeout)

    # ------------------------------------------------------------ how old a read may be

    def wait_for(self, position: Position | str, timeout: float | None = None) -> None:
        """Return when reads of this connection see the state at `position` or a later one.

        Args:
          position: what a write returned, on whatever connection (`last_write_position`), or its text.
          timeout: seconds; None: network_timeout.

        Raises:
          LineageError: the position is of another database.
          WaitTimeoutError: it did not come in time; it is a TimeoutError, too.
          StaleReadError: the open transaction reads an older state, and goes on doing so.
        """
        seconds = (
            self._network_timeout if timeout is None else duration("timeout", timeout, zero=True)
        )
        self._check()
        self._settle()
        wanted = _position(position)
        with self._guard():
            if self._stream.in_transaction:
                return  # reads are the primary's
            self._before_forward()
            wait_for(self._replica, wanted, seconds)
            if self._database.has_snapshot:
                self._see_to_snapshot(wanted)

    def _see_to_snapshot(self, wanted: Position) -> None:
        lineage, generation, frame, _ = self._header_read()
        here = Position(lineage, generation, frame)
        if not wanted.precedes(here):
            raise StaleReadError(
                f"the open transaction reads the state at {here}, which is older than {wanted}",
                state="nothing was read",
                action="end the transaction first",
            )

    def _header_read(self) -> tuple[int, int, int, int]:
        """Position and state hash of the snapshot that the open transaction reads: in its page 1."""
        page = self._database.prepare(_PAGE_1, own=True).run(NO_PARAMETERS)[0][0]
        found: tuple[int, int, int, int] = _HEADER.unpack_from(page, 72)
        return found

    @property
    def freshness(self) -> Freshness:
        """How old what is read may be.

        * "local": as old as the file is.
        * "primary": the primary is asked for its present state before every read (in a transaction:
          before the first one).
        * a number: it is asked when the replica was last known to equal it more seconds ago (`lag`).
        """
        return self._freshness

    @freshness.setter
    def freshness(self, freshness: Freshness) -> None:
        self._check()
        self._settle()
        self._set_freshness(freshness)

    def _set_freshness(self, freshness: Freshness) -> None:
        self._freshness = checked(freshness)
        plain = self._local_statements
        kept: dict[str, Statement] = {} if freshness == "local" else _OutOfReach()
        kept.update(plain)
        self._local_statements = kept
        if self._statements is plain:
            self._statements = kept

    def _freshen(self) -> None:
        """Before a read of the main database here."""
        if self._freshness == "local" or self._database.has_snapshot:
            return  # in a transaction all reads are of the state that the first one has found
        self._before_forward()
        freshen(self._replica, self._freshness, self._network_timeout)

    def execute(
        self, sql: str, parameters: Any = (), /, *, at_least: Position | str | None = None
    ) -> Cursor:
        """``cursor().execute(...)``; `at_least`: after :meth:`wait_for` that position."""
        if at_least is not None:
            self.wait_for(at_least)
        # Written out, not handed on: a call more would be a few per cent of a point select.
        cursor = _new(Cursor)
        cursor._connection = self
        if self.row_factory is not None:
            cursor._row_factory = self.row_factory
        return cursor.execute(sql, parameters)


def _position(given: Position | str) -> Position:
    if isinstance(given, Position):
        return given
    try:
        return Position.parse(given)
    except (ValueError, TypeError) as error:
        raise ProgrammingError(f"not a position: {given!r}; {error}") from None
