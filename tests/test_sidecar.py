"""`nearlite replicate` in processes of its own: Litestream's guide, with stock SQLite as writer and as readers."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sidecars import SHELL, holds, primary, read, replica, shell, sidecar
from stock import Stock, run
from test_background import eventually

import nearlite
from nearlite.minting import make_keys, mint, private_key

needs_shell = pytest.mark.skipif(SHELL is None, reason="SQLite's shell is not installed")


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Stock]:
    """The application: stock SQLite in a process of its own, with a table t."""
    folder = tmp_path / "primary"
    folder.mkdir()
    with Stock(folder / "db") as stock:
        stock.execute("PRAGMA journal_mode=WAL")
        stock.execute("CREATE TABLE t(i INTEGER PRIMARY KEY, b)")
        stock.execute("INSERT INTO t(b) VALUES('first')")
        yield stock


def fill(app: Stock, rows: int, size: int = 1000) -> None:
    app.execute(
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) "
        f"INSERT INTO t(b) SELECT randomblob({size}) FROM n"
    )


# ---------------------------------------------------------------------- the guide


def test_the_guide_as_it_stands(tmp_path: Path) -> None:
    """Primary and replica are started before there is any database, with the guide's own files."""
    here, there = tmp_path / "primary", tmp_path / "replica"
    first = f'addr: "127.0.0.1:0"\n\ndbs:\n  - path: {here}/db\n'
    with sidecar(here, first) as one:
        one.says("the file is not there yet; waiting for it")
        assert one.health()[0] == 503
        second = f"""\
addr: "127.0.0.1:0"

dbs:
  - path: {there}/db
    upstream:
      url: http://$PRIMARY_HOSTNAME:{one.port}
      path: {here}/db
"""
        there.mkdir()
        (there / "replica.yml").write_text(second)
        with sidecar(
            there,
            second,
            "-config",
            "replica.yml",
            environment={"PRIMARY_HOSTNAME": "127.0.0.1"},
        ) as two:
            two.says("The database is not open: the file is not there yet")
            assert two.health()[0] == 503
            with Stock(here / "db") as app:
                app.execute("PRAGMA journal_mode=WAL")
                app.execute("CREATE TABLE t(i INTEGER PRIMARY KEY, b)")
                app.execute("INSERT INTO t(b) VALUES('hello')")
                eventually(lambda: holds(there / "db", 1))
                app.execute("INSERT INTO t(b) VALUES('again')")
                eventually(lambda: holds(there / "db", 2))
                assert read(there / "db", "PRAGMA integrity_check") == "[('ok',)]"
            eventually(two.healthy)
            assert one.healthy()
            assert two.stop() == 0
        assert one.stop() == 0
        assert "Traceback" not in one.log + two.log


@needs_shell
def test_readers_of_every_kind_also_while_the_follower_is_stopped_or_was_killed(
    app: Stock, tmp_path: Path
) -> None:
    path = tmp_path / "replica" / "db"

    def reads(count: int) -> None:
        sql = "SELECT count(*) FROM t"
        assert shell(path, sql, "-readonly").stdout == f"{count}\n"
        assert shell(path, sql).stdout == f"{count}\n"
        assert shell(Path(f"file:{path}?mode=ro"), sql).stdout == f"{count}\n"
        assert read(path, sql) == f"[({count},)]"

    def refuses() -> None:
        refused = shell(path, "INSERT INTO t(b) VALUES('mine')")
        assert refused.returncode != 0
        assert "readonly" in refused.stderr

    with primary(tmp_path / "primary") as one:
        with replica(tmp_path / "replica", one.url) as two:
            eventually(lambda: holds(path, 1))
            reads(1)
            refuses()
            assert two.stop() == 0
        reads(1)
        refuses()
        app.execute("INSERT INTO t(b) VALUES('second')")
        with replica(tmp_path / "replica", one.url) as two:
            eventually(lambda: holds(path, 2))
            two.kill()
        reads(2)
        refuses()
        app.execute("INSERT INTO t(b) VALUES('third')")
        with replica(tmp_path / "replica", one.url, at=None):
            eventually(lambda: holds(path, 3))
            reads(3)


