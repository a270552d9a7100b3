"""A database that other programs write, with stock SQLite in processes of their own, is captured."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from pagemodel import PageModel
from serving import serving
from stock import Stock, dump, run
from test_primary import bootstrap, follow
from test_primary_writers import WRITER, history

import nearlite
from nearlite import errors
from nearlite._native.inotify import Inotify
from nearlite.applications import PrimaryApp
from nearlite.capture import AbsentError, Capture
from nearlite.position import Position
from nearlite.primary import Primary

N_2000 = "WITH n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<2000) SELECT i FROM n"
LONG = 30.0  # seconds; a test that works never waits for them


def create(path: Path, *statements: str) -> Path:
    """A WAL database with a table t."""
    run(path, "PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", *statements)
    return path


@contextmanager
def notified(capture: Capture) -> Iterator[Callable[[Callable[[], bool]], None]]:
    """A function that waits until something is true, which is asked when the capture tells of a commit."""
    told = threading.Event()
    cancel = capture.subscribe(lambda _position: told.set())

    def until(true: Callable[[], bool]) -> None:
        end = time.monotonic() + LONG
        while not true():
            told.wait(0.01)  # not everything that is waited for is a commit
            told.clear()
            assert time.monotonic() < end, capture.stand()

    yield until
    cancel()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not true():
        threading.Event().wait(0.002)
        assert time.monotonic() < end


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create(tmp_path / "data.db")


def equal(capture: Capture, model: PageModel, tmp_path: Path) -> None:
    """A follower ends equal, in its state hash and in what stock SQLite reads out of it."""
    while follow(capture, model):
        pass
    state = capture.state()
    assert capture.verify() == (state.hash, 0)
    assert (model.at, model.hash) == (state.position, state.hash)
    assert model.dump(tmp_path / "copy.db") == dump(capture.path)


# ---------------------------------------------------------------------- what is refused


def test_a_rollback_journal_database_is_refused_and_not_converted(tmp_path):
    path = tmp_path / "data.db"
    run(path, "CREATE TABLE t(a)")
    before = path.read_bytes()
    with pytest.raises(errors.NotSupportedError, match="PRAGMA journal_mode=WAL"):
        Capture.open(path)
    assert path.read_bytes() == before
    assert not Path(f"{path}-nearlite").exists()
    run(path, "PRAGMA journal_mode=WAL")  # the command that it names
    Capture.open(path).close()


@pytest.mark.parametrize("size", [None, 0])
def test_a_database_that_is_not_there_is_refused_and_not_created(tmp_path, size):
    path = tmp_path / "data.db"
    if size is not None:
        path.write_bytes(b"")
    with pytest.raises(
        AbsentError, match="is not there yet" if size is None else "is empty so far"
    ):
        Capture.open(path)
    assert not Path(f"{path}-nearlite").exists()
    assert (path.stat().st_size if path.exists() else None) == size


def test_a_replica_is_refused(tmp_path, path):
    data = bytearray(path.read_bytes())
    data[18] = 3  # which makes it one
    replica = tmp_path / "replica.db"
    replica.write_bytes(data)
    with pytest.raises(errors.NotSupportedError, match="is a replica"):
        Capture.open(replica)
    assert replica.read_bytes() == data


@pytest.mark.parametrize("owner", [Capture, Primary])
def test_a_database_has_one_owner(tmp_path, path, owner):
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with owner.open(path):
        for name in (path, link):
            with pytest.raises(errors.OperationalError, match="already served"):
                Capture.open(name)
    Capture.open(link).close()


# ---------------------------------------------------------------------- commits


def test_commits_are_told_of_without_anybody_asking(path, tmp_path):
    with Capture.open(path) as capture, Stock(path) as stock, notified(capture) as wait:
        model = bootstrap(capture)
        for i in range(20):
            before = capture.latest
            stock.execute(f"INSERT INTO t VALUES({i})")
            wait(lambda before=before: capture.latest > before)
            assert follow(capture, model) > 0
        equal(capture, model, tmp_path)


def test_nothing_is_written_to_the_file_but_its_own_commits(path):
    with Stock(path) as stock:
        cookie = stock.execute("PRAGMA schema_version")
        before = stock.execute("SELECT * FROM sqlite_schema")
        with Capture.open(path) as capture:
            stock.execute("INSERT INTO t VALUES(1)")
            assert capture.roll()
        assert stock.execute("PRAGMA schema_version") == cookie
        assert stock.execute("SELECT * FROM sqlite_schema") == before


def test_what_is_not_committed_is_not_shown(path, tmp_path):
    """A7: frames of a transaction that spilled its cache, and of one that was rolled back."""
    with Capture.open(path) as capture, Stock(path) as stock:
        model = bootstrap(capture)
        stock.execute("PRAGMA cache_size=5")
        for end, some in (("ROLLBACK", 400_000), ("COMMIT", 800_000)):
            before = capture.state()
            size = os.stat(f"{path}-wal").st_size
            stock.execute("BEGIN")
            stock.execute(f"INSERT INTO t VALUES(randomblob({some}))")
            assert os.stat(f"{path}-wal").st_size > size
            assert capture.after_commit() == before.position
            assert capture.state() == before
            stock.execute(end)
        assert capture.state().position > before.position
        equal(capture, model, tmp_path)


def test_the_command_line_shell_writes(path, tmp_path):
    with Capture.open(path) as capture, notified(capture) as wait:
        model = bootstrap(capture)
        for i in range(3):
            before = capture.latest
            subprocess.run(
                ["sqlite3", str(path), f"BEGIN EXCLUSIVE; INSERT INTO t VALUES({i}); COMMIT"],
                check=True,
            )
            wait(lambda before=before: capture.latest > before)
        equal(capture, model, tmp_path)


def test_vacuum_schema_changes_and_large_transactions(path, tmp_path):
    with Capture.open(path) as capture, Stock(path) as stock:
        model = bootstrap(capture)
        for sql in (
            "CREATE TABLE u(i INTEGER PRIMARY KEY, b)",
            f"INSERT INTO u SELECT i, randomblob(2000) FROM ({N_2000})",
            "CREATE INDEX ui ON u(b)",
            "DELETE FROM u WHERE i % 3",
            "VACUUM",
            "ALTER TABLE u ADD COLUMN c DEFAULT 7",
            "DROP TABLE t",
        ):
            stock.execute(sql)
            follow(capture, model)
        equal(capture, model, tmp_path)
        assert capture.state().position.lineage == model.at.lineage


# ---------------------------------------------------------------------- rolls


def test_the_wal_is_rolled_below_the_applications_own_checkpoint(path, tmp_path):
    with Capture.open(path, roll_frames=50) as capture, Stock(path) as stock:
        model = bootstrap(capture)
        generation = capture.latest.generation
        for i in range(80):
            stock.execute(f"INSERT INTO t VALUES({i})")
        until(lambda: capture.latest.generation > generation)
        equal(capture, model, tmp_path)
        history(capture)
        assert capture.stand().rolls >= 1


def test_a_quiet_database_ends_with_an_empty_wal_and_nobody_looks(path, monkeypatch):
    monkeypatch.setattr("nearlite.capture._QUIET", 0.05)
    with Capture.open(path) as capture, Stock(path) as stock:
        stock.execute("INSERT INTO t VALUES(1)")
        until(lambda: capture.stand().rolls == 1)
        assert os.stat(f"{path}-wal").st_size == 0
        events = capture._events
        entry = events._entries[id(capture)]
        until(lambda: entry.due == float("inf"))
        # Whatever checkpoint the application asks for finds nobody in its way.
        for mode in ("FULL", "RESTART", "TRUNCATE"):
            assert stock.execute(f"PRAGMA wal_checkpoint({mode})") == [[0, 0, 0]]
        before = capture.latest
        stock.execute("INSERT INTO t VALUES(2)")
        until(lambda: capture.latest > before)
        assert capture.stand().resets == 0


def test_a_reader_of_the_application_blocks_nobody_and_is_told_of(path, tmp_path, caplog):
    with Capture.open(path, roll_frames=20) as capture, Stock(path) as stock, Stock(path) as reader:
        model = bootstrap(capture)
        stock.execute("INSERT INTO t VALUES(0)")
        reader.execute("BEGIN")
        [[rows]] = reader.execute("SELECT count(*) FROM t")
        for i in range(60):
            stock.execute(f"INSERT INTO t VALUES({i})")
        until(lambda: capture.stand().reader)
        stock.execute("INSERT INTO t VALUES('beside the reader')")
        follow(capture, model)
        assert reader.execute("SELECT count(*) FROM t") == [[rows]]
        until(lambda: "keeps an old snapshot open" in caplog.text)
        reader.execute("COMMIT")
        until(lambda: capture.stand().rolls > 0)
        assert not capture.stand().reader
        equal(capture, model, tmp_path)


@pytest.mark.parametrize("autocheckpoint", ["0", "20", "1000"])
def test_no_commit_is_lost_while_others_write_checkpoint_and_it_rolls(
    path, tmp_path, autocheckpoint, monkeypatch
):
    """A1: two writers, as fast as they can."""
    monkeypatch.setattr("nearlite.capture._ROLL_PAUSE", 0.05)
    run(
        path,
        "CREATE TABLE counter(writer PRIMARY KEY, n)",
        "INSERT INTO counter VALUES(0, 0), (1, 0)",
        "CREATE TABLE u(id INTEGER PRIMARY KEY, x)",
        f"INSERT INTO u SELECT i % 500, '' FROM ({N_2000}) WHERE i <= 500",
        "ALTER TABLE t RENAME TO unused",
        "ALTER TABLE u RENAME TO t",
    )
    with Capture.open(path, roll_frames=100) as capture:
        model = bootstrap(capture)
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
        until(lambda: bool(follow(capture, model) or True) and capture.stand().rolls >= 4)
        counts = [int(writer.communicate()[0]) for writer in writers]
        equal(capture, model, tmp_path)
        assert run(model.write(tmp_path / "copy.db"), "SELECT n FROM counter ORDER BY writer") == [
            [n] for n in counts
        ]
        assert capture.stand().resets == 0
        history(capture)


# ---------------------------------------------------------------------- pin and checkpoints of others


def test_the_pin_follows_so_that_the_application_can_checkpoint(path):
    """A2, A6: on a read mark, at the head; what lies before it is copied by whoever checkpoints."""
    with Capture.open(path) as capture, Stock(path) as stock:
        for i in range(5):
            stock.execute(f"INSERT INTO t VALUES({i})")
        frame = capture.after_commit().frame
        until(lambda: capture.stand().pin_behind == 0)
        assert capture._tail.state().mark > 0
        [[busy, frames, copied]] = stock.execute("PRAGMA wal_checkpoint(PASSIVE)")
        assert (busy, frames, copied) == (0, frame, frame)
        before = capture.latest
        stock.execute("INSERT INTO t VALUES(6)")  # would reset the WAL under a pin on READ_LOCK(0)
        assert capture.after_commit().generation == before.generation
        assert capture.stand().resets == 0


@pytest.mark.parametrize("mode", ["FULL", "RESTART", "TRUNCATE"])
def test_a_checkpoint_of_the_application_gets_the_pin(path, tmp_path, mode):
    with Capture.open(path) as capture, Stock(path) as stock:
        model = bootstrap(capture)
        lineage = capture.latest.lineage
        for turn in range(3):
            for i in range(10):
                stock.execute(f"INSERT INTO t VALUES({i})")
            began = time.monotonic()
            [[busy, _, _]] = stock.execute(f"PRAGMA wal_checkpoint({mode})")
            assert busy == 0
            assert time.monotonic() - began < 5, "it waited for the whole of its time"
            stock.execute(f"INSERT INTO t VALUES('after {turn}')")
            carried = follow(capture, model)
            assert 0 < carried <= 8, "a full copy"
        equal(capture, model, tmp_path)
        assert capture.latest.lineage == lineage
        stand = capture.stand()
        assert stand.released == (0 if mode == "FULL" else 3)
        # RESTART leaves it to the next commit, which may come when the WAL is pinned again.
        assert stand.resets in {"FULL": (0,), "RESTART": (0, 1, 2, 3), "TRUNCATE": (3,)}[mode]


def test_what_was_committed_while_there_was_no_pin_is_found(path, tmp_path):
    """Others checkpoint, commit and checkpoint again before anybody looks: pages tell what logs do not."""
    with Capture.open(path) as capture, Stock(path) as stock:
        model = bootstrap(capture)
        stock.execute("INSERT INTO t VALUES(1)")
        follow(capture, model)
        lineage = capture.latest.lineage
        with capture._rolling, capture._mutex:
            capture._tail.unpin()
            for i in range(5):
                assert stock.execute("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0
                stock.execute(f"INSERT INTO t VALUES({i})")
                stock.execute("CREATE TABLE IF NOT EXISTS u(a)")
            assert stock.execute("PRAGMA wal_checkpoint(RESTART)")[0][0] == 0
        assert follow(capture, model) <= 5
        equal(capture, model, tmp_path)
        assert (capture.latest.lineage, capture.stand().resets) == (lineage, 1)


# ---------------------------------------------------------------------- other files


def replaced(capture: Capture, before: Position) -> None:
    until(lambda: capture.latest.lineage != before.lineage)


def test_a_database_that_is_renamed_over_begins_a_new_lineage(path, tmp_path):
    other = create(
        tmp_path / "other.db", "CREATE TABLE another(history)", "INSERT INTO another VALUES(1)"
    )
    with Capture.open(path) as capture:
        before, state_hash = capture.latest, capture.state().hash
        for end in ("-wal", "-shm"):
            os.unlink(f"{path}{end}")
        other.rename(path)
        with Stock(path) as stock:
            stock.execute("INSERT INTO t VALUES('after')")
            replaced(capture, before)
            with pytest.raises(errors.LineageError):
                capture.changes(before, state_hash)
            model = bootstrap(capture)
            stock.execute("INSERT INTO t VALUES('followed')")
            equal(capture, model, tmp_path)
        assert not capture.displaced()


def test_a_copy_of_the_same_state_goes_on_with_the_lineage(path, tmp_path):
    with Capture.open(path) as capture:
        with Stock(path) as stock:
            stock.execute("INSERT INTO t VALUES(1)")
        model = bootstrap(capture)
        lineage = capture.latest.lineage
        assert capture.roll()
        copy = tmp_path / "moved.db"
        copy.write_bytes(path.read_bytes())
        for end in ("-wal", "-shm"):
            os.unlink(f"{path}{end}")
        copy.rename(path)
        with Stock(path) as stock:
            stock.execute("INSERT INTO t VALUES(2)")
            stock.execute("INSERT INTO t VALUES(3)")
            until(lambda: not capture.displaced() and not capture.stand().missing)
            assert capture.latest.lineage == lineage
            assert 0 < follow(capture, model) <= 3, "a full copy"
            equal(capture, model, tmp_path)


def test_deleted_and_made_again(path, tmp_path):
    with Capture.open(path) as capture:
        before = capture.latest
        for end in ("", "-wal", "-shm"):
            os.unlink(f"{path}{end}")
        until(lambda: capture.stand().missing)
        with Stock(path) as stock:
            stock.execute("PRAGMA page_size=8192")
            stock.execute("PRAGMA journal_mode=WAL")
            stock.execute("CREATE TABLE fresh(a)")
            replaced(capture, before)
            model = bootstrap(capture)
            stock.execute("INSERT INTO fresh VALUES(1)")
            equal(capture, model, tmp_path)
        assert capture.state().page_size == 8192


# ---------------------------------------------------------------------- start and stop


def test_what_was_written_while_nobody_captured_reaches_followers(path, tmp_path):
    with Capture.open(path) as capture:
        model = bootstrap(capture)
        lineage = capture.latest.lineage
    with Stock(path) as stock:  # its close is the last one: it checkpoints and deletes the WAL
        stock.execute("INSERT INTO t VALUES('meanwhile')")
    with Capture.open(path) as capture:
        assert 0 < follow(capture, model) <= 3
        assert capture.latest.lineage == lineage
        equal(capture, model, tmp_path)


# ---------------------------------------------------------------------- file events


def test_one_thread_serves_any_number_of_databases(tmp_path):
    paths = [create(tmp_path / f"{i}.db") for i in range(12)]
    with ExitStack() as all_of:
        captures = [all_of.enter_context(Capture.open(path)) for path in paths]
        threads = [t for t in threading.enumerate() if t.name == "nearlite-events"]
        assert len(threads) == 1
        before = [capture.latest for capture in captures]
        for i in range(0, 12, 3):
            run(paths[i], "INSERT INTO t VALUES(1)")
        until(lambda: all(captures[i].latest > before[i] for i in range(0, 12, 3)))
        assert all(captures[i].latest == before[i] for i in range(12) if i % 3)
    until(lambda: not threads[0].is_alive())


@pytest.mark.parametrize("call", ["__init__", "file"])
def test_without_inotify_files_are_looked_at(path, tmp_path, monkeypatch, call, caplog):
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"nearlite.file_events.Inotify.{call}", fails)
    with Capture.open(path) as capture, Stock(path) as stock:
        model = bootstrap(capture)
        for i in range(3):
            before = capture.latest
            stock.execute(f"INSERT INTO t VALUES({i})")
            until(lambda before=before: capture.latest > before)
        assert capture.stand().polls
        equal(capture, model, tmp_path)
    assert caplog.text.count("the system does not tell of writes") == 1


def test_lost_events_are_made_up_for(path, tmp_path, monkeypatch):
    """The queue of inotify has an end: what came after it is told as one event without a watch."""
    real = Inotify.read

    def read(self: Inotify) -> Iterator[tuple[int | None, str]]:
        events = list(real(self))
        return iter([(None, "")] if events else [])

    monkeypatch.setattr(Inotify, "read", read)
    with Capture.open(path) as capture, Stock(path) as stock:
        model = bootstrap(capture)
        before = capture.latest
        stock.execute("INSERT INTO t VALUES(1)")
        until(lambda: capture.latest > before)
        equal(capture, model, tmp_path)


def test_live_replicas_are_fed_without_a_poll_of_the_file(path, tmp_path):
    app = PrimaryApp(path, lambda: Capture.open(path))
    with serving(app) as port, Stock(path) as stock:
        url = f"http://127.0.0.1:{port}"
        with closing(
            nearlite.connect(tmp_path / "replica.db", sync_url=url, sync_interval="live")
        ) as replica:
            replica.sync()
            for i in range(3):
                stock.execute(f"INSERT INTO t VALUES({i})")
                until(lambda i=i: replica.execute("SELECT max(a) FROM t").fetchone() == (i,))
            assert app._feed is not None
            until(lambda: app._feed.polls.waiting > 0)
            assert app._feed.polls._watch is None
