"""Hrana streams over HTTP: batons, lifetimes, and the turn to write.

A stream is what a client thinks is its connection. Most are only a number: autocommit statements run
on connections that all streams share, and the stream keeps nothing but its counters. A stream
gets a connection of its own when it opens a transaction or changes a setting.

A baton is base64(number u64, sequence u64, flags u8, keyed BLAKE2b of those 17 bytes), big-endian. It
is good for one request. Flags tell what would be lost with the stream: libSQL's clients never
drop a baton after a refusal, so an expired baton of a stream that had nothing to lose simply
begins a new one, also after a restart of the server (the key is kept beside the database).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import itertools
import os
import struct
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Final

from nearlite.above import Above
from nearlite.access import FULL, Access
from nearlite.exchange import HttpError
from nearlite.hrana import ProtocolError
from nearlite.limits import Limits
from nearlite.session import Session


class EndingError(Exception):
    """The server is about to end; nothing was done."""


_HEAD = struct.Struct(">QQB")
_HAS_STATE: Final = 1  # stored SQL, settings, temporary objects
_IN_TRANSACTION: Final = 2


class Stream:
    """One client's stream.

    Attributes:
      above: what an edge keeps of it; None where it has nothing to keep, and on a primary.
      access: what the client of its present request may do.
      holder: the client that began it, as `Access.holder_at` tells.
      number: identity in batons.
      sequence: of the only baton that is good now.
      stored: SQL texts by number.
      counters: (last_insert_rowid, changes, total_changes) as this stream sees them.
      session: its own connection, or None.
      sticky: its connection carries settings or temporary objects: not shared while the stream lives.
      settings: those it carries; None when there is more than settings, so that it is closed in the end.
      readonly: the open transaction is BEGIN READONLY.
      in_transaction: whether its connection has an open transaction.
      ending: why the server ended the transaction, as (message, code), until the client is told.
      turn: its ticket, while it may write.
      opened: clock when the open transaction began, or the cursor that is fetched without one; or 0.
      alone: that cursor writes: it is undone unless all its rows go out.
      paused: its cursor waits for the client to take what it has read; no thread is in its session.
      used: clock of the last request.
      busy: a request is being answered.
      light: what its open transaction has written so far took no time worth a thread.
      closed: nobody may use it any more.
    """

    __slots__ = (
        "above", "access", "alone", "busy", "closed", "counters", "ending", "holder", "in_transaction", "light", "number", "opened",
        "paused", "readonly", "sequence", "session", "settings", "sticky", "stored", "turn", "used",
    )  # fmt: skip

    def __init__(self, number: int, now: float, holder: Hashable = None) -> None:
        self.above: Above | None = None
        self.access = FULL
        self.holder = holder
        self.number = number
        self.sequence = 0
        self.stored: Mapping[int, str] = {}
        self.counters = (0, 0, 0)
        self.session: Session | None = None
        self.sticky = False
        self.settings: set[str] | None = set()
        self.readonly = False
        self.in_transaction = False
        self.light = False
        self.ending: tuple[str, str] | None = None
        self.turn: Ticket | None = None
        self.opened = 0.0
        self.alone = False
        self.paused = False
        self.used = now
        self.busy = False
        self.closed = False

    def admit(self, access: Access) -> None:
        """A client's next request is begun with these rights.

        Raises:
          ProtocolError: its transaction or settings are of a token that may do something else; they stay.
        """
        if self.carries and self.access.write is not access.write:
            what = "may write" if self.access.write else "reads only"
            raise ProtocolError(
                f"The stream was begun with a token that {what}, and it goes on only with such a one; nothing "
                "was carried out",
                "FORBIDDEN",
                403,
            )
        self.access = access

    @property
    def carries(self) -> bool:
        """Whether a connection somewhere is its own: a transaction, or settings."""
        return self.session is not None or (self.above is not None and self.above.baton is not None)

    def take_settings(self) -> None:
        """Note which settings its requests have changed on its connection."""
        session = self.session
        if session is None or not session.changed:
            return
        self.sticky = True
        if self.settings is not None:
            self.settings |= session.changed
        session.changed = set()

    def set_counters(self, counters: tuple[int, int, int]) -> None:
        """Its next statement sees these."""
        self.counters = counters
        if self.session is not None:
            self.session.native.set_counters(*counters)

    def get_counters(self) -> tuple[int, int, int]:
        """As its last statement left them."""
        return self.counters if self.session is None else self.session.native.counters

    @property
    def flags(self) -> int:
        """What would be lost if the stream ended now."""
        lost = _HAS_STATE if self.stored or self.sticky else 0
        return lost | (_IN_TRANSACTION if self.in_transaction or self.ending else 0)


Holders = dict[Hashable, "OrderedDict[Stream, Streams]"]
"""The streams that each client holds of all databases of a server, the longest unused first; and where."""


class Streams:
    """All streams of one database. Event loop thread only.

    Args:
      key: secret of the batons, 32 bytes.
      limits: how long and how many.
      clock: seconds, monotonic.
      holders: shared with other databases of the server.

    Attributes:
      busy: how many are: `open` and `take` make one so, `done` and `untake` end that.
    """

    def __init__(
        self,
        key: bytes,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        *,
        holders: Holders | None = None,
    ) -> None:
        self._key = key
        self._limits = limits
        self._clock = clock
        # A new server must not hand out numbers that an older one's batons carry.
        self._numbers = itertools.count(time.time_ns())
        self._streams: OrderedDict[int, Stream] = OrderedDict()
        self._holders: Holders = {} if holders is None else holders
        self.busy = 0

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._streams.values()))

    def open(self, access: Access = FULL, holder: Hashable = None) -> Stream:
        """A new stream, busy with its first request.

        Raises:
          HttpError: 429, its client has as many as it may, and each of them has something to lose.
        """
        held = self._holders.get(holder)
        if held is not None and len(held) >= self._limits.max_streams_per_client:
            self._make_room(held)
        stream = Stream(next(self._numbers), self._clock(), holder)
        stream.access = access
        stream.busy = True
        self.busy += 1
        return stream

    @staticmethod
    def _make_room(held: OrderedDict[Stream, Streams]) -> None:
        """End a client's stream that nobody will miss: its baton simply begins a new one."""
        for stream, where in held.items():
            if not stream.busy and not stream.carries and stream.flags == 0:
                where.forget(stream)
                return
        raise HttpError(
            429,
            "TOO_MANY_STREAMS",
            f"This client has {len(held)} open streams, which is the limit; close some of them",
            ((b"retry-after", b"1"),),
        )

    def take(self, baton: str, access: Access = FULL, holder: Hashable = None) -> Stream:
        """The stream of a baton, busy from now on.

        Raises:
          ProtocolError: forged, used before, or its stream is gone with something in it; or another token
            than this one, which may do something else, has begun what is open on it.
          HttpError: as `open`.
        """
        number, sequence, flags = self._read(baton)
        stream = self._streams.get(number)
        if stream is None:
            if flags == 0:
                return self.open(access, holder)
            what = (
                "its transaction was rolled back"
                if flags & _IN_TRANSACTION
                else "its settings are lost"
            )
            raise ProtocolError(
                f"The stream has expired due to inactivity; {what}", "STREAM_EXPIRED"
            )
        if stream.busy or sequence != stream.sequence:
            raise ProtocolError("Received a baton that has already been used", "BATON_REUSED")
        stream.admit(access)
        stream.busy = True
        self.busy += 1
        stream.used = self._clock()
        return stream

    def owns(self, baton: str) -> bool:
        """Whether a baton is one of this server's, whatever has become of its stream."""
        try:
            self._read(baton)
        except ProtocolError:
            return False
        return True

    def untake(self, stream: Stream) -> None:
        """Nothing was done, and its baton is still good."""
        stream.busy = False
        self.busy -= 1

    def give(self, stream: Stream, *, uncertain: bool = False) -> str:
        """A baton for the next request. The stream stays busy until `done`.

        Args:
          stream: whose.
          uncertain: what will be lost with the stream is not known yet: anything.
        """
        stream.sequence += 1
        flags = stream.flags | (_HAS_STATE if uncertain else 0)
        head = _HEAD.pack(stream.number, stream.sequence, flags)
        if stream.sequence == 1:
            self._streams[stream.number] = stream
            self._holders.setdefault(stream.holder, OrderedDict())[stream] = self
        return base64.b64encode(head + self._tag(head)).decode("ascii")

    def done(self, stream: Stream) -> Stream | None:
        """The request has been answered. Answers a stream that must end to make room, if any."""
        stream.busy = False
        self.busy -= 1
        stream.used = self._clock()
        if stream.number not in self._streams:
            return None
        self._streams.move_to_end(stream.number)
        self._holders[stream.holder].move_to_end(stream)
        if len(self._streams) <= self._limits.max_streams:
            return None
        return next((other for other in self._streams.values() if not other.busy), None)

    def forget(self, stream: Stream) -> None:
        """The stream has ended."""
        stream.closed = True
        if self._streams.pop(stream.number, None) is not None:
            held = self._holders[stream.holder]
            del held[stream]
            if not held:
                del self._holders[stream.holder]

    def close(self) -> None:
        """Nobody uses them any more."""
        for stream in self:
            self.forget(stream)

    def idle(self) -> list[Stream]:
        """Streams that have had no request for too long."""
        limit = self._clock() - self._limits.idle_seconds
        found = []
        for stream in self._streams.values():  # in the order of their last use
            if stream.used > limit:
                break
            if not stream.busy:
                found.append(stream)
        return found

    def overdue(self, stream: Stream, *, wanted: bool) -> bool:
        """Whether a stream's transaction has lasted too long; `wanted`: somebody waits for the turn."""
        if not stream.opened:
            return False
        now = self._clock()
        if now - stream.opened >= self._limits.transaction_seconds:
            return True
        if not wanted or stream.turn is None:
            return False
        return now - stream.turn.since >= self._limits.contended_seconds

    def _read(self, baton: str) -> tuple[int, int, int]:
        try:
            raw = base64.b64decode(baton + "=" * (-len(baton) % 4), validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        head, tag = raw[: _HEAD.size], raw[_HEAD.size :]
        if not hmac.compare_digest(self._tag(head), tag):
            raise ProtocolError("Received an invalid baton", "BATON_INVALID")
        number, sequence, flags = _HEAD.unpack(head)
        return number, sequence, flags

    def _tag(self, head: bytes) -> bytes:
        return blake2b(head, key=self._key, digest_size=32).digest()  # a quarter of HMAC's time


class Ticket:
    """A place in the queue for the turn.

    Attributes:
      since: clock when the turn was granted, 0 before.
    """

    __slots__ = ("grant", "since")

    def __init__(self, grant: Callable[[], None]) -> None:
        self.grant = grant
        self.since = 0.0


class Turn:
    """Who may write: the group writer or one stream's transaction, first come first served.

    SQLite's own busy handler polls and is not fair; this queue is both quick and fair, and knows
    when somebody waits. Any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._owner: Ticket | None = None
        self._queue: deque[Ticket] = deque()

    @property
    def wanted(self) -> bool:
        """Whether somebody waits."""
        return bool(self._queue)

    def request(self, grant: Callable[[], None]) -> Ticket:
        """Queue up. `grant` is called once, on whatever thread makes the turn free."""
        ticket = Ticket(grant)
        with self._lock:
            if self._owner is not None or self._queue:
                self._queue.append(ticket)
                return ticket
            self._own(ticket)
        grant()
        return ticket

    def take(self) -> Ticket | None:
        """The turn, if it is free and nobody waits for it."""
        with self._lock:
            if self._owner is not None or self._queue:
                return None
            ticket = Ticket(_granted)
            self._own(ticket)
            return ticket

    def release(self, ticket: Ticket) -> None:
        """Give the turn on, or leave the queue."""
        with self._lock:
            if self._owner is not ticket:
                if ticket in self._queue:
                    self._queue.remove(ticket)
                return
            self._owner = None
            if not self._queue:
                return
            following = self._queue.popleft()
            self._own(following)
        following.grant()

    def _own(self, ticket: Ticket) -> None:
        self._owner = ticket
        ticket.since = self._clock()


def _granted() -> None:
    """Nobody waits for this ticket."""


def baton_key(folder: Path) -> bytes:
    """The server's secret for batons, kept beside the database so that they outlive a restart.

    Args:
      folder: the primary's, which exists.
    """
    own = folder / "server"  # of its own: the log tidies what it does not know
    own.mkdir(mode=0o700, exist_ok=True)
    path = own / "baton.key"
    with contextlib.suppress(FileNotFoundError):
        key = path.read_bytes()
        if len(key) == 32:
            return key
        path.unlink()
    key = os.urandom(32)
    part = path.with_name(f"baton.key.{os.getpid()}")
    # Not O_EXCL: in a container the process that was killed here had the same number.
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
    part.replace(path)
    return key
