"""The page at ``GET /``: who may see it, what it is told, and what a real browser makes of it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser
from serving import Client, app_of, batch, execute, serving
from talking import steps, talking
from websockets.exceptions import InvalidStatus

import nearlite
from nearlite import errors, serve
from nearlite.applications import RelayApp
from nearlite.asked import EDGE, Seen
from nearlite.last_errors import LastErrors
from nearlite.network import Network
from nearlite.position import Position
from nearlite.relay import Relay
from nearlite.server import App
from nearlite.spawn import primary
from nearlite.standing import LISTED, Size, Standing

TOKEN = "a token"
STATE = "/console/state"
CLOSE = {"type": "close"}


def told(port: int, token: str | None = None) -> Any:
    reply = Client(port, token).request("GET", STATE)
    assert reply.status == 200, reply.body
    return reply.json


def eventually(good: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not good():
        assert time.monotonic() < limit
        time.sleep(0.005)


def until(port: int, good: Callable[[Any], Any], token: str | None = None) -> Any:
    limit = time.monotonic() + 20
    while not good(state := told(port, token)):
        assert time.monotonic() < limit, state
    return state


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    with serving(app_of(tmp_path / "data.db", console=True, auth_token=TOKEN)) as port:
        yield port


# ---------------------------------------------------------------- the page


def test_without_it_nothing_is_there(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "data.db")) as port:
        for path in ("/", STATE):
            reply = Client(port).request("GET", path)
            assert (reply.status, reply.json["code"]) == (404, "NOT_FOUND")


def test_the_page_needs_no_token_and_its_policy_allows_its_own_blocks_alone(port: int) -> None:
    reply = Client(port).request("GET", "/")
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    policy = dict(
        part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["form-action"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["trusted-types"] == "'none'"
    assert "unsafe" not in str(policy)
    for kind in ("script", "style"):
        (block,) = re.findall(f"<{kind}>(.*?)</{kind}>", reply.body.decode(), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"


def test_the_page_puts_what_it_is_told_in_as_text_and_asks_for_nothing_elsewhere(
    port: int,
) -> None:
    page = Client(port).request("GET", "/").body.decode()
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Storage"):
        assert word not in page
    assert not re.search(r"\bon\w+=|javascript:|style=", page)
    links = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert links == {"http://www.w3.org/2000/svg"}  # a name


def test_the_page_holds_nothing_of_the_database(port: int, tmp_path: Path) -> None:
    page = Client(port).request("GET", "/").body
    with serving(app_of(tmp_path / "other.db", console=True, auth_token="another")) as other:
        assert Client(other).request("GET", "/").body == page
    with serving(app_of(tmp_path / "open.db", console=True)) as other:
        opened = Client(other).request("GET", "/").body
        assert opened.replace(b'"unasked"', b'"asked"', 1) == page


def test_the_page_and_a_long_state_are_compressed_for_who_accepts_it(tmp_path: Path) -> None:
    app: Any = app_of(tmp_path / "data.db", console=True)
    with serving(app) as port:
        client = Client(port)
        for number in range(20):
            app._last_errors.note("CODE", f"{number} " + "x" * 300)
        until(port, lambda state: len(state["errors"]) == 20)
        for path in ("/", STATE):
            whole = client.request("GET", path)
            small = client.request("GET", path, accept_encoding="gzip")
            assert small.headers["content-encoding"] == "gzip"
            assert small.headers["vary"] == "accept-encoding"
            assert small.headers["cache-control"] == "no-store"
            assert "content-encoding" not in whole.headers
            assert len(small.body) < len(whole.body) / 2
            assert gzip.decompress(small.body)[:60] == whole.body[:60]

        def looked() -> int:
            reply = client.request("GET", STATE, accept_encoding="gzip")
            at: int = json.loads(gzip.decompress(reply.body))["now_ms"]
            return at

        before = looked()
        eventually(lambda: looked() > before)
        head = client.request("HEAD", "/", accept_encoding="gzip")
        assert (head.body, head.headers["content-encoding"]) == (b"", "gzip")


def test_head_is_answered_and_other_methods_are_not(port: int) -> None:
    client = Client(port, TOKEN)
    for path in ("/", STATE):
        head, get = client.request("HEAD", path), client.request("GET", path)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
        post = client.request("POST", path, b"{}")
        assert (post.status, post.json["code"]) == (405, "METHOD_NOT_ALLOWED")
        assert post.headers["allow"] == "GET, HEAD, OPTIONS"


def test_it_may_be_mounted_below_a_path(tmp_path: Path) -> None:
    with serving(_Alive(_mounted(app_of(tmp_path / "data.db", console=True)))) as port:
        assert b"<html" in Client(port).request("GET", "/below/").body
        assert Client(port).request("GET", "/below" + STATE).json["database"] == "data.db"


def _mounted(app: App) -> Any:
    """An application of others in which ours is below a path; it ends with that."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    @asynccontextmanager
    async def lasting(_: Starlette) -> AsyncIterator[None]:
        yield
        await app.shutdown()

    return Starlette(routes=[Mount("/below", app)], lifespan=lasting)


