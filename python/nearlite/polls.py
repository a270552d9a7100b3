"""Long polls: who waits for a commit, and who is told of one.

Those who ask the same wait together: after a commit what is new is looked up and encoded once for all of
them, head and body in one object, and each is sent those bytes. One that waits costs an entry in its group and
one among those whose time is over at the same moment: no task, no event, no timer of its own. Thousands are
told in slices, and between two of them everybody else is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Final

from nearlite.asked import ReplicaOf, refusals
from nearlite.exchange import HttpError, Whole, failed, refused
from nearlite.leaving import GoneError, Leaving, either
from nearlite.position import Position
from nearlite.sending import IN_ONE_PIECE, SET, Sending
from nearlite.source import PageSet, Source

WATCH: Final = 0.05
"""Seconds between two looks for commits of other programs, while somebody waits for one."""
SLICE: Final = 64
"""Polls that are answered in one turn of the event loop: in about a millisecond."""
PAUSE: Final = 0.002
"""Seconds from one time that something new is told to the next: of commits that follow each other closer
replicas get several at once, which costs them and the server less."""
_TICKS: Final = 32
"""A second: polls end at one of them, the first that is not before their time."""
_EARLY: Final = 0.05  # ticks that a timer may be early

log = logging.getLogger("nearlite.server")


class Poll:
    """One that waits. It is answered by one of two calls, or leaves before."""

    __slots__ = ("group", "tick")

    group: Group
    tick: int

    @property
    def address(self) -> object:
        """Whose it is, as ASGI has it."""
        raise NotImplementedError

    def answer(self, whole: Whole) -> None:
        """Send it this. Never raises."""
        raise NotImplementedError

    def take(self, answer: PageSet) -> None:
        """Send it a page set that does not go in one piece, and close that. Never raises."""
        raise NotImplementedError


class Group:
    """Polls that ask the same.

    Attributes:
      replica: what they ask.
      waits: for a commit; otherwise it is told, too, that there is nothing new.
      polls: who waits, or is still to be told.
      looking: somebody is looking for what is new, in a thread.
      stale: and there was a commit since he began.
      found: tells one what is new; None as long as nothing is.
    """

    __slots__ = ("found", "looking", "polls", "replica", "stale", "waits")

    def __init__(self, replica: ReplicaOf, *, waits: bool = True) -> None:
        self.replica = replica
        self.waits = waits
        self.polls: set[Poll] = set()
        self.looking = False
        self.stale = False
        self.found: Callable[[Poll], None] | None = None


class Polls:
    """The replicas that wait for something new. Event loop thread only.

    Args:
      source: whose commits they wait for.
      sending: gets what is new.

    Attributes:
      waiting: how many there are.
    """

    def __init__(self, source: Source, sending: Sending) -> None:
        self._source = source
        self._sending = sending
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._groups: dict[ReplicaOf, Group] = {}
        self._ends: dict[int, set[Poll]] = {}  # by the tick at which they end
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf  # its tick
        self._told: deque[Group] = deque()  # groups that are being told
        self._looking: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None  # lives while anybody waits
        self._woken = False  # they are about to be
        self._shown_at = -math.inf  # clock when something new was told
        self._stopped = False
        self.waiting = 0
        self._cancel = source.subscribe(self._committed)

    async def wait(
        self, replica: ReplicaOf, seconds: float, leaving: Leaving, address: object = None
    ) -> Whole | PageSet:
        """What is newer than `replica`, which is at `address`, or that nothing is: for whom a task waits.

        Raises:
          GoneError: the client has left.
        """
        poll = _Awaited(self._loop.create_future(), address)
        self.enrol(poll, replica, seconds)
        try:
            if await either(poll.future, leaving):
                return poll.future.result()
        except BaseException:
            poll.refuse()
            raise
        finally:
            self.leave(poll)
        raise GoneError

    def enrol(self, poll: Poll, replica: ReplicaOf, seconds: float) -> None:
        """Let it wait so long; it is answered at once if there is something newer."""
        self.waiting += 1
        if seconds <= 0 or self._stopped:
            poll.tick = -1
            group = poll.group = Group(replica, waits=False)
            group.polls.add(poll)
            self._look(group)
            return
        tick = poll.tick = math.ceil((self._loop.time() + seconds) * _TICKS)
        ending = self._ends.get(tick)
        if ending is None:
            ending = self._ends[tick] = set()
            self._wind(tick)
        ending.add(poll)
        if self._watch is None and not self._source.notices:
            self._watch = self._loop.create_task(self._look_for_others())
        joined = self._groups.get(replica)
        if joined is not None:
            # There is a look after it was made, and one after each commit.
            poll.group = joined
            joined.polls.add(poll)
            return
        group = poll.group = self._groups[replica] = Group(replica)
        group.polls.add(poll)
        # After enrolling: no commit is missed.
        if not self._pauses():
            self._look(group)

    def leave(self, poll: Poll) -> None:
        """Forget one whose client has left, or that was answered."""
        group = poll.group
        if poll in group.polls:
            group.polls.discard(poll)
            self._forget(poll)
            if not group.polls:
                self._close(group)

    def standing(self) -> list[tuple[Position, int]]:
        """Where those stand who wait, and how many of them at each place."""
        return [(group.replica.start, len(group.polls)) for group in self._groups.values()]

    def addresses(self) -> dict[object, Position]:
        """Where each of them stands, by its address."""
        return {
            poll.address: group.replica.start
            for group in self._groups.values()
            for poll in group.polls
        }

    def stop(self) -> None:
        """Answer all that wait, and let nobody wait any more."""
        self._stopped = True
        if self._watch is not None:
            self._watch.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._cancel()
        for group in tuple(self._groups.values()):
            self._tell(group, self._sending.nothing(group.replica))

    def _close(self, group: Group) -> None:
        """Nobody joins it any more."""
        if self._groups.get(group.replica) is group:
            del self._groups[group.replica]

    def _forget(self, poll: Poll) -> None:
        """It waits no longer."""
        self.waiting -= 1
        ending = self._ends.get(poll.tick)
        if ending is not None:
            ending.discard(poll)
            if not ending:
                del self._ends[poll.tick]

    # ------------------------------------------------------------------ time

    def _wind(self, tick: int) -> None:
        """Have polls ended at that tick, or before."""
        if tick < self._next:
            if self._timer is not None:
                self._timer.cancel()
            self._next = tick
            self._timer = self._loop.call_at(tick / _TICKS, self._over)

    def _over(self) -> None:
        """The time of some polls is over."""
        self._timer, self._next = None, math.inf
        now = math.floor(self._loop.time() * _TICKS + _EARLY)
        for tick in [tick for tick in self._ends if tick <= now]:
            over: dict[
                Group, Group
            ] = {}  # a group of those whose time it is, by the one they leave
            for poll in self._ends.pop(tick):
                group = poll.group
                if group.found is not None:
                    continue  # it is about to be told
                ended = over.get(group) or over.setdefault(group, Group(group.replica))
                group.polls.discard(poll)
                ended.polls.add(poll)
                poll.group = ended
            for group, ended in over.items():
                if not group.polls:
                    self._close(group)
                self._tell(ended, self._sending.nothing(group.replica))
        if self._ends:
            self._wind(min(self._ends))

    # ------------------------------------------------------------------ commits

    async def _look_for_others(self) -> None:
        """Notice commits of other programs, which tell nobody; while somebody waits.

        A look costs about 20 us in a thread. It takes in what was committed, and that tells
        `_committed` as every commit does.
        """
        failing = False
        try:
            while self.waiting and not self._stopped:
                await asyncio.sleep(WATCH)
                try:
                    await self._sending.thread(self._source.after_commit)
                    failing = False
                except Exception:  # a full disk, say: it may have room at the next look
                    if not failing:
                        log.exception("what other programs committed could not be read")
                    failing = True
        finally:
            self._watch = None

    def _committed(self, _position: Position) -> None:
        """On the committing thread."""
        # Whoever clears `_woken` looks after that, and sees what was committed before.
        if not self.waiting or self._woken:
            return
        self._woken = True
        if threading.get_ident() == self._thread:
            self._loop.call_soon(self._wake)
        else:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self._wake)

    def _pauses(self) -> bool:
        """Whether something new was told just now: then `_wake` is called, or called again, in a moment."""
        left = self._shown_at + PAUSE - self._loop.time()
        if left <= 0:
            return False
        if not self._woken:
            self._woken = True
            self._loop.call_later(left, self._wake)
        return True

    def _wake(self) -> None:
        self._woken = False
        if self._pauses():
            return
        for group in tuple(self._groups.values()):
            if group.looking:
                group.stale = True
            else:
                self._look(group)

    def _look(self, group: Group) -> None:
        """Look for what is newer, and tell the group."""
        if not self._sending.is_near(group.replica.start):
            self._later(group, self._look_in_a_thread(group))
            return
        try:
            with refusals():
                found = self._sending.changes(group.replica)
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            self._tell(group, _refusal(error))
            return
        if found is not None:
            self._show(group, found)
        elif not group.waits:
            self._tell(group, self._sending.nothing(group.replica))

    def _later(self, group: Group, work: Coroutine[None, None, None]) -> None:
        group.looking = True
        task = self._loop.create_task(work)
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look_in_a_thread(self, group: Group) -> None:
        while group.polls:
            group.stale = False
            try:
                found = await self._sending.newer(group.replica)
            except Exception as error:  # noqa: BLE001
                self._tell(group, _refusal(error))
                return
            if found is not None:
                self._show(group, found)
                return
            if not group.waits:
                self._tell(group, self._sending.nothing(group.replica))
                return
            if not group.stale:
                break
        group.looking = False

    def _show(self, group: Group, found: PageSet) -> None:
        """Tell a group of a page set, and close that."""
        if group.waits:
            self._shown_at = self._loop.time()
        if found.size is not None and found.size <= IN_ONE_PIECE:
            body = b"".join(found)
            found.close()
            self._tell(group, Whole(200, body, SET, self._sending.told(group.replica, found)))
        elif len(group.polls) > 1:
            self._later(group, self._share(group, found))
        elif group.polls:
            (poll,) = group.polls
            self.leave(poll)
            poll.take(found)
        else:
            self._later(group, self._sending.discard(found))

    async def _share(self, group: Group, found: PageSet) -> None:
        """Tell a group of a large page set: encoded once, and taken by each at its own pace."""
        try:
            with refusals():
                shared = await self._sending.share(found)
        except Exception as error:  # noqa: BLE001
            self._tell(group, _refusal(error))
            return
        self._close(group)
        group.found = lambda poll: poll.take(shared.reader())
        self._soon(group)

    # ------------------------------------------------------------------ telling

    def _tell(self, group: Group, whole: Whole) -> None:
        """Send all of a group the same."""
        self._close(group)
        group.found = lambda poll: poll.answer(whole)
        self._soon(group)

    def _soon(self, group: Group) -> None:
        self._told.append(group)
        if len(self._told) > 1:
            return  # others are being told
        if len(group.polls) <= SLICE:
            self._slice()
        else:
            self._loop.call_soon(self._slice)

    def _slice(self) -> None:
        told, left = self._told, SLICE
        try:
            while told and left:
                group = told[0]
                assert group.found is not None
                while group.polls and left:
                    poll = group.polls.pop()
                    left -= 1
                    self._forget(poll)
                    group.found(poll)
                if not group.polls:
                    told.popleft()
        finally:
            if told:
                self._loop.call_soon(self._slice)


class _Awaited(Poll):
    """A task waits, under whatever ASGI server."""

    __slots__ = ("_address", "future")

    def __init__(self, future: asyncio.Future[Whole | PageSet], address: object) -> None:
        self.future = future
        self._address = address

    @property
    def address(self) -> object:
        return self._address

    def answer(self, whole: Whole) -> None:
        if not self.future.done():
            self.future.set_result(whole)

    def take(self, answer: PageSet) -> None:
        if self.future.done():
            answer.close()
        else:
            self.future.set_result(answer)

    def refuse(self) -> None:
        """Nobody takes what it was given, if it was."""
        if not self.future.done():
            self.future.cancel()
        elif not self.future.cancelled():
            given = self.future.result()
            if not isinstance(given, Whole):
                given.close()


def _refusal(error: Exception) -> Whole:
    if not isinstance(error, HttpError):
        log.error("changes could not be told", exc_info=error)
        error = failed()
    return refused(error)
