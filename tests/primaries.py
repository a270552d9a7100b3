"""A primary behind HTTP in the test process, and connections to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from serving import serving

import nearlite
from nearlite.applications import PrimaryApp
from nearlite.primary import Primary
from nearlite.server import App
from nearlite.tokens import authority


class Counting(PrimaryApp):
    """Notes the path of every request to the database."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            self.__dict__["seen"].append(scope["path"])
        await super().__call__(scope, receive, send)

    def shortcut(self, scope: Any) -> Any:
        short = super().shortcut(scope)
        path = scope["path"]

        def noted(*args: Any) -> bool:
            seen = self.__dict__["seen"]
            target = args[0].decode().partition("?")[0]  # of a long poll it is another each time
            seen.append(target or path)
            taken = short(*args) if short is not None else False
            if not taken:
                seen.pop()
            return taken

        return noted if short is not None else None


class Served:
    """A served database.

    Attributes:
      url: of the database.
      path: its file.
      seen: paths of the requests so far.
      app: what answers them.
    """

    def __init__(
        self, folder: Path, port: int, stack: ExitStack, seen: list[str], app: App
    ) -> None:
        self.app = app
        self.seen = seen
        self.url = f"http://127.0.0.1:{port}"
        self.path = folder / "primary.db"
        self._folder = folder
        self._stack = stack

    def replica(self, name: str = "replica.db", **options: Any) -> Any:
        """A connection to an embedded replica, closed at the end."""
        return self._closed(nearlite.connect(self._folder / name, sync_url=self.url, **options))

    def remote(self, **options: Any) -> Any:
        """A purely remote connection, closed at the end."""
        return self._closed(nearlite.connect(self.url, **options))

    def _closed(self, connection: Any) -> Any:
        self._stack.callback(connection.close)
        return connection


@contextmanager
def primary(folder: Path, *, auth_token: str | None = None, **options: Any) -> Iterator[Served]:
    """Serve a new database in `folder` until the block ends."""
    path = folder / "primary.db"
    options["authority"] = authority(auth_token)
    app = Counting(path, lambda: Primary.open(path, durability="normal"), **options)
    seen: list[str] = []
    app.__dict__["seen"] = seen
    with serving(app) as port, ExitStack() as stack:
        yield Served(folder, port, stack, seen, app)
