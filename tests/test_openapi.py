"""The server is what it says of itself, and whatever is sent to it is answered: with a message, and no traceback."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from serving import Client, app_of, batch, execute, serving
from soaking import Soak

from nearlite import openapi, routes
from nearlite.limits import Limits

# `make soak` runs with the profile that has more examples.
EXAMPLES = 5 * settings.default.max_examples // 50  # type: ignore[union-attr]
RAW = 4 * settings.default.max_examples  # type: ignore[union-attr]
PATIENCE = 2.0
DOCUMENT = json.loads(openapi.document("1.0"))
OPERATIONS = [
    (method, path)
    for path, item in DOCUMENT["paths"].items()
    for method in item
    if method != "parameters" and path != "/beta/listen"  # an answer without an end
]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a server whose log is looked at in the end."""
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    loggers = [logging.getLogger(name) for name in ("nearlite", "uvicorn", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
    limits = Limits(client_seconds=PATIENCE, contended_seconds=0.2, max_request_bytes=1 << 20)
    folder = tmp_path_factory.mktemp("openapi")
    try:
        options = {"durability": "normal", "limits": limits, "allow_push": True}
        with serving(app_of(folder / "data.db", **options)) as port:
            Client(port).run(
                "CREATE TABLE t(a INTEGER PRIMARY KEY, b)", "INSERT INTO t VALUES(1,2)"
            )
            yield port
            assert Client(port).rows("SELECT 1") == [[1]]
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert "Traceback" not in told.getvalue(), told.getvalue()
    assert "failed" not in told.getvalue(), told.getvalue()


# ---------------------------------------------------------------- the description


def test_it_is_served_to_everybody_and_names_every_path(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "data.db", auth_token="secret")) as port:
        reply = Client(port).request("GET", "/openapi.json")
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert b"secret" not in reply.body
    assert reply.json["paths"] == DOCUMENT["paths"]
    paths = {*routes.VERSIONS, *routes.ALONE, routes.CURSOR, routes.REPAIR}
    paths |= {routes.PROTOBUF, routes.PROTOBUF_CURSOR}
    assert paths <= set(DOCUMENT["paths"])


def status_is_told(_context: Any, response: Any, case: Any) -> None:
    """500 only where SQLite failed, and each error as documented."""
    if response.status_code >= 400:
        body = response.json()
        if "status" not in body:  # of a pull that is at its end
            assert body["message"]
            assert body["code"]
            assert body["error"] == {"message": body["message"], "code": body["code"]}
    if response.status_code == 500:
        assert case.path.startswith("/v1/"), response.text
        assert response.json()["code"].startswith("SQLITE_"), response.text
    elif not case.path.startswith("/v1/"):
        not_a_server_error(_context, response, case)


SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
CHECKS = [
    schemathesis.checks.CHECKS.get_one(name)
    for name in (
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    )
]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_what_is_made_of_it_is_answered_as_it_says(
    port: int, method: str, path: str, mode: GenerationMode
) -> None:
    operation = SCHEMA[path][method]
    if mode is GenerationMode.NEGATIVE and not (
        operation.body or operation.query or operation.headers or operation.path_parameters
    ):
        return  # there is nothing that could be wrong

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(mode))
    def ask(case: schemathesis.Case) -> None:
        response = case.call(base_url=f"http://127.0.0.1:{port}", timeout=20)
        case.validate_response(response, checks=[*CHECKS, status_is_told])

    ask()


# ---------------------------------------------------------------- bytes

