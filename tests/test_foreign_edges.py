"""An edge of a foreign upstream: positions, what hangs above, what is kept for libSQL's replicas, and its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from edges import Edge, Site, site
from foreigners import state_of
from serving import Client, execute, outcome, rows
from test_background import eventually
from test_foreign_upstreams import COUNT, FILL, Wrap
from test_pulled_through import begin, follow

from nearlite import errors, serve
from nearlite.access import Access
from nearlite.frame_cache import FRAME, FrameCache
from nearlite.position import Position


@pytest.fixture
def wrap() -> Iterator[Wrap]:
    """A server that names no lineage."""
    made = Wrap(named=False)
    yield made
    for goes_on in made.now.held.values():
        goes_on.set()


@pytest.fixture
def one(tmp_path: Path, wrap: Wrap) -> Iterator[Site]:
    with site(tmp_path, wrap, durability="normal") as made:
        Client(made.port).run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        yield made


class Reads:
    """A token of the edge that only reads."""

    def access(self, *_: Any) -> Access:
        return Access(write=False, push=False)


def read(edge: Edge, position: object, sql: str = COUNT) -> Any:
    """What a client reads that has seen a position."""
    body = json.dumps({"requests": [execute(sql), {"type": "close"}]}).encode()
    reply = Client(edge.port).request(
        "POST", "/v2/pipeline", body, cookie=f"nearlite-position={position}"
    )
    return outcome(reply.json["results"][0])


def write(edge: Edge, sql: str) -> tuple[Any, str]:
    """What a write is answered, and the position that it is told."""
    body = json.dumps({"requests": [execute(sql), {"type": "close"}]}).encode()
    reply = Client(edge.port).request("POST", "/v2/pipeline", body)
    return outcome(reply.json["results"][0]), reply.headers.get("nearlite-position", "")


def ahead(position: Position, frames: int = 100) -> Position:
    return Position(position.lineage, position.generation, position.frame + frames)


# ---------------------------------------------------------------- positions


def test_positions_do_no_harm_to_whoever_only_reads(one: Site, wrap: Wrap) -> None:
    """Of another database, of none, and one that never comes: the upstream runs nothing for such a token."""
    edge = one.edge(authority=Reads())
    here = edge.relay.state().position
    wrap.now.took()
    for position in (Position(here.lineage ^ 1, 1, 7), "of none", ahead(here)):
        assert rows(read(edge, position)) == [[0]]
    assert not any("pipeline" in path for path in wrap.now.took())
    Client(one.port).run("INSERT INTO t(b) VALUES (1)")
    wrap.now.took()
    assert rows(read(edge, ahead(here, 1))) == [[1]]  # and one that comes
    assert not any("pipeline" in path for path in wrap.now.took())


def test_whoever_only_reads_hears_that_it_is_not_known(one: Site, wrap: Wrap) -> None:
    edge = one.edge(authority=Reads())
    Client(edge.port).rows(COUNT)
    here = edge.relay.state().position
    one.stop()
    told = read(edge, ahead(here))
    assert told["code"] == "UPSTREAM_UNREACHABLE"
    assert "read-only" not in told["message"]
    assert rows(read(edge, here)) == [[0]]
    one.start(durability="normal")
    assert rows(read(edge, ahead(here))) == [[0]]


def test_a_write_that_changed_nothing_and_could_not_be_shown(one: Site, wrap: Wrap) -> None:
    """It is told a position that never comes: reads by it cost a look, and are run here."""
    edge = one.edge()
    wrap.now.answers["/sync/"] = 503, b""
    told, position = write(edge, "DELETE FROM t WHERE a = 7")
    assert told["affected_row_count"] == 0
    assert not Position.parse(position).precedes(edge.relay.state().position)
    wrap.now.took()
    assert rows(read(edge, position)) == [[0]]  # above, as long as it cannot be known
    assert "/v3/pipeline" in wrap.now.took()
    wrap.now.answers.clear()
    for _ in range(2):
        assert rows(read(edge, position)) == [[0]]
        assert not any("pipeline" in path for path in wrap.now.took())
    edge.relay.upstream.wait_for(Position.parse(position), 5.0)
    Client(one.port).run("INSERT INTO t(b) VALUES (1)")
    assert rows(read(edge, position)) == [[1]]


# ---------------------------------------------------------------- what happens behind an answer


def test_whatever_fails_behind_an_answer_is_no_failure_of_the_write(
    one: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = one.edge()
    looks: list[int] = []
    monkeypatch.setattr(edge.relay.upstream, "look", lambda: looks.append(1))
    broken = ValueError("nobody expected this")

    def fails(*_: object) -> Any:
        raise broken

    with monkeypatch.context() as patched:
        patched.setattr(edge.relay.upstream, "_bring", fails)
        told, position = write(edge, "INSERT INTO t(b) VALUES (1)")
        assert told["affected_row_count"] == 1
        assert looks
        assert rows(read(edge, position)) == [[1]]  # above
    assert rows(read(edge, position)) == [[1]]
    assert Client(one.port).rows(COUNT) == [[1]]


def test_an_upstream_that_is_late_is_away(one: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five seconds after it should have been heard of, by the interval of looks; not sooner."""
    edge = one.edge(sync_interval=10.0)
    copy = edge.relay.upstream
    eventually(lambda: copy.equal_at is not None)
    monkeypatch.setattr(copy.background, "sync", lambda: None)
    monkeypatch.setattr(copy.folder, "seconds_since_equal", lambda: None)
    for silent, late in ((14.0, False), (16.0, True)):
        copy.heard_at = copy.equal_at = time.monotonic() - silent
        assert copy.is_late is late
    # Whoever looks may be another process.
    copy.equal_at = time.monotonic()
    assert not copy.is_late
    copy.heard_at = copy.equal_at = time.monotonic() - 16.0

    def age() -> str | None:
        body = json.dumps({"requests": [execute(COUNT), {"type": "close"}]}).encode()
        return Client(edge.port).request("POST", "/v2/pipeline", body).headers.get("nearlite-age")

    eventually(lambda: age() is not None)
    copy.heard_at = copy.equal_at = time.monotonic()
    eventually(lambda: age() is None)


