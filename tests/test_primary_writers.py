"""Foreign writers, pins, and every shape a database can take: the log misses nothing."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from pagemodel import PageModel
from sealing import is_on, wal_of
from stock import Stock, dump, run
from test_primary import bootstrap, execute, follow

from nearlite._native.applier import Applier, Bootstrap
from nearlite._native.database import Database
from nearlite._native.tail import Tail
from nearlite.primary import Primary
from nearlite.wire import Chunk, Header, PageSetReader

EITHER = True

WRITER = """
import select, sys, sealing
path, me, auto = sys.argv[1], int(sys.argv[2]), sys.argv[3]
connection = sealing.reader(path, timeout=60, isolation_level=None)
connection.execute("PRAGMA synchronous=" + ("NORMAL" if sealing.is_on() else "OFF"))
connection.execute(f"PRAGMA wal_autocheckpoint={auto}")
count = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE counter SET n = n + 1 WHERE writer = ?", (me,))
    connection.execute("UPDATE t SET x = ? WHERE id = ?", ("y" * (count % 700), count % 500))
    connection.execute("COMMIT")
    count += 1
connection.close()
print(count)
"""


@pytest.mark.parametrize("autocheckpoint", ["20", "1000"])
def test_no_commit_of_foreign_writers_is_lost_while_generations_roll(tmp_path, autocheckpoint):
    path = tmp_path / "data.db"
    with Primary.open(path, durability="normal") as primary:
        execute(
            primary,
            "CREATE TABLE counter(writer PRIMARY KEY, n)",
            "INSERT INTO counter VALUES(0, 0), (1, 0)",
            "CREATE TABLE t(id INTEGER PRIMARY KEY, x)",
            "WITH n(i) AS (VALUES(0) UNION ALL SELECT i+1 FROM n WHERE i<499)"
            "INSERT INTO t SELECT i, '' FROM n",
        )
        model = bootstrap(primary)
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(path), str(me), autocheckpoint],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parent,
            )
            for me in range(2)
        ]
        rolls = 0
        while rolls < 8:
            follow(primary, model)
            rolls += model.at.frame > 100 and primary.roll(wait=5)
            assert all(writer.poll() is None for writer in writers)
        counts = [int(writer.communicate()[0]) for writer in writers]
        while follow(primary, model):
            pass
        state = primary.state()
        assert primary.verify() == (state.hash, 0)
        assert model.hash == state.hash
        assert state.position.generation == rolls + 1  # none was lost to recovery
        copy = model.write(tmp_path / "copy.db")
        assert run(copy, "SELECT n FROM counter ORDER BY writer", plain=True) == [
            [n] for n in counts
        ]
        assert model.dump(copy) == dump(path)
        history(primary)


def history(primary: Primary) -> None:
    """Frame numbers in the archive are without a gap, and every generation ends where it says."""
    state = primary._generations.state
    assert [old.generation for old in state.archived] == list(range(1, state.generation))
    for old in state.archived:
        index = primary._generations._index_of(old)
        assert (index.frame, f"{index.hash:016x}") == (old.frame, old.hash)
        assert not old.foreign


def test_a_pin_on_a_fully_copied_wal_keeps_it(tmp_path):
    """Rule A2: a plain reader would sit on READ_LOCK(0), and the next commit would reset the WAL."""
    path = tmp_path / "data.db"
    stock = Stock(path)
    stock.execute("PRAGMA journal_mode=WAL")
    stock.execute("CREATE TABLE t(a)")
    [[busy, frames, copied]] = stock.execute("PRAGMA wal_checkpoint(PASSIVE)")
    assert (busy, frames) == (0, copied)
    tail = Tail(str(path))
    before, _ = tail.look(0)
    assert before.mark > 0
    stock.execute("INSERT INTO t VALUES(1)")
    after, _ = tail.look(0)
    assert after.salt == before.salt
    assert after.live > before.live
    tail.close()
    stock.execute("PRAGMA wal_checkpoint(PASSIVE)")
    stock.execute("INSERT INTO t VALUES(2)")
    assert wal_of(path).read_bytes()[16:24].hex() != before.salt
    stock.close()


def test_a_pin_on_an_empty_wal_keeps_the_base(tmp_path):
    path = tmp_path / "data.db"
    with Primary.open(path, durability="normal") as primary:
        execute(primary, "CREATE TABLE t(a)")
        assert primary.roll()
        base = path.read_bytes()
        execute(primary, "INSERT INTO t VALUES(1)")
        stock = Stock(path)
        stock.execute("PRAGMA busy_timeout=0")
        assert stock.execute("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 1
        stock.close()
        assert path.read_bytes() == base


def test_frames_beyond_the_wal_index_are_not_taken(tmp_path):
    """Rule A7: what stands in the file and is not published is not committed."""
    path = tmp_path / "data.db"
    with Primary.open(path, durability="normal") as primary:
        execute(primary, "CREATE TABLE t(a)")
        stock = Stock(path)
        stock.execute("PRAGMA cache_size=2")
        stock.execute("BEGIN")
        stock.execute(
            "WITH n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<200)"
            "INSERT INTO t SELECT randomblob(3000) FROM n"
        )
        before = primary.state()
        frames = (wal_of(path).stat().st_size - 32) // (4152 if is_on() else 4120)
        assert frames > before.position.frame + 50  # the transaction has spilled
        assert primary.after_commit() == before.position
        stock.execute("ROLLBACK")
        stock.close()
        execute(primary, "INSERT INTO t VALUES(1)")
        assert primary.verify() == (primary.state().hash, 0)


SHAPES = [
    "INSERT INTO t SELECT NULL, randomblob(abs(random()) % 3000) FROM n LIMIT 40",
    "INSERT INTO t VALUES(NULL, randomblob(30000))",
    "DELETE FROM t WHERE id % 3 = 0",
    "UPDATE t SET b = randomblob(500) WHERE id % 5 = 0",
    "DELETE FROM t WHERE id > (SELECT max(id) / 2 FROM t)",
    "VACUUM",
    "PRAGMA incremental_vacuum",
    "CREATE TABLE IF NOT EXISTS u AS SELECT * FROM t",
    "DROP TABLE IF EXISTS u",
    "REINDEX",
]


@pytest.mark.parametrize("page_size", [512, 1024, 4096, 65536])
@pytest.mark.parametrize("auto_vacuum", [0, 1, 2])
def test_every_page_size_and_vacuum_mode(tmp_path, page_size, auto_vacuum):
    path = tmp_path / "data.db"
    Database(str(path), page_size=page_size).close()  # decides it where files are sealed
    stock = Stock(path)
    stock.execute(f"PRAGMA page_size={page_size}")
    stock.execute(f"PRAGMA auto_vacuum={auto_vacuum}")
    stock.execute("VACUUM")
    stock.execute("PRAGMA journal_mode=WAL")
    stock.execute(f"PRAGMA synchronous={'NORMAL' if is_on() else 'OFF'}")
    stock.execute("PRAGMA cache_size=10")
    stock.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, b)")
    stock.execute("CREATE INDEX i ON t(b)")
    stock.execute(
        "CREATE VIEW n AS WITH n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<40) SELECT i FROM n"
    )
    choose = random.Random(page_size + auto_vacuum)
    with Primary.open(path, durability="normal") as primary:
        assert primary.page_size == page_size
        model = bootstrap(primary)
        for step in range(24):
            stock.execute(choose.choice(SHAPES))
            follow(primary, model)
            assert model.hash == primary.state().hash
            assert primary.verify() == (model.hash, 0)
            if step % 8 == 7:
                assert primary.roll()
        follow(primary, model)
        assert model.dump(tmp_path / "copy.db") == dump(path)
    stock.close()


def test_a_growing_and_shrinking_set_is_never_larger_than_the_database(tmp_path):
    with Primary.open(tmp_path / "data.db", durability="normal") as primary:
        model = bootstrap(primary)
        execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(zeroblob(2000000))")
        execute(primary, "DELETE FROM t", "VACUUM")
        assert follow(primary, model) <= primary.state().pages < 10
        assert model.hash == primary.verify()[0]


def test_many_threads_commit_ask_and_roll(tmp_path):
    with Primary.open(tmp_path / "data.db", durability="normal", roll_bytes=200_000) as primary:
        execute(primary, "CREATE TABLE t(w, i)")
        model = bootstrap(primary)
        failures = []

        def write(me: int) -> None:
            database = primary.connect(busy_ms=60_000)
            try:
                for i in range(60):
                    database.exec(f"INSERT INTO t VALUES({me}, {i})")
                    at = primary.after_commit()
                    if primary.roll_due:
                        primary.roll()
                    assert at.precedes(primary.state().position)
            except Exception as error:
                failures.append(error)
            finally:
                database.close()

        def ask() -> None:
            mine = PageModel()
            try:
                mine.take(primary.snapshot())
                while any(thread.is_alive() for thread in threads[:3]):
                    follow(primary, mine)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(me,)) for me in range(3)]
        threads += [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        while follow(primary, model):
            pass
        assert model.hash == primary.verify()[0]
        assert primary.state().position.generation > 2
        history(primary)


LOCK_BYTE = """
import random, sys
from pathlib import Path
from nearlite._native._lib import lib
assert lib.nl_test_pending_byte(0x10000) == 0  # page 65 of 1024 bytes
from nearlite._native.database import NO_PARAMETERS, Database
from nearlite._native.applier import Applier
from nearlite._native.frames import lock_page
from nearlite.primary import Primary
from pagemodel import PageModel
from test_primary_writers import apply, place

