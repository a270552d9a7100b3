"""Compact page sets from a primary to its replicas: whatever happens, the replica's hash is the primary's."""

from __future__ import annotations

import logging
import random
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from primaries import primary
from sealing import edit_page, page_of, reader

from nearlite import wire
from nearlite.primary import Primary

EITHER = True

FILL = (
    "INSERT INTO t(a, n) WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < {}) "
    "SELECT hex(randomblob(30)), i FROM c"
)
STEPS = (
    FILL.format(1),
    FILL.format(1),
    FILL.format(60),
    "UPDATE t SET n = n + 1 WHERE id % 50 = 3",
    "UPDATE t SET a = a || a WHERE id % 40 = 7 AND length(a) < 2000",
    "DELETE FROM t WHERE id % 23 = 5",
    "CREATE TABLE IF NOT EXISTS other(x)",
    "DROP TABLE IF EXISTS other",
    "VACUUM",
    "PRAGMA wal_checkpoint(PASSIVE)",
)


def equal(replica: Any, served: Any) -> bool:
    """Whether every page of the replica's file is the primary's."""
    state, found = replica._replica._applier.full_hash()
    with (
        closing(reader(served.path)) as theirs,
        closing(reader(replica._replica.path)) as ours,
    ):
        same = list(theirs.iterdump()) == list(ours.iterdump())
        assert ours.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return same and state.hash == found


@pytest.mark.parametrize("seed", range(3))
def test_a_replica_stays_equal_whatever_is_done_to_the_primary(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with primary(tmp_path) as served:
        replica = served.replica()
        replica.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a, n)")
        replica.execute("CREATE INDEX t_a ON t(a)")
        replica.commit()
        sizes = []
        for _ in range(40):
            step = rng.choice(STEPS)
            if rng.random() < 0.5 and not step.startswith(("VACUUM", "PRAGMA")):
                replica.execute(step)
                replica.commit()
            else:  # another program, on the primary's own file
                with closing(reader(served.path, isolation_level=None)) as foreign:
                    foreign.execute(step)
                sizes.append(replica.sync().bytes)
        assert equal(replica, served)
        assert replica._replica._compact, "what is told was always right"
        assert any(0 < size < 512 for size in sizes), "the test tests something"


def test_a_row_and_an_integer_cost_what_was_promised(tmp_path: Path) -> None:
    with primary(tmp_path) as served:
        writer, reader = served.replica("a.db", isolation_level=None), served.replica("b.db")
        writer.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a, n)")
        writer.execute("CREATE INDEX t_a ON t(a)")
        writer.execute(FILL.format(5000))
        reader.sync()
        rows, integers = [], []
        for i in range(40):
            writer.execute(FILL.format(1))
            rows.append(reader.sync().bytes)
            writer.execute("UPDATE t SET n = n + 1 WHERE id = ?", (i * 100 + 1,))
            integers.append(reader.sync().bytes)
        assert sorted(rows)[20] <= 180
        assert max(integers) <= 64
        assert equal(reader, served)


def spoil(path: Path, text: bytes) -> None:
    """Another byte where the file says `text`."""
    for number in range(1, path.stat().st_size // 4096 + 1):
        at = page_of(path, number).find(text)
        if at >= 0:
            edit_page(path, number, at, b"x")
            return
    raise ValueError(text)


def test_pages_that_are_not_what_the_primary_thinks_are_asked_for_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A bit of the replica's file flips: what is told from that page is refused, the page itself mends it."""
    with primary(tmp_path) as served:
        replica = served.replica(isolation_level=None)
        replica.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a, n)")
        replica.execute(FILL.format(150))
        (text,) = replica.execute("SELECT a FROM t WHERE id = 140").fetchone()
        inner = replica._replica
        inner._applier.full_hash()  # what every page hashes to is known from here on
        inner._applier.checkpoint("truncate", wait=5)
        path = Path(inner.path)
        spoil(path, text.encode())
        with closing(reader(served.path, isolation_level=None)) as foreign:
            foreign.execute("UPDATE t SET n = n + 1 WHERE id = 141")  # on the damaged page
        with caplog.at_level(logging.WARNING, "nearlite"):
            replica.sync()
        assert equal(replica, served)
        assert not inner._compact
        assert "could not be told from the pages of" in caplog.text


def first_byte(answer: Any) -> bytes:
    return bytes(answer.read()[:1])


def test_what_cannot_be_told_from_its_pages_is_sent_as_pages(tmp_path: Path) -> None:
    with Primary.open(tmp_path / "data.db", durability="normal") as opened:
        database = opened.connect()
        for statement in ("CREATE TABLE t(id INTEGER PRIMARY KEY, a, n)", FILL.format(400)):
            database.exec(statement)
        opened.after_commit()
        middle = opened.state()
        database.exec("UPDATE t SET n = 7 WHERE id = 3")
        opened.after_commit()
        last = opened.state()
        told = opened.changes(middle.position, middle.hash, compact=True)
        assert told is not None
        assert wire.is_compact(told.read())
        assert opened.roll()
        database.exec("UPDATE t SET n = 8 WHERE id = 3")
        opened.after_commit()
        after = opened.changes(last.position, last.hash, compact=True)
        assert after is not None
        assert wire.is_compact(after.read()), "the end of a generation is the base of the next"
        before = opened.changes(middle.position, middle.hash, compact=True)
        assert before is not None
        assert first_byte(before) == b"N", "the images of that time are gone"
        here = opened.state()
        database.exec("DELETE FROM t")
        database.exec("VACUUM")
        opened.after_commit()
        shrunk = opened.changes(here.position, here.hash, compact=True)
        assert shrunk is not None
        assert first_byte(shrunk) == b"N", "pages were cut off"
        database.close()


def test_an_older_client_is_answered_in_its_version(tmp_path: Path) -> None:
    with Primary.open(tmp_path / "data.db", durability="normal") as opened:
        start = opened.state()
        database = opened.connect()
        database.exec("CREATE TABLE t(a)")
        opened.after_commit()
        answer = opened.changes(start.position, start.hash)
        assert answer is not None
        assert first_byte(answer) == b"N"
        database.close()


def test_a_live_replica_asks_for_whole_pages_when_its_own_are_wrong(tmp_path: Path) -> None:
    with primary(tmp_path) as served:
        replica = served.replica(isolation_level=None, sync_interval="live")
        replica.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a, n)")
        replica.execute(FILL.format(150))
        (text,) = replica.execute("SELECT a FROM t WHERE id = 140").fetchone()
        inner = replica._replica
        inner._applier.full_hash()
        inner._applier.checkpoint("truncate", wait=5)
        path = Path(inner.path)
        spoil(path, text.encode())
        remote = served.remote(isolation_level=None)
        remote.execute("UPDATE t SET n = n + 1 WHERE id = 141")  # on the damaged page
        replica.wait_for(remote.last_write_position)
        assert equal(replica, served)
        with inner._applying:
            state, found = inner._applier.full_hash()
        assert found == state.hash
