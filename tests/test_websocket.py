"""Hrana over WebSocket, against a real server, by the library `websockets` and by raw sockets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Client, app_of, rows, serving
from starlette.applications import Starlette
from starlette.routing import Mount
from talking import statement, steps, talking
from websockets.exceptions import ConnectionClosed, InvalidStatus

import nearlite
from nearlite import conversation, lanes, serve, websocket
from nearlite.access import FULL
from nearlite.conversation import Conversation
from nearlite.hrana.sockets import Json
from nearlite.tls import server_context

SLOW = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {}) SELECT max(i) FROM c"
ENDLESS = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT i FROM c"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path = tmp_path_factory.mktemp("websocket") / "data.db"
    with serving(app_of(path, durability="normal")) as port:
        Client(port).run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        yield port


def outcome(result: Any) -> Any:
    return rows(result)


# ---------------------------------------------------------------------- requests


def test_every_request_of_the_newest_version(port: int) -> None:
    with talking(port) as talker:
        assert talker.socket.subprotocol == "hrana3"
        assert rows(talker.execute("SELECT ?, ?", 5, "five")) == [[5, "five"]]
        batch = talker.ask("batch", stream_id=0, batch=steps("SELECT 1", "SELECT 2"))
        assert [rows(result) for result in batch["result"]["step_results"]] == [[[1]], [[2]]]
        assert talker.ask("sequence", stream_id=0, sql="SELECT 1; SELECT 2") == {"type": "sequence"}
        described = talker.ask("describe", stream_id=0, sql="SELECT :a AS x")
        assert described["result"]["params"] == [{"name": ":a"}]
        assert described["result"]["cols"] == [{"name": "x", "decltype": None}]
        assert talker.ask("store_sql", sql_id=-7, sql="SELECT 6") == {"type": "store_sql"}
        stored = talker.ask("execute", stream_id=0, stmt={"sql_id": -7})
        assert rows(stored["result"]) == [[6]]
        assert talker.ask("close_sql", sql_id=-7) == {"type": "close_sql"}
        assert talker.ask("close_sql", sql_id=-7) == {"type": "close_sql"}
        autocommit = {"type": "get_autocommit", "is_autocommit": True}
        assert talker.ask("get_autocommit", stream_id=0) == autocommit
        talker.execute("BEGIN")
        assert talker.ask("get_autocommit", stream_id=0) == {**autocommit, "is_autocommit": False}
        talker.execute("ROLLBACK")
        opened = talker.ask(
            "open_cursor", stream_id=0, cursor_id=9, batch=steps("SELECT 1", "SELECT 2")
        )
        assert opened == {"type": "open_cursor"}
        fetched = talker.ask("fetch_cursor", cursor_id=9, max_count=2)
        assert [entry["type"] for entry in fetched["entries"]] == ["step_begin", "row"]
        assert not fetched["done"]
        fetched = talker.ask("fetch_cursor", cursor_id=9, max_count=100)
        kinds = ["step_end", "step_begin", "row", "step_end"]
        assert [entry["type"] for entry in fetched["entries"]] == kinds
        assert fetched["done"]
        assert talker.ask("fetch_cursor", cursor_id=9, max_count=9)["entries"] == []
        assert talker.ask("close_cursor", cursor_id=9) == {"type": "close_cursor"}
        assert talker.ask("close_stream", stream_id=0) == {"type": "close_stream"}


def test_writes_and_what_they_count(port: int) -> None:
    with talking(port, "hrana1") as talker:
        written = talker.execute("INSERT INTO t(b) VALUES(?)", "written")
        assert written["affected_row_count"] == 1
        assert isinstance(written["last_insert_rowid"], str)
        assert rows(talker.execute("SELECT changes(), last_insert_rowid()")) == [
            [1, int(written["last_insert_rowid"])]
        ]
        error = talker.execute("INSERT INTO t(a) VALUES(?)", int(written["last_insert_rowid"]))
        assert error["code"] == "SQLITE_CONSTRAINT"
        assert talker.execute("SELEC")["code"] == "SQL_INPUT_ERROR"


OLD = [
    ("hrana1", "sequence", {"stream_id": 0, "sql": ""}, "Sequence", 2),
    ("hrana1", "describe", {"stream_id": 0, "sql": ""}, "Describe", 2),
    ("hrana1", "store_sql", {"sql_id": 0, "sql": ""}, "StoreSql", 2),
    ("hrana1", "close_sql", {"sql_id": 0}, "CloseSql", 2),
    ("hrana2", "get_autocommit", {"stream_id": 0}, "GetAutocommit", 3),
    ("hrana2", "open_cursor", {"stream_id": 0, "cursor_id": 0, "batch": steps()}, "OpenCursor", 3),
    ("hrana2", "fetch_cursor", {"cursor_id": 0, "max_count": 1}, "FetchCursor", 3),
    ("hrana2", "close_cursor", {"cursor_id": 0}, "CloseCursor", 3),
]


@pytest.mark.parametrize(("protocol", "kind", "fields", "name", "since"), OLD)
def test_older_versions_do_not_have_newer_requests(
    port: int, protocol: str, kind: str, fields: dict[str, Any], name: str, since: int
) -> None:
    with talking(port, protocol) as talker:
        talker.begin(kind, **fields)
        assert talker.closed() == (
            1008,
            f"{name} is only supported in protocol version hrana{since} and higher",
        )


def test_without_a_subprotocol_it_is_version_1(port: int) -> None:
    with talking(port, "") as talker:
        assert talker.socket.subprotocol is None
        assert rows(talker.execute("SELECT 1")) == [[1]]
        talker.begin("sequence", stream_id=0, sql="")
        assert talker.closed()[0] == 1008


def test_the_best_subprotocol_that_is_offered_is_spoken(port: int) -> None:
    with talking(port, "hrana1", "hrana3", "unknown", "hrana2", hello=False) as talker:
        assert talker.socket.subprotocol == "hrana3"


# ---------------------------------------------------------------------- order


def test_requests_may_be_sent_before_the_hello_is_answered(port: int) -> None:
    with talking(port, hello=False) as talker:
        talker.say({"type": "hello", "jwt": None})
        opened = talker.begin("open_stream", stream_id=5)
        first = talker.begin("execute", stream_id=5, stmt=statement("SELECT 'first'"))
        closed = talker.begin("close_stream", stream_id=5)
        assert talker.hear() == {"type": "hello_ok"}
        assert talker.end(opened) == {"type": "open_stream"}
        assert rows(talker.end(first)["result"]) == [["first"]]
        assert talker.end(closed) == {"type": "close_stream"}


def test_requests_of_a_stream_are_run_in_order_and_streams_do_not_wait_for_each_other(
    port: int,
) -> None:
    with talking(port) as talker:
        talker.open(1)
        talker.execute("CREATE TABLE IF NOT EXISTS sequence(n)")
        talker.execute("DELETE FROM sequence")
        talker.execute("BEGIN IMMEDIATE")
        slow = talker.begin("execute", stream_id=0, stmt=statement(SLOW.format(3_000_000)))
        for number in range(20):
            sql = f"INSERT INTO sequence VALUES({number})"
            talker.begin("execute", stream_id=0, stmt=statement(sql))
        last = talker.begin("sequence", stream_id=0, sql="COMMIT")
        other = talker.begin(
            "execute", stream_id=1, stmt=statement("SELECT count(*) FROM sequence")
        )
        numbers = [talker.hear()["request_id"] for _ in range(23)]
        assert numbers[0] == other
        assert numbers[1:] == list(range(slow, last + 1))
        found = rows(talker.execute("SELECT n FROM sequence ORDER BY rowid"))
        assert found == [[number] for number in range(20)]


def test_the_number_of_a_stream_can_be_used_again_right_behind_its_end(port: int) -> None:
    with talking(port) as talker:
        numbers = []
        for _ in range(3):
            begin = statement("BEGIN IMMEDIATE")
            numbers.append(talker.begin("execute", stream_id=0, stmt=begin))
            numbers.append(talker.begin("close_stream", stream_id=0))
            numbers.append(talker.begin("open_stream", stream_id=0))
        for number in numbers:
            assert "code" not in talker.end(number)


def test_what_waits_is_bounded(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read while too much waits, and all of it is answered in the end."""
    monkeypatch.setattr(lanes, "MAX_WAITING", 8)
    most = []
    waits = lanes.Talk.waits

    def watched(talk: lanes.Talk, requests: int, size: int) -> None:
        waits(talk, requests, size)
        most.append(talk._waiting)

    monkeypatch.setattr(lanes.Talk, "waits", watched)
    with talking(port) as talker:
        talker.execute("BEGIN IMMEDIATE")
        talker.begin("execute", stream_id=0, stmt=statement(SLOW.format(500_000)))
        numbers = [
            talker.begin("execute", stream_id=0, stmt=statement(f"SELECT {number}"))
            for number in range(300)
        ]
        for expected, number in enumerate(numbers):
            assert rows(talker.end(number)["result"]) == [[expected]]
    assert max(most) == 8


