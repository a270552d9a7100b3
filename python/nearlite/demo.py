"""`nearlite demo`: the main job on real data, in four processes on this machine.

All of Unicode, as the standard library's `unicodedata` knows it, is loaded into a primary (a process:
`nearlite serve`). A replica (a second process) bootstraps, catches up and forwards writes. A third process
reads the replica's file with Python's own `sqlite3` all the while. A trigger keeps a tally, so that every
state a reader may see satisfies an equation, and any other state is noticed.

Each role is a function here and a process of its own: `python -m nearlite.demo ROLE ...` prints JSON.
"""

from __future__ import annotations

import json
import select
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

import nearlite
from nearlite.spawn import primary

ROLE_SECONDS = 120.0  # the longest any one step of a role may take
# The plane of a character is its code divided by this; plane 0 holds most scripts in use.
PLANE = 0x10000

SCHEMA = """
CREATE TABLE character(
    code INTEGER PRIMARY KEY, text TEXT NOT NULL, name TEXT, category TEXT NOT NULL,
    bidirectional TEXT NOT NULL, combining INTEGER NOT NULL, decomposition TEXT NOT NULL, number REAL);
CREATE INDEX character_name ON character(name);
CREATE TABLE tally(category TEXT PRIMARY KEY, characters INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE note(id INTEGER PRIMARY KEY, code INTEGER NOT NULL, text TEXT NOT NULL);
CREATE TRIGGER count_character AFTER INSERT ON character BEGIN
    INSERT INTO tally VALUES (new.category, 1)
    ON CONFLICT(category) DO UPDATE SET characters = characters + 1;
END;
"""
INSERT = "INSERT INTO character VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
# True in every state the primary ever had: the trigger runs inside the same transaction.
EQUATION = (
    "SELECT (SELECT count(*) FROM character), (SELECT coalesce(sum(characters), 0) FROM tally)"
)
POINT = "SELECT name FROM character WHERE code = ?"

Row = tuple[int, str, "str | None", str, str, int, str, "float | None"]


def characters(first: int, last: int) -> Iterator[Row]:
    """One row for each assigned code point in [first, last); no surrogates, they are not text."""
    for code in range(first, last):
        text = chr(code)
        category = unicodedata.category(text)
        if category in ("Cn", "Co", "Cs"):
            continue
        yield (
            code,
            text,
            unicodedata.name(text, None),
            category,
            unicodedata.bidirectional(text),
            unicodedata.combining(text),
            unicodedata.decomposition(text),
            unicodedata.numeric(text, None),
        )