def test_a_reader_that_stays_open_sees_every_commit(app: Stock, tmp_path: Path) -> None:
    path = tmp_path / "replica" / "db"
    with primary(tmp_path / "primary") as one, replica(tmp_path / "replica", one.url):
        eventually(lambda: holds(path, 1))
        with Stock(path) as reader:
            for count in range(2, 12):
                app.execute("INSERT INTO t(b) VALUES('more')")
                eventually(lambda n=count: reader.execute("SELECT count(*) FROM t") == [[n]])


# ---------------------------------------------------------------------- what ends, and what is away


def test_a_follower_that_is_killed_goes_on_where_it_was(app: Stock, tmp_path: Path) -> None:
    path = tmp_path / "replica" / "db"
    fill(app, 2000)
    with primary(tmp_path / "primary") as one:
        with replica(tmp_path / "replica", one.url) as two:
            eventually(lambda: holds(path, 2001))
            for _ in range(20):
                app.execute("INSERT INTO t(b) VALUES('while it runs')")
            two.kill()
        inode = path.stat().st_ino
        app.execute("INSERT INTO t(b) VALUES('while it is away')")
        with replica(tmp_path / "replica", one.url) as two:
            eventually(lambda: holds(path, 2022))
            assert path.stat().st_ino == inode
            received = two.metric("nearlite_replica_received_bytes_total", "db")
            assert received is not None
            assert received < path.stat().st_size / 10


def test_a_primarys_sidecar_that_is_killed_costs_no_second_copy(app: Stock, tmp_path: Path) -> None:
    path = tmp_path / "replica" / "db"
    fill(app, 2000)
    with primary(tmp_path / "primary") as one:
        at = f"127.0.0.1:{one.port}"
        with replica(tmp_path / "replica", one.url) as two:
            eventually(lambda: holds(path, 2001))
            inode = path.stat().st_ino
            for _ in range(20):
                app.execute("INSERT INTO t(b) VALUES('while it runs')")
            one.kill()
            app.execute("INSERT INTO t(b) VALUES('while it is away')")
            eventually(lambda: two.metric("nearlite_replica_follows", "db") == 0)
            before = two.metric("nearlite_replica_received_bytes_total", "db")
            with primary(tmp_path / "primary", at=at) as again:
                app.execute("INSERT INTO t(b) VALUES('after that')")
                eventually(lambda: holds(path, 2023))
                assert path.stat().st_ino == inode
                received = two.metric("nearlite_replica_received_bytes_total", "db")
                assert received is not None
                assert before is not None
                assert received - before < path.stat().st_size / 10
                eventually(two.healthy)
                assert again.stop() == 0
                assert two.stop() == 0


def test_an_orderly_stop_lets_followers_take_the_last_commit(app: Stock, tmp_path: Path) -> None:
    path = tmp_path / "replica" / "db"
    with replica(tmp_path / "replica", f"http://127.0.0.1:{unused()}", at=None):
        pass  # its folder
    count = 1
    at = "127.0.0.1:0"
    with primary(tmp_path / "primary", at=at) as one:
        at = f"127.0.0.1:{one.port}"
        with replica(tmp_path / "replica", one.url) as two:
            eventually(lambda: holds(path, 1))
            eventually(lambda: two.metric("nearlite_replica_follows", "db") == 1)
            app.execute("INSERT INTO t(b) VALUES('the last one')")
            assert one.stop() == 0
            count += 1
            eventually(lambda: two.metric("nearlite_replica_follows", "db") == 0)
            assert holds(path, count)


