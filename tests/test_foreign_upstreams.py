"""Edges of upstreams that are not nearlite: libSQL's sync (our own server with nothing else), and the real sqld."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from edges import Site, site
from foreigners import Below, Restricted, Sqld, admin, sqld, state_of
from serving import Client, batch, execute, outcome, rows, transaction
from talking import steps, talking
from test_background import eventually
from test_pulled_through import begin, follow

import nearlite
from nearlite import errors, minting
from nearlite.http import Deadline
from nearlite.keys import key_of
from nearlite.relay import Relay
from nearlite.sqld_client import SqldFeed

COUNT = "SELECT count(*) FROM t"
FILL = (
    "INSERT INTO t(b) WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {})"
    " SELECT randomblob(3000) FROM n"
)


class Wrap:
    """Restricts whatever is started; remembers what is asked of it."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.now = Restricted(None, **options)

    def __call__(self, app: Any) -> Restricted:
        self.now.app = app
        return self.now


@pytest.fixture(params=[True, False], ids=["named", "nameless"])
def wrap(request: pytest.FixtureRequest) -> Wrap:
    """A server that tells its lineage, as ours; and one that does not, as Turso Cloud."""
    return Wrap(named=request.param)


@pytest.fixture
def one(tmp_path: Path, wrap: Wrap) -> Iterator[Site]:
    with site(tmp_path, wrap, durability="normal") as made:
        Client(made.port).run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        yield made


def same(one: Site, edge: Any) -> None:
    """The edge holds what its primary does."""
    edge.relay.refresh()
    assert state_of(edge.path) == state_of(one.path)
    edge.relay.roll()
    assert state_of(edge.path) == state_of(one.path)


# ---------------------------------------------------------------- what comes


def test_an_edge_begins_and_follows(one: Site, wrap: Wrap) -> None:
    client = Client(one.port)
    client.run(FILL.format(200))
    wrap.now.took()
    edge = one.edge()
    assert [path.split("/")[1] for path in wrap.now.took()][:4] == ["nl", "info", "info", "export"]
    same(one, edge)
    changes = [
        "UPDATE t SET b = randomblob(2000) WHERE a % 3 = 0",
        "CREATE INDEX i ON t(b)",
        "DELETE FROM t WHERE a % 2",
        "CREATE TABLE u(x UNIQUE, y DEFAULT 'z'); INSERT INTO u(x) VALUES (1), (2)",
        "ALTER TABLE u ADD COLUMN w",
        "CREATE VIEW v AS SELECT x FROM u",
        "DROP INDEX i",
        "DELETE FROM t",
        "VACUUM",
        FILL.format(30),
        "PRAGMA user_version = 7",
        "DROP TABLE t",
        "VACUUM",
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b)",
    ]
    for change in changes:
        told = client.pipeline({"type": "sequence", "sql": change}, {"type": "close"})
        outcome(told["results"][0])
        same(one, edge)
    assert not any(path.startswith("/export/") for path in wrap.now.took())


def test_generations_that_end_are_gone_through(one: Site, wrap: Wrap) -> None:
    one.stop()
    one.start(durability="normal", roll_bytes=1 << 20)
    edge, client = one.edge(), Client(one.port)
    wrap.now.took()
    for _ in range(3):
        before = client.request("GET", "/info").json["current_generation"]
        client.run(FILL.format(300), "DELETE FROM t WHERE a % 2")
        eventually(
            lambda before=before: (  # type: ignore[misc]
                client.request("GET", "/info").json["current_generation"] > before
            )
        )
    same(one, edge)
    assert not any(path.startswith("/export/") for path in wrap.now.took())
    one.stop()  # ends a generation, too
    one.start(durability="normal")
    Client(one.port).run("INSERT INTO t(b) VALUES ('after')")
    same(one, edge)
    assert not any(path.startswith("/export/") for path in wrap.now.took())


