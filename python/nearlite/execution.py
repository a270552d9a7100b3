"""What routes and WebSockets need of whatever runs SQL: here (pipeline.py), or here and above (edge.py)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, Protocol

from nearlite.exchange import Headers, Scope
from nearlite.hrana import Plan, RunBatch
from nearlite.leaving import Leaving
from nearlite.limits import Limits
from nearlite.statements import Kind
from nearlite.streams import Stream, Streams


class Execution(Protocol):
    """Runs the requests of streams. Event loop thread only."""

    limits: Limits
    streams: Streams

    @property
    def displaced(self) -> bool:
        """Whether the path names another file than the one that is open: nothing may be carried out."""

    def heed(self, stream: Stream, scope: Scope) -> None:
        """A request for this stream has come, with these headers."""

    def told(self, stream: Stream) -> Headers:
        """What an answer's headers tell beside it."""

    def now(self, stream: Stream, plans: Sequence[Plan], results: list[bytes]) -> Kind | None:
        """Run as many requests as need neither a thread nor to wait.

        Returns:
          None when that was all, otherwise where the next one is to run.
        """

    def group(
        self,
        stream: Stream,
        plans: Sequence[Plan],
        results: list[bytes],
        done: Callable[[bool], None],
    ) -> bool:
        """Have what `now` has left, a write first, run in a group; False when not all of it can be in one.

        Args:
          stream, plans, results: as of `now`.
          done: called later, on the event loop: True when that was all, False when the next request
            cannot be part of a group.
        """

    async def finish(
        self,
        stream: Stream,
        plans: Sequence[Plan],
        results: list[bytes],
        leaving: Leaving,
        *,
        alone: bool = False,
    ) -> None:
        """Run the requests that `now` has left; `alone`: the next one has left a group.

        Raises:
          GoneError: the client has disconnected.
        """

    def cursor_at_once(self, stream: Stream, plan: RunBatch) -> bytes | None:
        """Entries of a cursor that can be run on the event loop, or None."""

    def may_keep(self, stream: Stream, plan: RunBatch) -> bool:
        """Whether a batch may leave a transaction or settings on its stream."""

    def cursor(
        self, stream: Stream, plan: RunBatch, leaving: Leaving
    ) -> AsyncGenerator[bytes, None]:
        """Entries of a cursor in pieces. Raises GoneError."""

    async def close_stream(self, stream: Stream) -> None:
        """End a stream that no request is using: what is open on it is rolled back."""

    def end_stream(self, stream: Stream) -> Coroutine[Any, Any, None] | None:
        """The same, but for what takes a while: to be awaited, by whomever."""

    async def close(self) -> None:
        """Finish what is queued, roll back what is open."""
