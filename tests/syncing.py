"""Programs of tests/test_syncs.py: they run under a library that notes every sync, and print per step
the names of the files that were synced in it."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any


class Steps:
    """What was synced since the last look, by step."""

    def __init__(self) -> None:
        self._log = Path(os.environ["NL_SYNCS"])
        self.found: dict[str, list[str]] = {}
        self._seen = 0
        self.look("start")

    def look(self, step: str) -> None:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        # An unlinked or renamed file is noted by the name it had.
        names = [Path(line.removesuffix(" (deleted)")).name for line in lines[self._seen :]]
        self._seen = len(lines)
        self.found[step] = names


def primary(folder: Path, durability: str) -> Steps:
    from serving import execute
    from test_group_commit import Bench

    from nearlite import writer

    writer.GROUP_SECONDS = 60.0  # a busy machine would cut the group, which is not what is counted
    bench = Bench(folder / "data.db", durability=durability)
    bench.group(
        bench.job(execute("INSERT INTO t VALUES(1, 1)"))
    )  # the first frames of a generation
    steps = Steps()

    def write(first: int, count: int) -> None:
        commits = len(bench.commits)
        jobs = [
            bench.job(execute(f"INSERT INTO t VALUES({i}, {i})"))
            for i in range(first, first + count)
        ]
        bench.group(*jobs)
        assert len(bench.commits) == commits + 1
        assert not any(job.failure for job in jobs)

    write(100, 100)
    steps.look("one group of a hundred")
    for i in range(3):
        write(1000 + i, 1)
    steps.look("three groups of one")
    assert bench.primary.roll()
    steps.look("roll")
    write(2000, 1)
    steps.look("the first group of a generation")
    assert bench.ask("SELECT count(*) FROM t") == [(105,)]
    bench.close()
    return steps


def applier(folder: Path, *, durable: bool) -> Steps:
    from history import History, bootstrapped, page_set

    from nearlite._native.applier import Applier

    source = History(folder / "source.db", page_size=512)
    source.step("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
    moments = [
        source.step(f"INSERT INTO t VALUES({i}, zeroblob({size}))")
        for i, size in enumerate([10, 10, 700_000, 10, 10, 10])
    ]
    source.db.close()
    bootstrapped(moments[0], folder / "replica.db")
    with closing(Applier(str(folder / "replica.db"), durable=durable)) as replica:
        steps = Steps()

        def advance(to: int) -> None:
            head, chunks = page_set(moments[to - 1], moments[to])
            assert replica.apply(head, chunks, wait=5) is not None

        advance(1)
        steps.look("the first apply")
        advance(2)
        steps.look("a large apply")
        advance(3)
        steps.look("a small apply")
        frames, moved = replica.checkpoint("passive", wait=0)
        assert frames == moved > 1000
        steps.look("a checkpoint")
        advance(4)
        assert replica.state().wal_frames < 1000
        steps.look("an apply that restarts the WAL")
        advance(5)
        steps.look("the next")
        state, found = replica.full_hash()
        assert state.hash == found == moments[5].hash
    return steps


def replica(folder: Path) -> Steps:
    """What users run: a bootstrap, syncs and forwarded writes."""
    from primaries import primary as served

    steps = Steps()
    with served(folder) as here:
        remote = here.remote(isolation_level=None)
        remote.execute("CREATE TABLE t(a)")
        connection: Any = here.replica(isolation_level=None)
        limit = time.monotonic() + 60
        while connection._replica.folder.is_unsynced():  # the background thread is about it
            assert time.monotonic() < limit
            connection.execute("SELECT count(*) FROM t").fetchone()
        connection._replica.background.stop()
        steps.look("bootstrap")
        remote.execute("INSERT INTO t VALUES(zeroblob(1000000))")
        connection.sync()
        for i in range(5):
            connection.execute("INSERT INTO t VALUES(?)", (i,))
            connection.sync()
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (6,)
        steps.look("syncs and writes")
    return steps


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    made = {
        "full": lambda: primary(folder, "full"),
        "normal": lambda: primary(folder, "normal"),
        "durable": lambda: applier(folder, durable=True),
        "replica": lambda: replica(folder),
        "applier": lambda: applier(folder, durable=False),
    }[what]()
    print(json.dumps(made.found))


if __name__ == "__main__":
    main()
