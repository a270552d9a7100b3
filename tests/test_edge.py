"""Edges: reads on the replica, everything else on the primary, for clients that see one database."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from edges import Site, site
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serving import Client, batch, execute, outcome, rows, serving, transaction
from talking import steps, talking
from test_background import eventually

import nearlite
from nearlite import minting, polls
from nearlite.above import wanted
from nearlite.access import Guiding
from nearlite.errors import OfflineError
from nearlite.hrana.schema import MESSAGES
from nearlite.limits import Limits
from nearlite.position import Position
from nearlite.proxy_command import Renewed
from nearlite.tokens import authority

CLOSE = {"type": "close"}
COUNT = "SELECT count(*) FROM t"


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Site]:
    """A primary with a table."""
    with site(tmp_path, durability="normal") as made:
        Client(made.port).run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        yield made


def tell(client: Client, *statements: str, version: int = 2, **headers: str) -> Any:
    """The whole reply to statements in one pipeline, with headers."""
    body = json.dumps({"requests": [*map(execute, statements), CLOSE]}).encode()
    reply = client.request("POST", f"/v{version}/pipeline", body, **headers)
    assert reply.status == 200, reply.body
    return reply


def result(reply: Any, number: int = 0) -> Any:
    return outcome(reply.json["results"][number])


# ---------------------------------------------------------------- where requests run


def test_reads_ask_nobody_and_a_write_is_one_request(one: Site) -> None:
    edge = one.edge()
    client = Client(edge.port)
    one.asked.sql()
    assert client.rows(COUNT) == [[0]]
    assert client.run(COUNT, "SELECT 1", "PRAGMA table_info(t)")
    client.pipeline({"type": "describe", "sql": "SELECT a FROM t"}, {"type": "get_autocommit"})
    client.pipeline({"type": "sequence", "sql": "SELECT 1; SELECT a FROM t"})
    assert one.asked.sql() == []
    assert client.run("INSERT INTO t(b) VALUES ('one')")[0]["last_insert_rowid"] == "1"
    assert one.asked.sql() == [("/nl/v1/sql", 200)]
    assert client.rows(COUNT) == [[1]]  # what was written came with the answer
    assert one.asked.sql() == []
    client.pipeline(transaction("INSERT INTO t(b) VALUES ('two')", "DELETE FROM t WHERE a = 1"))
    client.pipeline({"type": "sequence", "sql": "CREATE TABLE u(x); INSERT INTO u VALUES (1)"})
    assert client.rows("SELECT b FROM t") == [["two"]]
    assert client.rows("SELECT x FROM u") == [[1]]
    assert one.asked.sql() == [("/nl/v1/sql", 200)] * 2


def test_a_batch_that_only_looks_is_one_snapshot_here(one: Site) -> None:
    edge = one.edge()
    client = Client(edge.port)
    client.run("INSERT INTO t(b) VALUES ('one')")
    one.asked.sql()
    for begin in ("BEGIN", "BEGIN DEFERRED", "BEGIN TRANSACTION READONLY", "begin transaction;"):
        told = outcome(client.pipeline(batch(begin, COUNT, "SELECT 5", "COMMIT"))["results"][0])
        assert [rows(step) for step in told["step_results"]] == [[], [[1]], [[5]], []]
    ok = {"type": "ok", "step": 1}
    committed = {"type": "ok", "step": 2}
    as_clients = batch(
        "BEGIN TRANSACTION READONLY",
        (COUNT, {"type": "ok", "step": 0}),
        ("COMMIT", ok),
        ("ROLLBACK", {"type": "not", "cond": committed}),
    )
    told = outcome(client.pipeline(as_clients)["results"][0])
    assert rows(told["step_results"][1]) == [[1]]
    failed = batch("BEGIN", "SELECT abs(-9223372036854775808)", "SELECT 1", "COMMIT")
    told = outcome(client.pipeline(failed)["results"][0])
    assert told["step_errors"][1]["code"] == "SQLITE_ERROR"
    assert told["step_results"][2] is not None
    with talking(edge.port) as talker:
        talker.ask("open_cursor", stream_id=0, cursor_id=1, batch=steps("BEGIN", COUNT, "COMMIT"))
        entries = talker.ask("fetch_cursor", cursor_id=1, max_count=100)["entries"]
        assert [entry["type"] for entry in entries].count("row") == 1
    assert one.asked.sql() == []
    # One that stays open, wants a lock or writes is the primary's.
    for texts in (("BEGIN", COUNT), ("BEGIN IMMEDIATE", COUNT, "COMMIT")):
        client.pipeline(batch(*texts), CLOSE)
        assert ("/nl/v1/sql", 200) in one.asked.sql()


def test_a_transaction_sees_itself_and_others_see_it_when_it_has_ended(one: Site) -> None:
    edge = one.edge()
    inside, outside = Client(edge.port), Client(edge.port)
    told = inside.pipeline(execute("BEGIN"), execute("INSERT INTO t(b) VALUES ('mine')"))
    told = inside.pipeline(execute(COUNT), {"type": "get_autocommit"}, baton=told["baton"])
    assert rows(outcome(told["results"][0])) == [[1]]
    assert outcome(told["results"][1])["is_autocommit"] is False
    assert outside.rows(COUNT) == [[0]]
    told = inside.pipeline(execute("COMMIT"), {"type": "get_autocommit"}, baton=told["baton"])
    assert outcome(told["results"][1])["is_autocommit"] is True
    assert outside.rows(COUNT) == [[1]]
    one.asked.sql()
    told = inside.pipeline(execute(COUNT), baton=told["baton"])
    assert rows(outcome(told["results"][0])) == [[1]]
    assert one.asked.sql() == []  # its stream has nothing above any more
    # Rolled back by its client, by its close, and because the answer to its beginning was not taken.
    for last in ([execute("ROLLBACK")], [CLOSE]):
        told = inside.pipeline(execute("BEGIN IMMEDIATE"), execute("DELETE FROM t"))
        inside.pipeline(*last, baton=told["baton"])
    lost = Client(edge.port)
    lost.pipeline(execute("BEGIN IMMEDIATE"), execute("DELETE FROM t"))
    lost.close()
    assert outside.run("INSERT INTO t(b) VALUES ('more')")[0]["affected_row_count"] == 1
    assert outside.rows(COUNT) == [[2]]


def test_settings_and_temporary_tables_stay_with_their_stream(one: Site) -> None:
    edge = one.edge()
    client = Client(edge.port)
    client.run("CREATE TABLE child(p REFERENCES t(a))")
    told = client.pipeline(execute("PRAGMA foreign_keys = ON"), execute("CREATE TEMP TABLE x(y)"))
    told = client.pipeline(
        execute("INSERT INTO child VALUES (99)"),
        execute("INSERT INTO x VALUES (7)"),
        execute("SELECT y FROM x"),
        baton=told["baton"],
    )
    failed, inserted, read = map(outcome, told["results"])
    assert failed["code"] == "SQLITE_CONSTRAINT"
    assert inserted["affected_row_count"] == 1
    assert rows(read) == [[7]]
    told = client.pipeline(execute(COUNT), execute("SELECT y FROM x"), CLOSE, baton=told["baton"])
    assert rows(outcome(told["results"][1])) == [[7]]
    assert client.run("SELECT y FROM x")[0]["code"] == "SQLITE_ERROR"


def test_a_transaction_that_does_not_end_stays_open(one: Site) -> None:
    """BEGIN and COMMIT are both in the batch, and COMMIT is not carried out."""
    client = Client(one.edge().port)
    never = {"type": "error", "step": 0}
    told = client.pipeline(batch("BEGIN", "INSERT INTO t(b) VALUES (1)", ("COMMIT", never)))
    told = client.pipeline({"type": "get_autocommit"}, execute("COMMIT"), baton=told["baton"])
    assert outcome(told["results"][0])["is_autocommit"] is False
    assert client.rows(COUNT) == [[1]]


def test_a_large_batch_is_one_request(one: Site) -> None:
    client = Client(one.edge().port)
    one.asked.sql()
    same = ["INSERT INTO t(b) VALUES (1)"] * 2000
    different = [f"INSERT INTO t(b) VALUES ({number})" for number in range(1000)]
    for texts in (same, different):
        client.pipeline(batch("BEGIN", *texts, "COMMIT"), CLOSE)
        client.pipeline(batch(*texts), CLOSE)
        eventually(lambda: len(one.asked.requests) >= 2)  # a server counts behind its answer
        assert one.asked.sql() == [("/nl/v1/sql", 200)] * 2
    assert client.rows(COUNT) == [[6000]]


def test_what_a_transaction_made_is_known_where_it_was_made(one: Site) -> None:
    client = Client(one.edge().port)
    told = client.pipeline(
        execute("BEGIN"),
        execute("CREATE TABLE made(x)"),
        execute("INSERT INTO made VALUES (4)"),
        execute("CREATE TEMP TABLE copied AS SELECT x FROM made"),
        execute("COMMIT"),
    )
    told = client.pipeline(execute("SELECT x FROM copied"), CLOSE, baton=told["baton"])
    assert rows(outcome(told["results"][0])) == [[4]]
    assert client.rows("SELECT x FROM made") == [[4]]


def test_replicas_below_hear_of_what_is_written_through_it(
    one: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polls, "WATCH", 3600.0)  # not by looking now and then
    edge = one.edge()
    client = Client(edge.port)
    with closing(
        nearlite.connect(one.folder / "leaf.db", sync_url=edge.url, sync_interval="live")
    ) as leaf:
        for count in range(1, 4):
            client.run("INSERT INTO t(b) VALUES (1)")
            eventually(lambda count=count: leaf.execute(COUNT).fetchone() == (count,))  # type: ignore[misc]


@pytest.mark.parametrize("name", ["foreign_keys", 'main."foreign_keys"', "main/**/.foreign_keys"])
def test_settings_stay_however_they_are_written(one: Site, name: str) -> None:
    client = Client(one.edge().port)
    client.run("CREATE TABLE child(p REFERENCES t(a))")
    told = client.pipeline(execute(f"PRAGMA {name} = ON"))
    told = client.pipeline(execute("INSERT INTO child VALUES (99)"), CLOSE, baton=told["baton"])
    assert outcome(told["results"][0])["code"] == "SQLITE_CONSTRAINT"


def test_what_is_not_here_yet_is_asked_for_above(one: Site) -> None:
    edge = one.edge()
    client = Client(edge.port)
    Client(one.port).run("CREATE TABLE newer(x)", "INSERT INTO newer VALUES (8)")
    assert client.rows("SELECT x FROM newer") == [[8]]
    one.asked.sql()
    assert client.run("SELECT * FROM nowhere")[0]["message"].endswith("no such table: nowhere")
    assert len(one.asked.sql()) == 1
    assert client.run("SELEC 1")[0]["code"] == "SQL_INPUT_ERROR"
    assert one.asked.sql() == []


def test_counters_are_the_streams(one: Site) -> None:
    edge = one.edge()
    client = Client(edge.port)
    with talking(edge.port) as talker:
        talker.execute("INSERT INTO t(a, b) VALUES (41, 'x'), (42, 'y')")
        assert rows(talker.execute("SELECT last_insert_rowid(), changes()")) == [[42, 2]]
    told = client.pipeline(execute("INSERT INTO t(a) VALUES (50)"))
    told = client.pipeline(execute("SELECT last_insert_rowid()"), baton=told["baton"])
    assert rows(outcome(told["results"][0])) == [[50]]


BEGUN = {
    "script": {"type": "sequence", "sql": "BEGIN; INSERT INTO t(a) VALUES (1); COMMIT"},
    "batch": batch("BEGIN", "INSERT INTO t(a) VALUES (1)", ("COMMIT", {"type": "ok", "step": 1})),
    "unseen": {
        "type": "sequence",
        "sql": "CREATE TABLE u(x); INSERT INTO u VALUES (1); BEGIN; INSERT INTO u VALUES (2)",
    },
}


@pytest.mark.parametrize("which", BEGUN)
def test_a_transaction_that_does_not_reach_its_end_stays_open(one: Site, which: str) -> None:
    """What follows belongs to it, and is not kept when it is rolled back."""
    edge = one.edge()
    client = Client(edge.port)
    client.run("INSERT INTO t(a) VALUES (1)")
    told = client.pipeline(BEGUN[which])
    told = client.pipeline(
        {"type": "get_autocommit"}, execute("INSERT INTO t(a) VALUES (2)"), baton=told["baton"]
    )
    assert outcome(told["results"][0])["is_autocommit"] is False
    told = client.pipeline(execute("ROLLBACK"), CLOSE, baton=told["baton"])
    assert "affected_row_count" in outcome(told["results"][0])
    assert client.rows(COUNT) == [[1]]


@pytest.mark.parametrize(
    ("text", "look", "found"),
    [
        ("CREATE TEMP TABLE p AS SELECT * FROM u", "SELECT count(*) FROM p", [[1]]),
        ("PRAGMA foreign_keys = ON", "PRAGMA foreign_keys", [[1]]),
    ],
)
def test_settings_behind_what_is_not_here_yet_stay(
    one: Site, text: str, look: str, found: Any
) -> None:
    edge = one.edge()
    client = Client(edge.port)
    script = f"CREATE TABLE u(x); INSERT INTO u VALUES (1); {text}"
    told = client.pipeline({"type": "sequence", "sql": script})
    told = client.pipeline(execute(look), CLOSE, baton=told["baton"])
    assert rows(outcome(told["results"][0])) == found


@pytest.mark.parametrize(
    "text",
    [
        "INSERT INTO t(b) VALUES (1);" * 400,
        "PRAGMA user_version = 3",
        "SAVEPOINT s; INSERT INTO t(b) VALUES (1); RELEASE s",
    ],
)
def test_what_leaves_nothing_behind_does_not_bind_its_stream(one: Site, text: str) -> None:
    """Clients of libSQL never drop a baton: one whose stream is forgotten begins another."""
    edge = one.edge(limits=Limits(idle_seconds=0.05))
    client = Client(edge.port)
    told = client.pipeline({"type": "sequence", "sql": text})
    assert outcome(told["results"][0]) == {"type": "sequence"}
    time.sleep(0.6)  # a tick ends it
    assert rows(outcome(client.pipeline(execute("SELECT 1"), baton=told["baton"])["results"][0]))


def test_texts_that_were_stored_do_not_grow_beyond_what_a_request_may_have(one: Site) -> None:
    edge = one.edge(limits=Limits(max_request_bytes=1 << 20))
    with talking(edge.port) as talker:
        text = "INSERT INTO t(b) VALUES (1) -- " + "x" * 100_000
        talker.ask("store_sql", sql_id=1, sql=text)
        few, many = ({"steps": [{"stmt": {"sql_id": 1}}] * count} for count in (2, 5_000))
        one.asked.sql()
        refused = talker.ask("batch", stream_id=0, batch=many)
        assert one.asked.sql() == []  # it has not been made, either
        assert refused["code"] == "REQUEST_TOO_LARGE"
        assert "nothing was carried out" in refused["message"]
        assert "result" in talker.ask("batch", stream_id=0, batch=few)
        assert rows(talker.execute(COUNT)) == [[2]]


def test_what_is_no_number_is_null_on_the_primary_as_well(one: Site) -> None:
    edge = one.edge()
    body = MESSAGES["PipelineReqBody"]()
    statement = body.requests.add().execute.stmt
    statement.sql = "INSERT INTO t(b) VALUES (?) RETURNING typeof(b)"
    statement.args.add().float = math.nan
    reply = Client(edge.port).request("POST", "/v3-protobuf/pipeline", body.SerializeToString())
    told = MESSAGES["PipelineRespBody"].FromString(reply.body)
    assert told.results[0].ok.execute.result.rows[0].values[0].text == "null"


def test_descriptions_are_of_the_newest_schema(one: Site) -> None:
    edge = one.edge()
    for port in (edge.port, one.port):
        client = Client(port)

        def columns(client: Client = client) -> Any:
            told = client.pipeline({"type": "describe", "sql": "SELECT * FROM u"}, CLOSE)
            return [col["name"] for col in outcome(told["results"][0]).get("cols", [])]

        client.run("CREATE TABLE u(x)", "SELECT * FROM u")
        assert columns() == ["x"]
        client.run("ALTER TABLE u ADD COLUMN y")
        assert columns() == ["x", "y"]
        client.run("DROP TABLE u")
        assert columns() == []


def test_a_connection_of_ours_to_an_edge_reads_its_own_writes(one: Site) -> None:
    edge = one.edge()
    with closing(nearlite.connect(edge.url)) as remote:
        remote.execute("INSERT INTO t(b) VALUES ('remote')")
        remote.commit()
        assert remote.last_write_position == edge.relay.state().position
        one.asked.sql()
        assert remote.execute(COUNT).fetchone() == (1,)
        assert one.asked.sql() == []
    leaf = one.folder / "leaf.db"
    # A replica below: its writes are handed on, with a page set for it; without one, by the primary's batons.
    for visible in (True, False):
        with closing(
            nearlite.connect(leaf, sync_url=edge.url, read_your_writes=visible)
        ) as replica:
            before = replica.execute(COUNT).fetchone()[0]
            replica.execute("INSERT INTO t(b) VALUES ('leaf')")
            replica.execute("INSERT INTO t(b) VALUES ('leaf')")
            replica.commit()
            replica.sync()
            assert replica.execute(COUNT).fetchone() == (before + 2,)


def test_large_results_come_in_pieces(one: Site) -> None:
    edge = one.edge()
    client = Client(edge.port)
    many = (
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 3000) "
        "SELECT i, hex(zeroblob(500)) FROM c"
    )
    body = json.dumps(steps(many, "SELECT * FROM nowhere", "SELECT 1")).encode()
    body = b'{"batch": %b}' % body
    told = [client.request("POST", "/v3/cursor", body) for _ in range(2)]
    direct = Client(one.port).request("POST", "/v3/cursor", body)
    for reply in told:
        assert reply.body.split(b"\n")[1:] == direct.body.split(b"\n")[1:]
    assert len(direct.body) > 3_000_000
    # In a transaction it is the primary that is asked, and here its answer becomes entries.
    for port in (edge.port, one.port):
        with talking(port) as talker:
            talker.execute("BEGIN IMMEDIATE")
            talker.ask(
                "open_cursor",
                stream_id=0,
                cursor_id=1,
                batch=steps(many, "SELECT * FROM nowhere", COUNT),
            )
            found: list[Any] = []
            done = False
            while not done:
                answer = talker.ask("fetch_cursor", cursor_id=1, max_count=1000)
                found += answer["entries"]
                done = answer["done"]
            talker.ask("close_cursor", cursor_id=1)
            talker.execute("ROLLBACK")
        if port == edge.port:
            through = found
    assert through == found


def test_cursors_that_nobody_fetches_are_in_nobodys_way(one: Site) -> None:
    edge = one.edge()
    many = (
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 5000) "
        "SELECT i, hex(zeroblob(300)) FROM c"
    )
    with ExitStack() as stack:
        for _ in range(20):
            talker = stack.enter_context(talking(edge.port))
            talker.ask("open_cursor", stream_id=0, cursor_id=1, batch=steps(many))
            talker.ask("fetch_cursor", cursor_id=1, max_count=1)
        assert len(Client(edge.port).rows(many)) == 5000
    client = Client(edge.port)
    edge.relay.refresh()  # and keep no old pages when they have ended
    assert len(client.rows(many)) == 5000


def test_a_client_that_leaves_ends_what_it_asked_for_above(one: Site) -> None:
    edge = one.edge()
    slow = (
        "INSERT INTO t(b) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) "
        "SELECT i FROM c"
    )
    client = Client(edge.port)
    client.connection.request(
        "POST", "/v2/pipeline", json.dumps({"requests": [execute(slow)]}), {"host": "x"}
    )
    other = Client(one.port)
    eventually(lambda: other.request("GET", "/health").status == 200 and _is_busy(one))
    client.close()
    assert other.run("INSERT INTO t(b) VALUES ('after')")[0]["affected_row_count"] == 1
    assert other.rows(COUNT) == [[1]]


def _is_busy(one: Site) -> bool:
    with closing(sqlite3.connect(one.path, timeout=0, isolation_level=None)) as stock:
        try:
            stock.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        return False


# ---------------------------------------------------------------- read your writes, on any edge


@pytest.mark.parametrize("interval", [None, 3600.0, "live"])
def test_a_client_reads_its_writes_on_another_edge(one: Site, interval: Any) -> None:
    here = one.edge("here.db", sync_interval=interval)
    there = one.edge("there.db", sync_interval=interval)
    writer, reader = Client(here.port), Client(there.port)
    for number in range(1, 6):
        reply = tell(writer, f"INSERT INTO t(b) VALUES ({number})")
        position = reply.headers["nearlite-position"]
        cookie = reply.headers["set-cookie"]
        assert cookie.startswith(f"nearlite-position={position};")
        assert "HttpOnly" in cookie
        name = {"nearlite_position": position} if number % 2 else {"cookie": f"a=b; {cookie}"}
        assert rows(result(tell(reader, COUNT, **name))) == [[number]]
        assert rows(result(tell(reader, COUNT, **name))) == [[number]]  # on the short cut, too
    reply = tell(reader, COUNT)
    assert "nearlite-position" not in reply.headers
    assert "set-cookie" not in reply.headers


def test_a_websocket_begins_where_its_cookie_says(one: Site) -> None:
    here, there = one.edge("here.db"), one.edge("there.db")
    position = tell(Client(here.port), "INSERT INTO t(b) VALUES (1)").headers["nearlite-position"]
    cookie = {"Cookie": f"nearlite-position={position}"}
    with talking(there.port, additional_headers=cookie) as talker:
        assert rows(talker.execute(COUNT)) == [[1]]


def test_positions_that_make_no_sense_are_no_fault(one: Site) -> None:
    edge = one.edge()
    client = Client(edge.port)
    here = edge.relay.state().position
    one.asked.sql()
    for text in ("nonsense", "", "00000000.00000000", "\N{LATIN SMALL LETTER E WITH ACUTE}"):
        assert rows(result(tell(client, COUNT, nearlite_position=text.encode().decode("latin-1"))))
    assert one.asked.sql() == []
    # Of another history, or of a future that does not come: whoever knows is the primary.
    for other in (Position(here.lineage ^ 1, 1, 1), Position(here.lineage, here.generation + 9, 1)):
        assert rows(result(tell(client, COUNT, nearlite_position=str(other)))) == [[0]]
        assert one.asked.sql() == [("/nl/v1/sql", 200)]


@given(st.binary(max_size=200))
def test_any_cookie_is_read(cookie: bytes) -> None:
    wanted({"headers": [(b"cookie", cookie)]})
    told = b"x=%b; nearlite-position=00000001.00000002.00000003" % cookie.replace(b";", b"")
    assert wanted({"headers": [(b"cookie", told)]}) in (Position(1, 2, 3), None)


def test_a_tree_three_levels_deep_while_the_middle_restarts(one: Site) -> None:
    with ExitStack() as middle:
        from nearlite.applications import RelayApp
        from nearlite.relay import Relay

        path = one.folder / "middle.db"

        def begin(at: Any) -> int:
            app = RelayApp(path, lambda: Relay.open(path, one.url, sync_interval=None), edge=True)
            return middle.enter_context(serving(app, at))

        from nearlite import serve

        listening = serve.bind("127.0.0.1", 0)
        port = begin(listening)
        leaf = one.edge("leaf.db", f"http://127.0.0.1:{port}")
        client = Client(leaf.port)
        client.run("INSERT INTO t(b) VALUES ('through two')")
        assert client.rows(COUNT) == [[1]]
        told = client.pipeline(execute("BEGIN"), execute("INSERT INTO t(b) VALUES ('lost')"))
        middle.pop_all().close()
        address = listening.getsockname()
        listening.close()
        listening = serve.bind(*address)
        refused = client.run("INSERT INTO t(b) VALUES ('nobody there')")[0]
        assert refused["code"] == "UPSTREAM_UNREACHABLE"
        assert "nothing was carried out" in refused["message"]
        assert client.rows(COUNT) == [[1]]
        lost = outcome(client.pipeline(execute("COMMIT"), baton=told["baton"])["results"][0])
        assert "rolled back" in lost["message"]
        begin(listening)
        reply = tell(client, "INSERT INTO t(b) VALUES ('again')")
        assert result(reply)["affected_row_count"] == 1
        assert client.rows(COUNT) == [[2]]
        other = Client(one.edge("other.db").port)
        position = reply.headers["nearlite-position"]
        assert rows(result(tell(other, COUNT, nearlite_position=position))) == [[2]]
        middle.pop_all().close()
        listening.close()


# ---------------------------------------------------------------- an upstream that is away, or another one


def test_reads_go_on_without_the_upstream_and_say_how_old_they_are(one: Site) -> None:
    edge = one.edge(sync_interval="live", region="lhr")
    client = Client(edge.port)
    client.run("INSERT INTO t(b) VALUES ('kept')")
    reply = tell(client, COUNT)
    assert reply.headers["nearlite-region"] == "lhr"
    assert "nearlite-age" not in reply.headers
    one.stop()
    eventually(lambda: "nearlite-age" in tell(client, COUNT).headers)
    reply = tell(client, COUNT)
    assert rows(result(reply)) == [[1]]
    assert float(reply.headers["nearlite-age"]) >= 0
    refused = client.run("INSERT INTO t(b) VALUES ('not')", COUNT)
    assert refused[0]["code"] == refused[1]["code"] == "UPSTREAM_UNREACHABLE"
    with talking(edge.port) as talker:
        assert rows(talker.execute(COUNT)) == [[1]]
        assert talker.execute("DELETE FROM t")["code"] == "UPSTREAM_UNREACHABLE"
        assert talker.execute("BEGIN")["code"] == "UPSTREAM_UNREACHABLE"
        one.start()
        eventually(lambda: "affected_row_count" in talker.execute("INSERT INTO t(b) VALUES (2)"))
    eventually(lambda: "nearlite-age" not in tell(client, COUNT).headers)
    assert client.rows(COUNT) == [[2]]


def test_what_is_too_old_is_not_read(one: Site) -> None:
    edge = one.edge(sync_interval=0.02, max_staleness=0.0)
    client = Client(edge.port)
    assert client.rows(COUNT) == [[0]]
    one.stop()
    eventually(lambda: client.run(COUNT)[0].get("code") == "STALE_READ")
    body = b'{"batch": {"steps": [{"stmt": {"sql": "SELECT 1"}}]}}'
    assert b"STALE_READ" in client.request("POST", "/v3/cursor", body).body
    with talking(edge.port) as talker:
        assert talker.execute(COUNT)["code"] == "STALE_READ"
    one.start()
    eventually(lambda: "rows" in client.run(COUNT)[0])


def test_an_edge_begins_without_its_upstream(one: Site) -> None:
    with ExitStack() as first:
        alone = Site(one.folder, first, listening=one.listening)
        client = Client(alone.edge().port)
        client.run("INSERT INTO t(b) VALUES ('kept')")
    one.stop()
    edge = one.edge(sync_interval=0.02)
    client = Client(edge.port)
    assert client.rows("SELECT b FROM t") == [["kept"]]
    one.start()
    Client(one.port).run("INSERT INTO t(b) VALUES ('new')")
    eventually(lambda: client.rows(COUNT) == [[2]])


def test_a_file_that_was_never_seen_to_be_equal_is_not_new(one: Site) -> None:
    with ExitStack() as first:
        alone = Site(one.folder, first, listening=one.listening)
        Client(alone.edge().port).run("INSERT INTO t(b) VALUES ('kept')")
    one.stop()
    edge = one.edge(sync_interval=0.02, max_staleness=1.0)
    client = Client(edge.port)
    eventually(lambda: client.run(COUNT)[0].get("code") == "STALE_READ")


def test_a_position_that_does_not_come_in_time_says_nothing_of_the_upstream(one: Site) -> None:
    """Whoever sends one must not make an edge believe that its primary is away."""
    with slowly(one.port, 0.2) as port:
        edge = one.edge(above=f"http://127.0.0.1:{port}", max_staleness=0.0)
        client = Client(edge.port)
        here = edge.relay.state().position
        ahead = str(here)[:-8] + "0000ffff"
        tell(client, COUNT, Nearlite_Position=ahead)
        time.sleep(0.6)  # ticks
        reply = tell(client, COUNT)
        assert rows(result(reply)) == [[0]]
        assert "nearlite-age" not in reply.headers


@contextmanager
def slowly(port: int, seconds: float) -> Iterator[int]:
    """A server before another one, each of whose answers takes so long."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threads = []

        def one_way(source: socket.socket, target: socket.socket, delay: float) -> None:
            with suppress(OSError), source:
                while data := source.recv(1 << 16):
                    time.sleep(delay)
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    server = socket.create_connection(("127.0.0.1", port))
                    for pair in ((client, server, 0.0), (server, client, seconds)):
                        threads.append(threading.Thread(target=one_way, args=pair))
                        threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join()


