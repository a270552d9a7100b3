"""Replicas that serve replicas: trees in which positions and hashes are the primary's throughout."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from sealing import log_file, put_log_file, reader, wal_of
from serving import Client, execute, serving, transaction
from test_background import eventually

import nearlite
from nearlite import errors
from nearlite._native.applier import Applier
from nearlite._native.database import NO_PARAMETERS
from nearlite._native.frames import SET_HEADER_SIZE
from nearlite.access import FULL
from nearlite.applications import PrimaryApp, RelayApp
from nearlite.exchange import Answering, ClientGoneError, Deadlines, HttpError
from nearlite.hrana.schema import MESSAGES
from nearlite.http import Transport
from nearlite.leaving import Leaving
from nearlite.passing import Passing
from nearlite.position import Position
from nearlite.primary import Primary
from nearlite.relay import Relay
from nearlite.tokens import authority
from nearlite.trail import Stretch

EITHER = True

ROLL = 100_000


@dataclass
class Level:
    """One server of a tree."""

    path: Path
    url: str
    port: int
    relay: Relay | None = None


@dataclass
class Tree:
    """A primary and the servers below it, each a replica of the one above."""

    folder: Path
    stack: ExitStack
    levels: list[Level] = field(default_factory=list)

    def primary(self, **options: Any) -> Level:
        path = self.folder / "primary.db"
        port = self.stack.enter_context(serving(nearlite.asgi(path, **options)))
        self.levels.append(Level(path, f"http://127.0.0.1:{port}", port))
        return self.levels[-1]

    def below(self, above: Level, name: str = "", **options: Any) -> Level:
        path = self.folder / (name or f"level{len(self.levels)}.db")
        options.setdefault("sync_interval", None)
        token = options.pop("auth_token", None)
        made: list[Relay] = []

        def open_relay() -> Relay:
            made.append(Relay.open(path, above.url, **options))
            return made[-1]

        port = self.stack.enter_context(
            serving(RelayApp(path, open_relay, authority=authority(token)))
        )
        Client(port, token).request("GET", "/nl/v1/status")
        self.levels.append(Level(path, f"http://127.0.0.1:{port}", port, made[-1]))
        return self.levels[-1]

    def replica(self, level: Level, name: str, **options: Any) -> Any:
        connection = nearlite.connect(self.folder / name, sync_url=level.url, **options)
        self.stack.callback(connection.close)
        return connection

    def remote(self, level: Level) -> Any:
        connection = nearlite.connect(level.url)
        self.stack.callback(connection.close)
        return connection


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with ExitStack() as stack:
        yield Tree(tmp_path, stack)


def write(connection: Any, count: int = 1, size: int = 100) -> Position:
    """So many commits; where the last one led."""
    for _ in range(count):
        connection.execute("INSERT INTO t(b) VALUES(hex(randomblob(?)))", (size // 2,))
        connection.commit()
    position: Position = connection.last_write_position
    return position


def made(tree: Tree, level: Level) -> Any:
    """A remote connection, and the table."""
    connection = tree.remote(level)
    connection.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)")
    connection.commit()
    return connection


def content(path: Path | str) -> list[Any]:
    with closing(reader(path)) as stock:
        return stock.execute("SELECT a, b FROM t").fetchall()


def status(level: Level) -> Any:
    return Client(level.port).request("GET", "/nl/v1/status").json


def whole(connection: Any) -> None:
    """The replica's pages hash to what its header says."""
    with closing(Applier(connection.execute("PRAGMA database_list").fetchone()[2])) as applier:
        state, found = applier.full_hash()
        assert found == state.hash


# ---------------------------------------------------------------- what a tree is


def test_positions_and_hashes_are_the_primarys_at_every_level(tree: Tree) -> None:
    top = tree.primary()
    writer = made(tree, top)
    middle = tree.below(top)
    low = tree.below(middle)
    leaf = tree.replica(low, "leaf.db")
    at = write(writer, 20)
    done = leaf.sync()
    assert done.position == at == leaf.position
    assert not done.repaired
    found = [status(level) for level in (top, middle, low)]
    assert len({(one["position"], one["hash"], one["pages"]) for one in found}) == 1
    assert content(tree.folder / "leaf.db") == content(top.path)
    whole(leaf)


def test_one_sync_reaches_the_primary_through_levels_that_do_not_follow(tree: Tree) -> None:
    """A sync targets the primary's position at the time it is called."""
    top = tree.primary()
    writer = made(tree, top)
    leaf = tree.replica(tree.below(tree.below(tree.below(top))), "leaf.db")
    for _ in range(5):
        at = write(writer)
        assert leaf.sync().position == at
    assert leaf.lag < 5