folder = Path(sys.argv[1])
database = Database(str(folder / "data.db"), page_size=1024)
database.exec("PRAGMA page_size=1024; PRAGMA auto_vacuum=%d; VACUUM; PRAGMA cache_size=10" % int(sys.argv[2]))
database.exec("PRAGMA journal_mode=WAL; CREATE TABLE t(i INTEGER PRIMARY KEY, b)")
database.close()
choose = random.Random(65)
with Primary.open(folder / "data.db", durability="normal") as primary:
    assert lock_page(1024) == 65
    writer = primary.connect()
    writer.exec("PRAGMA cache_size=10")
    model = PageModel()
    model.take(primary.snapshot())
    replica = folder / "replica.db"
    place(replica, primary.snapshot().read())
    applier = Applier(str(replica))

    def advance():
        state = applier.state()
        apply(applier, primary.changes(state.position, state.hash).read())
        state, found = applier.full_hash()
        assert (state.position, state.hash, found) == (model.at, model.hash, model.hash)

    for step in range(24):
        writer.exec("INSERT INTO t SELECT NULL, randomblob(900) FROM (VALUES(1),(2),(3),(4),(5),(6),(7),(8))")
        if step % 4 == 3:
            writer.exec("BEGIN; SAVEPOINT s; INSERT INTO t VALUES(NULL, randomblob(60000)); ROLLBACK TO s;"
                        "UPDATE t SET b = randomblob(800) WHERE i % 3 = 0; COMMIT")
        if step % 8 == 7:
            writer.exec("DELETE FROM t WHERE i < (SELECT max(i) * 3 / 4 FROM t); VACUUM")
            primary.roll()
        primary.after_commit()
        answer = primary.changes(model.at, model.claimed)
        model.take(answer)
        assert 65 not in model.pages
        assert model.hash == primary.state().hash
        assert primary.verify() == (model.hash, 0)
        whole = PageModel()
        whole.take(primary.snapshot())
        assert whole.pages == model.pages
        advance()
        if step % 5 == 4:
            applier.checkpoint("truncate", wait=1)
    writer.exec("INSERT INTO t VALUES(NULL, randomblob(200000))")
    primary.after_commit()
    model.take(primary.changes(model.at, model.claimed))
    assert model.size > 200 and 65 not in model.pages
    advance()
    applier.close()
    # Bootstrapped now, with the lock-byte page inside the file.
    again = folder / "again.db"
    place(again, primary.snapshot().read())
    for path in (replica, again):
        applier = Applier(str(path))
        state, found = applier.full_hash()
        assert (state.pages, state.hash, found) == (model.size, model.hash, model.hash)
        applier.close()
        reader = Database(str(path))
        assert reader.prepare("PRAGMA integrity_check").run(NO_PARAMETERS) == [("ok",)]
        reader.close()
    writer.close()