def test_five_hundred_idle_streams_and_sockets(port: int) -> None:
    with talking(port) as talker:
        numbers = [talker.begin("open_stream", stream_id=number) for number in range(1, 501)]
        for number in numbers:
            assert talker.end(number) == {"type": "open_stream"}
        assert rows(talker.execute("SELECT 1", stream=500)) == [[1]]
    opened = []
    request = (
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    try:
        for _ in range(500):
            opened.append(socket.create_connection(("127.0.0.1", port), timeout=20))
            opened[-1].sendall(request)
        for connection in opened:
            assert connection.recv(4096).startswith(b"HTTP/1.1 101 ")
        assert Client(port).rows("SELECT 1") == [[1]]
    finally:
        for connection in opened:
            connection.close()


def test_streams_are_limited(tmp_path: Path) -> None:
    limits = nearlite.Limits(max_streams_per_client=2, max_statements=3)
    with serving(app_of(tmp_path / "data.db", limits=limits)) as port, talking(port) as talker:
        talker.open(1)
        assert talker.ask("open_stream", stream_id=2)["code"] == "TOO_MANY_STREAMS"
        assert talker.execute("SELECT 1", stream=2)["code"] == "STREAM_NOT_OPEN"
        talker.ask("close_stream", stream_id=1)
        assert talker.ask("close_stream", stream_id=2) == {"type": "close_stream"}
        talker.open(2)
        many = steps("SELECT 1", "SELECT 2", "SELECT 3")
        refused = talker.ask("batch", stream_id=0, batch=many)
        assert refused["code"] == "TOO_MANY_STATEMENTS"
        refused = talker.ask("open_cursor", stream_id=0, cursor_id=1, batch=many)
        assert refused["code"] == "TOO_MANY_STATEMENTS"
        assert rows(talker.execute("SELECT 1")) == [[1]]


# ---------------------------------------------------------------------- stored texts, cursors


def test_stored_texts_belong_to_the_connection_and_are_limited(port: int) -> None:
    with talking(port) as talker:
        talker.open(1)
        for number in range(150):
            assert (
                talker.ask("store_sql", sql_id=number, sql=f"SELECT {number}")["type"]
                == "store_sql"
            )
        for stream in (0, 1):
            told = talker.ask("execute", stream_id=stream, stmt={"sql_id": 149})
            assert rows(told["result"]) == [[149]]
        assert talker.ask("store_sql", sql_id=150, sql="")["code"] == "SQL_STORE_TOO_MANY"
        talker.ask("close_sql", sql_id=0)
        large = "SELECT '" + "x" * (1 << 20) + "'"
        assert talker.ask("store_sql", sql_id=150, sql=large)["code"] == "SQL_STORE_TOO_LARGE"
        talker.begin("store_sql", sql_id=1, sql="SELECT 1")
        assert talker.closed() == (1008, "SQL text 1 already exists")
    with talking(port) as talker:
        talker.begin("execute", stream_id=0, stmt={"sql_id": 1})
        assert talker.closed() == (1008, "SQL text 1 not found")


def test_a_cursor_is_streamed(port: int) -> None:
    """Its batch never ends: only what is fetched is run, and a piece ahead."""
    with talking(port) as talker:
        talker.ask("open_cursor", stream_id=0, cursor_id=1, batch=steps(ENDLESS))
        seen = []
        while len(seen) < 50_000:
            message = talker.ask("fetch_cursor", cursor_id=1, max_count=20_000)
            assert not message["done"]
            assert len(json.dumps(message["entries"])) < 2 << 20
            seen += [int(e["row"][0]["value"]) for e in message["entries"] if e["type"] == "row"]
        assert seen == list(range(1, len(seen) + 1))
        # An answer is bounded, whatever was asked for.
        message = talker.ask("fetch_cursor", cursor_id=1, max_count=(1 << 32) - 1)
        assert 10_000 < len(message["entries"]) < 40_000
        assert talker.execute("SELECT 1")["code"] == "CURSOR_OPEN"
        other = talker.ask("open_cursor", stream_id=0, cursor_id=2, batch=steps("SELECT 1"))
        assert other["code"] == "CURSOR_OPEN"
        assert talker.ask("fetch_cursor", cursor_id=2, max_count=1)["code"] == "CURSOR_NOT_OPEN"
        assert talker.ask("close_cursor", cursor_id=2) == {"type": "close_cursor"}
        talker.ask("close_cursor", cursor_id=1)
        assert rows(talker.execute("SELECT 1")) == [[1]]
        assert talker.ask("fetch_cursor", cursor_id=1, max_count=1)["code"] == "CURSOR_NOT_OPEN"


def test_a_cursor_writes_fails_and_skips_as_a_batch_does(port: int) -> None:
    batch = steps(
        "BEGIN IMMEDIATE",
        "INSERT INTO t(b) VALUES('by a cursor')",
        "SELECT * FROM nowhere",
        "SELECT 3",
        "ROLLBACK",
    )
    batch["steps"][3]["condition"] = {"type": "ok", "step": 2}
    with talking(port) as talker:
        assert (
            talker.ask("open_cursor", stream_id=0, cursor_id=1, batch=batch)["type"]
            == "open_cursor"
        )
        message = talker.ask("fetch_cursor", cursor_id=1, max_count=1000)
        kinds = [(entry["type"], entry.get("step")) for entry in message["entries"]]
        assert kinds == [
            ("step_begin", 0), ("step_end", None), ("step_begin", 1), ("step_end", None),
            ("step_error", 2), ("step_begin", 4), ("step_end", None),
        ]  # fmt: skip
        assert "no such table" in message["entries"][4]["error"]["message"]
        assert message["done"]
        refused = steps("SELECT ?")
        refused["steps"][0]["stmt"] |= {
            "args": [{"type": "null"}],
            "named_args": [{"name": "a", "value": {"type": "null"}}],
        }
        talker.ask("close_cursor", cursor_id=1)
        told = talker.ask("open_cursor", stream_id=0, cursor_id=1, batch=refused)
        assert told["code"] == "ARGS_BOTH_POSITIONAL_AND_NAMED"
        assert talker.ask("fetch_cursor", cursor_id=1, max_count=1)["code"] == "CURSOR_NOT_OPEN"
        assert talker.ask("close_stream", stream_id=0) == {"type": "close_stream"}


def test_a_cursor_that_nobody_asks_for_is_closed(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "CURSOR_SECONDS", 0.01)
    expired = threading.Event()
    expire = lanes.Lane._expire

    def watched(lane: lanes.Lane) -> None:
        expire(lane)
        expired.set()

    monkeypatch.setattr(lanes.Lane, "_expire", watched)
    with talking(port) as talker:
        talker.ask("open_cursor", stream_id=0, cursor_id=1, batch=steps(ENDLESS))
        assert expired.wait(20)
        assert talker.ask("fetch_cursor", cursor_id=1, max_count=1)["code"] == "CURSOR_EXPIRED"
        talker.ask("close_cursor", cursor_id=1)
        assert rows(talker.execute("SELECT 1")) == [[1]]


# ---------------------------------------------------------------------- who may


def test_tokens(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "data.db", auth_token="a token")) as port:
        with talking(port, hello=False) as talker:
            answer = talker.hello()
            assert answer["type"] == "hello_error"
            assert answer["error"]["code"] == "AUTH_JWT_MISSING"
            assert talker.closed()[0] == 1008
        with talking(port, hello=False) as talker:
            talker.say({"type": "hello", "jwt": "wrong"})
            with contextlib.suppress(ConnectionClosed):
                talker.begin("open_stream", stream_id=0)
            assert talker.hear()["error"]["code"] == "AUTH_JWT_INVALID"
            with pytest.raises(ConnectionClosed):  # and nothing of what came behind it
                talker.hear()
        with talking(port, hello=False) as talker:
            assert talker.hello("a token") == {"type": "hello_ok"}
            talker.open()
            assert talker.hello("a token") == {"type": "hello_ok"}
            assert rows(talker.execute("SELECT 1")) == [[1]]
            assert talker.hello("another")["error"]["code"] == "AUTH_JWT_INVALID"
            assert talker.closed()[0] == 1008
        headers = {"Authorization": "Bearer a token"}
        with talking(port, additional_headers=headers) as talker:
            assert rows(talker.execute("SELECT 1")) == [[1]]
        with (
            pytest.raises(InvalidStatus) as refused,
            talking(port, additional_headers={"Authorization": "Bearer other"}),
        ):
            pass
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body or b"")["code"] == "UNAUTHORIZED"