def test_how_far_a_leaf_is_behind_is_counted_in_the_primarys_transactions(tree: Tree) -> None:
    top = tree.primary()
    writer = made(tree, top)
    low = tree.below(tree.below(top))
    leaf = tree.replica(low, "leaf.db")
    begun = leaf.position
    for times in (5, 3):
        write(writer, times)
        found = leaf.stats(ask=True)
        assert found.transactions_behind == times
        assert found.bytes_behind >= 4096
        assert 0 <= found.seconds_behind < 60
        assert leaf.sync().position == writer.last_write_position
        assert leaf.stats().transactions_behind == 0
    assert leaf.stats().transactions == 8
    answer = Client(low.port).request("GET", f"/nl/v1/changes/{begun}?wait=0")
    assert answer.headers["nearlite-transactions"] == "8"
    # A position from before this process served the file: its pages are known, its transactions are not.
    assert low.relay is not None
    low.relay.upstream.ahead.counts = {}
    _, behind = low.relay.ahead_of(begun)
    assert behind is not None
    assert behind.transactions is None
    assert behind.bytes >= 4096


def test_a_commit_comes_down_a_live_tree_by_itself(tree: Tree) -> None:
    top = tree.primary()
    writer = made(tree, top)
    middle = tree.below(top, sync_interval="live")
    low = tree.below(middle, sync_interval="live")
    leaf = tree.replica(low, "leaf.db", sync_interval="live")
    other = tree.replica(middle, "other.db", sync_interval="live")
    for _ in range(10):
        at = write(writer)
        leaf.wait_for(at, 10)
        other.wait_for(at, 10)
    assert content(tree.folder / "leaf.db") == content(top.path)


def test_what_travels_further_down_is_as_small(tree: Tree) -> None:
    """A relay tells differences out of its own WAL."""
    top = tree.primary()
    writer = made(tree, top)
    write(writer, 300)
    middle = tree.below(top, sync_interval="live")
    leaf = tree.replica(middle, "leaf.db")
    direct = tree.replica(top, "direct.db")
    for _ in range(3):
        writer.execute("UPDATE t SET b = b || 'x' WHERE a = 17")
        writer.commit()
        through, straight = leaf.sync(), direct.sync()
        assert through.position == straight.position
        assert through.bytes <= straight.bytes + 8 < 200


def test_a_replica_bootstraps_from_a_replica(tree: Tree) -> None:
    top = tree.primary()
    writer = made(tree, top)
    write(writer, 5, 400_000)
    middle = tree.below(top)
    leaf = tree.replica(middle, "leaf.db")
    assert leaf.position == writer.last_write_position
    assert content(tree.folder / "leaf.db") == content(top.path)
    stock = reader(tree.folder / "leaf.db")
    with closing(stock), pytest.raises(sqlite3.OperationalError, match="readonly"):
        stock.execute("DELETE FROM t")


def test_page_1_travels_in_the_primarys_form(tree: Tree) -> None:
    """Byte 18 and the header of the relay's own file stay where they are."""
    top = tree.primary()
    made(tree, top)
    middle = tree.below(top)
    sets = [
        Client(level.port).request("GET", "/nl/v1/snapshot?z=0").body for level in (top, middle)
    ]
    for found in sets:
        page1 = found[found.index(b"SQLite format 3\0") :][:100]
        assert page1[18] == 2
        assert not any(page1[72:92])
    head = SET_HEADER_SIZE  # in it the time of the commit, which each knows in its own way
    assert sets[0][head:] == sets[1][head:]


# ---------------------------------------------------------------- SQL


def test_a_write_below_is_read_there_at_once(tree: Tree) -> None:
    """Its answer passes the relays, so for a moment the leaf is ahead of them (rule A9)."""
    top = tree.primary()
    made(tree, top)
    middle = tree.below(top, sync_interval="live")
    low = tree.below(middle, sync_interval="live")
    leaf = tree.replica(low, "leaf.db", sync_interval="live")
    for n in range(1, 30):
        leaf.execute("INSERT INTO t(b) VALUES('x')")
        leaf.commit()
        assert leaf.execute("SELECT count(*) FROM t").fetchone() == (n,)
    assert leaf.last_sync_error is None
    at = leaf.last_write_position
    assert at == leaf.position
    other = tree.replica(low, "other.db")
    other.wait_for(at, 10)
    assert content(tree.folder / "other.db") == content(top.path)