def test_what_was_lost_on_its_way_back_is_seen_here_soon(one: Site) -> None:
    """Whoever looks whether it was carried out is not answered by what was before."""
    edge = one.edge()
    client = Client(edge.port)
    forward = edge.relay.upstream.forward

    def lost(*args: Any, **options: Any) -> bytes:
        Client(one.port).run("INSERT INTO t(b) VALUES ('lost')")
        raise OfflineError("it broke off", state="the request had been sent", action="")

    edge.relay.upstream.forward = lost  # type: ignore[method-assign]
    assert client.run("INSERT INTO t(b) VALUES ('lost')")[0]["code"] == "UPSTREAM_LOST"
    edge.relay.upstream.forward = forward  # type: ignore[method-assign]
    eventually(lambda: client.rows(COUNT) == [[1]])


def test_a_commit_that_was_lost_is_not_told_to_be_rolled_back(one: Site) -> None:
    edge = one.edge()
    client = Client(edge.port)
    told = client.pipeline(execute("BEGIN"), execute("INSERT INTO t(b) VALUES ('kept')"))
    forward = edge.relay.upstream.forward

    def lost(body: bytes, **_: Any) -> bytes:
        forward(body, visible=False)
        raise OfflineError("it broke off", state="the request had been sent", action="")

    edge.relay.upstream.forward = lost  # type: ignore[method-assign]
    told = client.pipeline(execute("COMMIT"), CLOSE, baton=told["baton"])
    failed = outcome(told["results"][0])
    assert failed["code"] == "UPSTREAM_LOST"
    assert "what is still open of its transaction" in failed["message"]
    assert Client(one.port).rows(COUNT) == [[1]]


