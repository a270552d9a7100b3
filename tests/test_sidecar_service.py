"""A sidecar's primaries serve changes and nothing else: what runs SQL or writes is not there to be asked."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Client
from sidecars import Sidecar, primary, read
from stock import Stock
from test_background import eventually
from test_layers import GRAPH

import nearlite
from nearlite import wire
from nearlite.errors import Error

SQL = b'{"baton":null,"requests":[{"type":"execute","stmt":{"sql":"DELETE FROM t"}}]}'
# What a request's SQL would have to go through, and what writes. (session.py is imported, for the type of an error.)
RUNNERS = [
    "atonce",
    "applications",
    "dumping",
    "edge",
    "owned",
    "passing",
    "pipeline",
    "relaying",
    "routes",
]
RUNNERS += ["running", "server", "sockets", "writer", "group"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("primary")


@pytest.fixture(scope="module")
def one(folder: Path) -> Iterator[Sidecar]:
    with Stock(folder / "db") as app:
        app.execute("PRAGMA journal_mode=WAL")
        app.execute("CREATE TABLE t(i INTEGER PRIMARY KEY, b)")
        app.execute("INSERT INTO t(b) VALUES('first')")
        with primary(folder) as one:
            eventually(one.healthy)
            yield one


@pytest.fixture
def unchanged(one: Sidecar, folder: Path) -> Iterator[None]:
    """The database is as it was, whatever the test asked for.

    Its position may begin a new generation: a base for libSQL's replicas is where one begins.
    """
    state = wire.Status.decode(one.ask("/nl/v1/status")[1])
    yield
    after = wire.Status.decode(one.ask("/nl/v1/status")[1])
    assert (after.hash, after.pages) == (state.hash, state.pages)
    assert read(folder / "db", "SELECT * FROM t") == "[(1, 'first')]"


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("below", ["", "/db/db", "//db//db/"])
@pytest.mark.parametrize(
    "path",
    [
        *("/", "/v1/execute", "/v1/batch", "/v2/pipeline", "/v3/pipeline", "/v3/cursor"),
        *("/v3-protobuf/pipeline", "/v3-protobuf/cursor", "/nl/v1/sql", "/nl/v1/sql?v=2"),
    ],
)
def test_sql_is_refused_wherever_it_is_sent(one: Sidecar, below: str, path: str) -> None:
    status, body = one.ask(below + path, method="POST", body=SQL)
    assert status == 403
    assert wire.decode_error(body)[0] == "CHANGES_ONLY"


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "FROB"]
)
@pytest.mark.parametrize(
    "path",
    [
        *(
            "/dump",
            "/beta/listen?table=t",
            "/console/state",
            "/",
            "/v2",
            "/v3",
            "/openapi.json",
            "/v1/namespaces",
        ),
        *(
            "/nl/v1/status",
            "/nl/v1/snapshot",
            "/nl/v1/repair",
            "/nl/v1/changes/x",
            "/health",
            "/metrics",
        ),
        *(
            "/info",
            "/export/1",
            "/sync/1/1/2",
            "/sync/1/1/2/x",
            "/nl/v1/databases",
            "/version",
            "/db/",
            "/db/x/",
        ),
    ],
)
def test_no_method_on_no_path_changes_anything(one: Sidecar, method: str, path: str) -> None:
    status, _ = one.ask(path, method=method, body=SQL if method not in ("GET", "HEAD") else None)
    if method in ("PUT", "PATCH", "DELETE", "FROB") or (method == "POST" and "repair" not in path):
        assert status in (400, 403, 404, 405)  # 400: no method at all
    assert status != 500


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("path", ["/", "/db/db/", "/db/db/v3"])
def test_a_websocket_is_refused(one: Sidecar, path: str) -> None:
    key = base64.b64encode(b"0123456789abcdef").decode()
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: h",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: hrana3",
        f"Sec-WebSocket-Key: {key}",
    ]
    with socket.create_connection(("127.0.0.1", one.port), timeout=20) as asking:
        asking.sendall("\r\n".join([*lines, "", ""]).encode())
        assert asking.recv(65536).startswith(b"HTTP/1.1 403 ")


@pytest.mark.usefixtures("unchanged")
def test_what_waits_on_the_short_cut_is_a_poll_alone(one: Sidecar) -> None:
    """The same head twice on one connection: the second is answered where it is received."""
    client = Client(one.port)
    for _ in range(3):
        assert client.request("POST", "/v2/pipeline", SQL).status == 403
        assert client.request("POST", "/db/db/nl/v1/sql", SQL).status == 403
    client.close()


@pytest.mark.usefixtures("unchanged")
def test_our_own_clients_hear_why(one: Sidecar, tmp_path: Path) -> None:
    remote = nearlite.connect(one.url)
    with pytest.raises(Error, match="Only changes are served here: no SQL is run"):
        remote.execute("INSERT INTO t(b) VALUES('mine')")
    remote.close()
    embedded = nearlite.connect(tmp_path / "replica", sync_url=one.url)
    assert embedded.execute("SELECT b FROM t").fetchall() == [("first",)]
    with pytest.raises(Error, match="Only changes are served here: no SQL is run"):
        embedded.execute("INSERT INTO t(b) VALUES('mine')")
    assert embedded.execute("SELECT b FROM t").fetchall() == [("first",)]
    embedded.close()


@pytest.mark.usefixtures("unchanged")
def test_libsqls_replicas_can_pull_and_not_push(one: Sidecar) -> None:
    status, body = one.ask("/info")
    assert status == 200
    generation = int(body.partition(b":")[2].strip(b" }"))
    status, frames = one.ask(f"/sync/{generation}/1/2")
    assert status in (200, 400)  # frames, or none in it so far
    status, base = one.ask(f"/export/{generation}")
    assert status == 200
    assert base.startswith(b"SQLite format 3\0")
    status, body = one.ask(f"/sync/{generation}/1/2", method="POST", body=frames)
    assert status == 405


def test_what_runs_sql_is_not_even_imported() -> None:
    """By the service, and by whatever that imports."""
    seen: set[str] = set()
    found = ["nearlite.change_service", "nearlite.capture", "nearlite.sidecar", "nearlite.members"]
    while found:
        name = found.pop()
        if name not in seen:
            seen.add(name)
            found += GRAPH[name]
    assert len(seen) > 50
    assert [name for name in RUNNERS if f"nearlite.{name}" in seen] == []


def test_the_released_libsql_is_a_replica_of_it(one: Sidecar, tmp_path: Path) -> None:
    """PyPI's libsql, as it is; what it writes is refused."""
    commands = [
        ["open"],
        ["sync"],
        ["read", "SELECT * FROM t"],
        ["write", "INSERT INTO t(b) VALUES('mine')"],
        ["close"],
    ]
    program = Path(__file__).with_name("released_libsql_replica.py")
    answer = subprocess.run(
        [sys.executable, str(program), f"{one.url}/db/db", "none", str(tmp_path / "local.db")],
        input="".join(json.dumps(command) + "\n" for command in commands),
        capture_output=True,
        text=True,
        timeout=60,
    )
    opened, synced, found, written, _ = map(json.loads, answer.stdout.splitlines())
    assert (opened, synced) == ({"answer": None}, {"answer": None})
    assert found == {"answer": [[1, "first"]]}
    assert "Only changes are served here" in written["error"]
    assert read(one.folder / "db", "SELECT * FROM t") == "[(1, 'first')]"
