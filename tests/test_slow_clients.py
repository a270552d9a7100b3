"""Clients that send or take slowly, or nothing at all: they are cut off, and what they held is let go."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Client, app_of, batch, execute, serving
from test_connection import Answers, request

import nearlite
from nearlite.limits import Limits
from nearlite.server import App

PATIENCE = 0.4  # seconds
LONG = 20.0  # seconds; only a test that fails takes so long
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


LIMITS = Limits(client_seconds=PATIENCE, min_bytes_per_second=100_000, max_connections=40)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    return app_of(tmp_path_factory.mktemp("slow") / "data.db", durability="normal", limits=LIMITS)


@pytest.fixture(scope="module")
def port(app: App) -> Iterator[int]:
    with serving(app) as port:
        client = Client(port)
        client.run("CREATE TABLE t(b)", "INSERT INTO t VALUES (randomblob(40000000))")
        yield port


@pytest.fixture(scope="module")
def edge_port(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of an edge of it, with the same limits."""
    path = tmp_path_factory.mktemp("slow") / "edge.db"
    url = f"http://127.0.0.1:{port}"
    with serving(
        app_of(path, upstream=url, edge=True, sync_interval=3600.0, limits=LIMITS)
    ) as edge:
        yield edge


@pytest.fixture(params=["primary", "edge"])
def either_port(request: pytest.FixtureRequest, port: int) -> int:
    found: int = port if request.param == "primary" else request.getfixturevalue("edge_port")
    return found


@pytest.fixture
def raw(either_port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", either_port), timeout=LONG) as raw:
        yield raw


def trickle(raw: socket.socket, data: bytes, every: float = PATIENCE / 8) -> float:
    """Send bytes one at a time until the server answers or ends the connection; seconds until then."""
    began = time.monotonic()
    for at in range(len(data)):
        try:
            raw.sendall(data[at : at + 1])
        except OSError:
            return time.monotonic() - began
        if select.select([raw], [], [], every)[0]:
            return time.monotonic() - began
    raise AssertionError("the server waited for all of it")


def is_over(raw: socket.socket) -> bool:
    """The server has ended it, without another byte."""
    try:
        return raw.recv(1) == b""
    except ConnectionError:
        return True


# ---------------------------------------------------------------- heads


def test_a_head_that_comes_byte_by_byte_is_cut_off(raw: socket.socket) -> None:
    assert trickle(raw, b"GET / HTTP/1.1\r\n" + b"X-Y: z\r\n" * 100) < LONG / 2
    assert is_over(raw)


@pytest.mark.parametrize("known", [True, False])
def test_so_is_the_head_of_a_further_request(raw: socket.socket, known: bool) -> None:
    answers = Answers(raw)
    for _ in range(3):
        raw.sendall(request(execute("SELECT 1")) if known else GET)
        status, fields = answers.head()
        assert status == 200
        if known:
            answers.body(int(fields["content-length"]))
    assert trickle(raw, b"GET / HTTP/1.1\r\n" + b"X-Y: z\r\n" * 100) < LONG / 2
    assert is_over(raw)


def test_empty_lines_are_no_request(raw: socket.socket) -> None:
    raw.sendall(GET)
    assert Answers(raw).head()[0] == 200
    assert trickle(raw, b"\r\n" * 500) < LONG / 2
    assert is_over(raw)


def test_a_connection_that_says_nothing_is_cut_off(raw: socket.socket) -> None:
    began = time.monotonic()
    assert is_over(raw)
    assert time.monotonic() - began < LONG / 2


def test_requests_that_follow_each_other_slowly_are_answered(raw: socket.socket) -> None:
    """The time counts from a head's first byte: a connection may live for longer than that."""
    answers = Answers(raw)
    until = time.monotonic() + 3 * PATIENCE
    while time.monotonic() < until:
        raw.sendall(GET[:9])
        assert not select.select([raw], [], [], PATIENCE / 4)[0]
        raw.sendall(GET[9:])
        assert answers.head()[0] == 200


def test_half_open_connections_give_their_room_back(either_port: int) -> None:
    port = either_port
    with contextlib.ExitStack() as stack:
        for _ in range(60):  # more than there is room for
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=LONG))
            raw.sendall(b"GET / HT")
        refused = Client(port)
        with contextlib.suppress(ConnectionError):
            reply = refused.request("GET", "/health")
            assert reply.json["code"] == "TOO_MANY_CONNECTIONS"
        limit = time.monotonic() + LONG
        while True:
            with contextlib.suppress(ConnectionError):
                if Client(port).request("GET", "/health").status == 200:
                    break
            assert time.monotonic() < limit


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize("path", [b"/v3/pipeline", b"/v3/cursor", b"/v1/execute", b"/nl/v1/repair"])
def test_a_body_that_comes_byte_by_byte_is_cut_off(raw: socket.socket, path: bytes) -> None:
    """Though each piece of it comes in time."""
    raw.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" % path)
    assert trickle(raw, b" " * 60_000) < LONG / 2
    answers = Answers(raw)
    status, body = answers.next()
    assert (status, body["code"]) == (408, "REQUEST_TIMEOUT")
    assert is_over(raw)


def test_a_body_that_never_comes_is_not_waited_for(raw: socket.socket) -> None:
    raw.sendall(b"POST /v3/pipeline HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n")
    assert Answers(raw).next()[1]["code"] == "REQUEST_TIMEOUT"


