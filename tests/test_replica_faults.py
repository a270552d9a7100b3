"""Disk full and I/O errors under the replica: one exception, the old state, and the next sync works."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import history
import pytest
from sealing import reader
from test_hostile import Scene, http

from nearlite._native import faults
from nearlite.errors import SyncError
from nearlite.replica import Replica

EITHER = True

KINDS = [faults.EIO, faults.ENOSPC]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    faults.clear()
    made.replica.close()
    made.server.close()


def rows(scene: Scene) -> list[tuple[int, str]]:
    """What a process with stock SQLite reads."""
    with closing(reader(scene.path)) as c:
        assert c.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found: list[tuple[int, str]] = c.execute("SELECT a, b FROM t ORDER BY a").fetchall()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "point", ["apply.begin", "apply.write", "apply.written", "apply.indexed", "apply.commit"]
)
def test_an_apply_that_fails_leaves_the_old_state_and_can_be_repeated(
    scene: Scene, point: str, kind: int
) -> None:
    before = rows(scene)
    passed = faults.passes(point)  # by other tests of this process
    faults.arm(point, kind)
    error = scene.refuses(http(scene.body))
    assert faults.passes(point) == passed + 1
    assert rows(scene) == before
    assert ("disk is full" in str(error)) == (kind == faults.ENOSPC)
    assert "no data is at risk" in str(error)
    assert error.sqlite_errorcode & 0xFF == (13 if kind == faults.ENOSPC else 10)
    assert scene.replica.sync().pages > 0
    assert rows(scene) != before
    state, found = scene.replica._applier.full_hash()
    assert state.hash == found == scene.new.hash


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_fails_loses_nothing(scene: Scene, kind: int) -> None:
    scene.server.raw = http(scene.body)
    scene.replica.sync()
    expected = rows(scene)
    faults.arm("apply.checkpoint", kind)
    with pytest.raises(sqlite3.OperationalError):
        scene.replica.checkpoint()
    assert rows(scene) == expected
    scene.replica.checkpoint()
    assert rows(scene) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [0, 1])
def test_a_first_download_that_fails_leaves_no_file(
    scene: Scene, tmp_path: Path, kind: int, after: int
) -> None:
    target = tmp_path / "second.db"
    scene.server.raw = http(history.wire_set(None, scene.old))
    faults.arm("bootstrap.write", kind, after)
    with pytest.raises(SyncError):
        Replica(str(target), scene.server.url, timeout=5.0).open()
    assert not target.exists()
    assert not (tmp_path / "second.db-nearlite" / "bootstrap.part").exists()
    second = Replica(str(target), scene.server.url, timeout=5.0)
    second.open()
    assert second.state().position == scene.old.position
    second.close()
