"""The short cut of whole pipelines, and what may not take it: real sockets, bytes as clients write them."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Client, Whole, app_of, execute, outcome, rows, serving

import nearlite
from nearlite import connection, serve
from nearlite.pipeline import Executor
from nearlite.routes import Routes

EITHER = True

CLOSE = {"type": "close"}


@pytest.fixture(scope="module", params=["normal", "full"])
def port(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("connection")
    with serving(app_of(folder / "data.db", durability=request.param)) as port:
        yield port


@pytest.fixture
def client(port: int) -> Iterator[Client]:
    with contextlib.closing(Client(port)) as client:
        client.run("DROP TABLE IF EXISTS t", "CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        yield client


@pytest.fixture
def raw(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        yield raw


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each pipeline that came whole was taken by the short cut."""
    seen: list[bool] = []
    short = Routes.short

    def noted(self: Routes, *args: Any) -> bool:
        seen.append(short(self, *args))
        return seen[-1]

    monkeypatch.setattr(Routes, "short", noted)
    return seen


def request(*requests: Any, head: bytes = b"", path: bytes = b"/v3/pipeline") -> bytes:
    body = json.dumps({"requests": [*requests, CLOSE]}).encode()
    return b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (
        *(path, head, len(body), body),
    )


class Answers:
    """Answers as they come out of a socket."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw
        self._read = b""

    def head(self) -> tuple[int, dict[str, str]]:
        while b"\r\n\r\n" not in self._read:
            self._more()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        fields = (line.partition(": ") for line in lines)
        return int(first.split()[1]), {name.lower(): value for name, _, value in fields}

    def body(self, size: int) -> Any:
        while len(self._read) < size:
            self._more()
        body, self._read = self._read[:size], self._read[size:]
        return json.loads(gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body)

    def next(self) -> tuple[int, Any]:
        status, fields = self.head()
        return status, self.body(int(fields["content-length"]))

    def results(self) -> list[Any]:
        status, body = self.next()
        assert status == 200, body
        return [outcome(result) for result in body["results"][:-1]]

    def ended(self) -> bool:
        return self._read == b"" and self._raw.recv(1) == b""

    def _more(self) -> None:
        piece = self._raw.recv(65536)
        assert piece, self._read
        self._read += piece


# ---------------------------------------------------------------- what takes it


def test_reads_and_writes_take_it(
    client: Client, raw: socket.socket, shortened: list[bool]
) -> None:
    answers = Answers(raw)
    for number in range(1, 12):  # lengths differ, too
        raw.sendall(request(execute("INSERT INTO t VALUES (?, 'x')", 10**number)))
        (result,) = answers.results()
        assert (result["affected_row_count"], result["last_insert_rowid"]) == (1, str(10**number))
        raw.sendall(request(execute("SELECT count(*), max(a) FROM t")))
        assert rows(answers.results()[0]) == [[number, 10**number]]
    assert shortened == [True] * 22


def test_many_clients_write_together(client: Client, port: int, shortened: list[bool]) -> None:
    with contextlib.ExitStack() as stack:
        raws = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            for _ in range(16)
        ]
        answers = [Answers(raw) for raw in raws]
        client.run("INSERT INTO t VALUES (0, 'there')")
        for turn in range(10):
            for number, raw in enumerate(raws):
                key = 0 if number % 4 == 0 else 16 * turn + number
                raw.sendall(request(execute("INSERT INTO t VALUES (?, 'x')", key)))
            for number, answer in enumerate(answers):
                (result,) = answer.results()
                assert result.get("code") == ("SQLITE_CONSTRAINT" if number % 4 == 0 else None)
    assert client.rows("SELECT count(*) FROM t") == [[1 + 12 * 10]]
    assert all(shortened)


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([execute("INSERT INTO t VALUES (1, 1)"), execute("SELECT * FROM t")], [[1, 1]]),
        ([execute("BEGIN"), execute("INSERT INTO t VALUES (1, 2)"), execute("COMMIT")], None),
        ([execute("CREATE TEMP TABLE mine(a)"), execute("SELECT count(*) FROM mine")], [[0]]),
        (
            [execute("PRAGMA recursive_triggers=1"), execute("PRAGMA recursive_triggers")],
            [[1]],
        ),
        (
            [
                execute(
                    "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE "
                    "i < 100000) SELECT max(i) FROM c"
                )
            ],
            [[100000]],
        ),
    ],
)
def test_what_has_to_wait_for_a_thread_is_finished_in_one(
    client: Client, raw: socket.socket, shortened: list[bool], requests: Any, expected: Any
) -> None:
    answers = Answers(raw)
    for _ in range(3):  # the first time its head is parsed
        client.run("DELETE FROM t")
        del shortened[:]
        raw.sendall(request(*requests))
        results = answers.results()
        assert all("code" not in result for result in results), results
        if expected is not None:
            assert rows(results[-1]) == expected
        assert shortened == [True]


def test_a_write_that_leaves_its_group_is_run_alone(client: Client, raw: socket.socket) -> None:
    answers = Answers(raw)
    client.run("INSERT INTO t VALUES (1, 1)")
    for number in range(2, 6):
        raw.sendall(
            request(
                execute("INSERT INTO t VALUES (?, 0)", number),
                execute("INSERT OR ROLLBACK INTO t VALUES (1, 0)"),
                execute("SELECT count(*) FROM t"),
            )
        )
        kept, failed, counted = answers.results()
        assert kept["affected_row_count"] == 1
        assert failed["code"] == "SQLITE_CONSTRAINT"
        assert rows(counted) == [[number]]


def test_what_is_wrong_is_told_the_usual_way(client: Client, raw: socket.socket) -> None:
    answers = Answers(raw)
    good = request(execute("SELECT 1"))
    for bad in (b"{", b'{"requests": 1}', b'{"requests": [{"type": "execute", "stmt": {}}]}'):
        raw.sendall(good)
        assert answers.next()[0] == 200
        raw.sendall(
            b"POST /v3/pipeline HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
            % (len(bad), bad)
        )
        status, body = answers.next()
        assert (status, body["code"]) == (400, "PROTOCOL_ERROR")


def test_a_bad_baton_and_a_used_one_are_told_apart(client: Client) -> None:
    baton = client.pipeline(execute("SELECT 1"))["baton"]
    broken = json.dumps(
        {
            "baton": baton,
            "requests": [{"type": "execute", "stmt": {"sql": "SELECT 1", "sql_id": 1}}],
        }
    ).encode()
    assert client.request("POST", "/v3/pipeline", broken).json["code"] == "PROTOCOL_ERROR"
    for given, code in ((baton, None), ("nonsense", "BATON_INVALID")):
        body = json.dumps({"baton": given, "requests": []}).encode()
        assert client.request("POST", "/v3/pipeline", body).json.get("code") == code


# ---------------------------------------------------------------- order, pieces, ends


def test_pipelined_requests_are_answered_in_order(client: Client, raw: socket.socket) -> None:
    answers = Answers(raw)
    for send in (
        lambda parts: raw.sendall(b"".join(parts)),
        lambda parts: [*map(raw.sendall, parts)],
    ):
        client.run("DELETE FROM t")
        parts = []
        for number in range(40):
            parts.append(request(execute("INSERT INTO t VALUES (?, 'x')", number)))
            parts.append(request(execute("SELECT max(a), count(*) FROM t")))
        send(parts)
        for number in range(40):
            assert answers.results()[0]["last_insert_rowid"] == str(number)
            assert rows(answers.results()[0]) == [[number, number + 1]]


@pytest.mark.parametrize("known", [True, False])
def test_what_comes_behind_a_request_that_waits_is_answered_after_it(
    client: Client, raw: socket.socket, known: bool
) -> None:
    answers = Answers(raw)
    for turn in range(3):
        head = b"" if known else b"X-Turn: %d %d\r\n" % (turn, raw.fileno())
        raw.sendall(request(execute("DELETE FROM t")))
        answers.results()
        baton = client.pipeline(execute("BEGIN IMMEDIATE"))["baton"]
        raw.sendall(request(execute("INSERT INTO t VALUES (1, 'x')"), head=head))
        for sql in ("INSERT INTO t VALUES (2, 'x')", "SELECT count(*) FROM t"):
            Client(client.port).request("GET", "/health")  # what was sent has arrived
            raw.sendall(request(execute(sql)))
        client.pipeline(execute("COMMIT"), CLOSE, baton=baton)
        assert [answers.results()[0]["last_insert_rowid"] for _ in range(2)] == ["1", "2"]
        assert rows(answers.results()[0]) == [[2]]


def test_a_request_that_takes_long_outlives_the_time_of_an_idle_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_KEEP_ALIVE", 0.02)
    long = execute(
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 500000) "
        "SELECT max(i) FROM c"
    )
    with serving(app_of(tmp_path / "data.db")) as port:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
                answers = Answers(raw)
                raw.sendall(request(long))
                assert rows(answers.results()[0]) == [[500000]]
                assert answers.ended()  # an idle one does not


@pytest.mark.parametrize("at", [1, 20, 60, -1])
def test_a_request_may_come_in_pieces(client: Client, raw: socket.socket, at: int) -> None:
    answers = Answers(raw)
    whole = request(execute("SELECT 5"))
    for _ in range(3):
        raw.sendall(whole)  # its head is known from now on
        assert rows(answers.results()[0]) == [[5]]
        raw.sendall(whole[:at])
        Client(client.port).request("GET", "/health")  # the server has seen the first piece
        raw.sendall(whole[at:])
        assert rows(answers.results()[0]) == [[5]]


def test_a_body_in_chunks_is_never_taken_for_a_known_head(raw: socket.socket) -> None:
    answers = Answers(raw)
    body = json.dumps({"requests": [execute("SELECT 6"), CLOSE]}).encode()
    head = b"POST /v3/pipeline HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for _ in range(3):
        raw.sendall(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert rows(answers.results()[0]) == [[6]]


def test_a_length_that_is_none_is_refused(raw: socket.socket) -> None:
    answers = Answers(raw)
    good = request(execute("SELECT 7"))
    raw.sendall(good)
    assert rows(answers.results()[0]) == [[7]]
    head, _, body = good.partition(b"\r\n\r\n")
    raw.sendall(head.rpartition(b": ")[0] + b": +%d\r\n\r\n" % len(body) + body)
    assert answers.head()[0] == 400
    raw.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_a_connection_that_is_to_be_closed_is(port: int, version: bytes) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
            whole = request(execute("SELECT 8"), head=b"Connection: close\r\n")
            raw.sendall(whole.replace(b"HTTP/1.1", version, 1))
            answers = Answers(raw)
            assert rows(answers.results()[0]) == [[8]]
            assert answers.ended()


_LONG = "WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 300000) "


@pytest.mark.parametrize(
    ("way", "sql", "head"),
    [
        ("wait", _LONG + "SELECT count(*) FROM c", b""),
        # What takes long is not the statement but to compress its answer, which is ASGI's.
        ("proceed", "SELECT hex(zeroblob(40000))", b"Accept-Encoding: gzip\r\n"),
    ],
)
def test_a_server_that_ends_closes_behind_a_request_that_takes_longer(
    raw: socket.socket, monkeypatch: pytest.MonkeyPatch, way: str, sql: str, head: bytes
) -> None:
    """It is told to end between a request of a known head and what answers it after all."""
    goes_on = getattr(connection._Connection, way)
    told = []

    def ending(self: Any, what: Any) -> None:
        told.append(what)
        self.shutdown()
        goes_on(self, what)

    answers = Answers(raw)
    raw.sendall(request(execute("SELECT 1"), head=head))
    answers.results()
    monkeypatch.setattr(connection._Connection, way, ending)
    raw.sendall(request(execute(sql), head=head))
    status, fields = answers.head()
    assert len(told) == 1
    assert (status, fields.get("connection")) == (200, "close")
    answers.body(int(fields["content-length"]))
    assert answers.ended()


def test_a_client_that_waits_for_100_gets_it(raw: socket.socket) -> None:
    answers = Answers(raw)
    whole = request(execute("SELECT 9"), head=b"Expect: 100-continue\r\n")
    head, _, body = whole.partition(b"\r\n\r\n")
    for _ in range(3):
        raw.sendall(head + b"\r\n\r\n")
        assert answers.head()[0] == 100
        raw.sendall(body)
        assert rows(answers.results()[0]) == [[9]]


def test_each_head_is_admitted_by_itself(tmp_path: Path) -> None:
    with (
        serving(app_of(tmp_path / "data.db", auth_token="right")) as port,
        socket.create_connection(("127.0.0.1", port), timeout=20) as raw,
    ):
        answers = Answers(raw)
        for _ in range(3):
            for token, status in ((b"right", 200), (b"wrong", 401), (b"", 401)):
                head = b"Authorization: Bearer %b\r\n" % token if token else b""
                raw.sendall(request(execute("SELECT 1"), head=head))
                assert answers.next()[0] == status


def test_headers_of_ours_may_vary(client: Client, raw: socket.socket) -> None:
    answers = Answers(raw)
    for number in range(5):
        head = b"Nearlite-Counters: %d,0,%d\r\n" % (number, 10 * number)
        raw.sendall(request(execute("SELECT last_insert_rowid(), total_changes()"), head=head))
        status, fields = answers.head()
        assert (status, fields["nearlite-counters"]) == (200, f"{number},0,{10 * number}")
        body = answers.body(int(fields["content-length"]))
        assert rows(outcome(body["results"][0])) == [[number, 10 * number]]
    raw.sendall(request(execute("SELECT 1"), head=b"Nearlite-Counters: 1,2\r\n"))
    assert answers.next()[1]["code"] == "BAD_REQUEST"
    raw.sendall(request(execute("SELECT 1"), head=b"Nearlite-Position: 1\r\n", path=b"/nl/v1/sql"))
    assert answers.next()[1]["code"] == "BAD_REQUEST"


# ---------------------------------------------------------------- large answers


def test_an_exception_that_nobody_expected_is_answered(
    client: Client, raw: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers(raw)
    raw.sendall(request(execute("SELECT 1")))
    answers.results()

    def broken(*_args: Any) -> None:
        raise RuntimeError("a defect")

    with monkeypatch.context() as context:
        context.setattr(Executor, "now", broken)
        raw.sendall(request(execute("SELECT 1")))
        assert answers.next()[0] == 500
    raw.sendall(request(execute("SELECT 1")))
    assert rows(answers.results()[0]) == [[1]]


def test_a_large_answer_is_sent_to_its_end(raw: socket.socket) -> None:
    answers = Answers(raw)
    for _ in range(3):
        raw.sendall(request(execute("SELECT hex(zeroblob(400000))")))
        assert rows(answers.results()[0]) == [["00" * 400000]]


def test_a_client_that_does_not_take_its_answer_is_dropped(tmp_path: Path) -> None:
    app = app_of(tmp_path / "data.db", limits=nearlite.Limits(client_seconds=0.1))
    with serving(app) as port, socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(20)
        raw.connect(("127.0.0.1", port))
        raw.sendall(request(*[execute("SELECT hex(zeroblob(400000))")] * 12))
        with pytest.raises(ConnectionError):
            while True:  # until the server has dropped it
                raw.send(b"\r\n")


def test_the_connection_of_these_tests_sends_requests_whole(port: int) -> None:
    sent: list[bytes] = []
    made = Whole("127.0.0.1", port)
    real: Callable[[Any], None] = made.send
    made.send = lambda data: (sent.append(data), real(data))[1]  # type: ignore[method-assign]
    made.request("POST", "/v3/pipeline", b'{"requests": []}')
    assert made.getresponse().status == 200
    assert len(sent) >= 1
    assert sent[-1].endswith(b'\r\n\r\n{"requests": []}')
    made.close()
