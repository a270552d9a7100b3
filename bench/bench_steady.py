"""1,000 transactions a second for ten seconds (a minute with NL_SOAK), three readers on a live replica.

The load, the processes and what is checked are those of tests/steady.py: every state that a reader sees is a
whole one, none goes back, nobody gets an error, and the replica equals its primary at the end. A reader's lag
is the age of the newest transaction that it sees, from when the writer sent it.

Bad would be: a lag that grows with time, or pauses of a tenth of a second; a WAL, on either side, that grows
with the load.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pairs import Pairs, Sample
from steady import steady

RATE = 1000
SECONDS = 60.0 if os.environ.get("NL_SOAK") else 10.0


@contextmanager
def following(folder: Path) -> Iterator[Callable[[], Sample]]:
    """Lags in seconds, WALs in bytes."""

    def sample() -> Sample:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        found = steady(folder, rate=RATE, seconds=SECONDS)
        return {
            "steady_lag": found.lag_longest,
            "steady_lag_p50": found.lag_p50,
            "steady_lag_p99": found.lag_p99,
            "steady_wal": float(max(found.replica_wal, found.primary_wal)),
        }

    yield sample


def bench_a_thousand_commits_a_second(pairs: Pairs, tmp_path: Path) -> None:
    pairs(
        *("steady_lag", "steady_lag_p50", "steady_lag_p99", "steady_wal"),
        ours=partial(following, tmp_path / "steady"),
        rounds=1,
        warmup=0,
    )
