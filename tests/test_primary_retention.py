"""How long closed generations stay, and what happens to replicas older than the log."""

from __future__ import annotations

from pathlib import Path

import pytest
from pagemodel import PageModel
from test_primary import bootstrap, execute, follow

from nearlite import errors
from nearlite.logstate import Archived, retained
from nearlite.primary import Primary

EITHER = True


def generation(number: int, *, age: float, size: int = 100) -> Archived:
    return Archived(
        generation=number,
        start=0,
        frame=1,
        pages=1,
        hash="0" * 16,
        salt=None,
        foreign=False,
        bytes=size,
        closed_ms=round(1_000_000 - age * 1000),
    )


def keep(*archived: Archived, **changed) -> list[tuple[int, int]]:
    settings = {
        "database_bytes": 0,
        "index_bytes": {},
        "now": 1_000_000,
        "retain_bytes": 250,
        "retain_seconds": 10.0,
        "held": None,
    }
    return [(old.generation, old.bytes) for old in retained(archived, **{**settings, **changed})]


def test_what_fits_stays_however_old():
    assert keep(generation(1, age=500), generation(2, age=400)) == [(1, 100), (2, 100)]


def test_the_oldest_goes_first():
    old = [generation(n, age=500) for n in range(1, 6)]
    assert keep(*old, index_bytes=dict.fromkeys(range(6), 40)) == [(3, 0), (4, 0), (5, 100)]


def test_what_is_young_stays_without_its_frames():
    assert keep(*[generation(n, age=5) for n in range(1, 5)]) == [
        (1, 0),
        (2, 0),
        (3, 100),
        (4, 100),
    ]


def test_an_old_generation_that_does_not_fit_ends_the_log():
    old = [generation(1, age=5), generation(2, age=500, size=0), generation(3, age=5, size=200)]
    assert keep(*old, index_bytes={2: 60}) == [(3, 200)]


def test_the_newest_stays_in_any_case():
    old = [generation(1, age=500), generation(2, age=500)]
    assert keep(*old, index_bytes={1: 1, 2: 1}, retain_bytes=0, retain_seconds=0) == [(2, 0)]


def test_indexes_count():
    assert keep(generation(1, age=500), generation(2, age=500), index_bytes={1: 100, 2: 200}) == [
        (2, 0)
    ]


def test_frames_never_have_a_gap():
    old = [generation(1, age=5, size=10), generation(2, age=5, size=500), generation(3, age=5)]
    assert keep(*old) == [(1, 0), (2, 0), (3, 100)]


def test_a_running_snapshot_holds_its_generation():
    old = [generation(n, age=500, size=200) for n in range(1, 5)]
    assert [n for n, _ in keep(*old, index_bytes=dict.fromkeys(range(5), 100), held=2)] == [2, 3, 4]


def test_four_databases_or_256_mib_are_the_default():
    old = [generation(n, age=500, size=150 << 20) for n in range(1, 5)]
    frames = [n for n, size in keep(*old, retain_bytes=None) if size]
    assert frames == [4]
    frames = [n for n, size in keep(*old, retain_bytes=None, database_bytes=100 << 20) if size]
    assert frames == [3, 4]


@pytest.fixture
def forgetful(tmp_path: Path):
    with Primary.open(
        tmp_path / "data.db", durability="normal", retain_bytes=0, retain_seconds=0
    ) as primary:
        execute(primary, "CREATE TABLE t(a)")
        yield primary


def write_and_roll(primary: Primary, times: int) -> None:
    for i in range(times):
        execute(primary, f"INSERT INTO t VALUES({i})")
        assert primary.roll()


def test_a_replica_older_than_the_log_is_told_so(forgetful):
    model = bootstrap(forgetful)
    write_and_roll(forgetful, 3)
    with pytest.raises(errors.HistoryGoneError, match="does not tell") as gone:
        follow(forgetful, model)
    assert "bootstrap" in str(gone.value)
    folder = Path(forgetful.path + "-nearlite")
    assert sorted(path.suffix for path in folder.iterdir()) == ["", ".hashes", ".index", ".json"]


def test_a_snapshot_under_way_keeps_the_log_from_its_beginning(forgetful):
    execute(forgetful, "INSERT INTO t VALUES(randomblob(9000000))")
    snapshot, model = forgetful.snapshot(), PageModel()
    parts = [next(iter(snapshot)), next(iter(snapshot))]
    write_and_roll(forgetful, 3)
    parts += snapshot
    model.take(parts)
    follow(forgetful, model)
    assert model.hash == forgetful.verify()[0]


def test_a_snapshot_given_up_lets_go(forgetful):
    execute(forgetful, "INSERT INTO t VALUES(randomblob(9000000))")
    snapshot = forgetful.snapshot()
    next(iter(snapshot))
    snapshot.close()
    write_and_roll(forgetful, 2)
    with pytest.raises(errors.HistoryGoneError):
        forgetful.changes(snapshot.to)


def test_a_snapshot_never_begun_lets_go(forgetful):
    snapshot = forgetful.snapshot()
    snapshot.close()
    write_and_roll(forgetful, 2)
    with pytest.raises(errors.HistoryGoneError):
        forgetful.changes(snapshot.to)