PIPELINE = json.dumps({"requests": [execute("SELECT 1"), {"type": "close"}]}).encode()
METHODS = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT"]
METHODS += [b"PRI", b"PROPFIND", b"get", b"POST POST", b""]
TARGETS = [path.replace("{position}", "0").encode() for _, path in OPERATIONS]
TARGETS += [
    b"*",
    b"http://elsewhere/v3/pipeline",
    b"//v3//pipeline",
    b"/v3/pipeline?%zz&=&=",
    b"/%00",
]
TARGETS += [
    b"/nl/v1/%2e%2e/status",
    b"/sync/1/1/99999999999999",
    b"/export/-1",
    b"/nl/v1/changes/%ff",
]
TARGETS += [
    b"/%c3%28",
    b"/" + b"a" * 5000,
    b"",
    b"nothing",
    b"/nl/v1/changes/0?wait=nan&hash=" + b"f" * 99,
]
HEADERS = [
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999999",
    b"Content-Length: 1, 1",
    b"Content-Length: 2\r\nContent-Length: 3",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3",
    b"Expect: 100-continue",
    b"Expect: something",
    b"Connection: close",
    b"Connection: upgrade\r\nUpgrade: websocket",
    b"Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
    b"Authorization: Bearer \xff\xfe",
    b"Accept-Encoding: \x80",
    b"Nearlite-Counters: 1,2",
    b"Nearlite-Position: x",
    b"Nearlite-Hash: y",
    b"Nearlite-Read: \xe9 z",
    b"Nearlite-Request: 123",
    b"Origin: http://[::1",
    b"Origin: http://evil.example",
    b"Host",
    b" folded: line",
    b"X: " + b"y" * 3000,
    b"\r\n".join(b"X-%d: y" % number for number in range(300)),
]
BODIES = [
    *(b"", b"{", b"[]", b"null", b"\xff\xfe", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", PIPELINE),
    b"[" * 100_000,
    b'{"requests": [' + b'{"type":"batch","batch":{"steps":[' * 50,
    b'{"requests": [{"type": "execute", "stmt": {"sql": "SELECT \\ud800"}}]}',
    b'{"requests": [{"type": "execute", "stmt": {"sql": "SELECT ?", "args": [{"type": "float", "value": 1e999}]}}]}',
    b'{"requests": [{"type": "execute", "stmt": {"sql": "SELECT ?", "args": [{"type": "integer", "value": "%d"}]}}]}'
    % 10**40,
    b'{"requests": [{"type": "execute", "stmt": {"sql": 5}}], "baton": {}}',
    b'{"requests": [{"type": "execute", "stmt": {"sql_id": 99999999999999999999}}]}',
    b'{"batch": {"steps": [{"stmt": {"sql": "SELECT 1"}, "condition": '
    + b'{"type":"not","cond":' * 2000
    + b'{"type":"ok","step":0}'
    + b"}" * 2000
    + b"}]}}",
    b'{"stmt": {"sql": "' + b"(" * 5000 + b'"}}',
]
request_bytes = st.builds(
    lambda method, target, version, headers, body, length: (
        b"%b %b %b\r\n%b\r\n%b"
        % (
            method,
            target,
            version,
            b"".join(
                header + b"\r\n"
                for header in [*headers, *([b"Content-Length: %d" % len(body)] if length else [])]
            ),
            body,
        )
    ),
    st.sampled_from(METHODS),
    st.sampled_from(TARGETS) | st.binary(max_size=30).map(lambda raw: b"/" + raw),
    st.sampled_from([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b""]),
    st.lists(st.sampled_from([*HEADERS, b"Host: x"]), max_size=4),
    st.sampled_from(BODIES) | st.binary(max_size=100),
    st.sampled_from([True, True, True, False]),
)


def spoiled(raw: bytes, cut: int | None, flips: list[tuple[int, int]]) -> bytes:
    data = bytearray(raw)
    for at, value in flips:
        if data:
            data[at % len(data)] = value
    return bytes(data if cut is None else data[: cut % (len(data) + 1)])


anything = st.one_of(
    request_bytes,
    st.builds(
        spoiled,
        request_bytes,
        st.none() | st.integers(0, 1 << 16),
        st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=3),
    ),
    st.binary(max_size=200),
)


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.soak
def test_whatever_is_sent_is_answered_or_the_connection_ended(port: int, soak: Soak) -> None:
    @settings(max_examples=RAW, suppress_health_check=list(HealthCheck), database=None)
    @given(sent=anything)
    @example(sent=b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    @example(sent=b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
    @example(sent=UPGRADE + b"X: 1\r\n" * 200 + b"\r\n")
    @example(sent=UPGRADE + b"X: " + b"x" * 20_000 + b"\r\n\r\n")
    @example(sent=b"GET /v1 HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    def send(sent: bytes) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
            with contextlib.suppress(ConnectionError):
                raw.sendall(sent)
                raw.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while piece := raw.recv(1 << 16):  # nothing hangs
                    answer += piece
        if not answer:
            return
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 "), head
        status = int(head[9:12])
        if status < 400:
            return
        assert status < 500 or b"SQLITE_" in body or status in (501, 503), answer[:2000]
        assert b"content-type: application/json" in head.lower(), answer[:2000]
        if not sent.startswith(b"HEAD"):
            length = next(
                int(line.partition(b":")[2])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            )
            told = json.loads(body[:length])
            assert told.get("message") or told.get("status"), told

    for _ in soak.turns(1):
        send()
        soak.count(requests=RAW)


# ---------------------------------------------------------------- clients that leave


def post(path: str, body: Any) -> bytes:
    text = json.dumps(body).encode()
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (
        *(path.encode(), len(text), text),
    )


MANY = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 100000) SELECT i FROM c"
INSIDE = [execute("BEGIN IMMEDIATE"), execute("INSERT INTO t(b) VALUES (randomblob(100))")]
EXCHANGES = [
    post("/v3/pipeline", {"requests": INSIDE}),
    post("/nl/v1/sql", {"requests": INSIDE}).replace(
        b"Host: x", b"Host: x\r\nNearlite-Position: 00000000.00000001.00000000"
    ),
    post(
        "/v3/cursor",
        {"batch": batch("BEGIN IMMEDIATE", "INSERT INTO t(b) VALUES (1)", MANY)["batch"]},
    ),
    post(
        "/v1/batch",
        {"batch": batch("BEGIN IMMEDIATE", "INSERT INTO t(b) VALUES (1)", MANY)["batch"]},
    ),
    post("/v3/pipeline", {"requests": [execute(MANY), execute("INSERT INTO t(b) VALUES (1)")]}),
    b"GET /nl/v1/snapshot HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /nl/v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /info HTTP/1.1\r\nHost: x\r\n\r\nGET /export/1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /sync/1/1/100 HTTP/1.1\r\nHost: x\r\n\r\n",
]


@settings(max_examples=RAW // 5, suppress_health_check=list(HealthCheck), database=None)
@given(
    exchange=st.sampled_from(EXCHANGES),
    sends=st.floats(0.0, 1.0) | st.just(1.0),
    takes=st.sampled_from([0, 0, 1, 100, 5000, 200_000]),
    resets=st.booleans(),
)
def test_a_client_that_leaves_leaves_nothing_behind(
    port: int, exchange: bytes, sends: float, takes: int, resets: bool
) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        raw.sendall(exchange[: int(len(exchange) * sends)])
        ready = select.select([raw], [], [], 0.3 if takes and sends == 1.0 else 0)[0]
        if takes and ready:
            raw.recv(takes)
        if resets:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # What it had begun is rolled back at once, unless its system had the answer with the baton.
    began = time.monotonic()
    answer = Client(port).run("DELETE FROM t WHERE a > 1")[0]
    assert "code" not in answer, answer
    assert time.monotonic() - began < PATIENCE
