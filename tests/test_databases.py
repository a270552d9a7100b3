"""Many databases in one server: which one a request is for, which are open, and that nothing else is reached."""

from __future__ import annotations

import base64
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hosting import CREATE, Many, made, many
from serving import Client, execute, outcome, rows
from talking import talking
from test_background import eventually
from websockets.exceptions import InvalidStatus

import nearlite
from nearlite import errors, greeting
from nearlite.catalog import Catalog
from nearlite.minting import make_keys, mint, private_key
from nearlite.names import is_name


@pytest.fixture
def three(tmp_path: Path) -> Any:
    with many(made(tmp_path / "dbs", "a", "b", "default"), host_suffix="example.org") as served:
        for name in ("a", "b", "default"):
            served.of(name).run(CREATE, f"INSERT INTO t(b) VALUES('{name}')")
        yield served


def whose(served: Many, path: str = "/v2/pipeline", **headers: str) -> Any:
    """What is in the database that a request reaches, or its refusal."""
    body = b'{"requests":[{"type":"execute","stmt":{"sql":"SELECT b FROM t"}},{"type":"close"}]}'
    client = Client(served.port)
    try:
        reply = client.request("POST", path, body, **headers)
    finally:
        client.close()
    if reply.status != 200:
        return reply.status, reply.json["code"]
    return rows(outcome(reply.json["results"][0]))[0][0]


# ---------------------------------------------------------------- routing


def test_a_database_is_chosen_by_path_then_header_then_host(three: Many) -> None:
    coded = base64.b64encode(b"b").decode().rstrip("=")
    assert whose(three) == "default"
    assert whose(three, "/db/a/v2/pipeline") == "a"
    assert whose(three, "/db/a//v2/pipeline") == "a"
    assert whose(three, x_namespace="a") == "a"
    assert whose(three, x_namespace="a", x_namespace_bin=coded) == "b"
    assert whose(three, "/db/default/v2/pipeline", x_namespace="a") == "default"
    assert whose(three, host="a.example.org") == "a"
    assert whose(three, host="B.Example.ORG:8080") == "b"
    assert whose(three, host="a.example.org", x_namespace="b") == "b"
    # An address is no name, and neither is a host elsewhere.
    assert whose(three, host="127.0.0.1:80") == "default"
    assert whose(three, host="a.example.com") == "default"
    assert whose(three, host="example.org") == "default"
    assert whose(three, host="x.a.example.org") == (400, "INVALID_NAME")


def test_the_short_cut_leads_to_the_same_database_each_time(three: Many) -> None:
    clients = {name: three.of(name) for name in ("a", "b", "default")}
    for _ in range(4):  # the first is parsed, the next are known heads
        for name, client in clients.items():
            assert client.rows("SELECT b FROM t") == [[name]]


def test_an_unknown_name_is_404_and_makes_no_file(three: Many) -> None:
    before = sorted(os.listdir(three.folder))
    assert whose(three, "/db/nobody/v2/pipeline") == (404, "UNKNOWN_DATABASE")
    assert whose(three, x_namespace="nobody") == (404, "UNKNOWN_DATABASE")
    assert sorted(os.listdir(three.folder)) == before


def test_without_a_default_the_bare_address_is_404(tmp_path: Path) -> None:
    with many(made(tmp_path / "dbs", "a")) as served:
        assert whose(served) == (404, "UNKNOWN_DATABASE")
        assert Client(served.port).request("GET", "/health").status == 200
        assert served.of("a").request("GET", "/v3").status == 200