def test_a_replica_that_is_ahead_waits(tree: Tree) -> None:
    top = tree.primary()
    writer = made(tree, top)
    middle = tree.below(top)
    leaf = tree.replica(middle, "leaf.db", read_your_writes=True)
    leaf.execute("INSERT INTO t(b) VALUES('x')")
    leaf.commit()
    relay = middle.relay
    assert relay is not None
    assert relay.latest < leaf.position
    client = Client(middle.port)
    path = f"/nl/v1/changes/{leaf.position}?wait=0.01"
    assert client.request("GET", path).status == 204
    # Until what it waits for has come, and more.
    waiting = Client(middle.port)
    waiting.connection.request("GET", f"/nl/v1/changes/{leaf.position}?wait=20")
    relay.refresh()
    at = write(writer)
    relay.refresh()
    answer = waiting.connection.getresponse()
    assert answer.status == 200
    assert answer.getheader("nearlite-position") == str(at)
    answer.read()


def test_a_request_that_is_nested_deeply_is_refused_by_the_primary(tree: Tree) -> None:
    below = tree.below(tree.primary())
    body = b'{"baton":null,"requests":' + b'{"a":' * 50_000
    for path in ("/v2/pipeline", "/v3/pipeline", "/v3/cursor"):
        answer = Client(below.port).request("POST", path, body)
        assert (answer.status, answer.json["code"]) == (400, "PROTOCOL_ERROR")


def test_transactions_go_through(tree: Tree) -> None:
    top = tree.primary()
    writer = made(tree, top)
    low = tree.below(tree.below(top))
    remote, leaf = tree.remote(low), tree.replica(low, "leaf.db")
    for connection in (remote, leaf):
        with connection:
            connection.execute("INSERT INTO t(b) VALUES('one')")
            found = connection.execute("SELECT count(*) FROM t").fetchone()
            connection.execute("INSERT INTO t(b) VALUES('two')")
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (found[0] + 1,)
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute("INSERT INTO t(a) VALUES(1)")
        connection.rollback()
    connection.executemany("INSERT INTO t(b) VALUES(?)", [(str(n),) for n in range(500)])
    connection.commit()
    assert writer.execute("SELECT count(*) FROM t").fetchone() == (504,)


def test_cursors_and_large_answers_go_through(tree: Tree) -> None:
    top = tree.primary()
    writer = made(tree, top)
    write(writer, 3, 2_000_000)
    low = tree.below(tree.below(top))
    body = b'{"batch": {"steps": [{"stmt": {"sql": "SELECT b FROM t"}}]}}'
    direct, through = (
        Client(level.port).request("POST", "/v3/cursor", body) for level in (top, low)
    )
    assert through.status == 200
    assert through.headers["content-type"] == direct.headers["content-type"]
    assert through.body.split(b"\n")[1:] == direct.body.split(b"\n")[1:]
    assert len(through.body) > 6_000_000


def test_errors_go_through_as_they_are(tree: Tree) -> None:
    top = tree.primary()
    made(tree, top)
    low = tree.below(top)
    for path, body in [
        ("/v3/pipeline", b"{"),
        ("/v3/pipeline", b'{"baton": "forged", "requests": []}'),
        ("/nl/v1/sql", b'{"requests": []}'),
    ]:
        direct, through = (Client(level.port).request("POST", path, body) for level in (top, low))
        assert (through.status, through.json) == (direct.status, direct.json)


def test_a_client_that_leaves_gives_up_its_transaction(tree: Tree) -> None:
    """The primary learns through the levels that nobody has the baton."""
    top = tree.primary()
    made(tree, top)
    low = tree.below(tree.below(top))
    client = Client(low.port)
    body = b'{"requests": [{"type": "execute", "stmt": {"sql": "BEGIN IMMEDIATE"}}]}'
    client.connection.request("POST", "/v3/pipeline", body)
    assert client.connection.sock is not None
    client.connection.sock.shutdown(
        1
    )  # no acknowledgement of what comes after the FIN is waited for
    client.connection.close()
    other = Client(top.port)
    answer = other.pipeline(execute("INSERT INTO t(b) VALUES('x')"), {"type": "close"})
    assert answer["results"][0]["type"] == "ok"


def test_the_end_of_a_transaction_overtakes_those_who_wait_for_it(tree: Tree) -> None:
    """However many there are: their requests take up all that go up at once, a baton's goes beside them."""
    top = tree.primary()
    made(tree, top)
    low = tree.below(top)
    holder = Client(low.port)
    answer = holder.pipeline(execute("BEGIN IMMEDIATE"), execute("INSERT INTO t(b) VALUES(0)"))
    arrived = threading.Semaphore(0)

    def write() -> None:
        client = Client(low.port)
        body = json.dumps({"requests": [execute("INSERT INTO t(b) VALUES(1)")]}).encode()
        client.connection.request("POST", "/v3/pipeline", body)
        arrived.release()
        found = json.loads(client.connection.getresponse().read())
        assert found["results"][0]["type"] == "ok", found

    with ThreadPoolExecutor(80) as pool:
        writing = [pool.submit(write) for _ in range(80)]
        for _ in writing:
            arrived.acquire()
        done = holder.pipeline(execute("COMMIT"), {"type": "close"}, baton=answer["baton"])
        assert done["results"][0]["type"] == "ok"
        for one in writing:
            one.result(30)
    assert Client(top.port).rows("SELECT count(*) FROM t") == [[81]]


