"""Noticing that a client has disconnected while its request is being worked on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

_T = TypeVar("_T")


class GoneError(Exception):
    """The client has disconnected; what it asked for has been undone where that is possible."""


class Leaving:
    """Tells whether a client has disconnected; nothing is watched until somebody asks."""

    def __init__(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
        self._receive = receive
        self._task: asyncio.Task[None] | None = None

    def task(self) -> asyncio.Future[None]:
        """Done when the client has disconnected."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._watch())
        return self._task

    async def _watch(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return

    def close(self) -> None:
        """End the watch."""
        if self._task is not None:
            self._task.cancel()


class Departure(Leaving):
    """The same for all requests of one connection, which tells when it ends."""

    def __init__(self) -> None:
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def task(self) -> asyncio.Future[None]:
        """See `Leaving`."""
        return self._gone

    def leave(self) -> None:
        """The client has disconnected."""
        if not self._gone.done():
            self._gone.set_result(None)

    def close(self) -> None:
        """Others may still be watching."""


async def either(
    future: asyncio.Future[_T], leaving: Leaving, timeout: float | None = None
) -> bool:
    """Wait for a future, or for the client to leave (False)."""
    if future.done():
        return True
    gone = leaving.task()
    both: set[asyncio.Future[Any]] = {future, gone}
    await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    return future.done() or not gone.done()
