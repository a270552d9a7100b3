"""Wherever the power fails, a replica is at a state that its primary had, or is made anew, and syncs.

A replica does not wait for its disk: what a loss of power takes from it the next sync brings again. What it must not
do is stand anywhere where the primary never was, or call a file its own of which only a part was on the disk.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import stack
from power import Disk, Image, marks, recorded

import nearlite
from nearlite import bootstrap
from nearlite._native.sealing import Key
from nearlite.bootstrap import Folder
from nearlite.replica import Replica

KEY = bytes(range(32))
IMAGES = 75

# The first download, page sets laid over it before it is synced, the sync of it, checkpoints, a close and another
# session. Every state is noted; a mark tells how many there were, and whether the file had been synced.
WORK = """
import os, random, sys, json
import nearlite
from nearlite.background import Background
folder, url, seed, states = sys.argv[1], sys.argv[2], int(sys.argv[3]), []
key = bytes.fromhex(sys.argv[5]) or None
rng = random.Random(seed)
Background.flush = lambda self: None  # at a step of its own below, not at any time
marks = os.open(folder + "/marks", os.O_WRONLY | os.O_CREAT, 0o600)
synced = 0
def connect():
    con = nearlite.connect(folder + "/r.db", sync_url=url, encryption_key=key, isolation_level=None)
    note(con)
    return con
def note(con):
    state = con._replica.state()
    states.append((str(state.position), state.hash))
    os.pwrite(marks, bytes([synced]), 0)
con = connect()
remote = nearlite.connect(url, isolation_level=None)
to_disk, closing = rng.randrange(4, 20), rng.randrange(20, 50)
for n in range(60):
    if n % 4 == 3:
        for _ in range(5):
            remote.execute("INSERT INTO t(b) VALUES(zeroblob(?))", (rng.randrange(9000),))
        con.sync()
    elif n % 13 == 7:
        con.execute("DELETE FROM t WHERE a % 3 = 0")
    else:
        con.execute("UPDATE t SET b = zeroblob(length(b)) WHERE a % 7 = ?", (n % 7,))
    note(con)
    if n == 30:
        con.execute("VACUUM")
        note(con)
    if rng.random() < 0.4 and (synced or seed % 2):
        con._replica._upkeep.checkpoint()
    if n == to_disk:
        con._replica.background._to_disk()
        synced = 1
        note(con)
    if n == closing:
        con.close()
        con = connect()
con.close()
print(json.dumps(states), file=open(sys.argv[4], "w"))
"""


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[stack.Primary]:
    made = stack.Primary(tmp_path / "primary.db", durability="normal")
    with closing(nearlite.connect(made.url, isolation_level=None)) as con:
        con.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        con.executemany("INSERT INTO t(b) VALUES(randomblob(?))", [(3000,)] * 60)
    yield made
    made.kill()


class Restarted:
    """The machine after the loss of power: another boot, files with the inodes that they had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, found: Path) -> None:
        self._folder, self._found = folder, found
        self._image: Image | None = None
        monkeypatch.setattr(bootstrap, "boot_id", lambda: "another")
        monkeypatch.setattr(bootstrap, "_inode", self._inode)
        # Of what a mark that outlived the files says, believe all.
        monkeypatch.setattr(Folder, "is_as_we_left_it", lambda folder: folder._closed.exists())

    def with_(self, image: Image) -> None:
        """On a disk that looks so."""
        self._image = image
        image.place(self._folder, self._found)

    def _inode(self, path: Path) -> str:
        assert self._image is not None
        known = self._image.inodes.get(str(self._folder / path.relative_to(self._found)))
        return str(known or path.stat().st_ino)


@pytest.mark.parametrize("key", [KEY, None], ids=["sealed", "plain"])
@pytest.mark.parametrize("seed", range(2))
def test_wherever_the_power_fails_a_replica_is_at_a_state_of_its_primary(
    primary: stack.Primary,
    disk_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    key: bytes | None,
) -> None:
    found, told = disk_folder.with_name("found"), tmp_path / "states"
    operations = recorded(
        WORK, disk_folder, disk_folder, primary.url, seed, told, (key or b"").hex()
    )
    states = {(position, value) for position, value in json.loads(told.read_text())}
    known = marks(operations)
    from_disk = next(at for at, data in known if data == b"\1")
    placed = next(i for i, op in enumerate(operations) if op.kind == "l")
    named = next(
        i for i in range(placed, len(operations)) if operations[i].path == str(disk_folder)
    )
    disk, rng = Disk(operations, disk_folder), random.Random(seed)
    machine = Restarted(monkeypatch, disk_folder, found)
    path = found / "r.db"
    sealed = None if key is None else Key.of_bytes(key)
    stood, anew = set(), 0
    # Each with dangers of its own: the last two are when a name is new, and when the file was synced just now.
    parts = [
        (0, placed), (placed, from_disk), (from_disk, len(operations)),
        (placed, named), (from_disk, from_disk + 30),
    ]  # fmt: skip
    for turn in range(IMAGES):
        count = rng.randrange(*parts[turn % len(parts)]) + 1
        machine.with_(disk.after(count, rng))
        unsynced = Folder(str(path)).is_unsynced()
        there = path.exists()
        if there and not unsynced and rng.random() < 0.3:  # somebody else was first
            with closing(nearlite.connect(path, encryption_key=key)) as reader:
                assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)], count
        inode = path.stat().st_ino if there else 0
        with closing(Replica(str(path), primary.url, key=sealed, timeout=20.0)) as replica:
            replica.open()
            same = there and path.stat().st_ino == inode
            assert same or not there or unsynced, count
            state, full = replica._applier.full_hash()
            assert state.hash == full, count
            if same:
                assert (str(state.position), state.hash) in states, count
                stood.add(state.hash)
            anew += not same
            assert not replica.sync().repaired, count
            state, full = replica._applier.full_hash()
            assert state.hash == full, count
            assert state.position == replica.primary_position, count
        with closing(nearlite.connect(path, encryption_key=key)) as reader:
            assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)], count
    assert len(stood) > 4
    assert anew > 8
