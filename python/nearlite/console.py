"""A page to look at: ``GET /``, and ``GET /console/state`` for what it shows.

The page holds nothing of the database, so that it needs no token; what it asks for does, as any other
request. Nothing is done while nobody looks: commits are counted out of the log by those who do, and who asks
often, or with many others, is told what was told just before.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
import re
import time
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

from nearlite import compression, errors
from nearlite.changes import Feed
from nearlite.exchange import JSON, NO_STORE, Answering, Headers, Scope, Send
from nearlite.last_errors import LastErrors
from nearlite.replica import Replica
from nearlite.source import Source, State
from nearlite.standing import Size, Standing, UpstreamStanding

PAGE: Final = ("", "/")
STATE: Final = "/console/state"
_LEAST: Final = 0.2  # seconds between two looks
_SHARE: Final = 20  # a look takes at most this part of the time
_ASK_EVERY: Final = 2.0  # seconds between two questions to the server above
_ASK_SECONDS: Final = 5.0
_HTML: Final = b"text/html; charset=utf-8"
_INLINE: Final = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)
_GUARDED: Final = b'data-token="unasked"'

log = logging.getLogger("nearlite.server")


@cache
def page(*, guarded: bool, encoding: str | None) -> tuple[bytes, Headers]:
    """The page, compressed or not, and its headers; `guarded`: it is to ask for a token."""
    body = resources.files("nearlite").joinpath("console.html").read_bytes()
    allowed = {b"script": b"", b"style": b""}
    for kind, text in _INLINE.findall(body):
        digest = base64.b64encode(hashlib.sha256(text).digest())
        allowed[kind] += b" 'sha256-%b'" % digest
    if guarded:
        body = body.replace(_GUARDED, b'data-token="asked"', 1)
    policy = (
        b"default-src 'none'; connect-src 'self'; img-src data:; script-src%b; style-src%b; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    encoded: Headers = ()
    if encoding is not None:
        body, encoded = compression.compress(encoding, body), compression.told(encoding)
    return body, (
        *encoded,
        NO_STORE,
        (b"content-security-policy", policy % (allowed[b"script"], allowed[b"style"])),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    )


class Console:
    """Tells how a server stands. Event loop thread only.

    Args:
      source: what is served.
      feed: who asks it.
      answering: sends.
      last: the last errors.
      path: of the database.
      version: of this program.
      region: where this server stands, in its owner's words.
      guarded: a token is asked for.
      reads: it is an edge: SQL that only looks is run on its replica.
      upstream: of a replica that serves replicas.
    """

    def __init__(
        self,
        source: Source,
        feed: Feed,
        answering: Answering,
        last: LastErrors,
        *,
        path: Path,
        version: str,
        region: str | None = None,
        guarded: bool = False,
        reads: bool = False,
        upstream: Replica | None = None,
    ) -> None:
        self._source = source
        self._feed = feed
        self._answering = answering
        self._last = last
        self._path = path
        self._folder = os.path.join(os.path.dirname(os.path.realpath(path)), "")
        self._version = version
        self._region = region
        self._guarded = guarded
        self._role = "primary" if upstream is None else "edge" if reads else "replica"
        self._upstream = upstream
        self._counted = source.latest
        self._commits = 0
        self._told = b""
        self._smaller: dict[str, bytes] = {}  # the same by encoding
        self._due = 0.0  # monotonic time from which `_told` is too old
        self._look: asyncio.Task[None] | None = None
        self._asking: asyncio.Future[None] | None = None
        self._asked_at = -_ASK_EVERY
        self._unheard: str | None = None  # why the server above did not answer

    async def answer(self, path: str, scope: Scope, send: Send) -> None:
        """Answer a GET or HEAD of PAGE or STATE."""
        head = scope["method"] == "HEAD"
        if path != STATE:
            body, headers = page(guarded=self._guarded, encoding=compression.accepted(scope))
            await self._answering.whole(send, 200, body, _HTML, headers, head=head)
            return
        while time.monotonic() >= self._due:  # one look for all that ask meanwhile
            if self._look is None:
                self._look = asyncio.get_running_loop().create_task(self._again())
            await asyncio.shield(self._look)
        body, headers = self._encoded(scope)
        await self._answering.whole(send, 200, body, JSON, (NO_STORE, *headers), head=head)

    def _encoded(self, scope: Scope) -> tuple[bytes, Headers]:
        """What was found, compressed once for all who look and accept it."""
        encoding = compression.accepted(scope)
        if encoding is None or len(self._told) < compression.LEAST:
            return self._told, ()
        if encoding not in self._smaller:
            self._smaller[encoding] = compression.compress(encoding, self._told)
        return self._smaller[encoding], compression.told(encoding)

    async def _again(self) -> None:
        began = time.monotonic()
        try:
            self._told = await self._standing()
            self._smaller = {}
        finally:
            self._look = None
        took = time.monotonic() - began
        self._due = began + took + max(_LEAST, took * _SHARE)

    async def _standing(self) -> bytes:
        loop = asyncio.get_running_loop()
        self._hear(loop)
        size = await loop.run_in_executor(None, self._size)
        feed, source = self._feed, self._source
        standing = Standing(
            role=self._role,
            database=self._path.name,
            region=self._region,
            version=self._version,
            position=source.latest,
            size=size,
            commits=self._commits,
            sent=feed.sent,
            above=None if self._upstream is None else self._above(self._upstream),
            seen=feed.lately(),
            waiting=feed.polls.addresses(),
            errors=self._last.told(),
            now_ms=time.time_ns() // 1_000_000,
            clock=time.monotonic(),
        )
        return await loop.run_in_executor(None, standing.encode)

    def _size(self) -> Size:
        """In a thread, one at a time: look at the database, and count the commits since the last look."""
        state: State | None = None
        try:
            if self._upstream is None:
                state, behind = self._source.ahead_of(self._counted)
                self._counted = state.position
                if behind is not None and behind.transactions is not None:
                    self._commits += behind.transactions
            else:
                state = self._source.state()
                self._commits = self._upstream.tally.transactions
        except (
            errors.Error,
            OSError,
        ) as error:  # a full disk, a damaged page: that is worth a look
            self._last.note(type(error).__name__, self._plain(error))
        file, wal = _bytes(self._path), _bytes(Path(f"{self._path}-wal"))
        if state is None:
            return Size(0, 0, file, wal, 0)
        return Size(state.pages, state.page_size, file, wal, state.commit_ms)

    def _plain(self, error: Exception) -> str:
        """What it says, without where the file lies."""
        return str(error).replace(self._folder, "")

    # ------------------------------------------------------------------ above

    def _hear(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ask the server above how far this one is behind, if nothing else does, and go on meanwhile."""
        upstream, now = self._upstream, time.monotonic()
        if upstream is None or upstream.background.follows or self._asking is not None:
            return
        if now - self._asked_at >= _ASK_EVERY:
            self._asked_at = now
            self._asking = loop.run_in_executor(None, self._ask, upstream)
            self._asking.add_done_callback(self._heard)

    def _ask(self, upstream: Replica) -> None:
        try:
            upstream.ask(network_timeout=_ASK_SECONDS)
        except (errors.Error, OSError) as error:
            self._unheard = self._plain(error)
        except Exception as error:  # a token callable may raise anything
            log.exception("the upstream could not be asked")
            self._unheard = type(error).__name__
        else:
            self._unheard = None

    def _heard(self, _asking: asyncio.Future[None]) -> None:
        self._asking = None

    def _above(self, upstream: Replica) -> UpstreamStanding:
        there = upstream.primary_position
        lag = upstream.ahead.lag(self._source.latest, there)
        failed = upstream.last_error
        return UpstreamStanding(
            url=upstream.transport.url,
            position=there,
            age=upstream.lag,
            follows=upstream.background.follows,
            transactions=lag.transactions,
            bytes=lag.bytes,
            seconds=lag.seconds,
            received=upstream.tally.wire_bytes,
            error=self._unheard if failed is None else self._plain(failed),
        )


def _bytes(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
