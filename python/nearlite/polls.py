"""Long polls: who waits for a commit, and who is woken by one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from nearlite import errors
from nearlite.asked import ReplicaOf
from nearlite.leaving import Leaving
from nearlite.position import Position
from nearlite.sending import Sending
from nearlite.source import PageSet, Source

WATCH: Final = 0.05
"""Seconds between two looks for commits of other programs, while somebody waits for one."""

log = logging.getLogger("nearlite.server")


class Polls:
    """The replicas that wait for something new. Event loop thread only.

    Args:
      source: whose commits they wait for.
      sending: gets what is new.
    """

    def __init__(self, source: Source, sending: Sending) -> None:
        self._source = source
        self._sending = sending
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Future[None]] = set()
        self._waiting = 0  # long polls under way
        self._watch: asyncio.Task[None] | None = None  # lives while there are any
        self._stopped = False
        self._cancel = source.subscribe(self._committed)

    async def wait(self, replica: ReplicaOf, seconds: float, leaving: Leaving) -> PageSet | None:
        """What is committed after `replica`; None when the time is over or the client has left."""
        self._waiting += 1
        self._watch = self._watch or self._loop.create_task(self._look_for_others())
        try:
            return await self._wait(replica, seconds, leaving)
        finally:
            self._waiting -= 1

    def stop(self) -> None:
        """Answer all that wait, and let nobody wait any more."""
        self._stopped = True
        if self._watch is not None:
            self._watch.cancel()
        self._cancel()
        self._wake()

    async def _wait(self, replica: ReplicaOf, seconds: float, leaving: Leaving) -> PageSet | None:
        """Wait for a commit; None when the time is over or the client has left."""
        deadline = self._loop.time() + seconds
        gone = leaving.task()
        while not self._stopped:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.add(waiter)
            try:
                # After enrolling: a commit between the first look and now is not missed.
                answer = await self._sending.newer(replica)
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
                    await self._sending.thread(self._source.after_commit)
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