def test_rights_are_those_of_the_latest_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode()
    reader = jwt.encode({"a": "ro", "exp": 1 << 33}, key, "EdDSA")
    writer = jwt.encode({"a": "rw"}, key, "EdDSA")
    app = app_of(tmp_path / "data.db", durability="normal", auth_jwt_key=public)
    with serving(app) as port, talking(port, hello=False) as talker:
        assert talker.hello(writer) == {"type": "hello_ok"}
        talker.open()
        talker.execute("CREATE TABLE t(a)")
        talker.execute("BEGIN IMMEDIATE")
        assert talker.hello(reader) == {"type": "hello_ok"}
        assert talker.execute("COMMIT")["code"] == "FORBIDDEN"
        opened = talker.ask("open_cursor", stream_id=0, cursor_id=1, batch=steps("COMMIT"))
        assert opened["code"] == "FORBIDDEN"
        talker.open(1)
        insert = "INSERT INTO t VALUES(1)"
        assert talker.execute(insert, stream=1)["code"] == "SQLITE_READONLY"
        assert talker.ask("sequence", stream_id=1, sql=insert)["code"] == "SQLITE_READONLY"
        told = talker.ask("batch", stream_id=1, batch=steps(insert))
        assert told["result"]["step_errors"][0]["code"] == "SQLITE_READONLY"
        talker.ask("open_cursor", stream_id=1, cursor_id=2, batch=steps(insert, "SELECT 1"))
        (error, *_) = talker.ask("fetch_cursor", cursor_id=2, max_count=9)["entries"]
        assert error["error"]["code"] == "SQLITE_READONLY"
        talker.ask("close_cursor", cursor_id=2)
        assert rows(talker.execute("SELECT count(*) FROM t", stream=1)) == [[0]]
        late = SimpleNamespace(time=lambda: float(1 << 34))
        with monkeypatch.context() as later:
            later.setattr(conversation, "time", late)
            assert talker.execute("SELECT 1", stream=1)["code"] == "AUTH_JWT_EXPIRED"
            assert talker.hello(writer) == {"type": "hello_ok"}
            assert rows(talker.execute("SELECT 1", stream=1)) == [[1]]
        assert "result" in talker.ask("execute", stream_id=0, stmt=statement("COMMIT"))


