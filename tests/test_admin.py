"""The admin API: databases are made, copied, deleted, blocked and limited while the server runs."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hosting import CREATE, Many, made, many
from prometheus_client.parser import text_string_to_metric_families
from serving import Client, close_clients, execute

import nearlite
from nearlite import errors
from nearlite.administration import Administration
from nearlite.catalog import Catalog
from nearlite.cli import main
from nearlite.exchange import HttpError
from nearlite.minting import make_keys, mint, private_key

FILL = "INSERT INTO t(b) WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 500) SELECT randomblob(200) FROM n"
SUM = "SELECT count(*), total(length(b)), hex(max(b)) FROM t"


@pytest.fixture
def served(tmp_path: Path) -> Any:
    with many(made(tmp_path / "dbs", "a")) as found:
        found.of("a").run(CREATE, FILL)
        yield found


def test_made_listed_and_deleted(served: Many) -> None:
    assert "Welcome" in served.admin("GET", "/").body.decode()
    served.create("b")
    assert served.of("b").rows("SELECT count(*) FROM sqlite_schema") == [[0]]
    names = [one["name"] for one in served.admin("GET", "/v1/namespaces").json["namespaces"]]
    assert names == ["a", "b"]
    again = served.admin("POST", "/v1/namespaces/b/create", {})
    assert (again.status, again.json["code"]) == (400, "DATABASE_EXISTS")
    lineage = served.of("b").request("GET", "/nl/v1/status").json["position"].split("/")[0]
    assert served.admin("DELETE", "/v1/namespaces/b").status == 200
    assert served.of("b").request("GET", "/nl/v1/status").status == 404
    assert served.admin("DELETE", "/v1/namespaces/b").status == 404
    assert os.listdir(served.folder / ".nearlite" / "old") == []
    served.create("b")
    position = served.of("b").request("GET", "/nl/v1/status").json["position"]
    assert position.split("/")[0] != lineage


def test_what_is_kept_of_a_deleted_database_is_all_of_it(served: Many) -> None:
    (expected,) = served.of("a").rows(SUM)
    kept = served.admin("DELETE", "/v1/namespaces/a", {"keep_backup": True}).json["backup"]
    with closing(sqlite3.connect(served.folder / ".nearlite" / "kept" / kept / "data.db")) as stock:
        assert list(stock.execute(SUM).fetchone()) == expected


@pytest.mark.parametrize(
    "body",
    [
        *({"shared_schema": True}, {"bottomless_db_id": "x"}, {"heartbeat_url": "http://x"}),
        *({"allow_attach": True}, {"max_db_size": "many"}, {"max_db_size": 1}, {"nonsense": 1}),
        *({"durability_mode": "off"}, {"jwt_key": "no key"}, {"txn_timeout_s": 0}, {"max_row_size": -1}),
        *({"dump_url": "file:relative"}, {"dump_url": "file:///nowhere"}, {"dump_url": "ftp://x/y"}, {"dump_url": 1}),
        *({"block_reads": 1}, {"block_reason": "x" * 2000}, [], "x"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_served_is_refused_and_makes_nothing(served: Many, body: Any) -> None:
    reply = served.admin("POST", "/v1/namespaces/b/create", body)
    assert reply.status == 400, reply.body
    assert reply.json["message"]
    assert sorted(os.listdir(served.folder)) == [".nearlite", "a"]
    assert os.listdir(served.folder / ".nearlite" / "new") == []


def test_names_of_the_admin_api_are_checked_like_all_others(served: Many) -> None:
    for name in ("A", "%2e%2e", ".nearlite", "a%00", "a.b", "x" * 65, "%C3%A4"):
        for method, path in (
            ("POST", "create"),
            ("GET", "config"),
            ("GET", "stats"),
            ("POST", "fork/c"),
        ):
            reply = served.admin(
                method, f"/v1/namespaces/{name}/{path}", {} if method == "POST" else None
            )
            assert (reply.status, reply.json["code"]) == (400, "INVALID_NAME"), (name, path)
    assert served.admin("POST", "/v1/namespaces/a/fork/B", {}).status == 400
    assert served.admin("POST", "/v1/namespaces/nobody/fork/b", {}).status == 404
    assert served.admin("POST", "/v1/namespaces/a/fork/a", {}).status == 400
    assert served.admin("GET", "/v1/nothing").status == 404
    assert served.admin("PUT", "/v1/namespaces/a/config").status == 405


def test_the_token_of_the_admin_api(tmp_path: Path) -> None:
    with many(made(tmp_path / "dbs", "a"), admin_token="boss", auth_token="user") as served:
        assert served.admin("GET", "/v1/namespaces").status == 200
        for token in (None, "user", "bos"):
            reply = Client(served.admin_port, token).request(
                "POST", "/v1/namespaces/b/create", b"{}"
            )
            assert reply.status == 401
        # The data's listener has none of it.
        reply = Client(served.port, "boss").request("POST", "/v1/namespaces/b/create", b"{}")
        assert reply.status in (401, 404)
    assert not (tmp_path / "dbs" / "b").exists()


def test_a_page_from_elsewhere_cannot_administrate(served: Many) -> None:
    reply = Client(served.admin_port).request(
        "POST", "/v1/namespaces/b/create", b"{}", origin="http://evil.example"
    )
    assert reply.status == 403


# ---------------------------------------------------------------- dumps


def test_a_dump_is_loaded_whole_or_not_at_all(served: Many, tmp_path: Path) -> None:
    dump = tmp_path / "dump.sql"
    with closing(sqlite3.connect(":memory:")) as stock:
        stock.executescript(
            "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, b); CREATE INDEX i ON t(b);"
            "INSERT INTO t(b) VALUES('one; two'), (x'00ff'), (1.5);"
            "CREATE TRIGGER r AFTER INSERT ON t BEGIN UPDATE t SET b = 2 WHERE id = 1; END;"
        )
        dump.write_text("PRAGMA foreign_keys=OFF;\n" + "\n".join(stock.iterdump()))
    served.create("b", dump_url=dump.as_uri())
    assert served.of("b").rows("SELECT count(*), max(id) FROM t") == [[3, 3]]
    for text, told in (
        ("CREATE TABLE t(b);", "within a transaction"),
        ("BEGIN; CREATE TABLE t(b);", "commit the transaction"),
        ("BEGIN; ATTACH 'x.db' AS x; COMMIT;", "SQL_PARSE_ERROR"),
        ("BEGIN; CREATE TABLE t(b); nonsense; COMMIT;", "statement 3"),
        ("BEGIN; SELECT '" + "x" * (2 << 20), "statement"),
    ):
        dump.write_text(text)
        reply = served.admin("POST", "/v1/namespaces/c/create", {"dump_url": dump.as_uri()})
        assert (reply.status, told in reply.json["message"]) == (400, True), reply.body
        assert served.of("c").request("GET", "/nl/v1/status").status == 404
    dump.write_bytes(b"BEGIN; INSERT INTO t VALUES('\xff'); COMMIT;")
    assert (
        served.admin("POST", "/v1/namespaces/c/create", {"dump_url": dump.as_uri()}).status == 400
    )


def test_a_dump_comes_over_http_as_well(served: Many, tmp_path: Path) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/away":
                self.send_response(302)
                self.send_header("location", (tmp_path / "secret").as_uri())
                self.end_headers()
                return
            self.send_response(200 if self.path == "/dump" else 404)
            self.end_headers()
            self.wfile.write(b"BEGIN; CREATE TABLE u(b); COMMIT;")

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{web.server_port}"
        served.create("b", dump_url=f"{url}/dump")
        assert served.of("b").rows("SELECT count(*) FROM u") == [[0]]
        for path in ("/nothing", "/away"):
            assert (
                served.admin("POST", "/v1/namespaces/c/create", {"dump_url": url + path}).status
                == 400
            )
        web.shutdown()


class Dripping:
    """A web server that sends the beginning of a dump, and then hardly anything for ever."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/dump"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        link, _ = self._listener.accept()
        with link, contextlib.suppress(OSError):
            link.recv(65536)
            link.sendall(b"HTTP/1.1 200 OK\r\n\r\nBEGIN; CREATE TABLE u(b); -- ")
            self.asked.set()
            while not self._over.wait(0.02):
                link.sendall(b"x")

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._listener.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nBEGIN; ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\nBEGIN; CREATE TABLE u(b); ",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"no HTTP at all\r\n\r\n",
        b"",
    ],
)
def test_a_dump_that_breaks_off_makes_nothing(served: Many, answer: bytes) -> None:
    with ThreadPoolExecutor() as pool, socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(65536)
                link.sendall(answer)

        serving = pool.submit(serve)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        reply = served.admin("POST", "/v1/namespaces/c/create", {"dump_url": url})
        serving.result(20)
    assert reply.status == 400
    assert served.of("c").request("GET", "/nl/v1/status").status == 404
    assert os.listdir(served.folder / ".nearlite" / "new") == []