class _Alive:
    """An application of others, which has no /health and does not know of ours."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def stop_waiting(self) -> None:
        pass

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") == "/health":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._app(scope, receive, send)


# ---------------------------------------------------------------- who is told


def test_the_state_asks_for_the_token(port: int) -> None:
    for token, code in ((None, "AUTH_HTTP_HEADER_MISSING"), ("wrong", "UNAUTHORIZED")):
        for method in ("GET", "POST"):
            reply = Client(port, token).request(method, STATE)
            assert (reply.status, reply.json["code"]) == (401, code)
            assert reply.json.keys() == {"message", "code", "error"}
    assert Client(port).request("HEAD", STATE).status == 401
    assert told(port, TOKEN)["database"] == "data.db"
    # Not in the URL either.
    assert Client(port).request("GET", f"{STATE}?token={TOKEN}".replace(" ", "+")).status == 401


def test_without_a_token_a_page_from_elsewhere_is_told_nothing(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "data.db", console=True)) as port:
        reply = Client(port).request("GET", STATE, origin="http://evil.example")
        assert (reply.status, reply.json["code"]) == (403, "FORBIDDEN")


def test_without_a_token_a_name_that_leads_here_is_told_nothing(tmp_path: Path) -> None:
    """DNS rebinding: to the browser, the server is of one origin with a page of whoever owns the name."""
    with serving(app_of(tmp_path / "data.db", console=True)) as port:
        for headers in ({"accept_language": "en"}, {"origin": f"http://elsewhere.example:{port}"}):
            for path in (STATE, "/dump", "/nl/v1/status", "/nl/v1/snapshot", "/info"):
                reply = Client(port).request(
                    "GET", path, host=f"elsewhere.example:{port}", **headers
                )
                assert (reply.status, reply.json["code"]) == (403, "FORBIDDEN"), path
        # Programs behind a proxy send any Host.
        assert Client(port).request("GET", STATE, host="db.example").status == 200


def test_names_that_are_no_text_are_told(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff<b>.db")
    with serving(app_of(tmp_path / name, console=True, region="\udcff \ud800")) as port:
        state = told(port)
        assert (state["database"], state["region"]) == ("\ufffd<b>.db", "\ufffd \ufffd")
    last = LastErrors()
    last.note("\udcff", "\udcff")
    assert [(error["code"], error["message"]) for error in last.told()] == [("\ufffd", "\ufffd")]


@pytest.mark.parametrize(
    ("host", "trusting", "asked", "shown"),
    [
        ("127.0.0.1", True, None, True),
        ("::1", True, None, True),
        ("127.0.0.1", True, False, False),
        ("127.0.0.1", False, True, True),
        ("0.0.0.0", True, None, False),
        ("0.0.0.0", True, False, False),
        ("0.0.0.0", False, None, True),
        ("0.0.0.0", False, False, False),
        ("0.0.0.0", False, True, True),
    ],
)
def test_it_is_off_beyond_loopback_unless_a_token_guards_it(
    host: str, trusting: bool, asked: bool | None, shown: bool
) -> None:
    assert serve.shows_console(host, trusting=trusting, asked=asked) is shown


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["data.db", "--console", "--no-auth", "--listen", "0.0.0.0:0"], 1, "run SQL on the con"),
        (["--data-dir", "many", "--console"], 2, "--console is for one DATABASE"),
    ],
)
def test_it_is_refused_where_it_cannot_be(
    tmp_path: Path, options: list[str], code: int, said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nearlite", "serve", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data.db").exists()


def test_an_application_of_many_databases_has_none(tmp_path: Path) -> None:
    with pytest.raises(errors.ProgrammingError, match="console is for one database"):
        nearlite.asgi(data_dir=tmp_path, console=True)


def test_the_option_switches_it_off(tmp_path: Path) -> None:
    with primary(tmp_path / "data.db", "--no-console") as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        assert Client(port).request("GET", "/").status == 404


# ---------------------------------------------------------------- what is told


def test_what_a_primary_tells(port: int, tmp_path: Path) -> None:
    client = Client(port, TOKEN)
    client.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
    before = told(port, TOKEN)
    for _ in range(7):
        client.run("INSERT INTO t(b) VALUES('x')")
    state = until(port, lambda state: state["commits"] >= before["commits"] + 7, TOKEN)
    assert state["commits"] == before["commits"] + 7
    assert (state["role"], state["database"], state["region"]) == ("primary", "data.db", None)
    assert state["upstream"] is None
    assert state["position"] == client.request("GET", "/nl/v1/status").json["position"]
    assert state["pages"] == 2
    assert state["database_bytes"] + state["wal_bytes"] > 2 * state["page_size"]
    assert abs(state["now_ms"] / 1000 - time.time()) < 60
    assert state["errors"] == []
    assert str(tmp_path) not in json.dumps(state)
    assert TOKEN not in json.dumps(state)


def test_commits_are_counted_across_generations_and_whoever_makes_them(
    tmp_path: Path,
) -> None:
    import sqlite3

    path = tmp_path / "data.db"
    with serving(app_of(path, console=True, roll_bytes=1 << 16)) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        before = told(port)
        for _ in range(40):
            client.run("INSERT INTO t(b) VALUES(randomblob(3000))")
        stock = sqlite3.connect(path)
        with stock:
            stock.execute("INSERT INTO t(b) VALUES(1)")
        stock.close()
        state = until(port, lambda state: state["commits"] >= before["commits"] + 41)
        assert state["commits"] == before["commits"] + 41
        assert Position.parse(state["position"]).generation > 1


def test_who_follows_and_who_is_behind(port: int, tmp_path: Path) -> None:
    client = Client(port, TOKEN)
    client.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        for name, options in (("live", {"sync_interval": "live"}), ("still", {})):
            replica = nearlite.connect(
                tmp_path / f"{name}.db", sync_url=url, auth_token=TOKEN, **options
            )
            stack.callback(replica.close)
        until(port, lambda state: state["replicas"]["waiting"] == 1, TOKEN)
        client.run("INSERT INTO t(b) VALUES('x')")

        def right(state: Any) -> bool:
            rows = state["replicas"]["listed"]
            live = [row["frames_behind"] for row in rows if row["waiting"]]
            still = [row["frames_behind"] for row in rows if not row["waiting"]]
            return live == [0] and any(still)

        state = until(port, right, TOKEN)
        assert state["replicas"]["frames_behind"] >= 1
        assert state["sent_bytes"] > 8192  # two files of two pages
        assert {row["edge"] for row in state["replicas"]["listed"]} == {False}
        sent = state["sent_bytes"]
        replica.sync()
        state = until(port, lambda state: state["replicas"]["behind"] == 0, TOKEN)
        assert state["sent_bytes"] > sent


def test_what_a_replica_that_serves_others_tells(tmp_path: Path) -> None:
    top, middle = tmp_path / "top.db", tmp_path / "middle.db"
    with serving(app_of(top, console=True)) as above:
        client = Client(above)
        client.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        url = f"http://127.0.0.1:{above}"

        def relay() -> Relay:
            return Relay.open(middle, url, sync_interval=None, region="fra 1")

        with serving(RelayApp(middle, relay, console=True, region="fra 1")) as port:
            assert told(port)["upstream"]["lag_seconds"] is None
            replica = nearlite.connect(tmp_path / "bottom.db", sync_url=f"http://127.0.0.1:{port}")
            replica.sync()
            client.run("INSERT INTO t(b) VALUES('x')")

            # It asks how far it is behind, and brings nothing by that.
            state = until(port, lambda state: state["upstream"]["transactions_behind"] == 1)
            assert (state["role"], state["region"]) == ("replica", "fra 1")
            assert state["upstream"]["url"] == url + "/"
            assert state["upstream"]["lag_seconds"] > 0
            assert state["upstream"]["follows"] is False
            assert state["upstream"]["error"] is None
            lag, commits = state["upstream"]["lag_seconds"], state["commits"]
            state = until(port, lambda state: state["upstream"]["lag_seconds"] > lag)

            replica.sync()
            state = until(port, lambda state: state["upstream"]["transactions_behind"] == 0)
            assert state["commits"] == commits + 1
            assert state["received_bytes"] > 0
            assert state["replicas"]["behind"] == 0
            state = until(above, lambda state: state["replicas"]["listed"])
            (edge,) = [row for row in state["replicas"]["listed"] if row["edge"]]
            assert (edge["region"], edge["frames_behind"]) == ("fra 1", 0)
            replica.close()


def test_what_an_edge_tells(tmp_path: Path) -> None:
    with primary(tmp_path / "top.db") as above:
        options = ("--upstream", above, "--path", tmp_path / "edge.db", "--region", "fra")
        command = [sys.executable, "-m", "nearlite", "proxy", *map(str, options)]
        with subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", "--live"], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                port = int(line.partition(": port ")[2].partition(",")[0])
                assert b"<html" in Client(port).request("GET", "/").body
                state = until(port, lambda state: state["upstream"]["follows"])
                assert (state["role"], state["region"]) == ("edge", "fra")
                assert state["upstream"]["url"].rstrip("/") == above
                there = int(above.rstrip("/").rpartition(":")[2])
                state = until(there, lambda state: state["replicas"]["waiting"])
                (row,) = [row for row in state["replicas"]["listed"] if row["waiting"]]
                assert (row["edge"], row["region"]) == (True, "fra")
                Client(port).run("SELECT nowhere")
                (error,) = until(port, lambda state: state["errors"])["errors"]
                assert (error["code"], error["count"]) == ("SQL_INPUT_ERROR", 1)
            finally:
                process.terminate()
                Client(port).close()


def test_an_upstream_that_is_gone_is_told(tmp_path: Path) -> None:
    with ExitStack() as stack:
        above = stack.enter_context(ExitStack())
        there = above.enter_context(serving(app_of(tmp_path / "top.db")))
        app = nearlite.asgi(
            tmp_path / "middle.db",
            upstream=f"http://127.0.0.1:{there}",
            sync_interval=3600,
            console=True,
        )
        port = stack.enter_context(serving(app))
        assert told(port)["upstream"]["error"] is None
        above.close()
        state = until(port, lambda state: state["upstream"]["error"])
        assert str(tmp_path) not in state["upstream"]["error"]


def test_the_last_errors_hold_no_values(port: int) -> None:
    client = Client(port, TOKEN)
    client.run("CREATE VIRTUAL TABLE f USING fts5(x)")
    wrong = execute("SELECT * FROM f WHERE f MATCH ?", "AND hidden")
    client.pipeline(wrong, CLOSE)
    client.pipeline(wrong, CLOSE)
    alone = client.request("POST", "/v1/execute", json.dumps({"stmt": wrong["stmt"]}).encode())
    assert alone.status == 500
    assert b"hidden" in alone.body or b"AND" in alone.body
    assert Client(port, "not it").request("GET", STATE).status == 401
    assert client.request("GET", "/nl/v1/changes/nowhere").status == 400
    state = until(port, lambda state: len(state["errors"]) == 3, TOKEN)
    assert [error["code"] for error in state["errors"]] == [
        "BAD_REQUEST",
        "UNAUTHORIZED",
        "SQLITE_ERROR",
    ]
    assert state["errors"][2]["message"] == "A statement failed"
    assert state["errors"][2]["count"] == 3
    assert "hidden" not in json.dumps(state)
    assert "not it" not in json.dumps(state)


def known(port: int, count: int, token: str | None = None) -> None:
    """So many statements have failed, and nothing else has."""
    until(port, lambda state: sum(error["count"] for error in state["errors"]) >= count, token)
    until(port, fresh(port, token), token)
    errors = told(port, token)["errors"]
    assert {error["message"] for error in errors} == {"A statement failed"}
    assert sum(error["count"] for error in errors) == count


def fresh(port: int, token: str | None) -> Callable[[Any], bool]:
    """Whether a state is of a later look than the one that is told of now."""
    seen = told(port, token)["now_ms"]
    return lambda state: state["now_ms"] > seen


def refused(port: int, code: str, token: str) -> None:
    """A refusal is among the last errors."""
    until(port, lambda state: code in [error["code"] for error in state["errors"]], token)


@pytest.mark.parametrize("protocol", ["hrana3", "hrana2"])
def test_the_last_errors_hold_what_failed_over_websocket(port: int, protocol: str) -> None:
    with talking(port, protocol, hello=False) as talker:
        assert talker.hello(TOKEN) == {"type": "hello_ok"}
        talker.open()
        talker.execute("SELECT ?", '{"message":"no","code":"NONE"}')
        assert talker.execute("SELECT nowhere")["code"]
        known(port, 1, TOKEN)
        talker.execute("INSERT INTO nowhere VALUES (1)")
        talker.ask("batch", stream_id=0, batch=steps("SELECT 1", "SELECT nowhere"))
        known(port, 3, TOKEN)
        if protocol == "hrana3":
            talker.ask("open_cursor", stream_id=0, cursor_id=1, batch=steps("SELECT 1", "SELECT n"))
            entries = talker.ask("fetch_cursor", cursor_id=1, max_count=100)["entries"]
            assert entries[-1]["type"] == "step_error"
            known(port, 4, TOKEN)
            talker.ask("close_cursor", cursor_id=1)
    with talking(port, hello=False) as talker:
        assert talker.hello("another")["type"] == "hello_error"
    refused(port, "AUTH_JWT_INVALID", TOKEN)
    assert "another" not in json.dumps(told(port, TOKEN))
    with pytest.raises(InvalidStatus), talking(port, path="/nowhere"):
        pass
    refused(port, "NOT_FOUND", TOKEN)


def test_the_last_errors_hold_what_failed_in_a_cursor(port: int) -> None:
    forever = (
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c LIMIT 9999) SELECT i FROM c"
    )
    client = Client(port, TOKEN)
    for count, body in enumerate((steps("SELECT n"), steps(forever, "INSERT INTO n VALUES(1)")), 1):
        reply = client.request("POST", "/v3/cursor", json.dumps({"batch": body}).encode())
        assert b'"step_error"' in reply.body
        known(port, count, TOKEN)


@pytest.mark.parametrize("edge", [True, False])
def test_the_last_errors_hold_what_failed_above(tmp_path: Path, *, edge: bool) -> None:
    """On an edge, and on a replica whose SQL is all handed on; as a replica below asks, too."""
    with ExitStack() as stack:
        above = stack.enter_context(serving(app_of(tmp_path / "top.db")))
        Client(above).run("CREATE TABLE t(a INTEGER PRIMARY KEY)", "INSERT INTO t VALUES (1)")
        middle = tmp_path / "middle.db"
        url = f"http://127.0.0.1:{above}"

        def relay() -> Relay:
            return Relay.open(middle, url, sync_interval=None)

        port = stack.enter_context(serving(RelayApp(middle, relay, console=True, edge=edge)))
        client = Client(port)
        assert client.run("INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)")[0]["code"]
        known(port, 1)
        body = json.dumps({"batch": steps("INSERT INTO t VALUES (1)")}).encode()
        assert b'"step_error"' in client.request("POST", "/v3/cursor", body).body
        known(port, 2)
        body = json.dumps({"stmt": {"sql": "INSERT INTO t VALUES (1)"}}).encode()
        assert client.request("POST", "/v1/execute", body).status == 500
        known(port, 3)
        with talking(port) as talker:
            assert talker.execute("INSERT INTO t VALUES (1)")["code"]
            known(port, 4)
        below = nearlite.connect(tmp_path / "bottom.db", sync_url=f"http://127.0.0.1:{port}")
        stack.callback(below.close)
        with pytest.raises(nearlite.IntegrityError):
            below.execute("INSERT INTO t VALUES (1)")
        known(port, 5)


def test_what_was_carried_out_is_no_error(port: int) -> None:
    client = Client(port, TOKEN)
    # Neither compiles before the one in front of it has run.
    client.pipeline(execute("CREATE TABLE a(b)"), execute("INSERT INTO a VALUES(1)"), CLOSE)
    client.pipeline(batch("CREATE TABLE c(d)", "INSERT INTO c VALUES(1)"), CLOSE)
    client.pipeline(execute("SELECT ?", '{"message":"no","code":"NONE"}'), CLOSE)
    client.pipeline(batch("SELECT 1", "INSERT INTO nowhere VALUES(1)"), CLOSE)
    (error,) = until(port, lambda state: state["errors"], TOKEN)["errors"]
    assert (error["code"], error["count"]) == ("SQLITE_ERROR", 1)


def test_a_client_that_leaves_is_no_error(tmp_path: Path) -> None:
    forever = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT max(i) FROM c"
    body = json.dumps({"requests": [execute(forever), CLOSE]}).encode()
    request = f"POST /v2/pipeline HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    app: Any = app_of(tmp_path / "data.db", console=True)
    with serving(app) as port:
        for _ in range(2):  # the usual way, and the short cut
            with socket.create_connection(("127.0.0.1", port)) as leaver:
                leaver.sendall(request.encode() + body)
                eventually(lambda: app.running)
            eventually(lambda: not app.running)
        assert told(port)["errors"] == []


def test_errors_are_counted_in_a_bounded_list() -> None:
    last = LastErrors()
    for number in range(50):
        last.note("CODE", f"{number} " + "x" * 1000)
    last.note("CODE", "40 " + "x" * 1000)
    found = last.told()
    assert len(found) == 20
    assert (found[0]["message"][:3], found[0]["count"]) == ("40 ", 2)
    assert {len(error["message"]) for error in found} == {300}
    last.statement("CODE" * 1000)  # of a server above, whatever it says
    assert len(last.told()[0]["code"]) == 300


def test_of_many_replicas_the_furthest_are_told_of_by_name() -> None:
    here = Position(1, 2, 5000)
    seen = Seen()
    for number in range(3000):
        seen.note(("10.0.0.1", number), Position(1, 2, 5000 - number))
    seen.note(("::1", 1), Position(1, 2, 5000), b"fra")
    seen.note(("10.0.0.2", 1), None)
    size = Size(1, 4096, 1, 1, 1)
    standing = Standing(
        role="primary",
        database="d",
        region=None,
        version="1",
        position=here,
        size=size,
        commits=1,
        sent=1,
        above=None,
        seen=seen.lately(),
        waiting={("10.0.0.1", 2999): Position(1, 1, 7), ("10.0.0.1", 2998): here},
        errors=[],
        now_ms=1,
        clock=time.monotonic(),
    )
    replicas = json.loads(standing.encode())["replicas"]
    assert (replicas["seen"], replicas["waiting"], replicas["behind"]) == (3002, 2, 2998)
    assert replicas["frames_behind"] == 2997
    assert len(replicas["listed"]) == LISTED
    edge, first, second = replicas["listed"][:3]
    assert (edge["address"], edge["edge"], edge["region"]) == ("[::1]:1", True, "fra")
    assert (first["address"], first["frames_behind"]) == ("10.0.0.1:2999", None)
    assert first["waiting"]
    assert (second["address"], second["frames_behind"]) == ("10.0.0.1:2997", 2997)
    assert len(standing.encode()) < 40_000


def test_of_a_region_goes_along_what_a_header_can_take() -> None:
    def sent(region: str | None) -> str:
        ((name, value),) = Network().of_edge(region).headers
        assert name.lower().encode() == EDGE
        return value

    assert sent("ams") == "ams"
    assert sent(" a\r\nb ü") == "ab"
    assert sent("x" * 100) == "x" * 64
    assert sent(None) == sent("") == sent("ü") == "*"


def test_many_that_look_at_once_share_one_look(tmp_path: Path) -> None:
    app = app_of(tmp_path / "data.db", console=True)
    with serving(app) as port:
        told(port)
        console = app._console
        looks, whole = [], console._standing

        async def counted() -> bytes:
            looks.append(time.monotonic())
            return await whole()

        console._standing = counted
        threads = [threading.Thread(target=told, args=(port,)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gaps = [after - before for before, after in itertools.pairwise(looks)]
        assert len(looks) < 20
        assert all(gap >= 0.19 for gap in gaps)


# ---------------------------------------------------------------- a real browser


@pytest.fixture(scope="module")
def process() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture
def chromium(process: Browser) -> Iterator[Browser]:
    yield process
    process.close()


pytestmark = pytest.mark.xdist_group("released-clients")  # npm installs once


def test_a_browser_is_refused_with_a_wrong_token_and_let_in_with_the_right_one(
    chromium: Browser, port: int
) -> None:
    url = f"http://127.0.0.1:{port}/"
    assert chromium.open("locked", url) == 200
    chromium.until("locked", "#status", "^Locked$")
    hidden = "document.querySelector('#sql').checkVisibility()"
    assert not chromium.evaluate("locked", hidden)
    assert chromium.complaints() == []
    chromium.fill("locked", "#token", "schlüssel")
    chromium.press("locked", "#token", "Enter")
    chromium.until("locked", "#refused", "printable ASCII")
    assert chromium.complaints() == []
    chromium.fill("locked", "#token", "wrong")
    chromium.press("locked", "#token", "Enter")
    chromium.until("locked", "#refused", "The token is not the right one")
    assert not chromium.evaluate("locked", hidden)
    (refused,) = chromium.complaints()
    assert "401" in refused
    chromium.fill("locked", "#token", TOKEN)
    chromium.press("locked", "#token", "Enter")
    chromium.until("locked", "#status", "^Live$")
    chromium.until("locked", "#errors", "The token is not the right one")
    assert chromium.evaluate("locked", hidden)
    assert not chromium.evaluate("locked", "document.querySelector('#token').checkVisibility()")
    chromium.open("locked", url)  # nothing was kept
    chromium.until("locked", "#status", "^Locked$")
    assert chromium.complaints() == []


def test_a_browser_shows_lag_falling_and_runs_sql(chromium: Browser, tmp_path: Path) -> None:
    """The page of a replica behind a token, beside its primary's."""
    token = "secret"
    with ExitStack() as stack:
        top = stack.enter_context(primary(tmp_path / "data.db"))
        writer = nearlite.connect(top)
        stack.callback(writer.close)
        writer.execute("CREATE TABLE city(name TEXT PRIMARY KEY, people INTEGER)")
        writer.commit()
        options = ("--sync-interval", "3600", "--auth-token", token)
        below = stack.enter_context(primary(tmp_path / "copy.db", "--upstream", top, *options))
        reader = nearlite.connect(tmp_path / "reader.db", sync_url=below, auth_token=token)
        stack.callback(reader.close)
        chromium.open("top", top)
        chromium.open("copy", below)
        chromium.fill("copy", "#token", token)
        chromium.click("copy", "#unlock button")
        chromium.until("copy", "#status", "^Live$")
        chromium.until("top", "#status", "^Live$")

        writer.executemany("INSERT INTO city VALUES(?, ?)", [("Lima", 10_300_000), ("Oslo", 1)])
        writer.commit()
        chromium.until("copy", "#numbers", r"Behind\s*1 transaction(?!s)")
        before = chromium.when(
            "copy", "looks.length > 2 && looks.at(-1).lag > 1 && looks.at(-1).lag"
        )
        reader.sync()
        after = chromium.when("copy", f"looks.at(-1).lag < {before} && looks.at(-1).lag + 1e-9")
        assert after < before
        chromium.until("copy", "#numbers", r"Behind\s*0 transactions")
        chromium.until("copy", "#lag-unit", "behind the primary")
        chromium.until("copy", "#topology", "replica 127.0.0.1:.*up to date")
        chromium.until("top", "#topology", "edge 127.0.0.1:.*up to date")
        assert "this replica" in chromium.attribute("copy", "#topology", "aria-label")

        chromium.fill("copy", "#sql", "SELECT name, people, NULL, x'00ff' FROM city ORDER BY 1")
        chromium.press("copy", "#sql", "Control+Enter")
        chromium.until("copy", "#outcome", "^2 rows, ")
        assert chromium.cells("copy", "#rows td") == [
            *("Lima", "10300000", "NULL", "blob, 2 bytes"),
            *("Oslo", "1", "NULL", "blob, 2 bytes"),
        ]
        assert chromium.cells("copy", "#rows th")[:2] == ["name", "people"]
        chromium.fill("copy", "#sql", "UPDATE city SET people = 720000 WHERE name = 'Oslo'")
        chromium.click("copy", "#run")
        chromium.until("copy", "#outcome", "^1 row changed, ")
        chromium.fill("copy", "#sql", "SELECT missing")
        chromium.click("copy", "#run")
        chromium.until("copy", "#outcome", "no such column: missing")
        assert writer.execute("SELECT people FROM city WHERE name = 'Oslo'").fetchall() == [
            (720000,)
        ]
        # Text is text: nothing that a database holds becomes a part of the page.
        chromium.fill("copy", "#sql", "SELECT '<img src=x onerror=alert(1)>' AS \"<b>bold</b>\"")
        chromium.click("copy", "#run")
        chromium.until("copy", "#rows td", "<img src=x")
        assert chromium.cells("copy", "#rows th") == ["<b>bold</b>"]
        assert token not in chromium.evaluate("copy", "location.href")
        assert chromium.evaluate("copy", "document.cookie + JSON.stringify(sessionStorage)") == "{}"
        chromium.screenshot("copy", str(tmp_path / "console.png"))
        assert (tmp_path / "console.png").stat().st_size > 10_000
        assert chromium.complaints() == []


