"""A new replica whose pages had not reached the disk when the system went down."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import serving

import nearlite
from nearlite.applications import PrimaryApp
from nearlite.background import Election
from nearlite.bootstrap import Folder
from nearlite.primary import Primary

EITHER = True


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "primary.db"
    with serving(PrimaryApp(path, lambda: Primary.open(path))) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def replica(url: str, tmp_path: Path) -> Path:
    """As a loss of power leaves it: placed under another boot id, its mark still there."""
    path = tmp_path / "replica.db"
    with nearlite.connect(path, sync_url=url) as connection:
        connection.execute("CREATE TABLE t(x)")
    connection.close()
    (tmp_path / "replica.db-nearlite" / "unsynced").write_text(f"before {path.stat().st_ino}")
    return path


@pytest.mark.parametrize("left", [0, 100, 4096])
def test_it_is_created_again(url: str, replica: Path, left: int) -> None:
    size = replica.stat().st_size
    os.truncate(replica, left)
    os.truncate(replica, size if left else 0)  # what was not written reads as zeros
    with nearlite.connect(replica, sync_url=url) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("t",)]
    connection.close()


def test_another_file_of_that_name_is_not_touched(url: str, replica: Path) -> None:
    replica.rename(replica.with_name("kept"))
    replica.write_bytes(b"somebody's own")
    with pytest.raises(nearlite.NotAReplicaError):
        nearlite.connect(replica, sync_url=url)
    assert replica.read_bytes() == b"somebody's own"


def test_the_lock_of_the_syncing_process_ends_with_it_though_a_child_lives(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "replica.db"))
    folder.make()
    election = Election(folder)
    assert election.won()
    go, said = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(said[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    os.read(said[0], 1)
    election.close()
    try:
        with open(folder.sync_lock, "rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.write(go[1], b"x")
        os.waitpid(child, 0)
        for end in (*go, *said):
            os.close(end)
