"""The primary: position, state hash and page sets, beside stock sqlite3 as writer and as judge."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pagemodel import PageModel
from sealing import wal_of
from stock import Stock, dump, run

from nearlite import answers, errors
from nearlite._native._lib import HashError
from nearlite.answers import LargeAnswer
from nearlite.position import Position
from nearlite.primary import Primary

EITHER = True


@pytest.fixture
def primary(tmp_path: Path):
    with Primary.open(tmp_path / "data.db", durability="normal") as opened:
        yield opened


def execute(primary: Primary, *statements: str) -> Position:
    database = primary.connect()
    for statement in statements:
        database.exec(statement)
    database.close()
    return primary.after_commit()


def bootstrap(primary: Primary) -> PageModel:
    model = PageModel()
    model.take(primary.snapshot())
    return model


def follow(primary: Primary, model: PageModel) -> int:
    answer = primary.changes(model.at, model.claimed)
    return 0 if answer is None else model.take(answer)


@pytest.mark.plain  # its bytes; test_sealed.py has those of a sealed one
def test_a_missing_file_is_created_with_page_1_in_wal_mode(tmp_path):
    with Primary.open(tmp_path / "new.db") as primary:
        state = primary.state()
        assert (state.position.generation, state.position.frame) == (1, 0)
        assert state.pages == 1
        model = bootstrap(primary)
        assert model.hash == state.hash
    assert (tmp_path / "new.db").read_bytes()[:20] == b"SQLite format 3\0\x10\0\x02\x02"


def test_every_commit_moves_the_position_to_its_frame(primary):
    before = primary.state().position
    first = execute(primary, "CREATE TABLE t(a)")
    second = execute(primary, "INSERT INTO t VALUES(1)")
    assert before < first < second
    assert first.generation == second.generation == 1
    assert primary.verify() == (primary.state().hash, 0)


def test_a_replica_follows_page_set_by_page_set(primary, tmp_path):
    model = bootstrap(primary)
    execute(primary, "CREATE TABLE t(a, b)")
    assert follow(primary, model) > 0
    for i in range(30):
        execute(primary, f"INSERT INTO t VALUES({i}, randomblob(3000))")
        assert follow(primary, model) > 0
    assert follow(primary, model) == 0
    assert model.hash == primary.state().hash
    assert model.dump(tmp_path / "copy.db") == dump(Path(primary.path))


def test_a_set_carries_only_what_changed_and_only_its_newest_image(primary):
    execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(zeroblob(400000))")
    model = bootstrap(primary)
    for i in range(50):
        execute(primary, f"UPDATE t SET a = {i} WHERE 0", f"PRAGMA user_version = {i + 1}")
    assert follow(primary, model) == 1
    assert model.hash == primary.state().hash


def test_commits_of_other_programs_are_seen(primary, tmp_path):
    execute(primary, "CREATE TABLE t(a)")
    model = bootstrap(primary)
    run(primary.path, "INSERT INTO t VALUES(42)")
    assert follow(primary, model) > 0
    assert 'INSERT INTO "t" VALUES(42);' in model.dump(tmp_path / "copy.db")


def test_nothing_newer_is_no_answer(primary):
    state = primary.state()
    assert primary.changes(state.position, state.hash) is None


def test_refusals(primary):
    at = execute(primary, "CREATE TABLE t(a)")
    state = primary.state()
    with pytest.raises(errors.LineageError):
        primary.changes(Position(at.lineage ^ 1, at.generation, at.frame), state.hash)
    with pytest.raises(errors.PrimaryRestoredError):
        primary.changes(Position(at.lineage, at.generation, at.frame + 1), state.hash)
    with pytest.raises(errors.PrimaryRestoredError):
        primary.changes(Position(at.lineage, at.generation + 1, 0), state.hash)
    with pytest.raises(errors.StateMismatchError):
        primary.changes(at, state.hash ^ 1)
    with pytest.raises(errors.HistoryGoneError):
        primary.changes(Position(at.lineage, 0, 0), state.hash)
    with pytest.raises(errors.HistoryGoneError):  # inside a transaction: no position
        primary.changes(Position(at.lineage, at.generation, 1), state.hash)


def test_answers_to_the_same_question_are_encoded_once(primary):
    start = primary.state().position
    execute(primary, "CREATE TABLE t(a)")
    assert primary.changes(start).read() is primary.changes(start).read()


def test_subscribers_hear_of_commits_until_they_cancel(primary):
    heard = []
    cancel = primary.subscribe(heard.append)
    first = execute(primary, "CREATE TABLE t(a)")
    primary.after_commit()
    cancel()
    cancel()
    execute(primary, "INSERT INTO t VALUES(1)")
    assert heard == [first]


@pytest.mark.parametrize("compress", [False, True])
def test_large_sets_and_snapshots_travel_in_chunks(primary, tmp_path, compress):
    model = bootstrap(primary)
    execute(
        primary,
        "CREATE TABLE t(a)",
        "WITH n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<30)"
        "INSERT INTO t SELECT randomblob(400000) FROM n",
    )
    state = primary.state()
    answer = primary.changes(model.at, model.hash, compress=compress)
    data = b"".join(answer)
    # Not known before it is sent: it is compressed on the way.
    assert answer.size == (None if compress else len(data))
    model.take([data])
    assert model.size == state.pages > 2048
    snapshot = primary.snapshot(compress=compress)
    parts = list(snapshot)
    assert snapshot.size in (None, sum(map(len, parts)))
    assert (snapshot.size is None) == compress
    other = PageModel()
    other.take(parts)
    assert other.pages == model.pages


def test_a_snapshot_under_writes_is_completed_by_changes(primary, tmp_path):
    execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(randomblob(9000000))")
    model, parts = PageModel(), []
    for i, part in enumerate(primary.snapshot()):
        parts.append(part)
        execute(primary, f"INSERT INTO t VALUES(randomblob({20000 + i}))")
    execute(primary, "DELETE FROM t WHERE length(a) > 8000000", "VACUUM")
    model.take(parts)
    assert model.hash != model.claimed
    assert follow(primary, model) > 0
    assert model.hash == primary.state().hash
    assert model.dump(tmp_path / "copy.db") == dump(Path(primary.path))


def test_a_roll_begins_the_next_generation_and_empties_the_wal(primary, tmp_path):
    model = bootstrap(primary)
    execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
    middle = primary.state()
    follow(primary, model)
    execute(primary, "INSERT INTO t VALUES(2)")
    last = primary.state()
    assert primary.roll()
    rolled = primary.state()
    assert (rolled.position.generation, rolled.position.frame) == (2, 0)
    assert rolled.hash == last.hash
    assert wal_of(primary.path).stat().st_size == 0
    execute(primary, "INSERT INTO t VALUES(3)")
    assert primary.changes(middle.position, middle.hash) is not None
    assert primary.changes(last.position, last.hash) is not None
    follow(primary, model)
    assert model.at == primary.state().position
    assert model.dump(tmp_path / "copy.db") == dump(Path(primary.path))


def test_after_a_roll_a_follower_gets_its_new_position(primary):
    model = bootstrap(primary)
    execute(primary, "CREATE TABLE t(a)")
    follow(primary, model)
    assert primary.roll()
    assert follow(primary, model) == 1
    assert model.at == primary.state().position


def test_a_busy_reader_postpones_a_roll_and_nothing_blocks(primary):
    execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
    reader = Stock(primary.path)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM t") == [[1]]
    execute(primary, "INSERT INTO t VALUES(2)")
    before = primary.state().position
    assert not primary.roll()
    assert primary.state().position == before
    after = execute(primary, "INSERT INTO t VALUES(3)")
    assert after.generation == before.generation
    assert reader.execute("SELECT count(*) FROM t") == [[1]]
    reader.execute("COMMIT")
    assert primary.roll()
    reader.close()
    assert primary.verify() == (primary.state().hash, 0)


def test_an_empty_generation_is_not_rolled(primary):
    before = primary.state().position
    assert primary.roll()
    assert primary.state().position == before


@pytest.mark.parametrize("limit", [answers._IN_MEMORY, 1 << 20], ids=["memory", "file"])
def test_commits_go_on_while_a_large_answer_is_taken(primary, monkeypatch, limit):
    """The answer is of the moment it was asked for, nobody waits for it, and it can let go."""
    monkeypatch.setattr(answers, "_IN_MEMORY", limit)
    model = bootstrap(primary)
    execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(randomblob(9000000))")
    asked = primary.state()
    answer = primary.changes(model.at, model.claimed)
    assert isinstance(answer, LargeAnswer)
    pieces = [next(iter(answer))]
    written = execute(primary, "UPDATE t SET a = randomblob(9000000)")
    assert written == primary.state().position > asked.position
    assert not primary.roll()  # the reader of the answer needs the WAL
    before = set(Path(primary.path + "-nearlite").iterdir())
    answer.read_ahead()
    assert set(Path(primary.path + "-nearlite").iterdir()) == before  # its file is unlinked
    assert primary.roll()
    pieces += list(answer)
    assert sum(map(len, pieces)) == answer.size > 9_000_000
    answer.close()
    assert model.take(pieces) > 2000
    assert (model.at, model.hash) == (asked.position, asked.hash)
    follow(primary, model)
    assert model.hash == primary.verify()[0]


def test_an_answer_that_nobody_takes_lets_go_when_closed(primary):
    model = bootstrap(primary)
    execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(randomblob(9000000))")
    answer = primary.changes(model.at, model.claimed)
    next(iter(answer))
    assert not primary.roll()
    answer.close()
    answer.close()
    assert primary.roll()
    answer = primary.changes(model.at, model.claimed)
    answer.read_ahead()
    answer.read_ahead()
    assert primary.roll()
    answer.close()


@pytest.mark.plain  # a sealed frame does not open at all: test_sealed_replicas.py
@pytest.mark.parametrize("ahead", [False, True])
def test_a_rotten_page_cuts_a_large_answer_short(primary, ahead):
    execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(randomblob(20000))")
    model = bootstrap(primary)
    execute(primary, "UPDATE t SET a = randomblob(9000000)")
    answer = primary.changes(model.at, model.claimed)
    with wal_of(primary.path).open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"rot")
    if ahead:
        answer.read_ahead()
    with pytest.raises(HashError, match="not what was committed"):
        list(answer)
    answer.close()
    assert primary.roll()


@pytest.mark.plain  # a sealed frame does not open at all: test_sealed_replicas.py
def test_a_rotten_page_is_an_error_and_no_answer(primary):
    execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(randomblob(20000))")
    model = bootstrap(primary)
    execute(primary, "UPDATE t SET a = randomblob(20001)")
    wal = wal_of(primary.path)
    with wal.open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"rot")
    with pytest.raises(HashError, match="not what was committed"):
        follow(primary, model)
    state_hash, bad = primary.verify()
    assert bad > 0
    assert state_hash != primary.state().hash


FORK = """
import os, sys
from nearlite._native._lib import MisuseError
from nearlite.primary import Primary
with Primary.open(sys.argv[1]) as primary:
    database = primary.connect()
    database.exec("CREATE TABLE t(a)")
    before = primary.after_commit()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            primary.state()
        except MisuseError as error:
            code = 0 if "fork" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    database.exec("INSERT INTO t VALUES(1)")
    assert primary.after_commit() > before
    database.close()
    assert primary.roll()
print("done")
"""


def test_a_primary_is_of_no_use_in_the_child_of_a_fork_and_unharmed_in_the_parent(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path / "data.db")], capture_output=True, text=True
    )
    assert done.stdout == "done\n", done.stderr


def test_the_log_is_readable_by_the_owner_alone(tmp_path: Path) -> None:
    with Primary.open(tmp_path / "data.db"):
        assert (tmp_path / "data.db-nearlite").stat().st_mode & 0o077 == 0


def test_a_roll_that_waits_for_a_writer_keeps_nobody_else_waiting(primary):
    execute(primary, "CREATE TABLE t(a)")
    writer = primary.connect()
    writer.exec("BEGIN IMMEDIATE")
    roll = threading.Thread(target=primary.roll, kwargs={"wait": 60.0})
    roll.start()
    begun = time.monotonic()
    for _ in range(100):
        primary.state()
        primary.after_commit()
    assert time.monotonic() - begun < 30
    assert roll.is_alive()
    writer.exec("COMMIT")
    roll.join()
    writer.close()
    assert primary.state().position.generation == 2
