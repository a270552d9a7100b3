"""One pipeline of requests, from its body to its answer, with ASGI or without."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from nearlite import hrana
from nearlite.access import Access
from nearlite.exchange import Headers, HttpError, Scope, header
from nearlite.execution import Execution
from nearlite.hrana import Plan, Planner
from nearlite.leaving import Leaving
from nearlite.statements import Kind
from nearlite.streams import Stream

_COUNTERS: Final = b"nearlite-counters"
_THREE_NUMBERS: Final = re.compile(rb"(-?[0-9]{1,19}),(-?[0-9]{1,19}),(-?[0-9]{1,19})")


class Ran(NamedTuple):
    """A pipeline that was executed.

    Attributes:
      stream: whose requests they were.
      answer: body, as JSON.
      outside: the stream was left outside a transaction.
      headers: to be sent with it.
      kept: the stream goes on; the answer has its baton.
    """

    stream: Stream
    answer: bytes
    outside: bool
    headers: Headers
    kept: bool


class Running:
    """A pipeline that is being executed. Its stream is busy until it is left.

    Args:
      executor: of the server.
      version: of Hrana.
      request: the decoded body.
      scope: of the request; its headers may carry counters.
      access: what the client may do.

    Raises:
      ProtocolError: the baton is not good, or not with this token; HttpError: a header is not, or there are
        too many streams.
    """

    __slots__ = (
        "_counters",
        "_executor",
        "_left",
        "_planner",
        "_plans",
        "_request",
        "_results",
        "stream",
    )

    def __init__(
        self,
        executor: Execution,
        version: int,
        request: hrana.PipelineBody,
        scope: Scope,
        access: Access,
    ) -> None:
        self._counters = _counters(scope)
        self._executor = executor
        self._request = request
        self._plans: list[Plan] = []
        self._results: list[bytes] = []
        self._left: Kind | None = None
        self.stream = begin(executor, request.baton, scope, access)
        self._planner = Planner(version, self.stream.stored, executor.limits.max_statements)

    def now(self) -> bool:
        """Begin; True when all could be done without waiting. Raises ProtocolError: nothing was done."""
        self._plans = self._planner.plan(self._request.requests)
        if self._counters is not None:
            self.stream.set_counters(self._counters)
        self._left = self._executor.now(self.stream, self._plans, self._results)
        return self._left is None

    def group(self, done: Callable[[bool], None]) -> bool:
        """Have the write that `now` has left run in a group, if it is one.

        `done` is called later, on the event loop: whether that was all, or `finish` is to go on.
        """
        if self._left is not Kind.WRITE:
            return False
        return self._executor.group(self.stream, self._plans, self._results, done)

    async def finish(self, leaving: Leaving, *, alone: bool = False) -> None:
        """Do what `now` has left; `alone`: the next request cannot be part of a group.

        Raises:
          GoneError: the client has disconnected.
        """
        try:
            await self._executor.finish(
                self.stream, self._plans, self._results, leaving, alone=alone
            )
        finally:
            leaving.close()

    @property
    def first(self) -> bytes:
        """The stream result of the first request."""
        return self._results[0]

    def end(self) -> Ran:
        """All has been executed: the answer."""
        stream, planner = self.stream, self._planner
        stream.stored = planner.stored
        outside = not stream.in_transaction
        kept = not planner.closes
        baton = self._executor.streams.give(stream) if kept else None
        headers: Headers = ()
        if self._counters is not None:
            headers = ((_COUNTERS, b"%d,%d,%d" % stream.get_counters()),)
        return Ran(stream, hrana.pipeline_answer(baton, self._results), outside, headers, kept)


def begin(executor: Execution, baton: str | None, scope: Scope, access: Access) -> Stream:
    """The stream of a request, busy from now on.

    Raises:
      ProtocolError: the baton is not good; HttpError 429: the client has too many streams.
    """
    streams, holder = executor.streams, access.holder_at(scope.get("client"))
    stream = streams.open(access, holder) if baton is None else streams.take(baton, access, holder)
    executor.heed(stream, scope)
    return stream


def _counters(scope: Scope) -> tuple[int, int, int] | None:
    """What last_insert_rowid(), changes() and total_changes() answer a replica's connection."""
    text = header(scope, _COUNTERS)
    if text is None:
        return None
    match = _THREE_NUMBERS.fullmatch(text)
    if match is not None:
        last_rowid, changes, total = map(int, match.groups())
        if all(-(1 << 63) <= number < 1 << 63 for number in (last_rowid, changes, total)):
            return last_rowid, changes, total
    raise HttpError(400, "BAD_REQUEST", "Nearlite-Counters is three 64-bit numbers")