def unused() -> int:
    """A port where nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_an_upstream_that_is_away_at_the_first_start_is_waited_for(
    app: Stock, tmp_path: Path
) -> None:
    path = tmp_path / "replica" / "db"
    port = unused()
    with replica(tmp_path / "replica", f"http://127.0.0.1:{port}") as two:
        two.says("could not be reached")
        status, body = two.health()
        assert status == 503
        assert "could not be reached" in body["databases"]["db"]
        assert not path.exists()
        with primary(tmp_path / "primary", at=f"127.0.0.1:{port}"):
            eventually(lambda: holds(path, 1))
            eventually(two.healthy)


@pytest.mark.parametrize("named", ["path: /data/db", "name: db"])
@pytest.mark.parametrize("at", ["127.0.0.1:0", None])
def test_it_can_be_ended_while_an_upstream_hangs(
    tmp_path: Path, named: str, at: str | None
) -> None:
    """Where it is asked which database it has, and where the first copy is asked for."""
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()
        url = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        with replica(tmp_path / "replica", f"{url}\n      {named}", at=at) as two:
            hanging.settimeout(20)
            connection, _ = hanging.accept()
            with connection:
                assert connection.recv(65536).startswith(b"GET /")
                began = time.monotonic()
                assert two.stop() == 0
                assert time.monotonic() - began < 8  # far less than any time-out


def test_an_upstream_that_is_away_at_a_later_start_leaves_a_replica_that_serves(
    app: Stock, tmp_path: Path
) -> None:
    """Also others: the middle of a tree starts while its upstream is away."""
    path, leaf = tmp_path / "replica" / "db", tmp_path / "leaf" / "db"
    with primary(tmp_path / "primary") as one:
        at = f"127.0.0.1:{one.port}"
        with replica(tmp_path / "replica", one.url) as two:
            eventually(lambda: holds(path, 1))
            assert two.stop() == 0
        assert one.stop() == 0
    with replica(tmp_path / "replica", f"http://{at}", "    lag-limit: 1s\n") as two:
        eventually(lambda: two.metric("nearlite_database_open", "db") == 1)
        assert holds(path, 1)
        assert two.health()[0] == 503
        with replica(tmp_path / "leaf", two.url, at=None):
            eventually(lambda: holds(leaf, 1))
            with primary(tmp_path / "primary", at=at):
                app.execute("INSERT INTO t(b) VALUES('again')")
                eventually(lambda: holds(leaf, 2))
                eventually(two.healthy)


def test_a_folder_that_is_not_there_is_told(app: Stock, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere" / "db"
    with primary(tmp_path / "primary") as one:
        text = f'dbs: [{{path: {nowhere}, upstream: {{url: "{one.url}", name: db}}}}]\n'
        with sidecar(tmp_path / "replica", text + "addr: 127.0.0.1:0\n") as two:
            two.says(f"{nowhere}")
            assert two.health()[0] == 503
            assert "Traceback" not in two.log
            nowhere.parent.mkdir()
            eventually(lambda: holds(nowhere, 1))


def test_health_turns_bad_when_the_upstream_hangs_and_good_again(
    app: Stock, tmp_path: Path
) -> None:
    more = "    lag-limit: 1s\n    sync-interval: 0.2s\n"
    with primary(tmp_path / "primary") as one, replica(tmp_path / "replica", one.url, more) as two:
        eventually(two.healthy)
        one.process.send_signal(signal.SIGSTOP)
        try:
            eventually(lambda: not two.healthy())
            status, body = two.health()
            assert status == 503
            assert re.match(r"it may lag by \d+\.\d s, the limit is 1 s", body["databases"]["db"])
            lag = two.metric("nearlite_replica_lag_seconds", "db")
            assert lag is not None
            assert lag > 1
            assert two.metric("nearlite_database_healthy", "db") == 0
        finally:
            one.process.send_signal(signal.SIGCONT)
        eventually(two.healthy)


# ---------------------------------------------------------------------- databases that are not as they should be


@needs_shell
def test_rollback_journal_mode_is_refused_with_the_command_that_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "primary" / "db"
    path.parent.mkdir()
    shell(path, "CREATE TABLE t(i)")
    before = path.read_bytes()
    with primary(tmp_path / "primary") as one:
        one.says("rollback-journal mode (delete)")
        assert one.health()[0] == 503
        assert one.ask("/nl/v1/status")[0] == 503
        assert path.read_bytes() == before
        command = re.search(r"sqlite3 (\S+) '(.*?)'", one.log)
        assert command is not None
        assert shell(Path(command[1]), command[2]).stdout == "wal\n"
        eventually(one.healthy)
        assert one.ask("/nl/v1/status")[0] == 200


def test_a_file_that_is_somebodys_replica_is_no_primary(app: Stock, tmp_path: Path) -> None:
    path = tmp_path / "replica" / "db"
    with (
        primary(tmp_path / "primary") as one,
        replica(tmp_path / "replica", one.url, at=None) as two,
    ):
        eventually(lambda: holds(path, 1))
        assert two.stop() == 0
    with primary(tmp_path / "replica") as wrong:
        wrong.says("is a replica: its content belongs to its primary")
        assert wrong.health()[0] == 503


def test_a_database_that_somebody_wrote_is_not_overwritten_by_a_replica(
    app: Stock, tmp_path: Path
) -> None:
    path = tmp_path / "replica" / "db"
    path.parent.mkdir()
    with Stock(path) as mine:
        mine.execute("CREATE TABLE mine(x)")
    before = path.read_bytes()
    with primary(tmp_path / "primary") as one, replica(tmp_path / "replica", one.url) as two:
        two.says("is not a nearlite replica")
        assert two.health()[0] == 503
    assert path.read_bytes() == before


def test_a_second_sidecar_of_the_same_file_waits_for_the_first_to_end(
    app: Stock, tmp_path: Path
) -> None:
    folder = tmp_path / "primary"
    with primary(folder) as one, primary(folder) as two:
        eventually(lambda: one.healthy() or two.healthy())
        first, second = (one, two) if one.healthy() else (two, one)
        second.says("is already served by process")
        assert second.health()[0] == 503
        assert first.stop() == 0
        eventually(second.healthy)


def test_a_primary_that_is_removed_is_waited_for(app: Stock, tmp_path: Path) -> None:
    folder = tmp_path / "primary"
    with primary(folder) as one:
        eventually(one.healthy)
        app.close()
        for name in ("db", "db-wal", "db-shm"):
            (folder / name).unlink(missing_ok=True)
        one.says("the file was replaced or removed; opening it anew")
        one.says("the file is not there yet; waiting for it")
        assert one.health()[0] == 503


def test_a_primary_that_was_restored_is_followed_by_a_new_copy_alone(
    app: Stock, tmp_path: Path
) -> None:
    here, path = tmp_path / "primary", tmp_path / "replica" / "db"
    with primary(here) as one, replica(tmp_path / "replica", one.url) as two:
        eventually(lambda: holds(path, 1))
        app.execute(f"VACUUM INTO '{here}/backup'")
        app.execute("INSERT INTO t(b) VALUES('lost by the restore')")
        eventually(lambda: holds(path, 2))
        app.close()
        run(here / "backup", "PRAGMA journal_mode=WAL", "INSERT INTO t(b) VALUES('restored')")
        (here / "backup").rename(here / "db")
        for suffix in ("-wal", "-shm"):
            (here / f"db{suffix}").unlink(missing_ok=True)
        two.says("LINEAGE_MISMATCH")
        eventually(one.healthy)
        status, body = two.health()
        assert status == 503  # at once: it does not pass by itself
        assert "LINEAGE_MISMATCH" in body["databases"]["db"]
        assert read(path, "SELECT b FROM t WHERE i = 2") == "[('lost by the restore',)]"
        for suffix in ("", "-wal", "-shm"):
            path.with_name(f"db{suffix}").unlink(missing_ok=True)
        eventually(lambda: holds(path, 2))
        assert read(path, "SELECT b FROM t WHERE i = 2") == "[('restored',)]"
        run(here / "db", "INSERT INTO t(b) VALUES('and on')")
        eventually(lambda: holds(path, 3))
        eventually(two.healthy)


def test_the_primarys_wal_stays_short_while_others_write(app: Stock, tmp_path: Path) -> None:
    folder = tmp_path / "primary"
    with primary(folder, "    roll-bytes: 256KiB\n") as one:
        eventually(one.healthy)
        for _ in range(40):
            fill(app, 100)
        app.execute("INSERT INTO t(b) VALUES('the last one')")
        eventually(lambda: one.metric("nearlite_capture_rolls_total", "db"))

        def emptied() -> bool:
            held = one.metric("nearlite_capture_wal_bytes", "db")
            return held is not None and held < 512 * 1024

        eventually(emptied)
        assert one.metric("nearlite_wal_bytes", "db") == (folder / "db-wal").stat().st_size
        with replica(tmp_path / "replica", one.url):
            eventually(lambda: holds(tmp_path / "replica" / "db", 4002))


# ---------------------------------------------------------------------- several databases, trees


def test_several_databases_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    here, there = tmp_path / "primary", tmp_path / "replica"
    for name in ("one.db", "two.db", "three.db"):
        here.mkdir(exist_ok=True)
        with Stock(here / name) as app:
            app.execute("PRAGMA journal_mode=WAL")
            app.execute("CREATE TABLE t(i)")
            app.execute(f"INSERT INTO t VALUES('{name}')")
    text = f"""\