def test_a_statement_of_a_client_that_leaves_is_interrupted(tree: Tree) -> None:
    top = tree.primary()
    made(tree, top)
    low = tree.below(top)
    client = Client(low.port)
    endless = (
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) "
        "INSERT INTO t(b) SELECT count(*) FROM c"
    )
    begin = execute("BEGIN IMMEDIATE")
    body = json.dumps({"requests": [begin, execute(endless)]}).encode()
    client.connection.request("POST", "/v3/pipeline", body)
    client.connection.close()
    other = Client(top.port)
    answer = other.pipeline(execute("INSERT INTO t(b) VALUES('x')"), {"type": "close"})
    assert answer["results"][0]["type"] == "ok"


def test_a_statement_of_a_client_that_leaves_in_the_middle_of_its_answer_is_interrupted(
    tree: Tree,
) -> None:
    """It has answered rows, and then computes: nothing comes that could tell that nobody listens."""
    top = tree.primary()
    made(tree, top)
    client = Client(tree.below(top).port)
    endless = (
        "(WITH RECURSIVE e(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM e) SELECT count(*) FROM e)"
    )
    rows = (
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 3000) "
        f"SELECT CASE WHEN n < 3000 THEN hex(zeroblob(1000)) ELSE {endless} END FROM c"
    )
    steps = [{"stmt": {"sql": sql}} for sql in ("BEGIN IMMEDIATE", rows)]
    client.connection.request("POST", "/v3/cursor", json.dumps({"batch": {"steps": steps}}))
    answer = client.connection.getresponse()
    assert answer.status == 200
    assert len(answer.read(300_000)) == 300_000
    client.connection.close()
    answer.close()
    other = Client(top.port)
    found = other.pipeline(execute("INSERT INTO t(b) VALUES('x')"), {"type": "close"})
    assert found["results"][0]["type"] == "ok"


# ---------------------------------------------------------------- without the one above


def test_it_serves_what_it_has_and_says_how_old_that_is(tree: Tree) -> None:
    with ExitStack() as up:
        above = Tree(tree.folder, up)
        top = above.primary()
        writer = made(above, top)
        middle = tree.below(top)
        leaf = tree.replica(middle, "leaf.db")
        at = write(writer, 2)
        assert middle.relay is not None
        middle.relay.refresh()
    # Something newer is there, although the primary cannot be asked.
    assert leaf.sync().position == at
    assert leaf.execute("SELECT count(*) FROM t").fetchone() == (2,)
    age = float(Client(middle.port).request("GET", "/nl/v1/status").headers["nearlite-age"])
    assert leaf.lag >= age / 2 >= 0
    with pytest.raises(nearlite.OfflineError, match="could not be asked") as caught:
        leaf.sync()
    assert not caught.value.data_at_risk
    with pytest.raises(nearlite.OfflineError, match="nothing was carried out"):
        leaf.execute("INSERT INTO t(b) VALUES('x')")
    leaf.rollback()
    # A new one can be made without the primary.
    assert tree.replica(middle, "new.db").position == at


def test_the_token_of_a_level_is_its_own(tree: Tree) -> None:
    top = tree.primary(auth_token="top secret")
    middle = tree.below(top, token="top secret", auth_token="middle secret")
    assert Client(middle.port).request("GET", "/nl/v1/status").status == 401
    assert Client(middle.port, "top secret").request("GET", "/nl/v1/status").status == 401
    leaf = tree.replica(middle, "leaf.db", auth_token="middle secret", isolation_level=None)
    leaf.execute("CREATE TABLE t(a)")
    assert leaf.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_a_token_that_the_level_above_refuses_is_not_the_clients_fault(tree: Tree) -> None:
    tokens = ["right"]
    top = tree.primary(auth_token="right")
    middle = tree.below(top, token=lambda: tokens[-1])
    tokens.append("wrong")
    reply = Client(middle.port).request("POST", "/v3/pipeline", b'{"requests": []}')
    assert reply.status == 502
    assert reply.json["code"] == "UPSTREAM_REFUSED"
    assert b"right" not in reply.body


# ---------------------------------------------------------------- its own WAL


