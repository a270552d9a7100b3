"""Repair of a replica of 1 GB with 100 damaged pages: seconds, and bytes of both bodies together.

Bad would be: a request or an answer that grows with the database. The peer is what there was before: to
move the file away and download everything again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from bench_memory import ROWS_OF_1_GB
from pairs import Pairs, Sample
from peers import remove_database
from systems import OURS
from workload import fill

from nearlite.replica import Replica

Open = Iterator[Callable[[], Sample]]
DAMAGED = 100
PAGE = 4096


def damage(path: Path, seed: int) -> None:
    """Flip a byte in each of 100 random pages but the first."""
    with path.open("r+b") as file:
        pages = path.stat().st_size // PAGE
        for page in random.Random(seed).sample(range(1, pages), DAMAGED):
            file.seek(page * PAGE + 777)
            (byte,) = file.read(1)
            file.seek(page * PAGE + 777)
            file.write(bytes([byte ^ 1]))


class Counted(Replica):
    """Counts bytes of bodies in both directions."""

    def __init__(self, path: str, url: str) -> None:
        super().__init__(path, url)
        self.sent = 0
        request = self.transport.request

        def counting(*args: object, **options: object) -> object:
            self.sent += len(options.get("body") or b"")  # type: ignore[arg-type]
            return request(*args, **options)  # type: ignore[arg-type]

        self.transport.request = counting  # type: ignore[method-assign, assignment]


@contextmanager
def repairing(folder: Path) -> Open:
    """From the check that finds the damage to the commit."""
    path = folder / "replica.db"
    with OURS.serve(folder) as server:
        fill(server, ROWS_OF_1_GB)
        with closing(Replica(str(path), server.url)) as replica:
            replica.open()
            replica.sync()
        seed = 0

        def sample() -> Sample:
            nonlocal seed
            seed += 1
            damage(path, seed)
            with closing(Counted(str(path), server.url)) as replica:
                replica.open()
                start = time.perf_counter()
                done = replica.sync()
                seconds = time.perf_counter() - start
                assert done.repaired
                assert done.pages == DAMAGED
                return {"repair_seconds": seconds, "repair_bytes": float(done.bytes + replica.sent)}

        yield sample
        remove_database(path)


@contextmanager
def downloading(folder: Path) -> Open:
    """Everything again."""
    path = folder / "replica.db"
    with OURS.serve(folder) as server:
        fill(server, ROWS_OF_1_GB)

        def sample() -> Sample:
            remove_database(path)
            with closing(Replica(str(path), server.url)) as replica:
                start = time.perf_counter()
                replica.open()
                seconds = time.perf_counter() - start
                size = float(replica.state().pages * PAGE)
            return {"repair_seconds": seconds, "repair_bytes": size}

        yield sample
        remove_database(path)


def bench_repair_of_1_gb(pairs: Pairs, tmp_path: Path) -> None:
    pairs(
        *("repair_seconds", "repair_bytes"),
        ours=partial(repairing, tmp_path / "nearlite"),
        peer=partial(downloading, tmp_path / "download"),
        rounds=3,
        warmup=0,
    )
