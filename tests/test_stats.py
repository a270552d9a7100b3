"""Numbers for the user: stats() and `nearlite status`."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import stack
from primaries import Served, primary
from sealing import reader
from test_background import eventually

import nearlite
from nearlite import watching
from nearlite.ahead import Clock, ask_status
from nearlite.http import Deadline
from nearlite.primary import Primary
from nearlite.tally import Histogram, frames_between
from nearlite.wire import Behind

EITHER = True

LAG = ("transactions", "bytes", "seconds")
STATUS = [sys.executable, "-m", "nearlite", "status"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with primary(tmp_path) as made:
        made.remote(isolation_level=None).execute("CREATE TABLE t(a)")
        yield made


def status(*arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [*STATUS, *map(str, arguments), "--json"], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_was_received_is_counted(served: Served) -> None:
    con = served.replica()
    before = con.stats()
    assert (before.answers, before.page_sets, before.lag, before.follows) == (0, 0, None, False)
    served.remote(isolation_level=None).execute("INSERT INTO t VALUES(zeroblob(100000))")
    done = con.sync()
    con.sync()
    after = con.stats()
    assert after.position == after.primary_position == done.position
    assert (after.answers, after.page_sets, after.transactions) == (2, 1, 1)
    assert behind(after) == (0, 0, 0)
    assert after.frames_behind == 0
    assert after.pages == done.pages
    assert after.page_bytes == done.pages * 4096
    assert after.wire_bytes == done.bytes
    assert after.sync.count == sum(count for _, count in after.sync.histogram) == 2
    assert 0 < after.sync.p50 <= after.sync.p99 <= after.sync.longest
    assert after.visible.count == 0
    assert 0 <= after.lag < 20
    assert after.last_error is None


def test_writes_and_live_changes_are_counted(served: Served) -> None:
    con = served.replica(sync_interval="live", isolation_level=None)
    eventually(lambda: con.stats().follows)
    con.execute("INSERT INTO t VALUES(1)")
    served.remote(isolation_level=None).execute("INSERT INTO t VALUES(1)")
    eventually(lambda: con.stats().visible.count >= 1)
    found = con.stats()
    assert found.page_sets >= 2
    assert 0 < found.visible.p99 < 20


def test_failures_are_in_the_numbers_here_and_elsewhere(tmp_path: Path) -> None:
    there = stack.Primary(tmp_path / "primary.db")
    con = nearlite.connect(tmp_path / "r.db", sync_url=there.url, sync_interval="live")
    eventually(lambda: con.stats().follows)
    there.kill()
    eventually(lambda: con.stats().last_error)
    assert "could not be reached" in con.stats().last_error
    eventually(lambda: "could not be reached" in (status(tmp_path / "r.db")["last_error"] or ""))
    there.start()
    eventually(lambda: con.stats().last_error is None)
    eventually(lambda: status(tmp_path / "r.db")["last_error"] is None)
    con.close()
    there.kill()


def behind(found: nearlite.Stats) -> tuple[int | None, int | None, float | None]:
    return found.transactions_behind, found.bytes_behind, found.seconds_behind


def test_a_replica_that_asks_hears_how_far_it_is_behind(served: Served) -> None:
    con, writer = served.replica(), served.remote(isolation_level=None)
    assert behind(con.stats(ask=True)) == (0, 0, 0)
    for _ in range(5):
        writer.execute("INSERT INTO t VALUES(1)")
    assert behind(con.stats()) == (0, 0, 0)  # nobody was asked
    found = con.stats(ask=True)
    assert found.transactions_behind == 5
    assert found.bytes_behind == 4096  # the page of the table, once
    assert 0 <= found.seconds_behind < 60
    again = con.stats()
    assert behind(again)[:2] == (5, 4096)
    assert again.seconds_behind >= found.seconds_behind
    assert con.sync().position == found.primary_position
    assert behind(con.stats()) == (0, 0, 0)
    assert con.stats().transactions == 5


def test_a_live_replica_knows_what_it_has_received_and_not_applied(served: Served) -> None:
    con = served.replica(sync_interval="live")
    eventually(lambda: served.app._feed.polls.waiting == 1)
    with con._replica._applying:  # another thread applies, and takes its time
        served.remote(isolation_level=None).execute("INSERT INTO t VALUES(zeroblob(20000))")
        eventually(lambda: con.stats().transactions_behind == 1)
        found = con.stats()
        assert found.bytes_behind >= 5 * 4096
        assert 0 <= found.seconds_behind < 60
    eventually(lambda: behind(con.stats()) == (0, 0, 0))
    assert con.stats().transactions == 1


def test_transactions_are_counted_across_generations(tmp_path: Path) -> None:
    db = Primary.open(tmp_path / "data.db", durability="normal", roll_bytes=1 << 30)
    with db, closing(db.connect()) as con:
        con.exec("CREATE TABLE t(a)")
        start = db.after_commit()
        assert db.ahead_of(start)[1] == Behind(0, 0)
        expected, marks = 0, [(start, 0)]
        for _ in range(4):
            for _ in range(7):
                con.exec("INSERT INTO t VALUES(1)")
                expected += 1
                marks.append((db.after_commit(), expected))
            assert db.roll()
        assert db.ahead_of(db.state().position)[1] == Behind(0, 0)
        for mark, there in marks:
            state, found = db.ahead_of(mark)
            assert state.position == db.state().position
            transactions = expected - there
            assert found == Behind(transactions, 4096 if transactions else 0)
            answer = db.changes(mark)
            assert answer.transactions == transactions
            answer.close()
        here = marks[0][0]
        unknown = [
            nearlite.Position(here.lineage ^ 1, here.generation, here.frame),
            nearlite.Position(here.lineage, here.generation + 99, 1),
            nearlite.Position(here.lineage, here.generation, 10**6),
        ]
        assert [db.ahead_of(position)[1] for position in unknown] == [None] * 3


def test_what_other_programs_did_meanwhile_counts_as_one_transaction(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    with Primary.open(path) as db, closing(db.connect()) as con:
        con.exec("CREATE TABLE t(a)")
        start = db.after_commit()
    with closing(reader(path)) as other:
        for _ in range(3):
            other.execute("INSERT INTO t VALUES(1)")
            other.commit()
    with Primary.open(path) as db:
        # Theirs, and the primary's own, which moves the schema cookie.
        assert db.ahead_of(start)[1].transactions == 2


def test_the_age_of_the_newest_commit_outlives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    with Primary.open(path) as db, closing(db.connect()) as con:
        con.exec("CREATE TABLE t(a)")
        db.after_commit()
    an_hour_ago = time.time() - 3600
    for file in tmp_path.glob("data.db*"):
        if file.is_file():
            os.utime(file, (an_hour_ago, an_hour_ago))
    with Primary.open(path) as db:
        assert 3500 < time.time() - db.state().commit_ms / 1000 < 3700


def test_the_primary_is_believed_about_time_and_not_this_machine() -> None:
    """Its clock is two hours ahead; an answer that a cache kept for a minute changes nothing."""
    clock = Clock()
    assert 9 <= clock.seconds_since(int((time.time() - 10) * 1000)) < 30
    there = int((time.time() + 7200) * 1000)
    clock.told(there, time.monotonic())
    clock.told(there - 60_000, time.monotonic())
    assert 10 <= clock.seconds_since(there - 10_000) < 30
    assert clock.seconds_since(there + 10**6) == 0


def test_headers_that_are_no_numbers_tell_nothing(served: Served) -> None:
    con = served.replica()
    replica = con._replica
    for text in ("", "-1", "1e3", "٣", "9" * 16):
        replica.ahead.clock(Headers({"nearlite-clock": text}), time.monotonic())
    con.sync()
    assert behind(con.stats()) == (0, 0, 0)
    assert len(replica.ahead._clock._differences) == 1  # that of the sync


@dataclass
class Headers:
    of: dict[str, str]

    def header(self, name: str) -> str:
        return self.of.get(name, "")


def test_percentiles_are_right_to_five_per_cent() -> None:
    rng = random.Random(1)
    values = sorted(rng.lognormvariate(-6, 2) for _ in range(5000))
    histogram = Histogram()
    assert histogram.summary().p50 == 0
    for value in values:
        histogram.note(value)
    found = histogram.summary()
    assert found.count == 5000
    assert found.longest == values[-1]
    assert found.p50 == pytest.approx(values[2499], rel=0.06)
    assert found.p99 == pytest.approx(values[4949], rel=0.06)
    histogram.note(0.0)
    histogram.note(1e9)
    assert histogram.summary().longest == 1e9


def test_the_histogram_has_every_latency_in_its_step() -> None:
    histogram = Histogram()
    assert histogram.summary().histogram == ()
    for seconds in (0.001, 0.0011, 0.002, 0.009):
        histogram.note(seconds)
    steps = ((0.001, 1), (0.002, 2), (0.005, 0), (0.01, 1))
    assert histogram.summary().histogram == steps
    histogram.note(3600)
    assert histogram.summary().histogram[-2:] == ((50.0, 0), (None, 1))
    assert watching.histogram(steps) == "▄ 1 ms: 1  █ 2 ms: 2    5 ms: 0  ▄ 10 ms: 1"
    assert watching.histogram([(None, 12345)]) == "█ longer: 12,345"
    assert watching.histogram(()) == "none"


def test_frames_between_positions() -> None:
    at = nearlite.Position(1, 2, 10)
    assert frames_between(at, at) == 0
    assert frames_between(at, nearlite.Position(1, 2, 14)) == 4
    assert frames_between(at, nearlite.Position(1, 1, 99)) == 0
    assert frames_between(at, nearlite.Position(1, 3, 1)) is None
    assert frames_between(at, nearlite.Position(2, 2, 14)) is None
    assert frames_between(at, None) is None


# ---------------------------------------------------------------- the command


def test_status_of_a_file_nobody_syncs(served: Served, tmp_path: Path) -> None:
    served.replica().close()
    found = status(tmp_path / "replica.db")
    assert found["lag"] is None
    assert "primary_position" not in found


def test_status_against_a_primary_says_how_far_it_is_ahead(served: Served, tmp_path: Path) -> None:
    served.replica().close()
    found = status(tmp_path / "replica.db", "--against", served.url)
    assert [found[f"{unit}_behind"] for unit in ("frames", *LAG)] == [0, 0, 0, 0]
    writer = served.remote(isolation_level=None)
    writer.execute("INSERT INTO t VALUES(zeroblob(40000))")
    writer.execute("DELETE FROM t")
    writer.execute("INSERT INTO t VALUES(zeroblob(40000))")
    found = status(tmp_path / "replica.db", "--against", served.url)
    assert found["frames_behind"] >= 20
    assert found["transactions_behind"] == 3
    assert 10 * 4096 <= found["bytes_behind"] < 20 * 4096
    assert 0 <= found["seconds_behind"] < 60
    assert found["position"] < found["primary_position"]
    text = subprocess.run(
        [*STATUS, tmp_path / "replica.db", "--against", served.url],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert re.search(r"transactions_behind: +3\n", text)
    with nearlite.connect(tmp_path / "other.db", sync_url=served.url):
        pass
    (tmp_path / "elsewhere").mkdir()
    with primary(tmp_path / "elsewhere") as stranger:
        found = status(tmp_path / "replica.db", "--against", stranger.url)
    assert [found[f"{unit}_behind"] for unit in ("frames", *LAG)] == [None] * 4


def test_status_of_a_live_replica_has_what_its_process_counted(
    served: Served, tmp_path: Path
) -> None:
    con = served.replica(sync_interval="live")
    eventually(lambda: status(tmp_path / "replica.db").get("answers", 0) >= 1)
    found = status(tmp_path / "replica.db")
    assert found["primary_position"] == str(con.position)
    assert found["pages"] == 2  # of the file, not those received
    assert {"pages_received", "wire_bytes", "sync_p99", "last_error"} <= found.keys()
    assert [found[f"{unit}_behind"] for unit in LAG] == [0, 0, 0]
    text = subprocess.run(
        [*STATUS, tmp_path / "replica.db"], capture_output=True, text=True, check=True
    ).stdout
    assert "lag: " in text
    assert "last_error:" in text


def test_the_histogram_of_syncs_is_shown(served: Served, tmp_path: Path) -> None:
    con = served.replica(sync_interval=0.05)
    eventually(lambda: status(tmp_path / "replica.db").get("sync_count", 0) >= 1)
    found = status(tmp_path / "replica.db")
    assert sum(count for _, count in found["sync_histogram"]) == found["sync_count"]
    assert found["sync_longest"] > 0
    text = subprocess.run(
        [*STATUS, tmp_path / "replica.db"], capture_output=True, text=True, check=True
    ).stdout
    (line,) = (line for line in text.splitlines() if line.startswith("sync_histogram:"))
    assert re.search(r"█ [\d.]+ m?s: \d+", line)
    con.close()


def test_numbers_that_were_left_tell_nothing_of_a_file_that_went_on(
    served: Served, tmp_path: Path
) -> None:
    con = served.replica()
    served.remote(isolation_level=None).execute("INSERT INTO t VALUES(1)")
    con.stats(ask=True)
    con._replica.publish()
    found = status(tmp_path / "replica.db")
    assert (found["transactions_behind"], found["bytes_behind"]) == (1, 4096)
    assert 0 <= found["seconds_behind"] < 60
    con.sync()
    found = status(tmp_path / "replica.db")
    assert [found[f"{unit}_behind"] for unit in LAG] == [0, 0, 0]


def test_a_status_that_is_asked_about_no_position_is_refused(served: Served) -> None:
    with pytest.raises(nearlite.SyncError, match="BAD_REQUEST"):
        ask_status(served.replica()._replica.transport, Deadline(20), "nowhere")


def test_watch_looks_again_and_again_until_ctrl_c(served: Served, tmp_path: Path) -> None:
    con = served.replica(isolation_level=None)
    command = [*STATUS, str(tmp_path / "replica.db"), "--watch", "--every", "0.05", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        con.execute("INSERT INTO t VALUES(1)")
        there = str(con.position)
        while json.loads(process.stdout.readline())["position"] == first["position"]:
            pass
        assert json.loads(process.stdout.readline())["position"] == there
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_watch_in_a_terminal_draws_in_place(served: Served, tmp_path: Path) -> None:
    con = served.replica(isolation_level=None)
    ours, theirs = pty.openpty()
    command = [*STATUS, str(tmp_path / "replica.db"), "--watch", "--every", "0.05"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = read_until(ours, str(con.position))
        con.execute("INSERT INTO t VALUES(1)")
        seen += read_until(ours, str(con.position))
        assert "\x1b[" in seen  # it moves the cursor
        process.send_signal(signal.SIGINT)
        read_to_end(ours)
        assert process.wait(60) == 130
    os.close(ours)


def read_until(descriptor: int, text: str) -> str:
    seen = ""
    while text not in seen:
        seen += os.read(descriptor, 65536).decode()
    return seen


def read_to_end(descriptor: int) -> None:
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError:  # the other side has closed
        return