def test_it_empties_its_wal_and_goes_on_telling_changes(tree: Tree) -> None:
    top = tree.primary()
    writer = made(tree, top)
    middle = tree.below(top, sync_interval="live", roll_bytes=ROLL)
    relay = middle.relay
    assert relay is not None
    leaf, old = tree.replica(middle, "leaf.db"), tree.replica(middle, "old.db")
    for _ in range(6):
        write(writer, 5, 20_000)
        assert not leaf.sync().repaired
        relay.roll(wait=10)
        assert os.path.getsize(wal_of(middle.path)) == 0
    stretches = list((tree.folder / "level1.db-nearlite").glob("*.trail"))
    assert len(stretches) >= 6
    assert len(list((tree.folder / "level1.db-nearlite").glob("*.hashes"))) == 1
    done = old.sync()
    assert not done.repaired
    assert done.position == leaf.position
    assert content(tree.folder / "old.db") == content(top.path)
    whole(old)


def test_it_rolls_by_itself(tree: Tree) -> None:
    top = tree.primary()
    writer = made(tree, top)
    middle = tree.below(top, roll_bytes=ROLL)
    rolled = threading.Event()
    relay = middle.relay
    assert relay is not None
    keep = relay._keep

    def kept(*args: Any) -> None:
        keep(*args)
        rolled.set()

    relay._keep = kept  # type: ignore[method-assign]
    at = write(writer, 1, 2 * ROLL)
    relay.refresh()
    assert rolled.wait(20)
    assert relay.latest == at


def test_a_roll_that_fails_is_tried_again_later(tree: Tree) -> None:
    """And not with each set that is applied."""
    top = tree.primary()
    writer = made(tree, top)
    middle = tree.below(top, roll_bytes=ROLL)
    relay = middle.relay
    assert relay is not None
    roll, failed = relay.roll, threading.Event()

    def full(*, wait: float = 1.0) -> bool:
        failed.set()
        raise OSError(28, "No space left on device")

    relay.roll = full  # type: ignore[method-assign]
    write(writer, 1, 2 * ROLL)
    relay.refresh()
    assert failed.wait(20)
    with pytest.raises(OSError, match="space"):
        relay._retry_at = 0.0
        relay._keep_short()
    assert not relay._roll_due
    relay.roll = roll  # type: ignore[method-assign]
    assert relay.roll(wait=10)


def test_protobuf_is_handed_on(tree: Tree) -> None:
    top = tree.primary()
    middle = tree.below(top)
    client = Client(middle.port)

    def ask(*texts: str, baton: str | None = None) -> Any:
        body = MESSAGES["PipelineReqBody"](baton=baton)
        for text in texts:
            body.requests.add().execute.stmt.sql = text
        reply = client.request("POST", "/v3-protobuf/pipeline", body.SerializeToString())
        assert (reply.status, reply.headers["content-type"]) == (200, "application/x-protobuf")
        return MESSAGES["PipelineRespBody"].FromString(reply.body)

    told = ask("CREATE TABLE t(a)", "BEGIN IMMEDIATE", "INSERT INTO t VALUES(5)")
    assert [result.WhichOneof("kind") for result in told.results] == ["ok"] * 3
    told = ask("COMMIT", "SELECT a FROM t", baton=told.baton)
    assert told.results[1].ok.execute.result.rows[0].values[0].integer == 5
    body = MESSAGES["CursorReqBody"]()
    body.batch.steps.add().stmt.sql = "SELECT a FROM t"
    reply = client.request("POST", "/v3-protobuf/cursor", body.SerializeToString())
    assert (reply.status, reply.headers["content-type"]) == (200, "application/octet-stream")


def test_what_comes_while_it_ends_is_told_so() -> None:
    async def ask() -> None:
        async def receive() -> Any:
            return {"type": "http.disconnect"}

        deadlines = Deadlines()
        passing = Passing(Transport("http://127.0.0.1:1"), Answering(deadlines), deadlines)
        await passing.close()
        with pytest.raises(HttpError, match="about to end") as caught:
            await passing._ask("v3/pipeline", b"{}", {}, Leaving(receive), FULL)
        assert (caught.value.status, caught.value.code) == (503, "SHUTTING_DOWN")

    asyncio.run(ask())


def test_what_is_on_its_way_when_it_ends_is_let_go(tree: Tree) -> None:
    top = tree.primary()
    write(made(tree, top), 3, 2_000_000)
    body = b'{"batch": {"steps": [{"stmt": {"sql": "SELECT b FROM t"}}]}}'
    scope = {
        "type": "http",
        "method": "POST",
        "headers": [(b"content-type", b"application/json")],
    }

    lent: list[Any] = []

    class Watched(Transport):
        def send(self, *args: Any, **options: Any) -> Any:
            sent = super().send(*args, **options)
            lent.append(sent._channel)
            return sent

    async def ask() -> None:
        deadlines = Deadlines()
        transport = Watched(top.url)
        passing = Passing(transport, Answering(deadlines), deadlines)
        messages: list[dict[str, Any]] = [{"type": "http.request", "body": body}]
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Future()

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) == 2:  # its head, and a piece
                await passing.close()

        with closing(transport):
            with pytest.raises(ClientGoneError):
                await passing.answer("/v3/cursor", scope, receive, send, FULL)
            assert [channel._sock.fileno() for channel in lent] == [-1]
        assert sent[-1]["more_body"]  # and nothing says that it is complete

    asyncio.run(ask())


