"""The small files beside a replica."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from nearlite.bootstrap import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    path = tmp_path / "replica.db"
    path.write_bytes(b"x")
    folder = Folder(str(path))
    folder.make()
    return folder


def test_what_killed_processes_left_is_removed_at_the_next_close(folder: Folder) -> None:
    for name in ("closed.4711.part", "stats.4711.part", "stats.4712.part"):
        (folder.path / name).write_text("{")
    folder.part.write_bytes(b"of a download")
    folder.remember()
    assert {path.name for path in folder.path.iterdir()} == {"closed.json", "bootstrap.part"}
    assert folder.is_as_we_left_it()


def test_what_could_not_be_written_is_not_left(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_part: object, _name: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nearlite.bootstrap.os.replace", full)
    folder.publish({})
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "no text"])
def test_what_is_no_small_file_is_as_none(folder: Folder, kind: str) -> None:
    for name in ("closed.json", "stats.json", "unsynced"):
        path = folder.path / name
        if kind == "directory":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            path.write_bytes(bytes(range(256)))
    assert not folder.is_as_we_left_it()
    assert folder.published() == {}
    assert not folder.may_be_torn()


def test_an_age_grows_whatever_the_clock_is_set_to(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what this process has noted, and of what it has seen that another one had."""
    clock = SimpleNamespace(time=lambda: wall[0], monotonic=lambda: steady[0])
    wall, steady = [time.time()], [1000.0]
    other = Folder(str(folder.database))
    folder.touch_equal(5.0)
    monkeypatch.setattr("nearlite.bootstrap.time", clock)
    folder.touch_equal(5.0)
    assert folder.seconds_since_equal() == pytest.approx(5.0)
    assert other.seconds_since_equal() == pytest.approx(5.0, abs=0.5)
    for change in (-3600.0, 7200.0):
        wall[0] += change
        steady[0] += 60.0
        late = steady[0] - 1000.0 + 5.0
        assert folder.seconds_since_equal() == pytest.approx(late)
        assert other.seconds_since_equal() == pytest.approx(late, abs=0.5)
    other.touch_equal(1.0)  # what is newer counts
    assert folder.seconds_since_equal() == pytest.approx(1.0, abs=0.5)
    folder.path.joinpath("equal").unlink()
    assert folder.seconds_since_equal() is None