def percentile(values: Sequence[float], percent: int) -> float:
    """Nearest-rank percentile of measured values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


# ------------------------------------------------------------------------------ roles


def reader(path: str) -> None:
    """Read a database with the standard library until standard input ends; print what was seen.

    The file may be replaced by nobody and locked by nobody: every read must succeed.
    """
    seen: set[int] = set()
    reads, last = 0, 0
    with closing(sqlite3.connect(path)) as database:
        print("reading", flush=True)
        while True:
            rows, tally = database.execute(EQUATION).fetchone()
            if rows != tally or rows < last:
                raise SystemExit(f"impossible state: {rows} rows, tally {tally}, before {last}")
            seen.add(rows)
            last = rows
            reads += 1
            if select.select([sys.stdin], [], [], 0)[0]:
                break
        (check,) = database.execute("PRAGMA integrity_check").fetchone()
        try:
            database.execute("DELETE FROM note")
            refusal = "none: the write went through"
        except sqlite3.OperationalError as error:
            refusal = str(error)
    report = {"reads": reads, "states": sorted(seen), "integrity": check, "refusal": refusal}
    print(json.dumps(report), flush=True)


def replica(path: str, url: str) -> None:
    """Bootstrap, then obey one-word orders on standard input; answer each with a line of JSON."""
    received: list[Any] = []
    options: dict[str, Any] = {
        "sync_url": url,
        "isolation_level": None,
        "progress": received.append,
    }
    start = time.perf_counter()
    with closing(nearlite.connect(path, **options)) as connection:
        seconds = time.perf_counter() - start
        first = {"pages": received[-1].pages, "bytes": received[-1].bytes, "seconds": seconds}
        print(json.dumps({**first, "position": str(connection.sync().position)}), flush=True)
        for order in sys.stdin:
            if order.strip() == "sync":
                answer = _described(connection.sync())
            elif order.strip() == "write":
                answer = {"seconds": [_forward(connection, n) for n in range(200)]}
            else:
                answer = {"seconds": _point_reads(connection, 20_000)}
            print(json.dumps(answer), flush=True)


def _described(done: Any) -> dict[str, Any]:
    return {
        "position": str(done.position),
        "pages": done.pages,
        "bytes": done.bytes,
        "seconds": done.seconds,
    }


def _forward(connection: Any, number: int) -> float:
    """One write through the replica, and the proof that it is visible there; seconds of the write."""
    write = "INSERT INTO note(code, text) VALUES (?, ?)"
    start = time.perf_counter()
    connection.execute(write, (number, f"note {number}"))
    seconds = time.perf_counter() - start
    (visible,) = connection.execute("SELECT max(id) FROM note").fetchone()
    if visible != number + 1:
        raise SystemExit(f"the write of note {number + 1} is not visible: {visible}")
    return seconds


def _point_reads(connection: Any, count: int) -> list[float]:
    """Seconds of `count` reads by primary key, row fetched."""
    taken = []
    for number in range(count):
        code = 0x41 + number * 7919 % 0x5000
        start = time.perf_counter()
        connection.execute(POINT, (code,)).fetchone()
        taken.append(time.perf_counter() - start)
    return taken


# ------------------------------------------------------------------------------ the demo


class Role:
    """A process of the demo, asked by lines and answering by lines."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nearlite.demo", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the demo alone, which then stops the roles
        )

    def ask(self, order: str) -> Any:
        """Send an order, wait for the answer."""
        print(order, file=self._pipe(self._process.stdin), flush=True)
        return self.answer()

    def line(self) -> str:
        """The next line the process prints."""
        output = self._pipe(self._process.stdout)
        # Select before a buffered read is sound here: there is one line for each order.
        readable, _, _ = select.select([output], [], [], ROLE_SECONDS)
        line = output.readline() if readable else ""
        if not line:
            raise RuntimeError("a process of the demo failed; its message is above")
        return line

    def answer(self) -> Any:
        """The next line, decoded."""
        return json.loads(self.line())

    def finish(self) -> Any:
        """End of input: the process reports and ends."""
        self._pipe(self._process.stdin).close()
        return self.answer()

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            self._pipe(pipe).close()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


class Report:
    """The table that the demo prints: what was done, how often, and how long it took."""

    def __init__(self) -> None:
        self.table = Table("what", "how many", "time", "result", title="nearlite demo")

    def once(self, what: str, many: str, seconds: float, result: str = "") -> None:
        """A step that was done once."""
        self.table.add_row(what, many, _duration(seconds), result)

    def often(self, what: str, seconds: Sequence[float], result: str = "") -> None:
        """A step that was repeated: median and 99th percentile."""
        p50, p99 = statistics.median(seconds), percentile(seconds, 99)
        times = f"p50 {_duration(p50)}, p99 {_duration(p99)}"
        self.table.add_row(what, f"{len(seconds):,}", times, result)

    def fact(self, what: str, many: str, result: str) -> None:
        """Something that was observed."""
        self.table.add_row(what, many, "", result)


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _synced(done: dict[str, Any]) -> str:
    return f"{done['pages']:,} pages, {done['bytes'] / 1e6:,.2f} MB, position {done['position']}"


