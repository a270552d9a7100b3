"""Copies of databases between connections that are in use."""

from __future__ import annotations

import signal
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

import nearlite

ROWS = [("x" * 100,) for _ in range(500)]


def filled(path: str | Path = ":memory:", **options: Any) -> nearlite.Connection:
    connection = nearlite.connect(path, **options)
    connection.execute("CREATE TABLE t(a)")
    connection.executemany("INSERT INTO t VALUES (?)", ROWS)
    connection.commit()
    return connection


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(
    "use",
    [
        lambda target: target.execute("SELECT * FROM sqlite_schema").fetchall(),
        lambda target: target.execute("CREATE TABLE other(a)"),
        lambda target: target.executescript("BEGIN"),
        lambda target: target.serialize(),
        lambda target: target.close(),
        lambda target: filled().backup(target),
    ],
    ids=["read", "write", "script", "serialize", "close", "copy"],
)
def test_what_receives_a_copy_cannot_be_used_until_it_is_whole(
    tmp_path: Path, use: Any, sealed: bool
) -> None:
    """SQLite, and with it the standard library, reads freed memory here."""
    options = {"encryption_key": bytes(32)} if sealed else {}
    refused = []

    def progress(*_left: int) -> None:
        with pytest.raises(nearlite.ProgrammingError, match=r"cop(y|ies)"):
            use(target)
        refused.append(1)

    with closing(filled()) as source:
        target = nearlite.connect(tmp_path / "target.db", **options)
        source.backup(target, pages=5, progress=progress)
        assert len(refused) > 1
        assert target.execute("SELECT * FROM t").fetchall() == ROWS
        assert target.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        target.execute("CREATE TABLE other(a)")
        target.close()


def test_what_is_copied_can_be_used_but_not_closed() -> None:
    def progress(*_left: int) -> None:
        with pytest.raises(nearlite.ProgrammingError, match="cannot be closed while a copy"):
            source.close()
        assert source.execute("SELECT count(*) FROM t").fetchone() == (500,)

    source = filled()
    with closing(nearlite.connect(":memory:")) as target:
        source.backup(target, pages=5, progress=progress)
        source.close()
        with pytest.raises(nearlite.ProgrammingError, match="closed"):
            source.execute("SELECT 1")
        assert target.execute("SELECT count(*) FROM t").fetchone() == (500,)


def test_a_copy_that_is_given_up_leaves_both_usable() -> None:
    with closing(filled()) as source, closing(nearlite.connect(":memory:")) as target:
        with pytest.raises(ZeroDivisionError):
            source.backup(target, pages=5, progress=lambda *_left: 1 // 0)
        assert target.execute("SELECT * FROM sqlite_schema").fetchall() == []
        source.backup(target)
        assert target.execute("SELECT count(*) FROM t").fetchone() == (500,)


@pytest.mark.parametrize("raised", [KeyError("its own"), KeyboardInterrupt()])
def test_what_ends_a_copy_that_waits_is_what_is_raised(tmp_path: Path, raised: Exception) -> None:
    def progress(*_left: int) -> None:
        raise raised

    with (
        closing(filled(tmp_path / "a.db", timeout=0)) as source,
        closing(nearlite.connect(tmp_path / "a.db", isolation_level=None)) as other,
        closing(nearlite.connect(":memory:")) as target,
    ):
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(type(raised)) as caught:
            source.backup(target, progress=progress)
        assert caught.value is raised
        other.rollback()
        source.backup(target)
        assert target.execute("SELECT count(*) FROM t").fetchone() == (500,)


def test_a_signal_ends_a_copy_that_waits_for_a_lock(tmp_path: Path) -> None:
    class AlarmError(Exception):
        pass

    def handler(*_args: Any) -> None:
        raise AlarmError

    with (
        closing(filled(tmp_path / "a.db", timeout=60)) as source,
        closing(nearlite.connect(tmp_path / "a.db", isolation_level=None)) as other,
        closing(nearlite.connect(":memory:")) as target,
    ):
        other.execute("BEGIN EXCLUSIVE")
        before = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            with pytest.raises(AlarmError):
                source.backup(target, sleep=60)
        finally:
            signal.signal(signal.SIGALRM, before)
        with pytest.raises(nearlite.OperationalError, match="no such table"):
            target.execute("SELECT * FROM t")
        other.rollback()
        source.close()


def test_a_copy_waits_for_threads_that_use_the_source() -> None:
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            source.execute("SELECT sum(length(a)) FROM t").fetchall()

    with closing(filled(check_same_thread=False)) as source:
        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        try:
            for _ in range(50):
                with closing(nearlite.connect(":memory:")) as target:
                    source.backup(target, pages=5)
        finally:
            stop.set()
            thread.join()


def test_two_threads_that_copy_into_each_other_do_not_wait_for_ever() -> None:
    one, two = filled(check_same_thread=False), filled(check_same_thread=False)

    def copy(source: nearlite.Connection, target: nearlite.Connection) -> None:
        for _ in range(100):
            with suppress(nearlite.Error):
                source.backup(target, pages=1)

    threads = [
        threading.Thread(target=copy, args=pair, daemon=True) for pair in ((one, two), (two, one))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    for connection in (one, two):
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (500,)
        connection.close()


@pytest.mark.parametrize("name", ["main\0x", "\0"])
def test_names_with_a_nul_are_refused(name: str) -> None:
    with closing(filled()) as source, closing(nearlite.connect(":memory:")) as target:
        for call in (
            lambda: source.backup(target, name=name),
            lambda: source.serialize(name=name),
            lambda: target.deserialize(source.serialize(), name=name),
            lambda: source.blobopen("t", "a", 1, name=name),
            lambda: source.blobopen("t" + name, "a", 1),
        ):
            with pytest.raises(ValueError, match="embedded null character"):
                call()
        with pytest.raises(TypeError, match="name must be str, not NoneType"):
            source.backup(target, name=None)  # type: ignore[arg-type]


def test_serializing_what_is_not_there_says_so_after_another_failure() -> None:
    with closing(filled()) as source:
        with pytest.raises(nearlite.OperationalError, match="no such rowid"):
            source.blobopen("t", "a", 10_000)
        with pytest.raises(nearlite.OperationalError, match="unable to serialize 'nowhere'"):
            source.serialize(name="nowhere")