NAMES = [
    *("", ".", "..", "...", ".nearlite", ".git", "-a", "_a", "a.b", "a/b", "a\\b", "a b", "A", "aA"),
    *("a\0", "\0", "a\n", "a\r\n", "ä", "\u0430", "\uff41", "ß", "\ufb01", "a\u200b", "\u212a", "\u017f", "a:b", "a%2fb", "~", "a" * 65),
    *("con.", "a;b", "a'b", 'a"b', "a?b", "a#b", "a*", "$a", "a|b", "../a", "a/../b", "\u0661"),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_name(name: str) -> None:
    assert not is_name(name)


def test_names() -> None:
    for name in ("a", "0", "a-b_c", "default", "a" * 64, "3f0c1d8e-1b1f-4c59-8f6c-1f2a9f1c2d3e"):
        assert is_name(name)


def raw(port: int, target: bytes, *headers: bytes) -> bytes:
    """The status of a request whose target is sent as it is."""
    body = b'{"requests":[{"type":"execute","stmt":{"sql":"SELECT b FROM t"}}]}'
    with socket.create_connection(("127.0.0.1", port), 10) as link:
        link.sendall(
            b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n%b"
            % (target, len(body), b"".join(line + b"\r\n" for line in headers), body)
        )
        answer = b""
        while piece := link.recv(65536):
            answer += piece
    return answer


TRAVERSAL = [
    b"/db/../v2/pipeline",
    b"/db/%2e%2e/v2/pipeline",
    b"/db/%2e%2e%2f%2e%2e/v2/pipeline",
    b"/db/..%2f..%2fsecret/v2/pipeline",
    b"/db/%252e%252e/v2/pipeline",
    b"/db/..%5c..%5csecret/v2/pipeline",
    b"/db/.nearlite/v2/pipeline",
    b"/db/%2Enearlite/v2/pipeline",
    b"/db/a%00/v2/pipeline",
    b"/db/%00a/v2/pipeline",
    b"/db/%c0%ae%c0%ae/v2/pipeline",
    b"/db/%EF%BC%8E%EF%BC%8E/v2/pipeline",
    b"/db/A/v2/pipeline",
    b"/db/%E2%84%AA/v2/pipeline",
    b"/db/secret/v2/pipeline",
    b"/db//v2/pipeline",
    b"//db/../../v2/pipeline",
    b"/db/a.db/v2/pipeline",
    b"/db/a%2Fdata.db/v2/pipeline",
    b"/db/a/../secret/v2/pipeline",
    b"/db/a;x/v2/pipeline",
    b"/db/link/v2/pipeline",
    b"/db/%s/v2/pipeline" % (b"a" * 3000),
]


def test_nothing_outside_the_folder_is_reached(tmp_path: Path) -> None:
    folder = made(tmp_path / "dbs", "a", "b", "sly")
    secret = made(tmp_path / "elsewhere", "secret") / "secret"
    (folder / "link").symlink_to(secret)
    (folder / "sly" / "data.db").unlink()
    (folder / "sly" / "data.db").symlink_to(secret / "data.db")
    (folder / "b" / "data.db-wal").unlink(missing_ok=True)
    (folder / "b" / "data.db-wal").symlink_to(tmp_path / "made-by-us")
    before = {path for path in tmp_path.rglob("*") if ".nearlite" not in path.parts}
    with many(folder) as served:
        for target in TRAVERSAL:
            answer = raw(served.port, target)
            status = int(answer.split(b" ", 2)[1])
            assert status in (400, 404), (target, answer)
            assert b'"code"' in answer, target
        for value in (
            b"..",
            b"../elsewhere/secret",
            b"/etc",
            b"a/../b",
            b"link",
            b".nearlite",
            b"\xff",
        ):
            answer = raw(served.port, b"/v2/pipeline", b"x-namespace: " + value)
            assert int(answer.split(b" ", 2)[1]) in (400, 404), (value, answer)
            coded = base64.b64encode(value)
            answer = raw(served.port, b"/v2/pipeline", b"x-namespace-bin: " + coded)
            assert int(answer.split(b" ", 2)[1]) in (400, 404), (value, answer)
        assert b" 400 " in raw(served.port, b"/v2/pipeline", b"x-namespace-bin: ?")
        for name in ("sly", "b"):  # they lie in their folder, and something in it leads out
            reply = served.of(name).request("GET", "/nl/v1/status")
            assert (reply.status, reply.json["code"]) == (503, "DATABASE_UNAVAILABLE")
        assert served.of("a").request("GET", "/nl/v1/status").status == 200
    after = {path for path in tmp_path.rglob("*") if ".nearlite" not in path.parts}
    assert {
        path.relative_to(folder / "a") for path in after - before if path.is_relative_to(folder)
    }
    assert {path for path in after - before if not path.is_relative_to(folder / "a")} == set()


def test_an_answer_to_a_guess_tells_nothing_without_a_token(tmp_path: Path) -> None:
    with many(made(tmp_path / "dbs", "a"), auth_token="right") as served:
        for name in ("a", "nobody"):
            assert served.of(name).request("POST", "/v2/pipeline", b"{}").status == 401
        assert len(served.app.residents) == 0  # and opens nothing
        assert served.of("a", "right").rows("SELECT 1") == [[1]]


# ---------------------------------------------------------------- apart from each other


def test_a_baton_is_good_in_its_own_database_only(three: Many) -> None:
    a, b = three.of("a"), three.of("b")
    baton = a.pipeline(execute("BEGIN IMMEDIATE"))["baton"]
    body = b'{"baton":"%b","requests":[{"type":"get_autocommit"}]}' % baton.encode()
    reply = b.request("POST", "/v3/pipeline", body)
    assert (reply.status, reply.json["code"]) == (400, "BATON_INVALID")
    answer = a.pipeline({"type": "get_autocommit"}, baton=baton)
    assert answer["results"][0]["response"]["is_autocommit"] is False


def test_a_token_is_good_for_the_databases_that_it_names(tmp_path: Path) -> None:
    public = make_keys(tmp_path / "key")
    key = private_key(tmp_path / "key")
    folder = made(tmp_path / "dbs", "a", "b", "default")
    with many(folder, auth_jwt_key=public.read_text()) as served:
        a, both = mint(key, databases=["a"]), mint(key, databases=["a", "b"])
        reads = mint(key, databases=["a"], write=False)
        for _ in range(2):  # parsed, and by the short cut
            assert served.of("a", a).rows("SELECT 1") == [[1]]
            assert served.of("b", both).rows("SELECT 1") == [[1]]
            for client in (served.of("b", a), Client(served.port, a), served.of("nobody", a)):
                for method, path in (
                    ("POST", "/v2/pipeline"),
                    ("GET", "/nl/v1/status"),
                    ("GET", "/info"),
                ):
                    assert (
                        client.request(method, path, b"" if method == "POST" else None).status
                        == 404
                    )
        (error,) = served.of("a", reads).run(CREATE)
        assert "reading only" in error["message"]


def test_replicas_follow_their_own_database(three: Many, tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.replica" for name in ("a", "b")}
    links = {
        name: nearlite.connect(path, sync_url=f"{three.url}/db/{name}", sync_interval="live")
        for name, path in paths.items()
    }
    for name, link in links.items():
        link.execute("INSERT INTO t(b) VALUES(?)", (name * 2,))
        link.commit()
        assert link.execute("SELECT b FROM t").fetchall() == [(name,), (name * 2,)]
    for name in paths:
        three.of(name).run("INSERT INTO t(b) VALUES('more')")
    for name, link in links.items():
        link.sync()
        assert link.execute("SELECT b FROM t").fetchall() == [(name,), (name * 2,), ("more",)]
        link.close()
    # The same file at another database is refused, and stays as it is.
    with closing(nearlite.connect(paths["a"], sync_url=f"{three.url}/db/b")) as wrong:
        with pytest.raises(errors.LineageError):
            wrong.sync()
        assert wrong.execute("SELECT count(*) FROM t").fetchone() == (3,)


# ---------------------------------------------------------------- a bounded number open


def test_many_databases_with_few_open_under_load(tmp_path: Path) -> None:
    names = [f"d{i}" for i in range(20)]
    with many(made(tmp_path / "dbs", *names), most_open=4) as served:
        most = []

        def work(number: int) -> None:
            clients = {name: served.of(name) for name in names}
            for turn in range(8):
                name = names[(number * 7 + turn * 3) % len(names)]
                client = clients[name]
                if turn == 0:
                    client.run("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, b)")
                    continue
                client.run("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, b)")
                baton = client.pipeline(
                    execute("BEGIN IMMEDIATE"), execute("INSERT INTO t(b) VALUES(1)")
                )["baton"]
                most.append(len(served.app.residents))
                answer = client.pipeline(execute("COMMIT"), {"type": "close"}, baton=baton)
                assert [result["type"] for result in answer["results"]] == ["ok", "ok"]
            for client in clients.values():
                client.close()

        with ThreadPoolExecutor(
            3
        ) as pool:  # as many transactions as there can be, and one to spare
            list(pool.map(work, range(6)))
        assert max(most) <= 4
        written = sum(
            served.of(name).rows("SELECT count(*) FROM t")[0][0]
            for name in names
            if served.of(name).rows("SELECT count(*) FROM sqlite_schema WHERE name = 't'") == [[1]]
        )
        assert written == 6 * 7
        assert len(served.app.residents) <= 4


def test_what_is_in_use_is_not_closed_and_others_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nearlite.residents._PATIENCE", 0.3)
    with many(made(tmp_path / "dbs", "a", "b", "c"), most_open=2) as served:
        a, b = served.of("a"), served.of("b")
        a.run(CREATE)
        baton = a.pipeline(execute("BEGIN IMMEDIATE"), execute("INSERT INTO t(b) VALUES(1)"))[
            "baton"
        ]
        position = b.request("GET", "/nl/v1/status").json["position"]
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(b.request, "GET", f"/nl/v1/changes/{position}?wait=20&z=0")
            while not served.app.residents._slots["b"].in_use:
                pass
            reply = served.of("c").request("GET", "/nl/v1/status")
            assert (reply.status, reply.json["code"]) == (503, "TOO_MANY_DATABASES")
            assert not waiting.done()
            a.pipeline(execute("COMMIT"), {"type": "close"}, baton=baton)  # now one may go
            assert served.of("c").request("GET", "/nl/v1/status").status == 200
            assert not waiting.done()
            served.of("b").run(CREATE)
            assert waiting.result(20).status == 200
        assert served.of("a").rows("SELECT count(*) FROM t") == [[1]]


def test_an_idle_database_has_no_thread_and_is_closed_in_the_end(tmp_path: Path) -> None:
    others = set(threading.enumerate())  # of servers that other tests keep
    with many(made(tmp_path / "dbs", "a")) as served:
        client = served.of("a")
        client.run(CREATE)
        baton = client.pipeline(execute("SELECT 1"))["baton"]
        app = served.app.residents._slots["a"].app
        done = threading.Event()
        rest = app.rest
        app.rest = lambda: (rest(), done.set())
        assert done.wait(20)
        eventually(
            lambda: all(
                thread in others or thread.name != "nearlite-writer"
                for thread in threading.enumerate()
            )
        )
        client.run("INSERT INTO t(b) VALUES(1)")  # and it all comes again
        assert client.rows("SELECT count(*) FROM t") == [[1]]
        served.app.residents._idle = 0.0
        while len(served.app.residents):
            pass
        # The baton of a stream with nothing in it outlives that.
        answer = client.pipeline(execute("SELECT count(*) FROM t"), baton=baton)
        assert rows(outcome(answer["results"][0])) == [[1]]


def test_a_damaged_database_harms_no_other(tmp_path: Path) -> None:
    folder = made(tmp_path / "dbs", "good", "bad", "worse", "gone")
    (folder / "bad" / "data.db").write_bytes(b"not a database" * 1000)
    (folder / "worse" / "config.json").write_text("{")
    (folder / "gone" / "data.db").unlink()
    with many(folder) as served:
        for name in ("bad", "worse", "gone"):
            reply = served.of(name).request("GET", "/nl/v1/status")
            assert (reply.status, reply.json["code"]) == (503, "DATABASE_UNAVAILABLE")
        assert served.of("good").rows("SELECT 1") == [[1]]
        listed = {
            one["name"]: one for one in served.admin("GET", "/v1/namespaces").json["namespaces"]
        }
        assert [name for name in listed if not listed[name]["usable"]] == ["worse"]
        assert served.admin("DELETE", "/v1/namespaces/worse").status == 200
    assert not (folder / "gone" / "data.db").exists()


def test_a_second_server_on_the_folder_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path / "dbs", "a")
    with many(folder):
        with pytest.raises(errors.OperationalError, match="already served by process"):
            Catalog(folder)
        command = [
            sys.executable,
            "-m",
            "nearlite",
            "serve",
            "--data-dir",
            folder,
            "--listen",
            "127.0.0.1:0",
        ]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        assert answer.returncode == 1
        assert "already served by process" in answer.stderr
    Catalog(folder).close()


def test_sealed_databases(tmp_path: Path) -> None:
    key = nearlite.keys.key_of(b"k" * 32)
    with many(made(tmp_path / "dbs", "a", key=key), encryption_key=b"k" * 32) as served:
        served.create("b")
        for name in ("a", "b"):
            served.of(name).run(CREATE, f"INSERT INTO t(b) VALUES('{name} in clear')")
        assert served.admin("POST", "/v1/namespaces/a/fork/c", {}).status == 200
        assert served.of("c").rows("SELECT b FROM t") == [["a in clear"]]
    for file in (tmp_path / "dbs").rglob("*"):
        assert not file.is_file() or b"in clear" not in file.read_bytes(), file
    with many(tmp_path / "dbs", encryption_key=b"x" * 32) as served:
        assert served.of("a").request("GET", "/nl/v1/status").status == 503


def test_stock_sqlite_reads_what_is_served(three: Many) -> None:
    with closing(sqlite3.connect(three.folder / "a" / "data.db")) as stock:
        assert stock.execute("SELECT b FROM t").fetchall() == [("a",)]


def test_websockets_below_a_path_end_when_their_database_changes(three: Many) -> None:
    with talking(three.port, path="/db/a") as a, talking(three.port, path="/db/b") as b:
        for talker, name in ((a, "a"), (b, "b")):
            assert rows(talker.execute("SELECT b FROM t")) == [[name]]
        assert three.configure("a", block_reads=True).status == 200
        assert a.closed() == (1012, "The database is being changed or deleted; connect again")
        assert rows(b.execute("SELECT b FROM t")) == [["b"]]
    with talking(three.port, path="/db/a", hello=False) as a:
        assert a.hello()["error"]["code"] == "BLOCKED"
    with pytest.raises(InvalidStatus), talking(three.port, path="/db/nobody"):
        pass


# ---------------------------------------------------------------- WebSockets before a token

PROTOCOLS = ["hrana1", "hrana2", "hrana3"]


@pytest.fixture
def closed(tmp_path: Path) -> Any:
    """A server that asks for a token, with databases that nobody has opened."""
    with many(made(tmp_path / "dbs", "a", "b"), auth_token="T") as served:
        yield served


def opened(served: Many) -> int:
    return len(served.app.residents)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_is_opened_for_a_websocket_before_its_token(closed: Many, protocol: str) -> None:
    for name in ("a", "nobody"):
        refusals = []
        for jwt in (None, "wrong"):
            with talking(closed.port, protocol, path=f"/db/{name}", hello=False) as talker:
                refusals.append(talker.hello(jwt)["error"]["code"])
                assert talker.closed() == (1008, "The token is not good")
        assert refusals == ["AUTH_JWT_MISSING", "AUTH_JWT_INVALID"]
        for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": "Basic T"}):
            with pytest.raises(InvalidStatus) as refused:
                talking(
                    closed.port, protocol, path=f"/db/{name}", additional_headers=headers
                ).__enter__()
            assert refused.value.response.status_code == 401
    assert opened(closed) == 0
    with talking(closed.port, protocol, path="/db/a", hello=False) as talker:
        assert talker.hello("T") == {"type": "hello_ok"}
        assert opened(closed) == 1
        talker.open()
        assert rows(talker.execute("SELECT 1")) == [[1]]
    with talking(closed.port, protocol, path="/db/nobody", hello=False) as talker:
        assert talker.hello("T")["error"]["code"] == "UNKNOWN_DATABASE"
        assert talker.closed() == (1008, "UNKNOWN_DATABASE")


def test_requests_behind_a_hello_wait_for_the_database(closed: Many) -> None:
    with talking(closed.port, path="/db/a", hello=False) as talker:
        talker.say({"type": "hello", "jwt": "T"})
        number = talker.begin("open_stream", stream_id=0)
        queries = [
            talker.begin("execute", stream_id=0, stmt={"sql": f"SELECT {n}"}) for n in range(40)
        ]
        assert talker.hear() == {"type": "hello_ok"}
        assert talker.end(number) == {"type": "open_stream"}
        assert [rows(talker.end(query)["result"]) for query in queries] == [
            [[n]] for n in range(40)
        ]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\0\xff", 1003),
        ("{", 1007),
        ('{"type":"hello"', 1007),
        ('{"type":"request","request_id":1,"request":{"type":"open_stream","stream_id":0}}', 1008),
    ],
)
def test_what_is_no_hello_ends_it(closed: Many, message: Any, code: int) -> None:
    with talking(closed.port, path="/db/a", hello=False) as talker:
        talker.socket.send(message)
        assert talker.closed()[0] == code
    assert opened(closed) == 0


