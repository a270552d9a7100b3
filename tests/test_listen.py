"""``GET /beta/listen``: events of what is committed."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from serving import Client, app_of, execute, serving

import nearlite
from nearlite import announcing
from nearlite.server import App
from nearlite.tokens import LEEWAY


class Listening:
    """A client that listens."""

    def __init__(self, port: int, query: str, **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self.connection.request("GET", f"/beta/listen?{query}", headers=headers)
        self.answer = self.connection.getresponse()

    def line(self) -> str:
        return self.answer.readline().decode()

    def event(self) -> Any:
        """The next one: its name, and its data."""
        name, data = self.line().rstrip("\n"), self.line().rstrip("\n")
        assert self.line() == "\n"
        assert name.startswith("event:")
        assert data.startswith("data:")
        told = data.removeprefix("data:")
        return name.removeprefix("event:"), json.loads(told) if told.startswith("{") else told

    def changes(self) -> Any:
        name, counts = self.event()
        assert name == "changes"
        return counts

    def close(self) -> None:
        self.connection.close()


@pytest.fixture(params=["normal", "full"])
def app(tmp_path: Path, request: Any) -> App:
    return app_of(tmp_path / "data.db", durability=request.param)


@pytest.fixture
def client(app: App) -> Iterator[Client]:
    with serving(app) as port, closing(Client(port)) as client:
        client.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE)", "CREATE TABLE u(x)")
        yield client


def listen(client: Client, query: str) -> Any:
    made = Listening(client.port, query)
    assert made.answer.status == 200
    assert made.answer.getheader("content-type") == "text/event-stream"
    return closing(made)


def test_each_commit_is_an_event(client: Client) -> None:
    with listen(client, "table=t") as all_of_it, listen(client, "table=T&action=delete") as deletes:
        client.run("INSERT INTO t(b) VALUES ('x'), ('y')")
        assert all_of_it.changes() == {"insert": 2}
        client.run("UPDATE t SET b = 'z' WHERE a = 1")
        assert all_of_it.changes() == {"update": 1}
        client.run("INSERT INTO u VALUES (1)")  # another table
        client.run("DELETE FROM t WHERE a = 2")
        assert all_of_it.changes() == {"delete": 1}
        assert deletes.changes() == {"delete": 1}
        client.pipeline(
            {
                "type": "sequence",
                "sql": "BEGIN; INSERT INTO t(b) VALUES(1); UPDATE t SET b = b || '!'; COMMIT",
            },
            {"type": "close"},
        )
        assert all_of_it.changes() == {"insert": 1, "update": 2}


def test_what_is_not_committed_is_no_event(client: Client) -> None:
    with listen(client, "table=t") as heard:
        client.run("INSERT INTO t(b) VALUES ('once')")
        assert heard.changes() == {"insert": 1}
        client.run("INSERT INTO t(b) VALUES ('once')")  # fails
        held = client.pipeline(execute("BEGIN"), execute("INSERT INTO t(b) VALUES ('held')"))
        client.pipeline(execute("ROLLBACK"), {"type": "close"}, baton=held["baton"])
        held = client.pipeline(execute("BEGIN IMMEDIATE"))
        client.pipeline(execute("COMMIT"), {"type": "close"}, baton=held["baton"])
        held = client.pipeline(execute("BEGIN"), execute("INSERT INTO t(b) VALUES ('kept')"))
        client.rows("SELECT 1")
        client.pipeline(
            execute("UPDATE t SET b = 'last' WHERE b = 'kept'"),
            execute("COMMIT"),
            {"type": "close"},
            baton=held["baton"],
        )
        assert heard.changes() == {"insert": 1, "update": 1}


def test_what_was_before_is_not_told(client: Client) -> None:
    client.run("INSERT INTO t(b) VALUES ('before')")
    with listen(client, "table=t") as heard:
        held = client.pipeline(execute("BEGIN IMMEDIATE"))
        client.pipeline(execute("COMMIT"), {"type": "close"}, baton=held["baton"])
        client.run("DELETE FROM t WHERE b = 'before'")
        assert heard.changes() == {"delete": 1}


def test_actions_are_chosen(client: Client) -> None:
    with listen(client, "table=t&action=insert&action=update") as heard:
        client.run("INSERT INTO t VALUES (1, 'a')")
        client.run("DELETE FROM t WHERE a = 1")
        client.run("INSERT INTO t VALUES (2, 'b')")
        client.run("UPDATE t SET b = 'c' WHERE a = 2")
        assert [heard.changes() for _ in range(3)] == [{"insert": 1}, {"insert": 1}, {"update": 1}]


def test_more_tables_than_are_told_apart(client: Client) -> None:
    names = [f"t{number:02}" for number in range(70)]
    client.run(*[f"CREATE TABLE {name}(a)" for name in [*names, "n" * 200]])
    listening = [listen(client, f"table={name}") for name in ("t00", "t69", "n" * 200)]
    with listening[0] as first, listening[1] as last, listening[2] as long:
        sql = ";".join(["BEGIN", *[f"INSERT INTO {name} VALUES (1)" for name in names], "COMMIT"])
        client.pipeline({"type": "sequence", "sql": sql}, {"type": "close"})
        assert first.changes() == {"insert": 1}
        assert last.changes() == {"unknown": 1}
        client.run(f"INSERT INTO {'n' * 200} VALUES (1)")
        assert [long.changes(), long.changes()] == [{"unknown": 1}] * 2


def test_a_line_comes_when_nothing_happens(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcing, "KEEP_ALIVE", 0.05)
    with listen(client, "table=t") as heard:
        assert [heard.line() for _ in range(4)] == [":keep-alive\n", "\n"] * 2


def test_who_is_too_slow_is_told_so(
    app: App, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcing, "_ROOM", 2)
    with listen(client, "table=t") as heard:
        told = app._announcing
        assert told is not None
        changes = [announcing.Changed("t", {"insert": number}) for number in range(1, 6)]
        # All in one turn of the event loop: nothing can be sent in between.
        told._loop.call_soon_threadsafe(lambda: [told._tell([one], False) for one in changes])
        assert [heard.changes(), heard.changes()] == [{"insert": 1}, {"insert": 2}]
        assert heard.event() == ("error", "some changes were lost")
        assert told.lost == 3
        client.run("INSERT INTO t(b) VALUES ('next')")
        assert heard.changes() == {"insert": 1}


def test_what_is_asked_wrongly_is_told(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for query in ("", "table=", "action=insert", "table=t&action=bogus", "table=t&table=u"):
        reply = client.request("GET", f"/beta/listen?{query}")
        assert (reply.status, reply.json["code"]) == (400, "BAD_REQUEST")
    assert client.request("POST", "/beta/listen?table=t").status == 405
    monkeypatch.setattr(announcing, "_MOST", 1)
    with listen(client, "table=t"):
        reply = client.request("GET", "/beta/listen?table=t")
        assert (reply.status, reply.json["code"]) == (503, "TOO_MANY_LISTENERS")


def test_listeners_end_with_the_server_and_with_their_clients(app: App, client: Client) -> None:
    told = app._announcing
    assert told is not None
    with listen(client, "table=t"):
        assert told.any
    while told.any:  # noticed in the server's own time
        client.rows("SELECT 1")
    last = Listening(client.port, "table=t")
    told._loop.call_soon_threadsafe(app.stop_waiting)
    assert last.answer.read() == b""
    last.close()


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "data.db", auth_token="t")) as port:
        with closing(Listening(port, "table=t")) as stranger:
            assert stranger.answer.status == 401
        with closing(Listening(port, "table=t", authorization="Bearer t")) as known:
            assert known.answer.status == 200


def test_who_listens_hears_that_the_token_has_expired(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with serving(app_of(tmp_path / "data.db", auth_jwt_key=[public.decode()])) as port:
        client = Client(port, jwt.encode({}, key, "EdDSA"))
        client.run("CREATE TABLE t(a)")
        expires = int(time.time()) + 2
        token = jwt.encode({"exp": expires - LEEWAY}, key, "EdDSA")
        with closing(Listening(port, "table=t", authorization=f"Bearer {token}")) as known:
            assert known.answer.status == 200
            client.run("INSERT INTO t VALUES (1)")
            assert known.changes() == {"insert": 1}
            assert known.event() == ("error", "the token has expired")
            assert known.answer.read() == b""
        assert expires <= time.time() < expires + 10


def test_a_replica_that_serves_sends_listeners_to_the_primary(
    client: Client, tmp_path: Path
) -> None:
    relay = nearlite.asgi(
        tmp_path / "relay.db", upstream=f"http://127.0.0.1:{client.port}", sync_interval=0.05
    )
    with serving(relay) as port:
        reply = Client(port).request("GET", "/beta/listen?table=t&action=insert")
    assert reply.status == 307
    assert reply.headers["location"] == (
        f"http://127.0.0.1:{client.port}/beta/listen?table=t&action=insert"
    )


def test_a_client_that_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    app = app_of(tmp_path / "slow.db", limits=nearlite.Limits(client_seconds=0.2))
    with serving(app) as port, socket.socket() as raw:
        client = Client(port)
        client.run("CREATE TABLE t(a)")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(20)
        raw.connect(("127.0.0.1", port))
        raw.sendall(b"GET /beta/listen?table=t HTTP/1.1\r\nhost: x\r\n\r\n")
        raw.recv(1)
        told = app._announcing
        assert told is not None
        changes = [announcing.Changed("t", {"insert": 1})]
        while told.any:  # until it is dropped
            told._loop.call_soon_threadsafe(
                lambda: [told._tell(changes, False) for _ in range(1000)]
            )
            client.rows("SELECT 1")
