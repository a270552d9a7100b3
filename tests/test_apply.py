"""The applier: page sets into a replica's WAL, one transaction each (rules B)."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import history
import pytest
from history import History, Moment, advance, bootstrapped, replica_of
from sealing import page_of, put_page, reader, wal_of

from nearlite._native._lib import HashError, NotReplicaError, PositionError
from nearlite._native.applier import Applier, Hashes

EITHER = True

SIZES = [512, 1024, 4096, 65536]


def pages_as_sqlite_sees_them(path: Path) -> list[bytes]:
    db = reader(f"file:{path}?mode=ro", uri=True)
    try:
        copy = sqlite3.connect(":memory:")
        db.execute("BEGIN")
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        copy.close()
        return [row[0] for row in db.execute("SELECT quote(count(*)) FROM sqlite_schema")]
    finally:
        db.close()


def check_equal(applier: Applier, path: Path, moment: Moment) -> None:
    """Every page equal (full hash), integrity ok for stock SQLite, position as announced."""
    state, found = applier.full_hash()
    assert (state.position, state.pages) == (moment.position, len(moment.pages))
    assert found == state.hash == moment.hash
    pages_as_sqlite_sees_them(path)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path / "primary.db")
    yield made
    made.db.close()


def fill(rows: int) -> str:
    return (
        "INSERT INTO t(a) WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM c WHERE i<"
        f"{rows}) SELECT hex(randomblob(40)) FROM c"
    )


def test_a_replica_follows_inserts_updates_and_deletes(source: History, tmp_path: Path) -> None:
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", fill(200))
    applier = replica_of(old, tmp_path / "r.db")
    for sql in (fill(50), "UPDATE t SET a='x' WHERE id%3=0", "DELETE FROM t WHERE id%2=0"):
        new = source.step(sql)
        advance(applier, old, new)
        check_equal(applier, tmp_path / "r.db", new)
        old = new
    applier.close()


@pytest.mark.parametrize("page_size", SIZES)
@pytest.mark.parametrize("auto_vacuum", [0, 1, 2])
def test_every_page_size_and_vacuum_mode(tmp_path: Path, page_size: int, auto_vacuum: int) -> None:
    source = History(tmp_path / "p.db", page_size=page_size, auto_vacuum=auto_vacuum)
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", fill(300))
    applier = replica_of(old, tmp_path / "r.db")
    steps = [fill(100), "DELETE FROM t WHERE id>20", "VACUUM", "CREATE INDEX i ON t(a)", fill(60)]
    if auto_vacuum == 2:
        steps.insert(2, "PRAGMA incremental_vacuum(3)")
    for sql in steps:
        new = source.step(sql)
        advance(applier, old, new)
        check_equal(applier, tmp_path / "r.db", new)
        old = new
    applier.close()
    source.db.close()


def test_a_long_random_history_with_checkpoints_and_one_open_reader(
    source: History, tmp_path: Path
) -> None:
    rng = random.Random(20260101)
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", fill(500))
    path = tmp_path / "r.db"
    applier = replica_of(old, path)
    other = reader(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    for turn in range(40):
        sql = rng.choice(
            [
                fill(rng.randrange(1, 400)),
                f"DELETE FROM t WHERE id%{rng.randrange(2, 7)}=0",
                f"UPDATE t SET a=hex(randomblob({rng.randrange(1, 900)})) WHERE id%11={turn % 11}",
                "VACUUM",
                f"CREATE TABLE IF NOT EXISTS x{turn % 4} AS SELECT * FROM t LIMIT 50",
                f"DROP TABLE IF EXISTS x{turn % 4}",
            ]
        )
        expected = other.execute("SELECT count(*), sum(length(a)) FROM t").fetchall()
        other.execute("BEGIN")
        assert other.execute("SELECT count(*), sum(length(a)) FROM t").fetchall() == expected
        new = source.step(sql)
        advance(applier, old, new)
        assert other.execute("SELECT count(*), sum(length(a)) FROM t").fetchall() == expected
        if turn % 3 == 0:
            applier.checkpoint("passive", wait=0)
        other.execute("COMMIT")
        if turn % 7 == 0:
            applier.checkpoint(rng.choice(["restart", "truncate"]), wait=1)
        truth = source.db.execute("SELECT count(*), sum(length(a)) FROM t").fetchall()
        assert other.execute("SELECT count(*), sum(length(a)) FROM t").fetchall() == truth
        old = new
    check_equal(applier, path, old)
    other.close()
    applier.close()


def test_a_set_in_many_chunks_is_one_transaction(source: History, tmp_path: Path) -> None:
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", "INSERT INTO t(a) VALUES (1)")
    applier = replica_of(old, tmp_path / "r.db")
    other = reader(f"file:{tmp_path / 'r.db'}?mode=ro", uri=True)
    new = source.step(fill(3000))
    head, chunks = history.page_set(old, new, per_chunk=7)
    assert len(chunks) > 5
    assert applier.begin(head, wait=1)
    for chunk in chunks:
        applier.chunk(chunk)
        assert other.execute("SELECT count(*) FROM t").fetchone() == (1,)
    applier.commit()
    assert other.execute("SELECT count(*) FROM t").fetchone() == (3001,)
    check_equal(applier, tmp_path / "r.db", new)
    other.close()
    applier.close()


def test_an_interrupted_set_leaves_nothing_behind(source: History, tmp_path: Path) -> None:
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", fill(100))
    applier = replica_of(old, tmp_path / "r.db")
    new = source.step(fill(2000))
    head, chunks = history.page_set(old, new, per_chunk=16)
    assert applier.begin(head, wait=1)
    for chunk in chunks[:-1]:
        applier.chunk(chunk)
    applier.rollback()
    check_equal(applier, tmp_path / "r.db", old)
    advance(applier, old, new)
    check_equal(applier, tmp_path / "r.db", new)
    applier.close()


def test_an_incomplete_set_is_refused_at_the_commit(source: History, tmp_path: Path) -> None:
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", fill(100))
    applier = replica_of(old, tmp_path / "r.db")
    head, chunks = history.page_set(old, source.step(fill(2000)), per_chunk=16)
    assert applier.begin(head, wait=1)
    applier.chunk(chunks[0])
    with pytest.raises(Exception, match="ended early"):
        applier.commit()
    check_equal(applier, tmp_path / "r.db", old)
    applier.close()


def test_a_set_that_leads_to_another_state_is_rolled_back(source: History, tmp_path: Path) -> None:
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", fill(100))
    applier = replica_of(old, tmp_path / "r.db")
    middle = source.step("UPDATE t SET a='middle' WHERE id=1")
    new = source.step("UPDATE t SET a='new' WHERE id=90")
    # announces `new`, carries only the pages of `middle`
    numbers = history.changed(old, middle)
    head = history.header(old, new, numbers)
    _, chunks = history.page_set(old, middle)
    with pytest.raises(HashError):
        applier.apply(head, chunks, wait=1)
    check_equal(applier, tmp_path / "r.db", old)
    applier.close()


def spoil(path: Path, moment: Moment, number: int) -> None:
    """Overwrite a page of the database file behind SQLite's back."""
    put_page(path, number, bytes(moment.page_size))


