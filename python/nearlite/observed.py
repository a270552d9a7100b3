"""How a replica stands: its position, its lag, its numbers, and who waits for or listens to them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, Final

from nearlite._native.applier import State
from nearlite._native.frames import SetHeader
from nearlite._native.sealing import Key
from nearlite.ahead import Ahead
from nearlite.background import Background
from nearlite.bootstrap import Folder
from nearlite.errors import Error
from nearlite.freshness import Reached, wait_for
from nearlite.http import Response
from nearlite.listening import Callback, Listeners
from nearlite.live import HEARTBEAT
from nearlite.position import Position
from nearlite.tally import Stats, Tally, frames_between

_TOUCH_EVERY: Final = 0.1  # seconds
_PUBLISH_EVERY: Final = 1.0  # seconds
_LONG: Final = float("inf")
_LARGE: Final = 1 << 20
"""Bytes of pages: a set of more takes long enough for others to see that it comes."""
# Seconds: whoever follows has heard of the primary within them.
_HEARD: Final = 2 * HEARTBEAT


class Observed:
    """The part of a :class:`Replica` that is asked and told how it stands.

    Attributes:
      path: of the file.
      timeout: network_timeout of what nobody calls.
      key: of a sealed file.
      folder: beside the file.
      primary_position: newest position of the primary that an answer named.
      ahead: how far that is ahead.
      equal_at: monotonic time of the last answer that left the replica equal to the primary.
      last_error: what the last sync failed with, or None.
      wal_bytes: of the replica's own WAL.
      reached, listeners, tally: who waits, who listens, what was counted.
    """

    background: Background

    def __init__(self, path: str, timeout: float, key: Key | None = None) -> None:
        self.path = path
        self.timeout = timeout
        self.key = key
        """Of the file, if it is sealed."""
        self.folder = Folder(path)
        self.wal_bytes = 0
        self.primary_position: Position | None = None
        self.ahead = Ahead()
        self.equal_at: float | None = None
        self.heard_at = time.monotonic()
        """When the primary, or what serves this replica, last answered a look of this process; at first: now."""
        self.last_error: Error | None = None
        self.reached = Reached()
        self.listeners = Listeners(path, key)
        self.tally = Tally()
        self._published_at = -_PUBLISH_EVERY
        self._touched_at = -_TOUCH_EVERY

    def state(self, *, wait: float | None = None) -> State:
        """Where the file stands, as every reader sees it."""
        raise NotImplementedError

    def sync(
        self,
        *,
        timeout: float | None = None,
        wait: float = 0.0,
        network_timeout: float | None = None,
    ) -> Any:
        """One pull."""
        raise NotImplementedError

    def position(self, *, wait: float | None = None) -> Position:
        """Where the file stands, as every reader sees it; `wait` as for :meth:`state`."""
        return self.state(wait=wait).position

    def is_followed(self) -> bool:
        """Whether this process or another one brings changes as they happen, as far as is known."""
        return self.background.follows or (self.folder.seconds_since_equal() or _LONG) < _HEARD

    def wait_for(self, position: Position, timeout: float | None = None) -> None:
        """Return when the file is at or beyond `position`, by whatever thread or process.

        Args:
          position: what a write returned (`last_write_position`), here or on another replica.
          timeout: seconds; None: `timeout` of the construction.

        Raises:
          LineageError: the position is of another database.
          WaitTimeoutError: it did not come in time.
        """
        wait_for(self, position, self.timeout if timeout is None else timeout)

    def hears(self, response: Response, header: SetHeader | None, at: float) -> None:
        """The head of an answer came at that monotonic time; `header`: a page set comes with it."""
        self.heard_at = time.monotonic()
        self.ahead.clock(response, at)
        if header is None:
            return
        transactions = self.ahead.comes(response, header)
        self.primary_position = header.target
        if transactions is not None:
            self.tally.brought(transactions)
        if header.count * header.page_size >= _LARGE and at - self._published_at >= _PUBLISH_EVERY:
            self.publish()

    def is_equal(self, position: Position, at: float) -> None:
        """The primary stood at `position` at that monotonic time, and so does this file."""
        self.heard_at = time.monotonic()
        known = self.primary_position
        if known is None or not position.precedes(known):  # what a cache has told may be older
            self.primary_position = position
        self.tally.answered()
        self._equalled(at)
        if math.isinf(at):
            return
        if at - self._published_at >= _PUBLISH_EVERY:
            self.publish()
        if at - self._touched_at >= _TOUCH_EVERY:  # other processes learn the lag from it
            self._touched_at = at
            self.folder.touch_equal(time.monotonic() - at)

    def _equalled(self, at: float) -> None:
        if math.isinf(at):  # the replica that serves this one does not know either
            return
        self.equal_at = at if self.equal_at is None else max(at, self.equal_at)

    @property
    def lag(self) -> float | None:
        """Seconds since the replica was last known to equal its primary: what reads return is not older.

        None before anything is known. Processes that do not sync themselves learn it from the one
        that does.
        """
        known = [self.folder.seconds_since_equal()]
        if self.equal_at is not None:
            known.append(time.monotonic() - self.equal_at)
        return min((seconds for seconds in known if seconds is not None), default=None)

    def ask(self, *, network_timeout: float | None = None) -> None:
        """Hear from the primary how far it is ahead."""
        raise NotImplementedError

    def stats(self, *, ask: bool = False, network_timeout: float | None = None) -> Stats:
        """How it stands, as far as this process knows.

        Args:
          ask: hear from the primary first how far it is ahead; otherwise nobody is asked.
          network_timeout: for that; None: the one given at construction.

        Raises:
          SyncError: it was asked, and did not answer.
        """
        if ask:
            self.ask(network_timeout=network_timeout)
        here, there, tally = self.position(), self.primary_position, self.tally
        behind = self.ahead.lag(here, there)
        sync, visible = tally.latencies()
        return Stats(
            position=here,
            primary_position=there,
            frames_behind=frames_between(here, there),
            transactions_behind=behind.transactions,
            bytes_behind=behind.bytes,
            seconds_behind=behind.seconds,
            lag=self.lag,
            follows=self.background.follows,
            answers=tally.answers,
            page_sets=tally.page_sets,
            transactions=tally.transactions,
            pages=tally.pages,
            page_bytes=tally.page_bytes,
            wire_bytes=tally.wire_bytes,
            wal_bytes=self.wal_bytes,
            sync=sync,
            visible=visible,
            last_error=None if self.last_error is None else str(self.last_error),
        )

    def publish(self) -> None:
        """Leave the numbers beside the file, for `nearlite status` in another process."""
        self._published_at = time.monotonic()
        with contextlib.suppress(Error):  # closed meanwhile
            self.folder.publish(self.stats().as_dict())

    # ------------------------------------------------------------------ following and listening

    def follow(self) -> None:
        """Bring every change as it happens, in the background, until :meth:`close`; returns at once.

        Of all processes that follow with one file one talks to the primary. Errors are survived:
        `last_error` has the last one, or None while it works.
        """
        self.background.follow()

    def on_change(self, callback: Callback) -> Callable[[], None]:
        """Call `callback` with a :class:`Change` after every change from now on; answers what ends that.

        On a thread of its own, one call at a time, nothing locked; changes that come quicker than the
        callback returns are told together. What it raises is logged. What this process applies is told by
        its tables; what other processes apply to the file, half a second later, as a change of all tables.
        """
        return self.listeners.add(callback, self.position())
