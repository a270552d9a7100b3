"""Wherever the power fails, a primary starts again, with what it acknowledged, and tells no replica a wrong history."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from contextlib import closing
from copy import copy
from pathlib import Path

import msgspec
import pytest
from pagemodel import PageModel
from power import Disk, Image, marks, recorded
from test_primary import bootstrap, execute, follow

from nearlite import startup
from nearlite._native.database import NO_PARAMETERS
from nearlite._native.frames import page_hash
from nearlite._native.sealing import Key
from nearlite.errors import SyncError
from nearlite.generation import Generations
from nearlite.logstate import Seen
from nearlite.primary import Primary

KEY = bytes(range(32))
IMAGES = 40

# Commits, rolls, a clean stop and another start. A replica follows, and is kept as it was after each commit.
WORK = """
import copy, os, pickle, random, sys
sys.path.insert(0, sys.argv[6])
import nearlite
from pagemodel import PageModel
from nearlite._native.sealing import Key
from nearlite.primary import Primary
folder, seed, durability, key, kept = sys.argv[1], int(sys.argv[2]), *sys.argv[3:6]
rng = random.Random(seed)
marks = os.open(folder + "/marks", os.O_WRONLY | os.O_CREAT, 0o600)
replica, replicas = PageModel(), []
def start():
    primary = Primary.open(folder + "/p.db", durability=durability, key=Key.of_bytes(bytes.fromhex(key)) if key else None)
    return primary, primary.connect()
def tell():
    primary.after_commit()
    answer = primary.changes(replica.at, replica.claimed) if replica.at else primary.snapshot()
    if answer is not None:
        replica.take(answer)
    left = copy.copy(replica)
    left.pages = dict(replica.pages)
    replicas.append(left)
    os.pwrite(marks, len(replicas).to_bytes(4, "big"), 0)
def stop():
    database.close()
    primary.close()
if seed % 2:  # somebody has the file, and a WAL, before there is a log
    first = nearlite.connect(folder + "/p.db", encryption_key=bytes.fromhex(key) or None)
    first.execute("CREATE TABLE first(a)")
    first.commit()
primary, database = start()
tell()
stopping = rng.randrange(20, 40)
for n in range(50):
    what = "INSERT INTO t VALUES(%d, randomblob(%d))" % (n, rng.randrange(12000))
    if n == 0:
        what = "CREATE TABLE t(n INTEGER PRIMARY KEY, b)"
    elif n % 9 == 5:
        what = "UPDATE t SET b = randomblob(length(b)) WHERE n % 3"
    elif n % 17 == 16:
        what = "DELETE FROM t WHERE n % 2"
    database.exec(what)
    tell()
    if n == 35:
        database.exec("VACUUM")
        tell()
    if rng.random() < 0.2:
        assert primary.roll()
    if n == stopping:
        stop()
        primary, database = start()
stop()
pickle.dump(replicas, open(kept, "wb"))
"""


class Restarted:
    """The machine after the loss of power: another boot, files with the inodes that they had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, found: Path) -> None:
        self._folder, self._found = folder, found
        self._image: Image | None = None
        self._look: Callable[[Generations, bytes], Seen] = Generations.look_at_file

        def look(generations: Generations, page1: bytes) -> Seen:
            return self._look_at_file(generations, page1)

        monkeypatch.setattr(startup, "boot_id", lambda: "another")
        monkeypatch.setattr(Generations, "look_at_file", look)

    def with_(self, image: Image) -> None:
        """On a disk that looks so."""
        self._image = image
        image.place(self._folder, self._found)

    def _look_at_file(self, generations: Generations, page1: bytes) -> Seen:
        assert self._image is not None
        seen = self._look(generations, page1)
        inode = self._image.inodes.get(str(self._folder / generations.log.database.name))
        return seen if inode is None else msgspec.structs.replace(seen, inode=inode)


@pytest.mark.parametrize("key", [KEY, None], ids=["sealed", "plain"])
@pytest.mark.parametrize("durability", ["full", "normal"])
@pytest.mark.parametrize("seed", range(2))
def test_wherever_the_power_fails_replicas_go_on(
    disk_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    durability: str,
    key: bytes | None,
) -> None:
    found, kept = disk_folder.with_name("found"), tmp_path / "replicas"
    arguments = (seed, durability, (key or b"").hex(), kept, Path(__file__).parent)
    operations = recorded(WORK, disk_folder, disk_folder, *arguments)
    replicas: list[PageModel] = pickle.loads(kept.read_bytes())
    states = {0, *(replica.hash ^ page_hash(replica.pages[1], 1) for replica in replicas)}
    known = marks(operations)
    disk, rng = Disk(operations, disk_folder), random.Random(seed)
    machine = Restarted(monkeypatch, disk_folder, found)
    sealed = None if key is None else Key.of_bytes(key)

    def start() -> Primary:
        return Primary.open(found / "p.db", durability=durability, key=sealed)  # type: ignore[arg-type]

    stood, brought = set(), 0
    for turn in range(IMAGES):
        last = (
            len(operations) if turn % 4 else known[1][0]
        )  # the first start has dangers of its own
        count = rng.randrange(known[0][0], last) + 1
        told = replicas[: sum(at <= count for at, _ in known)]
        machine.with_(disk.after(count, rng))
        with closing(start()) as primary:
            state = primary.state()
            assert primary.verify() == (state.hash, 0), count
            # Where something is lost page 1 has another schema cookie (rule B7).
            here = bootstrap(primary)
            assert here.hash ^ page_hash(here.pages[1], 1) in states, count
            stood.add(state.hash)
            if durability == "full":
                last = next(i for i, r in enumerate(replicas) if r.claimed == state.hash)
                assert last + 1 >= len(told), count
                assert state.position.lineage == told[-1].at.lineage, count
            followers = []
            for replica in {len(told) - 1, *rng.choices(range(len(told)), k=3)}:
                follower = copy(told[replica])
                follower.pages = dict(follower.pages)
                try:
                    follow(primary, follower)
                except SyncError:
                    assert durability == "normal", count
                    continue
                brought += 1
                assert (follower.at, follower.hash) == (state.position, state.hash), count
                followers.append(follower)
            for n in (1000, 1001):
                execute(primary, f"CREATE TABLE IF NOT EXISTS t{n}(a)")
                now = primary.state()
                assert now.position not in {replica.at for replica in told}, count
                for follower in followers:
                    follow(primary, follower)
                    assert (follower.at, follower.hash) == (now.position, now.hash), count
        with closing(start()) as primary:
            assert primary.state().position.lineage == now.position.lineage, count
            rows = primary.connect().prepare("PRAGMA integrity_check").run(NO_PARAMETERS)
            assert rows == [("ok",)], count
    assert len(stood) > 8
    assert brought > IMAGES
