"""Numbers for the user: stats() and `nearlite status`."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stack
from primaries import Served, primary
from test_background import eventually

import nearlite
from nearlite.tally import Histogram, frames_between

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
    assert (after.answers, after.page_sets, after.frames_behind) == (2, 1, 0)
    assert after.pages == done.pages
    assert after.page_bytes == done.pages * 4096
    assert after.wire_bytes == done.bytes
    assert after.sync.count == 2
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
    assert (found["frames_behind"], found["seconds_behind"]) == (0, 0)
    served.remote(isolation_level=None).execute("INSERT INTO t VALUES(zeroblob(40000))")
    found = status(tmp_path / "replica.db", "--against", served.url)
    assert found["frames_behind"] >= 10
    assert 0 <= found["seconds_behind"] < 60
    assert found["position"] < found["primary_position"]


def test_status_of_a_live_replica_has_what_its_process_counted(
    served: Served, tmp_path: Path
) -> None:
    con = served.replica(sync_interval="live")
    eventually(lambda: status(tmp_path / "replica.db").get("answers", 0) >= 1)
    found = status(tmp_path / "replica.db")
    assert found["primary_position"] == str(con.position)
    assert found["pages"] == 2  # of the file, not those received
    assert {"pages_received", "wire_bytes", "sync_p99", "last_error"} <= found.keys()
    text = subprocess.run(
        [*STATUS, tmp_path / "replica.db"], capture_output=True, text=True, check=True
    ).stdout
    assert "lag: " in text
    assert "last_error:" in text


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
