"""SQL that reaches a replica which serves others: run here and above (edge.py), or handed on as it came.

What is handed on: the writes of replicas below, whose answers bring what they wrote past this one; a transaction
that has begun on such a replica; whatever goes on with a baton of the server above; and where this is no
edge, everything that comes over HTTP, so that all of it is as the primary has it.
"""

from __future__ import annotations

from collections.abc import Callable

from nearlite.access import Access
from nearlite.exchange import Client, Deadlines, Receive, Scope, Send, header, read_body
from nearlite.passing import Passing, reader_of_batons
from nearlite.routes import SQL, Routes


class Relaying:
    """Runs requests here or hands them on. Event loop thread only.

    Args:
      routes: run them here, and above.
      passing: hands them on.
      deadlines: of bodies.
      edge: what only looks is run here.
      foreign: whether the server above is none of ours: it knows nothing of page sets and positions, so nothing
        is handed on, and what a replica below writes is shown to it from here.
    """

    displaced = False

    def __init__(
        self,
        routes: Routes,
        passing: Passing,
        deadlines: Deadlines,
        *,
        edge: bool,
        foreign: Callable[[], bool] = lambda: False,
    ) -> None:
        self._routes = routes
        self._passing = passing
        self._deadlines = deadlines
        self._edge = edge
        self._foreign = foreign

    async def pipeline(
        self, path: str, scope: Scope, receive: Receive, send: Send, access: Access
    ) -> None:
        """One of VERSIONS, or PROTOBUF."""
        if path == SQL and not self._foreign():
            await self._passing.answer(path, scope, receive, send, access)
            return
        body = await read_body(scope, receive, self._deadlines)
        if await self._is_for_above(path, scope, body):
            await self._passing.answer(path, scope, receive, send, access, body=body)
        else:
            await self._routes.pipeline(path, scope, receive, send, access, body=body)

    async def cursor(
        self, path: str, scope: Scope, receive: Receive, send: Send, access: Access
    ) -> None:
        """CURSOR or PROTOBUF_CURSOR."""
        body = await read_body(scope, receive, self._deadlines)
        if await self._is_for_above(path, scope, body):
            await self._passing.answer(path, scope, receive, send, access, body=body)
        else:
            await self._routes.cursor(path, scope, receive, send, access, body=body)

    async def alone(
        self, path: str, scope: Scope, receive: Receive, send: Send, access: Access
    ) -> None:
        """One of ALONE."""
        if self._edge or self._foreign():
            await self._routes.alone(path, scope, receive, send, access)
        else:
            await self._passing.answer(path, scope, receive, send, access)

    def short(self, path: str, scope: Scope, body: bytes, client: Client, access: Access) -> bool:
        """A pipeline that has come whole; False when nothing was done."""
        ours = not self._foreign()
        if ours and (not self._edge or path == SQL or header(scope, b"nearlite-read") is not None):
            return False
        return self._routes.short(path, scope, body, client, access)

    async def socket(
        self, scope: Scope, receive: Receive, send: Send, grant: Callable[[str | None], Access]
    ) -> None:
        """A WebSocket; `grant` is what the holder of a token may do. Raises HttpError: not accepted."""
        await self._routes.socket(scope, receive, send, grant)

    async def close(self) -> None:
        """Finish or end what is under way."""
        await self._routes.close()
        await self._passing.close()

    async def _is_for_above(self, path: str, scope: Scope, body: bytes) -> bool:
        if self._foreign():
            return False
        if not self._edge or header(scope, b"nearlite-read") is not None:
            return True
        baton = (await reader_of_batons(path))(body)
        return baton is not None and not self._routes.executor.streams.owns(baton)
