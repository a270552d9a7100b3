"""What programs are told of a server, and what it logs."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serving import Client, app_of, execute, serving

from nearlite.hooks import Hooks, Lines, Request
from nearlite.logs import JsonLines, PlainLines

DOCS = (Path(__file__).parent.parent / "docs" / "server.md").read_text()
CLOSE = {"type": "close"}


class Seen(Hooks):
    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.commits: list[str] = []
        self.rolls: list[float] = []

    def request(self, request: Request) -> None:
        self.requests.append(request)

    def commit(self, position: str) -> None:
        self.commits.append(position)

    def roll(self, seconds: float) -> None:
        self.rolls.append(seconds)


@pytest.mark.parametrize("whole", [True, False], ids=["short-cut", "usual"])
@pytest.mark.parametrize("durability", ["normal", "full"])
def test_each_request_and_commit_is_told(tmp_path: Path, whole: bool, durability: str) -> None:
    seen = Seen()
    with serving(app_of(tmp_path / "data.db", hooks=seen, durability=durability)) as port:
        del seen.requests[:]
        client = Client(port, whole=whole)
        client.run("CREATE TABLE t(a)")
        for _ in range(3):
            client.run("INSERT INTO t VALUES ('a secret')")
        assert client.request("GET", "/nl/v1/changes/nothing?hash=1").status == 400
        assert client.request("GET", "/metrics").status == 404  # not asked for
    routes = [(request.method, request.route, request.status) for request in seen.requests]
    changes = "/nl/v1/changes/{position}"
    assert routes == [("POST", "/v3/pipeline", 200)] * 4 + [
        ("GET", changes, 400),
        ("GET", "/metrics", 404),
    ]
    assert {request.path for request in seen.requests[:4]} == {"/v3/pipeline"}
    assert all(0 < request.seconds < 20 for request in seen.requests)
    assert all(request.client.startswith("127.0.0.1:") for request in seen.requests)
    numbers = [request.number for request in seen.requests]
    assert numbers == sorted(set(numbers))
    assert len(seen.commits) >= 4
    assert seen.commits == sorted(seen.commits)


def test_rolls_are_told(tmp_path: Path) -> None:
    seen = Seen()
    with serving(app_of(tmp_path / "data.db", hooks=seen, roll_bytes=1 << 16)) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a)")
        for _ in range(200):
            client.run("INSERT INTO t VALUES (randomblob(20000))")
            if seen.rolls:
                break
    assert seen.rolls
    assert all(seconds >= 0 for seconds in seen.rolls)


def test_a_hook_that_fails_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Hooks):
        def request(self, request: Request) -> None:
            raise RuntimeError("a defect")

        commit = request  # type: ignore[assignment]

    with serving(app_of(tmp_path / "data.db", hooks=Broken())) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a)", "INSERT INTO t VALUES (5)")
        assert client.rows("SELECT a FROM t") == [[5]]
    assert "a hook failed" in caplog.text


def test_under_another_server_requests_are_told_as_well(tmp_path: Path) -> None:
    seen = Seen()
    app = app_of(tmp_path / "data.db", hooks=seen)
    sent: list[Any] = []

    async def ask() -> None:
        scope = {"type": "http", "method": "GET", "path": "/nl/v1/status", "query_string": b""}
        scope |= {"headers": [(b"traceparent", b"00-1-2-3")], "client": ("10.0.0.1", 5)}

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        await app.shutdown()

    asyncio.run(ask())
    (request,) = seen.requests
    assert (request.route, request.status, request.client) == ("/nl/v1/status", 200, "10.0.0.1:5")
    assert request.traceparent == "00-1-2-3"


# ---------------------------------------------------------------- OpenTelemetry


@pytest.fixture
def spans() -> Iterator[tuple[Any, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("test"), exporter
    provider.shutdown()


def test_the_documented_hooks_make_spans(tmp_path: Path, spans: Any) -> None:
    (example,) = [
        text for text in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if "Spans(" in text
    ]
    tracer, exporter = spans
    found: dict[str, Any] = {}
    exec(example.partition("app = ")[0], found)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with serving(app_of(tmp_path / "data.db", hooks=found["Spans"](tracer))) as port:
        client = Client(port)
        body = json.dumps({"requests": [execute("SELECT 1"), CLOSE]}).encode()
        for _ in range(2):
            assert client.request("POST", "/v3/pipeline", body, traceparent=parent).status == 200
        client.run("SELECT 1")
    made = [span for span in exporter.get_finished_spans() if span.name == "POST /v3/pipeline"]
    assert len(made) == 3
    ids = [f"{span.context.trace_id:032x}" for span in made]
    assert ids[:2] == [parent.split("-")[1]] * 2
    assert ids[2] != ids[0]
    assert all(span.end_time >= span.start_time for span in made)
    assert made[0].attributes["http.response.status_code"] == 200


# ---------------------------------------------------------------- lines


def lines_of(tmp_path: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "nearlite", "serve", "data.db", "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, *options, "--auth-token", "a secret token"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    port = int(re.findall(r":(\d+)$", process.stdout.readline())[0])
    client = Client(port, "a secret token")
    client.run("SELECT 'what is private'")
    client.request("GET", "/nl/v1/status?from=x")
    Client(port, "another token").request("GET", "/nl/v1/status")
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "token" not in told
    assert "private" not in told
    return told.splitlines()


def test_a_line_of_the_log_is_a_json_object(tmp_path: Path) -> None:
    found = [
        json.loads(line) for line in lines_of(tmp_path, "--log-format", "json", "--access-log")
    ]
    lines = [line for line in found if line["logger"] == "nearlite.access"]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/v3/pipeline", 200),
        ("GET", "/nl/v1/status", 400),
        ("GET", "/nl/v1/status", 401),
    ]
    for line in lines:
        assert line["level"] == "info"
        assert re.fullmatch(r"20..-..-..T..:..:..\.\d{3}Z", line["time"])
        assert line["seconds"] > 0
        assert line["client"].startswith("127.0.0.1:")
        assert line["message"].startswith(f"{line['method']} {line['path']} {line['status']} in ")


def test_slow_requests_alone_are_logged_when_that_is_asked_for(tmp_path: Path) -> None:
    told = "\n".join(lines_of(tmp_path, "--log-slow", "0.0000001"))
    assert told.count("nearlite.access WARNING slow: ") == 3
    assert not lines_of(tmp_path, "--log-slow", "1000")


def test_an_exception_is_one_line_of_json() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        record = logging.getLogger("x").makeRecord(
            "x",
            logging.ERROR,
            "f",
            1,
            "it %s",
            ("failed",),
            sys.exc_info(),
            extra={"fields": {"a": 1, "level": 2}},
        )
    line = JsonLines().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["message"], told["level"], told["a"]) == ("it failed", "error", 1)
    assert "second" in told["exception"]


def test_only_what_is_slow_is_slow(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nearlite.access")
    for seconds in (0.1, 0.5):
        Lines(every=False, slow=0.5).request(Request("GET", "/", "other", 200, 0.0, seconds, ""))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("form", ["human", "json"])
def test_what_a_client_asks_for_begins_no_line_of_its_own(tmp_path: Path, form: str) -> None:
    command = [sys.executable, "-m", "nearlite", "serve", "data.db", "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, "--access-log", "--log-level", "warning", "--log-format", form],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    port = int(re.findall(r":(\d+)$", process.stdout.readline())[0])
    for path in ("/a%0A2026-01-01%20nearlite%20CRITICAL%20lost", "/b%1b[31m%C2%85%7f"):
        with socket.create_connection(("127.0.0.1", port), 20) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            while raw.recv(4096):
                pass
    process.terminate()
    _, told = process.communicate(timeout=60)
    lines = told.splitlines()
    assert len(lines) == 2
    assert all("nearlite.access" in line and line.isprintable() for line in lines)


def test_a_message_for_people_is_one_line() -> None:
    record = logging.makeLogRecord({"msg": "it quotes %s", "args": ("a\nb\x1b[0m\u0085",)})
    assert PlainLines("%(message)s").format(record) == "it quotes a\\x0ab\\x1b[0m\\x85"