def test_a_server_ends_while_a_dump_hardly_comes(tmp_path: Path) -> None:
    folder = tmp_path / "dbs"
    with ThreadPoolExecutor() as pool, closing(Dripping()) as web:
        with many(made(folder, "a")) as served:
            target, body = "/v1/namespaces/b/create", {"dump_url": web.url}
            coming = pool.submit(served.admin, "POST", target, body)
            assert web.asked.wait(20)
            began = time.monotonic()
        assert time.monotonic() - began < 10
        with contextlib.suppress(http.client.HTTPException, OSError):  # its connection may be cut
            assert coming.result(20).json["code"] == "SHUTTING_DOWN"
    assert list((folder / ".nearlite" / "new").iterdir()) == []
    with many(folder) as served:
        assert served.of("b").request("GET", "/nl/v1/status").status == 404
        served.create("b")


def test_a_folder_stays_a_servers_until_a_change_that_it_has_begun_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "dbs"

    async def end(app: Any, administration: Administration) -> None:
        making = asyncio.ensure_future(administration.create("b", {}))
        while not app._changes:  # noqa: ASYNC110 - of a few turns
            await asyncio.sleep(0)
        ending = asyncio.ensure_future(app.shutdown())
        await asyncio.sleep(0)
        assert not making.done()
        with pytest.raises(HttpError, match="about to end"):
            await administration.create("c", {})
        await making
        await ending
        await app.shutdown()

    async def all_of_it() -> None:
        app = nearlite.asgi(data_dir=folder)
        await app.startup()
        await end(app, Administration(app))

    asyncio.run(all_of_it())
    with closing(Catalog(folder)) as catalog:
        assert set(catalog.configs) == {"b"}


