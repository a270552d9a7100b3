"""A long poll that is always open: what the primary commits is here half a round trip later.

The next request is on its way before a page set that was received is applied: it needs the position and
the state hash after it, and both are in the set's header. When the set turns out not to lead there
(it could not be applied, or somebody else has moved the file), that answer is thrown away with its
connection, and the next question starts from where the file stands. A small set is applied first: that
takes less time than to send a request and wake who gets it (commit to visible: 0.74 of the time).

A poll is a heartbeat, too: it asks the primary to answer within `HEARTBEAT` seconds, with nothing if
there is nothing. One that is not answered `timeout` seconds after that is dead, and so, sooner, is a
connection whose other end does not acknowledge (channel.py).

Where a cache may stand in between, the primary says which beat the next poll belongs to (beats.py). The
answer to such a poll is perhaps what somebody else was told seconds ago: it is applied like any other,
but that the replica equals its primary is known as of then. The first poll names no beat: its answer
is the primary's own.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from nearlite import beats, wire
from nearlite._native.applier import State
from nearlite._native.frames import SetHeader
from nearlite.arriving import Arrived
from nearlite.errors import DamagedError, Error, SyncError
from nearlite.failing import UnfoundedError
from nearlite.http import Deadline, Response, Sent, Transport
from nearlite.position import Position
from nearlite.receiving import Meter, SetReader, as_of
from nearlite.sync import Fetch, Local, Pull

HEARTBEAT: Final = float(beats.SECONDS)
"""Seconds after which a primary that has nothing new says so."""
FIRST_PAUSE: Final = 0.1
"""Seconds before the second attempt to reach it; the first one is made at once."""
LONGEST_PAUSE: Final = 10.0
_TAKE_OVER: Final = 0.5
"""Seconds between two bids of a process that does not follow to be the one that does."""
_AT_ONCE: Final = 32
"""Pages that are applied before the next request is sent."""
_ITS_SYNC_HELPS: Final = frozenset(["HISTORY_GONE", "STATE_MISMATCH"])
"""Refusals that a sync of its own may know a way out of."""


class Followed(Protocol):
    """What follows: a Replica."""

    path: str
    timeout: float
    transport: Transport

    @property
    def compact(self) -> bool:
        """Page sets may be told from the pages of the file."""

    def doubt(self, error: Error) -> None:
        """A set that was told so came out wrong: no such ones any more."""

    def stands_at(self, deadline: Deadline) -> Local:
        """Where it stands; the file has been found to be what it says."""

    def hears(self, response: Response, header: SetHeader | None, at: float) -> None:
        """The head of an answer came at that monotonic time; `header`: a page set comes with it."""

    def receive(self, header: SetHeader, reader: SetReader) -> Arrived:
        """Receive a set to its end."""

    def apply(self, arrived: Arrived, deadline: Deadline) -> State | None:
        """Apply it; None when the replica does not stand at its start."""

    def sync(self) -> object:
        """One pull, with what it knows to do about refusals."""

    def is_equal(self, position: Position, at: float) -> None:
        """The primary stood there at that monotonic time, and so does the replica."""


@dataclass(frozen=True, slots=True)
class Came:
    """A page set that a poll brought.

    Attributes:
      position: where the replica stands now.
      pages: in it.
      bytes: of the answer's body.
      seconds: from the head of the answer until every reader could see it.
    """

    position: Position
    pages: int
    bytes: int
    seconds: float


@dataclass(slots=True)
class _Poll:
    """A request that is under way."""

    since: Local
    pull: Pull
    sent: Sent
    wait: float  # seconds that the primary may take to find something new
    beat: int | None  # that it belongs to
    at: float  # monotonic


class Pauses:
    """Between attempts: none before the first, then doubled up to a bound, each with a random part."""

    def __init__(self) -> None:
        self._failures = 0

    def reset(self) -> None:
        """It worked."""
        self._failures = 0

    def next(self) -> float:
        """Seconds until the next attempt."""
        self._failures += 1
        if self._failures == 1:
            return 0.0
        # Bounded before it is raised to a power: a primary may be away for weeks.
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures - 2, 10))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - so that not all come at once


class Live:
    """Follows the primary until it is stopped.

    Args:
      replica: what follows.
      heartbeat: seconds after which the primary shall answer, whether there is something or not.
      won: whether this process is the one that may; asked again while it is not.
      came: told of every page set, on the thread that follows.
      failed: told of every failure and the seconds until the next attempt; it may raise to end it.
      works: told when an answer came that was none.
    """

    def __init__(
        self,
        replica: Followed,
        *,
        failed: Callable[[Exception, float], None],
        works: Callable[[], None] = lambda: None,
        came: Callable[[Came], None] = lambda _: None,
        won: Callable[[], bool] = lambda: True,
        heartbeat: float = HEARTBEAT,
    ) -> None:
        self._replica = replica
        self._heartbeat = heartbeat
        self._won = won
        self._came = came
        self._failed = failed
        self._works = works
        self._pauses = Pauses()
        self._stopping = threading.Event()
        self._beat: int | None = None  # of the next poll, if they belong to any
        self.is_open = False
        """A poll is open, or about to be: what is committed comes by itself."""

    def run(self) -> None:
        """Follow on the calling thread. Returns after :meth:`stop`; raises what `failed` raises."""
        while not self._stopping.is_set():
            try:
                if not self._won():
                    self._stopping.wait(_TAKE_OVER)
                    continue
                self._follow()
            except Exception as error:  # noqa: BLE001 - a token callable may raise anything
                self.is_open = False
                if self._stopping.is_set():
                    return
                if isinstance(error, DamagedError) and self._is_mended():
                    continue
                pause = self._pauses.next()
                self._failed(error, pause)
                self._stopping.wait(pause)

    def _is_mended(self) -> bool:
        """The file is not what it says: a sync of its own repairs it."""
        with contextlib.suppress(Exception):  # the first failure says more
            self._replica.sync()
            return True
        return False

    def stop(self) -> None:
        """Ask nothing any more. Who calls it ends the poll that is open by closing the transport."""
        self._stopping.set()

    # ------------------------------------------------------------------ polls

    def _follow(self) -> None:
        """Poll after poll. Raises what made one fail.

        The first one does not wait: whether the replica equals its primary is then known at once.
        """
        poll = self._ask(None, wait=0.0)
        while True:
            try:
                following = self._round(poll)
            finally:
                poll.sent.close()
            if self._stopping.is_set():
                if following is not None:
                    following.sent.close()
                return
            poll = following or self._ask(None)

    def _deadline(self) -> Deadline:
        return Deadline(self._replica.timeout, renewed=True)

    def _ask(self, since: Local | None, wait: float | None = None) -> _Poll:
        """Send the next request; `since` None: from where the file stands."""
        deadline = self._deadline()
        if since is None:
            since = self._replica.stands_at(deadline)
        transport = self._replica.transport
        beat = self._beat if wait is None else None
        if wait is None:
            wait = self._heartbeat if beat is None else 2.0 * beats.SECONDS
        pull = Pull(
            since,
            compress=not transport.loopback,
            wait=wait,
            compact=self._replica.compact,
            beat=beat,
        )
        fetch = pull.start()
        assert isinstance(fetch, Fetch)
        sent = transport.send(fetch.path, deadline)
        self.is_open = self.is_open or wait > 0
        return _Poll(since, pull, sent, wait, beat, time.monotonic())

    def _round(self, poll: _Poll) -> _Poll | None:
        """Take one answer; the next request if it has been sent already."""
        deadline = Deadline(poll.wait + self._replica.timeout, renewed=True)
        with poll.sent.answer(deadline) as response:
            started = time.monotonic()
            deadline.seconds = (
                self._replica.timeout
            )  # the primary is there: it must not stand still
            deadline.restart()
            # The next one is about to be sent; what is told to others on the way shall say so.
            self.is_open = self.is_open or response.status in (200, 204)
            self._beat = beats.number(response.header("nearlite-beat"))
            if response.status == 204:
                at = as_of(response)
                response.read(0)
                self._replica.hears(response, None, started)
                self._nothing(poll, at, response.header("nearlite-position"))
                return None
            if response.status != 200:
                self._refused(poll, response)
                return None
            meter = Meter(None, started)
            reader = SetReader(response, meter, poll.pull.stands)
            header = reader.header()
            poll.pull.header(header)  # raises unless it leads on from there
            self._replica.hears(response, header, started)
            arrived = self._replica.receive(header, reader)
        try:
            with contextlib.closing(arrived):
                following, moved, visible = self._apply(arrived, deadline)
        except UnfoundedError as error:
            self._replica.doubt(error)
            return None
        self._worked(eager=header.target == header.start)
        if moved is not None:
            self._came(Came(moved, meter.pages, meter.bytes, visible - started))
        return following

    def _apply(
        self, arrived: Arrived, deadline: Deadline
    ) -> tuple[_Poll | None, Position | None, float]:
        """Apply it and ask for what comes after it; where that led, if it did, and when.

        Asked first, unless applying takes less than asking.
        """
        head = arrived.header
        target = Local(head.target, head.hash_target, head.pages, head.page_size)
        following = self._ask_on(target) if head.count > _AT_ONCE else None
        try:
            state = self._replica.apply(arrived, deadline)
            visible = time.monotonic()
            now = target if state is not None else self._replica.stands_at(deadline)
            if following is None:
                following = self._ask_on(now)
            elif now != target:
                following.sent.close()  # somebody else has moved the file, further or not so far
                following = None
            if target.position.precedes(now.position):
                self._replica.is_equal(target.position, arrived.as_of)
        except BaseException:
            if following is not None:
                following.sent.close()
            raise
        return following, None if state is None else target.position, visible

    def _ask_on(self, since: Local) -> _Poll | None:
        """Send the next request; None when the connection is gone: it is made when nothing else is to do."""
        with contextlib.suppress(SyncError):
            return self._ask(since)
        return None

    def _nothing(self, poll: _Poll, at: float, position: str) -> None:
        """The time of a poll is over; at that monotonic time the primary stood where the replica stands."""
        poll.pull.nothing_new(position)
        self._replica.is_equal(poll.since.position, at)
        if poll.beat is not None:
            # Its end may be near from the beginning; what may not be is the same poll again.
            self._worked(eager=self._beat in (None, poll.beat))
            return
        # One that stops answers at once, and so does a server that knows nothing of waiting.
        self._worked(eager=time.monotonic() - poll.at < poll.wait / 2)

    def _refused(self, poll: _Poll, response: Response) -> None:
        code, message = wire.decode_error(response.error_body())
        if code not in _ITS_SYNC_HELPS:
            poll.pull.refused(response.status, code, message)
        self._replica.sync()
        self._worked(eager=False)

    def _worked(self, *, eager: bool) -> None:
        """An answer was no failure; `eager`: and brought nothing, without having waited."""
        self._works()
        if eager:
            self._stopping.wait(self._pauses.next())
        else:
            self._pauses.reset()


def as_sync_error(error: Exception, text: str) -> Error:
    """What `last_sync_error` shows for a failure of whatever kind."""
    return error if isinstance(error, Error) else SyncError(text)
