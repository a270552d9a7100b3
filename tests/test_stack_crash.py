"""Invariant 3: kill -9 of primary or replica at any instant costs nothing that was acknowledged.

After every kill: the next sync() succeeds, the replica hashes to what the primary says it is, every
acknowledged row is there on both sides, and the replica file is the same file (no second download).
A hundred in the default run, as many as there is time for in ``make soak``.
"""

from __future__ import annotations

import json
import random
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import stack
from sealing import reader
from soaking import Soak
from stack import PRIMARY_POINTS, Process, insert, outcomes, pipeline, run_replica

from nearlite.errors import SyncError
from nearlite.replica import Replica

EITHER = True

KILLS = 21
MEANT = {"apply", "bootstrap", "roll", "log", "generation", "tail"}
REPLICA_POINTS = [
    "apply.begin",
    "apply.checkpoint",
    "apply.commit",
    "apply.committed",
    "apply.indexed",
    "apply.write",
    "apply.written",
]
# Not passed while a healthy primary serves: tests/test_primary_crash.py and the bootstrap below have them.
ELSEWHERE = ["bootstrap.write", "generation.closed", "roll.copy", "tail.read-page"]


class World:
    """A primary, its replica, and the rows that were acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.primary = stack.Primary(folder / "primary.db")
        self.path = folder / "replica.db"
        self.acknowledged: set[int] = set()
        with closing(self.open()) as replica:
            outcomes(
                replica.forward(
                    pipeline("CREATE TABLE t(i INTEGER PRIMARY KEY AUTOINCREMENT, b)"), visible=True
                )
            )
        self.inode = self.path.stat().st_ino

    def open(self) -> Replica:
        replica = Replica(str(self.path), self.primary.url, timeout=20.0)
        replica.open()
        return replica

    def write(self, replica: Replica, size: int) -> None:
        self.acknowledged.add(insert(replica, size))

    def status(self) -> dict[str, str]:
        with urllib.request.urlopen(f"{self.primary.url}/nl/v1/status") as answer:
            found: dict[str, str] = json.load(answer)
        return found

    def check(self) -> None:
        """Everything that must hold after a kill."""
        with closing(self.open()) as replica:
            replica.sync()
            # A request that was on its way when its replica was killed may still be carried out.
            while str(replica.state().position) != (status := self.status())["position"]:
                replica.sync()
            state, found = replica._applier.full_hash()
            assert f"{state.hash:016x}" == f"{found:016x}" == status["hash"]
            with closing(reader(self.path)) as c:
                assert {row[0] for row in c.execute("SELECT i FROM t")} >= self.acknowledged
                assert c.execute("PRAGMA quick_check").fetchone() == ("ok",)
            self.write(replica, 50)
        assert self.path.stat().st_ino == self.inode, "the replica was downloaded again"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.check()
    made.primary.kill()


def test_every_fault_point_has_its_crash() -> None:
    known = {*REPLICA_POINTS, *PRIMARY_POINTS, *ELSEWHERE}
    assert {n for n in stack.names() if n.partition(".")[0] in MEANT} == known


# ---------------------------------------------------------------- the replica


@pytest.mark.parametrize("point", REPLICA_POINTS)
def test_a_replica_killed_at_a_fault_point_goes_on(world: World, point: str) -> None:
    for after in (0, 1, 4):
        child = Process(run_replica, str(world.path), world.primary.url, [(point, after)])
        world.acknowledged.update(child.messages())
        assert child.join() == -9
        world.check()


@pytest.mark.soak
def test_a_replica_killed_at_random_instants_goes_on(world: World, soak: Soak) -> None:
    rng = random.Random(1)
    for _ in soak.turns(KILLS):
        child = Process(run_replica, str(world.path), world.primary.url, [])
        world.acknowledged.add(child.receive())
        child.join(rng.random() / 20)
        child.kill()
        world.acknowledged.update(child.messages())
        world.check()
        soak.count(kills=1, syncs=1)
    soak.count(acknowledged_commits=len(world.acknowledged))


@pytest.mark.parametrize("after", [0, 1])
def test_a_first_download_that_is_killed_starts_over(
    world: World, tmp_path: Path, after: int
) -> None:
    with closing(world.open()) as replica:
        for _ in range(4):
            world.write(replica, 500_000)
    target = tmp_path / "second.db"
    child = Process(run_replica, str(target), world.primary.url, [("bootstrap.write", after)])
    child.messages()
    assert child.join() == -9
    assert not target.exists()
    second = Replica(str(target), world.primary.url)
    second.open()
    with closing(second):
        state, found = second._applier.full_hash()
        assert found == state.hash
    assert not (tmp_path / "second.db-nearlite" / "bootstrap.part").exists()


# ---------------------------------------------------------------- the primary


def work_until_dead(world: World) -> None:
    """Write through a replica, small rows and large ones, until the primary is gone."""
    with closing(world.open()) as replica, pytest.raises(SyncError):
        for i in range(2000):
            world.write(replica, 30_000 if i % 4 == 0 else 100)
        pytest.fail("the primary never came to that point")


@pytest.mark.parametrize("point", PRIMARY_POINTS)
def test_a_primary_killed_at_a_fault_point_goes_on(world: World, point: str) -> None:
    for after in (0, 1):
        world.primary.kill()
        world.primary.start((point, after))
        work_until_dead(world)
        assert world.primary.process.join() == -9
        world.primary.start()
        world.check()


@pytest.mark.soak
def test_a_primary_killed_at_random_instants_goes_on(world: World, soak: Soak) -> None:
    rng = random.Random(2)
    for _ in soak.turns(KILLS):
        with closing(world.open()) as replica:
            for i in range(rng.randrange(1, 6)):
                world.write(replica, 60_000 if i % 2 else 100)
        child = Process(run_replica, str(world.path), world.primary.url, [])
        world.acknowledged.add(child.receive())
        child.join(rng.random() / 20)
        world.primary.kill()
        world.acknowledged.update(child.messages())
        child.kill()
        world.primary.start()
        world.check()
        soak.count(kills=2, syncs=1)
    soak.count(acknowledged_commits=len(world.acknowledged))
