"""An edge runs SQL in two places: what only looks on its replica, everything else on the primary.

Where a request runs:

* it only looks, and its stream has nothing open above: here, at once or in a thread;
* it writes: above, and the answer brings what it wrote, so that the next read here sees it. One request;
* it begins a transaction or changes a setting: above, as all that follows on its stream does until the
  transaction has ended (settings: as long as the stream lives);
* it does not compile here: above, whose schema may be newer;
* its client has seen a position (a header, a cookie) that the replica has not reached: it waits a moment,
  and then is run above.

What is above is not always there. Reads go on with what is here, whose age answers tell, until that
is more than `max_staleness`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, Protocol

from nearlite import hrana
from nearlite._native.database import Database
from nearlite.above import Above, led_to, wanted
from nearlite.access import Access
from nearlite.errors import (
    Error,
    LineageError,
    OfflineError,
    PrimaryRestoredError,
    ProgrammingError,
    SyncError,
    UnauthorizedError,
)
from nearlite.exchange import Headers, Scope, header
from nearlite.freshness import Reached
from nearlite.hrana import (
    Answered,
    GetAutocommit,
    Plan,
    Refused,
    RunBatch,
    StatementError,
    requests,
)
from nearlite.http import Sent
from nearlite.leaving import GoneError, Leaving, either
from nearlite.limits import Limits
from nearlite.position import Position
from nearlite.reads import PIECE, SLOW_READERS, Reads
from nearlite.session import Session
from nearlite.statements import Kind
from nearlite.streams import Stream, Streams
from nearlite.threads import Threads
from nearlite.upstream import Notes

log = logging.getLogger("nearlite.server")

AT_A_TIME: Final = 64
"""Requests that are above at once; those beyond wait for one to come back."""
OF_STREAMS: Final = 160
"""Requests of streams with something open above, beside them: more than a primary has connections, so that the
end of a transaction never waits for those who wait for that end."""
MOMENT: Final = 0.25
"""Seconds in which what a client has seen elsewhere is expected to come here."""
_ALONE: Final = 5.0
"""The same where nobody else can run the read, and it fails otherwise."""
_REGION: Final = b"nearlite-region"
_WAITING: Final = 32
"""Reads that wait for a position at once; those beyond are run above."""
_IN_A_ROW: Final = 64
"""Requests of one pipeline that are run on the event loop before others have their turn."""
_TICK: Final = 0.25
"""Seconds between looks at what is overdue."""
_INTERRUPT_EVERY: Final = 0.05
"""Seconds until what still runs when the server ends is interrupted again."""
_ENDING: Final = 2.0
"""Seconds in which a stream above is ended when the server ends: an upstream that hangs must not hold it up."""
PATIENCE: Final = 3600.0
"""Seconds that a statement may run on the primary; a client that leaves ends it sooner."""
_IF_AWAY: Final = 30.0
"""The same of reads that were to be run here, and where the primary is away, or hangs."""
_LOOKS: Final = frozenset({Kind.READ, Kind.SLOW})


class Copy(Protocol):
    """The replica of an edge: nearlite.replica.Replica."""

    @property
    def reached(self) -> Reached:
        """How far this process has brought the file."""

    @property
    def lag(self) -> float | None:
        """Seconds since it was known to equal its primary."""

    @property
    def foreign(self) -> bool:
        """Whether the primary is none of ours: it keeps a stream until that is closed, though there is nothing on
        it, and replicas below have their writes shown from here.
        """

    last_error: Error | None
    """What the last look at the primary failed with, or None."""

    @property
    def is_late(self) -> bool:
        """Whether the primary should have been heard of by now: perhaps it hangs."""

    def wait_for(self, position: Position, timeout: float | None = None) -> None:
        """Return when the file is at or beyond `position`."""

    def forward(
        self,
        body: bytes,
        *,
        visible: bool,
        network_timeout: float | None = None,
        notes: Notes | None = None,
    ) -> bytes:
        """Send a pipeline to the primary; apply what it wrote before returning."""

    def announce(self) -> None:
        """Tell those who are served from the file that something was applied."""

    def look(self) -> None:
        """Bring what the primary has, soon and once."""

    def halt(self) -> None:
        """Begin nothing any more, and end what waits for the primary, on whatever thread; reads go on."""


class Edge:
    """Runs SQL on a replica and on its primary: an `Execution`. Event loop thread only.

    Args:
      copy: the replica.
      connect: opens a connection that reads it.
      key: secret of the batons.
      limits: of the server; those of transactions are the primary's.
      reads: run what only looks here; False: all of it above.
      region: where it is, told with its answers.
      max_staleness: seconds; with a primary that cannot be asked for so long, nothing is read here.
    """

    displaced = False

    def __init__(
        self,
        copy: Copy,
        connect: Callable[[], Database],
        *,
        key: bytes,
        limits: Limits,
        reads: bool = True,
        region: str | None = None,
        max_staleness: float | None = None,
    ) -> None:
        self._copy = copy
        self._where: Headers = () if region is None else ((_REGION, _printable(region)),)
        self.limits = limits
        self._loop = asyncio.get_running_loop()
        self.streams = Streams(key, limits)
        self._here = reads
        self._most_stale = max_staleness
        self._threads = Threads(SLOW_READERS)
        self._reads = Reads(
            lambda: Session(connect(), shared=True, readonly=True, limits=limits),
            self._threads,
            lambda _: False,
            limits,
        )
        self._router = self._reads.router
        self._up = Threads(AT_A_TIME)
        self._of_streams = Threads(OF_STREAMS)
        # Apart, so that what is stuck above is not in the way of what is here.
        self._waits = Threads(_WAITING)
        self._telling = Threads(1)
        self._announcing: asyncio.Future[None] | None = None
        self._applied_since = False
        self._working: set[asyncio.Task[None]] = set()
        self._sent: set[Sent] = set()  # what is above
        self._age: float | None = None  # of what is here, while the primary cannot be asked
        self._late_since: float | None = None
        self._closed = False
        self._tick: asyncio.TimerHandle | None = None
        self._look()

    # ------------------------------------------------------------------ one request and its headers

    def heed(self, stream: Stream, scope: Scope) -> None:
        """See `Execution`: what its reads have to have reached."""
        position = wanted(scope)
        above = stream.above
        if self._copy.foreign:
            read = header(scope, b"nearlite-read")
            if read is not None and above is None:
                above = stream.above = Above()
            if above is not None:
                above.read = "" if read is None else read.decode("latin-1")
        if above is not None:
            above.wrote = None
        if position is None or self._copy.reached.includes(position):
            return
        if above is None:
            above = stream.above = Above()
        above.after = position

    def told(self, stream: Stream) -> Headers:
        """See `Execution`: where its writes have led, and how old its reads are if the primary is away."""
        above = stream.above
        told = self._where
        if above is not None and above.wrote is not None:
            told = (*told, *led_to(above.wrote))
        if self._age is not None:
            age = b"%.3f" % self._age if math.isfinite(self._age) else b"unknown"
            told = (*told, (b"nearlite-age", age))
        return told

    # ------------------------------------------------------------------ on the event loop

    def now(self, stream: Stream, plans: Sequence[Plan], results: list[bytes]) -> Kind | None:
        """See `Execution`."""
        last = len(results) + _IN_A_ROW
        room = self._room(results)
        while len(results) < len(plans):
            plan = plans[len(results)]
            if isinstance(plan, Answered):
                results.append(plan.result)
                continue
            kind = self._route(stream, plan)
            if isinstance(kind, StatementError):
                results.append(hrana.error_result(kind))
                continue
            if kind is not Kind.READ:
                return kind
            if len(results) >= last or not self._may_read(stream):
                return Kind.SLOW
            result = self._reads.at_once(stream, plan, room)
            if result is None:
                return Kind.SLOW
            room -= len(result)
            results.append(result)
        return None

    def _route(self, stream: Stream, plan: Plan) -> Kind | StatementError:
        """READ or SLOW here; otherwise above. An error when it fails wherever it is run."""
        above = stream.above
        if above is not None and above.baton is not None:
            return Kind.ALONE
        if isinstance(plan, Refused):
            return plan.error
        kind = self._router.route(plan, after_write=False)
        if isinstance(kind, StatementError):
            return kind if hrana.is_refusal(kind) else Kind.ALONE
        if not self._here:
            return max(kind, Kind.WRITE)
        if kind is Kind.ALONE and isinstance(plan, RunBatch) and self._router.is_snapshot(plan):
            return Kind.SLOW
        return kind

    def _may_read(self, stream: Stream) -> bool:
        """Whether what is here is new enough, without a look."""
        above = stream.above
        if above is not None and above.after is not None:
            if not self._copy.reached.includes(above.after):
                return False
            above.after = None
        return not self._too_old

    @property
    def _too_old(self) -> bool:
        age, most = self._age, self._most_stale
        return age is not None and most is not None and age > most

    def _room(self, results: list[bytes]) -> int:
        return self.limits.max_response_bytes - sum(map(len, results))

    def group(
        self,
        _stream: Stream,
        _plans: Sequence[Plan],
        _results: list[bytes],
        _done: Callable[[bool], None],
    ) -> bool:
        """See `Execution`: groups are the primary's."""
        return False

    # ------------------------------------------------------------------ what has to wait

    async def finish(
        self,
        stream: Stream,
        plans: Sequence[Plan],
        results: list[bytes],
        leaving: Leaving,
        *,
        alone: bool = False,  # noqa: ARG002 - nothing is in a group here
    ) -> None:
        """See `Execution`."""
        while True:
            plan = plans[len(results)]
            kind = self._route(stream, plan)
            if isinstance(kind, StatementError):
                results.append(hrana.error_result(kind))
            elif kind <= Kind.SLOW and (fresh := await self._is_fresh(stream, leaving)):
                if isinstance(fresh, StatementError):
                    results.append(hrana.error_result(fresh))
                elif self._too_old:
                    results.append(hrana.error_result(self._stale()))
                else:
                    room = self._room(results)
                    results.append(await self._reads.in_thread(stream, plan, leaving, room))
            else:
                await self._above(stream, plans, results, leaving)
                return
            if self.now(stream, plans, results) is None:
                return

    async def _is_fresh(self, stream: Stream, leaving: Leaving) -> bool | StatementError:
        """Whether what is here has what the client has seen, perhaps in a moment.

        An error where that is not known, and the primary is not asked to run the read: a foreign one would not be
        told that this client may not write.
        """
        above = stream.above
        if self._may_read(stream) or above is None or above.after is None:
            return True
        position, copy = above.after, self._copy
        alone = copy.foreign and not stream.access.write
        moment = _ALONE if alone else MOMENT

        def wait() -> bool | StatementError:
            before = copy.last_error
            try:
                copy.wait_for(position, moment)
            except Exception as error:  # noqa: BLE001 - of another history, or it does not come: the primary knows
                failed = error.__cause__ or error
                if copy.last_error is failed and type(failed) in (SyncError, OfflineError):
                    copy.last_error = before  # so little patience does not tell that it is away
                if not alone:
                    return False
                # Of another history: as if it had not been sent. What is here is all that there is.
                strange = isinstance(error, (LineageError, PrimaryRestoredError))
                return True if strange else _unknown(getattr(error, "message", str(error)))
            return True

        waiting = self._waits.run(wait)
        stays = await either(waiting, leaving, 2 * moment)
        if not waiting.done():  # it has not come to its turn, or the client has left
            waiting.cancel()
            if not stays:
                raise GoneError
            return _unknown("too many wait") if alone else False
        fresh = waiting.result()
        if fresh is True:
            above.after = None
        return fresh

    def _stale(self) -> StatementError:
        return StatementError(
            f"The primary could not be asked for {_long(self._age or 0.0)}, and what is here may not be read "
            f"for more than {self._most_stale or 0.0:g}",
            "STALE_READ",
        )

    # ------------------------------------------------------------------ above

    async def _above(
        self, stream: Stream, plans: Sequence[Plan], results: list[bytes], leaving: Leaving
    ) -> None:
        """Run all that is left on the primary, with one request."""
        left = plans[len(results) :]
        running = [plan for plan in left if not isinstance(plan, (Answered, Refused))]
        if running:
            found = await self._run(stream, running, leaving)
        else:
            found = []
        answers = iter(found if not isinstance(found, StatementError) else ())
        for plan in left:
            if isinstance(plan, Answered):
                results.append(plan.result)
            elif isinstance(plan, Refused):
                results.append(hrana.error_result(plan.error))
            elif not isinstance(found, StatementError):
                results.append(next(answers))
            elif isinstance(plan, GetAutocommit):
                results.append(hrana.autocommit_result(not stream.in_transaction))
            else:
                results.append(hrana.error_result(found))

    async def _run(
        self, stream: Stream, plans: Sequence[Plan], leaving: Leaving
    ) -> list[bytes] | StatementError:
        """Stream results of plans that run above; why there are none. Raises GoneError."""
        above = stream.above
        if above is None:
            above = stream.above = Above()
        opens, lasts = self._leave(plans)
        # Not where a transaction may begin: whether it has ended, only the primary knows.
        closes = above.baton is None and not opens and not lasts
        if requests.length(plans) > self.limits.max_request_bytes:
            return StatementError(
                f"The requests are longer than {self.limits.max_request_bytes} bytes with the SQL texts that they name; "
                "nothing was carried out",
                "REQUEST_TOO_LARGE",
            )
        above.sticky = above.sticky or lasts
        reads = not opens and not lasts and all(map(self._only_looks, plans))
        notes = Notes(stream.counters)
        notes.reads_only = not stream.access.write
        notes.read = above.read
        away = self._age is not None
        patience = _IF_AWAY if reads or away else PATIENCE

        def ask() -> requests.Ran:
            body = requests.pipeline(above.baton, plans, closes=closes)
            answer = self._forward(body, notes, patience)
            return requests.ran(answer, len(plans))

        try:
            ran = await self._ask(stream, ask, notes, leaving)
        except UnicodeEncodeError:
            return StatementError("SQL string is not Unicode text", "SQL_PARSE_ERROR")
        except (GoneError, asyncio.CancelledError):
            self._lose(stream)
            raise
        except SyncError as error:
            lost = stream.in_transaction or above.sticky
            self._lose(stream)
            refusal = _refusal(error, lost=lost)
            if refusal.code == "UPSTREAM_LOST":
                self._copy.look()  # whoever looks whether it was carried out shall see it
            return refusal
        except ValueError as error:
            self._lose(stream)
            self._copy.look()
            return StatementError(
                f"The primary's answer cannot be read: {error}; what was asked for may have been carried out",
                "UPSTREAM_LOST",
            )
        stream.counters = notes.counters
        if notes.position is not None:
            above.after = notes.position
            above.wrote = None if reads else notes.position
        stream.in_transaction = not ran.autocommit
        stream.sticky = above.sticky
        # A stream above that has nothing to lose is not kept: it would only be in others' way.
        above.baton = ran.baton if stream.in_transaction or above.sticky else None
        if ran.baton is not None and above.baton is None and self._copy.foreign:
            self._soon(self._end(ran.baton, stream.access))
        return ran.results

    def _leave(self, plans: Sequence[Plan]) -> tuple[bool, bool]:
        """What requests may leave on their stream: an open transaction; settings or temporary objects."""
        found = [self._router.leaves(plan) for plan in plans]
        return any(opens for opens, _ in found), any(lasts for _, lasts in found)

    def _only_looks(self, plan: Plan) -> bool:
        return self._router.leaves_only(plan, _LOOKS)

    def _forward(self, body: bytes, notes: Notes, patience: float) -> bytes:
        """The primary's answer to a pipeline, in a thread. Raises SyncError: there is none."""
        try:
            return self._copy.forward(body, visible=True, network_timeout=patience, notes=notes)
        except Exception:
            if notes.answer is None:
                raise
            # Whatever it is. It was carried out, and could not be shown here: reads wait for it, or are run above.
            log.warning("what a client wrote could not be shown here yet", exc_info=True)
            self._copy.look()
            return notes.answer

    async def _ask(
        self, stream: Stream, ask: Callable[[], requests.Ran], notes: Notes, leaving: Leaving
    ) -> requests.Ran:
        """What a pipeline of a stream came to.

        Args:
          stream: whose.
          ask: sends it and waits for the answer; called in a thread.
          notes: of it.
          leaving: tells when its client has left.

        Raises:
          SyncError, ValueError, UnicodeEncodeError: what `ask` raises.
          GoneError: the client has left; what it asked for is interrupted up there.
        """
        under_way: list[Sent] = []
        left = threading.Event()

        def sent(request: Sent) -> None:
            under_way.append(request)
            self._sent.add(request)
            if left.is_set() or self._closed:  # before it was on its way
                request.abort()

        def work() -> requests.Ran:
            if left.is_set():  # while it waited for its turn
                raise GoneError
            notes.sent = sent
            try:
                return ask()
            except ProgrammingError as error:
                if self._closed:  # its connections were taken away before it was sent
                    raise _ends() from error
                raise
            finally:
                self._sent.difference_update(under_way)

        goes_on = stream.above is not None and stream.above.baton is not None
        try:
            asked = (self._of_streams if goes_on else self._up).run(work)
        except RuntimeError:  # no new work after shutdown
            raise _ends() from None
        stays = False
        try:
            stays = await either(asked, leaving)
        finally:
            if not stays:  # or this is given up
                left.set()
                for request in under_way:
                    request.abort()
                asked.add_done_callback(partial(self._forget, stream.access))
            # Its client hears first, in this turn of the event loop, then those who are served from the file.
            self._loop.call_soon(self._announce)
        if not stays:
            raise GoneError
        return asked.result()

    def _announce(self) -> None:
        """Tell those who are served from the file what was applied, once for all that comes meanwhile."""
        if self._announcing is not None:
            self._applied_since = True
            return
        self._applied_since = False
        with contextlib.suppress(RuntimeError):  # no new work after shutdown
            self._announcing = self._telling.run(self._copy.announce)
            self._announcing.add_done_callback(self._announced)

    def _announced(self, _done: object) -> None:
        self._announcing = None
        if self._applied_since:
            self._announce()

    def _forget(self, access: Access, asked: asyncio.Future[requests.Ran]) -> None:
        """Nobody wants what comes of it: if it was quicker than its end, a stream is open above."""
        self._announce()
        if asked.cancelled() or asked.exception() is not None:
            return
        baton = asked.result().baton
        if baton is not None:
            self._soon(self._end(baton, access))

    def _lose(self, stream: Stream) -> None:
        """Nobody knows what the stream above stands at: it ends."""
        above = stream.above
        stream.in_transaction = stream.sticky = False
        if above is not None:
            baton, above.baton, above.sticky = above.baton, None, False
            if baton is not None:
                self._soon(self._end(baton, stream.access))

    async def _end(self, baton: str, access: Access) -> None:
        """End a stream above: others wait for its transaction."""
        notes = Notes((0, 0, 0))
        notes.reads_only = not access.write
        body = requests.closing(baton)
        patience = _ENDING if self._closed else None
        under_way: list[Sent] = []

        def sent(request: Sent) -> None:
            under_way.append(request)
            self._sent.add(request)

        def work() -> bytes:
            notes.sent = sent
            try:
                return self._copy.forward(
                    body, visible=False, network_timeout=patience, notes=notes
                )
            finally:
                self._sent.difference_update(under_way)

        with contextlib.suppress(Exception):  # it ends by itself, later
            await self._of_streams.run(work)

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    # ------------------------------------------------------------------ cursors

    def cursor_at_once(self, stream: Stream, plan: RunBatch) -> bytes | None:
        """See `Execution`."""
        kind = self._route(stream, plan)
        if isinstance(kind, StatementError):
            return hrana.cursor_error(kind)
        if kind is not Kind.READ or not self._may_read(stream):
            return None
        outcomes = self._reads.entries_at_once(stream, plan)
        return None if outcomes is None else hrana.cursor_body(outcomes)

    def may_keep(self, stream: Stream, plan: RunBatch) -> bool:
        """See `Execution`."""
        return self._route(stream, plan) is Kind.ALONE or any(self._leave((plan,)))

    async def cursor(
        self, stream: Stream, plan: RunBatch, leaving: Leaving
    ) -> AsyncGenerator[bytes, None]:
        """See `Execution`."""
        kind = self._route(stream, plan)
        if isinstance(kind, StatementError):
            yield hrana.cursor_error(kind)
        elif kind <= Kind.SLOW and (fresh := await self._is_fresh(stream, leaving)):
            if isinstance(fresh, StatementError):
                yield hrana.cursor_error(fresh)
                return
            if self._too_old:
                yield hrana.cursor_error(self._stale())
                return
            async with self._reads.entries(stream, plan, leaving) as pieces:
                async for piece in pieces:
                    yield piece
        else:
            found = await self._run(stream, [plan], leaving)
            if isinstance(found, StatementError):
                yield hrana.cursor_error(found)
                return
            async for piece in self._told_as_entries(found[0]):
                yield piece

    async def _told_as_entries(self, result: bytes) -> AsyncGenerator[bytes, None]:
        """A batch's result as entries, in pieces."""
        entries = requests.entries(result)

        def gather() -> bytes:
            piece = bytearray()
            for entry in entries:
                piece += entry
                if len(piece) >= PIECE:
                    break
            return bytes(piece)

        large = len(result) > PIECE
        try:
            while piece := (await self._threads.run(gather) if large else gather()):
                yield piece
        except ValueError as error:
            yield hrana.cursor_error(
                StatementError(
                    f"The primary's answer cannot be read: {error}; it was carried out",
                    "UPSTREAM_LOST",
                )
            )

    # ------------------------------------------------------------------ ends

    async def close_stream(self, stream: Stream) -> None:
        """See `Execution`."""
        self.end_stream(stream)

    def end_stream(self, stream: Stream) -> None:
        """See `Execution`: what is open above is ended there by the way."""
        self.streams.forget(stream)
        self._lose(stream)

    def _look(self) -> None:
        """What is overdue, and whether the primary can be asked."""
        self._tick = self._loop.call_later(_TICK, self._look)
        for stream in self.streams.idle():
            self.end_stream(stream)
        copy = self._copy
        # One that hangs is away as well: a look that is under way fails only when it has taken long.
        late = copy.is_late
        self._end_what_hangs(late=late)
        if late or isinstance(copy.last_error, SyncError):
            lag = copy.lag
            self._age = math.inf if lag is None else lag  # it was never seen to equal its primary
        else:
            self._age = None

    def _end_what_hangs(self, *, late: bool) -> None:
        """What was begun while the primary was there does not wait for it for an hour, in everybody's way."""
        now = self._loop.time()
        if not late:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = now
        elif now - self._late_since >= _IF_AWAY:
            for request in list(self._sent):
                request.abort()

    async def close(self) -> None:
        """See `Execution`."""
        if self._closed:
            return
        self._closed = True
        if self._tick is not None:
            self._tick.cancel()
        for stream in self.streams:
            if not stream.busy:
                self._lose(stream)
        if self._working:  # transactions that end above: others wait for them
            await asyncio.wait(self._working, timeout=_ENDING)
        for request in list(self._sent):
            request.abort()
        # Also what is not among them: a look at what a write has led to, what begins only now.
        self._copy.halt()
        for threads in (
            *(self._up, self._of_streams, self._waits),
            *(self._telling, self._threads),
        ):
            ended = self._loop.create_task(threads.close())
            while not ended.done():
                self._reads.interrupt()  # again and again: it may be between two statements
                await asyncio.wait({ended}, timeout=_INTERRUPT_EVERY)
            ended.result()
        self.streams.close()
        self._reads.close()