def test_large_transactions_go_through_a_file(one: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    edge, client = one.edge(), Client(one.port)
    spools: list[int] = []
    made = edge.relay.upstream.spool
    monkeypatch.setattr(edge.relay.upstream, "spool", lambda: (spools.append(1), made())[1])
    client.run("INSERT INTO t(b) VALUES ('before')")
    client.run(FILL.format(14000))  # 42 MB
    same(one, edge)
    assert spools
    client.pipeline(transaction("UPDATE t SET b = 1 WHERE a % 2", "DELETE FROM t WHERE a > 100"))
    same(one, edge)
    client.pipeline({"type": "sequence", "sql": "VACUUM"})
    same(one, edge)


def test_replicas_below_follow(one: Site, tmp_path: Path) -> None:
    edge = one.edge(sync_interval="live")
    with closing(nearlite.connect(tmp_path / "leaf.db", sync_url=edge.url)) as leaf:
        leaf.follow()
        Client(one.port).run("INSERT INTO t(b) VALUES ('from above')")
        eventually(lambda: leaf.execute(COUNT).fetchone() == (1,))
        # What it writes goes up, and comes down through the edge, at once.
        leaf.execute("INSERT INTO t(b) VALUES ('from below')")
        leaf.commit()
        assert leaf.execute("SELECT b FROM t ORDER BY a").fetchall() == [
            ("from above",),
            ("from below",),
        ]
        assert Client(one.port).rows(COUNT) == [[2]]
        assert leaf.last_write_position == edge.relay.state().position
        with closing(nearlite.connect(edge.url)) as remote:
            remote.execute("DELETE FROM t WHERE a = 1")
            remote.commit()
            leaf.wait_for(remote.last_write_position)
        assert leaf.execute(COUNT).fetchone() == (1,)
    second = one.edge("second.db", above=edge.url)
    assert Client(second.port).rows(COUNT) == [[1]]
    Client(second.port).run("INSERT INTO t(b) VALUES ('from far below')")
    assert Client(second.port).rows(COUNT) == [[2]]
    assert Client(edge.port).rows(COUNT) == [[2]]


def test_a_transaction_that_read_below_is_refused_when_that_has_changed(
    one: Site, tmp_path: Path
) -> None:
    edge = one.edge()
    with closing(
        nearlite.connect(tmp_path / "leaf.db", sync_url=edge.url, isolation_level=None)
    ) as leaf:
        leaf.execute("BEGIN")
        assert leaf.execute(COUNT).fetchone() == (0,)
        leaf.execute("INSERT INTO t(b) VALUES (1)")
        leaf.execute("COMMIT")
        leaf.execute("BEGIN")
        assert leaf.execute(COUNT).fetchone() == (1,)
        Client(one.port).run("INSERT INTO t(b) VALUES (2)")
        with pytest.raises(errors.OperationalError, match="locked"):
            leaf.execute("INSERT INTO t(b) VALUES (3)")
        leaf.rollback()
        leaf.sync()
        leaf.execute("INSERT INTO t(b) VALUES (3)")
        assert leaf.execute(COUNT).fetchone() == (3,)
    assert Client(one.port).run("INSERT INTO t(b) VALUES (4)")[0]["affected_row_count"] == 1


# ---------------------------------------------------------------- SQL


def test_writes_are_read_here_and_on_another_edge(one: Site, wrap: Wrap) -> None:
    here, there = one.edge("here.db"), one.edge("there.db")
    client = Client(here.port)
    wrap.now.took()
    body = {"requests": [execute("INSERT INTO t(b) VALUES ('mine')"), {"type": "close"}]}
    reply = client.request("POST", "/v2/pipeline", json.dumps(body).encode())
    asked = wrap.now.took()
    assert asked[0] == "/v3/pipeline"
    assert [path.split("/")[1] for path in asked[1:]] == ["sync", "sync"]
    assert client.rows(COUNT) == [[1]]
    assert wrap.now.took() == []
    position = reply.headers["nearlite-position"]
    assert position == str(here.relay.state().position)
    other = Client(there.port)
    body = {"requests": [execute(COUNT), {"type": "close"}]}
    told = other.request(
        "POST", "/v2/pipeline", json.dumps(body).encode(), Nearlite_Position=position
    )
    assert rows(outcome(told.json["results"][0])) == [[1]]
    assert "/v3/pipeline" not in wrap.now.took()


def test_transactions_errors_and_counters(one: Site) -> None:
    edge = one.edge()
    client = Client(edge.port)
    told = client.pipeline(execute("BEGIN"), execute("INSERT INTO t(b) VALUES ('a')"))
    told = client.pipeline(execute(COUNT), {"type": "get_autocommit"}, baton=told["baton"])
    assert rows(outcome(told["results"][0])) == [[1]]
    assert Client(edge.port).rows(COUNT) == [[0]]
    told = client.pipeline(execute("COMMIT"), baton=told["baton"])
    assert Client(edge.port).rows(COUNT) == [[1]]
    told = client.pipeline(execute("SELECT last_insert_rowid()"), baton=told["baton"])
    assert rows(outcome(told["results"][0])) == [[1]]
    told = client.pipeline(execute("BEGIN"), execute("DELETE FROM t"), baton=told["baton"])
    client.pipeline(execute("ROLLBACK"), {"type": "close"}, baton=told["baton"])
    assert client.rows(COUNT) == [[1]]
    failed = client.run("INSERT INTO t(a) VALUES (1)", "INSERT INTO nowhere VALUES (1)")
    assert [error["code"] for error in failed] == ["SQLITE_CONSTRAINT", "SQLITE_ERROR"]
    told = client.pipeline(batch("BEGIN", "INSERT INTO t(b) VALUES (2)", "COMMIT"))
    assert client.rows(COUNT) == [[2]]


def test_streams_are_closed_above_when_they_have_nothing(one: Site, wrap: Wrap) -> None:
    """A server of ours counts as a foreign one does: what has a baton has to be closed."""
    edge = one.edge()
    client = Client(edge.port)
    told = client.pipeline(execute("BEGIN"), execute("INSERT INTO t(b) VALUES ('a')"))
    wrap.now.took()
    client.pipeline(execute("COMMIT"), baton=told["baton"])
    eventually(lambda: wrap.now.asked.count("/v3/pipeline") == 2)  # COMMIT, and close


@pytest.mark.parametrize("reads_here", [True, False])
def test_every_way_to_run_sql(one: Site, wrap: Wrap, reads_here: bool) -> None:
    """Also of a replica that serves replicas, and runs all SQL above: nothing is handed on as it came."""
    edge = one.edge(edge=reads_here)
    client = Client(edge.port)
    made = execute("INSERT INTO t(b) VALUES ('one')")["stmt"]
    reply = client.request("POST", "/v1/execute", json.dumps({"stmt": made}).encode())
    assert reply.status == 200, reply.body
    body = json.dumps({"batch": steps("BEGIN", "INSERT INTO t(b) VALUES ('two')", "COMMIT", COUNT)})
    reply = client.request("POST", "/v3/cursor", body.encode())
    assert b'"value":"2"' in reply.body.replace(b" ", b"")
    with talking(edge.port) as talker:
        talker.execute("BEGIN")
        talker.execute("INSERT INTO t(b) VALUES ('three')")
        assert rows(talker.execute(COUNT)) == [[3]]
        talker.execute("COMMIT")
        assert rows(talker.execute(COUNT)) == [[3]]
    assert client.rows(COUNT) == [[3]]
    ran = {path for path in wrap.now.took() if "/v" in path}
    assert ran == {"/nl/v1/status", "/v3/pipeline"}
    same(one, edge)


def test_a_server_of_hrana_2_alone(tmp_path: Path) -> None:
    wrap = Wrap(pipelines="2")
    with site(tmp_path, wrap, durability="normal") as one:
        client = Client(one.edge().port)
        client.pipeline({"type": "sequence", "sql": "CREATE TABLE t(a, b)"}, {"type": "close"})
        client.run("INSERT INTO t VALUES (1, 2)")
        assert client.rows(COUNT) == [[1]]


def test_a_token_that_only_reads_writes_nothing(one: Site) -> None:
    from nearlite.access import Access

    class Reads:
        def access(self, *_: Any) -> Access:
            return Access(write=False, push=False)

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name)

    edge = one.edge(authority=Reads())
    client = Client(edge.port)
    assert client.rows(COUNT) == [[0]]
    failed = client.run("INSERT INTO t(b) VALUES (1)")[0]
    assert failed["code"] == "SQLITE_READONLY"
    assert Client(one.port).rows(COUNT) == [[0]]