def test_a_hello_has_to_come_first_and_once_in_version_1(port: int) -> None:
    with talking(port, hello=False) as talker:
        talker.begin("open_stream", stream_id=0)
        assert talker.closed() == (1008, "The first message has to be a hello message")
    with talking(port, "hrana1") as talker:
        talker.say({"type": "hello", "jwt": None})
        code, reason = talker.closed()
        assert code == 1008
        assert "hrana2" in reason


def test_who_says_nothing_is_not_waited_for(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "HELLO_SECONDS", 0.01)
    with talking(port, hello=False) as talker:
        assert talker.closed() == (1008, "No hello message has come in time")


def test_a_page_from_elsewhere_cannot_open_one(port: int) -> None:
    with pytest.raises(InvalidStatus) as refused, talking(port, origin="https://example.org"):
        pass
    assert refused.value.response.status_code == 403
    assert json.loads(refused.value.response.body or b"")["code"] == "FORBIDDEN"
    with talking(port, origin=f"http://127.0.0.1:{port}") as talker:
        assert rows(talker.execute("SELECT 1")) == [[1]]


@pytest.mark.parametrize(
    ("protocol", "path", "status", "code"),
    [
        ("hrana3", "/v2/pipeline", 404, "NOT_FOUND"),
        ("other", "/", 400, "BAD_REQUEST"),
    ],
)
def test_upgrades_that_are_refused(
    port: int, protocol: str, path: str, status: int, code: str
) -> None:
    with pytest.raises(InvalidStatus) as refused, talking(port, protocol, path=path):
        pass
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body or b"")["code"] == code


