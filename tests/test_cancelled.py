"""A request that its server cancels, as it does at its end: what runs in a thread is over before anything is undone."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import app_of, batch, execute

from nearlite.server import App

ENDLESS = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT count(*), hex(zeroblob(50)) FROM c, t"
WRITING = ["BEGIN IMMEDIATE", "INSERT INTO t VALUES('lost')", ENDLESS]
ASKED = {
    "a transaction": ("/v3/pipeline", {"requests": [execute(sql) for sql in WRITING]}),
    "a read": ("/v3/pipeline", {"requests": [execute(ENDLESS)]}),
    "a cursor that writes": ("/v3/cursor", {"batch": batch(*WRITING)["batch"]}),
    "a cursor that reads": ("/v3/cursor", {"batch": batch(ENDLESS)["batch"]}),
}


async def post(app: App, path: str, body: dict[str, Any]) -> list[Any]:
    """What an ASGI server is sent for one request; its client stays."""
    came: list[dict[str, Any]] = [{"type": "http.request", "body": json.dumps(body).encode()}]
    never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    answer = bytearray()

    async def receive() -> Any:
        return came.pop() if came else await never

    async def send(message: Any) -> None:
        answer.extend(message.get("body", b""))

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    return [json.loads(line) for line in answer.splitlines()]


async def until(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < limit
        await asyncio.sleep(0)


async def rows(app: App, *statements: str) -> Any:
    """Rows of the last one."""
    requests = [*(execute(sql) for sql in statements), {"type": "close"}]
    (answer,) = await post(app, "/v3/pipeline", {"requests": requests})
    results = answer["results"]
    return results[-2]["response"]["result"]["rows"]


@pytest.mark.parametrize("kind", ASKED)
def test_cancelling_leaves_nothing_running(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, body = ASKED[kind]

    async def run() -> None:
        app = app_of(tmp_path / "data.db")
        await app.startup()
        assert app._routes is not None
        executor: Any = app._routes._executor
        owners = executor._lending.owners
        await rows(app, "CREATE TABLE t(a)", "INSERT INTO t VALUES('kept')")
        for _ in range(5):
            task = asyncio.create_task(post(app, path, body))
            if kind == "a read":
                await until(lambda: bool(executor._reads._lent))
            elif kind == "a cursor that reads":
                await until(lambda: any(stream.session is not None for stream in owners))
            else:
                await until(lambda: any(stream.in_transaction for stream in owners))
            for _ in range(3):  # and again, while it tidies up
                task.cancel()
                await asyncio.sleep(0)
            await asyncio.wait({task}, timeout=30)
            assert task.cancelled()
            await until(lambda: executor._threads.idle)
            assert not owners
            await rows(app, "INSERT INTO t VALUES('next')", "DELETE FROM t WHERE a = 'next'")
        assert await rows(app, "SELECT a FROM t") == [[{"type": "text", "value": "kept"}]]
        await app.shutdown()

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert not caplog.records
