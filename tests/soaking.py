"""Tests that last: moments in the default run, their share of an hour in `make soak`.

A test marked `soak` asks its fixture of the same name how long to go on, and counts what it does. With
NL_SOAK all tests that are marked share NL_SOAK_SECONDS (3600) on the workers there are, and a line for
each, what it did and that nothing was wrong, stands at the end: a table for docs/guarantees.md.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

PROPERTY = "soak"
SOAKING = bool(os.environ.get("NL_SOAK"))


class Soak:
    """How long one test lasts, and what it has done.

    Attributes:
      share: seconds of each test; None in the default run.
    """

    def __init__(self, share: float | None) -> None:
        self.share = share
        self._begun = time.monotonic()
        self._counts: Counter[str] = Counter()

    def seconds(self, default: float) -> float:
        """How long, for a test that goes by the clock."""
        return default if self.share is None else self.share

    def turns(self, default: int) -> Iterator[int]:
        """So many turns, or as many as there is time for."""
        turn = 0
        while turn < default if self.share is None else self._elapsed < self.share:
            yield turn
            turn += 1

    def until(self, default: float) -> Iterator[int]:
        """Turns for so many seconds from now, or for as long as there is time."""
        end, turn = time.monotonic() + self.seconds(default), 0
        while time.monotonic() < end:
            yield turn
            turn += 1

    def count(self, **what: int) -> None:
        """It did so many of these; `_` in a name is shown as a space."""
        self._counts.update(what)

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._begun

    def line(self) -> str:
        """Minutes, and what was counted."""
        counts = ", ".join(
            f"{count:,} {name.replace('_', ' ')}" for name, count in self._counts.items()
        )
        return f"{self._elapsed / 60:.1f} min | {counts or 'nothing counted'}"


def share_of(config: pytest.Config, items: list[pytest.Item]) -> float | None:
    """Seconds of each of these tests that is marked."""
    marked = sum(item.get_closest_marker(PROPERTY) is not None for item in items)
    if not SOAKING or not marked:
        return None
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    rounds = -(-marked // workers)  # a worker that is free takes the next one
    return float(os.environ.get("NL_SOAK_SECONDS") or 3600) / rounds


def table(reports: list[Any]) -> list[str]:
    """Rows of markdown, one for each test that was marked."""
    failed = {report.nodeid for report in reports if report.failed}
    rows = []
    for report in reports:
        if report.when != "teardown":
            continue
        for name, line in report.user_properties:
            if name == PROPERTY:
                test = report.nodeid.rpartition("/")[2].replace("::", " ").replace("_", " ")
                rows.append(f"| {test} | {line} | {'FAILED' if report.nodeid in failed else 0} |")
    return sorted(rows)
