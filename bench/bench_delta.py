"""Page deltas: bytes for what a commit did to a database, and time to tell and to carry it out.

The table has 100,000 rows and one index on text; each sample is one commit, looked at in the file before
and after it by stock SQLite. The baseline of bytes is the commit's raw frames. Bad would be: more bytes
than the pages' XOR compressed with zstd, or telling a commit of one row taking longer than the 10 us
that hashing and copying its raw pages take. Bytes and microseconds a page are in the extra info.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import pytest
from pairs import Pairs, Sample
from pytest_benchmark.fixture import BenchmarkFixture

from nearlite import zstd
from nearlite._native import compact, delta
from nearlite._native.applier import State
from nearlite._native.frames import SetHeader
from nearlite.position import Position

PAGE_SIZE = 4096
ROWS = 100_000
WORDS = [
    "order",
    "shipped",
    "late",
    "because",
    "of",
    "customs",
    "the",
    "customer",
    "asked",
    "for",
    "refund",
    "please",
    "call",
    "back",
]
INSERT = "INSERT INTO people(name, mail, n, note) VALUES (?, ?, ?, ?)"
Run = Callable[[sqlite3.Connection], object]


@dataclass(frozen=True)
class Commit:
    """The pages that a commit changed."""

    pages: int
    numbers: list[int]
    bases: list[bytes | None]
    images: list[bytes]


def row(rng: random.Random) -> tuple[str, str, int, str]:
    """About 100 bytes of text as people write it."""
    name = f"{rng.choice(WORDS)} {rng.choice(WORDS)}"
    mail = f"{name.replace(' ', '.')}{rng.randrange(10**6)}@example.org"
    return name, mail, rng.randrange(10**6), " ".join(rng.choices(WORDS, k=rng.randrange(4, 12)))


class People:
    """The database, and its pages as the last commit left them."""

    def __init__(self, path: Path) -> None:
        self.path, self.rng = path, random.Random(1)
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        self.db.execute("PRAGMA journal_mode = wal")
        self.db.execute(
            "CREATE TABLE people(id INTEGER PRIMARY KEY, name TEXT, mail TEXT, n INT, note TEXT)"
        )
        self.db.execute("CREATE INDEX people_mail ON people(mail)")
        self.db.execute("BEGIN")
        self.db.executemany(INSERT, (row(self.rng) for _ in range(ROWS)))
        self.db.execute("COMMIT")
        self.data = self._look()

    def _look(self) -> bytes:
        self.db.execute("PRAGMA wal_checkpoint(truncate)")
        return self.path.read_bytes()

    def commit(self, run: Run) -> Commit:
        """Carry it out as one transaction; answers what it changed, and page 1, as page sets do."""
        self.db.execute("BEGIN")
        run(self.db)
        self.db.execute("COMMIT")
        old, self.data = self.data, self._look()
        cut = [slice(at, at + PAGE_SIZE) for at in range(0, len(self.data), PAGE_SIZE)]
        numbers = [i + 1 for i, s in enumerate(cut) if i == 0 or old[s] != self.data[s]]
        bases = [old[cut[n - 1]] or None for n in numbers]
        return Commit(len(cut), numbers, bases, [self.data[cut[n - 1]] for n in numbers])


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    made = People(tmp_path_factory.mktemp("people") / "people.db")
    yield made
    made.db.close()


def _one_row(people: People) -> Run:
    return lambda db: db.execute(INSERT, row(people.rng))


def _one_integer(people: People) -> Run:
    changed = (people.rng.randrange(10**6), people.rng.randrange(1, ROWS))
    return lambda db: db.execute("UPDATE people SET n = ? WHERE id = ?", changed)


def _hundred_rows(people: People) -> Run:
    return lambda db: db.executemany(INSERT, [row(people.rng) for _ in range(100)])


def _set_size(commit: Commit) -> int:
    """Bytes of the whole page set, as it is answered to a replica."""
    before = State(Position(7, 1, 1000), 1, commit.pages - commit.bases.count(None), PAGE_SIZE, 0)
    header = SetHeader(
        page_size=PAGE_SIZE,
        pages=commit.pages,
        count=len(commit.numbers),
        start=before.position,
        target=Position(7, 1, 1000 + len(commit.numbers)),
        hash_start=before.hash,
        hash_target=2,
        commit_ms=1_764_000_000_000,
    )
    told = compact.encode(before, header, commit.numbers, commit.bases, commit.images)
    assert told is not None
    return len(told)


def _xor(commit: Commit) -> bytes:
    """What the issue compares with: the XOR of the pages, compressed."""
    xor = b""
    for base, image in zip(commit.bases, commit.images, strict=True):
        value = int.from_bytes(base or b"", "big") ^ int.from_bytes(image, "big")
        xor += value.to_bytes(PAGE_SIZE, "big")
    return zstd.compress(xor, 3)


def _encode(commit: Commit) -> bytes:
    told = delta.encode(PAGE_SIZE, commit.pages, commit.numbers, commit.bases, commit.images)
    assert told is not None
    return told


WORKLOADS = {
    "one row": (_one_row, 60),
    "one integer": (_one_integer, 60),
    "100 rows": (_hundred_rows, 8),
}


@pytest.mark.benchmark(group="delta")
@pytest.mark.parametrize("way", ["encode", "decode"])
@pytest.mark.parametrize("name", WORKLOADS)
def bench_delta(benchmark: BenchmarkFixture, people: People, name: str, way: str) -> None:
    make, count = WORKLOADS[name]
    commits = [people.commit(make(people)) for _ in range(count)]
    told = [_encode(commit) for commit in commits]

    def encode() -> None:
        for commit in commits:
            _encode(commit)

    def decode() -> None:
        for c, data in zip(commits, told, strict=True):
            delta.decode(PAGE_SIZE, c.pages, c.numbers, c.bases, data)

    benchmark(encode if way == "encode" else decode)
    pages = sum(len(commit.numbers) for commit in commits)
    benchmark.extra_info["us/page"] = round(benchmark.stats.stats.median / pages * 1e6, 2)
    benchmark.extra_info["bytes, median"] = median(map(len, told))
    benchmark.extra_info["bytes, mean"] = sum(map(len, told)) / count
    benchmark.extra_info["of raw frames"] = round(sum(map(len, told)) / pages / (PAGE_SIZE + 24), 4)
    benchmark.extra_info["whole set, median"] = median(map(_set_size, commits))
    benchmark.extra_info["xor + zstd, median"] = median(len(_xor(commit)) for commit in commits)
    print(f"\n{name}, {way}: {benchmark.extra_info}")


FIGURE_OF = {"one row": "delta_row", "one integer": "delta_integer", "100 rows": "delta_rows"}


@contextmanager
def told(people: People, name: str, raw: list[float]) -> Iterator[Callable[[], Sample]]:
    """Bytes of the whole body, median of some commits; `raw`: of their frames."""
    make, count = WORKLOADS[name]

    def sample() -> Sample:
        commits = [people.commit(make(people)) for _ in range(count)]
        frames = (
            sum(base != image for base, image in zip(c.bases, c.images, strict=True))
            for c in commits
        )
        raw.append(float(median(frames) * (PAGE_SIZE + 24)))
        return float(median(map(_set_size, commits)))

    yield sample


@contextmanager
def as_frames(raw: list[float]) -> Iterator[Callable[[], Sample]]:
    """The frames of the commits that were told last."""
    yield lambda: raw[-1]


@pytest.mark.parametrize("name", WORKLOADS)
def bench_bytes(pairs: Pairs, people: People, name: str) -> None:
    raw: list[float] = []
    pairs(
        FIGURE_OF[name],
        ours=partial(told, people, name, raw),
        peer=partial(as_frames, raw),
        rounds=3,
        warmup=0,
    )