def test_what_is_wrong_with_a_file_is_not_told_in_its_words(
    served: Many, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "shadow").write_text("root:hash-of-a-secret:0:0::/root:/bin/sh\n")
    (tmp_path / "later").write_text("BEGIN; CREATE TABLE t(b); hash-of-a-secret; COMMIT;")
    for name in ("shadow", "later"):
        url = (tmp_path / name).as_uri()
        reply = served.admin("POST", "/v1/namespaces/c/create", {"dump_url": url})
        assert reply.status == 400
        assert b"hash" not in reply.body
        assert b"root" not in reply.body
        assert "the server's log says more" in reply.json["message"]
    assert "hash" in caplog.text


def test_a_dump_is_held_to_the_size_of_the_database(served: Many, tmp_path: Path) -> None:
    dump = tmp_path / "dump.sql"
    dump.write_text("BEGIN; CREATE TABLE t(b); INSERT INTO t VALUES(zeroblob(300000)); COMMIT;")
    asked = {"dump_url": dump.as_uri(), "max_db_size": 100_000}
    reply = served.admin("POST", "/v1/namespaces/c/create", asked)
    assert (reply.status, "SQLITE_FULL" in reply.json["message"]) == (400, True)
    served.create("c", **{**asked, "max_db_size": 1_000_000})


# ---------------------------------------------------------------- forks


def test_a_fork_is_of_one_position_while_the_source_is_written(served: Many) -> None:
    served.of("a").run("CREATE TABLE pair(one, two)", "INSERT INTO pair VALUES(0, 0)")
    done = threading.Event()

    def write() -> int:
        client, count = served.of("a"), 0
        while not done.is_set():
            count += 1
            client.run(f"UPDATE pair SET one = {count}, two = {count}", FILL)
        return count

    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(write)
        for number in range(4):
            assert served.admin("POST", f"/v1/namespaces/a/fork/f{number}", {}).status == 200
        done.set()
        assert writing.result(30) > 0
    for number in range(4):
        fork = served.of(f"f{number}")
        ((one, two),) = fork.rows("SELECT one, two FROM pair")
        assert one == two
        ((count,),) = fork.rows("SELECT count(*) FROM t")
        assert count in (500 * one, 500 * (one + 1))
        assert fork.rows("PRAGMA integrity_check") == [["ok"]]