def run(console: Console) -> None:
    """The whole demo, in a temporary folder that is removed at the end.

    Raises:
      RuntimeError: a process ended early, or something was observed that must not be.

    """
    report = Report()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nearlite-demo-")))
        console.print("starting the primary ...")
        url = stack.enter_context(primary(folder / "primary.db", "--durability", "normal"))
        remote = stack.enter_context(closing(nearlite.connect(url)))
        console.print(f"loading Unicode {unicodedata.unidata_version} into {url} ...")
        states = _load(remote, report)
        console.print(
            "bootstrapping the replica, then reading it all the while with stock sqlite3 ..."
        )
        path = str(folder / "replica.db")
        follower = Role("replica", path, url)
        stack.callback(follower.stop)
        first = follower.answer()
        report.once("bootstrap of the replica", "1", first["seconds"], _synced(first))
        stock = Role("reader", path)
        stack.callback(stock.stop)
        stock.line()
        states |= _catch_up(remote, follower, report)
        console.print("writing through the replica, reading here and there ...")
        report.often(
            "write through the replica, visible there",
            follower.ask("write")["seconds"],
            "no errors",
        )
        report.often("read on the replica, by key", follower.ask("read")["seconds"])
        report.often("the same read over HTTP, for comparison", _point_reads(remote, 500))
        _finish(remote, follower, stock.finish(), states, report)
    console.print(report.table)


def _load(remote: Any, report: Report) -> set[int]:
    """Write plane 0 on the primary; gives the numbers of rows it has had since the replica began."""
    remote.executescript(SCHEMA)
    rows = list(characters(0, PLANE))
    start = time.perf_counter()
    with remote:
        remote.executemany(INSERT, rows)
    seconds = time.perf_counter() - start
    report.once("load plane 0 over HTTP", f"{len(rows):,} rows", seconds, "one transaction")
    return {len(rows)}


def _catch_up(remote: Any, follower: Role, report: Report) -> set[int]:
    """Write the other planes on the primary in forty transactions, sync after each; the states."""
    rows = list(characters(PLANE, 0x110000))
    (before,) = remote.execute("SELECT count(*) FROM character").fetchone()
    steps = 40
    done = []
    states = {before + len(rows) * (step + 1) // steps for step in range(steps)}
    for step in range(steps):
        part = rows[len(rows) * step // steps : len(rows) * (step + 1) // steps]
        with remote:
            remote.executemany(INSERT, part)
        done.append(follower.ask("sync"))
    total = {
        "pages": sum(one["pages"] for one in done),
        "bytes": sum(one["bytes"] for one in done),
        "position": done[-1]["position"],
    }
    what = f"sync after each of {steps} transactions ({len(rows):,} rows)"
    report.often(what, [one["seconds"] for one in done], _synced(total))
    empty = [follower.ask("sync")["seconds"] for _ in range(200)]
    report.often("sync with nothing new", empty)
    return states


def _finish(
    remote: Any, follower: Role, seen: dict[str, Any], states: set[int], report: Report
) -> None:
    """Compare both sides, and refuse to call it a success if anything is odd."""
    last = follower.ask("sync")
    rows, tally = remote.execute(EQUATION).fetchone()
    good = rows == tally and seen["integrity"] == "ok" and "readonly" in seen["refusal"]
    if not good or not states.issuperset(seen["states"]):
        raise RuntimeError(f"primary: {rows} rows, tally {tally}, {states}; reader: {seen}")
    report.fact(
        "reads by stock sqlite3 during all of it",
        f"{seen['reads']:,}",
        f"0 errors, {len(seen['states'])} different states, all of them the primary's",
    )
    report.fact("integrity_check by stock sqlite3", "1", seen["integrity"])
    report.fact("write by stock sqlite3", "1", f"refused: {seen['refusal']}")
    report.fact("rows on the primary", f"{rows:,}", f"replica at {last['position']}")


if __name__ == "__main__":
    if sys.argv[1] == "reader":
        reader(sys.argv[2])
    else:
        replica(sys.argv[2], sys.argv[3])