addr: "127.0.0.1:0"
dbs:
  - path: {here}/one.db
  - path: {here}/two.db
    name: second
  - path: {here}/three.db
"""
    with sidecar(here, text) as one:
        eventually(one.healthy)
        text = f"""\
dbs:
  - path: {there}/a
    upstream: {{url: "{one.url}", path: {here}/./one.db}}
  - path: {there}/b
    upstream: {{url: "{one.url}", name: second}}
  - path: {there}/three.db
    upstream: {{url: "{one.url}"}}
  - path: {there}/c
    upstream: {{url: "{one.url}"}}
  - path: {there}/d
    upstream: {{url: "{one.url}/db/one.db"}}
"""
        with sidecar(there, text) as two:
            for name, expected in (("a", "one"), ("b", "two"), ("three.db", "three"), ("d", "one")):
                eventually(
                    lambda path=there / name, word=expected: (
                        path.exists() and read(path, "SELECT i FROM t") == f"[('{word}.db',)]"
                    )
                )
            two.says(f"has no database of the path {there}/c, and none of the name c")
            assert not (there / "c").exists()
        assert one.ask("/nl/v1/status")[0] == 404  # there are several
        assert one.ask("/db/second/nl/v1/status")[0] == 200
        assert one.ask("/db/two.db/nl/v1/status")[0] == 404
        _, told = one.ask(f"/nl/v1/databases?path={here}/two.db")
        assert json.loads(told) == {"databases": [{"name": "second"}]}
        _, told = one.ask("/nl/v1/databases")
        assert json.loads(told) == {"databases": []}


def test_a_replica_is_an_upstream_of_others(app: Stock, tmp_path: Path) -> None:
    leaf = tmp_path / "leaf" / "db"
    (tmp_path / "middle").mkdir()
    with (
        primary(tmp_path / "primary") as one,
        replica(tmp_path / "middle", one.url) as two,
        replica(tmp_path / "leaf", two.url) as three,
    ):
        eventually(lambda: holds(leaf, 1))
        for count in range(2, 7):
            app.execute("INSERT INTO t(b) VALUES('down the tree')")
            eventually(lambda n=count: holds(leaf, n))
        eventually(lambda: two.metric("nearlite_replicas_waiting", "db") == 1)
        # Frames of the database are in it: nobody else's to read.
        assert (tmp_path / "middle" / "db-nearlite").stat().st_mode & 0o777 == 0o700
        eventually(three.healthy)


# ---------------------------------------------------------------------- who may


def test_beyond_loopback_without_a_token_it_serves_and_says_so_loudly(
    app: Stock, tmp_path: Path
) -> None:
    with primary(tmp_path / "primary", at="0.0.0.0:0") as one:
        eventually(one.healthy)
        assert one.log.count("WITHOUT A TOKEN") == 1
        assert one.metric("nearlite_exposed") == 1
        assert one.ask("/nl/v1/status")[0] == 200


def test_with_a_token_it_asks_for_it(app: Stock, tmp_path: Path) -> None:
    token = "a secret of this test"
    here, there = tmp_path / "primary", tmp_path / "replica"
    (here / "token").write_text(token + "\n")
    text = f'addr: "0.0.0.0:0"\nauth-token-file: token\ndbs:\n  - path: {here}/db\n'
    with sidecar(here, text) as one:
        for path in (
            "/nl/v1/status",
            "/metrics",
            "/nl/v1/databases?name=db",
            "/nl/v1/snapshot",
            "/info",
        ):
            assert one.ask(path)[0] == 401
            assert one.ask(path, token="another")[0] == 401
            eventually(lambda path=path: one.ask(path, token=token)[0] == 200)
        assert one.health() == (200, {"status": "ok"})
        assert one.health(token)[1] == {"status": "ok", "databases": {"db": "ok"}}
        assert "WITHOUT A TOKEN" not in one.log
        assert "nearlite_exposed 0.0" in one.ask("/metrics", token=token)[1].decode()
        url = f"http://127.0.0.1:{one.port}"
        with replica(there, url) as without:
            without.says("HTTP 401")
            assert not (there / "db").exists()
        there.joinpath("wrong").write_text("wrong")
        more = "      auth-token-file: wrong\n"
        text = f"dbs:\n  - path: {there}/db\n    upstream:\n      url: {url}\n{more}"
        with sidecar(there, text) as two:
            two.says("HTTP 401")
            # It is read again whenever it changes.
            (there / "wrong").write_text(token)
            eventually(lambda: holds(there / "db", 1))
        assert token not in one.log + two.log + without.log


def test_a_signed_token_may_be_for_one_database(app: Stock, tmp_path: Path) -> None:
    here = tmp_path / "primary"
    run(here / "other", "PRAGMA journal_mode=WAL", "CREATE TABLE t(i)")
    key = tmp_path / "key"
    make_keys(key)
    text = f"""\
