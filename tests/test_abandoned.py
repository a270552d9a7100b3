"""Clients that leave a transaction behind: those that never had its baton hold up nobody."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Client, app_of, execute, outcome, serving

from nearlite.limits import Limits
from nearlite.server import App

BEGIN = [execute("BEGIN IMMEDIATE"), execute("INSERT INTO t VALUES (1)")]
BEGIN_AT_ONCE = {
    "type": "batch",
    "batch": {
        "steps": [
            {"stmt": {"sql": "BEGIN IMMEDIATE"}},
            {"stmt": {"sql": "INSERT INTO t VALUES (1)"}, "condition": {"type": "ok", "step": 0}},
        ]
    },
}
PATHS = ["/v3/pipeline", "/v3/cursor", "/nl/v1/sql"]


def patient(path: Path, **limits: Any) -> App:
    """An application that leaves transactions alone for as long as a test can last."""
    long = {"transaction_seconds": 1000.0, "contended_seconds": 1000.0, "wait_seconds": 8.0}
    return app_of(path, durability="normal", limits=Limits(**{**long, **limits}))


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    return patient(tmp_path_factory.mktemp("abandoned") / "data.db")


@pytest.fixture(scope="module")
def port(app: App) -> Iterator[int]:
    with serving(app) as port:
        yield port


@contextlib.contextmanager
def holding(app: App) -> Iterator[None]:
    """The server sees nothing of what is done inside the block until it ends."""
    assert app._routes._executor is not None
    entered, left = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        left.wait(20)

    app._routes._executor._loop.call_soon_threadsafe(hold)
    assert entered.wait(20)
    try:
        yield
    finally:
        left.set()


@pytest.fixture
def client(port: int) -> Iterator[Client]:
    with contextlib.closing(Client(port)) as client:
        client.run("DROP TABLE IF EXISTS t", "CREATE TABLE t(a)")
        yield client


def message(
    client: Client,
    *requests: Any,
    baton: str | None = None,
    path: str = PATHS[0],
    head: bytes = b"",
) -> bytes:
    """A whole HTTP request."""
    if path == "/nl/v1/sql":
        position = client.request("GET", "/nl/v1/status").headers["nearlite-position"]
        head += b"nearlite-position: %b\r\n" % position.encode()
    body: Any = {"baton": baton, "requests": requests}
    if path == "/v3/cursor":
        body = {"baton": baton, "batch": requests[0]["batch"]}
    text = json.dumps(body).encode()
    return b"POST %b HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n%b" % (
        *(path.encode(), head, len(text), text),
    )


def read_answer(raw: socket.socket) -> Any:
    """One answer, no byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = raw.recv(1)
        assert byte, head
        head += byte
    (size,) = [
        int(line.split(b":")[1])
        for line in head.lower().splitlines()
        if line.startswith(b"content-length")
    ]
    return json.loads(raw.recv(size, socket.MSG_WAITALL))


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def assert_free(client: Client) -> None:
    """Nobody has the turn to write, and nothing of what was begun is left."""
    (result,) = client.run("INSERT INTO t VALUES (2)")
    assert result.get("affected_row_count") == 1, result
    assert client.rows("SELECT a FROM t") == [[2]]
    client.run("DELETE FROM t")


# ---------------------------------------------------------------- lost


@pytest.mark.parametrize("head", [b"", b"connection: close\r\n"], ids=["kept-alive", "closing"])
@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_left_before_its_first_answer_holds_up_nobody(
    app: App, client: Client, port: int, path: str, head: bytes
) -> None:
    for _ in range(5):  # whether the server sees the end before or after it answers is chance
        request = message(client, BEGIN_AT_ONCE, path=path, head=head)
        raw = connect(port)
        with holding(app):
            raw.sendall(request)
            raw.close()
        assert_free(client)


def test_a_client_that_left_in_a_later_request_holds_up_nobody(
    app: App, client: Client, port: int
) -> None:
    for _ in range(5):
        raw = connect(port)
        raw.sendall(message(client, *BEGIN))
        baton = read_answer(raw)["baton"]
        with holding(app):
            raw.sendall(message(client, execute("INSERT INTO t VALUES (3)"), baton=baton))
            raw.close()
        assert_free(client)
        reply = client.request(
            "POST", "/v3/pipeline", json.dumps({"baton": baton, "requests": []}).encode()
        )
        assert reply.status == 400  # of a stream that is gone, or has gone on


def test_a_client_that_left_with_settings_on_its_stream_gives_the_connection_back(
    tmp_path: Path,
) -> None:
    app = patient(tmp_path / "data.db", max_transactions=1)
    with serving(app) as port:
        client = Client(port)
        with connect(port) as raw, holding(app):
            raw.sendall(message(client, execute("CREATE TEMP TABLE mine(a)")))
            raw.close()
        result = refused = None
        for _ in range(1000):  # the end of a connection is noticed in the server's own time
            (result,) = client.run("PRAGMA recursive_triggers = 1")
            refused = result.get("code")
            if refused is None:
                break
        assert refused is None, result


# ---------------------------------------------------------------- not lost


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("path", ["/v3/pipeline", "/v3/cursor"])
def test_a_client_that_has_its_answer_may_go_on_over_another_connection(
    client: Client, port: int, path: str, reset: bool
) -> None:
    for _ in range(5):
        raw = connect(port)
        if reset:  # close() sends RST, which acknowledges nothing
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.sendall(message(client, BEGIN_AT_ONCE, path=path, head=b"connection: close\r\n"))
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
        raw.close()
        begin = answer.index(b'"baton":"') + 9
        baton = answer[begin : answer.index(b'"', begin)].decode()
        done = client.pipeline(execute("COMMIT"), {"type": "close"}, baton=baton)
        assert [result["type"] for result in done["results"]] == ["ok", "ok"]
        assert client.rows("SELECT a FROM t") == [[1]]
        client.run("DELETE FROM t")


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
def test_a_kept_alive_connection_may_be_closed_between_two_requests(
    client: Client, port: int, reset: bool
) -> None:
    for _ in range(5):
        raw = connect(port)
        if reset:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.sendall(message(client, *BEGIN))
        baton = read_answer(raw)["baton"]
        raw.sendall(message(client, execute("INSERT INTO t VALUES (2)"), baton=baton))
        baton = read_answer(raw)["baton"]
        raw.close()
        Client(port).request("GET", "/health")  # the server has turned round since
        done = client.pipeline(execute("COMMIT"), {"type": "close"}, baton=baton)
        assert [result["type"] for result in done["results"]] == ["ok", "ok"]
        assert client.rows("SELECT a FROM t") == [[1], [2]]
        client.run("DELETE FROM t")


def test_of_pipelined_requests_only_those_without_an_answer_are_ended(tmp_path: Path) -> None:
    with serving(patient(tmp_path / "data.db", max_transactions=2)) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a)")
        large = execute("SELECT hex(zeroblob(8000000))")  # more than both kernels' buffers hold
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", port))
        raw.sendall(message(client, *BEGIN) + message(client, execute("BEGIN"), large))
        first = read_answer(raw)
        raw.recv(1)  # the second has begun
        raw.close()
        for _ in range(1000):  # one connection is the first's, the other is free again
            answer = client.pipeline(execute("BEGIN"), {"type": "close"})
            if outcome(answer["results"][0]).get("code") != "TRANSACTION_BUSY":
                break
        assert answer["results"][0]["type"] == "ok"
        done = client.pipeline(execute("COMMIT"), {"type": "close"}, baton=first["baton"])
        assert done["results"][0]["type"] == "ok"
        assert client.rows("SELECT a FROM t") == [[1]]