def test_a_reader_of_the_wal_postpones_that(tree: Tree) -> None:
    top = tree.primary()
    writer = made(tree, top)
    write(writer)
    middle = tree.below(top)
    relay = middle.relay
    assert relay is not None
    write(writer)
    relay.refresh()
    leaf = tree.replica(middle, "leaf.db")
    with closing(reader(middle.path)) as stock:
        stock.execute("BEGIN")
        before = stock.execute("SELECT count(*) FROM t").fetchone()
        write(writer)
        relay.refresh()
        assert not relay.roll(wait=0)
        assert stock.execute("SELECT count(*) FROM t").fetchone() == before
        assert not leaf.sync().repaired
    assert relay.roll(wait=10)
    write(writer)
    assert not leaf.sync().repaired
    assert content(tree.folder / "leaf.db") == content(top.path)


def test_nobody_else_empties_it(tree: Tree) -> None:
    """The pin keeps frames that its replicas have yet to be told of."""
    top = tree.primary()
    writer = made(tree, top)
    write(writer, 10)
    middle = tree.below(top)
    relay = middle.relay
    assert relay is not None
    write(writer, 10)
    relay.refresh()
    with closing(reader(middle.path, timeout=0)) as stock:
        busy, frames, _ = stock.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert (busy, frames > 0) == (1, True)
    leaf = tree.replica(middle, "leaf.db")
    write(writer, 10)
    assert not leaf.sync().repaired


# ---------------------------------------------------------------- stopped and started


@contextmanager
def relayed(path: Path, url: str, **options: Any) -> Iterator[Relay]:
    relay = Relay.open(path, url, sync_interval=None, **options)
    try:
        yield relay
    finally:
        relay.close()


