"""``GET /dump``: the database as SQL text, read in one snapshot while it is being sent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl

from nearlite._native.database import TEXT_BYTES, Database
from nearlite.compression import accepted, stream, told
from nearlite.dbapi.binding import encode
from nearlite.dbapi.dump import dump
from nearlite.exchange import (
    NO_STORE,
    PIECE,
    Answering,
    ClientGoneError,
    Headers,
    HttpError,
    Scope,
    Send,
    cut_off,
)

log = logging.getLogger("nearlite.server")

DUMP: Final = "/dump"
_TYPE: Final = b"text/plain; charset=utf-8"
_AT_A_TIME: Final = 8
"""Dumps that are being sent; each holds a connection, and keeps the WAL from being emptied."""
_FLAGS: Final = {"": True, "true": True, "1": True, "false": False, "0": False}


class Dumping:
    """Sends dumps. Event loop thread only.

    Args:
      connect: opens a connection that only reads.
      answering: sends.
    """

    def __init__(self, connect: Callable[[], Database], answering: Answering) -> None:
        self._connect = connect
        self._answering = answering
        self._reading: set[Database] = set()
        self._begun = 0
        self._closed = False

    def close(self) -> None:
        """Break off what is being sent."""
        self._closed = True
        for database in self._reading:
            database.interrupt()

    async def answer(self, scope: Scope, send: Send) -> None:
        """Send one. Raises HttpError: too many are being sent, or the request is no good."""
        rowids = keeps_rowids(scope)
        if self._begun >= _AT_A_TIME:
            raise HttpError(
                503,
                "TOO_MANY_DUMPS",
                f"{_AT_A_TIME} dumps are being sent, which is the limit; try again",
                ((b"retry-after", b"5"),),
            )
        self._begun += 1
        loop = asyncio.get_running_loop()
        database: Database | None = None
        try:
            database = await loop.run_in_executor(None, self._connect)
            self._reading.add(database)
            if self._closed:
                raise HttpError(503, "SHUTTING_DOWN", "The server is about to end")
            encoding = accepted(scope)
            pieces = _smaller(_pieces(database, rowids), encoding)
            # What it begins with is read before the answer begins: a failure is told, not cut off.
            piece = await loop.run_in_executor(None, next, pieces, b"")
            headers: Headers = (NO_STORE,) if encoding is None else (NO_STORE, *told(encoding))
            await self._answering.start(send, 200, _TYPE, headers)
            while piece:
                await self._answering.piece(send, piece)
                if self._closed:  # between two pieces nothing can be interrupted
                    cut_off(send)
                    raise ClientGoneError
                try:
                    piece = await loop.run_in_executor(None, next, pieces, b"")
                except Exception as error:  # noqa: BLE001 - the answer has begun
                    log.warning("a dump was broken off: %s", error)
                    cut_off(send)
                    raise ClientGoneError from None
            await self._answering.end(send)
        finally:
            self._begun -= 1
            if database is not None:
                self._reading.discard(database)
                await asyncio.shield(loop.run_in_executor(None, database.close))


def _smaller(pieces: Iterator[bytes], encoding: str | None) -> Iterator[bytes]:
    made = stream(encoding)
    for piece in pieces:
        smaller = made.piece(piece)
        if smaller:
            yield smaller
    yield made.end()


def keeps_rowids(scope: Scope) -> bool:
    """What the parameter ``preserve_row_ids`` of a request says. Raises HttpError 400: nothing."""
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    value = dict(query).get("preserve_row_ids")
    if value is None:
        return False
    found = _FLAGS.get(value.lower())
    if found is None:
        raise HttpError(400, "BAD_REQUEST", "preserve_row_ids is true or false")
    return found


def _pieces(database: Database, rowids: bool) -> Iterator[bytes]:
    """The text, in pieces of some PIECE bytes; a row is never cut in two."""

    def run(sql: str, values: Sequence[Any], text: int | None = None) -> Iterator[Any]:
        statement = database.prepare(sql)
        if text is not None:
            statement.set_text(text)
        try:
            yield from statement.run(encode(tuple(values)))
            while statement.more:
                yield from statement.fetch()
        finally:
            statement.reset()

    def lines(sql: str, values: Sequence[Any]) -> Iterator[Any]:
        """TEXT may hold any bytes; they are sent as they are."""
        for (line,) in run(sql, values, TEXT_BYTES):
            yield (bytes(line).decode("utf-8", "surrogateescape"),)

    ready: list[bytes] = []
    size = 0
    database.exec("BEGIN")
    try:
        for line in dump(run, lines=lines, rowids=rowids, unchecked=True):
            ready.append(line.encode("utf-8", "surrogateescape") + b"\n")
            size += len(ready[-1])
            if size >= PIECE:
                yield b"".join(ready)
                ready, size = [], 0
        yield b"".join(ready)
    finally:
        with contextlib.suppress(Exception):  # it was interrupted, or is closed
            database.exec("ROLLBACK")
