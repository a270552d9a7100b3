"""A real server in a thread of the test process, and a client that speaks plain Hrana."""

from __future__ import annotations

import http.client
import json
import socket
import sqlite3
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearlite import serve
from nearlite.server import App


@dataclass
class Reply:
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


_clients: list[Client] = []  # closed when their server ends, whatever a test forgot


class Whole(http.client.HTTPConnection):
    """Sends the head and the body of a request in one piece, as most clients do."""

    pieces: list[bytes] | None = None

    def request(self, *args: Any, **options: Any) -> None:
        self.pieces = []
        super().request(*args, **options)
        pieces, self.pieces = self.pieces, None
        self.send(b"".join(pieces))

    def send(self, data: Any) -> None:
        if self.pieces is None:
            super().send(data)
        else:
            self.pieces.append(data)


@dataclass
class Client:
    """One kept-alive connection."""

    port: int
    token: str | None = None
    whole: bool = True
    tls: ssl.SSLContext | None = None
    connection: http.client.HTTPConnection = field(init=False)

    def __post_init__(self) -> None:
        if self.tls is not None:
            self.connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=20, context=self.tls
            )
        else:
            made = Whole if self.whole else http.client.HTTPConnection
            self.connection = made("127.0.0.1", self.port, timeout=20)
        _clients.append(self)

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, names)
        answer = self.connection.getresponse()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, fields, answer.read())

    def pipeline(
        self, *requests: Mapping[str, Any], baton: str | None = None, version: int = 3
    ) -> Any:
        body = json.dumps({"baton": baton, "requests": requests}).encode()
        reply = self.request("POST", f"/v{version}/pipeline", body)
        assert reply.status == 200, reply.body
        return reply.json

    def run(self, *statements: str) -> list[Any]:
        """Autocommit statements in one pipeline; the result or the error of each."""
        answer = self.pipeline(*[execute(sql) for sql in statements], {"type": "close"})
        return [outcome(result) for result in answer["results"][:-1]]

    def rows(self, sql: str) -> list[list[Any]]:
        (result,) = self.run(sql)
        return rows(result)

    def close(self) -> None:
        self.connection.close()


def execute(sql: str, *args: Any, **more: Any) -> dict[str, Any]:
    """An `execute` request."""
    return {"type": "execute", "stmt": {"sql": sql, "args": [wire(arg) for arg in args], **more}}


def batch(*steps: Any) -> dict[str, Any]:
    """A `batch` request; steps are texts, or (text, condition)."""
    made = [step if isinstance(step, tuple) else (step, None) for step in steps]
    return {
        "type": "batch",
        "batch": {"steps": [{"stmt": {"sql": sql}, "condition": cond} for sql, cond in made]},
    }


def transaction(*statements: str) -> dict[str, Any]:
    """The batch that clients send for a transaction."""
    steps: list[Any] = ["BEGIN IMMEDIATE"]
    for sql in [*statements, "COMMIT"]:
        steps.append((sql, {"type": "ok", "step": len(steps) - 1}))
    committed = {"type": "ok", "step": len(steps) - 1}
    steps.append(("ROLLBACK", {"type": "not", "cond": committed}))
    return batch(*steps)


def wire(value: Any) -> dict[str, Any]:
    """A value as a client writes it."""
    if value is None:
        return {"type": "null"}
    if isinstance(value, int):
        return {"type": "integer", "value": str(value)}
    if isinstance(value, float):
        return {"type": "float", "value": value}
    return {"type": "text", "value": value}


def value(cell: Mapping[str, Any]) -> Any:
    """A value as a client reads it."""
    if cell["type"] == "integer":
        return int(cell["value"])
    return cell.get("value", cell.get("base64"))


def outcome(result: Mapping[str, Any]) -> Any:
    """What a stream result carries: a StmtResult or BatchResult, an error, or nothing."""
    if result["type"] == "error":
        return result["error"]
    return result["response"].get("result", result["response"])


def rows(result: Mapping[str, Any]) -> list[list[Any]]:
    """Rows of a StmtResult as plain values."""
    assert "rows" in result, result
    return [[value(cell) for cell in row] for row in result["rows"]]


def write_against_a_lock(port: int, path: Path, write: Callable[[], Any]) -> Any:
    """What `write` answers, begun while another program holds the write lock to insert 'theirs' into t.

    Meanwhile everybody else reads.
    """
    other = Client(port)
    before = other.rows("SELECT count(*) FROM t")
    stock = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    stock.execute("BEGIN IMMEDIATE")
    stock.execute("INSERT INTO t(b) VALUES('theirs')")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(write)
        for _ in range(20):
            assert other.rows("SELECT count(*) FROM t") == before
        stock.execute("COMMIT")
        answer = waiting.result(30)
    stock.close()
    return answer


def close_clients(port: int) -> None:
    """Close those of a server, whatever a test forgot."""
    for client in [client for client in _clients if client.port == port]:
        client.close()
        _clients.remove(client)


@contextmanager
def serving(
    app: Any,
    at: socket.socket | None = None,
    tls: ssl.SSLContext | None = None,
    beside: Any = None,
) -> Iterator[int]:
    """Serve until the block ends; answers the port. `at`: a bound socket, which stays open.

    `beside`: another application, and where it listens.
    """
    listening = serve.bind("127.0.0.1", 0) if at is None else at.dup()
    listening.listen(64)
    server = serve.server(app, tls, beside=beside)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    port = listening.getsockname()[1]
    client = Client(port, tls=None if tls is None else ssl._create_unverified_context())
    try:
        assert client.request("GET", "/health").status == 200
        yield port
    finally:
        close_clients(port)
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end in time"


def app_of(path: Path, **options: Any) -> App:
    """The application of one database."""
    import nearlite

    return nearlite.asgi(path, **options)
