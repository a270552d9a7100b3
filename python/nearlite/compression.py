"""Answers compressed, for clients that accept it (RFC 9110, 12.5.3): zstd, or gzip.

A small answer is sent as it is: it fits into one packet anyway, and compressing it takes longer than its
statement.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from typing import Final, Protocol

from nearlite import zstd
from nearlite.exchange import Headers, Scope, header

LEAST: Final = 4096
"""Bytes of an answer that is compressed."""
AT_ONCE: Final = 32 << 10
"""Bytes of one that is compressed on the event loop."""
ACCEPTED: Final = "nearlite.encoding"
"""In the scope of requests whose head is known: what `accepted` says of it."""
_LEVEL: Final = 1
_GZIP: Final = 31  # zlib's window bits: the largest, with gzip's frame
_ITEM: Final = re.compile(r"\s*([^\s;,]+)\s*(?:;\s*q\s*=\s*([01](?:\.[0-9]{0,3})?))?\s*", re.ASCII)
_KNOWN: Final = ("zstd", "gzip")


class Stream(Protocol):
    """Compresses an answer that is sent in pieces, each of which can be read when it has come."""

    def piece(self, data: bytes) -> bytes:
        """The next piece."""

    def end(self) -> bytes:
        """What is left."""


class _Gzip:
    def __init__(self) -> None:
        self._made = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)

    def piece(self, data: bytes) -> bytes:
        return self._made.compress(data) + self._made.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._made.flush()


class _AsItIs:
    def piece(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        return b""


def accepted(scope: Scope) -> str | None:
    """The best encoding that a client accepts beside none."""
    if ACCEPTED in scope:
        known: str | None = scope[ACCEPTED]
        return known
    given = header(scope, b"accept-encoding")
    if given is None:
        return None
    weights: dict[str, float] = {}
    for item in given.decode("latin-1").lower().split(","):
        match = _ITEM.fullmatch(item)
        if match is not None:
            weights[match[1]] = 1.0 if match[2] is None else float(match[2])
    others = weights.get("*", 0.0)
    best = max(
        _KNOWN, key=lambda name: weights.get(name, others)
    )  # zstd, where both are as welcome
    return best if weights.get(best, others) > 0 else None


def told(encoding: str) -> Headers:
    """Headers of an answer with that encoding."""
    return ((b"content-encoding", encoding.encode()), (b"vary", b"accept-encoding"))


def compress(encoding: str, body: bytes) -> bytes:
    """A whole answer."""
    if encoding == "zstd":
        return zstd.compress(body, _LEVEL)
    made = _Gzip()
    return made.piece(body) + made.end()


def stream(encoding: str | None) -> Stream:
    """For one answer in pieces."""
    if encoding is None:
        return _AsItIs()
    return zstd.Stream(_LEVEL) if encoding == "zstd" else _Gzip()


async def compressed(scope: Scope, body: bytes, headers: Headers) -> tuple[bytes, Headers]:
    """The body and the headers of an answer, compressed if that is accepted and worth it."""
    encoding = accepted(scope) if len(body) >= LEAST else None
    if encoding is None:
        return body, headers
    if len(body) <= AT_ONCE:
        smaller = compress(encoding, body)
    else:
        smaller = await asyncio.get_running_loop().run_in_executor(None, compress, encoding, body)
    return (smaller, (*headers, *told(encoding))) if len(smaller) < len(body) else (body, headers)
