"""Two systems of primary and embedded replica behind one shape: both do literally the same work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import Server, free_port, serving, sqld


@contextmanager
def nearlite_serve(
    folder: Path, *, durability: str = "normal", metrics: bool = False
) -> Iterator[Server]:
    """Our primary on `folder`/data.db, as users run it: a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        *(sys.executable, "-m", "nearlite", "serve", str(folder / "data.db")),
        *("--listen", f"127.0.0.1:{port}", "--durability", durability),
        *(("--metrics",) if metrics else ()),
    ]
    with serving(command, port, folder / "serve.log") as server:
        yield server


@contextmanager
def nearlite_below(folder: Path, upstream: str) -> Iterator[Server]:
    """A replica of `upstream` that serves replicas: a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        *(sys.executable, "-m", "nearlite", "serve", str(folder / "replica.db")),
        *("--listen", f"127.0.0.1:{port}", "--upstream", upstream),
    ]
    with serving(command, port, folder / "serve.log") as server:
        yield server


@contextmanager
def nearlite_proxy(folder: Path, upstream: str, *options: str) -> Iterator[Server]:
    """An edge of `upstream`: a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        *(sys.executable, "-m", "nearlite", "proxy", "--path", str(folder / "edge.db")),
        *("--listen", f"127.0.0.1:{port}", "--upstream", upstream, *options),
    ]
    with serving(command, port, folder / "proxy.log") as server:
        yield server


@dataclass(frozen=True, slots=True)
class System:
    """A primary, and how to open an embedded replica of it.

    Attributes:
      name: also the folder's name.
      client: module with connect(path, sync_url=..., isolation_level=...).
      serve: runs the primary in a folder.
    """

    name: str
    client: str
    serve: Callable[[Path], AbstractContextManager[Server]]

    @contextmanager
    def replica(self, path: Path | str, url: str, **options: object) -> Iterator[Any]:
        """A connection on the replica file, closed at the end of the block."""
        # Imported here: with --sides=ours the peer need not be installed, and the reverse.
        client: Any = __import__(self.client)
        with closing(client.connect(str(path), sync_url=url, **options)) as connection:
            yield connection


OURS = System("nearlite", "nearlite", nearlite_serve)
LIBSQL = System("libsql", "libsql_experimental", sqld)
LIBSQL_ON_US = System("libsql-on-nearlite", "libsql", nearlite_serve)
"""The released libSQL client, as a replica of ours."""
