"""Invariant 1: any process with any SQLite reads, at any time, only states that the primary had.

Stock readers loop in processes of their own (reopening, holding snapshots, mapping the file into
memory, checkpointing, trying to write) while page sets are applied and checkpointed at full speed.
Seconds in the default run; minutes in ``make soak``.
"""

from __future__ import annotations

import itertools
import json
import random
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import history
import pytest
from history import History, Moment, replica_of
from soaking import Soak

from nearlite._native import frames
from nearlite._native.applier import Applier
from nearlite._native.frames import Chunk, ChunkHeader, SetHeader
from nearlite.position import Position

EITHER = True

SECONDS = 1.5
KINDS = ["steady", "reopening", "mapping", "checkpointing", "holding"]

READER = """
    import json, random, sealing, sqlite3, sys, time
    path, kind, query, known, rising = sys.argv[1:6]
    known, rising = json.loads(known), rising == "rising"
    rng = random.Random(kind)

    def connect():
        c = sealing.reader(path, timeout=10, isolation_level=None)
        if kind == "mapping":
            c.execute("PRAGMA mmap_size=100000000").fetchall()
        return c

    c, reads, last = connect(), 0, -1
    print("ready", flush=True)
    end = None
    while end is None or time.monotonic() < end or reads < 6:
        if end is None:
            end = time.monotonic() + float(sys.stdin.readline())
        if kind == "holding":
            c.execute("BEGIN")
        row = c.execute(query).fetchone()
        state, value = str(row[0]), list(row[1:])
        if known.get(state, known.get("any")) != value and value != [row[0]] * len(value):
            sys.exit(f"at {state}: read {value}, never a state of the primary")
        if rising and row[0] < last:
            sys.exit(f"read {row[0]} after {last}")
        last = row[0]
        reads += 1
        if kind == "holding":
            time.sleep(rng.random() / 50)
            if c.execute(query).fetchone() != row:
                sys.exit("a snapshot changed while it was open")
            c.execute("COMMIT")
        elif kind == "reopening":
            c.close()
            c = connect()
        elif kind == "checkpointing" and reads % 20 == 0:
            c.execute("PRAGMA busy_timeout=20")
            mode = rng.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
            c.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
            c.execute("PRAGMA busy_timeout=10000")
        elif reads % 50 == 0:
            try:
                c.execute("CREATE TABLE intruder(x)")
                sys.exit("a stock connection wrote to a replica")
            except sqlite3.OperationalError as error:
                if "readonly" not in str(error):
                    raise
    found = c.execute("PRAGMA integrity_check").fetchone()[0]
    if found != "ok":
        sys.exit(found)
    print(reads)
    """


class Readers:
    """The reading processes; `run` lets them loose while it applies sets."""

    def __init__(
        self, path: Path, query: str, known: dict[str, list[object]], soak: Soak, *, rising: bool
    ) -> None:
        self._soak = soak
        order = "rising" if rising else "any"
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(READER), str(path), kind, query]
                + [json.dumps(known), order],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parent,
            )
            for kind in KINDS
        ]
        for p in self.processes:
            assert p.stdout is not None
            assert p.stdout.readline() == "ready\n"

    def run(self, applier: Applier, sets: Iterator[tuple[SetHeader, list[Chunk]]]) -> int:
        """Apply sets as fast as possible for so long; answers how many."""
        rng = random.Random(5)
        seconds = self._soak.seconds(SECONDS)
        end = time.monotonic() + seconds
        for p in self.processes:
            assert p.stdin is not None
            p.stdin.write(f"{seconds}\n")
            p.stdin.flush()
        applied = 0
        for head, chunks in sets:
            state = applier.apply(head, chunks, wait=20)
            assert state is not None
            assert (state.position, state.hash) == (head.target, head.hash_target)
            applied += 1
            if state.wal_frames > 1000:
                mode = rng.choice(["passive", "passive", "restart", "truncate"])
                try:
                    applier.checkpoint(mode, wait=0.01)
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != 5:
                        raise  # SQLITE_BUSY alone is fine: a reader was in the way
            if time.monotonic() > end:
                break
        ends = [p.communicate(timeout=60) for p in self.processes]
        assert [errors for _, errors in ends] == [""] * len(KINDS)
        assert all(int(out) > 5 for out, _ in ends)
        self._soak.count(page_sets=applied, reads=sum(int(out) for out, _ in ends))
        return applied

    def stop(self) -> None:
        for p in self.processes:
            p.kill()
            p.communicate()


# ---------------------------------------------------------------- many small commits

ROWS = 8
PAD = "x" * 3000  # one row fills a page


