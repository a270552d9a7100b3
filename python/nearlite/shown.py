"""The answer of ``POST sql``: what a replica's write led to, as a page set from where it stands."""

from __future__ import annotations

import contextlib
import logging
from typing import Final

from nearlite import errors
from nearlite.asked import (
    EDGE,
    ReplicaOf,
    Seen,
    brings,
    leads_to,
    position_of,
    query_of,
    refusals,
    replica_of,
)
from nearlite.exchange import NO_STORE, Answering, Headers, HttpError, Scope, Send, header
from nearlite.sending import IN_ONE_PIECE, Sending
from nearlite.source import Source, State
from nearlite.wire import ANSWER_TYPE, answer_prefix

_ANSWER: Final = ANSWER_TYPE.encode()
# A transaction is open on the stream: there is nothing of it to show yet.
_INSIDE: Final = (b"nearlite-autocommit", b"0")
_UNSHOWN: Final = "a write could not be shown to the replica that sent it"
# Nobody can say at the moment what a write has led to: the replica asks.
_UNKNOWN: Final = (b"nearlite-position", b"unknown")

log = logging.getLogger("nearlite.server")


class Shown:
    """Shows replicas what they have written. Event loop thread only.

    Args:
      source: the primary.
      sending: gets page sets and sends them.
      answering: sends.
      seen: replicas are noted there.
    """

    def __init__(self, source: Source, sending: Sending, answering: Answering, seen: Seen) -> None:
        self._source = source
        self._sending = sending
        self._answering = answering
        self._seen = seen

    def state(self) -> State:
        """Where the primary stands. Raises HttpError when its disk is full."""
        return self._sending.state()

    def replica(self, scope: Scope) -> ReplicaOf:
        """Who has sent a ``POST sql``; refuses what could never be synced.

        Raises:
          HttpError: 409 when the replica belongs to another history, 507 when the disk is full: nothing
            may be written then.
        """
        # It is shown what it writes: where that leads to, nobody knows yet.
        self._seen.note(scope.get("client"), None, header(scope, EDGE))
        text = header(scope, b"nearlite-position")
        if text is None:
            raise HttpError(400, "BAD_REQUEST", "The header Nearlite-Position is missing")
        start = position_of(text.decode("latin-1"))
        state_hash = header(scope, b"nearlite-hash")
        here = self._source.latest
        if self._source.behind or start.lineage != here.lineage or start > here:
            here = self.state().position
        if start.lineage != here.lineage:
            raise HttpError(
                409,
                "LINEAGE_MISMATCH",
                f"the replica belongs to lineage {start.lineage:08x}, this primary is "
                f"{here.lineage:08x}; nothing was changed",
            )
        if start > here:
            raise HttpError(
                409,
                "POSITION_AHEAD",
                f"the replica is at {start}, the primary at {here}: it was restored to an older "
                "state; nothing was changed",
            )
        decoded = state_hash.decode("latin-1") if state_hash is not None else None
        return replica_of(start, decoded, query_of(scope.get("query_string", b"")))

    async def answer(
        self, send: Send, body: bytes, replica: ReplicaOf | None, headers: Headers = ()
    ) -> None:
        """Answer ``POST sql``: a pipeline's JSON and, if `replica` is given, what changed since."""
        answer = None
        # What was written is written: whatever stands in the way of a page set is for the replica's
        # next sync to hear.
        try:
            if replica is None:
                at = self._seen_last()
            else:
                with contextlib.suppress(HttpError):
                    answer = await self._sending.newer(replica)
                at = leads_to(self._source.state().position if answer is None else answer.to)
        except (errors.Error, OSError):  # a damaged page, a full disk
            log.exception(_UNSHOWN)
            at = _UNKNOWN
        prefix = answer_prefix(body)
        fields = _fields(at, (*headers, *brings(answer)), inside=replica is None)
        if answer is None:
            await self._answering.whole(send, 200, prefix, _ANSWER, fields)
        else:
            await self._sending.stream(send, answer, fields, prefix, _ANSWER)

    def answer_now(
        self, body: bytes, replica: ReplicaOf | None, headers: Headers = ()
    ) -> tuple[bytes, bytes, Headers] | None:
        """Body, type and headers of the same answer, or None when it takes long to make: nothing was done."""
        source = self._source
        answer = None
        try:
            if replica is None:
                at = self._seen_last()
            else:
                if not self._sending.is_near(replica.start):
                    return None
                with contextlib.suppress(HttpError), refusals():
                    answer = self._sending.changes(replica)
                if answer is not None and (answer.size or IN_ONE_PIECE + 1) > IN_ONE_PIECE:
                    answer.close()
                    return None
                at = leads_to(source.state().position if answer is None else answer.to)
        except (errors.Error, OSError):
            log.exception(_UNSHOWN)
            at = _UNKNOWN
        whole = answer_prefix(body)
        if answer is not None:
            shown = b"".join(answer)
            answer.close()
            self._sending.sent += len(shown)
            whole += shown
        fields = _fields(at, (*headers, *brings(answer)), inside=replica is None)
        return whole, _ANSWER, fields

    def _seen_last(self) -> tuple[bytes, bytes]:
        """The header of an answer inside a transaction: nothing is looked at for it.

        A position that the log could not be told of yet may be given out again after a crash.
        """
        return _UNKNOWN if self._source.behind else leads_to(self._source.latest)

    def position(self) -> tuple[bytes, bytes]:
        """The header that tells the position of the newest commit; never raises."""
        try:
            return leads_to(self._source.state().position)
        # What was written is written, whatever stands in the way of a look.
        except (errors.Error, OSError):
            log.exception(_UNSHOWN)
            return _UNKNOWN


def _fields(at: tuple[bytes, bytes], headers: Headers, *, inside: bool) -> Headers:
    """Headers of an answer to ``POST sql``."""
    return (at, NO_STORE, *headers, _INSIDE) if inside else (at, NO_STORE, *headers)