# ---------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("no JSON", 1007),
        ("{}", 1007),
        ('{"type":"request","request_id":1}', 1007),
        ('{"type":"request","request_id":2147483648,"request":{"type":"close_sql","sql_id":1}}', 1007),
        ('{"type":"request","request_id":1,"request":{"type":"nothing"}}', 1007),
        ("[" * 100_000, 1007),
        (b"binary", 1003),
        ('{"type":"request","request_id":1,"request":{"type":"open_stream","stream_id":0}}', 1008),
        ('{"type":"request","request_id":1,"request":{"type":"execute","stream_id":0,"stmt":{}}}', 1008),
        (
            '{"type":"request","request_id":1,"request":{"type":"execute","stream_id":0,"stmt":{"sql":"SELECT ?","args":[{"type":"integer","value":"1.5"}]}}}',
            1008,
        ),
    ],
)  # fmt: skip
def test_a_violation_closes_with_its_code(port: int, message: str | bytes, code: int) -> None:
    with talking(port) as talker:
        talker.socket.send(message)
        assert talker.closed()[0] == code
    assert Client(port).rows("SELECT 1") == [[1]]


def test_a_message_that_is_too_large(tmp_path: Path) -> None:
    app = app_of(tmp_path / "data.db", limits=nearlite.Limits(max_request_bytes=1024))
    with serving(app) as port:
        _say_too_much(port)


def _say_too_much(port: int) -> None:
    with talking(port) as talker:
        talker.socket.send('{"type":"hello","x":"%s"}' % ("x" * 2000))
        assert talker.closed()[0] == 1009
    with talking(port) as talker:  # in fragments of which none is
        with contextlib.suppress(ConnectionClosed):
            talker.socket.send("x" * 300 for _ in range(4))
        assert talker.closed()[0] == 1009


def test_large_messages_and_large_answers(port: int) -> None:
    text = "x" * 600_000
    with talking(port) as talker:
        first = talker.begin("execute", stream_id=0, stmt=statement("SELECT length(?)", text))
        second = talker.begin("execute", stream_id=0, stmt=statement("SELECT 2"))
        assert rows(talker.end(first)["result"]) == [[600_000]]
        assert rows(talker.end(second)["result"]) == [[2]]
        assert rows(talker.execute("SELECT printf('%.*c', 3000000, 'x')")) == [["x" * 3_000_000]]