def test_a_browser_says_that_the_server_is_gone_and_goes_on_by_itself(
    chromium: Browser, tmp_path: Path
) -> None:
    with serve.bind("127.0.0.1", 0) as kept:
        with serving(app_of(tmp_path / "data.db", console=True), kept) as port:
            chromium.open("gone", f"http://127.0.0.1:{port}/", scheme="dark", width=500)
            chromium.until("gone", "#status", "^Live$")
            assert chromium.complaints() == []
        chromium.until("gone", "#status", r"^Not reachable since \d\d:\d\d:\d\d$")
        with serving(app_of(tmp_path / "data.db", console=True), kept):
            chromium.until("gone", "#status", "^Live$")
        told = chromium.complaints()
        assert all("Failed to load resource" in line for line in told), told


def test_a_browser_under_a_name_that_leads_here_runs_nothing(
    chromium: Browser, tmp_path: Path
) -> None:
    with serving(app_of(tmp_path / "data.db", console=True)) as port:
        chromium.open("strange", f"http://elsewhere.example:{port}/")
        chromium.until("strange", "#refused", "FORBIDDEN")
        body = json.dumps(json.dumps({"requests": [execute("CREATE TABLE t(a)"), CLOSE]}))
        asking = f"fetch('/v2/pipeline', {{method: 'POST', body: {body}}}).then((answer) => answer.status)"
        assert chromium.evaluate("strange", asking) == 403
        for path in (STATE, "/dump", "/nl/v1/status"):
            asking = f"fetch('{path}').then((answer) => answer.status)"
            assert chromium.evaluate("strange", asking) == 403, path
        asking = (
            "new Promise((done) => { const socket = new WebSocket(`ws://${location.host}/`, 'hrana3'); "
            "socket.onopen = () => done('open'); socket.onerror = () => done('refused'); })"
        )
        assert chromium.evaluate("strange", asking) == "refused"
        assert Client(port).rows("SELECT count(*) FROM sqlite_schema") == [[0]]