def test_a_fork_shares_nothing_and_has_a_history_of_its_own(served: Many, tmp_path: Path) -> None:
    replica = tmp_path / "replica.db"
    nearlite.connect(replica, sync_url=f"{served.url}/db/a").close()
    (expected,) = served.of("a").rows(SUM)
    assert served.admin("POST", "/v1/namespaces/a/fork/b", {}).status == 200
    assert served.of("b").rows(SUM) == [expected]
    served.of("b").run("DELETE FROM t")
    assert served.of("a").rows(SUM) == [expected]
    served.of("a").run(FILL)
    assert served.of("b").rows("SELECT count(*) FROM t") == [[0]]
    inodes = [
        {file.stat().st_ino for file in (served.folder / name).rglob("*")} for name in ("a", "b")
    ]
    assert not inodes[0] & inodes[1]
    link = nearlite.connect(replica, sync_url=f"{served.url}/db/b")
    with closing(link), pytest.raises(errors.LineageError):
        link.sync()
    # And follows its own as before.
    with closing(nearlite.connect(replica, sync_url=f"{served.url}/db/a")) as link:
        link.sync()
        assert link.execute("SELECT count(*) FROM t").fetchone() == (1000,)


# ---------------------------------------------------------------- configurations


def test_blocked_writes(served: Many, tmp_path: Path) -> None:
    client = served.of("a")
    baton = client.pipeline(execute("BEGIN IMMEDIATE"), execute("INSERT INTO t(b) VALUES('lost')"))[
        "baton"
    ]
    assert served.configure("a", block_writes=True, block_reason="quota").status == 200
    ((count,),) = client.rows("SELECT count(*) FROM t")
    assert count == 500
    for sql in (
        "INSERT INTO t(b) VALUES(1)",
        "CREATE TABLE u(b)",
        "PRAGMA user_version = 3",
        "VACUUM",
    ):
        (error,) = client.run(sql)
        assert (error["code"], error["message"]) == ("BLOCKED", "Operation was blocked: quota"), (
            error
        )
    body = json.dumps({"baton": baton, "requests": [execute("COMMIT")]}).encode()
    assert client.request("POST", "/v3/pipeline", body).json["code"] == "STREAM_EXPIRED"
    with closing(nearlite.connect(tmp_path / "r.db", sync_url=f"{served.url}/db/a")) as link:
        assert link.execute("SELECT count(*) FROM t").fetchone() == (500,)
        with pytest.raises(nearlite.Error, match="Operation was blocked: quota"):
            link.execute("INSERT INTO t(b) VALUES(1)")
    assert served.configure("a").status == 200
    client.run("INSERT INTO t(b) VALUES(1)")
    assert client.rows("SELECT count(*) FROM t") == [[501]]


def test_blocked_reads_on_every_route(served: Many) -> None:
    client = served.of("a")
    position = client.request("GET", "/nl/v1/status").json["position"]
    assert served.configure("a", block_reads=True, block_reason="unpaid").status == 200
    select = b'{"requests":[{"type":"execute","stmt":{"sql":"SELECT 1"}}]}'
    for method, path, body in (
        ("POST", "/v2/pipeline", select),
        ("POST", "/v3/pipeline", select),
        ("POST", "/v3/cursor", b'{"batch":{"steps":[]}}'),
        ("POST", "/v1/execute", b'{"stmt":{"sql":"SELECT 1"}}'),
        ("POST", "/nl/v1/sql", select),
        ("POST", "/nl/v1/repair", b""),
        ("GET", "/nl/v1/status", None),
        ("GET", "/nl/v1/snapshot", None),
        ("GET", f"/nl/v1/changes/{position}?wait=10", None),
        ("GET", "/info", None),
        ("GET", "/export/1", None),
        ("GET", "/sync/1/1/2", None),
    ):
        for _ in range(2):
            reply = client.request(method, path, body)
            assert (reply.status, reply.json["code"]) == (403, "BLOCKED"), path
            assert reply.json["message"] == "Operation was blocked: unpaid"
    served.create("b")
    assert served.of("b").rows("SELECT 1") == [[1]]


