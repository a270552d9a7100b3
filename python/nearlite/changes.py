"""The native protocol's routes (``nl/v1/``): status, snapshot, changes, repair, sql."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol, TypeVar
from urllib.parse import parse_qs

from nearlite import beats, errors
from nearlite.exchange import JSON, Answering, Headers, HttpError, Scope, Send, header
from nearlite.leaving import Leaving
from nearlite.position import Position
from nearlite.wire import (
    ANSWER_TYPE,
    DIFFERENCES_TYPE,
    PAGE_SET_TYPE,
    Ask,
    Differences,
    RequestError,
    Status,
    answer_prefix,
)

MAX_WAIT: Final = 25.0
"""Seconds of a long poll."""
SEEN_SECONDS: Final = 60.0
"""A replica counts as seen for so long after its last request."""
WATCH: Final = 0.05
"""Seconds between two looks for commits of other programs, while somebody waits for one."""
_NEAR: Final = 64
"""Frames: a page set of at most so many pages is made on the event loop, a larger one in a thread."""
_IN_ONE_PIECE: Final = 64 << 10
"""Bytes of an answer that is in memory as a whole."""
_ANSWER: Final = ANSWER_TYPE.encode()
_SEEN_MAX: Final = 10_000
_BATCH: Final = 4
"""Pieces of a page set that one visit to a thread brings."""
_HASH: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)


_T = TypeVar("_T")

log = logging.getLogger("nearlite.server")


class PageSet(Protocol):
    """An encoded page set: iterating yields its bytes."""

    @property
    def to(self) -> Position:
        """Where it leads."""

    @property
    def size(self) -> int | None:
        """Bytes, when known from the beginning."""

    def __iter__(self) -> Iterator[bytes]:
        """Its bytes, once."""

    @property
    def patience(self) -> float | None:
        """Seconds after which `read_ahead` is due, if ever."""

    def read_ahead(self) -> None:
        """Let go of what others wait for."""

    def close(self) -> None:
        """Release what it holds."""


class State(Protocol):
    """Where a primary stands."""

    @property
    def position(self) -> Position:
        """Of its newest commit."""

    @property
    def hash(self) -> int:
        """State hash there."""

    @property
    def pages(self) -> int:
        """Size."""

    @property
    def page_size(self) -> int:
        """Bytes."""

    @property
    def commit_ms(self) -> int:
        """When, milliseconds since 1970."""


class Source(Protocol):
    """What is asked of a primary to feed replicas."""

    @property
    def latest(self) -> Position:
        """Where it was last seen to stand; no look at the database."""

    @property
    def behind(self) -> bool:
        """Whether the last look at the database failed: there may be commits that it could not note."""

    def state(self) -> State:
        """Where it stands."""

    def changes(
        self,
        start: Position,
        state_hash: int | None = None,
        *,
        compress: bool = False,
        compact: bool = False,
    ) -> PageSet | None:
        """From a position to now; None when there is nothing newer."""

    def snapshot(self, *, compress: bool = False, first: int = 1) -> PageSet:
        """All pages from that one on."""

    def repair(self, ask: Ask, *, compress: bool = False) -> PageSet | Differences:
        """Which of a replica's ranges differ, or the pages that do."""

    def after_commit(self) -> object:
        """Take what was committed, by whatever process, and tell subscribers."""

    def subscribe(self, callback: Callable[[Position], None]) -> Callable[[], None]:
        """Call back after commits, on the committing thread."""


@dataclass(frozen=True, slots=True)
class ReplicaOf:
    """A replica that has sent a request.

    Attributes:
      start: its position.
      state_hash: its state hash, if it told.
      compress: whether it takes compressed chunks.
      compact: whether it takes compact page sets.
    """

    start: Position
    state_hash: int | None
    compress: bool
    compact: bool