copy = Database(str(model.write(folder / "copy.db")), key=None)
assert copy.prepare("PRAGMA integrity_check").run(NO_PARAMETERS) == [("ok",)]
copy.close()
# And again from the log: a restart reads a table whose entry for that page is zero.
with Primary.open(folder / "data.db") as primary:
    assert primary.verify() == (model.hash, 0)
print("done")
"""


@pytest.mark.parametrize("auto_vacuum", [0, 1, 2])
def test_the_lock_byte_page_is_in_no_hash_set_or_snapshot(tmp_path, auto_vacuum):
    """Rule B6, with the page moved to where a small database reaches it."""
    done = subprocess.run(
        [sys.executable, "-c", LOCK_BYTE, str(tmp_path), str(auto_vacuum)],
        env={**os.environ, "NEARLITE_FFI": "test"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "done\n", done.stderr


def test_the_applier_takes_every_set(tmp_path):
    """The other half of the pull line, on the real thing: a replica file that stock SQLite reads."""
    replica = tmp_path / "replica.db"
    with Primary.open(tmp_path / "data.db", durability="normal") as primary:
        execute(primary, "CREATE TABLE t(i INTEGER PRIMARY KEY, b)")
        place(replica, primary.snapshot().read())
        with closing(Applier(str(replica))) as applier:
            for step in range(12):
                execute(primary, *SHAPES_OF_T[step % len(SHAPES_OF_T)])
                if step % 4 == 3:
                    assert primary.roll()
                state = applier.state()
                answer = primary.changes(state.position, state.hash, compress=step % 2 == 1)
                apply(applier, answer.read())
                now, there = applier.state(), primary.state()
                assert (now.position, now.hash) == (there.position, there.hash)
        assert dump(replica) == dump(primary.path)


SHAPES_OF_T = [
    ["INSERT INTO t VALUES(NULL, randomblob(100))"],
    ["INSERT INTO t VALUES(NULL, randomblob(300000))", "DELETE FROM t WHERE i % 2 = 0"],
    ["VACUUM"],
]


def place(path: Path, snapshot: bytes) -> None:
    """A replica's file out of a snapshot of a primary that nobody writes to."""
    for event in PageSetReader().receive(snapshot):
        if isinstance(event, Header):
            header = event.header
            file = Bootstrap(str(path), header.page_size)
        elif isinstance(event, Chunk):
            with event.chunk:
                file.chunk(event.chunk)
    file.finish(header)
    file.close()


def apply(applier: Applier, data: bytes) -> None:
    chunks = []
    for event in PageSetReader().receive(data):
        if isinstance(event, Header):
            header = event.header
        elif isinstance(event, Chunk):
            chunks.append(event.chunk)
    applier.apply(header, chunks, wait=1.0)
    for chunk in chunks:
        chunk.close()