@pytest.mark.parametrize("what", ["restored", "another"])
def test_an_upstream_with_another_history_is_refused_clearly(one: Site, what: str) -> None:
    backup = one.folder / "backup"
    client = Client(one.port)
    if what == "restored":
        client.run("INSERT INTO t(b) VALUES ('old')")
        one.stop()
        backup.mkdir()
        for name in ("primary.db", "primary.db-wal"):
            if (one.folder / name).exists():
                shutil.copy(one.folder / name, backup / name)
        shutil.copytree(one.folder / "primary.db-nearlite", backup / "primary.db-nearlite")
        one.start()
    edge = one.edge(sync_interval=0.02)
    reader = Client(edge.port)
    reader.run("INSERT INTO t(b) VALUES ('seen')")
    before = reader.rows(COUNT)
    one.stop()
    if what == "restored":
        one.start(backup / "primary.db")
    else:
        one.start(one.folder / "another.db")
    codes = {"LINEAGE_MISMATCH", "POSITION_AHEAD"}
    failed = reader.run("INSERT INTO t(b) VALUES ('never')")[0]
    assert failed["code"] in codes, failed
    assert "nothing was c" in failed["message"]
    eventually(lambda: "nearlite-age" in tell(reader, COUNT).headers)
    assert reader.rows(COUNT) == before