def test_with_a_bootstraps_hashes_no_old_page_is_read(source: History, tmp_path: Path) -> None:
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", fill(300))
    new = source.step("UPDATE t SET a='new' WHERE id=200")
    replaced = history.changed(old, new)[-1]
    path = tmp_path / "r.db"
    known = bootstrapped(old, path)
    spoil(path, old, replaced)  # whoever reads it back finds another state hash
    with closing(Applier(str(path))) as without, pytest.raises(HashError):
        advance(without, old, new)
    with closing(Applier(str(path))) as applier:
        applier.adopt(known)
        advance(applier, old, new)
        check_equal(applier, path, new)


def test_hashes_of_another_position_are_forgotten(source: History, tmp_path: Path) -> None:
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", fill(300))
    middle = source.step("UPDATE t SET a='middle' WHERE id=200", fill(900))
    new = source.step("UPDATE t SET a='new' WHERE id=200")
    path = tmp_path / "r.db"
    known = bootstrapped(old, path)
    with closing(Applier(str(path))) as one, closing(Applier(str(path))) as two:
        two.adopt(known)
        advance(one, old, middle)  # another process was faster
        advance(two, middle, new)
        check_equal(two, path, new)


def test_wrong_hashes_make_a_set_refused_once(source: History, tmp_path: Path) -> None:
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", fill(300))
    new = source.step("UPDATE t SET a='new' WHERE id=200")
    path = tmp_path / "r.db"
    known = bootstrapped(old, path)
    with closing(Applier(str(path))) as applier:
        applier.adopt(Hashes(known.at, bytes(known.table[:-8][::-1]) + known.table[-8:]))
        with pytest.raises(HashError):
            advance(applier, old, new)
        advance(applier, old, new)
        check_equal(applier, path, new)


