"""A plain sqlite3 program writes; a process beside it captures that; a live replica elsewhere follows.

Four processes beside this one: the application (the standard library's sqlite3, synchronous=NORMAL), the capture,
the program with the replica, a reader of the replica's file with the standard library's sqlite3. They share
the machine's cores. Litestream's live read replication, which this replaces, took 14 and 21 ms, and left the
application 0.32 to 0.48 of its rate.

Bad would be: a latency that knows of a polling interval; an application that waits for rolls; a process that
takes time while nobody writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench_live import _READER
from capturing import Child, captured
from pairs import Pairs, Sample

Open = Iterator[Callable[[], Sample]]
COMMITS = 300  # a sample, 30 a second
FLAT_OUT = 30_000
OFFERED = 5_000  # a second
IDLE = 10.0  # seconds


@contextmanager
def visible(folder: Path, *figures: str) -> Open:
    """Commit done -> seen by a reader of the replica's file: p50 and p99, seconds."""
    with captured(folder) as all_of, ExitStack() as stack:
        all_of.commit(1, 30)
        reader = Child(
            stack,
            _READER.replace("SELECT n FROM tick", "SELECT max(n) FROM tick"),
            all_of.replica_path,
        )
        seen = {int(reader.line().split()[0])}

        def sample() -> Sample:
            found = all_of.commit(COMMITS, 30)
            first = int(found["n"]) - COMMITS + 1
            done: list[float] = found["done"]  # type: ignore[assignment]
            late = []
            for number in range(first, first + COMMITS):
                while number not in seen:
                    value, at = reader.line().split()
                    seen.add(int(value))
                    late.append(max(0.0, float(at) - done[int(value) - first]))
            late.sort()
            return dict(
                zip(figures, (late[len(late) // 2], late[len(late) * 99 // 100]), strict=True)
            )

        yield sample


@contextmanager
def flat_out(folder: Path, *, capture: bool) -> Open:
    """Commits a second, one after the other."""
    with captured(folder, capture=capture) as all_of:
        yield lambda: all_of.commit(FLAT_OUT, 0)["per_second"]


@contextmanager
def offered(folder: Path, *figures: str, capture: bool) -> Open:
    """Commits a second when 5,000 are due, and the p99 from when they are due, seconds."""
    with captured(folder, capture=capture) as all_of:

        def sample() -> Sample:
            found = all_of.commit(OFFERED * 3, OFFERED)
            return dict(zip(figures, (found["per_second"], found["p99"]), strict=True))

        yield sample


@contextmanager
def idle(folder: Path) -> Open:
    """Processor seconds that a capture takes of a second in which nobody writes or asks."""
    with captured(folder) as all_of:
        all_of.commit(30, 30)
        time.sleep(IDLE)  # it empties the WAL when nobody has written for some seconds

        def sample() -> Sample:
            assert all_of.capture is not None
            before = all_of.capture.processor_seconds()
            time.sleep(IDLE)
            return (all_of.capture.processor_seconds() - before) / IDLE

        yield sample


def bench_commit_of_any_program_until_visible_on_a_live_replica(
    pairs: Pairs, tmp_path: Path
) -> None:
    keys = ("sidecar_live", "sidecar_live_p99")
    pairs(*keys, ours=partial(visible, tmp_path, *keys), rounds=3)


def bench_writes_of_an_application_that_is_captured(pairs: Pairs, tmp_path: Path) -> None:
    pairs(
        "sidecar_flat_out",
        ours=partial(flat_out, tmp_path / "captured", capture=True),
        peer=partial(flat_out, tmp_path / "alone", capture=False),
        rounds=3,
    )


def bench_writes_at_an_offered_rate_of_an_application_that_is_captured(
    pairs: Pairs, tmp_path: Path
) -> None:
    keys = ("sidecar_offered", "sidecar_offered_p99")
    pairs(
        *keys,
        ours=partial(offered, tmp_path / "captured", *keys, capture=True),
        peer=partial(offered, tmp_path / "alone", *keys, capture=False),
        rounds=3,
    )


def bench_a_capture_of_a_database_that_nobody_writes(pairs: Pairs, tmp_path: Path) -> None:
    pairs("sidecar_idle", ours=partial(idle, tmp_path), rounds=1, warmup=0)