def test_a_browser_shows_what_is_hostile_or_huge_as_text_and_within_bounds(
    chromium: Browser, tmp_path: Path
) -> None:
    bad = "<img src=x onerror=alert(1)>"
    app = app_of(tmp_path / f"{bad}.db", console=True, region=bad)
    with serving(app) as port:
        client = Client(port)
        position = client.request("GET", "/nl/v1/status").json["position"]
        at = f"/nl/v1/changes/{position}?wait=0"
        assert client.request("GET", at, nearlite_edge=bad).status in (200, 204)
        assert client.request("GET", "/nl/v1/changes/" + bad.replace(" ", "%20")).status == 400
        chromium.open("bad", f"http://127.0.0.1:{port}/", width=320)
        chromium.until("bad", "#topology", "edge <img")  # readable in so narrow a window
        chromium.until("bad", "#errors", "BAD_REQUEST")
        chromium.until("bad", "#replicas", "edge <img src=x")
        chromium.until("bad", "#name", "<img")

        def run(sql: str, outcome: str) -> list[str]:
            chromium.fill("bad", "#sql", sql)
            chromium.press("bad", "#sql", "Control+Enter")
            chromium.until("bad", "#outcome", outcome)
            cells: list[str] = chromium.cells("bad", "#rows td")
            return cells

        values = "1.0, 0.5, 1e999, 9223372036854775807, CAST(x'61ff' AS TEXT)"
        assert run(f"SELECT {values}", "^1 row, ") == [
            *("1.0", "0.5", "Infinity", "9223372036854775807"),
            "a\ufffd (not UTF-8)",
        ]
        (cell,) = run("SELECT printf('%.*c', 5000000, 'x')", "^1 row, ")
        assert cell == "x" * 1000 + "… (5,000,000 letters)"
        columns = ", ".join(f"{number} AS c{number}" for number in range(2000))
        many = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c LIMIT 40)"
        chromium.fill("bad", "#sql", f"{many} SELECT {columns} FROM c")
        chromium.click("bad", "#run")
        chromium.until("bad", "#outcome", "^40 rows, of which the first 10 are shown, ")
        assert chromium.evaluate("bad", "document.querySelectorAll('#rows td').length") == 20_000
        wide = "document.querySelector('#rows td:nth-child(1999)').clientWidth > 40"
        assert chromium.evaluate("bad", wide)  # words are not broken to make them fit
        many = many.replace("40", "100000")
        run(f"{many} SELECT i FROM c", "^100,000 rows, of which the first 500 are shown, ")
        assert run("BEGIN", "^Each statement stands alone here") == []
        assert run(f'SELECT 1 AS "{bad}", {bad!r}', "^1 row, ") == ["1", bad]
        assert run(f'SELECT "{bad}" FROM "{bad}"', "no such table: <img") == []
        assert chromium.evaluate("bad", "document.documentElement.scrollWidth") == 320
        another_day = "clock(+new Date(2026, 0, 2, 3, 4, 5), +new Date(2026, 0, 3))"
        assert chromium.evaluate("bad", another_day) == "2026-01-02 03:04:05"
        assert chromium.evaluate("bad", "document.querySelectorAll('img').length") == 0
        assert chromium.complaints() == []

        # What has no end is stopped by its button, which the keyboard is at by then.
        chromium.fill("bad", "#sql", many.replace(" LIMIT 100000", "") + " SELECT max(i) FROM c")
        chromium.press("bad", "#run", "Enter")
        eventually(lambda: app.running)  # type: ignore[attr-defined]
        assert chromium.evaluate("bad", "document.activeElement.id") == "stop"
        chromium.press("bad", "#stop", "Enter")
        chromium.until("bad", "#outcome", "^Stopped$")
        eventually(lambda: not app.running)  # type: ignore[attr-defined]
        assert chromium.evaluate("bad", "document.activeElement.id") == "run"


