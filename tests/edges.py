"""Primaries and edges for tests, and what an edge asks of its upstream."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving import Client, serving

import nearlite
from nearlite import hooks, serve
from nearlite.applications import RelayApp
from nearlite.relay import Relay


class Asked(hooks.Hooks):
    """Remembers the requests that a server has answered: what an edge asked of its upstream."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, int]] = []

    def request(self, request: hooks.Request) -> None:
        self.requests.append((request.path, request.status))

    def sql(self) -> list[tuple[str, int]]:
        """Those that run SQL, since the last call."""
        found, self.requests = self.requests, []
        return [(path, status) for path, status in found if "/sql" in path or "pipeline" in path]


@dataclass
class Edge:
    """One edge."""

    path: Path
    port: int
    relay: Relay

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass
class Site:
    """A primary that can be stopped and started at one address, and edges below it."""

    folder: Path
    stack: ExitStack
    asked: Asked = field(default_factory=Asked)
    listening: socket.socket = field(default_factory=lambda: serve.bind("127.0.0.1", 0))
    wrap: Callable[[Any], Any] = lambda app: app
    """What stands before the primary."""
    _primary: ExitStack = field(default_factory=ExitStack)

    @property
    def path(self) -> Path:
        return self.folder / "primary.db"

    @property
    def port(self) -> int:
        port: int = self.listening.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, path: Path | None = None, **options: Any) -> None:
        app = self.wrap(nearlite.asgi(path or self.path, hooks=self.asked, **options))
        # A socket of its own each time: whoever connects while nobody serves is refused.
        address = self.listening.getsockname()
        self.listening.close()
        self.listening = serve.bind(*address)
        self._primary.enter_context(serving(app, self.listening))

    def stop(self) -> None:
        self._primary.close()
        address = self.listening.getsockname()
        self.listening.close()
        self.listening = serve.bind(*address)  # bound, and nobody listens: refused

    def edge(self, name: str = "edge.db", above: str | None = None, **options: Any) -> Edge:
        """Its options: those of Relay.open, and `authority`, `max_staleness`, `region`, `limits`."""
        path = self.folder / name
        own = {
            key: options.pop(key)
            for key in ("authority", "max_staleness", "region", "limits", "edge")
            if key in options
        }
        options.setdefault("sync_interval", None)
        made: list[Relay] = []

        def opened() -> Relay:
            made.append(Relay.open(path, above or self.url, **options))
            return made[-1]

        app = RelayApp(path, opened, **{"edge": True, **own})
        port = self.stack.enter_context(serving(app))
        Client(port).request("GET", "/nl/v1/status")  # opens it
        return Edge(path, port, made[-1])


@contextmanager
def site(
    folder: Path, wrap: Callable[[Any], Any] = lambda app: app, **options: Any
) -> Iterator[Site]:
    with ExitStack() as stack:
        made = Site(folder, stack, wrap=wrap)
        stack.callback(lambda: made.listening.close())  # noqa: PLW0108 - whichever it is by then
        stack.callback(made._primary.close)
        made.start(**options)
        yield made
