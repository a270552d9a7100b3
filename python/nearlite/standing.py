"""What the console is told of a server, as JSON: pure, out of numbers that others have gathered."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from nearlite.asked import Asked
from nearlite.last_errors import readable
from nearlite.network import LONGEST_REGION, UNNAMED
from nearlite.position import Position
from nearlite.tally import frames_between

LISTED: Final = 100
"""Replicas that are told of by name; of the others there are numbers."""


@dataclass(frozen=True, slots=True)
class UpstreamStanding:
    """How a replica that serves replicas stands to the server above it.

    Attributes:
      url: of that; no part of it is secret.
      position: the newest one of the primary that was heard of.
      age: seconds since this server was last known to equal the primary; None: not since it was opened.
      follows: a request for the next change is open.
      transactions, bytes, seconds: that are missing here, as far as was heard (nearlite.ahead.Lag).
      received: bytes of answers' bodies that page sets came in.
      error: what the last look at it failed with.
    """

    url: str
    position: Position | None
    age: float | None
    follows: bool
    transactions: int | None
    bytes: int | None
    seconds: float | None
    received: int
    error: str | None


@dataclass(frozen=True, slots=True)
class Size:
    """Of a database.

    Attributes:
      pages, page_size: of the newest commit; 0: it could not be looked at.
      file, wal: bytes of the two files.
      commit_ms: when the newest commit was made, milliseconds since 1970.
    """

    pages: int
    page_size: int
    file: int
    wal: int
    commit_ms: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How a server stands.

    Attributes:
      role: "primary", "edge" (SQL that only looks is run here), "replica" (it is run above).
      database: name of its file.
      region: where it stands, in its owner's words.
      version: of the program.
      position: of its newest commit.
      size: of the database.
      commits: that were seen since it was opened.
      sent: bytes of page sets that replicas were given.
      above: of a replica that serves replicas; None: it is a primary.
      seen, waiting: replicas that asked lately; those of them in a long poll, and where they stand.
      errors: the last ones (nearlite.last_errors.LastErrors).
      now_ms: milliseconds since 1970.
      clock: the monotonic one, which `seen` is by.
    """

    role: str
    database: str
    region: str | None
    version: str
    position: Position
    size: Size
    commits: int
    sent: int
    above: UpstreamStanding | None
    seen: Mapping[object, Asked]
    waiting: Mapping[object, Position]
    errors: list[dict[str, Any]]
    now_ms: int
    clock: float

    def encode(self) -> bytes:
        """As JSON: the same members for a primary and for a replica."""
        above, size = self.above, self.size
        return msgspec.json.encode(
            {
                "role": self.role,
                "database": readable(self.database),
                "region": None if self.region is None else readable(self.region),
                "version": self.version,
                "position": str(self.position),
                "pages": size.pages,
                "page_size": size.page_size,
                "database_bytes": size.file,
                "wal_bytes": size.wal,
                "commit_ms": size.commit_ms,
                "commits": self.commits,
                "sent_bytes": self.sent,
                "received_bytes": 0 if above is None else above.received,
                "upstream": None if above is None else _above(above),
                "replicas": self._replicas(),
                "errors": self.errors,
                "now_ms": self.now_ms,
            }
        )

    def _replicas(self) -> dict[str, Any]:
        here = self.position
        peers = [_Peer(who, when, to, edge) for who, (when, to, edge) in self.seen.items()]
        for peer in peers:
            if peer.who in self.waiting:
                peer.to, peer.waits = self.waiting[peer.who], True
        behind = [peer.to for peer in peers if peer.to is not None and peer.to != here]
        frames = [frames_between(to, here) or 0 for to in behind]
        return {
            "seen": len(peers),
            "waiting": len(self.waiting),
            "behind": len(behind),
            "frames_behind": max(frames, default=0),
            "listed": [
                peer.told(here, self.clock) for peer in heapq.nsmallest(LISTED, peers, _Peer.rank)
            ],
        }


class _Peer:
    """A replica that asked lately.

    Attributes:
      who: its address, as ASGI has it.
      when: it asked, by the monotonic clock.
      to: where it stands, as far as that is known.
      edge: what it says in the header EDGE; None: it serves nobody.
      waits: it is in a long poll.
    """

    __slots__ = ("edge", "to", "waits", "when", "who")

    def __init__(self, who: object, when: float, to: Position | None, edge: bytes | None) -> None:
        self.who = who
        self.when = when
        self.to = to
        self.edge = edge
        self.waits = False

    def rank(self) -> tuple[bool, bool, int, int, float]:
        """Those that serve others first, then those that are furthest behind, then who asked last."""
        at = self.to
        generation, frame = (0, 0) if at is None else (at.generation, at.frame)
        return self.edge is None, at is None, generation, frame, -self.when

    def told(self, here: Position, clock: float) -> dict[str, Any]:
        """As JSON has it; `here`: where the server stands."""
        return {
            "address": _address(self.who),
            "edge": self.edge is not None,
            "region": _region(self.edge),
            "position": None if self.to is None else str(self.to),
            "frames_behind": None if self.to is None else frames_between(self.to, here),
            "waiting": self.waits,
            "asked_seconds": round(max(0.0, clock - self.when), 1),
        }


def _above(above: UpstreamStanding) -> dict[str, Any]:
    return {
        "url": readable(above.url),
        "position": None if above.position is None else str(above.position),
        "lag_seconds": None if above.age is None else round(above.age, 3),
        "follows": above.follows,
        "transactions_behind": above.transactions,
        "bytes_behind": above.bytes,
        "seconds_behind": None if above.seconds is None else round(above.seconds, 3),
        "error": None if above.error is None else readable(above.error),
    }


def _address(who: object) -> str:
    """HOST:PORT."""
    if not isinstance(who, tuple) or len(who) != 2:
        return str(who)
    host, port = who
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _region(edge: bytes | None) -> str | None:
    if edge is None or edge == UNNAMED.encode():
        return None
    return edge[:LONGEST_REGION].decode("latin-1")
