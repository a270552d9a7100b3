"""libSQL's embedded replicas that people use today, unchanged, below our primary.

They are installed once by name into the project's cache folder, as in test_released_clients.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sealing
from hosting import made, many
from serving import Client, app_of, execute, serving
from soaking import Soak
from test_background import eventually
from test_released_clients import CACHE, HERE, NPM_CLIENT, PYPI_CLIENT, installed, pip_installed

import nearlite
from nearlite import serve

pytestmark = pytest.mark.xdist_group("released-clients")

TOKEN = "a token"
SECONDS = 60.0
CREATE = "CREATE TABLE t(id INTEGER PRIMARY KEY, who TEXT, b)"
COUNT = "SELECT count(*), sum(length(b)) FROM t"
MANY = (
    "INSERT INTO t(who, b) WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 500)"
    " SELECT 'them', randomblob(3000) FROM n"
)


class Replica:
    """One in a process of its own, which takes commands."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *command: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        if "error" in told:
            raise ValueError(told["error"])
        return told["answer"]

    def close(self) -> None:
        self.process.communicate(timeout=30)


def pypi(url: str, path: Path, *, token: str = TOKEN, **options: Any) -> Replica:
    folder = pip_installed("pypi", PYPI_CLIENT)
    program = str(HERE / "released_libsql_replica.py")
    command = [sys.executable, program, url, token, str(path), json.dumps(options)]
    return Replica(command, folder)


def npm(url: str, path: Path, **options: Any) -> Replica:
    folder = installed(
        CACHE / "npm",
        NPM_CLIENT,
        *("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", ".", NPM_CLIENT),
    )
    program = folder / "released_replica.mjs"
    program.write_text((HERE / "released_replica.mjs").read_text())
    command = ["node", str(program), url, TOKEN, str(path), json.dumps(options)]
    return Replica(command, folder)