def test_a_poll_that_waits_ends_when_its_database_is_blocked(served: Many) -> None:
    client = served.of("a")
    position = client.request("GET", "/nl/v1/status").json["position"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(served.of("a").request, "GET", f"/nl/v1/changes/{position}?wait=25")
        while not served.app.residents._slots["a"].in_use:
            pass
        served.configure("a", block_reads=True)
        assert waiting.result(10).status in (204, 403)


def test_limits(served: Many) -> None:
    served.create("b", max_db_size="200KB", max_row_size=10_000, durability_mode="strong")
    client = served.of("b")
    client.run(CREATE)
    (error,) = client.run("INSERT INTO t(b) VALUES(zeroblob(20000))")
    assert error["code"] == "SQLITE_TOOBIG"
    (error,) = client.run(FILL.replace("randomblob(200)", "randomblob(1000)"))
    assert error["code"] == "SQLITE_FULL"
    client.run("INSERT INTO t(b) VALUES(1)")
    assert client.rows("SELECT count(*) FROM t") == [[1]]


def test_a_key_of_its_own_replaces_the_servers(tmp_path: Path) -> None:
    texts = [make_keys(tmp_path / name).read_text() for name in ("one", "two")]
    one, two = (mint(private_key(tmp_path / name)) for name in ("one", "two"))
    with many(
        made(tmp_path / "dbs", "a", "b"), auth_jwt_key=texts[0], auth_token="static"
    ) as served:
        assert served.of("a", one).rows("SELECT 1") == [[1]]
        assert served.configure("a", jwt_key=texts[1]).status == 200
        for token, answers in ((one, 401), ("static", 401), (two, 200)):
            assert served.of("a", token).request("GET", "/nl/v1/status").status == answers
        for token, answers in ((one, 200), ("static", 200), (two, 401)):
            assert served.of("b", token).request("GET", "/nl/v1/status").status == answers


def test_configurations_are_kept_and_told(served: Many) -> None:
    asked = {"block_writes": True, "block_reason": "why", "max_db_size": "1MB", "txn_timeout_s": 3}
    assert served.configure("a", **asked).status == 200
    told = served.admin("GET", "/v1/namespaces/a/config").json
    assert told["max_db_size"] == 1_000_000
    assert served.configure("a").status == 200  # what is absent: some are kept, some overwritten
    now = served.admin("GET", "/v1/namespaces/a/config").json
    assert (now["max_db_size"], now["block_reason"], now["txn_timeout_s"]) == (
        1_000_000,
        None,
        None,
    )
    reply = served.admin("POST", "/v1/namespaces/a/config", {"block_reads": True})
    assert (reply.status, "block_writes is missing" in reply.json["message"]) == (400, True)
    served.configure("a", **asked)
    catalog = json.loads((served.folder / "a" / "config.json").read_text())
    assert catalog["block_reason"] == "why"


def test_checkpoint_and_stats(served: Many) -> None:
    client = served.of("a")
    assert served.admin("POST", "/v1/namespaces/a/checkpoint").status == 200
    assert (served.folder / "a" / "data.db-wal").stat().st_size == 0
    client.rows("SELECT count(*) FROM t")
    client.rows("SELECT id FROM t LIMIT 7")
    client.rows(
        "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 60000) SELECT sum(i) FROM n"
    )
    stats = served.admin("GET", "/v1/namespaces/a/stats").json
    assert stats["rows_written_count"] == 500
    assert stats["rows_read_count"] >= 9
    assert stats["query_count"] >= 5
    assert stats["storage_bytes_used"] > 100_000
    assert any("RECURSIVE n" in one["query"] for one in stats["slowest_queries"])
    served.configure("a")  # it is opened anew, and what was counted stays
    assert served.admin("GET", "/v1/namespaces/a/stats").json["rows_written_count"] == 500
    assert served.admin("DELETE", "/v1/namespaces/a/stats/slowest").status == 200
    assert served.admin("GET", "/v1/namespaces/a/stats").json["slowest_queries"] == []
    assert served.admin("DELETE", "/v1/namespaces/a/stats/nothing").status == 404


# ---------------------------------------------------------------- under load, and killed


def test_deleted_and_made_again_under_load(served: Many) -> None:
    done = threading.Event()

    def ask(number: int) -> set[int]:
        client, seen = served.of("b"), set()
        body = json.dumps({"requests": [execute("SELECT 1"), {"type": "close"}]}).encode()
        while not done.is_set():
            seen.add(client.request("POST", "/v2/pipeline", body).status)
        return seen

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, number) for number in range(3)]
        for _ in range(5):
            served.create("b")
            assert served.admin("DELETE", "/v1/namespaces/b").status == 200
        done.set()
        for one in asking:
            assert one.result(20) <= {200, 404, 503}
    served.create("b")
    assert served.of("b").rows("SELECT 1") == [[1]]