addr: "127.0.0.1:0"
auth-jwt-key-file: {key}.pub
dbs:
  - path: {here}/db
  - path: {here}/other
"""
    narrow = mint(private_key(key), databases=["db"], write=False)
    broad = mint(private_key(key), write=False)
    with sidecar(here, text) as one:
        eventually(lambda: one.health() == (200, {"status": "ok"}))
        status = "/nl/v1/status"
        assert [one.ask(f"/db/{name}{status}")[0] for name in ("db", "other")] == [401, 401]
        for token, codes in ((narrow, [200, 404]), (broad, [200, 200])):
            found = [one.ask(f"/db/{name}{status}", token=token)[0] for name in ("db", "other")]
            assert found == codes
        assert one.ask("/metrics", token=narrow)[0] == 404
        assert one.ask("/metrics", token=broad)[0] == 200
        assert one.ask(f"/nl/v1/databases?path={here}/db", token=narrow)[0] == 200
        assert one.ask(f"/nl/v1/databases?path={here}/other", token=narrow)[0] == 404
        assert one.health(narrow) == (200, {"status": "ok"})
        (tmp_path / "token").write_text(narrow)
        there = tmp_path / "replica"
        upstream = f"{{url: '{one.url}', path: {here}/db, auth-token-file: {tmp_path}/token}}"
        with sidecar(there, f"dbs: [{{path: {there}/db, upstream: {upstream}}}]"):
            eventually(lambda: holds(there / "db", 1))


def test_tls_on_both_sides(app: Stock, tmp_path: Path, certificates: Path) -> None:
    here, there = tmp_path / "primary", tmp_path / "replica"
    text = f"""\