def test_messages_in_fragments_and_frames_in_pieces(port: int) -> None:
    with talking(port) as talker:
        hello = json.dumps({"type": "hello", "jwt": None})
        talker.socket.send(iter([hello[:5], "", hello[5:]]))
        assert talker.hear() == {"type": "hello_ok"}
        assert talker.socket.ping().wait(20)
        raw = talker.socket.socket
        text = hello.encode()
        whole = b"\x81" + bytes([0x80 | len(text)]) + b"\0\0\0\0" + text
        for at in range(len(whole)):
            raw.sendall(whole[at : at + 1])
        assert talker.hear() == {"type": "hello_ok"}
        long = json.dumps({"type": "hello", "jwt": None, "more": "x" * 70_000}).encode()
        frame = b"\x81\xff" + struct.pack(">Q", len(long)) + b"\0\0\0\0" + long
        raw.sendall(whole + frame[:7])
        raw.sendall(frame[7:] + whole + b"\x89\x80\0\0\0\0" + whole)
        for _ in range(4):
            assert talker.hear() == {"type": "hello_ok"}
        raw.sendall(b"\x81\x05hello")  # not masked
        assert talker.closed()[0] == 1002


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)
KINDS = [
    "open_stream", "close_stream", "execute", "batch", "sequence", "describe", "store_sql", "close_sql",
    "open_cursor", "fetch_cursor", "close_cursor", "get_autocommit", "hello", "other",
]  # fmt: skip
ODD = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)},
    optional={
        "stream_id": st.integers(-2, 3) | JSON,
        "cursor_id": st.integers(0, 2) | JSON,
        "sql_id": st.integers(0, 2) | JSON,
        "sql": st.sampled_from(["SELECT 1", "", "BEGIN", "COMMIT", "nonsense;", "\0"]) | JSON,
        "max_count": st.integers(-1, 5) | JSON,
        "stmt": st.fixed_dictionaries({"sql": st.sampled_from(["SELECT 1", "BEGIN", "x"])}) | JSON,
        "batch": st.just(steps("SELECT 1", "BEGIN", ENDLESS)) | JSON,
    },
)