def counting(base: Moment, spots: list[tuple[int, int]]) -> Iterator[tuple[SetHeader, list[Chunk]]]:
    """Endless sets: the i-th writes i into every row, by patching the pages themselves."""
    pages = {number: bytearray(base.pages[number - 1]) for number, _ in spots}
    held = {number: frames.page_hash(page, number) for number, page in pages.items()}
    position, state = base.position, base.hash
    for i in itertools.count(1):
        body = bytearray(frames.chunk_size(4096, len(spots)))
        where = frames.pages_offset(len(spots))
        target, before = replace(position, frame=position.frame + 1), state
        for slot, (number, offset) in enumerate(spots):
            page = pages[number]
            page[offset : offset + 10] = b"%010d" % i
            body[where + slot * 4096 : where + (slot + 1) * 4096] = page
            fresh = frames.page_hash(page, number)
            state ^= held[number] ^ fresh
            held[number] = fresh
        digest = frames.seal(body, 4096, [number for number, _ in spots])
        head = SetHeader(
            page_size=4096,
            pages=len(base.pages),
            count=len(spots),
            start=position,
            target=target,
            hash_start=before,
            hash_target=state,
            commit_ms=i,
        )
        header = ChunkHeader(len(spots), len(body), len(body), digest)
        yield head, [Chunk(head, header, body, after=0)]
        position = target


@pytest.mark.soak
def test_readers_see_whole_commits_in_order_at_full_speed(tmp_path: Path, soak: Soak) -> None:
    source = History(tmp_path / "primary.db")
    rows = ", ".join(f"({k}, '{0:010d}{PAD}')" for k in range(ROWS))
    base = source.step("CREATE TABLE c(k INTEGER PRIMARY KEY, v)", f"INSERT INTO c VALUES{rows}")
    source.db.close()
    spots = [
        (number, page.index(b"0000000000xxx"))
        for number, page in enumerate(base.pages, 1)
        if b"0000000000xxx" in page
    ]
    assert len(spots) == ROWS
    applier = replica_of(base, tmp_path / "r.db")
    columns = ", ".join(
        f"(SELECT CAST(substr(v, 1, 10) AS INT) FROM c WHERE k={k})" for k in range(ROWS)
    )
    readers = Readers(tmp_path / "r.db", f"SELECT {columns}", {}, soak, rising=True)
    try:
        applied = readers.run(applier, counting(base, spots))
    finally:
        readers.stop()
    state, found = applier.full_hash()
    assert state.position == Position(history.LINEAGE, 1, base.position.frame + applied)
    assert found == state.hash
    assert applied > 50
    applier.close()


# ---------------------------------------------------------------- every kind of change

STEPS = [
    "INSERT INTO t(a) WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<60) "  # noqa: ISC004
    "SELECT abs(random()) % 1000 FROM n",
    "UPDATE t SET a = a + 7 WHERE id % 5 = 1",
    "DELETE FROM t WHERE id % 3 = 0",
    "UPDATE t SET b = hex(randomblob(900)) WHERE id % 11 = 0",
    "CREATE INDEX IF NOT EXISTS i ON t(a)",
    "DROP INDEX IF EXISTS i",
    "CREATE TABLE IF NOT EXISTS extra AS SELECT * FROM t",
    "DROP TABLE IF EXISTS extra",
    "DELETE FROM t WHERE id > 30",
    "VACUUM",
]


def moments(path: Path, auto_vacuum: int) -> tuple[list[Moment], dict[str, list[object]]]:
    """A ring of states that stock SQLite made, and what each of them reads as."""
    source = History(path, auto_vacuum=auto_vacuum)
    rng = random.Random(auto_vacuum)
    ring = []
    known: dict[str, list[object]] = {}
    source.step("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)", "CREATE TABLE n(n)")
    source.db.execute("INSERT INTO n VALUES(0)")
    for i in range(60):
        sql = STEPS[i] if i < len(STEPS) else rng.choice(STEPS)
        if sql == "VACUUM":
            source.db.execute("UPDATE n SET n = -1")  # VACUUM cannot share a transaction
            source.db.execute(sql)
        ring.append(source.step("UPDATE n SET n = " + str(i), *([] if sql == "VACUUM" else [sql])))
        known[str(i)] = list(source.db.execute(QUERY).fetchone()[1:])
    source.db.close()
    return ring, known


QUERY = "SELECT n, (SELECT count(*) FROM t), (SELECT total(a) FROM t), (SELECT total(length(b)) FROM t) FROM n"


@pytest.mark.soak
@pytest.mark.parametrize("auto_vacuum", [0, 1, 2])
def test_readers_see_only_known_states_whatever_changes(
    tmp_path: Path, auto_vacuum: int, soak: Soak
) -> None:
    ring, known = moments(tmp_path / "primary.db", auto_vacuum)
    pairs = [history.page_set(old, new) for old, new in zip(ring, ring[1:] + ring[:1], strict=True)]

    def sets() -> Iterator[tuple[SetHeader, list[Chunk]]]:
        position = ring[0].position
        for head, chunks in itertools.cycle(pairs):
            target = replace(position, frame=position.frame + 1)
            yield head.replace(start=position, target=target), chunks
            position = target

    applier = replica_of(ring[0], tmp_path / "r.db")
    readers = Readers(tmp_path / "r.db", QUERY, known, soak, rising=False)
    try:
        applied = readers.run(applier, sets())
    finally:
        readers.stop()
    state, found = applier.full_hash()
    assert state.hash == found == ring[applied % len(ring)].hash
    assert applied > 50
    applier.close()