def test_libsqls_replicas_below(one: Site, tmp_path: Path) -> None:
    """What they pull is handed on."""
    edge = one.edge()
    Client(one.port).run(FILL.format(60))
    client = Client(edge.port)
    copy = begin(client)
    follow(client, copy)
    assert copy.dump(tmp_path) == state_of(one.path)


def test_a_sealed_edge(one: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is sealed, and what is too large for memory on its way there."""
    monkeypatch.setattr("nearlite.gathering.IN_MEMORY", 1 << 20)
    key = key_of(os.urandom(32))
    client = Client(one.port)
    client.run(FILL.format(500))
    edge = one.edge(key=key)
    client.run(FILL.format(1500), "DELETE FROM t WHERE a % 3 = 0")
    edge.relay.refresh()
    look = "SELECT a, b FROM t ORDER BY a LIMIT 300 OFFSET 900"
    assert Client(edge.port).rows(look) == client.rows(look)
    assert Client(edge.port).rows("PRAGMA integrity_check") == [["ok"]]
    assert not edge.path.read_bytes().startswith(b"SQLite")
    old = edge.relay.state().position
    edge.relay.close()
    with closing(Relay.open(edge.path, one.url, sync_interval=None, key=key)) as relay:
        assert relay.state().position == old


def test_a_large_base_is_compared_in_bounded_memory(
    one: Site, wrap: Wrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nearlite.gathering.IN_MEMORY", 1 << 20)
    monkeypatch.setattr("nearlite.foreign._AT_ONCE", 1 << 20)
    edge = one.edge()
    client = Client(one.port)
    client.run(FILL.format(3000))
    one.stop()
    one.start(durability="normal")
    Client(one.port).run("UPDATE t SET b = randomblob(2500) WHERE a % 2")
    wrap.now.answers[f"/sync/{edge.relay.state().position.generation}/"] = 410, b""
    same(one, edge)


# ---------------------------------------------------------------- an upstream that is away, or another


def test_reads_go_on_while_it_is_away(one: Site) -> None:
    edge = one.edge()
    client = Client(edge.port)
    client.run("INSERT INTO t(b) VALUES (1)")
    one.stop()
    assert client.rows(COUNT) == [[1]]
    assert client.run("INSERT INTO t(b) VALUES (2)")[0]["code"] == "UPSTREAM_UNREACHABLE"
    with pytest.raises(errors.OfflineError):
        edge.relay.refresh()
    edge.relay.close()
    with closing(Relay.open(edge.path, one.url, sync_interval=None)) as relay:  # without it
        with pytest.raises(errors.OfflineError):
            relay.refresh()
        one.start(durability="normal")
        Client(one.port).run("INSERT INTO t(b) VALUES (2)")
        relay.refresh()
        assert state_of(edge.path) == state_of(one.path)


def test_a_restored_backup_is_refused(one: Site, wrap: Wrap) -> None:
    edge, client = one.edge(), Client(one.port)
    client.run("INSERT INTO t(b) VALUES (1)")
    edge.relay.refresh()
    backup = one.folder / "backup.db"
    with closing(sqlite3.connect(one.path)) as stock, closing(sqlite3.connect(backup)) as copy:
        stock.backup(copy)
    client.run("INSERT INTO t(b) VALUES (2)", "INSERT INTO t(b) VALUES (3)")
    edge.relay.refresh()
    held = state_of(edge.path)
    one.stop()
    other = one.folder / "other"
    other.mkdir()
    backup.rename(other / "restored.db")
    one.start(other / "restored.db", durability="normal")
    with pytest.raises((errors.PrimaryRestoredError, errors.LineageError)):
        edge.relay.refresh()
    for _ in range(3):  # as many commits as it had before
        Client(one.port).run("INSERT INTO t(b) VALUES ('another')")
    with pytest.raises((errors.PrimaryRestoredError, errors.LineageError)):
        edge.relay.refresh()
    assert state_of(edge.path) == held
    assert Client(edge.port).rows(COUNT) == [[3]]


def test_a_server_that_has_less_is_refused(one: Site, wrap: Wrap) -> None:
    edge, client = one.edge(), Client(one.port)
    client.run("INSERT INTO t(b) VALUES (1)")
    edge.relay.refresh()
    held = state_of(edge.path)
    for told in (
        {"generation": 1, "max_frame_no": 1},
        {"generation": 0, "max_frame_no": 9},
    ):
        wrap.now.answers["/sync/"] = 400, json.dumps(told).encode()
        if wrap.options["named"]:  # this answer names no lineage
            with pytest.raises(errors.LineageError):
                edge.relay.refresh()
        else:
            with pytest.raises(errors.PrimaryRestoredError):
                edge.relay.refresh()
    wrap.now.answers.clear()
    edge.relay.refresh()
    assert state_of(edge.path) == held


def test_history_that_is_gone_brings_only_what_differs(one: Site, wrap: Wrap) -> None:
    Client(one.port).run(FILL.format(500))
    edge = one.edge()
    reader = sqlite3.connect(edge.path)
    assert reader.execute(COUNT).fetchone() == (500,)
    inode = edge.path.stat().st_ino
    one.stop()
    one.start(durability="normal")
    Client(one.port).run("UPDATE t SET b = 'x' WHERE a = 250")
    old = edge.relay.state().position
    wrap.now.answers[f"/sync/{old.generation}/"] = 410, b""
    sets = edge.relay.upstream.tally.pages
    edge.relay.refresh()
    assert any(path.startswith("/export/") for path in wrap.now.took())
    assert edge.relay.state().position.generation > old.generation
    assert edge.path.stat().st_ino == inode
    assert reader.execute("SELECT b FROM t WHERE a = 250").fetchone() == ("x",)
    reader.close()
    wal = edge.relay.upstream.state().wal_frames
    assert wal < 20, (wal, sets)
    same(one, edge)
    Client(one.port).run("INSERT INTO t(b) VALUES (7)")
    same(one, edge)


def test_a_damaged_file_is_mended(one: Site) -> None:
    Client(one.port).run(FILL.format(100))
    edge = one.edge()
    edge.relay.close()
    with edge.path.open("r+b") as file:
        file.seek(4096 * 50 + 100)
        file.write(b"damage")
    with closing(Relay.open(edge.path, one.url, sync_interval=None)) as relay:
        relay.refresh()
        assert state_of(edge.path) == state_of(one.path)


# ---------------------------------------------------------------- a process that is killed


class Proxy:
    """`nearlite proxy` in a process of its own."""

    def __init__(self, url: str, path: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "nearlite", "proxy", "--upstream", url),
                *("--path", str(path), "--listen", "127.0.0.1:0", *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "NEARLITE_SYNC_INTERVAL": "3600"},
        )
        assert self.process.stdout is not None
        told = self.process.stdout.readline()
        assert "port " in told, told
        self.port = int(told.partition("port ")[2].partition(",")[0])

    def end(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.communicate(timeout=20)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_an_edge_has_survives_it(one: Site, wrap: Wrap, number: int) -> None:
    path = one.folder / "proxy.db"
    proxy = Proxy(one.url, path, "--upstream-protocol", "libsql")
    try:
        Client(proxy.port).run(FILL.format(50))
        wrap.now.took()
    finally:
        proxy.end(number)
    Client(one.port).run("INSERT INTO t(b) VALUES ('meanwhile')")
    proxy = Proxy(one.url, path)
    try:
        eventually(lambda: Client(proxy.port).rows(COUNT) == [[51]])
        assert not any(path.startswith("/export/") for path in wrap.now.took())
    finally:
        proxy.end(signal.SIGTERM)
    assert state_of(path) == state_of(one.path)


def test_kills_while_it_is_brought_up_to_date(one: Site, wrap: Wrap) -> None:
    """At any moment: in the middle of a transaction of its own, or of the upstream's."""
    path = one.folder / "proxy.db"
    writer = Client(one.port)
    for kill in range(6):
        proxy = Proxy(one.url, path, "--live")
        try:
            for _ in range(4 + kill):
                writer.run(FILL.format(400), "DELETE FROM t WHERE a % 3 = 0")
                Client(proxy.port).run("INSERT INTO t(b) VALUES (randomblob(5000))")
        finally:
            writer.run(FILL.format(700))
            proxy.end()
        if kill == 0:
            wrap.now.took()
        with closing(sqlite3.connect(path)) as stock:
            assert stock.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with closing(Relay.open(path, one.url, sync_interval=None)) as relay:
        relay.refresh()
        assert state_of(path) == state_of(one.path)
    assert not any(path.startswith("/export/") for path in wrap.now.took())


def test_many_write_at_once(one: Site, wrap: Wrap) -> None:
    edge = one.edge()
    wrap.now.took()

    def write() -> None:
        client = Client(edge.port)
        for _ in range(10):
            client.run("INSERT INTO t(b) VALUES (1)")
            (told,) = client.rows("SELECT max(a) >= last_insert_rowid() FROM t")
            assert told == [1]
        client.close()

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Client(edge.port).rows(COUNT) == [[80]]
    same(one, edge)


# ---------------------------------------------------------------- sqld


@pytest.fixture
def below(tmp_path: Path) -> Iterator[Below]:
    with Below(tmp_path) as made, sqld(tmp_path / "sqld") as above:
        made.above = above
        above.client.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        yield made


def equal(edge: Any, above: Sqld) -> None:
    """Every table has the same rows, and the file is sound."""
    edge.relay.refresh()
    state_of(edge.path)
    edge.relay.roll()
    state_of(edge.path)
    here, there = Client(edge.port), above.client
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
    assert here.rows(schema) == there.rows(schema)
    for (name,) in here.rows("SELECT name FROM sqlite_master WHERE type = 'table'"):
        look = f"SELECT count(*), * FROM (SELECT rowid, * FROM {name} ORDER BY rowid)"
        assert here.rows(look) == there.rows(look)
        look = f"SELECT rowid, * FROM {name} ORDER BY rowid LIMIT 200"
        assert here.rows(look) == there.rows(look)


def test_sqld_is_begun_from_and_followed(below: Below) -> None:
    above = below.above
    above.client.run(FILL.format(500))
    edge = below.edge()
    assert edge.relay.upstream.foreign
    equal(edge, above)
    for change in (
        "UPDATE t SET b = randomblob(2000) WHERE a % 3 = 0",
        "CREATE INDEX i ON t(b)",
        "DELETE FROM t WHERE a % 2",
        "CREATE TABLE u(x UNIQUE, y DEFAULT 'z')",
        "INSERT INTO u(x) VALUES (1), (2)",
        "ALTER TABLE u ADD COLUMN w",
        "DROP INDEX i",
        "DELETE FROM t",
        FILL.format(2000),
        "DROP TABLE u",
    ):
        assert "code" not in above.client.run(change)[0]
        equal(edge, above)


def test_sqld_is_written_to(below: Below, tmp_path: Path) -> None:
    above, edge = below.above, below.edge()
    other = below.edge("other.db")
    client = Client(edge.port)
    body = {"requests": [execute("INSERT INTO t(b) VALUES ('mine')"), {"type": "close"}]}
    reply = client.request("POST", "/v2/pipeline", json.dumps(body).encode())
    assert client.rows(COUNT) == [[1]]
    body = {"requests": [execute(COUNT), {"type": "close"}]}
    told = Client(other.port).request(
        "POST",
        "/v2/pipeline",
        json.dumps(body).encode(),
        Nearlite_Position=reply.headers["nearlite-position"],
    )
    assert rows(outcome(told.json["results"][0])) == [[1]]
    # A transaction, its own counters, errors.
    told = client.pipeline(execute("BEGIN"), execute("INSERT INTO t(b) VALUES ('a')"))
    told = client.pipeline(execute(COUNT), execute("COMMIT"), baton=told["baton"])
    assert rows(outcome(told["results"][0])) == [[2]]
    told = client.pipeline(execute("SELECT last_insert_rowid(), changes()"), baton=told["baton"])
    assert rows(outcome(told["results"][0])) == [[2, 1]]
    told = client.pipeline(execute("BEGIN"), execute("DELETE FROM t"))
    client.pipeline(execute("ROLLBACK"), {"type": "close"}, baton=told["baton"])
    assert client.rows(COUNT) == [[2]]
    failed = client.run("INSERT INTO t(a) VALUES (1)", "INSERT INTO nowhere VALUES (1)")
    assert all(error["code"].startswith("SQL") for error in failed)
    client.pipeline(transaction("INSERT INTO t(b) VALUES (3)", "UPDATE t SET b = 4 WHERE a = 1"))
    assert client.rows("SELECT b FROM t ORDER BY a") == [[4], ["a"], [3]]
    # A replica of ours below.
    with closing(nearlite.connect(tmp_path / "leaf.db", sync_url=edge.url)) as leaf:
        leaf.execute("INSERT INTO t(b) VALUES ('leaf')")
        leaf.commit()
        assert leaf.execute(COUNT).fetchone() == (4,)
    equal(edge, above)
    assert client.request("GET", "/info").status == 404


def test_no_streams_are_left_at_sqld(tmp_path: Path) -> None:
    with Below(tmp_path) as made, sqld(tmp_path / "sqld", *admin(tmp_path)) as above:
        made.above = above
        above.client.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        client = Client(made.edge().port)
        for _ in range(5):
            told = client.pipeline(execute("BEGIN"), execute("INSERT INTO t(b) VALUES (1)"))
            client.pipeline(execute("COMMIT"), baton=told["baton"])
        port = int((tmp_path / "admin").read_text())
        eventually(lambda: Client(port).request("GET", "/v1/diagnostics").json == [])


def test_sqld_is_followed_through_a_random_history(below: Below) -> None:
    rng = random.Random(5)
    above, edge = below.above, below.edge()
    changes = [
        "INSERT INTO t(b) VALUES (randomblob(20000))",
        FILL.format(60),
        "UPDATE t SET b = randomblob(50) WHERE a % 3 = 0",
        "DELETE FROM t WHERE a % 2",
        "CREATE TABLE IF NOT EXISTS u(x UNIQUE, y)",
        "INSERT OR REPLACE INTO u SELECT a, b FROM t LIMIT 20",
        "DROP TABLE IF EXISTS u",
        "CREATE INDEX IF NOT EXISTS i ON t(b)",
        "DROP INDEX IF EXISTS i",
    ]
    for _ in range(60):
        through = above.client if rng.random() < 0.5 else Client(edge.port)
        some = rng.choices(changes, k=rng.randrange(1, 4))
        if rng.random() < 0.5:
            through.pipeline(transaction(*some), {"type": "close"})
        else:
            through.run(*some)
        if rng.random() < 0.2:
            equal(edge, above)
    equal(edge, above)


def test_sqld_with_tokens(tmp_path: Path) -> None:
    """Which it takes for SQL and for frames."""
    private = tmp_path / "key"
    keys = minting.make_keys(private)
    token = minting.mint(minting.private_key(private), write=True)
    folder = tmp_path / "sqld"
    with Below(tmp_path) as made, sqld(folder, "--auth-jwt-key-file", str(keys)) as above:
        made.above = above
        client = Client(made.edge(token=token).port)
        client.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)", "INSERT INTO t(b) VALUES (1)")
        assert client.rows(COUNT) == [[1]]
        with pytest.raises(errors.UnauthorizedError):
            Relay.open(tmp_path / "other.db", above.url, token="wrong", sync_interval=None)
        assert not (tmp_path / "other.db").exists()