KINDS = pytest.mark.parametrize("kind", [pypi, npm], ids=["pypi", "npm"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.db"


@pytest.fixture(params=["primary", "edge"])
def port(request: pytest.FixtureRequest, path: Path, tmp_path: Path) -> Iterator[int]:
    """Of a primary whose generations are short, or of an edge of it."""
    options = {"durability": "normal", "auth_token": TOKEN, "roll_bytes": 400_000}
    with ExitStack() as stack:
        port = stack.enter_context(serving(app_of(path, **options)))
        if request.param == "edge":
            edge = app_of(
                tmp_path / "edge.db",
                upstream=f"http://127.0.0.1:{port}",
                upstream_token=TOKEN,
                auth_token=TOKEN,
                edge=True,
                sync_interval=3600.0,
            )
            port = stack.enter_context(serving(edge))
        Client(port, TOKEN).pipeline(execute(CREATE))
        yield port


def generation(port: int) -> int:
    found: int = Client(port, TOKEN).request("GET", "/info").json["current_generation"]
    return found


def grow(port: int, rows: int) -> None:
    Client(port, TOKEN).pipeline(
        execute(
            "INSERT INTO t(who, b) WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n"
            f" WHERE i < {rows}) SELECT 'us', randomblob(3000) FROM n"
        )
    )


def ends(port: int, count: int, *, rows: int) -> None:
    """So many generations, one after the other, each with so many rows."""

    def has_ended(before: int) -> bool:
        return generation(port) > before

    for _ in range(count):
        before = generation(port)
        grow(port, rows)
        eventually(partial(has_ended, before))


def rows(path: Path, sql: str) -> list[list[Any]]:
    with closing(sealing.reader(path)) as connection:
        return [list(row) for row in connection.execute(sql)]


@KINDS
def test_a_replica_is_bootstrapped_follows_and_writes(
    kind: Any, port: int, path: Path, tmp_path: Path
) -> None:
    grow(port, 50)
    with closing(kind(f"http://127.0.0.1:{port}", tmp_path / "replica.db")) as replica:
        replica("open")
        replica("sync")
        assert replica("read", COUNT) == [[50, 150_000]]
        replica("write", "INSERT INTO t(who, b) VALUES('them', 'x')")
        assert replica("read", COUNT) == [[51, 150_001]]  # its own write, without a sync
        assert rows(path, "SELECT who FROM t WHERE id = 51") == [["them"]]
        ends(port, 4, rows=200)  # while it is connected
        assert replica("read", COUNT) == [[51, 150_001]]
        replica("sync")
        assert replica("read", COUNT) == rows(path, COUNT)
        replica("write", "DELETE FROM t WHERE id % 2")
        assert replica("read", COUNT) == rows(path, COUNT)


@KINDS
def test_a_replica_of_one_of_many_databases(kind: Any, tmp_path: Path) -> None:
    folder = made(tmp_path / "dbs", "one", "other")
    with many(folder, durability="normal", auth_token=TOKEN) as served:
        served.of("one", TOKEN).run(CREATE, "INSERT INTO t(who) VALUES ('one')")
        served.of("other", TOKEN).run(CREATE, "INSERT INTO t(who) VALUES ('other'), ('too')")
        with closing(kind(f"{served.url}/db/one", tmp_path / "r.db")) as replica:
            replica("open")
            replica("sync")
            assert replica("read", "SELECT who FROM t") == [["one"]]
            replica("write", "INSERT INTO t(who) VALUES ('replica')")
            assert replica("read", "SELECT count(*) FROM t") == [[2]]
        assert served.of("one", TOKEN).rows("SELECT who FROM t") == [["one"], ["replica"]]
        assert served.of("other", TOKEN).rows("SELECT count(*) FROM t") == [[2]]


@KINDS
def test_a_replica_that_was_away_catches_up(
    kind: Any, port: int, path: Path, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{port}"
    with closing(kind(url, tmp_path / "replica.db")) as replica:
        replica("open")
        replica("sync")
        replica("close")
    ends(port, 5, rows=150)
    with closing(kind(url, tmp_path / "replica.db")) as replica:
        replica("open")
        replica("sync")
        assert replica("read", COUNT) == rows(path, COUNT) == [[750, 2_250_000]]


def test_it_syncs_by_itself(port: int, path: Path, tmp_path: Path) -> None:
    with closing(pypi(f"http://127.0.0.1:{port}", tmp_path / "r.db", sync_interval=0.1)) as replica:
        replica("open")

        def has(total: int) -> bool:
            try:
                return bool(replica("read", "SELECT count(*) FROM t") == [[total]])
            except ValueError:  # the base has no table yet
                return False

        for total in (5, 10):
            grow(port, 5)
            eventually(partial(has, total))


def test_it_is_told_when_its_frames_are_gone(port: int, path: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{port}"
    with closing(pypi(url, tmp_path / "replica.db")) as replica:
        replica("open")
        replica("sync")
        ends(port, 1, rows=200)
        for archive in path.with_name("data.db-nearlite").glob("*.wal"):
            archive.unlink()
        with pytest.raises(ValueError, match=r"410 Gone.*delete the replica's files"):
            replica("sync")
        assert replica("read", COUNT) == [[0, None]]


def test_a_wrong_token(port: int, tmp_path: Path) -> None:
    replica = pypi(f"http://127.0.0.1:{port}", tmp_path / "replica.db", token="another")
    with closing(replica), pytest.raises(ValueError, match="401 Unauthorized"):
        replica("open")
        replica("sync")


# ---------------------------------------------------------------- offline: what it wrote is pushed


def taking(path: Path) -> Any:
    """A primary that takes what is pushed."""
    return app_of(path, durability="normal", auth_token=TOKEN, allow_push=True)


@KINDS
def test_what_is_written_offline_is_pushed(kind: Any, path: Path, tmp_path: Path) -> None:
    """Also one transaction in many batches, and after restarts of both, each of which ends a generation."""
    file = tmp_path / "replica.db"
    with closing(serve.bind("127.0.0.1", 0)) as at:
        url = f"http://127.0.0.1:{at.getsockname()[1]}"
        with (
            serving(taking(path), at) as port,
            closing(kind(url, file, offline=True)) as replica,
            closing(nearlite.connect(tmp_path / "ours.db", sync_url=url, auth_token=TOKEN)) as ours,
        ):
            Client(port, TOKEN).pipeline(execute(CREATE))
            replica("open")
            replica("sync")
            replica("write", "INSERT INTO t(who, b) VALUES('them', 'x')")
            replica("sync")
            assert rows(path, "SELECT who, b FROM t") == [["them", "x"]]
            replica("write", MANY)
            replica("sync")
            ours.sync()
            assert ours.execute(COUNT).fetchone() == (501, 1_500_001)
            grow(port, 3)
            replica("sync")  # nothing to push: it pulls
            assert replica("read", COUNT) == [[504, 1_509_001]]
        with (
            serving(taking(path), at) as port,
            closing(kind(url, file, offline=True)) as replica,
        ):
            replica("open")
            replica("write", "DELETE FROM t WHERE id > 100")
            replica("sync")
            assert replica("read", COUNT) == rows(path, COUNT) == [[100, 297_001]]
            grow(port, 2)
            replica("sync")
            assert replica("read", COUNT) == rows(path, COUNT) == [[102, 303_001]]
            assert replica("read", "PRAGMA integrity_check") == [["ok"]]


def test_both_have_written(path: Path, tmp_path: Path) -> None:
    with serving(taking(path)) as port:
        Client(port, TOKEN).pipeline(execute(CREATE))
        url = f"http://127.0.0.1:{port}"
        with closing(pypi(url, tmp_path / "replica.db", offline=True)) as replica:
            replica("open")
            replica("sync")
            replica("write", "INSERT INTO t(who) VALUES('them')")
            grow(port, 2)
            with pytest.raises(ValueError, match="conflict"):
                replica("sync")
        assert rows(path, "SELECT DISTINCT who FROM t") == [["us"]]


def test_nothing_is_pushed_without_permission(port: int, path: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{port}"
    with closing(pypi(url, tmp_path / "replica.db", offline=True)) as replica:
        replica("open")
        replica("sync")
        replica("write", "INSERT INTO t(who) VALUES('them')")
        with pytest.raises(ValueError, match=r"403 Forbidden.*does not allow pages to be pushed"):
            replica("sync")
    assert rows(path, "SELECT * FROM t") == []


@pytest.mark.parametrize("port", ["primary"], indirect=True)
@pytest.mark.soak
def test_two_replicas_write_while_generations_end(
    port: int, path: Path, tmp_path: Path, soak: Soak
) -> None:
    """Both see all of it in the end, and nothing that the primary does not have."""
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(closing(kind(url, tmp_path / f"{i}.db")))
            for i, kind in enumerate((pypi, npm))
        ]
        for replica in replicas:
            replica("open")
        failures: list[BaseException] = []

        def work(replica: Replica, who: str) -> None:
            try:
                for turn in soak.until(SECONDS):
                    replica(
                        "write",
                        f"INSERT INTO t(who, b) VALUES('{who}', randomblob({turn * 97 % 9000}))",
                    )
                    if turn % 5 == 0:
                        replica(
                            "write",
                            f"UPDATE t SET b = randomblob(500) WHERE who = '{who}' AND id % 9 = 4",
                        )
                    if turn % 17 == 0:
                        replica("write", "DELETE FROM t WHERE id % 13 = 5")
                    mine = replica("read", f"SELECT max(id) FROM t WHERE who = '{who}'")
                    assert mine[0][0] is not None or turn % 17 == 0
                    soak.count(writes=1)
            except BaseException as error:
                failures.append(error)

        threads = [
            threading.Thread(target=work, args=(replica, who))
            for replica, who in zip(replicas, ("one", "two"), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        soak.count(generations=generation(port))
        assert generation(port) > 3
        everything = "SELECT id, who, length(b), hex(substr(b, 1, 8)) FROM t ORDER BY id"
        there = rows(path, everything)
        for replica in replicas:
            replica("sync")
            assert replica("read", everything) == there
            assert replica("read", "PRAGMA integrity_check") == [["ok"]]


@pytest.mark.soak
def test_an_offline_replica_pushes_while_generations_end(
    path: Path, tmp_path: Path, soak: Soak
) -> None:
    """It is told of none of them, and nothing that it wrote is lost."""
    options = {"durability": "normal", "auth_token": TOKEN, "roll_bytes": 400_000}
    with serving(app_of(path, allow_push=True, **options)) as port:
        Client(port, TOKEN).pipeline(execute(CREATE))
        url = f"http://127.0.0.1:{port}"
        with closing(pypi(url, tmp_path / "replica.db", offline=True)) as replica:
            replica("open")
            replica("sync")
            for turn in soak.turns(40):
                length = turn * 977 % 200_000
                replica("write", f"INSERT INTO t(who, b) VALUES('them', randomblob({length}))")
                if turn % 5 == 0:
                    replica("write", "UPDATE t SET b = randomblob(900) WHERE id % 9 = 4")
                if turn % 17 == 0:
                    replica("write", "DELETE FROM t WHERE id % 13 = 5")
                replica("sync")
                if turn % 7 == 0:
                    grow(port, 2)
                    replica("sync")
                soak.count(pushes=1)
            everything = "SELECT id, who, length(b), hex(substr(b, 1, 8)) FROM t ORDER BY id"
            assert replica("read", everything) == rows(path, everything)
            assert replica("read", "PRAGMA integrity_check") == [["ok"]]
        soak.count(generations=generation(port))
