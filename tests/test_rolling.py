"""Rolls beside those who write: commits go on while one is prepared, and none comes into its section."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pagemodel import PageModel
from sealing import wal_of
from test_primary import bootstrap, execute, follow

from nearlite.position import Position
from nearlite.primary import Primary
from nearlite.rolling import Rolls
from nearlite.streams import Turn

EITHER = True

SOME = 100_000  # bytes of WAL from which it rolls


class Watched(Primary):
    """A primary that says where a roll is, and lets the test hold it up there."""

    at: Callable[[str], None] = staticmethod(lambda _where: None)

    def after_commit(self) -> Position:
        self.at("look")
        return super().after_commit()

    def prepare_roll(self) -> bool:
        self.at("before")
        found = super().prepare_roll()
        self.at("prepared")
        return found

    def roll(self, *, wait: float = 1.0) -> bool:
        self.at("section")
        return super().roll(wait=wait)


@contextmanager
def rolling(primary: Primary) -> Iterator[tuple[Turn, Rolls]]:
    turn = Turn()
    rolls = Rolls(primary, turn)
    rolls.start()
    try:
        yield turn, rolls
    finally:
        rolls.stop()


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Watched]:
    with Watched.open(tmp_path / "data.db", durability="normal", roll_bytes=SOME) as primary:
        execute(primary, "CREATE TABLE t(i INTEGER PRIMARY KEY, b)")
        yield primary


def parts(primary: Primary, names: str = "*.wal.part") -> list[Path]:
    return sorted(Path(f"{primary.path}-nearlite").glob(names))


def grow(primary: Primary, size: int = SOME) -> None:
    execute(primary, f"INSERT INTO t(b) VALUES(randomblob({size}))")


@pytest.mark.parametrize("where", ["before", "prepared"])
def test_commits_go_on_while_a_roll_is_prepared(primary, where):
    reached, go_on = threading.Event(), threading.Event()

    def at(here: str) -> None:
        if here == where:
            reached.set()
            assert go_on.wait(30)

    model = bootstrap(primary)
    grow(primary)
    primary.at = at
    with rolling(primary) as (turn, rolls):
        rolls.look()
        assert reached.wait(30)
        ticket = turn.take()
        assert ticket is not None, "nobody may write while a roll is prepared"
        for _ in range(3):
            grow(primary, 700_000)
            follow(primary, model)
        turn.release(ticket)
        assert primary.state().position.generation == model.at.generation
        go_on.set()
    assert primary.state().position.generation == model.at.generation + 1
    assert primary.state().hash == model.hash == primary.verify()[0]
    follow(primary, model)
    assert model.at == primary.state().position


def test_a_roll_waits_for_its_turn_and_keeps_it(primary):
    order: list[str] = []
    prepared = threading.Event()

    with rolling(primary) as (turn, rolls):

        def at(here: str) -> None:
            if here == "prepared":
                prepared.set()
            if here == "section":
                order.append("section" if turn.take() is None else "anybody may write")

        primary.at = at
        grow(primary)
        ticket = turn.take()
        assert ticket is not None
        rolls.look()
        assert prepared.wait(30)
        grow(primary, 5000)
        order.append("written")
        turn.release(ticket)
    assert order == ["written", "section"]
    assert turn.take() is not None
    assert primary.state().position.generation == 2


def test_a_wal_that_has_outgrown_preparations_is_not_prepared(primary):
    """Who writes faster than it is copied would keep it growing: then they wait."""
    grow(primary, 2 * SOME + 5000)
    assert primary.prepare_roll()
    assert parts(primary) == []
    assert primary.roll()
    assert primary.state().position.generation == 2


def test_a_part_that_could_not_be_synced_is_not_believed(primary, monkeypatch):
    """A second fsync() succeeds and says nothing of the pages that the first one lost."""
    real, failed = os.fsync, []

    def fsync(handle: int) -> None:
        if not failed and os.readlink(f"/proc/self/fd/{handle}").endswith(".wal.part"):
            failed.append(handle)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    grow(primary)
    with pytest.raises(OSError, match="Input/output"):
        primary.prepare_roll()
    (part,) = parts(primary)
    part.write_bytes(bytes(part.stat().st_size))
    frames = wal_of(primary.path).read_bytes()
    assert primary.roll()
    (archive,) = parts(primary, "*.wal")
    assert archive.read_bytes() == frames


def test_a_generation_that_begins_meanwhile_has_a_part_of_its_own(primary):
    """What was counted in one WAL says nothing of the frames of the next, should somebody have reset it."""
    grow(primary)
    roller = primary._roller
    name, frame = roller._newest()
    with primary._mutex:
        primary._generations.close_here()
    roller._prepare(name, frame)
    assert roller._copied(name) == frame
    grow(primary, 5000)
    following, _ = roller._newest()
    assert (following, roller._copied(following)) == (roller._part_name(), 0)
    assert following != name
    frames = wal_of(primary.path).read_bytes()
    assert primary.roll()
    (archive,) = parts(primary, "*.wal")
    assert archive.read_bytes() == frames


def test_nothing_is_rolled_that_is_not_due(primary):
    seen: list[str] = []
    looked = threading.Event()

    def at(here: str) -> None:
        seen.append(here)
        looked.set()

    primary.at = at
    with rolling(primary) as (_turn, rolls):
        rolls.look()
        assert looked.wait(30)
    assert seen == ["look"]


def test_after_a_failure_a_later_commit_rolls(primary, caplog):
    failed, section = threading.Event(), threading.Event()

    def fails(here: str) -> None:
        if here == "section":
            section.set()
        if here == "before" and not failed.is_set():
            failed.set()
            raise OSError(5, "Input/output error")

    primary.at = fails
    with caplog.at_level(logging.ERROR, "nearlite.rolling"):
        with rolling(primary) as (_turn, rolls):
            grow(primary)
            rolls.look()
            assert failed.wait(30)
        assert [record.getMessage() for record in caplog.records] == ["the log could not be rolled"]
    with rolling(primary) as (_turn, rolls):
        rolls.look()
        assert section.wait(30)
    assert primary.state().position.generation == 2


def test_it_ends_though_the_primary_is_closed(tmp_path):
    primary, looked = Watched.open(tmp_path / "data.db", roll_bytes=SOME), threading.Event()
    primary.at = lambda _where: looked.set()
    with rolling(primary) as (_turn, rolls):
        primary.close()
        rolls.look()
        assert looked.wait(30)


def test_many_rolls_beside_a_writer_lose_nothing(primary):
    """Every state that a follower sees is one that the primary had, however rolls and commits fall."""
    model: PageModel = bootstrap(primary)
    with rolling(primary) as (turn, rolls):
        granted = threading.Event()
        for i in range(120):
            ticket = turn.request(granted.set)
            assert granted.wait(30)
            granted.clear()
            grow(primary, 1000 * (i % 37))
            turn.release(ticket)
            if primary.roll_due:
                rolls.look()
            if i % 5 == 0:
                follow(primary, model)
    assert primary.state().position.generation > 1
    follow(primary, model)
    assert model.hash == primary.verify()[0]
