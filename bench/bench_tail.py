"""The primary's log: what a commit pays for being replicated, and what a roll costs.

Bad would be: anything in the first two that grows with the size of the database; an advance slower than
SQLite writes frames (some 300k frames/s); a roll that keeps writers waiting longer than the
checkpoint it contains.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from nearlite.primary import Primary

ROWS = 20_000  # one page each
CHANGED = 4_000  # pages of one transaction: 16 MiB of frames, the default threshold of a roll


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    with Primary.open(tmp_path / "data.db", durability="normal") as opened:
        writer = opened.connect()
        writer.exec(
            "CREATE TABLE t(i INTEGER PRIMARY KEY, n, x);"
            "WITH n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
            "INSERT INTO t SELECT i, 0, randomblob(3000) FROM n"
        )
        opened.after_commit()
        assert opened.roll()
        opened.writer = writer  # type: ignore[attr-defined]
        yield opened
        writer.close()


def _commit(primary: Primary) -> None:
    primary.writer.exec("UPDATE t SET n = n + 1 WHERE i = 777")  # type: ignore[attr-defined]


def bench_take_a_one_row_commit(benchmark: BenchmarkFixture, primary: Primary) -> None:
    """after_commit(): frames read, verified, hashed, journaled."""
    benchmark.pedantic(primary.after_commit, setup=lambda: _commit(primary), rounds=2000)


def bench_answer_a_one_row_commit(benchmark: BenchmarkFixture, primary: Primary) -> None:
    """changes(): the page set of one commit that was taken already, encoded anew."""

    def setup() -> tuple[tuple[object, int], dict[str, object]]:
        before = primary.state()
        _commit(primary)
        primary.after_commit()
        return (before.position, before.hash), {}

    benchmark.pedantic(primary.changes, setup=setup, rounds=2000)


def bench_advance(benchmark: BenchmarkFixture, primary: Primary) -> None:
    """One transaction of 4,000 pages; extra_info holds frames per second."""

    def setup() -> None:
        if primary.roll_due:
            primary.roll()
        primary.writer.exec(f"UPDATE t SET n = n + 1 WHERE i <= {CHANGED}")  # type: ignore[attr-defined]

    benchmark.pedantic(primary.after_commit, setup=setup, rounds=10)
    assert benchmark.stats is not None
    benchmark.extra_info["frames_per_second"] = round(CHANGED / benchmark.stats.stats.median)


def bench_answer_4000_pages(benchmark: BenchmarkFixture, primary: Primary) -> None:
    """The page set of a large transaction, encoded and read out; extra_info: pages per second."""
    before = primary.state()
    primary.writer.exec(f"UPDATE t SET n = n + 1 WHERE i <= {CHANGED}")  # type: ignore[attr-defined]

    def answer() -> None:
        found = primary.changes(before.position, before.hash)
        assert found is not None
        for _ in found:
            pass

    benchmark.pedantic(answer, rounds=10, warmup_rounds=1)
    assert benchmark.stats is not None
    benchmark.extra_info["pages_per_second"] = round(CHANGED / benchmark.stats.stats.median)


def bench_roll(benchmark: BenchmarkFixture, primary: Primary) -> None:
    """A roll of 16 MiB; extra_info: the longest a writer was kept waiting, in milliseconds."""
    waits: list[float] = []
    tail = primary._tail
    begin, finish = tail.roll_begin, tail.roll_abort
    started = 0.0

    def timed_begin(wait_ms: int) -> None:
        nonlocal started
        begin(wait_ms)
        started = time.perf_counter()

    def timed_end() -> None:
        finish()
        waits.append((time.perf_counter() - started) * 1e3)

    tail.roll_begin, tail.roll_abort = timed_begin, timed_end  # type: ignore[method-assign]

    def setup() -> None:
        primary.writer.exec(f"UPDATE t SET n = n + 1 WHERE i <= {CHANGED}")  # type: ignore[attr-defined]
        primary.after_commit()

    benchmark.pedantic(primary.roll, setup=setup, rounds=10)
    benchmark.extra_info["writers_waited_ms"] = round(sorted(waits)[len(waits) // 2], 1)
    assert primary.state().position.generation > 10
