"""The threads that SQL of one database runs in: its own, or those that all databases of a server share."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from nearlite.leaving import GoneError, Leaving, either

_INTERRUPT_EVERY: Final = 0.05
"""Seconds until what a client that has left is still running is interrupted again."""
_TIDYING: Final = 5.0  # seconds in which what was begun may begin more
_TURNS: Final = 8  # of the event loop, in which whoever waited for a thread has gone on

_T = TypeVar("_T")


class Threads:
    """Runs work in threads, and knows when the last of it is done. Event loop thread only.

    Args:
      most: of its own, at a time.
      shared: theirs instead.
    """

    def __init__(self, most: int, shared: ThreadPoolExecutor | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = shared or ThreadPoolExecutor(most, thread_name_prefix="nearlite-sql")
        self._own = shared is None
        self._running: set[concurrent.futures.Future[None]] = set()

    def run(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """Run it; what it answers or raises. To cancel the future does not stop what has begun."""
        told: asyncio.Future[_T] = self._loop.create_future()

        def job() -> None:
            if told.cancelled():
                return  # given up while it waited for a thread
            found: _T | None = None
            failure: BaseException | None = None
            try:
                found = work()
            except BaseException as error:  # noqa: BLE001 - whatever it is, somebody waits for it
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                # Once for each: asyncio's own way from a pool's future to the loop's wakes it several times.
                self._loop.call_soon_threadsafe(_tell, told, found, failure)

        done = self._pool.submit(job)
        self._running.add(done)
        done.add_done_callback(self._running.discard)
        return told

    async def until_left(
        self, work: Callable[[], _T], interrupt: Callable[[], object], leaving: Leaving
    ) -> _T:
        """Run it; when the client leaves, or who awaits this is cancelled, it is interrupted.

        However this ends, nothing of the work runs any more: what it used can be used again.

        Raises:
          GoneError: the client has left.
        """
        future = self.run(work)
        try:
            stays = await either(future, leaving)
        except asyncio.CancelledError:
            await _until_done(future, interrupt)
            raise
        if not stays:
            await _until_done(future, interrupt)
            raise GoneError
        return future.result()

    async def finish(self, work: Callable[[], _T]) -> _T:
        """Run what tidies up, and wait for its end even when cancelled meanwhile."""
        future = self.run(work)
        await _until_done(future)
        return future.result()

    @property
    def idle(self) -> bool:
        """Whether nothing runs in them."""
        return not self._running

    async def close(self) -> None:
        """Wait for all that was begun, and what that begins to tidy up; nothing begins in threads of its own then."""
        until = self._loop.time() + _TIDYING
        turns = 0
        while turns < _TURNS:
            if self._running and self._loop.time() < until:
                await self._wait(until - self._loop.time())
                turns = 0
            else:  # whoever waited for the last of it gets its turn
                await asyncio.sleep(0)
                turns += 1
        if self._own:
            await self._loop.run_in_executor(None, self._pool.shutdown)
        while self._running:
            await self._wait(None)

    async def _wait(self, seconds: float | None) -> None:
        running = [asyncio.wrap_future(done) for done in tuple(self._running)]
        if running:
            await asyncio.wait(running, timeout=seconds)


async def _until_done(
    future: asyncio.Future[Any], interrupt: Callable[[], object] | None = None
) -> None:
    """Wait for what cannot be given up, because its thread is in something that others use; then be cancelled.

    It is interrupted again and again: it may not have begun yet, or be between two statements.
    """
    cancelled = False
    while not future.done():
        if interrupt is not None:
            interrupt()
        try:
            await asyncio.wait({future}, timeout=None if interrupt is None else _INTERRUPT_EVERY)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled or interrupt is not None:
        future.exception()  # nobody wants to know
    if cancelled:
        raise asyncio.CancelledError


def _tell(told: asyncio.Future[_T], found: Any, failure: BaseException | None) -> None:
    if told.done():  # nobody waits any more
        return
    if failure is None:
        told.set_result(found)
    elif isinstance(failure, StopIteration):  # a future cannot carry it
        told.set_exception(RuntimeError("the work raised StopIteration"))
    else:
        told.set_exception(failure)
