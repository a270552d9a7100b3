"""A fault at any byte of any exchange: a clear error or none, a committed state, and the next sync mends all.

Every exchange of a replica with its primary goes through a proxy that spoils it (tests/spoiling.py): at
the beginning, in the head, at the borders of what the body is made of, at its last byte; in either direction.
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import spoiling
from primaries import Served, primary
from spoiling import CLOSE, HALF, RESET, Exchange, Fault, Hold, Proxy

import nearlite
from nearlite import comparing
from nearlite.errors import OfflineError, SyncError
from nearlite.limits import Limits
from nearlite.position import Position
from nearlite.replica import Replica

# Seconds of patience with what is spoiled: an answer that says it is longer than it is keeps a client waiting
# for all of them. What must succeed has others.
SHORT = 0.5
LONG = 30.0
FILL = (
    "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) "
    "SELECT NULL, 'row ' || i, zeroblob(100) FROM n"
)


class Scene:
    """A primary, a proxy before it, a replica behind the proxy, and a writer who does not need it."""

    def __init__(self, folder: Path, stack: ExitStack, served: Served) -> None:
        self.folder = folder
        self.served = served
        self.stack = stack
        self.proxy = stack.enter_context(Proxy(int(served.url.rpartition(":")[2])))
        self.writer: Any = served.remote(isolation_level=None)
        self.writer.execute("CREATE TABLE t(i INTEGER PRIMARY KEY, mark TEXT, b)")
        self.writer.execute(FILL)
        self.marks = map(str, itertools.count(1))
        self.mark = ""
        self.files = itertools.count(1)
        self.path = folder / "replica.db"
        self.connection = self.connect(str(self.path), sync_url=self.proxy.url)
        self.remote = self.connect(self.proxy.url)
        self.replica: Replica = self.connection._replica

    def connect(self, *where: str, **options: Any) -> Any:
        made = nearlite.connect(*where, isolation_level=None, network_timeout=SHORT, **options)
        self.stack.callback(made.close)
        return made

    def insert(self) -> str:
        self.mark = next(self.marks)
        return f"INSERT INTO t VALUES(NULL, '{self.mark}', zeroblob(50))"

    def times(self) -> int:
        """How often the last write has been carried out."""
        rows = self.writer.execute("SELECT count(*) FROM t WHERE mark = ?", (self.mark,))
        (found,) = rows.fetchone()
        return int(found)

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.served.url}/nl/v1/status") as answer:
            return dict(json.load(answer))

    def check(self) -> None:
        """The replica is at a commit, and a sync makes it what the primary is."""
        self.proxy.sound()
        state, found = self.replica._applier.full_hash()
        assert state.hash == found
        with closing(sqlite3.connect(self.path)) as stock:
            assert stock.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        self.replica.sync(network_timeout=LONG)
        self.check_equal()

    def check_equal(self) -> None:
        here = self.status()
        state, found = self.replica._applier.full_hash()
        if str(state.position) != here["position"]:
            # The log was rolled behind the last commit, once: the next generation, with the same pages.
            rolled = Position.parse(here["position"])
            assert (rolled.generation, rolled.frame) == (state.position.generation + 1, 0)
            assert f"{state.hash:016x}" == here["hash"]
            self.replica.sync(network_timeout=LONG)
            here = self.status()
            state, found = self.replica._applier.full_hash()
        assert str(state.position) == here["position"]
        assert f"{state.hash:016x}" == f"{found:016x}" == here["hash"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    # Transactions whose clients have lost them hold others up for as long.
    with primary(folder, limits=Limits(contended_seconds=0.05)) as served, ExitStack() as stack:
        yield Scene(folder, stack, served)


# ---------------------------------------------------------------- the exchanges


@dataclass(frozen=True)
class Way:
    """One kind of exchange: what leads up to it, and what the client does."""

    path: str
    act: Callable[[Scene], object]
    before: Callable[[Scene], object] = lambda scene: scene.writer.execute(scene.insert())
    writes: bool = False


def changes(scene: Scene) -> None:
    scene.replica._compact = False
    scene.replica.sync()


def compact(scene: Scene) -> None:
    scene.replica._compact = True
    scene.replica.sync()


def write(scene: Scene) -> None:
    scene.connection.execute(scene.insert())


def write_nothing(scene: Scene) -> None:
    """An answer without a page set."""
    assert scene.connection.execute("UPDATE t SET b = 1 WHERE 0").rowcount == 0


def write_there(scene: Scene) -> None:
    scene.remote.execute(scene.insert())


def grow(scene: Scene) -> None:
    """More than a mebibyte of pages, which are compressed while they are sent."""
    scene.writer.execute("INSERT INTO t VALUES(NULL, 'large', randomblob(1500000))")
    scene.writer.execute("DELETE FROM t WHERE mark = 'large'")


def compressed(scene: Scene) -> None:
    scene.replica.transport.loopback = False
    scene.replica._compact = False
    scene.replica.sync()


def bootstrap(scene: Scene) -> None:
    path = scene.folder / f"new{next(scene.files)}.db"
    try:
        with closing(Replica(str(path), scene.proxy.url, timeout=SHORT)) as replica:
            replica.open()
    except SyncError:
        assert not path.exists()
        with closing(Replica(str(path), scene.served.url)) as replica:
            replica.open()  # goes on with what there is
            state, found = replica._applier.full_hash()
            assert state.hash == found
        raise


def repair(scene: Scene) -> None:
    scene.replica.sync(repair=True)


def differences(scene: Scene) -> None:
    """A repair whose first question is about ranges of pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "_AT_ONCE", 1)
        scene.replica.sync(repair=True)