def test_who_says_nothing_is_dropped(closed: Many, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "HELLO_SECONDS", 0.1)
    with talking(closed.port, path="/db/a", hello=False) as talker:
        assert talker.closed() == (1008, "No hello message has come in time")
    with talking(closed.port, path="/db/a", hello=False):
        pass  # and who leaves
    assert opened(closed) == 0
    assert status(closed) == 200


def status(served: Many) -> int:
    return served.of("a", "T").request("GET", "/nl/v1/status").status


def test_a_created_database_is_no_reason_to_warn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with many(tmp_path / "dbs") as served:
        served.create("a", "b")
        served.of("a").run(CREATE)
        assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_streams_of_one_client_count_together(tmp_path: Path) -> None:
    limits = nearlite.Limits(max_streams_per_client=3)
    store = {"type": "store_sql", "sql_id": 1, "sql": "SELECT 8"}
    with many(made(tmp_path / "dbs", "a", "b"), limits=limits) as served:
        a, b = served.of("a"), served.of("b")
        for _ in range(5):  # nobody would miss these
            a.pipeline(execute("SELECT 1"))
            b.pipeline(execute("SELECT 1"))
        batons = [client.pipeline(store)["baton"] for client in (a, b, a)]
        for client in (a, b):
            body = b'{"requests":[{"type":"store_sql","sql_id":1,"sql":"SELECT 8"}]}'
            reply = client.request("POST", "/v3/pipeline", body)
            assert (reply.status, reply.json["code"]) == (429, "TOO_MANY_STREAMS")
        b.pipeline({"type": "close"}, baton=batons[1])
        a.pipeline(store)
        assert (
            served.configure("a", block_writes=True).status == 200
        )  # opened anew, without streams
        for _ in range(3):
            b.pipeline(store)
