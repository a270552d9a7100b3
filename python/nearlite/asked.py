"""What replicas ask, and who they are: positions and hashes out of a request, refusals, who was seen."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qs

from nearlite import beats, errors, network
from nearlite.exchange import NO_STORE, Headers, HttpError
from nearlite.position import Position
from nearlite.source import PageSet

MAX_WAIT: Final = 25.0
"""Seconds of a long poll."""
SEEN_SECONDS: Final = 60.0
"""A replica counts as seen for so long after its last request."""
_SEEN_MAX: Final = 10_000
_KEPT: Final = 64  # questions
_HASH: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_PAGE: Final = re.compile(r"[0-9]{1,10}", re.ASCII)
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

    def poll(self, replica: ReplicaOf, wait: float) -> tuple[ReplicaOf, float]:
        """Who polls, and how many seconds: until the end of its beat, or as it says itself."""
        if replica.beat is None:
            return replica, wait
        if not self._shared:
            return replace(replica, beat=None), wait
        return replica, beats.left(replica.beat, time.time())

    def of_changes(self, replica: ReplicaOf) -> Headers:
        """Headers of an answer that brings something."""
        return self._headers(PRIVATE, replica, over=False)

    def of_nothing(self, replica: ReplicaOf) -> Headers:
        """Of one that says, at the end of a poll, that there is nothing newer."""
        return self._headers(NO_STORE, replica, over=True)

    def _headers(self, alone: tuple[bytes, bytes], replica: ReplicaOf, *, over: bool) -> Headers:
        """Who may store it, and which beat the next poll belongs to; `alone`: its client only."""
        if not self._shared:
            return (alone,)
        following = beats.following(replica.beat, time.time(), over=over)
        told = (b"nearlite-beat", b"%d" % following)
        return (alone if replica.beat is None else _PUBLIC, told)


EDGE: Final = network.EDGE.lower().encode()
# When one asked, by the monotonic clock; where it stands once it has its answer, if that is known; EDGE.
Asked = tuple[float, Position | None, bytes | None]


class Seen:
    """The replicas that have asked for something lately, by their address."""

    def __init__(self) -> None:
        self._seen: dict[object, Asked] = {}
        self._many = _SEEN_MAX

    def note(self, address: object, to: Position | None = None, edge: bytes | None = None) -> None:
        """One has asked.

        Args:
          address: as ASGI has it.
          to: it is brought there, or further.
          edge: what it says in EDGE.
        """
        who = address if isinstance(address, tuple) else str(address)
        self._seen[who] = time.monotonic(), to, edge
        if len(self._seen) > self._many:
            self._many = max(_SEEN_MAX, 2 * self.count())

    def count(self) -> int:
        """How many there are."""
        return len(self.lately())

    def lately(self) -> Mapping[object, Asked]:
        """Who they are."""
        limit = time.monotonic() - SEEN_SECONDS
        self._seen = {who: asked for who, asked in self._seen.items() if asked[0] > limit}
        return self._seen


def leads_to(position: Position) -> tuple[bytes, bytes]:
    """The header that tells where an answer leads."""
    return (b"nearlite-position", str(position).encode())


def brings(answer: PageSet | None) -> Headers:
    """The header that tells how many transactions a page set brings, where that is known."""
    if answer is None or answer.transactions is None:
        return ()
    return ((b"nearlite-transactions", b"%d" % answer.transactions),)


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


def query_of(query: bytes) -> dict[str, str]:
    """The parameters of a request; the last of each name."""
    text = query.decode("latin-1")
    return {key: values[-1] for key, values in parse_qs(text).items()} if text else {}


@lru_cache(_KEPT)  # many ask the same
def poll_of(position: str, query: bytes) -> tuple[ReplicaOf, float]:
    """What ``GET changes/{position}?{query}`` asks, and for how many seconds it waits.

    Raises:
      HttpError: it is no good question.
    """
    given = query_of(query)
    replica = replica_of(position_of(position), given.get("hash"), given)
    beat = beats.number(given.get("beat"))
    return replace(replica, beat=beat), _seconds(given.get("wait"))


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
    page = int(text) if _PAGE.fullmatch(text) else 0
    if not 0 < page < 1 << 32:
        raise HttpError(400, "BAD_REQUEST", "from is the number of a page")
    return page


def _seconds(text: str | None) -> float:
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
