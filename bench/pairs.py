"""Measure two sides in alternation: ours, peer, ours, peer, ...

A machine's speed drifts (other programs, clock, page cache, a disk that writes back), so two blocks
measured one after the other compare the weather. Pairs measured side by side compare the programs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TypeAlias

from figures import BY_KEY
from pytest_benchmark.fixture import BenchmarkFixture

# One measurement in base units (seconds, 1/s, bytes), or several by figure key when one run
# answers several figures (a load run gives a rate and a p99).
Sample: TypeAlias = "float | dict[str, float]"
Side: TypeAlias = "Callable[[], AbstractContextManager[Callable[[], Sample]]]"


class Pairs:
    """Files interleaved measurements in pytest-benchmark's JSON, under `extra_info["figures"]`."""

    def __init__(self, benchmark: BenchmarkFixture, sides: str) -> None:
        self._benchmark = benchmark
        self._sides = sides

    def __call__(
        self, *figures: str, ours: Side, peer: Side | None = None, rounds: int, warmup: int = 1
    ) -> None:
        """Open both sides, take `warmup` + `rounds` pairs, keep the latter.

        Args:
          figures: keys of figures.FIGURES that this measurement answers.
          ours, peer: each opens what it needs (a server, a file) and gives the function that takes
            one sample; everything outside that function's own clock is untimed. Without a peer
            ours is measured alone.
        """
        taken: dict[str, dict[str, list[float]]] = {}
        for key in figures:
            taken[BY_KEY[key].key] = {"ours": [], "peer": []}
        with ExitStack() as stack:
            take = {
                name: stack.enter_context(side())
                for name, side in (("ours", ours), ("peer", peer))
                if side is not None and self._sides in (name, "both")
            }
            left = warmup

            def pair() -> None:
                nonlocal left
                for name, sample in take.items():
                    for key, value in _by_key(figures, sample()).items():
                        if left == 0:
                            taken[key][name].append(value)
                left = max(0, left - 1)

            for _ in range(warmup):
                pair()
            self._benchmark.pedantic(  # type: ignore[no-untyped-call]
                pair, rounds=rounds, iterations=1
            )
        self._benchmark.extra_info["figures"] = taken


def _by_key(figures: tuple[str, ...], sample: Sample) -> dict[str, float]:
    return sample if isinstance(sample, dict) else {figures[0]: sample}


def timed(work: Callable[[], object]) -> float:
    """Seconds that one call of `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_of(work: Callable[[], object], calls: int) -> float:
    """Median of the seconds each of `calls` calls takes: a p50, outliers dropped."""
    return statistics.median(timed(work) for _ in range(calls))
