"""A thousand databases behind one address: reads in turn from all of them, beside reads from one of them.

Bad would be: threads or timers for each, a connection that keeps what it will not need, a short cut that is taken
for one database only, an opening that reads the database.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
from load import load, pipeline
from pairs import Pairs, Sample
from peers import Server, free_port, serving

from nearlite.catalog import Catalog
from nearlite.configs import Config
from nearlite.making import Dump, loaded

Open = Iterator[Callable[[], Sample]]
DATABASES = 1000
ROWS = 100
CONNECTIONS = 16
SECONDS = 4
_OPENED = 200  # databases whose opening is timed


def folder_of(folder: Path) -> Path:
    """A folder of databases with a table each."""
    dump = (
        "BEGIN; CREATE TABLE note(id INTEGER PRIMARY KEY, text TEXT NOT NULL);"
        "INSERT INTO note(text) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c "
        f"WHERE i < {ROWS}) SELECT 'note number ' || i FROM c; COMMIT;"
    ).encode()
    with closing(Catalog(folder / "dbs")) as catalog:
        for number in range(DATABASES):
            catalog.create(
                f"d{number}", Config(), lambda path: loaded(path, Dump(lambda: iter([dump])))
            )
        return catalog.folder


@contextmanager
def server_of(folder: Path) -> Iterator[Server]:
    """As users run it."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "nearlite", "serve", "--data-dir", str(folder_of(folder))),
        *("--listen", f"127.0.0.1:{port}", "--max-open", str(DATABASES), "--close-idle", "3600"),
    ]
    with serving(command, port, folder / "serve.log") as server:
        yield server


def ask(link: http.client.HTTPConnection, number: int, sql: str) -> None:
    """One request; its answer has to be one."""
    link.request("POST", f"/db/d{number}/v2/pipeline", pipeline(sql))
    answer = link.getresponse()
    body = answer.read()
    assert answer.status == 200, body
    assert json.loads(body)["results"][0]["type"] == "ok", body


@contextmanager
def reads(server: Server, databases: int) -> Open:
    """Point selects by primary key, from each database in turn: requests per second."""
    select = "SELECT id, text FROM note WHERE id = ?"
    paths = [f"/db/d{number}/v2/pipeline" for number in range(databases)]
    bodies = [pipeline(select, 1 + number * 97 % ROWS) for number in range(databases)]

    def sample() -> Sample:
        return load(
            server.url, bodies, connections=CONNECTIONS, seconds=SECONDS, paths=paths
        ).per_second

    yield sample


@contextmanager
def resident(server: Server) -> Open:
    """Bytes of the server while all are open and are being read in turn."""
    with reads(server, DATABASES) as run:

        def sample() -> Sample:
            run()
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            return int(status.partition("VmRSS:")[2].split()[0]) * 1024.0

        yield sample


@contextmanager
def opening(server: Server) -> Open:
    """Seconds of the first request to a database that is not open, over that of the next one."""
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    numbers = iter(range(DATABASES))

    def sample() -> Sample:
        times = []
        for number in (next(numbers) for _ in range(_OPENED // 4)):
            began = time.perf_counter()
            ask(link, number, "SELECT 1")
            opened = time.perf_counter()
            ask(link, number, "SELECT 1")
            times.append(opened - began - (time.perf_counter() - opened))
        return sorted(times)[len(times) // 2]

    yield sample
    link.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_of(tmp_path_factory.mktemp("databases")) as found:
        yield found


def bench_databases_open(pairs: Pairs, server: Server) -> None:
    pairs("databases_open", ours=partial(opening, server), rounds=3)


def bench_databases_reads(pairs: Pairs, server: Server) -> None:
    pairs(
        "databases_reads",
        ours=partial(reads, server, DATABASES),
        peer=partial(reads, server, 1),
        rounds=5,
    )


def bench_databases_memory(pairs: Pairs, server: Server) -> None:
    pairs("databases_memory", ours=partial(resident, server), rounds=1)