@given(st.lists(ODD, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_nothing_that_a_client_says_makes_the_server_fail(port: int, requests: list[Any]) -> None:
    with talking(port) as talker:
        try:
            for number, request in enumerate(requests):
                talker.say({"type": "request", "request_id": number, "request": request})
            for _ in requests:
                assert talker.hear()["type"] in ("response_ok", "response_error")
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            assert closed.rcvd.code in (1007, 1008)


# ---------------------------------------------------------------------- ends


def test_who_leaves_within_a_transaction_lets_others_write_at_once(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with talking(port) as other:
        for way in ("close", "abort", "cursor", "running"):
            with talking(port) as talker:
                talker.execute("BEGIN IMMEDIATE")
                talker.execute("INSERT INTO t(b) VALUES('lost')")
                if way == "cursor":
                    talker.ask("open_cursor", stream_id=0, cursor_id=1, batch=steps(ENDLESS))
                elif way == "running":
                    talker.begin("execute", stream_id=0, stmt=statement(SLOW.format(10**12)))
                began = time.monotonic()
                waiting = other.begin(
                    "execute", stream_id=0, stmt=statement("INSERT INTO t(b) VALUES('kept')")
                )
                if way == "close":
                    talker.socket.close()
                else:
                    option = struct.pack("ii", 1, 0)
                    talker.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
                    talker.socket.socket.shutdown(socket.SHUT_RDWR)
                    talker.socket.socket.close()
                assert "result" in other.end(waiting)
                assert (
                    time.monotonic() - began < 3
                )  # a transaction that is wanted may last 5 seconds
        assert rows(other.execute("SELECT count(*) FROM t WHERE b = 'lost'")) == [[0]]
        other.execute("DELETE FROM t WHERE b = 'kept'")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_closing_a_stream_rolls_its_transaction_back(port: int) -> None:
    with talking(port) as talker:
        talker.open(1)
        talker.execute("BEGIN IMMEDIATE", stream=1)
        talker.execute("INSERT INTO t(b) VALUES('lost')", stream=1)
        write = talker.begin(
            "execute", stream_id=0, stmt=statement("INSERT INTO t(b) VALUES('kept')")
        )
        talker.ask("close_stream", stream_id=1)
        assert "result" in talker.end(write)
        assert rows(talker.execute("SELECT count(*) FROM t WHERE b = 'lost'")) == [[0]]
        assert talker.execute("SELECT 1", stream=1)["code"] == "STREAM_NOT_OPEN"


def test_the_server_ends_in_order_with_open_sockets(tmp_path: Path) -> None:
    talkers = []
    with serving(app_of(tmp_path / "data.db", durability="normal")) as port:
        for _ in range(3):
            opened = talking(port)
            talkers.append((opened, opened.__enter__()))
        talkers[0][1].execute("CREATE TABLE t(a)")
        talkers[0][1].execute("BEGIN IMMEDIATE")
        talkers[0][1].execute("INSERT INTO t VALUES(1)")
        running = talkers[1][1].begin(
            "execute", stream_id=0, stmt=statement(SLOW.format(1_000_000))
        )
        talkers[1][1].ask("open_stream", stream_id=1)  # it has been received
        began = time.monotonic()
    assert time.monotonic() - began < 4
    assert rows(talkers[1][1].end(running)["result"]) == [[1_000_000]]
    for opened, talker in talkers:
        assert talker.closed() == (1001, "The server is about to end")
        opened.__exit__(None, None, None)
    with serving(app_of(tmp_path / "data.db", durability="normal")) as port:
        assert Client(port).rows("SELECT count(*) FROM t") == [[0]]


class Hears:
    """A client whose answers are kept."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.closed: list[tuple[int, str]] = []

    def send(self, data: bytes) -> None:
        self.heard.append(json.loads(data))

    def close(self, code: int, reason: str) -> None:
        self.closed.append((code, reason))

    def hold(self, holding: bool) -> None:
        """There is no more to read."""

    def trust(self) -> None:
        """Messages come whole."""


def test_what_came_behind_a_large_message_is_carried_out_when_the_server_ends(
    tmp_path: Path,
) -> None:
    app = app_of(tmp_path / "data.db", durability="normal")

    def message(number: int, kind: str, **fields: Any) -> bytes:
        request = {"type": kind, "stream_id": 0, **fields}
        told = {"type": "request", "request_id": number, "request": request}
        return json.dumps(told).encode()

    async def converse(executor: Any, peer: Hears) -> None:
        talk = Conversation(executor, Json(), 3, peer, lambda _: FULL, lambda _: None)
        insert = "INSERT INTO t VALUES (length(?))"
        for told in (
            json.dumps({"type": "hello", "jwt": None}).encode(),
            message(1, "open_stream"),
            message(2, "execute", stmt=statement(insert, "x" * 400_000)),
            message(3, "execute", stmt=statement(insert, "y" * 300_000)),
            message(4, "execute", stmt=statement("SELECT sum(a) FROM t")),
        ):
            talk.receive(told, binary=False)
        talk.drain()
        talk.receive(message(5, "execute", stmt=statement("SELECT 5")), binary=False)
        await asyncio.wait_for(talk.ended, 20)

    with serving(app) as port:
        Client(port).run("CREATE TABLE t(a)")
        executor = app._routes._executor  # type: ignore[union-attr]
        peer = Hears()
        asyncio.run_coroutine_threadsafe(converse(executor, peer), executor._loop).result(20)
    assert [heard.get("request_id") for heard in peer.heard] == [None, 1, 2, 3, 4]
    assert rows(peer.heard[-1]["response"]["result"]) == [[700_000]]
    assert peer.closed == [(1001, "The server is about to end")]


def test_what_lasts_too_long_is_interrupted_when_the_server_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serve, "SHUTDOWN_SECONDS", 1)
    with ExitStack() as stack:
        with serving(app_of(tmp_path / "data.db", durability="normal")) as port:
            talker = stack.enter_context(talking(port))
            talker.execute("BEGIN IMMEDIATE")
            talker.begin("execute", stream_id=0, stmt=statement(SLOW.format(10**12)))
            talker.ask("open_stream", stream_id=1)  # it has been received
            began = time.monotonic()
        assert time.monotonic() - began < 15
        assert talker.closed() == (1001, "The server is about to end")
    ours = [record for record in caplog.records if record.name.startswith("nearlite")]
    assert not [record.getMessage() for record in ours if record.levelno >= logging.ERROR]


def test_over_tls(tmp_path: Path, certificates: Path) -> None:
    app = app_of(tmp_path / "data.db", durability="normal")
    trusted = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    with serving(app, tls=server_context(certificates / "server.pem")) as port:
        with talking(port, ssl=trusted) as talker:
            assert rows(talker.execute("SELECT printf('%.*c', 3000000, 'x')")) == [
                ["x" * 3_000_000]
            ]
            talker.execute("CREATE TABLE t(a)")
            talker.execute("BEGIN IMMEDIATE")
            talker.socket.send("no JSON")
            assert talker.closed()[0] == 1007
        with talking(port, ssl=trusted) as talker:
            assert "code" not in talker.execute("INSERT INTO t VALUES(1)")
            began = time.monotonic()
            talker.begin("execute", stream_id=0, stmt=statement(SLOW.format(10**12)))
    assert time.monotonic() - began < 8


def test_a_database_that_is_closed_closes_its_websockets(tmp_path: Path) -> None:
    app = app_of(tmp_path / "data.db", durability="normal")
    with serving(app) as port, talking(port) as talker:
        talker.execute("CREATE TABLE t(a)")
        talker.execute("BEGIN IMMEDIATE")
        talker.execute("INSERT INTO t VALUES(1)")
        loop = app._routes._executor._loop  # type: ignore[union-attr]
        asyncio.run_coroutine_threadsafe(app.shutdown(), loop).result(20)
        assert talker.closed() == (1001, "The server is about to end")
        # The next one opens it again.
        assert Client(port).rows("SELECT count(*) FROM t") == [[0]]


def test_who_does_not_take_his_answers_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of(tmp_path / "data.db", limits=nearlite.Limits(client_seconds=0.05))
    lost = threading.Event()
    over = websocket.WebSocket.connection_lost

    def watched(self: websocket.WebSocket, exc: Exception | None) -> None:
        over(self, exc)
        lost.set()

    with serving(app) as port, talking(port, max_queue=1, close_timeout=0.01) as talker:
        monkeypatch.setattr(websocket.WebSocket, "connection_lost", watched)
        sql = statement("SELECT printf('%.*c', 4000000, 'x')")
        for _ in range(4):
            talker.begin("execute", stream_id=0, stmt=sql)
        assert lost.wait(20)


def test_who_is_silent_is_asked_and_dropped(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_SECONDS", 0.05)
    with talking(port) as talker:
        assert rows(talker.execute("SELECT 1")) == [[1]]
        raw = socket.create_connection(("127.0.0.1", port), timeout=20)
        raw.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        received = b""
        try:
            while data := raw.recv(4096):
                received += data
        except ConnectionResetError:
            pass
        raw.close()
        assert received.endswith(b"\x89\x00")  # a ping, and nobody answered
        # The library answers them: it is still there, some pings later.
        assert rows(talker.execute("SELECT 1")) == [[1]]


def test_a_database_that_was_replaced_is_told(tmp_path: Path) -> None:
    app = app_of(tmp_path / "data.db")
    with serving(app) as port, talking(port) as talker:
        app._routes._executor.displaced = True  # type: ignore[union-attr]
        assert talker.execute("SELECT 1")["code"] == "DATABASE_REPLACED"


# ---------------------------------------------------------------------- other servers


def test_under_another_server_and_below_a_path(tmp_path: Path) -> None:
    database = app_of(tmp_path / "data.db", durability="normal")

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await database.startup()
        yield
        await database.shutdown()

    app = Starlette(routes=[Mount("/below", app=database)], lifespan=lifespan)
    config = uvicorn.Config(app, ws="websockets-sansio", log_config=None)
    server = uvicorn.Server(config)
    listening = serve.bind("127.0.0.1", 0)
    listening.listen(64)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    port = listening.getsockname()[1]
    try:
        with talking(port, path="/below/") as talker:
            talker.execute("CREATE TABLE t(a)")
            numbers = [
                talker.begin("execute", stream_id=0, stmt=statement(f"INSERT INTO t VALUES({n})"))
                for n in range(50)
            ]
            for number in numbers:
                assert talker.end(number)["result"]["affected_row_count"] == 1
            assert rows(talker.execute("SELECT printf('%.*c', 3000000, 'x')")) == [
                ["x" * 3_000_000]
            ]
            talker.execute("BEGIN IMMEDIATE")
            talker.socket.send("no JSON")
            assert talker.closed()[0] == 1007
        with talking(port, path="/below/") as talker:
            assert "code" not in talker.execute("INSERT INTO t VALUES(1)")
        with pytest.raises(InvalidStatus) as refused, talking(port, path="/below/nothing"):
            pass
        assert refused.value.response.status_code == 404
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
    assert not thread.is_alive()


def test_a_message_of_somebody_unknown_is_small(tmp_path: Path) -> None:
    app = app_of(tmp_path / "data.db", durability="normal")
    with serving(app) as port:
        with talking(port, hello=False) as talker:
            talker.socket.send(json.dumps({"type": "hello", "jwt": "x" * 70_000}))
            assert talker.closed()[0] == 1009
        with talking(port, hello=False) as talker:
            with contextlib.suppress(ConnectionClosed):  # before all of it was sent
                talker.socket.send(iter(['{"type": "hello", "jwt": "', "x" * 40_000, "x" * 40_000]))
            assert talker.closed()[0] == 1009
        with talking(port) as talker:
            text = "x" * 1_000_000
            found = rows(talker.execute("SELECT length(?)", text))
            assert found == [["1000000"]] or found == [[1_000_000]]