WAYS = {
    "changes": Way("nl/v1/changes", changes),
    "compact": Way("nl/v1/changes", compact),
    "chunked": Way("nl/v1/changes", compressed, grow),
    "nothing": Way("nl/v1/changes", changes, lambda _: None),
    "sql": Way("nl/v1/sql", write, lambda _: None, writes=True),
    "no set": Way("nl/v1/sql", write_nothing, lambda _: None),
    "pipeline": Way("v3/pipeline", write_there, lambda _: None, writes=True),
    "bootstrap": Way("nl/v1/snapshot", bootstrap),
    "repair": Way("nl/v1/repair", repair),
    "differences": Way("nl/v1/repair", differences),
}
way_by_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def recorded(scene: Scene, way: Way) -> Exchange:
    """The exchange as it is when nothing is spoiled."""
    way.before(scene)
    first = len(scene.proxy.exchanges)
    way.act(scene)
    found = [e for e in scene.proxy.exchanges[first:] if e.path.startswith(f"/{way.path}")]
    assert len(found) >= 1
    return found[0]


def borders(message: bytes) -> list[int]:
    """Offsets at which a fault may find another state of who reads."""
    head, body = spoiling.split(message)
    of_head = {0, 1, 9, 12, head.find(b"\r\n") + 1, len(head) // 2, len(head) - 2, len(head) - 1}
    of_body = {0, 1, 2, 4, 5, 20, 33, 95, 96, 100, 127, 128, 140, 193, len(body) // 2}
    of_body |= {len(body) - 33, len(body) - 32, len(body) - 5, len(body) - 1}
    found = of_head | {len(head) + at for at in of_body if at >= 0}
    return sorted(at for at in found if at < len(message))


def spoilt(scene: Scene, way: Way, fault: Fault) -> SyncError | None:
    """Do it with that fault; what came of it is checked."""
    way.before(scene)
    failure = None
    with scene.proxy.spoiling(fault, path=way.path):
        try:
            way.act(scene)
        except SyncError as error:
            failure = error
    assert failure is None or not failure.data_at_risk
    if way.writes:
        check_write(scene, failure)
    scene.check()
    return failure


def check_write(scene: Scene, failure: SyncError | None) -> None:
    """It was carried out once, or not at all; and that is what was said."""
    times = scene.times()
    if failure is None or "was carried out" in failure.state.replace("nothing was", ""):
        assert times == 1
    elif "may have been carried out" in failure.state:
        assert times <= 1
    else:
        assert "nothing was" in failure.state or "not committed" in failure.state, failure
        assert times == 0


# ---------------------------------------------------------------- faults at every border


# Each border has one of the faults, and in a soak each of them.
TURNS = range(4 if os.environ.get("NL_SOAK") else 1)


@way_by_way
@pytest.mark.parametrize("turn", TURNS)
def test_an_answer_that_breaks_off(scene: Scene, way: Way, turn: int) -> None:
    answer = recorded(scene, way).answers[0]
    for number, at in enumerate(borders(answer), turn):
        act = [CLOSE, RESET, HALF][number % 3]
        first = len(scene.proxy.exchanges)
        if spoilt(scene, way, Fault(down=spoiling.stop(at, act))) is None:
            met = next(
                e for e in scene.proxy.exchanges[first:] if e.path.startswith(f"/{way.path}")
            )
            # Where no harm can come of it a connection that was kept alive is tried once more.
            again = not way.writes and at < answer.find(spoiling.HEAD_END) + 4
            assert again or at >= len(met.answers[0])


@way_by_way
@pytest.mark.parametrize("turn", TURNS)
def test_a_request_that_breaks_off(scene: Scene, way: Way, turn: int) -> None:
    request = recorded(scene, way).request
    for number, at in enumerate(borders(request), turn):
        act = [CLOSE, RESET][number % 2]
        failure = spoilt(scene, way, Fault(up=spoiling.stop(at, act)))
        assert isinstance(failure, OfflineError | None)  # None: what can be was sent again


GARBLED = [name for name, way in WAYS.items() if way.act not in (write, write_there, write_nothing)]


@pytest.mark.parametrize("way", [WAYS[name] for name in GARBLED], ids=GARBLED)
@pytest.mark.parametrize("turn", TURNS)
def test_an_answer_that_is_garbled(scene: Scene, way: Way, turn: int) -> None:
    answer = recorded(scene, way).answers[0]
    for number, at in enumerate(borders(answer), turn):
        spoiler = [
            spoiling.flip(at, 1 << number // 4 % 8),
            spoiling.swap(at, 1 + number % 7),
            spoiling.drop(at, 1 + number % 7, CLOSE),
            spoiling.repeat(at, 1 + number % 7),
        ][number % 4]
        spoilt(scene, way, Fault(down=spoiler))


@pytest.mark.parametrize("way", [WAYS[name] for name in GARBLED], ids=GARBLED)
def test_a_request_that_is_garbled(scene: Scene, way: Way) -> None:
    request = recorded(scene, way).request
    for number, at in enumerate(borders(request)):
        if at < request.find(b"HTTP/1.1") + 8 or at > request.find(b"\r\n\r\n"):
            spoilt(scene, way, Fault(up=spoiling.flip(at, 1 << number % 8)))


@way_by_way
def test_chunks_whose_lengths_lie(scene: Scene, way: Way) -> None:
    answer = recorded(scene, way).answers[0]
    for least, lie in [(1, 1), (7, -1), (7, 1), (96, 32), (100, -50), (500, 100_000)]:
        size = max(least, len(answer) // 1000)
        spoilt(scene, way, Fault(down=spoiling.chunked(size, lie=lie, then=CLOSE)))
    for end in (b"", b"0\r\n", b"zz\r\n\r\n", b"0\r\nX: y"):
        spoilt(scene, way, Fault(down=spoiling.chunked(50, end=end, then=CLOSE)))


# ---------------------------------------------------------------- what stands still


@way_by_way
def test_an_answer_that_stands_still(scene: Scene, way: Way) -> None:
    """The call has ended before anything is let go: by its deadline."""
    head, body = spoiling.split(recorded(scene, way).answers[0])
    # One body can be a twentieth of another: a row's insert splits a page now and then.
    for at in (0, len(head) + 8 if body else len(head) // 2):
        hold = Hold()
        way.before(scene)
        with scene.proxy.spoiling(Fault(down=spoiling.stop(at, hold)), path=way.path):
            with pytest.raises(OfflineError, match=r"deadline|complete answer") as caught:
                way.act(scene)
            assert hold.held.is_set()
        if way.writes:
            check_write(scene, caught.value)
        scene.check()


@way_by_way
def test_an_answer_shorter_than_it_says(scene: Scene, way: Way) -> None:
    """The connection stays open, and nothing more comes."""
    recorded(scene, way)
    assert spoilt(scene, way, Fault(down=spoiling.drop(-9, 8))) is not None


# ---------------------------------------------------------------- what lies between, and does as it may


@way_by_way
def test_another_framing_of_an_answer_is_no_fault(scene: Scene, way: Way) -> None:
    size = len(recorded(scene, way).answers[0])
    for spoiler in (
        spoiling.chunked(max(1, size // 2000)),
        spoiling.chunked(max(97, size // 20)),
        spoiling.chunked(1 << 20),
        spoiling.until_closed,
    ):
        assert spoilt(scene, way, Fault(down=spoiler)) is None


@way_by_way
def test_a_request_that_is_delivered_twice(scene: Scene, way: Way) -> None:
    recorded(scene, way)
    for tells in (0, 1):
        spoilt(scene, way, Fault(deliveries=2, tells=tells))


@way_by_way
def test_an_answer_that_comes_twice(scene: Scene, way: Way) -> None:
    recorded(scene, way)
    assert spoilt(scene, way, Fault(down=spoiling.repeat(0, 1 << 30))) is None


@way_by_way
@pytest.mark.parametrize("code", [200, 204, 301, 401, 404, 408, 429, 500, 502, 503, 504])
def test_a_gateway_that_answers_instead(scene: Scene, way: Way, code: int) -> None:
    recorded(scene, way)
    for deliveries in (0, 1):
        if deliveries and code not in (200, 204, 500, 502, 503, 504):
            continue  # said by somebody who does not pass it on
        failure = spoilt(scene, way, spoiling.gateway(code, deliveries=deliveries))
        assert failure is not None


# ---------------------------------------------------------------- transactions


STEP = 1 if len(TURNS) > 1 else 4


def transact(scene: Scene) -> None:
    """Two exchanges: the first write takes BEGIN along, COMMIT is the second."""
    scene.connection.execute("BEGIN")
    try:
        scene.connection.execute(scene.insert())
        scene.connection.execute("COMMIT")
    finally:
        scene.connection.rollback()  # nothing, after a COMMIT


@pytest.mark.parametrize("exchange", [0, 1], ids=["first write", "commit"])
def test_a_transaction_is_carried_out_once_or_not_at_all(scene: Scene, exchange: int) -> None:
    before = len(scene.proxy.exchanges)
    transact(scene)
    first, second = scene.proxy.exchanges[before:]
    message = (first, second)[exchange]
    faults = [Fault(up=spoiling.stop(n, CLOSE)) for n in borders(message.request)[::STEP]]
    acts = [CLOSE, RESET, HALF]
    faults += [
        Fault(down=spoiling.stop(n, acts[i % 3]))
        for i, n in enumerate(borders(message.answers[0])[::STEP])
    ]
    faults += [Fault(deliveries=2, tells=tells) for tells in (0, 1)]
    faults += [spoiling.gateway(code, deliveries=n) for code in (200, 502, 504) for n in (0, 1)]
    for fault in faults:
        scene.writer.execute(
            "UPDATE t SET b = b WHERE 0"
        )  # when nobody holds the write lock any more
        failure = None
        with scene.proxy.spoiling(*[spoiling.SOUND] * exchange, fault, path="nl/v1/sql"):
            try:
                transact(scene)
            except SyncError as error:
                failure = error
        assert scene.connection.in_transaction is False
        check_write(scene, failure)
        if exchange == 0 and failure is not None:
            assert scene.times() == 0
            assert "do not repeat" not in failure.action
        scene.check()


# ---------------------------------------------------------------- the text of an answer


def test_an_answer_whose_json_is_garbled_is_one_kind_of_exception(scene: Scene) -> None:
    """Only TLS can tell that a digit is another one. What can be told is a clear error."""
    sql = "SELECT 1, 2.5, 'text', x'0102', NULL, t.* FROM t LIMIT 2"

    def ask(fault: Fault) -> bool:
        with scene.proxy.spoiling(fault):
            try:
                scene.remote.execute(sql).fetchall()
            except nearlite.Error as error:
                assert not isinstance(error, SyncError) or error.state
                return False
        return True

    assert ask(spoiling.SOUND)
    answer = scene.proxy.exchanges[-1].answers[0]
    body = answer.find(spoiling.HEAD_END) + 4
    told = [
        ask(Fault(down=spoiling.flip(at, mask)))
        for number, at in enumerate(range(body, len(answer)))
        for mask in ((1, 2, 4, 16, 32, 128) if len(TURNS) > 1 else (1 << number % 8,))
    ]
    assert not all(told)
    for at in range(body, len(answer), 5):
        ask(Fault(down=spoiling.drop(at, 2, CLOSE)))
        ask(Fault(down=spoiling.swap(at, 3)))
    scene.proxy.sound()
    assert scene.remote.execute("SELECT 1").fetchall() == [(1,)]