addr: "127.0.0.1:0"
tls-cert: {certificates}/server.pem
dbs:
  - path: {here}/db
"""
    with sidecar(here, text) as one:
        assert one.url.startswith("https://")
        upstream = f"    upstream:\n      url: {one.url}\n"
        with sidecar(there, f"dbs:\n  - path: {there}/db\n{upstream}") as two:
            two.says("its certificate was refused")
        upstream += f"      ca-file: {certificates}/ca.pem\n"
        with sidecar(there, f"dbs:\n  - path: {there}/db\n{upstream}"):
            eventually(lambda: holds(there / "db", 1))


def test_a_copy_can_be_sealed(app: Stock, tmp_path: Path) -> None:
    path = tmp_path / "replica" / "db"
    path.parent.mkdir()
    (path.parent / "key").write_text("hex:" + "5a" * 32)
    app.execute("INSERT INTO t(b) VALUES('nobody shall see this')")
    with primary(tmp_path / "primary") as one:
        more = "    encryption-key-file: key\n"
        with replica(tmp_path / "replica", one.url, more) as two:
            eventually(two.healthy)
            assert two.stop() == 0
    assert b"nobody shall see this" not in path.read_bytes()
    connection = nearlite.connect(path, encryption_key="hex:" + "5a" * 32)
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (2,)
    connection.close()


# ---------------------------------------------------------------------- the application that it starts

APPLICATION = """
import os, signal, sqlite3, sys
def stop(number, frame):
    print("told", signal.Signals(number).name, file=sys.stderr, flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, lambda *_: print("told SIGUSR1", file=sys.stderr, flush=True))
