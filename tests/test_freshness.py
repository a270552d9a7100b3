"""How old a read may be: position tokens, at_least= and freshness=."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import stack
from primaries import Served, primary
from test_background import count, eventually
from test_live import FOLLOWER

import nearlite
from nearlite import Position

EITHER = True


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with primary(tmp_path) as made:
        made.remote(isolation_level=None).execute("CREATE TABLE t(a)")
        yield made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as made:
        yield made


def written(served: Served, value: int = 1) -> Position:
    """A row that no replica has yet; the position of its commit."""
    remote = served.remote(isolation_level=None)
    remote.execute("INSERT INTO t VALUES(?)", (value,))
    token = remote.last_write_position
    assert token is not None
    return token


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("read_your_writes", [True, False])
def test_a_write_returns_its_position(served: Served, read_your_writes: bool) -> None:
    con = served.replica(isolation_level=None, read_your_writes=read_your_writes)
    other = served.replica("other.db")
    before = other.position
    con.execute("INSERT INTO t VALUES(1)")
    token = con.last_write_position
    assert before < token
    other.wait_for(token)
    assert count(other) == 1
    assert other.position == token


def test_a_transaction_has_its_position_when_it_is_committed(served: Served) -> None:
    con = served.replica()
    con.execute("INSERT INTO t VALUES(1)")
    assert con.last_write_position is None
    con.commit()
    assert con.last_write_position == con.position
    con.executemany("INSERT INTO t VALUES(?)", [(2,), (3,)])
    con.commit()
    con.executescript("INSERT INTO t VALUES(4)")
    other = served.replica("other.db")
    other.wait_for(con.last_write_position)
    assert count(other) == 4


def test_reads_of_the_local_file_leave_the_token(served: Served) -> None:
    con = served.replica(isolation_level=None)
    con.execute("INSERT INTO t VALUES(1)")
    token = con.last_write_position
    written(served)
    con.sync()
    count(con)
    assert con.last_write_position == token


def test_a_token_travels_as_text(served: Served) -> None:
    token = written(served)
    cookie = str(token)
    assert Position.parse(cookie) == token
    assert cookie.isascii()
    assert not set(cookie) & set(' ",;\\=')  # a cookie's value as it is (RFC 6265)
    con = served.replica()
    assert con.execute("SELECT count(*) FROM t", at_least=cookie).fetchone() == (1,)
    for wrong in ("yesterday", "", 5, None):
        with pytest.raises(nearlite.ProgrammingError, match="position"):
            con.wait_for(wrong)


# ---------------------------------------------------------------- waiting


def test_a_position_that_is_here_costs_no_request(served: Served) -> None:
    con = served.replica(isolation_level=None)
    con.execute("INSERT INTO t VALUES(1)")
    served.seen.clear()
    con.wait_for(con.last_write_position)
    con.wait_for(con.position, timeout=0)
    assert served.seen == []


def test_a_position_that_is_not_here_costs_one(served: Served) -> None:
    con = served.replica()
    token = written(served)
    served.seen.clear()
    con.wait_for(token)
    assert len(served.seen) == 1
    assert count(con) == 1


def test_a_live_thread_brings_it_without_a_further_request(served: Served) -> None:
    con = served.replica(sync_interval="live")
    eventually(lambda: con._replica.background.follows)
    served.seen.clear()
    for n in range(1, 4):
        con.wait_for(written(served))
        assert count(con) == n
    asked = [path for path in served.seen if "/changes/" in path]
    assert len(asked) <= 3 + 3  # on a machine that stands still it is asked for as well


def test_another_process_brings_it(served: Served, tmp_path: Path) -> None:
    con = served.replica()
    process = subprocess.Popen(
        [sys.executable, "-c", FOLLOWER, tmp_path / "replica.db", served.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "following\n"
    try:
        for n in range(1, 4):
            con.wait_for(written(served))
            assert count(con) == n
    finally:
        process.kill()
        process.communicate()


def test_what_never_comes_is_a_timeout(served: Served) -> None:
    con = served.replica()
    here = con.position
    future = Position(here.lineage, here.generation, here.frame + 1000)
    began = time.monotonic()
    with pytest.raises(nearlite.WaitTimeoutError, match=r"did not arrive within 0\.3") as caught:
        con.wait_for(future, timeout=0.3)
    assert 0.25 < time.monotonic() - began < 10
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, nearlite.StaleReadError)
    assert str(here) in caught.value.state
    with pytest.raises(nearlite.WaitTimeoutError):
        con.wait_for(future, timeout=0)


def test_what_comes_later_ends_the_wait(served: Served, pool: ThreadPoolExecutor) -> None:
    """As behind a primary that is a replica itself: the token is known before it has the data."""
    con = served.replica(check_same_thread=False)
    here = written(served)
    con.sync()
    future = Position(here.lineage, here.generation, here.frame + 1)
    waiting = pool.submit(con.wait_for, future, 20)
    eventually(lambda: sum("/changes/" in path for path in served.seen) >= 2)
    assert not waiting.done()
    written(served)
    waiting.result(20)
    assert count(con) == 2


def test_without_a_primary_the_wait_lasts_its_time_and_says_why(tmp_path: Path) -> None:
    with primary(tmp_path) as served:
        served.remote(isolation_level=None).execute("CREATE TABLE t(a)")
        con = nearlite.connect(tmp_path / "replica.db", sync_url=served.url)
        here = con.position
    with closing(con), pytest.raises(nearlite.WaitTimeoutError) as caught:
        con.wait_for(Position(here.lineage, here.generation + 1, 0), timeout=0.3)
    assert isinstance(caught.value.__cause__, nearlite.OfflineError)


def test_while_the_primary_is_away_another_one_may_bring_it(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    there = stack.Primary(tmp_path / "primary.db")
    con = nearlite.connect(tmp_path / "r.db", sync_url=there.url, check_same_thread=False)
    with closing(con):
        with closing(nearlite.connect(there.url, isolation_level=None)) as remote:
            remote.execute("CREATE TABLE t(a)")
            token = remote.last_write_position
        there.kill()
        waiting = pool.submit(con.wait_for, token, 30)
        eventually(lambda: con._replica.last_error is not None)
        there.start()
        waiting.result(30)
        assert count(con) == 0
    there.kill()


def test_a_position_of_another_database_is_refused_at_once(served: Served, tmp_path: Path) -> None:
    con = served.replica()
    other = Position(con.position.lineage ^ 1, 1, 1)
    served.seen.clear()
    with pytest.raises(nearlite.LineageError, match="another database"):
        con.wait_for(other)
    with pytest.raises(nearlite.LineageError):
        con.execute("SELECT 1", at_least=other)
    assert served.seen == []


def test_a_transaction_that_reads_something_older_is_told_so(served: Served) -> None:
    con = served.replica(isolation_level=None)
    con.execute("BEGIN")
    assert count(con) == 0
    token = written(served)
    with pytest.raises(nearlite.StaleReadError, match="open transaction"):
        con.execute("SELECT count(*) FROM t", at_least=token)
    con.execute("COMMIT")
    assert con.execute("SELECT count(*) FROM t", at_least=token).fetchone() == (1,)
    con.execute("BEGIN")
    assert con.execute("SELECT count(*) FROM t", at_least=token).fetchone() == (1,)


def test_rows_that_are_still_to_be_fetched_do_not_hold_a_read_back(served: Served) -> None:
    con = served.replica(isolation_level=None)
    con.executemany("INSERT INTO t VALUES(?)", [(n,) for n in range(2000)])
    half = con.execute("SELECT a FROM t")
    assert half.fetchone() == (0,)
    token = written(served)
    assert con.execute("SELECT count(*) FROM t", at_least=token).fetchone() == (2001,)
    assert len(half.fetchall()) == 1999


# ---------------------------------------------------------------- freshness


def test_local_reads_ask_nobody(served: Served) -> None:
    con = served.replica()
    assert con.freshness == "local"
    written(served)
    served.seen.clear()
    assert count(con) == 0
    assert served.seen == []


def test_primary_sees_every_write_that_was_acknowledged_before(served: Served) -> None:
    con = served.replica(freshness="primary")
    for n in range(1, 4):
        written(served)
        assert count(con) == n
    served.seen.clear()
    con.execute("SELECT 1").fetchall()  # reads no table
    assert served.seen == []
    cursor = con.cursor()
    written(served)
    assert cursor.execute("SELECT count(*) FROM t WHERE a = ?", (1,)).fetchone() == (4,)
    con.freshness = "local"
    written(served)
    assert count(con) == 4
    con.freshness = "primary"
    assert count(con) == 5


def test_a_script_that_only_reads_is_fresh(served: Served) -> None:
    con = served.replica(freshness="primary")
    token = written(served)
    con.executescript("SELECT * FROM t; SELECT count(*) FROM t")
    assert con.position == token


def test_in_a_transaction_the_first_read_decides(served: Served) -> None:
    con = served.replica(freshness="primary", isolation_level=None)
    con.execute("BEGIN")
    written(served)
    assert count(con) == 1
    written(served)
    assert count(con) == 1
    con.execute("COMMIT")
    assert count(con) == 2


def test_a_number_bounds_the_age(served: Served) -> None:
    con = served.replica(freshness=3600)
    written(served)
    assert count(con) == 1  # nothing was known of its age
    written(served)
    served.seen.clear()
    assert count(con) == 1
    assert served.seen == []
    con.freshness = 0
    assert count(con) == 2


def test_what_cannot_be_met_is_said(tmp_path: Path) -> None:
    with primary(tmp_path) as served:
        served.remote(isolation_level=None).execute("CREATE TABLE t(a)")
        con = nearlite.connect(tmp_path / "replica.db", sync_url=served.url, freshness=3600)
        assert count(con) == 0
    with closing(con):
        assert count(con) == 0  # still young enough
        for freshness, wanted in [("primary", "on the primary now"), (0.0, "older than 0 seconds")]:
            con.freshness = freshness
            with pytest.raises(nearlite.StaleReadError, match=wanted) as caught:
                count(con)
            assert isinstance(caught.value.__cause__, nearlite.OfflineError)
            assert "nothing was read" in caught.value.state
        con.freshness = "local"
        assert count(con) == 0


@pytest.mark.parametrize("wrong", ["fresh", -1, True, None, float("inf"), float("nan")])
def test_other_values_are_refused(served: Served, wrong: Any, tmp_path: Path) -> None:
    con = served.replica()
    with pytest.raises(nearlite.ProgrammingError, match="freshness"):
        con.freshness = wrong
    assert con.freshness == "local"
    with pytest.raises(nearlite.ProgrammingError, match="freshness"):
        nearlite.connect(tmp_path / "new.db", sync_url=served.url, freshness=wrong)
    assert not (tmp_path / "new.db").exists()


def test_a_write_transaction_reads_on_the_primary_whatever_the_freshness(served: Served) -> None:
    con = served.replica(freshness="primary")
    token = written(served)
    con.execute("INSERT INTO t VALUES(2)")
    served.seen.clear()
    assert con.execute("SELECT count(*) FROM t", at_least=token).fetchone() == (2,)
    assert [path for path in served.seen if "/changes/" in path] == []
    con.rollback()
    assert count(con) == 1


def test_many_threads_wait_for_one_position(served: Served, pool: ThreadPoolExecutor) -> None:
    con = served.replica(sync_interval="live", check_same_thread=False)
    eventually(lambda: con._replica.background.follows)
    ready = threading.Barrier(5)

    def wait(token: list[Position]) -> None:
        ready.wait(20)
        ready.wait(20)
        con._replica.wait_for(token[0], 20)

    token: list[Position] = []
    waiting = [pool.submit(wait, token) for _ in range(4)]
    ready.wait(20)
    token.append(written(served))
    ready.wait(20)
    for each in waiting:
        each.result(20)
    assert count(con) == 1


def test_a_thread_that_applies_for_a_while_is_no_reason_to_give_up(
    served: Served, pool: ThreadPoolExecutor
) -> None:
    con = served.replica(sync_interval="live", check_same_thread=False)
    eventually(lambda: con._replica.background.follows)
    with con._replica._applying:
        waiting = pool.submit(con.wait_for, written(served), 20)
        with pytest.raises(TimeoutError):
            waiting.result(0.3)  # longer than it relies on the live thread alone
    waiting.result(20)
    assert count(con) == 1
