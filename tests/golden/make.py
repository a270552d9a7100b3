"""Writes the golden files of this version: ``python tests/golden/make.py 0.1.0``. Run once for each version.

What is computed from the images is the same each time. Database, log folder, replica and wire captures are
those of real processes, with the salts, times and inodes of that day: they are never written again.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import goldens
from history import History
from serving import serving
from spoiling import Proxy, split, status

import nearlite
from nearlite import startup
from nearlite.applications import PrimaryApp
from nearlite.primary import Primary
from nearlite.replica import Replica

LINEAGE = 0x0C0FFEE


def images(folder: Path) -> None:
    """Two states of a database made by the standard library's SQLite."""
    with tempfile.TemporaryDirectory() as scratch:
        source = History(Path(scratch) / "source.db", page_size=goldens.PAGE_SIZE)
        rows = ", ".join(f"({i}, 'row number {i}', {i * i})" for i in range(1, 90))
        source.step("CREATE TABLE t(i INTEGER PRIMARY KEY, a TEXT, n)", "CREATE INDEX t_a ON t(a)")
        old = source.step(f"INSERT INTO t VALUES{rows}")
        many = "WITH RECURSIVE c(i) AS (VALUES(200) UNION ALL SELECT i + 1 FROM c WHERE i < 230) "
        new = source.step(
            "UPDATE t SET n = n + 1 WHERE i IN (7, 70)",
            "DELETE FROM t WHERE i BETWEEN 30 AND 40",
            f"INSERT INTO t {many} SELECT i, 'a longer row, number ' || i, NULL FROM c",
            "UPDATE t SET a = a || ' and more' WHERE i = 50",
        )
        source.db.close()
    (folder / "images").mkdir()
    for name, moment in (("old", old), ("new", new)):
        (folder / "images" / f"{name}.db").write_bytes(b"".join(moment.pages))


def fill(remote: Any, first: int, count: int) -> None:
    for i in range(first, first + count):
        remote.execute("INSERT INTO t VALUES(?, ?, ?)", (i, f"row number {i}", i * i))


class Captured:
    """Exchanges that pass a proxy, and what they are about."""

    def __init__(self, folder: Path, proxy: Proxy) -> None:
        self._folder = folder / "wire"
        self._folder.mkdir()
        self._proxy = proxy
        self.stated: list[dict[str, Any]] = []

    def take(self, name: str, number: int = -1) -> None:
        """Keep an exchange that was the last one, or is counted from there."""
        exchange = self._proxy.exchanges[number]
        host = self._proxy.url.removeprefix("http://").encode()
        answer = exchange.answers[-1]
        request = exchange.request.replace(b"Host: " + host, b"Host: primary.example")
        (self._folder / f"{name}.request").write_bytes(request)
        (self._folder / f"{name}.answer").write_bytes(answer)
        code = status(split(answer)[0])
        self.stated.append({"name": name, "status": code})
        if code >= 400:
            self.stated[-1]["code"] = json.loads(split(answer)[1])["code"]


def primary_and_replica(folder: Path) -> list[dict[str, Any]]:
    """A primary with two closed generations and a running one, never stopped; a replica that stayed behind."""
    scratch = Path(tempfile.mkdtemp())
    path = scratch / "primary.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA page_size = {goldens.PAGE_SIZE}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t(i INTEGER PRIMARY KEY, a TEXT, n)")
        db.execute("CREATE INDEX t_a ON t(a)")
        db.commit()
    startup.secrets.randbelow = lambda _: LINEAGE - 1  # type: ignore[assignment]
    opened: list[Primary] = []

    def owner() -> Primary:
        opened.append(Primary.open(path, durability="normal"))
        return opened[0]

    with serving(PrimaryApp(path, owner)) as port, Proxy(port) as proxy:
        remote = nearlite.connect(f"http://127.0.0.1:{port}", isolation_level=None)
        fill(remote, 1, 20)
        replica = Replica(str(scratch / "replica.db"), proxy.url)
        captured = Captured(folder, proxy)
        replica.open()
        captured.take("snapshot")
        assert opened[0].roll()
        remote.execute("UPDATE t SET a = 'changed ' || i WHERE i % 3 = 0")
        replica._compact = False
        replica.sync()
        captured.take("changes")
        replica._compact = True
        fill(remote, 21, 1)
        replica.sync()
        captured.take("changes-compact")
        replica.sync()
        captured.take("nothing-new")
        kept = folder / "replica"
        kept.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{replica.path}{suffix}", kept / f"replica.db{suffix}")
        assert opened[0].roll()
        fill(remote, 22, 8)
        shutil.copytree(f"{path}-nearlite", folder / "primary" / "primary.db-nearlite")
        log = folder / "primary" / "primary.db-nearlite"
        (log / "lock").unlink()
        shutil.rmtree(log / "server")  # a key, and nothing of the log
        state = json.loads((log / "state.json").read_text())
        (log / "state.json").write_text(json.dumps({**state, "boot_id": goldens.BOOT_ID}, indent=2))
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", folder / "primary" / f"primary.db{suffix}")
        exchanges(captured, replica, proxy)
        replica.close()
        remote.close()
    shutil.rmtree(scratch)
    return captured.stated


def exchanges(captured: Captured, replica: Replica, proxy: Proxy) -> None:
    """With the primary as it is kept."""
    replica.sync(repair=True)
    captured.take("repair")
    replica.transport.request("GET", "nl/v1/status").read(1 << 16)
    captured.take("status")
    position = replica.state().position
    for name, text in (
        ("another-lineage", "00000001.00000001.00000001"),
        ("position-ahead", str(position).replace(".00000003.", ".00000009.")),
        ("another-state", f"{position}?hash=0000000000000001"),
        ("no-position", "somewhere"),
    ):
        replica.transport.request("GET", f"nl/v1/changes/{text}").error_body()
        captured.take(name)
    with closing(nearlite.connect(replica.path, sync_url=proxy.url, isolation_level=None)) as con:
        con.execute("INSERT INTO t VALUES(1000, 'written through a replica', NULL)")
        captured.take("sql")
        con.execute("UPDATE t SET n = 0 WHERE 0")
        captured.take("sql-without-pages")
    with closing(nearlite.connect(proxy.url, isolation_level=None)) as con:
        con.execute("SELECT 1, 2.5, 'text', x'0102', NULL").fetchall()
        captured.take("pipeline")


def main() -> None:
    folder = goldens.FOLDER / sys.argv[1]
    (folder / "formats").mkdir(parents=True)  # an error if it exists: golden files are not replaced
    images(folder)
    for name, data in goldens.encoded(folder).items():
        (folder / "formats" / name).write_bytes(data)
    (folder / "primary").mkdir()
    stated = primary_and_replica(folder)
    with (folder / "stated.json").open("w") as file:
        json.dump(stated, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