def test_a_browser_forgets_what_it_has_shown_when_its_token_is_no_longer_good(
    chromium: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "data.db"
    with serve.bind("127.0.0.1", 0) as kept:
        with serving(app_of(path, console=True, auth_token=TOKEN), kept) as port:
            url = f"http://127.0.0.1:{port}/"
            chromium.open("held", url)
            chromium.fill("held", "#token", TOKEN)
            chromium.press("held", "#token", "Enter")
            chromium.until("held", "#status", "^Live$")
            assert chromium.evaluate("held", "document.activeElement.id") == "sql"
            chromium.fill("held", "#sql", "SELECT 'confidential'")
            chromium.press("held", "#sql", "Control+Enter")
            chromium.until("held", "#rows", "confidential")
        with serving(app_of(path, console=True, auth_token="another"), kept):
            chromium.until("held", "#refused", "The token is not the right one")
            shown = "document.body.textContent.split('\"use strict\"')[0] + document.title"
            seen = chromium.evaluate("held", shown)
            assert "confidential" not in seen
            assert "data.db" not in seen
            assert chromium.evaluate(
                "held", "document.querySelector('#sql').value"
            )  # typed by hand


def test_a_browser_forgets_the_token_with_the_page_it_may_go_back_to(
    chromium: Browser, port: int
) -> None:
    chromium.open("back", f"http://127.0.0.1:{port}/")
    chromium.fill("back", "#token", TOKEN)
    chromium.press("back", "#token", "Enter")
    chromium.until("back", "#status", "^Live$")
    kept = "dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))"
    chromium.evaluate("back", kept)
    chromium.until("back", "#status", "^Locked$")
    assert chromium.evaluate("back", "token") == ""


@pytest.mark.parametrize("below", ["/below/", "//"])
def test_a_browser_asks_where_the_page_is(chromium: Browser, tmp_path: Path, below: str) -> None:
    """Behind a path of a proxy; a path of slashes names no other server."""
    app: Any = app_of(tmp_path / "data.db", console=True)
    with serving(_Alive(_mounted(app) if below == "/below/" else app)) as port:
        chromium.open("below", f"http://127.0.0.1:{port}{below}")
        chromium.until("below", "#status", "^Live$")
        chromium.fill("below", "#sql", "SELECT 7")
        chromium.press("below", "#sql", "Control+Enter")
        chromium.until("below", "#rows", "7")
        assert chromium.complaints() == []