def test_position_is_checked_under_the_write_lock(source: History, tmp_path: Path) -> None:
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", fill(100))
    path = tmp_path / "r.db"
    one, two = replica_of(old, path), Applier(str(path))
    middle = source.step(fill(3))
    advance(one, old, middle)
    head, chunks = history.page_set(old, middle)
    assert two.apply(head, chunks, wait=1) is None
    new = source.step(fill(3))
    advance(two, middle, new)  # the other process's page-hash table was void: it reads old pages
    newest = source.step("DELETE FROM t WHERE id%2")
    advance(one, new, newest)
    check_equal(two, path, newest)
    one.close()
    two.close()


def test_a_writable_or_foreign_file_is_not_a_replica(tmp_path: Path) -> None:
    path = tmp_path / "writable.db"
    with closing(reader(path)) as other:
        other.execute("CREATE TABLE t(a)")
    applier = Applier(str(path))
    with pytest.raises(NotReplicaError):
        applier.state()
    applier.close()


def test_stock_sqlite_reads_but_never_writes_a_replica(source: History, tmp_path: Path) -> None:
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", fill(10))
    path = tmp_path / "r.db"
    applier = replica_of(old, path)
    stock = reader(path, isolation_level=None)
    stock.execute("CREATE TEMP TABLE mine(x)")
    for sql in ("DELETE FROM t", "CREATE TABLE u(a)", "PRAGMA user_version=3", "VACUUM"):
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            stock.execute(sql)
    stock.close()
    check_equal(applier, path, old)
    applier.close()


def test_two_processes_writing_wait_for_each_other(source: History, tmp_path: Path) -> None:
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", fill(100))
    path = tmp_path / "r.db"
    one, two = replica_of(old, path), Applier(str(path))
    new = source.step(fill(300))
    head, _chunks = history.page_set(old, new)
    assert one.begin(head, wait=1)
    with pytest.raises(Exception, match="write lock"):
        two.begin(head, wait=0)
    one.rollback()
    assert two.begin(head, wait=1)
    two.rollback()
    one.close()
    two.close()


def test_the_position_survives_closing_and_reopening(source: History, tmp_path: Path) -> None:
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", fill(100))
    path = tmp_path / "r.db"
    applier = replica_of(old, path)
    new = source.step(fill(10))
    advance(applier, old, new)
    applier.close()
    assert not wal_of(path).exists()
    applier = Applier(str(path))
    check_equal(applier, path, new)
    applier.close()


def test_the_replica_header_has_the_documented_bytes(source: History, tmp_path: Path) -> None:
    """docs/formats.md; of the primary's page 1 nothing else differs."""
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", fill(100))
    path = tmp_path / "r.db"
    applier = replica_of(old, path)
    for moment in (old, source.step(fill(10))):
        if moment is not old:
            advance(applier, old, moment)
        applier.checkpoint("truncate", wait=1)
        page = page_of(path, 1)
        at = moment.position
        fields = (at.lineage, at.generation, at.frame)
        header = b"".join(n.to_bytes(4, "big") for n in fields) + moment.hash.to_bytes(8, "big")
        plain = moment.pages[0]
        assert page == plain[:18] + b"\3" + plain[19:72] + header + plain[92:]
    applier.close()


def test_rule_b3_a_file_without_pages_is_no_replica(source: History, tmp_path: Path) -> None:
    """SQLite would make a new database of it: a blank page 1 would be committed with the set."""
    old = source.step("CREATE TABLE t(a)")
    head, chunks = history.page_set(old, source.step("INSERT INTO t VALUES(1)"))
    path = tmp_path / "empty.db"
    path.touch()
    with pytest.raises(sqlite3.DatabaseError), closing(Applier(str(path))) as applier:
        applier.state()
    with pytest.raises(sqlite3.DatabaseError), closing(Applier(str(path))) as applier:
        applier.apply(head, chunks, wait=1)
    assert path.read_bytes() == b""


def test_commit_without_begin_is_a_misuse_not_a_crash(source: History, tmp_path: Path) -> None:
    old = source.step("CREATE TABLE t(a)")
    applier = replica_of(old, tmp_path / "r.db")
    with pytest.raises(Exception, match="no page set"):
        applier.commit()
    applier.rollback()
    applier.close()
    applier.close()
    assert PositionError.__mro__  # the applier answers None instead of raising it
