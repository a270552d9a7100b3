"""A replica that serves replicas finds out what its upstream has, for those who ask what is there *now*.

A sync targets the primary's position at the time it is called, through however many levels. Those who ask
while one look is under way share the next one, so a thousand of them cost the upstream two requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nearlite import errors


class Refreshing:
    """Event loop thread only.

    Args:
      refresh: brings the replica to where the primary stands; called in a thread, one at a time.
    """

    def __init__(self, refresh: Callable[[], None]) -> None:
        self._refresh = refresh
        self._next: asyncio.Future[errors.Error | None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def now(self) -> errors.Error | None:
        """Return after a look that began later than this call; what prevented it, if anything did."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await asyncio.shield(self._next)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._next is not None:
            asked, self._next = self._next, None
            try:
                await loop.run_in_executor(None, self._refresh)
            except errors.Error as error:
                asked.set_result(error)
            except Exception as error:  # noqa: BLE001 - a token callable may raise anything
                asked.set_result(errors.OfflineError(str(error)))
            else:
                asked.set_result(None)
        self._task = None
