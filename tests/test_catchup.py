"""A replica that was away: what it receives follows the pages that changed, not how often they did.

Each page travels once, as it is now, however many transactions and generations lie between; and neither
side holds what is on its way.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sealing import page_of, reader

import nearlite
from nearlite.primary import Primary

EITHER = True

PAGE = 4096
ROWS = 1000
ROUNDS = 4  # generations, each of which changes every row three times


def images(path: Path) -> list[bytes]:
    """The pages of a database as stock SQLite reads them."""
    copy = path.with_name("copy.db")
    with closing(reader(path)) as source, closing(reader(copy)) as target:
        source.backup(target)
        (pages,) = target.execute("PRAGMA page_count").fetchone()
    found = [page_of(copy, number) for number in range(1, pages + 1)]
    copy.unlink()
    return found


def different(old: list[bytes], new: list[bytes]) -> int:
    """Pages that are not the same, and those that one lacks."""
    same = sum(a == b for a, b in zip(old[1:], new[1:], strict=False))
    return max(len(old), len(new)) - 1 - same


def test_each_page_comes_once_however_many_generations_lie_between(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    with Primary.open(path, durability="normal", roll_bytes=1 << 40) as db:
        with closing(db.connect()) as con:
            con.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, text TEXT)")
            con.exec("CREATE TABLE cold(x)")
            con.exec(
                "INSERT INTO t WITH RECURSIVE c(i) AS "
                f"(VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < {ROWS}) "
                "SELECT i, 0, printf('%0200d', i) FROM c"
            )
            con.exec("INSERT INTO cold VALUES(zeroblob(1000000))")
            asked = [(db.after_commit(), images(path))]
            for turn in range(1, ROUNDS + 1):
                for row in range(0, 3 * ROWS, 7):
                    con.exec(f"UPDATE t SET n = {turn} WHERE id = {row % ROWS + 1}")
                asked.append((db.after_commit(), images(path)))
                if turn < ROUNDS:  # the last one goes on
                    assert db.roll()
        now = images(path)
        frames = ROUNDS * len(range(0, 3 * ROWS, 7))
        for start, before in asked[:-1]:
            pages = different(before, now)
            assert 40 < pages < 70  # 1,000 rows of 200 bytes, and none of the cold ones
            answer = db.changes(start)
            assert answer is not None
            assert answer.transactions is not None
            # Page 1 may be among them; 8 bytes for each page beside it, and the headers.
            body = answer.read()
            assert len(body) <= (pages + 1) * (PAGE + 8) + 256
            assert len(body) * 10 < frames * PAGE
        assert db.changes(asked[0][0]).transactions == frames  # type: ignore[union-attr]


REPLICA = """
import sys, nearlite
with nearlite.connect(sys.argv[1], sync_url=sys.argv[2]) as con:
    con.sync()  # nothing yet: what a sync needs is loaded
    print("ready", flush=True)
    sys.stdin.readline()
    done = con.sync()
    print(done.pages, done.bytes, flush=True)
    sys.stdin.readline()
con.close()
"""


def peak(process: subprocess.Popen[str]) -> int:
    """Highest resident set so far, bytes."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def test_neither_side_holds_what_is_on_its_way(tmp_path: Path) -> None:
    rows, growth = 25_000, 60 << 20  # each row fills a page: a hundred megabytes
    command = [sys.executable, "-m", "nearlite", "serve", str(tmp_path / "data.db")]
    options = ["--listen", "127.0.0.1:0", "--durability", "normal", "--roll-bytes", "24MiB"]
    with started(*command, *options) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        writer = nearlite.connect(url, isolation_level=None)
        writer.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, filling)")
        for first in range(0, rows, 5000):
            writer.execute(
                "INSERT INTO t WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c "
                f"WHERE i < 5000) SELECT i + {first}, 0, zeroblob(2900) FROM c"
            )
        with started(sys.executable, "-c", REPLICA, str(tmp_path / "r.db"), url) as replica:
            assert replica.stdin is not None
            assert replica.stdout is not None
            assert replica.stdout.readline() == "ready\n"
            for turn in (1, 2, 3):
                for rest in (0, 1):
                    writer.execute(f"UPDATE t SET n = {turn} WHERE id % 2 = {rest}")
            generation = writer.last_write_position.generation
            before = peak(server), peak(replica)
            replica.stdin.write("go\n")
            replica.stdin.flush()
            pages, size = map(int, replica.stdout.readline().split())
            after = peak(server), peak(replica)
        writer.close()
    assert generation > 5
    assert rows <= pages < rows + 500
    assert size < pages * (PAGE + 16)
    assert [now - then < growth for now, then in zip(after, before, strict=True)] == [True, True]


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()
