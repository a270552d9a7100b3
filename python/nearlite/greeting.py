"""How a WebSocket begins: which version of Hrana is spoken, and, before a database is opened for it, who it is.

Browsers cannot send a token with the upgrade; it comes in the first message, `hello`. Where there are many
databases, until then nothing is opened, and nobody is told which ones there are.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from nearlite.access import Access
from nearlite.conversation import HELLO_SECONDS, UNDECODABLE, VIOLATION, WRONG_KIND, hello_refusal
from nearlite.exchange import ClientGoneError, HttpError, Receive, Scope, Send, load_protobuf
from nearlite.hrana import ProtocolError, StatementError
from nearlite.hrana.sockets import Codec, Hello, Json

GREETING: Final = "nearlite.greeting"
"""In the scope of a WebSocket that has been accepted already: its `Greeting`."""
_PROTOBUF: Final = "hrana3-protobuf"
_VERSIONS: Final = {_PROTOBUF: 3, "hrana3": 3, "hrana2": 2, "hrana1": 1}
"""Subprotocols, the best one first."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """What is known of a WebSocket that has been accepted.

    Attributes:
      codec: of its messages.
      version: of Hrana.
      hello: its first message, if that has been received.
    """

    codec: Codec
    version: int
    hello: bytes | None = None


def choose(offered: Sequence[str]) -> str | None:
    """The subprotocol to speak; None when none was asked for, which is hrana1.

    Raises:
      HttpError: only unknown ones were.
    """
    for known in _VERSIONS:
        if known in offered:
            return known
    if offered:
        raise HttpError(
            400,
            "BAD_REQUEST",
            f"Only these WebSocket subprotocols are supported: {', '.join(_VERSIONS)}",
        )
    return None


async def accept(scope: Scope, send: Send) -> Greeting:
    """Accept a WebSocket. Raises HttpError: no version of Hrana that it offers is known."""
    subprotocol = choose(scope.get("subprotocols") or ())
    codec: Codec = Json()
    if subprotocol == _PROTOBUF:
        codec = (await load_protobuf()).Protobuf()
    await send({"type": "websocket.accept", "subprotocol": subprotocol})
    return Greeting(codec, _VERSIONS[subprotocol or "hrana1"])


async def greet(
    scope: Scope, receive: Receive, send: Send, grant: Callable[[str | None], Access]
) -> Greeting | None:
    """Accept a WebSocket and wait for its `hello`; None: it is over, and the client was told why.

    Args:
      scope: of its upgrade, whose first message has been received.
      receive, send: ASGI's.
      grant: what the holder of a token may do; raises HttpError.

    Raises:
      HttpError: it is not accepted.
      ClientGoneError: nobody is there any more.
    """
    greeting = await accept(scope, send)
    codec = greeting.codec

    async def end(code: int, reason: str) -> None:
        await send({"type": "websocket.close", "code": code, "reason": reason})

    try:
        message = await asyncio.wait_for(receive(), HELLO_SECONDS)
    except asyncio.TimeoutError:
        await end(VIOLATION, "No hello message has come in time")
        return None
    if message["type"] != "websocket.receive":
        raise ClientGoneError
    text = message.get("text")
    if (text is None) is not codec.binary:
        wanted = "binary" if codec.binary else "text"
        await end(WRONG_KIND, f"Messages of this subprotocol are {wanted} messages")
        return None
    data: bytes = message["bytes"] if text is None else text.encode()
    try:
        hello = codec.decode(data)
    except ProtocolError as broken:
        await end(UNDECODABLE, broken.message)
        return None
    if not isinstance(hello, Hello):
        await end(VIOLATION, "The first message has to be a hello message")
        return None
    try:
        grant(hello.jwt)
    except HttpError as error:
        refusal = hello_refusal(error, hello.jwt)
        await _refuse(codec, send, refusal, "The token is not good")
        return None
    return Greeting(codec, greeting.version, data)


async def turn_away(greeting: Greeting, send: Send, error: HttpError) -> None:
    """Close a WebSocket that was greeted: what it asks for cannot be had."""
    refusal = StatementError(error.message, error.code)
    with contextlib.suppress(ClientGoneError, OSError):
        await _refuse(greeting.codec, send, refusal, error.code)


async def _refuse(codec: Codec, send: Send, refusal: StatementError, reason: str) -> None:
    told = codec.hello_error(refusal)
    kind, content = ("bytes", told) if codec.binary else ("text", told.decode())
    await send({"type": "websocket.send", kind: content})
    await send({"type": "websocket.close", "code": VIOLATION, "reason": reason})