def _ends() -> SyncError:
    return SyncError("The server is about to end", state="nothing was carried out")


def _unknown(why: str) -> StatementError:
    """Whether what is here has what the client has seen is not known."""
    return StatementError(
        f"Whether what is here is as new as the position that was sent could not be asked: {why}; nothing was carried "
        "out. Try again, or send no position",
        "UPSTREAM_UNREACHABLE",
    )


def _long(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if math.isfinite(seconds) else "longer than is known"


def _printable(text: str) -> bytes:
    """As a header can take it."""
    return "".join(letter for letter in text if letter.isascii() and letter.isprintable()).encode()


def _refusal(error: SyncError, *, lost: bool) -> StatementError:
    """What a client hears of a primary that did not answer, or refused; `lost`: its transaction is."""
    gone = "; its transaction is rolled back there" if lost else ""
    open_yet = "; what is still open of its transaction is rolled back there" if lost else ""
    if isinstance(error, UnauthorizedError):
        return StatementError(
            "The server above this one did not accept this one's token; nothing was carried out"
            + gone,
            "UPSTREAM_REFUSED",
        )
    if isinstance(error, OfflineError):
        if error.state == "nothing was sent":
            return StatementError(
                f"{error.message}; nothing was carried out{gone}", "UPSTREAM_UNREACHABLE"
            )
        return StatementError(
            f"{error.message}; what was asked for may have been carried out{open_yet}",
            "UPSTREAM_LOST",
        )
    state = f"; {error.state}" if error.state else ""
    if "nothing was" not in error.state:
        gone = open_yet
    return StatementError(f"{error.message}{state}{gone}", error.code or "UPSTREAM_REFUSED")
