"""Which tables a set of changed pages has changed: against dbstat and against the rows themselves."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from nearlite._native.database import Database
from nearlite.btree import refers_to
from nearlite.tables import SCHEMA, Tables, _Owners, rows_of


class Bench:
    """A database that stock SQLite writes, and its tables as we follow them from page to page."""

    def __init__(self, path: Path, *, page_size: int, auto_vacuum: int) -> None:
        self.path, self.page_size = path, page_size
        self.stock = sqlite3.connect(path, isolation_level=None)
        self.stock.execute(f"PRAGMA page_size={page_size}")
        self.stock.execute(f"PRAGMA auto_vacuum={auto_vacuum}")
        self.stock.execute("CREATE TABLE t0(a INTEGER PRIMARY KEY, b)")
        self.images = self.look()
        self.database = Database(str(path))
        with self.reading():
            self.tables = Tables(self.database, page_size)
        self.dump = self.content()

    def look(self) -> list[bytes]:
        data = self.path.read_bytes()
        return [data[at : at + self.page_size] for at in range(0, len(data), self.page_size)]

    @contextmanager
    def reading(self) -> Iterator[None]:
        self.database.exec("BEGIN")
        try:
            yield
        finally:
            self.database.exec("ROLLBACK")

    def content(self) -> dict[str, Any]:
        names = [
            name
            for (name,) in self.stock.execute("SELECT name FROM sqlite_schema WHERE type='table'")
        ]
        return {name: self.stock.execute(f"SELECT * FROM {name}").fetchall() for name in names}

    def step(self) -> tuple[frozenset[str], set[str]]:
        """What we say has changed since the last step, and what has."""
        before, self.images = self.images, self.look()
        pages = {
            number
            for number, page in enumerate(self.images, 1)
            if number > len(before) or before[number - 1] != page
        }
        with self.reading():
            named = self.tables.changed(pages)
            self.owners_are_right()
        rows, self.dump = self.dump, self.content()
        really = {
            name for name in rows.keys() | self.dump.keys() if rows.get(name) != self.dump.get(name)
        }
        return named, really

    def owners_are_right(self) -> None:
        """Of every page that is in a tree, as dbstat says."""
        table_of = dict(rows_of(self.database, _NAMES))
        owners = _Owners(self.tables._referrers, self.tables._roots)
        for name, number in rows_of(self.database, "SELECT name, pageno FROM dbstat"):
            assert owners.of(number) == table_of.get(name, SCHEMA), number

    def close(self) -> None:
        self.stock.close()
        self.database.close()


_NAMES = "SELECT name, tbl_name FROM sqlite_schema"


def test_a_write_names_its_table_and_no_other(tmp_path: Path) -> None:
    with closing(Bench(tmp_path / "x.db", page_size=512, auto_vacuum=0)) as bench:
        bench.stock.execute("CREATE TABLE t1(a, b)")
        bench.stock.execute("CREATE INDEX i1 ON t1(b)")
        assert bench.step()[0] >= {"t1", SCHEMA}
        for table in ("t0", "t1"):
            bench.stock.executemany(
                f"INSERT INTO {table}(b) VALUES(?)", [("x" * (n % 1500),) for n in range(300)]
            )
            assert bench.step() == ({table}, {table})
        bench.stock.execute("UPDATE t0 SET b = 'y' WHERE a = 150")
        assert bench.step() == ({"t0"}, {"t0"})
        bench.stock.execute("DELETE FROM t1 WHERE rowid % 3 = 0")
        named, really = bench.step()
        assert really == {"t1"}
        assert named == really
        bench.stock.execute("INSERT INTO t0(b) VALUES(zeroblob(40000))")  # pages that t1 has left
        named, really = bench.step()
        assert really == {"t0"}
        assert named >= really
        bench.stock.execute("UPDATE t0 SET b = randomblob(40000) WHERE length(b) = 40000")
        assert bench.step() == ({"t0"}, {"t0"})


def test_only_an_overflow_page_changes(tmp_path: Path) -> None:
    with closing(Bench(tmp_path / "x.db", page_size=512, auto_vacuum=0)) as bench:
        bench.stock.execute("CREATE TABLE t1(b)")
        bench.stock.execute("INSERT INTO t1 VALUES(zeroblob(60000))")
        bench.stock.execute("INSERT INTO t0(b) VALUES(zeroblob(60000))")
        bench.step()
        blob = bench.stock.blobopen("t1", "b", 1) if hasattr(bench.stock, "blobopen") else None
        assert blob is not None or not hasattr(sqlite3, "Blob")
        if blob is None:  # Python 3.10
            bench.stock.execute("UPDATE t1 SET b = zeroblob(59999) || x'01'")
        else:
            with blob:
                blob.seek(50_000)
                blob.write(b"here")
        named, really = bench.step()
        assert named == really == {"t1"}


def test_pages_that_are_not_known_are_all_tables(tmp_path: Path) -> None:
    with closing(Bench(tmp_path / "x.db", page_size=512, auto_vacuum=0)) as bench:
        bench.stock.execute("CREATE TABLE t1(a)")
        bench.step()
        bench.stock.execute("INSERT INTO t1 VALUES(1)")
        with bench.reading():
            assert bench.tables.changed(None) == {"t0", "t1", SCHEMA}
            bench.owners_are_right()


def statement(rng: random.Random, tables: set[str]) -> str:
    """Something that moves pages about."""
    name = rng.choice(sorted(tables))
    size = rng.choice([1, 30, 200, 700, 5000, 30_000])
    number = rng.randint(2, 5)
    many = (
        f"INSERT INTO {name}(b) WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
        f"LIMIT {rng.randint(1, 80)}) SELECT hex(randomblob({size} / (1 + i % 3))) FROM n"
    )
    return rng.choice(
        [
            many,
            f"INSERT INTO {name}(b) VALUES(randomblob({size}))",
            f"UPDATE {name} SET b = randomblob({size}) WHERE rowid % {rng.randint(2, 9)} = 0",
            f"UPDATE {name} SET b = randomblob(length(b)) WHERE rowid = {rng.randint(1, 99)}",
            f"DELETE FROM {name} WHERE rowid % {rng.randint(1, 5)} = 0",
            f"DELETE FROM {name}",
            f"CREATE INDEX IF NOT EXISTS i_{name} ON {name}(b)",
            f"DROP INDEX IF EXISTS i_{name}",
            f"CREATE TABLE IF NOT EXISTS t{number}(a INTEGER PRIMARY KEY, b)",
            f"DROP TABLE IF EXISTS t{number}",
            "VACUUM",
            "PRAGMA incremental_vacuum(5)",
        ]
    )


@pytest.mark.parametrize("auto_vacuum", [0, 1, 2])
@pytest.mark.parametrize("page_size", [512, 4096])
@pytest.mark.parametrize("seed", range(2))
def test_no_change_is_missed_and_owners_stay_exact(
    tmp_path: Path, page_size: int, auto_vacuum: int, seed: int
) -> None:
    rng = random.Random(seed)
    named_in_vain = 0
    with closing(Bench(tmp_path / "x.db", page_size=page_size, auto_vacuum=auto_vacuum)) as bench:
        for _ in range(40):
            for _ in range(rng.choice([1, 1, 3])):  # several commits may come as one set
                tables = {name for name in bench.content() if name.startswith("t")}
                bench.stock.execute(statement(rng, tables))
            named, really = bench.step()
            assert really <= named
            named_in_vain += len(named - really - {SCHEMA})
    assert named_in_vain < 40  # of 40 steps with up to six tables each


def test_whatever_is_in_a_page_it_is_read_without_an_error() -> None:
    rng = random.Random(5)
    for _ in range(3000):
        page = bytearray(rng.randbytes(512))
        page[0] = rng.choice([2, 5, 10, 13, page[0]])
        for child in refers_to(bytes(page), rng.choice([1, 2, 3]), rng.choice([480, 512])):
            assert 0 <= child < 1 << 32