def test_clocks_that_jump_are_no_matter(one: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    edge, other = one.edge(sync_interval="live", max_staleness=3600.0), one.edge("other.db")
    client, reader = Client(edge.port), Client(other.port)
    for count, jump in enumerate((0.0, 86400.0, -86400.0, 5e8), 1):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        reply = tell(client, "INSERT INTO t(b) VALUES (1)")
        position = reply.headers["nearlite-position"]
        assert rows(result(tell(reader, COUNT, nearlite_position=position))) == [[count]]
        told = client.pipeline(execute("BEGIN"), execute("DELETE FROM t"))
        client.pipeline(execute("ROLLBACK"), CLOSE, baton=told["baton"])
        assert "nearlite-age" not in tell(client, COUNT).headers


def test_a_full_disk_of_the_edge_hides_nothing_and_loses_nothing(one: Site) -> None:
    """Writes go on, and are read where they are: above. With room again they come here."""
    library = one.folder / "full.so"
    source = Path(__file__).parent / "full.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    disk, marker = one.folder / "disk", one.folder / "marker"
    disk.mkdir()
    process, port, _ = begin(
        *("proxy", "--upstream", one.url, "--path", str(disk / "edge.db"), "--live"),
        *("--listen", "127.0.0.1:0"),
        LD_PRELOAD=str(library),
        NL_FULL=str(marker),
        NL_DISK=str(disk),
    )
    try:
        client = Client(port)
        client.run("INSERT INTO t(b) VALUES ('before')")
        assert client.rows(COUNT) == [[1]]
        marker.touch()
        told = client.pipeline(execute("INSERT INTO t(b) VALUES ('full')"), execute(COUNT))
        assert rows(outcome(told["results"][1])) == [[2]]
        reply = tell(client, "INSERT INTO t(b) VALUES ('full')")
        assert result(reply)["affected_row_count"] == 1
        position = reply.headers["nearlite-position"]
        assert rows(result(tell(client, COUNT, nearlite_position=position))) == [[3]]
        assert rows(result(tell(client, COUNT))) in ([[1]], [[3]])
        marker.unlink()
        eventually(lambda: client.rows(COUNT) == [[3]])
        assert client.run("INSERT INTO t(b) VALUES ('after')")[0]["affected_row_count"] == 1
        assert client.rows(COUNT) == [[4]]
    finally:
        process.terminate()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()
    with closing(sqlite3.connect(f"file:{disk / 'edge.db'}?mode=ro", uri=True)) as stock:
        assert stock.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# ---------------------------------------------------------------- who may ask


def test_missing_and_wrong_tokens_are_told_as_the_guides_tell_them(one: Site) -> None:
    edge = one.edge(authority=Guiding(authority("right")))
    client = Client(edge.port)
    body = json.dumps({"requests": [execute(COUNT)]}).encode()
    for sent, message in (
        ({}, "Missing Authorization header"),
        ({"authorization": "Bearer wrong"}, "Invalid authorization token"),
        ({"authorization": "Basic right"}, "Invalid authorization token"),
    ):
        reply = client.request("POST", "/v2/pipeline", body, **sent)
        assert reply.status == 401
        code = "UNAUTHORIZED"
        error = {"message": message, "code": code}
        assert reply.json == {**error, "error": error}
        assert reply.headers["content-type"] == "application/json"
    reply = client.request("POST", "/v2/pipeline", body, authorization="Bearer right")
    assert reply.status == 200
    with talking(edge.port, hello=False) as talker:
        refusal = talker.hello("wrong")
        assert refusal["error"]["message"] == "Invalid authorization token"


def test_a_token_that_reads_only_cannot_write_above(one: Site, tmp_path: Path) -> None:
    private = tmp_path / "key"
    public = minting.make_keys(private)
    token = minting.mint(minting.private_key(private), write=False)
    edge = one.edge(authority=authority("full", [public.read_text()]))
    client = Client(edge.port, token)
    one.asked.sql()
    assert client.rows(COUNT) == [[0]]
    assert client.run("INSERT INTO t(b) VALUES (1)")[0]["code"] == "SQLITE_READONLY"
    told = client.pipeline(execute("BEGIN"), execute("INSERT INTO t(b) VALUES (1)"), execute(COUNT))
    results = [outcome(one) for one in told["results"]]
    assert results[1]["code"] == "SQLITE_READONLY"
    assert rows(results[2]) == [[0]]
    assert Client(edge.port, "full").rows(COUNT) == [[0]]


def test_a_token_in_a_file_is_renewed(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    with site(tmp_path, auth_token="first") as one:
        client = Client(one.port, "first")
        client.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        token = Renewed(file)
        assert "first" not in repr(token)
        edge = one.edge(token=token)
        below = Client(edge.port)
        assert below.run("INSERT INTO t(b) VALUES (1)")[0]["affected_row_count"] == 1
        one.stop()
        one.start(auth_token="second")
        refused = below.run("INSERT INTO t(b) VALUES (2)")[0]
        assert refused["code"] == "UPSTREAM_REFUSED"
        assert below.rows(COUNT) == [[1]]
        file.with_suffix(".new").write_text("second\n")
        file.with_suffix(".new").replace(file)
        assert below.run("INSERT INTO t(b) VALUES (2)")[0]["affected_row_count"] == 1
        file.unlink()
        assert below.run("INSERT INTO t(b) VALUES (3)")[0]["affected_row_count"] == 1
        assert below.rows(COUNT) == [[3]]


# ---------------------------------------------------------------- the primary as the oracle

_TIMES = re.compile(rb'"(?:query_duration_ms|rows_read|rows_written)":[0-9.]+,?|"baton":"[^"]*"')

texts = st.sampled_from(
    [
        "SELECT count(*), total(b) FROM t",
        "SELECT a, b FROM t ORDER BY a",
        "INSERT INTO t(b) VALUES (1)",
        "INSERT INTO t(b) VALUES (2) RETURNING a, b",
        "INSERT INTO t(a) VALUES (1)",
        "UPDATE t SET b = b + 1",
        "DELETE FROM t WHERE a % 2",
        "SELECT last_insert_rowid(), changes(), total_changes()",
        "BEGIN",
        "BEGIN IMMEDIATE",
        "BEGIN TRANSACTION READONLY",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT s",
        "RELEASE s",
        "CREATE TABLE IF NOT EXISTS u(x)",
        "SELECT * FROM u",
        "DROP TABLE IF EXISTS u",
        "PRAGMA foreign_keys = ON",
        "PRAGMA foreign_keys",
        "PRAGMA user_version = 7",
        "PRAGMA user_version",
        "CREATE TEMP TABLE IF NOT EXISTS p(q)",
        "INSERT INTO p VALUES (3)",
        "SELECT * FROM p",
        "SELEC",
        "",
        "SELECT 1; SELECT 2",
        "SELECT ?",
        "EXPLAIN QUERY PLAN SELECT * FROM t",
    ]
)
conditions = st.one_of(
    st.none(),
    st.just({"type": "is_autocommit"}),
    st.just({"type": "not", "cond": {"type": "is_autocommit"}}),
    st.just({"type": "ok", "step": 0}),
    st.just({"type": "error", "step": 0}),
)
requests = st.one_of(
    texts.map(execute),
    st.lists(st.tuples(texts, conditions), min_size=1, max_size=5).map(
        lambda found: batch(
            *((text, cond if at else None) for at, (text, cond) in enumerate(found))
        )
    ),
    st.lists(texts, min_size=1, max_size=3).map(
        lambda found: {"type": "sequence", "sql": "; ".join(found)}
    ),
    texts.map(lambda text: {"type": "describe", "sql": text}),
    st.just({"type": "get_autocommit"}),
)
pipelines = st.lists(st.lists(requests, min_size=1, max_size=4), min_size=1, max_size=6)


@settings(max_examples=60)
@given(asked=pipelines, closes=st.booleans())
@example(
    asked=[[{"type": "describe", "sql": "PRAGMA foreign_keys = ON"}], [batch("SELEC")]],
    closes=True,
)
@example(
    asked=[[batch("BEGIN", ("COMMIT", {"type": "is_autocommit"}))], [{"type": "get_autocommit"}]],
    closes=True,
)
def test_an_edge_answers_as_its_primary_would(
    two: tuple[int, int], asked: list[list[Any]], closes: bool
) -> None:
    """The same pipelines to a primary, and to an edge of another one that holds the same."""
    answers = []
    for port in two:
        client = Client(port)
        client.run("DROP TABLE IF EXISTS t", "DROP TABLE IF EXISTS u", "PRAGMA user_version = 0")
        client.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)", "INSERT INTO t(b) VALUES (5), (6)")
        baton, told = None, []
        for pipeline in asked:
            answer = client.pipeline(*pipeline, baton=baton)
            baton = answer["baton"]
            told.append(_TIMES.sub(b"", json.dumps(answer["results"]).replace(" ", "").encode()))
        if closes:
            client.pipeline(CLOSE, baton=baton)
        else:  # the connection is lost
            client.pipeline(execute("ROLLBACK"), CLOSE, baton=baton)
        answers.append(told)
        client.close()
    assert answers[0] == answers[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    folder = tmp_path_factory.mktemp("two")
    with (
        serving(nearlite.asgi(folder / "oracle.db", durability="normal")) as oracle,
        site(folder, durability="normal") as one,
    ):
        yield oracle, one.edge().port


# ---------------------------------------------------------------- the command


def begin(*arguments: str, **environment: str) -> tuple[subprocess.Popen[str], int, str]:
    """A process of `nearlite`, its port, and the line that it printed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NEARLITE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "nearlite", *arguments],
        env={**kept, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://[^ ]*?:(\d+)", line)
    assert found, line
    return process, int(found[1]), line


def test_the_variables_of_the_guides_are_all_it_needs(one: Site) -> None:
    path = one.folder / "local.db"
    process, port, line = begin(
        "proxy",
        "--path",
        str(path),
        TURSO_DATABASE_URL=one.url,
        TURSO_AUTH_TOKEN="upstream's",
        TURSO_SYNC_INTERVAL="30",
        PROXY_AUTH_TOKEN="the clients'",
        PORT="0",
        FLY_REGION="iad",
    )
    try:
        told = f"port {port}, region iad, interval 30 s, path {path}, upstream {one.url}/\n"
        assert line == f"edge at http://0.0.0.0:{port}: {told}"
        assert Client(port).request("POST", "/v2/pipeline", b"{}").status == 401
        client = Client(port, "the clients'")
        client.run("INSERT INTO t(b) VALUES (1)")
        assert client.rows(COUNT) == [[1]]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_our_own_names_come_first_and_options_before_them(one: Site) -> None:
    process, _, line = begin(
        *("proxy", "--sync-interval", "5", "--region", "here", "--listen", "127.0.0.1:0"),
        NEARLITE_UPSTREAM=one.url,
        TURSO_DATABASE_URL="http://127.0.0.1:1",
        NEARLITE_PATH=str(one.folder / "mine.db"),
        NEARLITE_REGION="there",
        NEARLITE_SYNC_INTERVAL="7",
        NEARLITE_LIVE="1",
    )
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    assert "127.0.0.1" in line
    assert "region here, interval live" in line
    assert one.url in line


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    def refused(*arguments: str, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "nearlite", "proxy", *arguments],
            env={**os.environ, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stderr

    code, told = refused("--upstream", "http://127.0.0.1:1", PORT="0")
    assert code != 0
    assert "can be reached from other machines" in told
    code, told = refused("--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0")
    assert (code, told.count("\n")) == (3, 1)
    assert "no local file was created" in told
    code, told = refused("--listen", "127.0.0.1:0")
    assert code == 2
    assert "--upstream" in told


ENDLESS = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT count(*) FROM c"


@pytest.mark.parametrize("role", ["edge", "primary"])
def test_a_statement_that_does_not_end_does_not_keep_a_server_from_ending(
    one: Site, role: str
) -> None:
    path = str(one.folder / "ends.db")
    arguments = (
        ("proxy", "--upstream", one.url, "--path", path) if role == "edge" else ("serve", path)
    )
    process, port, _ = begin(*arguments, "--listen", "127.0.0.1:0")
    try:
        client = Client(port)
        body = json.dumps({"requests": [execute(ENDLESS)]})
        client.connection.request("POST", "/v2/pipeline", body, {"host": "x"})
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        client.close()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_an_upstream_that_hangs_is_away(tmp_path: Path) -> None:
    primary, above, _ = begin("serve", str(tmp_path / "primary.db"), "--listen", "127.0.0.1:0")
    edge, port, _ = begin(
        *("proxy", "--upstream", f"http://127.0.0.1:{above}", "--listen", "127.0.0.1:0"),
        *("--path", str(tmp_path / "edge.db"), "--sync-interval", "0.2", "--max-staleness", "4"),
    )
    try:
        client = Client(port)
        client.run("CREATE TABLE t(a)")
        assert "nearlite-age" not in tell(client, COUNT).headers
        primary.send_signal(signal.SIGSTOP)
        eventually(lambda: client.run(COUNT)[0].get("code") == "STALE_READ")
        assert float(tell(client, COUNT).headers["nearlite-age"]) > 4
        primary.send_signal(signal.SIGCONT)
        eventually(lambda: "rows" in client.run(COUNT)[0])
    finally:
        for process in (primary, edge):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def test_an_upstream_that_hangs_does_not_keep_an_edge_from_ending(tmp_path: Path) -> None:
    primary, above, _ = begin("serve", str(tmp_path / "primary.db"), "--listen", "127.0.0.1:0")
    edge, port, _ = begin(
        *("proxy", "--upstream", f"http://127.0.0.1:{above}", "--listen", "127.0.0.1:0"),
        *("--path", str(tmp_path / "edge.db")),
    )
    try:
        client = Client(port)
        client.pipeline(execute("BEGIN IMMEDIATE"), execute("CREATE TABLE t(a)"))
        with talking(port) as talker:
            talker.execute("BEGIN")
            primary.send_signal(signal.SIGSTOP)
            edge.send_signal(signal.SIGTERM)
            assert edge.wait(15) == 0
        client.close()
    finally:
        for process in (primary, edge):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def test_an_edge_that_is_killed_under_load_goes_on(one: Site) -> None:
    """Its clients write and read all the while; nothing that was answered is missing."""
    path = one.folder / "killed.db"
    arguments = ("proxy", "--upstream", one.url, "--path", str(path), "--live")
    written: list[int] = []
    ended = threading.Event()

    def load(port: int) -> None:
        client = Client(port)
        try:
            while not ended.is_set():
                told = client.run("INSERT INTO t(b) VALUES (1)")[0]
                written.append(int(told["last_insert_rowid"]))
                assert client.rows(COUNT)[0][0] >= len(written)
        except (OSError, ConnectionError, AssertionError) as error:
            if isinstance(error, AssertionError):
                raise

    for _ in range(4):
        process, port, _ = begin(*arguments, "--listen", "127.0.0.1:0")
        goal = len(written) + 40
        thread = threading.Thread(target=load, args=(port,))
        thread.start()
        eventually(lambda goal=goal: len(written) >= goal)  # type: ignore[misc]
        process.kill()
        process.wait()
        thread.join(20)
        assert process.stdout is not None
        process.stdout.close()
    ended.set()
    primary = Client(one.port).rows("SELECT a FROM t")
    assert {row[0] for row in primary} >= set(written)
    edge = one.edge("killed.db")
    edge.relay.refresh()
    assert Client(edge.port).rows("SELECT a FROM t") == primary
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as stock:
        assert stock.execute("PRAGMA integrity_check").fetchone() == ("ok",)
