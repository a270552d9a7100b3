"""A client that speaks Hrana over WebSocket in JSON, on the library `websockets`."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from serving import wire
from websockets.asyncio import client as by_loop
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

Json = Any


class OneThread:
    """A WebSocket that is read and written in one thread.

    websockets.sync reads in a thread of its own, and an SSL object of OpenSSL is not for two threads at a time.
    """

    def __init__(self, url: str, **options: Any) -> None:
        async def connect() -> by_loop.ClientConnection:
            return await by_loop.connect(url, **options)

        self._loop = asyncio.new_event_loop()
        self._socket = self._loop.run_until_complete(connect())

    def send(self, message: str | bytes) -> None:
        self._loop.run_until_complete(self._socket.send(message))

    def recv(self, timeout: float) -> str | bytes:
        async def receive() -> str | bytes:
            return await asyncio.wait_for(self._socket.recv(), timeout)

        return self._loop.run_until_complete(receive())

    def close(self) -> None:
        self._loop.run_until_complete(self._socket.close())
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


class Talker:
    """One WebSocket."""

    def __init__(self, socket: ClientConnection | OneThread) -> None:
        self.socket = socket
        self._numbers = itertools.count(1)
        self._heard: dict[int, Json] = {}

    def say(self, message: Mapping[str, Any]) -> None:
        self.socket.send(json.dumps(message))

    def hear(self) -> Json:
        return json.loads(self.socket.recv(timeout=20))

    def hello(self, jwt: str | None = None) -> Json:
        self.say({"type": "hello", "jwt": jwt})
        return self.hear()

    def begin(self, kind: str, **fields: Any) -> int:
        """Send a request; answers its number."""
        number = next(self._numbers)
        request = {"type": kind, **fields}
        self.say({"type": "request", "request_id": number, "request": request})
        return number

    def end(self, number: int) -> Json:
        """The response of a request, or its error."""
        while number not in self._heard:
            message = self.hear()
            self._heard[message["request_id"]] = message
        message = self._heard.pop(number)
        if message["type"] == "response_error":
            return message["error"]
        assert message["type"] == "response_ok"
        return message["response"]

    def ask(self, kind: str, **fields: Any) -> Json:
        return self.end(self.begin(kind, **fields))

    def open(self, stream: int = 0) -> None:
        assert self.ask("open_stream", stream_id=stream) == {"type": "open_stream"}

    def execute(self, sql: str, *args: Any, stream: int = 0) -> Json:
        """The StmtResult, or the error."""
        response = self.ask("execute", stream_id=stream, stmt=statement(sql, *args))
        return response.get("result", response)

    def closed(self) -> tuple[int, str]:
        """Code and reason with which the server closes, behind whatever else it says."""
        try:
            while True:
                self.socket.recv(timeout=20)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            return closed.rcvd.code, closed.rcvd.reason


def statement(sql: str, *args: Any) -> dict[str, Any]:
    return {"sql": sql, "args": [wire(arg) for arg in args]}


def steps(*texts: str) -> dict[str, Any]:
    """A batch."""
    return {"steps": [{"stmt": {"sql": sql}} for sql in texts]}


@contextmanager
def talking(
    port: int,
    *protocols: str,
    path: str = "/",
    hello: bool = True,
    stream: bool = True,
    **options: Any,
) -> Iterator[Talker]:
    """A WebSocket that has said hello and opened stream 0, if not told otherwise."""
    offered = [Subprotocol(protocol) for protocol in protocols or ["hrana3"] if protocol]
    scheme = "wss" if "ssl" in options else "ws"
    url = f"{scheme}://127.0.0.1:{port}{path}"
    options = {
        "compression": None,
        "proxy": None,
        "ping_interval": None,
        "max_size": None,
        "close_timeout": 5,
    } | options
    connecting = (
        closing(OneThread(url, subprotocols=offered or None, **options))
        if "ssl" in options
        else None
    )
    with connecting or connect(url, subprotocols=offered or None, **options) as socket:
        talker = Talker(socket)
        if hello:
            assert talker.hello() == {"type": "hello_ok"}
            if stream:
                talker.open()
        yield talker
