"""What a program can be told of what its server does: requests, commits, rolls. For traces, and for metrics of its own."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

_numbers: Final = itertools.count(1)
log = logging.getLogger("nearlite.access")


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was answered.

    Attributes:
      method: of HTTP.
      path: as it was asked for, without its query.
      route: the path with its parts named (``/export/{generation}``); there are not many.
      status: of the answer; 0: its client left before.
      began: Unix time, seconds.
      seconds: until the answer was handed to the system.
      client: address, or "".
      traceparent: the header of that name (W3C Trace Context), or "".
      number: of the request in this process.
    """

    method: str
    path: str
    route: str
    status: int
    began: float
    seconds: float
    client: str
    traceparent: str = ""
    number: int = field(default_factory=lambda: next(_numbers))


class Hooks:
    """Inherit from it and pass it as ``nearlite.asgi(hooks=...)``. What it raises is logged, and changes nothing."""

    def request(self, request: Request) -> None:
        """A request was answered. On the event loop: be quick."""

    def commit(self, position: str) -> None:
        """Something was committed; `position` as text. On the thread that committed: be quick, too."""

    def roll(self, seconds: float) -> None:
        """A generation was ended, which held up writes for so long. In the thread of rolls."""


class Lines(Hooks):
    """Logs requests, one line each, without what they carry.

    Args:
      every: all of them; otherwise only slow ones.
      slow: seconds from which a request is slow; None: none is.
    """

    def __init__(self, *, every: bool, slow: float | None = None) -> None:
        self._every = every
        self._slow = slow

    def request(self, request: Request) -> None:
        """See `Hooks`."""
        slow = self._slow is not None and request.seconds >= self._slow
        if not slow and not self._every:
            return
        log.log(
            logging.WARNING if slow else logging.INFO,
            "%s%s %s %d in %.6f s",
            "slow: " if slow else "",
            request.method,
            # As it was sent, roughly: what it stands for may be the end of a line.
            request.path if request.path.isprintable() else quote(request.path),
            request.status,
            request.seconds,
            extra={
                "fields": {
                    "request": request.number,
                    "method": request.method,
                    "path": request.path,
                    "route": request.route,
                    "status": request.status,
                    "seconds": round(request.seconds, 6),
                    "client": request.client,
                }
            },
        )


class Guarded(Hooks):
    """Calls hooks and logs what they raise."""

    def __init__(self, *hooks: Hooks) -> None:
        self._hooks = hooks

    def request(self, request: Request) -> None:
        """See `Hooks`."""
        for hooks in self._hooks:
            try:
                hooks.request(request)
            except Exception:
                log.exception("a hook failed")

    def commit(self, position: str) -> None:
        """See `Hooks`."""
        for hooks in self._hooks:
            try:
                hooks.commit(position)
            except Exception:
                log.exception("a hook failed")

    def roll(self, seconds: float) -> None:
        """See `Hooks`."""
        for hooks in self._hooks:
            try:
                hooks.roll(seconds)
            except Exception:
                log.exception("a hook failed")
