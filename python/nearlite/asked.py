"""What replicas ask, and who they are: positions and hashes out of a request, refusals, who was seen."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qs

from nearlite import beats, errors
from nearlite.exchange import Headers, HttpError, Scope
from nearlite.position import Position

MAX_WAIT: Final = 25.0
"""Seconds of a long poll."""
SEEN_SECONDS: Final = 60.0
"""A replica counts as seen for so long after its last request."""
_SEEN_MAX: Final = 10_000
_HASH: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
PRIVATE: Final = (b"cache-control", b"private")
_PUBLIC: Final = (b"cache-control", beats.PUBLIC.encode())
RETRY_SOON: Final = ((b"retry-after", b"1"),)


@dataclass(frozen=True, slots=True)
class ReplicaOf:
    """A replica that has sent a request.

    Attributes:
      start: its position.
      state_hash: its state hash, if it told.
      compress: whether it takes compressed chunks.
      compact: whether it takes compact page sets.
      beat: that its poll belongs to; None: the answer is for it alone.
    """

    start: Position
    state_hash: int | None
    compress: bool
    compact: bool
    beat: int | None = None


class Caching:
    """Who may store what polls are answered.

    Args:
      shared: a cache in front may answer many live replicas with what one was answered.
    """

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared

    def stop(self) -> None:
        """Polls are answered before their time now: that is nothing for others."""
        self._shared = False

    def poll_of(self, text: str, query: dict[str, str]) -> tuple[ReplicaOf, float]:
        """Who polls from a position, and how many seconds. Raises HttpError."""
        replica = replica_of(position_of(text), query.get("hash"), query)
        beat = beats.number(query.get("beat")) if self._shared else None
        if beat is None:
            return replica, seconds_of(query.get("wait"))
        return replace(replica, beat=beat), beats.left(beat, time.time())

    def headers(
        self, alone: tuple[bytes, bytes], replica: ReplicaOf, *, over: bool = False
    ) -> Headers:
        """Of an answer: who may store it, and which beat the next poll belongs to.

        Args:
          alone: Cache-Control of one that is for its client alone.
          replica: that polls.
          over: there was nothing until the end.
        """
        if not self._shared:
            return (alone,)
        following = beats.following(replica.beat, time.time(), over=over)
        told = (b"nearlite-beat", b"%d" % following)
        return (alone if replica.beat is None else _PUBLIC, told)


class Seen:
    """The replicas that have asked for something lately, by their address."""

    def __init__(self) -> None:
        self._seen: dict[object, float] = {}

    def note(self, scope: Scope) -> None:
        """One has asked."""
        client = scope.get("client")
        self._seen[tuple(client) if client else None] = time.monotonic()
        if len(self._seen) > _SEEN_MAX:
            self.count()

    def count(self) -> int:
        """How many there are."""
        limit = time.monotonic() - SEEN_SECONDS
        self._seen = {who: when for who, when in self._seen.items() if when > limit}
        return len(self._seen)


def leads_to(position: Position) -> tuple[bytes, bytes]:
    """The header that tells where an answer leads."""
    return (b"nearlite-position", str(position).encode())


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What a source says of a position, as its client is told."""
    try:
        yield
    except errors.UpstreamBehindError as error:
        raise HttpError(503, "UPSTREAM_BEHIND", error.message, RETRY_SOON) from None
    except errors.DamagedError as error:
        raise HttpError(503, "UPSTREAM_DAMAGED", error.message, RETRY_SOON) from None
    except errors.LineageError as error:
        raise HttpError(409, "LINEAGE_MISMATCH", error.message) from None
    except errors.PrimaryRestoredError as error:
        raise HttpError(409, "POSITION_AHEAD", error.message) from None
    except errors.StateMismatchError as error:
        raise HttpError(409, "STATE_MISMATCH", error.message) from None
    except errors.HistoryGoneError as error:
        raise HttpError(410, "HISTORY_GONE", error.message) from None
    except (OSError, errors.OperationalError) as error:
        refuse_if_full(error)
        raise


def refuse_if_full(error: OSError | errors.OperationalError) -> None:
    """507 for a disk without room: commits that the log does not know are shown to nobody."""
    if errors.is_disk_full(error):
        raise HttpError(
            507, "DISK_FULL", "the primary's disk is full; what was committed is kept"
        ) from error


def query_of(scope: Scope) -> dict[str, str]:
    """The parameters of a request; the last of each name."""
    text = scope.get("query_string", b"").decode("latin-1")
    return {key: values[-1] for key, values in parse_qs(text).items()} if text else {}


def replica_of(start: Position, state_hash: str | None, query: dict[str, str]) -> ReplicaOf:
    """Who asks. Raises HttpError: the hash is none."""
    compact = state_hash is not None and query.get("v") == "2"
    return ReplicaOf(start, _state_hash(state_hash), query.get("z") == "1", compact)


def position_of(text: str) -> Position:
    """A position as text. Raises HttpError: it is none."""
    try:
        return Position.parse(text)
    except ValueError as error:
        raise HttpError(400, "BAD_REQUEST", str(error)) from None


def _state_hash(text: str | None) -> int | None:
    if text is None:
        return None
    if _HASH.fullmatch(text) is None:
        raise HttpError(400, "BAD_REQUEST", "a state hash is written as 16 hex digits")
    return int(text, 16)


def page_of(text: str | None) -> int:
    """The page that a download begins with. Raises HttpError: it is none."""
    if text is None:
        return 1
    if not text.isascii() or not text.isdecimal() or not 0 < int(text[:11]) < 1 << 32:
        raise HttpError(400, "BAD_REQUEST", "from is the number of a page")
    return int(text)


def seconds_of(text: str | None) -> float:
    """How long a poll waits, at most MAX_WAIT. Raises HttpError: it is no number."""
    if text is None:
        return 0.0
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e9:
        raise HttpError(400, "BAD_REQUEST", "wait is a number of seconds")
    return min(found, MAX_WAIT)
