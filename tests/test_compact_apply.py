"""Compact page sets into a replica: deltas carried out on the pages of its own file, then applied."""

from __future__ import annotations

import random

import pytest
from history import History, Moment, changed, header, replica_of
from sealing import page_of, put_page, wal_of

from nearlite._native import compact
from nearlite._native._lib import HashError
from nearlite._native.applier import Applier, State

EITHER = True

FILL = (
    "INSERT INTO t(a, n) WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < {}) "
    "SELECT hex(randomblob(30)), i FROM c"
)
STATEMENTS = (
    FILL.format(1),
    FILL.format(70),
    "UPDATE t SET n = n + 1 WHERE id % 50 = 3",
    "UPDATE t SET a = a || a WHERE id % 40 = 7",
    "DELETE FROM t WHERE id % 23 = 5",
    "DELETE FROM t WHERE id > 250",
    "CREATE INDEX IF NOT EXISTS t_a ON t(a)",
    "VACUUM",
)


def told(old: Moment, new: Moment) -> bytes:
    """The set between two moments, as a primary tells it."""
    numbers = sorted({1, *changed(old, new)})
    start = State(old.position, old.hash, len(old.pages), old.page_size, 0)
    data = compact.encode(
        start,
        header(old, new, numbers),
        numbers,
        [old.pages[n - 1] if n <= len(old.pages) else None for n in numbers],
        [new.pages[n - 1] for n in numbers],
    )
    assert data is not None
    return data


def take(applier: Applier, data: bytes) -> State:
    """Apply a set to the replica, whose own file has the bases."""
    state = applier.compact(compact.standing(applier.state()), data, wait=5)
    assert state is not None
    return state


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_a_replica_follows_by_deltas_of_its_own_pages(tmp_path, page_size):
    rng = random.Random(page_size)
    source = History(tmp_path / "primary.db", page_size=page_size)
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a, n)", FILL.format(300))
    path = tmp_path / "replica.db"
    applier = replica_of(old, path)
    for _ in range(20):
        new = source.step(rng.choice(STATEMENTS))
        state = take(applier, told(old, new))
        full, found = applier.full_hash()
        assert (state.position, state.hash, state.pages) == (
            new.position,
            new.hash,
            len(new.pages),
        )
        assert full.hash == found == new.hash
        old = new
    applier.close()
    source.db.close()


@pytest.fixture
def pair(tmp_path):
    """A replica at the first of two moments, its path, and the moments."""
    source = History(tmp_path / "primary.db")
    old = source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a, n)", FILL.format(300))
    new = source.step("UPDATE t SET n = n + 1 WHERE id = 9")
    source.db.close()
    path = tmp_path / "replica.db"
    applier = replica_of(old, path)
    yield applier, path, old, new
    applier.close()


def test_a_set_for_another_state_is_refused_before_a_page_is_read(pair):
    applier, _, old, new = pair
    data = told(old, new)
    take(applier, data)
    with pytest.raises(HashError, match="another state"):
        take(applier, data)
    assert applier.state().hash == new.hash


def test_a_base_that_is_not_what_it_was_is_noticed_and_nothing_changes(pair):
    """A flipped bit in the replica's file: what comes out hashes to another state."""
    applier, path, old, new = pair
    data = told(old, new)
    number = max(changed(old, new))
    applier.checkpoint("truncate", wait=5)
    page = bytearray(page_of(path, number))
    page[-700] ^= 1
    put_page(path, number, page)
    wal = wal_of(path)
    before = wal.stat().st_size if wal.exists() else 0
    with pytest.raises(HashError):
        take(applier, data)
    assert applier.state().position == old.position
    assert (wal.stat().st_size if wal.exists() else 0) == before, (
        "refused before a byte was written"
    )


def test_a_replica_that_has_moved_takes_nothing(pair):
    applier, _, old, new = pair
    start, data = compact.standing(applier.state()), told(old, new)
    take(applier, data)
    assert applier.compact(start, data, wait=5) is None
    assert applier.state().position == new.position
