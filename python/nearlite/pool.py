"""`nearlite.Replica`: one replica file of a program, and connections to it for its threads and workers.

The object may be made before a fork, as servers that preload their application do: in the child it
opens the file anew at its first use, with a bid for being the process that syncs, and with the
callbacks that were given to it. It may be pickled, for workers that are spawned.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

from nearlite._native.sealing import Key
from nearlite.durations import duration
from nearlite.embedded import ReplicaConnection
from nearlite.errors import Error, OperationalError, ProgrammingError
from nearlite.position import Change, Position
from nearlite.pulling import SyncResult
from nearlite.tally import Stats

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_SIZE: Final = 16


class _Pool:
    """The connections of one process."""

    def __init__(self, make: Callable[[], ReplicaConnection], max_size: int) -> None:
        self._make = make
        self._max_size = max_size
        self._free = threading.Condition()
        self._idle: list[ReplicaConnection] = []
        self._made = 0  # idle or in use
        self._closed = False
        self.keeper = make()
        """Keeps the replica open, and answers for it."""

    def take(self, timeout: float) -> ReplicaConnection:
        """A connection that nobody uses."""
        end = time.monotonic() + timeout
        with self._free:
            while True:
                if self._closed:
                    raise ProgrammingError("the replica is closed")
                if self._idle:
                    return self._idle.pop()  # the one that was used last: its pages are at hand
                if self._made < self._max_size:
                    self._made += 1
                    break
                if not self._free.wait(max(0.0, end - time.monotonic())) and not self._idle:
                    raise OperationalError(
                        f"none of {self._max_size} connections became free within {timeout:g} "
                        "seconds; nothing was done. Give them back sooner, or set max_size"
                    )
        try:
            return self._make()
        except BaseException:
            self._lost()
            raise

    def give(self, connection: ReplicaConnection) -> None:
        """It is not used any more."""
        if not connection._open:
            self._lost()
            return
        with self._free:
            if not self._closed:
                self._idle.append(connection)
                self._free.notify()
                return
        connection.close()

    def _lost(self) -> None:
        with self._free:
            self._made -= 1
            self._free.notify()

    def close(self) -> None:
        """Close what is idle now, and the others when they are given back."""
        with self._free:
            self._closed = True
            idle, self._idle = self._idle, []
            self._free.notify_all()
        for connection in [*idle, self.keeper]:
            connection.close()


_replicas: weakref.WeakSet[Replica] = weakref.WeakSet()


def _forked() -> None:
    for replica in list(_replicas):
        replica._forget()


os.register_at_fork(after_in_child=_forked)


class Replica:
    """A replica file, synced by one process of all that use it, and connections to it.

    Args:
      path: of the file; created from the primary when it does not exist.
      sync_url: the primary's URL.
      max_size: connections that :meth:`connection` keeps at most.
      options: of :class:`nearlite.embedded.ReplicaConnection`, for every connection.

    Raises:
      NotAReplicaError: there is a file, and it is not a replica; it was not touched.
      OfflineError: there is no file and the primary cannot be reached.
      ProgrammingError: an option that cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sync_url: str,
        max_size: int = MAX_SIZE,
        **options: Any,
    ) -> None:
        if max_size < 1:
            raise ProgrammingError("max_size is at least 1")
        self._path = os.path.abspath(path)  # a child may go elsewhere
        self._options: dict[str, Any] = {"sync_url": sync_url, **options}
        self._max_size = max_size
        self._callbacks: list[Callable[[Change], object]] = []
        self._closed = False
        self._key: Key | None = (
            None  # what `encryption_key` is by now: asked for once, and perhaps changed
        )
        self._forget()
        self._pool_here()
        _replicas.add(self)

    def __repr__(self) -> str:
        return f"<nearlite.Replica {self._path}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (self._path, {"max_size": self._max_size, **self._options})

    def _forget(self) -> None:
        """Whatever there is is the parent's."""
        self._opening = threading.Lock()
        self._pool: _Pool | None = None

    def _pool_here(self) -> _Pool:
        pool = self._pool
        if pool is not None:
            return pool
        with self._opening:
            if self._closed:
                raise ProgrammingError("the replica is closed")
            if self._pool is None:
                pool = _Pool(self.connect, self._max_size)
                for callback in self._callbacks:
                    pool.keeper.on_change(callback)
                self._pool = pool
                self._key = pool.keeper._key
            return self._pool

    # ------------------------------------------------------------------ connections

    def connect(self, **options: Any) -> ReplicaConnection:
        """A connection of the caller's own, who closes it. Any thread may use it, one at a time.

        Args:
          options: in place of those of the replica.
        """
        if self._closed:
            raise ProgrammingError("the replica is closed")
        merged: dict[str, Any] = {"check_same_thread": False, **self._options}
        if self._key is not None:
            merged["encryption_key"] = self._key
        merged |= options
        return ReplicaConnection(self._path, **merged)

    @contextlib.contextmanager
    def connection(self, timeout: float = 30.0) -> Generator[ReplicaConnection, None, None]:
        """A connection for the length of a `with` block, out of those that are kept.

        The block's transaction is committed at its end, or rolled back when it raises.

        Args:
          timeout: seconds to wait for one when all are in use.
        """
        pool = self._pool_here()
        connection = pool.take(duration("timeout", timeout, zero=True))
        try:
            yield connection
            if connection._open:  # the block may have closed it
                connection.__exit__(None, None, None)
        except BaseException:
            if connection._open:
                with contextlib.suppress(Error):
                    connection.rollback()
            raise
        finally:
            try:
                _reset(connection, self._options)
            except Error:  # a transaction on the primary that cannot even be rolled back
                connection.close()
            pool.give(connection)

    # ------------------------------------------------------------------ replication

    def sync(self, *, timeout: float | None = None, repair: bool = False) -> SyncResult:
        """Bring the file to the position that the primary has when asked; `repair` as of a connection."""
        if timeout is not None:
            timeout = duration("timeout", timeout, zero=True)
        return self._pool_here().keeper._replica.sync(timeout=timeout, repair=repair)

    def follow(self) -> None:
        """Bring every change as it happens from now on, also in processes that are forked later."""
        self._options["sync_interval"] = "live"
        self._pool_here().keeper.follow()

    def wait_for(self, position: Position | str, timeout: float | None = None) -> None:
        """Return when reads of all connections see the state at `position` or a later one."""
        with self.connection() as connection:
            connection.wait_for(position, timeout)

    def on_change(self, callback: Callable[[Change], object]) -> Callable[[], None]:
        """Call `callback` after every change; in processes that are forked later, too."""
        stop = self._pool_here().keeper.on_change(callback)
        self._callbacks.append(callback)

        def end() -> None:
            with contextlib.suppress(ValueError):
                self._callbacks.remove(callback)
            stop()

        return end

    def stats(self, *, ask: bool = False) -> Stats:
        """Position, lag, what was received and how long it took; `ask` as of a connection."""
        return self._pool_here().keeper.stats(ask=ask)

    @property
    def position(self) -> Position:
        """Where the file stands."""
        return self._pool_here().keeper.position

    @property
    def lag(self) -> float | None:
        """Seconds since the file was last known to equal its primary; None: not known yet."""
        return self._pool_here().keeper.lag

    @property
    def last_sync_error(self) -> Error | None:
        """What the last sync failed with, or None."""
        return self._pool_here().keeper.last_sync_error

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Close what is kept; connections that are in use when they are given back. Idempotent."""
        with self._opening:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _remade(path: str, options: dict[str, Any]) -> Replica:
    return Replica(path, **options)


def _reset(connection: ReplicaConnection, options: dict[str, Any]) -> None:
    """The next one who is given it finds it as it was made."""
    if not connection._open:
        return
    if connection.in_transaction and connection.autocommit is not False:
        connection.rollback()
    connection.row_factory = None
    if connection.text_factory is not str:
        connection.text_factory = str
    wanted = options.get("freshness", "local")
    if connection.freshness != wanted:
        connection.freshness = wanted