def test_sqld_that_is_started_anew(below: Below) -> None:
    above, edge = below.above, below.edge(sync_interval="live")
    client = Client(edge.port)
    above.client.run("INSERT INTO t(b) VALUES (1)")
    eventually(lambda: client.rows(COUNT) == [[1]])
    above.stop()
    assert client.rows(COUNT) == [[1]]
    assert client.run("INSERT INTO t(b) VALUES (2)")[0]["code"] == "UPSTREAM_UNREACHABLE"
    above.start()
    above.client.run("INSERT INTO t(b) VALUES (2)")
    eventually(lambda: client.rows(COUNT) == [[2]])
    equal(edge, above)


def test_a_log_that_was_compacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots: for a new edge, and for one that was away meanwhile."""
    snapshots: list[int] = []
    made_of = SqldFeed._snapshot

    def noted(feed: SqldFeed, first: int, deadline: Deadline) -> Any:
        snapshots.append(first)
        return made_of(feed, first, deadline)

    monkeypatch.setattr(SqldFeed, "_snapshot", noted)
    with Below(tmp_path) as made, sqld(tmp_path / "sqld", "--max-log-size", "1") as above:
        made.above = above
        above.client.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)", FILL.format(100))
        old = made.edge("old.db")
        equal(old, above)
        for _ in range(4):
            above.client.run(FILL.format(300), "DELETE FROM t WHERE a % 3 = 0")
        compacted = tmp_path / "sqld" / "data.sqld" / "dbs" / "default" / "snapshots"
        eventually(lambda: any(compacted.glob("*.snap")))
        above.client.run("INSERT INTO t(b) VALUES ('after')")
        equal(old, above)
        assert snapshots
        assert snapshots[0] > 100  # where it stood
        snapshots.clear()
        equal(made.edge("new.db"), above)
        assert snapshots[0] == 0


def test_another_sqld_is_refused(below: Below) -> None:
    edge = below.edge()
    Client(edge.port).run("INSERT INTO t(b) VALUES (1)")
    held = state_of(edge.path)
    below.above.stop()
    below.above.folder = below.above.folder.with_name("another")
    below.above.start()
    below.above.client.run("CREATE TABLE t(a, b)", "INSERT INTO t VALUES (1, 2)")
    with pytest.raises(errors.LineageError):
        edge.relay.refresh()
    assert state_of(edge.path) == held


def test_an_older_sqld_is_refused(below: Below) -> None:
    above, edge = below.above, below.edge()
    client = Client(edge.port)
    client.run("INSERT INTO t(b) VALUES (1)")
    above.stop()
    copy = above.folder.with_name("copy")
    shutil.copytree(above.folder, copy)
    above.start()
    client.run("INSERT INTO t(b) VALUES (2)", "INSERT INTO t(b) VALUES (3)")
    edge.relay.refresh()
    above.stop()
    above.folder = copy
    above.start()
    with pytest.raises(errors.PrimaryRestoredError):
        edge.relay.refresh()
    for _ in range(5):
        above.client.run("INSERT INTO t(b) VALUES ('other')")
    with pytest.raises(errors.LineageError):
        edge.relay.refresh()
    assert client.rows(COUNT) == [[3]]


def test_what_an_edge_of_sqld_has_survives_it(below: Below, tmp_path: Path) -> None:
    path = tmp_path / "proxy.db"
    proxy = Proxy(below.above.url, path)
    try:
        Client(proxy.port).run(FILL.format(50))
    finally:
        proxy.end()
    below.above.client.run("INSERT INTO t(b) VALUES ('meanwhile')")
    proxy = Proxy(below.above.url, path)
    try:
        eventually(lambda: Client(proxy.port).rows(COUNT) == [[51]])
    finally:
        proxy.end(signal.SIGTERM)
    state_of(path)