CHILD = """
import sys
from pathlib import Path
from nearlite.administration import Administration
from nearlite.catalog import Catalog
from nearlite.cli import main
from nearlite.configs import Config
from nearlite._native.database import Database
from nearlite.making import copied, empty
catalog = Catalog(Path(sys.argv[1]))
what = sys.argv[2]
if what == "create":
    catalog.create("new", Config(), empty)
elif what == "fork":
    one = Database(str(catalog.path("a")), create=False, readonly=True, checkpoint=False)
    catalog.create("new", Config(), lambda path: copied(path, one))
elif what == "delete":
    catalog.remove("a")
elif what == "keep":
    catalog.remove("a", keep=True)
else:
    catalog.configure("a", Config(block_writes=True, block_reason="x"))
print("done")
"""
POINTS = {
    "create": ("log.before-rename", "catalog.made", "catalog.named"),
    "fork": ("log.after-rename", "catalog.made", "catalog.named"),
    "delete": ("catalog.unnamed", "catalog.removed"),
    "keep": ("catalog.unnamed",),
    "configure": ("catalog.configured",),
}


@pytest.mark.parametrize(
    ("what", "point"), [(what, point) for what, points in POINTS.items() for point in points]
)
def test_killed_in_the_middle_there_is_a_database_or_none(
    tmp_path: Path, what: str, point: str
) -> None:
    folder = made(tmp_path / "dbs", "a")
    with closing(sqlite3.connect(folder / "a" / "data.db")) as stock:
        stock.execute("CREATE TABLE t(b)")
        stock.execute("INSERT INTO t VALUES('kept')")
        stock.commit()
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), what],
        env={**os.environ, "NEARLITE_FFI": "test", "NL_FAULT": f"{point}:kill"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    with many(folder) as served:
        there = {one["name"] for one in served.admin("GET", "/v1/namespaces").json["namespaces"]}
        assert {"a", "new"} >= there
        for name in there:
            client = served.of(name)
            assert client.rows("PRAGMA integrity_check") == [["ok"]]
            if name == "a" or what == "fork":
                assert client.rows("SELECT b FROM t") == [["kept"]]
        gone = what in ("delete", "keep")
        assert ("a" in there) is not gone
        assert ("new" in there) is (point == "catalog.named")
        for name in ("new", "a"):  # whatever was left is in nobody's way
            if name not in there:
                served.create(name)
    for name in ("new", "old"):
        assert os.listdir(folder / ".nearlite" / name) == []
    kept = os.listdir(folder / ".nearlite" / "kept")
    assert len(kept) == (1 if what == "keep" else 0)


# ---------------------------------------------------------------- nearlite db


class Told(NamedTuple):
    """What a command said, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Told:
    """Run `nearlite` in this process."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return Told(ended.value.code, out, err)


def test_the_command_in_a_folder_and_by_a_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def db(*arguments: object) -> Told:
        return command(capsys, "db", *arguments)

    folder = tmp_path / "dbs"
    folder.mkdir()
    dump = tmp_path / "d.sql"
    dump.write_text("BEGIN; CREATE TABLE t(b); INSERT INTO t VALUES(7); COMMIT;")
    here = ("--data-dir", folder)
    for arguments, code, told in (
        (("create", "a", "--dump", dump, *here), 0, "a: created"),
        (("create", "a", *here), 5, "already"),
        (("create", "A", *here), 2, "names no database"),
        (("create", "b"), 2, "--data-dir"),
        (("create", "b", "--data-dir", tmp_path / "nowhere"), 2, "no folder"),
        (("fork", "a", "b", *here), 0, "a copy of a"),
        (("fork", "x", "y", *here), 1, "no database x"),
        (("list", *here), 0, "a\nb\n"),
        (("delete", "x", *here), 1, "no database x"),
        (("delete", "b", *here), 0, "b: deleted"),
    ):
        answer = db(*arguments)
        assert answer.returncode == code, (arguments, answer)
        assert told in answer.stdout + answer.stderr
        assert "Traceback" not in answer.stderr
    with many(folder, admin_token="boss") as served:
        assert served.of("a").rows("SELECT b FROM t") == [[7]]
        busy = db("list", *here)
        assert (busy.returncode, "already served by process" in busy.stderr) == (1, True)
        there = ("--admin", served.admin_url)
        assert db("list", *there).returncode == 4
        monkeypatch.setenv("NEARLITE_ADMIN_TOKEN", "boss")
        assert db("fork", "a", "c", *there).returncode == 0
        assert served.of("c").rows("SELECT b FROM t") == [[7]]
        assert [
            json.loads(line)["name"] for line in db("list", "--json", *there).stdout.splitlines()
        ] == ["a", "c"]
        assert db("create", "a", *there).returncode == 1
        assert db("delete", "c", *there).returncode == 0
    assert db("list", "--admin", "http://127.0.0.1:1").returncode == 3


def test_serve_with_a_data_dir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "dbs", "a")
    for options, told in (
        ((), "serve one DATABASE"),
        ((tmp_path / "x.db", "--data-dir", folder), "serve one DATABASE"),
        (("--data-dir", folder, "--upstream", "http://x"), "--upstream is for one"),
        ((tmp_path / "x.db", "--admin-listen", "127.0.0.1:0"), "--admin-listen needs --data-dir"),
    ):
        answer = command(capsys, "serve", *options)
        assert answer.returncode == 2, answer
        assert told in answer.stderr
    far = ("--data-dir", folder, "--listen", "127.0.0.1:0", "--admin-listen", "0.0.0.0:0")
    answer = command(capsys, "serve", *far)
    assert (answer.returncode, "--admin-token-file" in answer.stderr) == (1, True)
    listen = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
    process = subprocess.Popen(
        [sys.executable, "-m", "nearlite", "serve", "--data-dir", str(folder), *listen],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    words = process.stdout.readline().split()
    port = int(words[words.index("at") + 1].rstrip(",").rpartition(":")[2])
    admin = int(words[-1].rpartition(":")[2])
    assert Client(admin).request("POST", "/v1/namespaces/b/create", b"{}").status == 200
    assert Client(port).request("GET", "/db/b/nl/v1/status").status == 200
    close_clients(admin)
    close_clients(port)
    process.terminate()
    assert process.wait(20) == 0
    process.stdout.close()
    Catalog(folder).close()


def test_what_all_databases_have_done_is_counted(tmp_path: Path) -> None:
    folder = made(tmp_path / "dbs", "a", "b")
    with many(folder, admin_token="boss", metrics=True, most_open=1) as served:
        for name in ("a", "b", "a"):  # each time the other one is closed
            served.of(name).run(CREATE.replace("TABLE", "TABLE IF NOT EXISTS"))
        served.of("a").rows("SELECT 1")
        refused = Client(served.admin_port, "wrong")
        assert refused.request("GET", "/metrics").status == 401
        reply = served.admin("GET", "/metrics")
        refused.close()
    assert reply.status == 200
    found = {
        (sample.name, sample.labels.get("route", "")): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }
    assert found["nearlite_databases", ""] == 2
    assert found["nearlite_databases_open", ""] == 1
    assert found["nearlite_commit_group_requests_bucket", ""] >= 2
    assert found["nearlite_http_requests_total", "/v3/pipeline"] == 4
    with many(folder) as served:
        assert served.admin("GET", "/metrics").status == 404
