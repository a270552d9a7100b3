"""A tree whose nodes are killed: what was acknowledged is at every level after the next sync.

Primary, two relays one below the other and a program that writes through the lowest, each a process; kill -9
of any of them at random and at every fault point that a relay passes. Replicas below a relay that was
killed go on from where they are: nobody downloads anything again.
"""

from __future__ import annotations

import json
import random
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import stack
from sealing import reader
from soaking import Soak
from stack import Process, insert, outcomes, pipeline, run_replica

from nearlite.errors import Error, SyncError
from nearlite.replica import Replica

EITHER = True

RELAY_POINTS = [
    "apply.begin",
    "apply.commit",
    "apply.committed",
    "apply.indexed",
    "apply.write",
    "apply.written",
    "log.after-rename",
    "log.before-rename",
    "log.before-sync",
    "roll.after-checkpoint",
    "roll.after-pin",
    "roll.before-checkpoint",
    "roll.before-unpin",
    "tail.read-frames",
]


class World:
    """The processes, and the rows that were acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.primary = stack.Primary(folder / "primary.db")
        with closing(Replica(str(folder / "first.db"), self.primary.url)) as replica:
            replica.open()
            outcomes(
                replica.forward(
                    pipeline("CREATE TABLE t(i INTEGER PRIMARY KEY AUTOINCREMENT, b)"), visible=True
                )
            )
        self.upper = stack.Relay(folder / "upper.db", self.primary.url)
        self.lower = stack.Relay(folder / "lower.db", self.upper.url)
        self.path = folder / "leaf.db"
        self.acknowledged: set[int] = set()
        with closing(self.open()):
            pass
        self.inodes = self._inodes()

    def _inodes(self) -> list[int]:
        return [(self.folder / f"{name}.db").stat().st_ino for name in ("upper", "lower", "leaf")]

    def open(self) -> Replica:
        replica = Replica(str(self.path), self.lower.url, timeout=20.0)
        replica.open()
        return replica

    def status(self, url: str) -> Any:
        with urllib.request.urlopen(f"{url}/nl/v1/status") as answer:
            return json.load(answer)

    def check(self) -> None:
        """Everything that must hold after a kill."""
        with closing(self.open()) as replica:
            for _ in range(
                200
            ):  # a roll that the last commit made due moves the position once more
                try:
                    done = replica.sync()
                except SyncError:  # a relay whose own connection was to the process that was killed
                    done = replica.sync()
                levels = [self.status(at.url) for at in (self.primary, self.upper, self.lower)]
                if {str(done.position)} == {level["position"] for level in levels}:
                    break
            assert {str(done.position)} == {level["position"] for level in levels}
            state, found = replica._applier.full_hash()
            assert state.hash == found
            assert {f"{found:016x}"} == {level["hash"] for level in levels}
        for name in ("upper", "lower", "leaf"):
            with closing(reader(self.folder / f"{name}.db")) as stock:
                assert {row[0] for row in stock.execute("SELECT i FROM t")} >= self.acknowledged
                assert stock.execute("PRAGMA quick_check").fetchone() == ("ok",)
        assert self._inodes() == self.inodes, "a file was downloaded again"

    def close(self) -> None:
        for process in (self.lower, self.upper, self.primary):
            process.kill()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.mark.soak
def test_a_tree_killed_at_random_instants_goes_on(world: World, soak: Soak) -> None:
    rng = random.Random(20261126)
    for _ in soak.turns(10):
        writing = Process(run_replica, str(world.path), world.lower.url, ())
        for _ in range(rng.randrange(1, 60)):
            world.acknowledged.add(writing.receive())
        victim = rng.choice([world.primary, world.upper, world.lower, writing])
        victim.kill()
        if victim is not writing:
            writing.kill()
            victim.start()
        world.check()
        soak.count(kills=1 if victim is writing else 2)
    soak.count(acknowledged_commits=len(world.acknowledged))


@pytest.mark.parametrize("point", RELAY_POINTS)
def test_a_relay_killed_at_a_fault_point(world: World, point: str) -> None:
    world.upper.kill()
    world.upper.start((point, 1))
    with closing(Replica(str(world.folder / "first.db"), world.primary.url)) as direct:
        direct.open()
        for _ in range(400):
            world.acknowledged.add(insert(direct, 3000))
            if world.upper.process.join(0) is not None:
                break
        else:
            assert world.upper.process.join(20) is not None, "it was never there"
    world.upper.start()
    world.check()


def test_a_relay_that_was_killed_goes_on_telling_changes(world: World) -> None:
    """Those below are not repaired, not even when they were away."""
    with closing(one_that_is_away(world)) as away:
        with closing(Replica(str(world.folder / "first.db"), world.primary.url)) as direct:
            direct.open()
            for _ in range(10):
                insert(direct, 3000)
        with closing(world.open()) as replica:
            replica.sync()
        world.upper.kill()
        world.lower.kill()
        world.upper.start()
        world.lower.start()
        try:
            done = away.sync()
        except Error:
            done = away.sync()
        assert done.pages > 5
        assert not done.repaired
    world.check()


def one_that_is_away(world: World) -> Replica:
    """A replica that stands where the tree stands now."""
    replica = Replica(str(world.folder / "away.db"), world.lower.url, timeout=20.0)
    replica.open()
    return replica