def test_so_is_a_body_that_nobody_wants(raw: socket.socket) -> None:
    raw.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n")
    assert Answers(raw).next()[0] in (404, 405)
    assert trickle(raw, b" " * 60_000) < LONG / 2
    assert is_over(raw)


def test_a_large_body_at_a_good_rate_takes_its_time(raw: socket.socket) -> None:
    body = json.dumps({"requests": [], "more": "x" * 400_000}).encode()
    head = b"POST /v3/pipeline HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    raw.sendall(head)
    began = time.monotonic()
    while body:
        raw.sendall(body[:20_000])
        body = body[20_000:]
        if body:
            assert not select.select([raw], [], [], PATIENCE / 8)[0]
    assert time.monotonic() - began > 1.5 * PATIENCE
    assert Answers(raw).next()[0] == 200


# ---------------------------------------------------------------- answers


def sleepy(port: int, data: bytes) -> socket.socket:
    """A client that has asked, and takes little of what comes."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.settimeout(LONG)
    raw.connect(("127.0.0.1", port))
    raw.sendall(data)
    return raw


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def post(path: str, body: object) -> bytes:
    text = json.dumps(body).encode()
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (
        *(path.encode(), len(text), text),
    )


ASKED = {
    "pipeline": lambda _: post(
        "/v3/pipeline", {"requests": [execute("SELECT substr(b, 1, 20000000) FROM t")]}
    ),
    "short": lambda _: request(*[execute("SELECT hex(zeroblob(400000))")] * 12),
    "many small": lambda _: request(execute("SELECT hex(zeroblob(10000))")) * 2000,
    "cursor": lambda _: post("/v3/cursor", {"batch": batch(*["SELECT b FROM t"] * 3)["batch"]}),
    "export": lambda generation: get(f"/export/{generation}"),
    "snapshot": lambda _: get("/nl/v1/snapshot"),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_client_that_takes_no_answer_is_cut_off(either_port: int, name: str) -> None:
    port = either_port
    generation = Client(port).request("GET", "/info").json["current_generation"]
    with sleepy(port, b"") as raw:
        with contextlib.suppress(TimeoutError, ConnectionError):
            raw.settimeout(PATIENCE)
            raw.sendall(ASKED[name](generation))
        limit = time.monotonic() + LONG
        with pytest.raises(ConnectionError):
            while time.monotonic() < limit:  # until the server has dropped it
                with contextlib.suppress(TimeoutError):
                    raw.send(b"\r\n" if name != "many small" else b"G")
                select.select([], [], [], PATIENCE / 8)
    assert Client(port).rows("SELECT count(*) FROM t") == [[1]]


def test_a_cursor_that_nobody_takes_lets_go_of_its_transaction(port: int) -> None:
    client = Client(port)
    steps = ["BEGIN IMMEDIATE", "CREATE TABLE IF NOT EXISTS u(a)", *["SELECT b FROM t"] * 3]
    with sleepy(port, post("/v3/cursor", {"batch": batch(*steps)["batch"]})):
        limit = time.monotonic() + LONG
        while client.run("INSERT INTO t VALUES (NULL)")[0].get("code") is not None:
            assert time.monotonic() < limit
    client.run("DELETE FROM t WHERE b IS NULL")
    assert client.rows("SELECT count(*) FROM sqlite_schema WHERE name = 'u'") == [[0]]


def test_what_slow_clients_held_is_let_go(app: App, port: int) -> None:
    """After all that was done to this server above."""
    limit = time.monotonic() + LONG
    assert app._routes is not None
    executor = app._routes._executor  # type: ignore[attr-defined]
    while executor._lending.owners or any(stream.busy for stream in executor.streams):
        assert time.monotonic() < limit
    assert not executor.turn.wanted


# ---------------------------------------------------------------- the end


def test_a_server_that_is_told_to_end_does_whoever_is_still_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nearlite", "serve", "data.db", "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    port = int(re.findall(r":(\d+)$", process.stdout.readline())[0])
    client = Client(port)
    client.run("CREATE TABLE t(b)", "INSERT INTO t VALUES (randomblob(40000000))")
    position = client.request("GET", "/nl/v1/status").json["position"]
    generation = client.request("GET", "/info").json["current_generation"]
    steps = ["BEGIN IMMEDIATE", "INSERT INTO t VALUES (1)", *["SELECT b FROM t"] * 3]
    asked = [
        get(f"/nl/v1/changes/{position}?wait=25"),
        get("/nl/v1/snapshot"),
        get(f"/export/{generation}"),
        post("/v3/cursor", {"batch": batch(*steps)["batch"]}),
        post("/v3/pipeline", {"requests": [execute("BEGIN IMMEDIATE"), execute("DELETE FROM t")]}),
        b"POST /v3/pipeline HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{",
        b"GET / HT",
        b"",
    ]
    with contextlib.ExitStack() as stack:
        for data in asked:
            stack.enter_context(sleepy(port, data))
        assert client.request("GET", "/health").status == 200  # all of that has arrived
        process.terminate()
        began = time.monotonic()
        _, told = process.communicate(timeout=3 * LONG)
        assert time.monotonic() - began < LONG
    assert process.returncode == 0
    assert "Traceback" not in told, told
    with contextlib.closing(nearlite.connect(tmp_path / "data.db")) as database:
        assert database.execute("SELECT count(*) FROM t").fetchone() == (1,)