def test_after_a_restart_replicas_go_on(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    top = tree.primary()
    writer = made(tree, top)
    path = tree.folder / "middle.db"
    with relayed(path, top.url) as relay:
        begin = relay.latest
        write(writer, 5)
        relay.refresh()
        relay.roll()
        between = write(writer, 5)
        relay.refresh()
    end = write(writer, 5)
    with caplog.at_level(logging.WARNING), relayed(path, top.url) as relay:
        relay.refresh()
        for start in (begin, between):
            answer = relay.changes(start)
            assert answer is not None
            assert answer.to == end
            answer.close()
    assert not caplog.records


def test_a_file_that_went_on_without_its_server_is_noticed(tree: Tree) -> None:
    """Somebody else has applied and checkpointed meanwhile: what is not known is not claimed."""
    top = tree.primary()
    writer = made(tree, top)
    path = tree.folder / "middle.db"
    with relayed(path, top.url) as relay:
        begin = relay.latest
        write(writer, 5)
        relay.refresh()
    write(writer, 5)
    with closing(nearlite.connect(path, sync_url=top.url)) as alone:
        alone.sync()
        here = alone.position
    with relayed(path, top.url) as relay:
        assert relay.latest == here
        with pytest.raises(errors.HistoryGoneError):
            relay.changes(begin)
        assert relay.changes(here) is None


def test_what_others_applied_meanwhile_counts_while_the_wal_has_it(tree: Tree) -> None:
    top = tree.primary()
    writer = made(tree, top)
    path = tree.folder / "middle.db"
    with relayed(path, top.url) as relay:
        begin = relay.latest
        write(writer, 5)
        with closing(nearlite.connect(path, sync_url=top.url)) as beside:
            beside.sync()
        state = relay.state()
        assert state.position == writer.last_write_position
        answer = relay.changes(begin)
        assert answer is not None
        answer.close()


def test_damaged_files_of_the_trail_are_as_good_as_none(tree: Tree) -> None:
    top = tree.primary()
    writer = made(tree, top)
    path = tree.folder / "middle.db"
    folder = tree.folder / "middle.db-nearlite"
    with relayed(path, top.url) as relay:
        for _ in range(3):
            write(writer, 2)
            relay.refresh()
            relay.roll()
        begin = relay.latest
    for suffix in ("trail", "hashes"):
        (file,) = sorted(folder.glob(f"*.{suffix}"))[-1:]
        data = bytearray(file.read_bytes())
        for damaged in (data[:-1], data[:10], b"", bytes([*data[:40], data[40] ^ 1, *data[41:]])):
            file.write_bytes(damaged)
            with relayed(path, top.url) as relay:
                assert relay.latest == begin
                assert f"{relay.state().hash:016x}" == status(top)["hash"]
        file.write_bytes(data)


def test_two_servers_of_one_file_are_refused(tree: Tree) -> None:
    top = tree.primary()
    made(tree, top)
    path = tree.folder / "middle.db"
    with relayed(path, top.url), pytest.raises(errors.OperationalError, match="already served"):
        Relay.open(path, top.url)


# ---------------------------------------------------------------- what goes wrong


def test_a_damaged_replica_below_is_repaired_from_the_relay(tree: Tree) -> None:
    top = tree.primary()
    writer = made(tree, top)
    write(writer, 20, 5000)
    middle = tree.below(top)
    leaf = tree.replica(middle, "leaf.db")
    leaf.close()
    path = tree.folder / "leaf.db"
    with open(path, "r+b") as file:
        file.seek(5 * 4096 + 100)
        file.write(b"\0" * 50)
    again = tree.replica(middle, "leaf.db")
    done = again.sync(repair=True)
    assert done.repaired
    assert done.pages < 5
    assert content(path) == content(top.path)
    whole(again)


def test_a_damaged_relay_spreads_nothing_and_mends_itself(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    top = tree.primary()
    writer = made(tree, top)
    write(writer, 20, 5000)
    middle = tree.below(top)
    relay = middle.relay
    assert relay is not None
    leaf = tree.replica(middle, "leaf.db")
    write(writer, 3)
    leaf.sync()
    relay.roll(wait=10)
    with open(middle.path, "r+b") as file:
        file.seek(3 * 4096 + 100)
        file.write(b"\xff" * 50)
    with pytest.raises(errors.Error):
        tree.replica(middle, "new.db")
    assert not (tree.folder / "new.db").exists()
    caplog.set_level(logging.WARNING)
    relay.refresh()
    eventually(
        lambda: "repaired" in caplog.text
    )  # the relay's own thread may have done it, and says so later
    assert tree.replica(middle, "new.db").position == relay.latest
    assert content(tree.folder / "new.db") == content(top.path)


def test_a_restored_primary_is_told_from_a_relay_that_lags(tree: Tree, tmp_path: Path) -> None:
    """The lineage changes: every level refuses it until it is told to take it over."""
    top_path = tmp_path / "primary.db"
    port_of: list[int] = []
    with ExitStack() as first:
        above = Tree(tmp_path, first)
        top = above.primary()
        writer = made(above, top)
        write(writer, 3)
        saved = tmp_path / "saved.db"
        with closing(reader(top_path)) as stock:
            stock.execute("VACUUM INTO ?", (str(saved),))
        write(writer, 3)
        with relayed(tmp_path / "middle.db", top.url):
            pass
        port_of.append(top.port)
    for suffix in ("-wal", "-shm"):
        Path(f"{top_path}{suffix}").unlink(missing_ok=True)
    saved.replace(top_path)
    top = tree.primary()
    middle = tree.below(top, "middle.db")
    leaf = tree.replica(middle, "leaf.db")
    relay = middle.relay
    assert relay is not None
    with pytest.raises(nearlite.LineageError):
        relay.refresh()
    for repair in (False, True):  # from the relay it would become what is gone
        with pytest.raises(nearlite.LineageError, match="another one by now"):
            leaf.sync(repair=repair)
    relay.upstream.sync(repair=True)
    with pytest.raises(nearlite.LineageError):
        leaf.sync()
    assert leaf.sync(repair=True).repaired
    assert content(tmp_path / "leaf.db") == content(top_path)
    assert f"{leaf.position}" == status(top)["position"]


def test_a_primary_that_lost_commits_is_told_from_a_relay_that_lags(tree: Tree) -> None:
    """After the relay has looked, a replica that is still ahead really is ahead."""
    top = tree.primary()
    made(tree, top)
    middle = tree.below(top)
    at = status(middle)["position"]
    ahead = at[:-8] + "00ffffff"
    reply = Client(middle.port).request("GET", f"/nl/v1/changes/{ahead}")
    assert (reply.status, reply.json["code"]) == (503, "UPSTREAM_BEHIND")


def test_a_cycle_ends(tree: Tree, tmp_path: Path) -> None:
    """Two replicas that were told to follow one another: an error, and no end of requests."""
    top = tree.primary()
    made(tree, top)
    with closing(nearlite.connect(tmp_path / "level1.db", sync_url=top.url)):
        pass
    with closing(nearlite.connect(tmp_path / "level2.db", sync_url=top.url)):
        pass
    from nearlite import serve

    with serve.bind("127.0.0.1", 0) as reserved:
        port = reserved.getsockname()[1]
    second = Level(tmp_path / "level2.db", f"http://127.0.0.1:{port}", port)
    first = tree.below(second, "level1.db", timeout=1.0)
    listening = serve.bind("127.0.0.1", port)
    listening.listen(64)
    app = RelayApp(
        second.path,
        lambda: Relay.open(second.path, first.url, sync_interval=None, timeout=1.0),
    )
    server = serve.server(app)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    try:
        reply = Client(port).request("GET", f"/nl/v1/changes/{status(first)['position']}")
        assert reply.status in (503, 508)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


# ---------------------------------------------------------------- random histories


@pytest.mark.parametrize("seed", range(6))
def test_any_history_is_told_right_at_every_level(tree: Tree, seed: int) -> None:
    """Commits of all sizes, vacuums, rolls of primary and relays, replicas that are away for a while."""
    rng = random.Random(seed)
    top_path = tree.folder / "primary.db"
    with ExitStack() as stack:
        primary = Primary.open(top_path, durability="normal", roll_bytes=10**9)
        port = stack.enter_context(serving(PrimaryApp(top_path, lambda: primary)))
        top = Level(top_path, f"http://127.0.0.1:{port}", port)
        database = stack.enter_context(closing(primary.connect()))
        database.exec("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        primary.after_commit()
        middle = tree.below(top)
        low = tree.below(middle)
        replicas = [tree.replica(rng.choice([middle, low]), f"leaf{n}.db") for n in range(3)]
        for _ in range(60):
            what = rng.randrange(10)
            if what < 4:
                for _ in range(rng.choice([1, 1, 3, 40])):
                    size = rng.choice([10, 100, 3000, 60_000])
                    database.exec(f"INSERT INTO t(b) VALUES(hex(randomblob({size})))")
                primary.after_commit()
            elif what == 4:
                database.exec("DELETE FROM t WHERE a % 3 = abs(random() % 3)")
                primary.after_commit()
            elif what == 5:
                database.exec("VACUUM")
                primary.after_commit()
            elif what == 6:
                primary.roll()
            elif what == 7:
                level = rng.choice([middle, low])
                assert level.relay is not None
                level.relay.roll(wait=5)
            else:
                leaf = rng.choice(replicas)
                done = leaf.sync()
                assert str(done.position) == str(primary.state().position)
                assert not done.repaired
        for leaf in replicas:
            leaf.sync()
            whole(leaf)
        (expected,) = database.prepare("SELECT count(*), total(length(b)) FROM t").run(
            NO_PARAMETERS
        )
        for leaf in replicas:
            assert leaf.execute("SELECT count(*), total(length(b)) FROM t").fetchone() == expected


# ---------------------------------------------------------------- the pure part


def test_a_stretch_reads_back() -> None:
    stretch = Stretch(7, 4096, ((0, 1, 5, 11), (3, 1, 9, 12), (9, 2, 4, 13)), bytes(range(16)))
    assert Stretch.decode(stretch.encode()) == stretch
    assert (stretch.begin, stretch.end) == (Position(7, 1, 5), Position(7, 2, 4))
    assert len(stretch.encode()) == stretch.size
    assert stretch.find(Position(7, 1, 9)) == (3, 12)
    assert stretch.find(Position(7, 1, 10)) is None


def test_transactions_sent_as_batches_go_through(tree: Tree) -> None:
    top = tree.primary()
    made(tree, top)
    low = tree.below(top)
    answer = Client(low.port).pipeline(transaction("INSERT INTO t(b) VALUES(1)"), {"type": "close"})
    assert answer["results"][0]["type"] == "ok"
    assert Client(top.port).rows("SELECT count(*) FROM t") == [[1]]


@pytest.mark.parametrize("lower", [True, False])
def test_the_trail_of_another_lineage_is_removed_and_hides_nothing(tree: Tree, lower: bool) -> None:
    """A primary was restored; its new lineage is any number, lower or higher than the old one."""
    top = tree.primary()
    writer = made(tree, top)
    path = tree.folder / "middle.db"
    folder = tree.folder / "middle.db-nearlite"
    with relayed(path, top.url) as relay:
        write(writer, 5)
        relay.refresh()
        own = relay.latest.lineage
    name = max(folder.glob("*.trail")).name
    old = Stretch.decode(log_file(path, name))
    number = own - 1 if lower else own + 1
    stray = replace(old, lineage=number)
    put_log_file(path, f"{stray.end}.trail", stray.encode())
    with relayed(path, top.url) as relay:
        begin = relay.latest
        write(writer, 2)
        relay.refresh()
        relay.roll()
        end = relay.latest
    with relayed(path, top.url) as relay:
        answer = relay.changes(begin)
        assert answer is not None
        assert answer.to == end
        answer.close()
    assert all(file.name.startswith(f"{own:08x}") for file in folder.glob("*.trail"))
