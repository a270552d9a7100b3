"""What a server counts, in plain numbers: a request costs some hundred nanoseconds, and nothing where nobody counts.

Times are counted in powers of two: microseconds' `bit_length` is the number of their bucket.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from nearlite.hooks import Hooks, Request

BUCKETS: Final = 26
"""Of times: the last one is of 33 seconds and more."""
SIZES: Final = 12
"""Of groups of writes: 1, 2, 4 ... and more than 1,024 in the last one."""
_OTHER: Final = "other"
_DATABASE: Final = "/db/"
_ROUTES: Final = frozenset(
    f"/{path}"
    for path in (
        *("health", "version", "v1", "v2", "v3", "openapi.json", "metrics", "dump", "beta/listen"),
        *("v1/execute", "v1/batch", "v2/pipeline", "v3/pipeline", "v3/cursor", "info"),
        *("v3-protobuf/pipeline", "v3-protobuf/cursor"),
        *(
            "console/state",
            "nl/v1/sql",
            "nl/v1/status",
            "nl/v1/authorized",
            "nl/v1/snapshot",
            "nl/v1/repair",
        ),
    )
)
_PLACES: Final = (
    (re.compile(r"/nl/v1/changes/[^/]*"), "/nl/v1/changes/{position}"),
    (re.compile(r"/export/[^/]*"), "/export/{generation}"),
    (re.compile(r"/sync/.*"), "/sync/{generation}/{start}/{end}"),
)

_TRACEPARENT: Final = re.compile(rb"\r\ntraceparent:[ \t]*([!-~]*)[ \t]*\r\n", re.IGNORECASE)


def route_of(path: str) -> str:
    """The name of a path's route; there are not many, whatever clients ask for."""
    if path.startswith(_DATABASE):  # of many: it is a route of each
        path = path[path.find("/", len(_DATABASE)) :]
    if path in _ROUTES:
        return path
    return next((name for place, name in _PLACES if place.fullmatch(path)), _OTHER)


class Meter:
    """Requests of one route.

    Attributes:
      route: its name.
      statuses: answers by status.
      times: how long they took, by bucket.
      microseconds: all of them together.
      left: requests whose clients left before they had the answer.
    """

    __slots__ = ("left", "microseconds", "route", "statuses", "times")

    def __init__(self, route: str = _OTHER) -> None:
        self.route = route
        self.statuses: dict[int, int] = {200: 0}
        self.times = [0] * BUCKETS
        self.microseconds = 0
        self.left = 0

    def done(self, status: int, nanoseconds: int) -> None:
        """One was answered."""
        statuses = self.statuses
        if status in statuses:
            statuses[status] += 1
        else:
            statuses[status] = 1
        microseconds = nanoseconds // 1000
        self.microseconds += microseconds
        bucket = microseconds.bit_length()
        self.times[bucket if bucket < BUCKETS else BUCKETS - 1] += 1


class Meters:
    """What one server counts of its connections and requests. Event loop thread only.

    Attributes:
      routes: by name.
      errors: error bodies by code.
      connections: open ones.
      accepted: connections since it began.
      sockets: those of them that have become WebSockets.
      received, sent: bytes of requests and answers, before TLS.
      hooks: are told of each request.
    """

    def __init__(self, hooks: Hooks | None = None) -> None:
        self.hooks = hooks
        self.routes: dict[str, Meter] = {}
        self.errors: Counter[str] = Counter()
        self.connections = 0
        self.accepted = 0
        self.sockets = 0
        self.received = 0
        self.sent = 0

    def meter(self, path: str) -> Meter:
        """Of the route of a path."""
        name = route_of(path)
        found = self.routes.get(name)
        if found is None:
            found = self.routes[name] = Meter(name)
        return found


def request_of(
    scope: Mapping[str, Any] | None, head: bytes | None, route: str, status: int, nanoseconds: int
) -> Request:
    """What hooks are told of a request: by its scope, or by its head where there was no need of one."""
    seconds = nanoseconds / 1e9
    began = time.time() - seconds
    if scope is None:
        method, _, rest = (head or b"").partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        traced = _TRACEPARENT.search(head or b"")
        known = traced[1].decode("latin-1") if traced else ""
        return Request(method.decode("latin-1"), path, route, status, began, seconds, "", known)
    parent = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
    client = scope.get("client")
    address = f"{client[0]}:{client[1]}" if client else ""
    return Request(
        scope["method"],
        scope["path"],
        route,
        status,
        began,
        seconds,
        address,
        parent.decode("latin-1"),
    )


class Counts:
    """What one database's server has done. Each number has one thread that changes it.

    Attributes:
      grouped: groups of writes by size, committed in the writing thread.
      at_once: the same on the event loop.
      rolls: generations that were ended.
      roll_seconds: how long that held up those who write, in all.
      timeouts: transactions that were rolled back because they were open too long.
      hooks: are told of commits and rolls.
    """

    def __init__(self, hooks: Hooks | None = None) -> None:
        self.hooks = hooks
        self.grouped = [0] * SIZES
        self.at_once = [0] * SIZES
        self.rolls = 0
        self.roll_seconds = 0.0
        self.timeouts = 0
        self._lock = threading.Lock()
        self._failures: Counter[str] = Counter()

    def rolled(self, seconds: float) -> None:
        """A generation was ended, which took so long. In the thread of rolls."""
        self.rolls += 1
        self.roll_seconds += seconds
        if self.hooks is not None:
            self.hooks.roll(seconds)

    def add(self, other: Counts) -> None:
        """Count what another one has counted; nobody changes this one meanwhile."""
        self.grouped = [a + b for a, b in zip(self.grouped, other.grouped, strict=True)]
        self.at_once = [a + b for a, b in zip(self.at_once, other.at_once, strict=True)]
        self.rolls += other.rolls
        self.roll_seconds += other.roll_seconds
        self.timeouts += other.timeouts
        self._failures.update(other.failures)

    def failed(self, code: str) -> None:
        """A statement failed with that code. Any thread."""
        with self._lock:
            self._failures[code] += 1

    @property
    def failures(self) -> dict[str, int]:
        """Statements that failed, by code."""
        with self._lock:
            return dict(self._failures)


def size_bucket(size: int) -> int:
    """The bucket of a group: 0 is 1, 1 is 2, 2 is up to 4, and so on."""
    return min((size - 1).bit_length(), SIZES - 1)
