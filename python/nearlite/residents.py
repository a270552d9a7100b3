"""Which of many databases are open: opened when they are asked for, closed when they are not, a bounded number.

One that is in use is never closed: while a request is answered, a stream has a transaction, somebody waits for a
commit or has been promised a base. What arrives while one is being closed waits, and opens it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, Protocol

from nearlite import errors
from nearlite.access import unknown_database
from nearlite.exchange import Client, Headers, HttpError, Receive, Scope, Send, Shortcut
from nearlite.sockets import CHANGES

log = logging.getLogger("nearlite.server")

_TICK: Final = 0.25  # seconds between looks at those that are open
_TURNS: Final = 4  # ticks in which each is looked at once, if nothing in it is urgent
_REST: Final = 1.0  # seconds without a request after which one gives back memory
_PATIENCE: Final = 10.0  # seconds that a request waits for another database to be closed
_AGAIN: Final = 1.0  # seconds until one that could not be opened is tried again
_CHANGES: Final = b"/nl/v1/changes/"
_TOGETHER: Final = 16  # databases that are closed at a time


class Resident(Protocol):
    """One that may be open: nearlite.applications.PrimaryApp."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""

    async def startup(self) -> None:
        """Open it."""

    async def shutdown(self) -> None:
        """Close it, whatever is under way."""

    def stop_waiting(self) -> None:
        """Answer long polls now."""

    def shortcut(self, scope: Scope) -> Shortcut | None:
        """See nearlite.server.App."""

    @property
    def busy(self) -> bool:
        """Whether closing it now would take something from somebody."""

    @property
    def running(self) -> bool:
        """Whether anything is being carried out."""

    @property
    def urgent(self) -> bool:
        """Whether it is to be looked at often."""

    def look(self) -> None:
        """End what is overdue."""

    def rest(self) -> None:
        """Give back what only makes the next request faster."""