path = os.environ["NEARLITE_DB_PATH"]
assert os.environ["LITESTREAM_DB_PATH"] == path
count = sqlite3.connect(f"file:{path}?mode=ro", uri=True).execute("SELECT count(*) FROM t").fetchone()[0]
print("the application reads", count, file=sys.stderr, flush=True)
if len(sys.argv) > 1:
    sys.exit(int(sys.argv[1]))
while True:
    signal.pause()
"""


def test_an_application_is_started_on_a_whole_copy_and_ended_with_it(
    app: Stock, tmp_path: Path
) -> None:
    there = tmp_path / "replica"
    there.mkdir()
    (there / "app.py").write_text(APPLICATION)
    port = unused()
    text = f"""\
exec: {sys.executable} app.py
dbs:
  - path: {there}/db
    upstream: {{url: "http://127.0.0.1:{port}"}}
"""
    with sidecar(there, text) as two:
        two.says("could not be reached")
        assert "the application reads" not in two.log
        with primary(tmp_path / "primary", at=f"127.0.0.1:{port}"):
            two.says("the application reads 1")
            two.process.send_signal(signal.SIGUSR1)
            two.says("told SIGUSR1")
            assert two.stop() == 7
            assert "told SIGTERM" in two.log


def test_the_exit_code_of_the_application_is_that_of_the_sidecar(
    app: Stock, tmp_path: Path
) -> None:
    (tmp_path / "primary" / "app.py").write_text(APPLICATION)
    with primary(tmp_path / "primary", more=f"exec: {sys.executable} app.py 42\n") as one:
        assert one.wait() == 42
    with primary(tmp_path / "primary", more="exec: sh -c 'kill -KILL $$$$'\n") as one:
        assert one.wait() == 128 + signal.SIGKILL


def test_an_application_that_is_not_there(app: Stock, tmp_path: Path) -> None:
    with primary(tmp_path / "primary", more="exec: no-such-program\n") as one:
        assert one.wait() == 1
        assert "nearlite: exec: no-such-program: No such file or directory" in one.log


def test_an_interrupt_ends_it_in_order(app: Stock, tmp_path: Path) -> None:
    with primary(tmp_path / "primary") as one:
        eventually(one.healthy)
        assert one.stop(signal.SIGINT) == 0
        assert "Traceback" not in one.log


def test_an_address_that_is_taken(app: Stock, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        answer = subprocess.run(
            [sys.executable, "-m", "nearlite", "replicate", "--addr", at],
            cwd=_configured(tmp_path),
            capture_output=True,
            text=True,
        )
    assert answer.returncode == 1
    assert answer.stderr.endswith("nothing was started\n")


def _configured(tmp_path: Path) -> Path:
    (tmp_path / "nearlite.yml").write_text(f"dbs: [{{path: {tmp_path}/primary/db}}]")
    return tmp_path