def test_what_hangs_above_is_ended(one: Site, wrap: Wrap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty seconds after the upstream began to be late; and nothing, as long as it is not."""
    edge = one.edge()
    late: list[bool] = []
    kind = type(edge.relay.upstream)
    monkeypatch.setattr(kind, "is_late", property(lambda _: bool(late)))
    wrap.now.held["/v3/pipeline"] = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(write, edge, "INSERT INTO t(b) VALUES (1)")
        assert wrap.now.hangs.wait(20)
        monkeypatch.setattr("nearlite.edge._IF_AWAY", 0.0)
        ticks: list[bool] = []
        monkeypatch.setattr(
            kind, "is_late", property(lambda _: (ticks.append(True), bool(late))[1])
        )
        eventually(lambda: len(ticks) > 3)
        assert not waits.done()
        late.append(True)
        told, _ = waits.result(20)
    assert told["code"] == "UPSTREAM_LOST"
    late.clear()
    wrap.now.held.pop("/v3/pipeline").set()
    eventually(lambda: write(edge, "INSERT INTO t(b) VALUES (2)")[0].get("affected_row_count") == 1)


# ---------------------------------------------------------------- libSQL's replicas below


def put_back(one: Site, backup: Path) -> None:
    """The upstream is the backup now."""
    one.stop()
    for path in (one.path, one.path.with_name(one.path.name + "-nearlite")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(backup / "log", one.path.with_name(one.path.name + "-nearlite"))
    shutil.copy(backup / "file", one.path)
    one.start(durability="normal")


def back_up(one: Site) -> Path:
    one.stop()
    backup = one.folder / "backup"
    backup.mkdir()
    shutil.copytree(one.path.with_name(one.path.name + "-nearlite"), backup / "log")
    shutil.copy(one.path, backup / "file")
    one.start(durability="normal")
    return backup


@pytest.mark.parametrize("noticed", ["end", "refusal", "replica"])
def test_frames_of_an_upstream_that_was_put_back_are_not_told_again(
    one: Site, wrap: Wrap, tmp_path: Path, noticed: str
) -> None:
    """By where it says that it ends, by its refusal, or by the replica here: it may have as many others."""
    backup = back_up(one)
    Client(one.port).run(FILL.format(20))
    edge = one.edge()
    client = Client(edge.port)
    follow(client, begin(client))  # they are kept
    put_back(one, backup)
    primary = Client(one.port)
    if noticed == "replica":
        primary.run(
            "CREATE TABLE another(x)", *[f"INSERT INTO another VALUES ({i})" for i in range(40)]
        )
        with pytest.raises((errors.LineageError, errors.PrimaryRestoredError)):
            edge.relay.refresh()
        assert edge.relay.upstream.estranged
    generation = primary.request("GET", "/info").json["current_generation"]
    if noticed == "end":
        told = json.dumps({"generation": generation, "max_frame_no": 0}).encode()
        wrap.now.answers["/sync/"] = 400, told
    if noticed != "replica":
        status = 400 if noticed == "end" else 409
        assert client.request("GET", f"/sync/{generation}/9000/9128").status == status
    wrap.now.answers.clear()
    mine, theirs = begin(client), begin(primary)
    follow(client, mine)
    follow(primary, theirs)
    (tmp_path / "mine").mkdir()
    (tmp_path / "theirs").mkdir()
    assert mine.dump(tmp_path / "mine") == theirs.dump(tmp_path / "theirs") == state_of(one.path)


def test_a_cache_knows_what_lies_beyond_an_end() -> None:
    cache = FrameCache(1 << 20)
    assert not cache.goes_beyond(1, 0)
    cache.add(3, 1, bytes(128 * FRAME))
    cache.add(3, 129, bytes(2 * FRAME))
    assert not cache.goes_beyond(3, 130)
    assert not cache.goes_beyond(3, None)
    assert not cache.goes_beyond(4, 0)
    assert cache.goes_beyond(3, 129)
    assert cache.goes_beyond(2, None)


# ---------------------------------------------------------------- the end


@contextmanager
def ends_soon(seconds: float) -> Iterator[ExitStack]:
    """What is put into the stack is ended at the end, within so many seconds."""
    with ExitStack() as stack:
        yield stack
        began = time.monotonic()
    assert time.monotonic() - began < seconds


def asking(pool: ThreadPoolExecutor, edge: Edge, *requests: Any) -> Future[None]:
    """A client of which nobody knows, on a thread of its own."""

    def ask() -> None:
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            closing(http.client.HTTPConnection("127.0.0.1", edge.port, timeout=60)) as client,
        ):
            client.request("POST", "/v2/pipeline", json.dumps({"requests": requests}).encode())
            client.getresponse().read()

    return pool.submit(ask)


@pytest.mark.parametrize("what", ["sync", "repair", "look", "sql"])
def test_an_edge_that_is_told_to_end_waits_for_nothing_that_hangs(
    one: Site, wrap: Wrap, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(serve, "SHUTDOWN_SECONDS", 1)
    with ThreadPoolExecutor(4) as pool, ends_soon(10.0) as stack:
        stack.callback(lambda: [event.set() for event in wrap.now.held.values()])
        below = Site(one.folder, stack)
        below.listening.close()
        edge = below.edge("ended.db", one.url, timeout=300.0, sync_interval=3600.0)
        eventually(lambda: edge.relay.upstream.equal_at is not None)
        insert, close = execute("INSERT INTO t(b) VALUES (1)"), {"type": "close"}
        if what == "sync":
            wrap.now.held["/sync/"] = threading.Event()
            asking(pool, edge, insert, close)
        elif what == "repair":
            wrap.now.answers["/sync/"] = 410, b""
            wrap.now.held["/export/"] = threading.Event()
            asking(pool, edge, insert, close)
        elif what == "look":
            wrap.now.held["/sync/"] = threading.Event()
            pool.submit(edge.relay.refresh)
        else:
            wrap.now.held["/v3/pipeline"] = threading.Event()
            for _ in range(3):
                asking(pool, edge, insert, close)
        assert wrap.now.hangs.wait(20)