class Slot:
    """A database that has been asked for.

    Attributes:
      name: its name.
      app: while it is open.
      users: requests that are being answered by it, those on the short cut aside.
      turning: the task that opens or closes it.
      used: clock when it was last asked.
      rested: it has given back what it could since.
      gone: it does not exist any more.
      barred: nobody may enter until this is done.
      failure: why it could not be opened, and when.
      sockets: tasks of WebSockets to it.
    """

    __slots__ = (
        "app", "barred", "failure", "gone", "name", "rested", "sockets", "turning", "used", "users",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.app: Resident | None = None
        self.users = 0
        self.turning: asyncio.Task[None] | None = None
        self.used = 0.0
        self.rested = False
        self.gone = False
        self.barred: asyncio.Future[None] | None = None
        self.failure: tuple[HttpError, float] | None = None
        self.sockets: set[asyncio.Task[None]] = set()

    @property
    def in_use(self) -> bool:
        """Whether it may not be closed."""
        return self.users > 0 or (self.app is not None and self.app.busy)

    @property
    def running(self) -> bool:
        """Whether it is answering somebody."""
        return self.users > 0 or (self.app is not None and self.app.running)


class Residents:
    """Those that are open. Event loop thread only.

    Args:
      make: an application for a name, not yet open. Raises errors.Error: it cannot be served.
      exists: whether there is such a database.
      most: that may be open at a time.
      idle: seconds after which one that is not in use is closed.
    """

    def __init__(
        self,
        make: Callable[[str], Resident],
        exists: Callable[[str], bool],
        *,
        most: int,
        idle: float,
    ) -> None:
        self._make = make
        self._exists = exists
        self._most = most
        self._idle = idle
        self._slots: dict[str, Slot] = {}
        self._open: OrderedDict[Slot, None] = OrderedDict()  # the one that was idle longest first
        self._count = 0  # open, being opened, being closed
        self._freed = asyncio.Event()
        self._turn = 0
        self._closing = False
        self._timer = asyncio.get_running_loop().call_later(_TICK, self._look)

    def __len__(self) -> int:
        return len(self._open)

    # ------------------------------------------------------------------ who asks

    @contextlib.asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Resident]:
        """A database, open, for as long as the block takes.

        Raises:
          HttpError: there is none, it cannot be opened, or too many are in use.
        """
        slot = await self._enter(name)
        assert slot.app is not None
        slot.users += 1
        try:
            yield slot.app
        finally:
            slot.users -= 1
            slot.used = time.monotonic()
            if not slot.users:
                self._freed.set()

    async def socket(self, name: str, scope: Scope, receive: Receive, send: Send) -> bool:
        """Have a database talk on a WebSocket. False: it was closed meanwhile. Raises HttpError as `using`."""
        async with self.using(name) as app:
            slot = self._slots[name]

            async def talk() -> None:
                await app(scope, receive, send)

            task = asyncio.get_running_loop().create_task(talk())
            slot.sockets.add(task)
            try:
                await asyncio.wait({task})
            finally:
                slot.sockets.discard(task)
                if not task.done():
                    task.cancel()
                    await asyncio.wait({task})
            if task.cancelled():
                return False
            task.result()
            return True

    async def _enter(self, name: str) -> Slot:
        while True:
            if self._closing:
                raise HttpError(503, "SHUTTING_DOWN", "The server is about to end")
            slot = self._slots.get(name)
            if slot is None or slot.gone:
                if not self._exists(name):
                    raise unknown_database(name)
                slot = self._slots[name] = Slot(name)
            if slot.barred is not None:
                await asyncio.shield(slot.barred)
            elif slot.turning is not None:
                await asyncio.wait({slot.turning})
                if slot.failure is not None and slot.app is None:
                    raise slot.failure[0]
            elif slot.app is not None:
                self._touch(slot)
                return slot
            elif slot.failure is not None and time.monotonic() - slot.failure[1] < _AGAIN:
                raise slot.failure[0]
            else:
                slot.failure = None
                slot.turning = asyncio.get_running_loop().create_task(self._bring(slot))

    def _touch(self, slot: Slot) -> None:
        slot.used = time.monotonic()
        slot.rested = False
        self._open.move_to_end(slot)

    def shortcut(self, name: str, scope: Scope) -> Shortcut | None:
        """The short cut to one that is open; it leads nowhere from when that is closed."""
        slot = self._slots.get(name)
        app = None if slot is None else slot.app
        inner = None if app is None else app.shortcut(scope)
        if slot is None or inner is None:
            return None
        found, through, touch = slot, inner, self._touch

        def run(target: bytes, varying: Headers, body: bytes, client: Client) -> bool:
            if found.app is not app or found.barred is not None:
                return False
            touch(found)
            at = target.find(_CHANGES)
            if at > 0:  # it is read once more
                target = target[at:]
            return through(target, varying, body, client)

        return run

    # ------------------------------------------------------------------ opening and closing

    async def _bring(self, slot: Slot) -> None:
        """Open one. What prevents it is noted."""
        try:
            await self._room()
            try:
                app = self._make(slot.name)
                await app.startup()
            except BaseException:
                self._left()
                raise
            slot.app = app
            slot.used = time.monotonic()
            slot.rested = False
            self._open[slot] = None
        except HttpError as error:
            slot.failure = error, -math.inf  # the next one may have more luck
        except (errors.Error, OSError) as error:
            log.error("the database %s could not be opened: %s", slot.name, error)  # noqa: TRY400
            slot.failure = _unavailable(), time.monotonic()
        except Exception:
            log.exception("the database %s could not be opened", slot.name)
            slot.failure = _unavailable(), time.monotonic()
        finally:
            slot.turning = None

    async def _room(self) -> None:
        """Wait until one more may be open, and count it."""
        until = time.monotonic() + _PATIENCE
        while self._count >= self._most:
            victim = next((slot for slot in self._open if not slot.in_use), None)
            if victim is not None:
                await asyncio.wait({self._begin_close(victim)})
                continue
            left = until - time.monotonic()
            if left <= 0:
                raise HttpError(
                    503,
                    "TOO_MANY_DATABASES",
                    f"{self._most} databases are in use, which is the limit; nothing was carried out",
                    ((b"retry-after", b"1"),),
                )
            self._freed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._freed.wait(), min(left, _TICK))
        self._count += 1

    def _left(self) -> None:
        self._count -= 1
        self._freed.set()

    def _begin_close(self, slot: Slot) -> asyncio.Task[None]:
        """From here on nobody reaches it; the task ends when it is closed."""
        app, slot.app = slot.app, None
        assert app is not None
        del self._open[slot]
        slot.turning = asyncio.get_running_loop().create_task(self._put(slot, app))
        return slot.turning

    async def _put(self, slot: Slot, app: Resident) -> None:
        try:
            await app.shutdown()
        except Exception:
            log.exception("the database %s could not be closed in order", slot.name)
        finally:
            slot.turning = None
            self._left()

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_TICK, self._look)
        self._freed.set()  # streams and polls end without telling
        self._turn = (self._turn + 1) % _TURNS
        now = time.monotonic()
        for number, slot in enumerate(list(self._open)):
            app = slot.app
            assert app is not None
            try:
                if app.urgent or number % _TURNS == self._turn:
                    app.look()
                unused = now - slot.used
                if unused < _REST or slot.in_use:
                    continue
                if unused >= self._idle:
                    self._begin_close(slot)
                elif not slot.rested:
                    slot.rested = True
                    app.rest()
            except Exception:
                log.exception("the database %s could not be looked at", slot.name)

    # ------------------------------------------------------------------ changes

    @contextlib.asynccontextmanager
    async def alone(self, name: str, *, patience: float) -> AsyncIterator[None]:
        """Close a database, and let nobody reach it while the block runs; then those who wait go on.

        Args:
          name: of one that may exist.
          patience: seconds that requests under way have to end; then they are broken off.
        """
        loop = asyncio.get_running_loop()
        while True:
            slot = self._slots.get(name)
            if slot is None or slot.gone:
                slot = self._slots[name] = Slot(name)
            if slot.barred is None:
                break
            await asyncio.shield(slot.barred)
        slot.barred = loop.create_future()
        try:
            while slot.turning is not None:
                await asyncio.wait({slot.turning})
            if slot.app is not None:
                slot.app.stop_waiting()
                for task in slot.sockets:
                    task.cancel(CHANGES)
                until = time.monotonic() + patience
                while slot.running and (left := until - time.monotonic()) > 0:
                    self._freed.clear()
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._freed.wait(), min(left, _TICK))
                if slot.app is not None:  # nobody else has closed it meanwhile, to make room
                    self._begin_close(slot)
            while slot.turning is not None:
                await asyncio.wait({slot.turning})
            slot.failure = None
            yield
        finally:
            if not self._exists(name):
                slot.gone = True
                self._slots.pop(name, None)
            barred, slot.barred = slot.barred, None
            barred.set_result(None)

    # ------------------------------------------------------------------ the end

    def stop_waiting(self) -> None:
        """Answer long polls now, everywhere."""
        for app in self.apps():
            app.stop_waiting()

    def apps(self) -> Iterator[Resident]:
        """Those that are open."""
        return (slot.app for slot in list(self._open) if slot.app is not None)

    async def close(self) -> None:
        """Close all of them, several at a time."""
        self._closing = True
        self._timer.cancel()
        limit = asyncio.Semaphore(_TOGETHER)

        async def one(slot: Slot) -> None:
            async with limit:
                if slot.app is not None:
                    await asyncio.wait({self._begin_close(slot)})

        await asyncio.gather(*(one(slot) for slot in list(self._open)))
        while turning := {slot.turning for slot in self._slots.values() if slot.turning}:
            await asyncio.wait(turning)
        for slot in list(self._open):  # opened while others were closed
            await asyncio.wait({self._begin_close(slot)})


def _unavailable() -> HttpError:
    return HttpError(
        503,
        "DATABASE_UNAVAILABLE",
        "The database could not be opened; nothing was carried out. The server's log says why",
        ((b"retry-after", b"1"),),
    )