class Feed:
    """Answers replicas. Event loop thread only.

    Args:
      source: the primary.
      answering: sends.
      version: of this program, told in status.
      shared_cache: a cache in front may answer many live replicas with what one was answered.
    """

    def __init__(
        self, source: Source, answering: Answering, version: str, *, shared_cache: bool = False
    ) -> None:
        self._source = source
        self._answering = answering
        self._version = version
        self._shared_cache = shared_cache
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Future[None]] = set()
        self._waiting = 0  # long polls under way
        self._watch: asyncio.Task[None] | None = None  # lives while there are any
        self._seen: dict[object, float] = {}
        self._stopped = False
        self._cancel = source.subscribe(self._committed)

    # ------------------------------------------------------------------ routes

    async def status(self, send: Send, *, head: bool) -> None:
        """``GET status``."""
        state = self.state()
        status = Status(
            position=state.position,
            hash=state.hash,
            page_size=state.page_size,
            pages=state.pages,
            commit_ms=state.commit_ms,
            replicas=self._replicas(),
            version=self._version,
        )
        headers = (_at(state.position), _NO_STORE)
        await self._answering.whole(send, 200, status.encode(), JSON, headers, head=head)

    async def snapshot(self, scope: Scope, send: Send) -> None:
        """``GET snapshot?from=&z=``."""
        self._note(scope)
        query = _query(scope)
        compress = query.get("z") == "1"
        first = _page(query.get("from"))
        try:
            answer = await self._thread(
                lambda: self._source.snapshot(compress=compress, first=first)
            )
        except (OSError, errors.OperationalError) as error:
            _refuse_if_full(error)
            raise
        await self._stream(send, answer, (_at(answer.to), _NO_STORE))

    async def changes(self, scope: Scope, send: Send, text: str, leaving: Leaving) -> None:
        """``GET changes/{position}?hash=&wait=&z=&v=&beat=``."""
        self._note(scope)
        query = _query(scope)
        replica = _replica_of(_position(text), query.get("hash"), query)
        beat = beats.number(query.get("beat")) if self._shared_cache else None
        wait = _wait(query.get("wait")) if beat is None else beats.left(beat, time.time())
        answer = await self._newer(replica)
        if answer is None and wait > 0:
            self._waiting += 1
            self._watch = self._watch or self._loop.create_task(self._look_for_others())
            try:
                answer = await self._wait(replica, wait, leaving)
            finally:
                self._waiting -= 1
        if answer is None:
            caching = self._caching(_NO_STORE, beat, over=True)
            await self._answering.whole(
                send, 204, b"", PAGE_SET_TYPE.encode(), (_at(replica.start), *caching)
            )
            return
        await self._stream(send, answer, (_at(answer.to), *self._caching(_PRIVATE, beat)))

    def _caching(
        self, alone: tuple[bytes, bytes], beat: int | None, *, over: bool = False
    ) -> Headers:
        """Headers that say who may store an answer to a poll, and which beat the next one belongs to.

        Args:
          alone: of one that is for its client alone.
          beat, over: as for `beats.following`.
        """
        if not self._shared_cache or self._stopped:
            return (alone,)
        following = beats.following(beat, time.time(), over=over)
        return (alone if beat is None else _PUBLIC, (b"nearlite-beat", b"%d" % following))

    async def repair(self, scope: Scope, send: Send, body: bytes) -> None:
        """``POST repair?z=``."""
        self._note(scope)
        compress = _query(scope).get("z") == "1"

        def work() -> PageSet | Differences:
            return self._source.repair(Ask.decode(body), compress=compress)

        with _refusals():
            try:
                found = await self._thread(work)
            except RequestError as error:
                raise HttpError(400, "BAD_REQUEST", str(error)) from None
        if isinstance(found, Differences):
            headers = (_at(found.position), _NO_STORE)
            kind = DIFFERENCES_TYPE.encode()
            await self._answering.whole(send, 200, found.encode(), kind, headers)
        else:
            await self._stream(send, found, (_at(found.to), _NO_STORE))

    def replica(self, scope: Scope) -> ReplicaOf:
        """Who has sent a ``POST sql``; refuses what could never be synced.

        Raises:
          HttpError: 409 when the replica belongs to another history, 507 when the disk is full: nothing
            may be written then.
        """
        self._note(scope)
        text = header(scope, b"nearlite-position")
        if text is None:
            raise HttpError(400, "BAD_REQUEST", "The header Nearlite-Position is missing")
        start = _position(text.decode("latin-1"))
        state_hash = header(scope, b"nearlite-hash")
        here = self._source.latest
        if self._source.behind or start.lineage != here.lineage or start > here:
            here = self.state().position
        if start.lineage != here.lineage:
            raise HttpError(
                409,
                "LINEAGE_MISMATCH",
                f"the replica belongs to lineage {start.lineage:08x}, this primary is "
                f"{here.lineage:08x}; nothing was changed",
            )
        if start > here:
            raise HttpError(
                409,
                "POSITION_AHEAD",
                f"the replica is at {start}, the primary at {here}: it was restored to an older "
                "state; nothing was changed",
            )
        decoded = state_hash.decode("latin-1") if state_hash is not None else None
        return _replica_of(start, decoded, _query(scope))

    async def answer(
        self, send: Send, body: bytes, replica: ReplicaOf | None, headers: Headers = ()
    ) -> None:
        """Answer ``POST sql``: a pipeline's JSON and, if `replica` is given, what changed since."""
        answer = None
        # What was written is written: whatever stands in the way of a page set is for the replica's
        # next sync to hear.
        try:
            if replica is None:
                at = _at(self._source.latest)
            else:
                with contextlib.suppress(HttpError):
                    answer = await self._newer(replica)
                at = _at(self._source.state().position if answer is None else answer.to)
        except (errors.Error, OSError):  # a damaged page, a full disk
            log.exception(_UNSHOWN)
            at = _UNKNOWN
        prefix = answer_prefix(body)
        fields = _fields(at, headers, inside=replica is None)
        if answer is None:
            await self._answering.whole(send, 200, prefix, _ANSWER, fields)
        else:
            await self._stream(send, answer, fields, prefix, _ANSWER)

    def answer_now(
        self, body: bytes, replica: ReplicaOf | None, headers: Headers = ()
    ) -> tuple[bytes, bytes, Headers] | None:
        """Body, type and headers of the same answer, or None when it takes long to make: nothing was done."""
        source = self._source
        answer = None
        try:
            if replica is None:
                at = _at(source.latest)
            else:
                if not self._is_near(replica.start):
                    return None
                with contextlib.suppress(HttpError), _refusals():
                    answer = self._changes(replica)
                if answer is not None and (answer.size or _IN_ONE_PIECE + 1) > _IN_ONE_PIECE:
                    answer.close()
                    return None
                at = _at(source.state().position if answer is None else answer.to)
        except (errors.Error, OSError):
            log.exception(_UNSHOWN)
            at = _UNKNOWN
        whole = answer_prefix(body)
        if answer is not None:
            whole += b"".join(answer)
            answer.close()
        return whole, _ANSWER, _fields(at, headers, inside=replica is None)

    def position(self) -> tuple[bytes, bytes]:
        """The header that tells the position of the newest commit; never raises."""
        try:
            return _at(self._source.state().position)
        except (
            errors.Error,
            OSError,
        ):  # what was written is written, whatever stands in the way of a look
            log.exception(_UNSHOWN)
            return _UNKNOWN

    def stop(self) -> None:
        """Answer all that wait, and let nobody wait any more."""
        self._stopped = True
        if self._watch is not None:
            self._watch.cancel()
        self._cancel()
        self._wake()

    # ------------------------------------------------------------------ waiting

    async def _wait(self, replica: ReplicaOf, seconds: float, leaving: Leaving) -> PageSet | None:
        """Wait for a commit; None when the time is over or the client has left."""
        deadline = self._loop.time() + seconds
        gone = leaving.task()
        while not self._stopped:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.add(waiter)
            try:
                # After enrolling: a commit between the first look and now is not missed.
                answer = await self._newer(replica)
                left = deadline - self._loop.time()
                if answer is not None or left <= 0 or gone.done():
                    return answer
                await asyncio.wait(
                    {waiter, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                self._waiters.discard(waiter)
        return None

    async def _look_for_others(self) -> None:
        """Notice commits of other programs, which tell nobody; while somebody waits.

        A look costs about 20 us in a thread. It takes in what was committed, and that tells
        `_committed` as every commit does.
        """
        failed = False
        try:
            while self._waiting and not self._stopped:
                await asyncio.sleep(WATCH)
                try:
                    await self._thread(self._source.after_commit)
                    failed = False
                except (errors.Error, OSError):  # a full disk: it may have room at the next look
                    if not failed:
                        log.exception("what other programs committed could not be read")
                    failed = True
        finally:
            self._watch = None

    def _committed(self, _position: Position) -> None:
        """On the committing thread."""
        if self._waiters:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # ------------------------------------------------------------------ page sets

    def state(self) -> State:
        """Where the primary stands. Raises HttpError when its disk is full."""
        try:
            return self._source.state()
        except (OSError, errors.OperationalError) as error:
            _refuse_if_full(error)
            raise

    async def _newer(self, replica: ReplicaOf) -> PageSet | None:
        with _refusals():
            if self._is_near(replica.start):
                return self._changes(replica)
            return await self._thread(lambda: self._changes(replica))

    def _changes(self, replica: ReplicaOf) -> PageSet | None:
        return self._source.changes(
            replica.start, replica.state_hash, compress=replica.compress, compact=replica.compact
        )

    def _is_near(self, start: Position) -> bool:
        """Whether a page set from there is made in no time."""
        here = self._source.latest
        near = here.generation == start.generation and here.frame - start.frame <= _NEAR
        return near and here.lineage == start.lineage

    async def _stream(
        self,
        send: Send,
        answer: PageSet,
        headers: Headers,
        prefix: bytes = b"",
        kind: bytes = PAGE_SET_TYPE.encode(),
    ) -> None:
        """Send a page set, reading a large one in a thread as the client takes it."""
        if answer.size is not None and answer.size + len(prefix) <= _IN_ONE_PIECE:
            body = prefix + b"".join(answer)
            answer.close()
            await self._answering.whole(send, 200, body, kind, headers)
            return
        ahead: asyncio.Handle | None = None
        try:
            if answer.size is not None:
                length = (b"content-length", b"%d" % (len(prefix) + answer.size))
                headers = (length, *headers)
            await self._answering.start(send, 200, kind, headers)
            if prefix:
                await self._answering.piece(send, prefix)
            if answer.patience is not None:
                ahead = self._loop.call_later(
                    answer.patience, self._loop.run_in_executor, None, answer.read_ahead
                )
            pieces = iter(answer)
            while True:
                batch = await self._thread(lambda: list(islice(pieces, _BATCH)))
                if not batch:
                    break
                for piece in batch:
                    await self._answering.piece(send, piece)
            await self._answering.end(send)
        finally:
            if ahead is not None:
                ahead.cancel()
            await self._thread(answer.close)

    async def _thread(self, work: Callable[[], _T]) -> _T:
        return await self._loop.run_in_executor(None, work)

    # ------------------------------------------------------------------ replicas seen

    def _note(self, scope: Scope) -> None:
        client = scope.get("client")
        self._seen[tuple(client) if client else None] = time.monotonic()
        if len(self._seen) > _SEEN_MAX:
            self._replicas()

    def _replicas(self) -> int:
        limit = time.monotonic() - SEEN_SECONDS
        self._seen = {who: when for who, when in self._seen.items() if when > limit}
        return len(self._seen)


_NO_STORE: Final = (b"cache-control", b"no-store")
_PRIVATE: Final = (b"cache-control", b"private")
_PUBLIC: Final = (b"cache-control", beats.PUBLIC.encode())
# A transaction is open on the stream: there is nothing of it to show yet.
_INSIDE: Final = (b"nearlite-autocommit", b"0")
_UNSHOWN: Final = "a write could not be shown to the replica that sent it"
# Nobody can say at the moment what a write has led to: the replica asks.
_UNKNOWN: Final = (b"nearlite-position", b"unknown")


def _at(position: Position) -> tuple[bytes, bytes]:
    return (b"nearlite-position", str(position).encode())


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What a primary says of a position, as its client is told."""
    try:
        yield
    except errors.LineageError as error:
        raise HttpError(409, "LINEAGE_MISMATCH", error.message) from None
    except errors.PrimaryRestoredError as error:
        raise HttpError(409, "POSITION_AHEAD", error.message) from None
    except errors.StateMismatchError as error:
        raise HttpError(409, "STATE_MISMATCH", error.message) from None
    except errors.HistoryGoneError as error:
        raise HttpError(410, "HISTORY_GONE", error.message) from None
    except (OSError, errors.OperationalError) as error:
        _refuse_if_full(error)
        raise


def _fields(at: tuple[bytes, bytes], headers: Headers, *, inside: bool) -> Headers:
    """Headers of an answer to ``POST sql``."""
    return (at, _NO_STORE, *headers, _INSIDE) if inside else (at, _NO_STORE, *headers)


def _refuse_if_full(error: OSError | errors.OperationalError) -> None:
    """507 for a disk without room: commits that the log does not know are shown to nobody."""
    if errors.is_disk_full(error):
        raise HttpError(
            507, "DISK_FULL", "the primary's disk is full; what was committed is kept"
        ) from error


def _query(scope: Scope) -> dict[str, str]:
    text = scope.get("query_string", b"").decode("latin-1")
    return {key: values[-1] for key, values in parse_qs(text).items()} if text else {}


def _replica_of(start: Position, state_hash: str | None, query: dict[str, str]) -> ReplicaOf:
    compact = state_hash is not None and query.get("v") == "2"
    return ReplicaOf(start, _state_hash(state_hash), query.get("z") == "1", compact)


def _position(text: str) -> Position:
    try:
        return Position.parse(text)
    except ValueError as error:
        raise HttpError(400, "BAD_REQUEST", str(error)) from None


def _state_hash(text: str | None) -> int | None:
    if text is None:
        return None
    if _HASH.fullmatch(text) is None:
        raise HttpError(400, "BAD_REQUEST", "a state hash is written as 16 hex digits")
    return int(text, 16)


def _page(text: str | None) -> int:
    if text is None:
        return 1
    if not text.isascii() or not text.isdecimal() or not 0 < int(text[:11]) < 1 << 32:
        raise HttpError(400, "BAD_REQUEST", "from is the number of a page")
    return int(text)


def _wait(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise HttpError(400, "BAD_REQUEST", "wait is a number of seconds")
    return min(seconds, MAX_WAIT)
