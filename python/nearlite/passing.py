"""SQL that reaches a replica which serves replicas: the primary runs it, here it is only handed on.

Pipelines, cursors and batons go up as they came and their answers come down as they are; so an answer to
``POST nl/v1/sql`` brings what was written from the primary to the replica that asked, past this one, which
receives it a moment later (rule A9). Level by level the token is that of the level above.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import msgspec

from nearlite.access import Access
from nearlite.edge import AT_A_TIME, OF_STREAMS, PATIENCE
from nearlite.errors import OfflineError
from nearlite.exchange import (
    Answering,
    ClientGoneError,
    Deadlines,
    Headers,
    HttpError,
    Receive,
    Scope,
    Send,
    expecting,
    load_protobuf,
    read_body,
)
from nearlite.http import Deadline, Response, Sent, Transport
from nearlite.last_errors import LastErrors
from nearlite.leaving import GoneError, Leaving, either
from nearlite.wire import ANSWER_TYPE

log = logging.getLogger("nearlite.server")

_GLANCE: Final = 256 << 10
"""Bytes of a body in which it is looked whether there is a baton; a larger one counts as having one."""
_WHOLE: Final = 1 << 20
"""Bytes of an answer that is taken in one piece."""
_PIECE: Final = 256 << 10
_PROTOBUF: Final = "/v3-protobuf/"
BatonOf = Callable[[bytes], "str | None"]
_Asked = tuple[Sent, Response, "bytes | None"]
_UP: Final = frozenset(
    [
        b"content-type",
        b"nearlite-position",
        b"nearlite-hash",
        b"nearlite-counters",
        b"nearlite-read",
        b"nearlite-request",
    ]
)
_DOWN: Final = (
    "nearlite-position",
    "nearlite-transactions",
    "nearlite-counters",
    "nearlite-autocommit",
    "cache-control",
    "retry-after",
)


class _Baton(msgspec.Struct):
    baton: str | None = None


class _Refusal(msgspec.Struct):
    code: str = ""


def _baton_of(body: bytes) -> str | None:
    """The baton in a request or an answer as JSON."""
    try:
        return msgspec.json.decode(body, type=_Baton).baton
    except (
        msgspec.MsgspecError,
        RecursionError,
    ):  # a cursor's answer, line by line, or what is no request at all
        return None


async def reader_of_batons(path: str) -> BatonOf:
    """What finds the baton in requests to that path, and in their answers."""
    if path.startswith(_PROTOBUF):
        found: BatonOf = (await load_protobuf()).baton_of
        return found
    return _baton_of


class Passing:
    """Hands requests on to an upstream. Event loop thread only.

    Args:
      transport: to the upstream.
      answering: sends.
      deadlines: of bodies.
      last: is told of statements that failed up there, but for answers in protobuf; None: nobody wants to know.
    """

    def __init__(
        self,
        transport: Transport,
        answering: Answering,
        deadlines: Deadlines,
        last: LastErrors | None = None,
    ) -> None:
        self._last = last
        self._transport = transport
        self._answering = answering
        self._deadlines = deadlines
        self._threads = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="nearlite-up")
        self._of_streams = ThreadPoolExecutor(OF_STREAMS, thread_name_prefix="nearlite-up")
        self._under_way: set[asyncio.Task[None]] = set()

    async def answer(
        self,
        path: str,
        scope: Scope,
        receive: Receive,
        send: Send,
        access: Access,
        *,
        body: bytes | None = None,
    ) -> None:
        """Whatever is posted to a path that runs SQL; `body`: it has been read already."""
        if body is None:
            body = await read_body(scope, receive, self._deadlines)
        await self._pass(path, scope, receive, send, access, body)

    async def close(self) -> None:
        """Let what is under way end; its answers go to nobody once the transport is closed."""
        for threads in (self._threads, self._of_streams):
            threads.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------ one request

    async def _pass(
        self,
        path: str,
        scope: Scope,
        receive: Receive,
        send: Send,
        access: Access,
        body: bytes,
    ) -> None:
        query: str = scope.get("query_string", b"").decode("latin-1")
        target = path.lstrip("/") + (f"?{query}" if query else "")
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _UP
        } | _rights(access)
        baton_of = await reader_of_batons(path)
        leaving = Leaving(receive)
        try:
            sent, response, whole = await self._ask(
                target, body, headers, leaving, access, baton_of
            )
            try:
                if whole is None:
                    baton = None
                    await self._hand_on(sent, response, send, leaving)
                else:
                    baton = await self._answer(response, whole, send, access, baton_of)
            finally:
                await self._close(response)
        finally:
            leaving.close()
        client = expecting(scope)
        if baton is not None and client is not None:
            client.expect(lambda: self._soon(self._abandon(baton, access)))

    async def _ask(
        self,
        target: str,
        body: bytes,
        headers: dict[str, str],
        leaving: Leaving,
        access: Access,
        baton_of: BatonOf = _baton_of,
    ) -> _Asked:
        """What was sent, the head of its answer, and its body if it is small.

        Raises:
          HttpError: there is none.
          GoneError: the client has left; what it asked for is interrupted up there.
        """
        under_way: list[Sent] = []
        left = threading.Event()

        def work() -> _Asked:
            if left.is_set():  # while it waited for its turn
                raise ClientGoneError
            deadline = Deadline(PATIENCE, renewed=True)
            sent = self._transport.send(target, deadline, body=body, headers=headers)
            under_way.append(sent)
            if left.is_set():  # before it was on its way
                sent.abort()
            response = sent.answer(deadline)
            length = response.length
            if length is not None and length <= _WHOLE:
                return sent, response, response.read(_WHOLE)
            return sent, response, None

        goes_on = len(body) > _GLANCE or baton_of(body) is not None
        threads = self._of_streams if goes_on else self._threads
        try:
            asked = asyncio.get_running_loop().run_in_executor(threads, work)
        except RuntimeError:  # no new futures after shutdown
            raise _shutting_down() from None
        stays = False
        try:
            stays = await either(asked, leaving)
        finally:
            if not stays:  # or this is given up
                left.set()
                for sent in under_way:
                    sent.abort()
                asked.add_done_callback(partial(self._forget, access=access, baton_of=baton_of))
        if not stays:
            raise GoneError
        if asked.cancelled():  # it was still waiting for a thread
            raise _shutting_down()
        try:
            sent, response, whole = asked.result()
        except OfflineError as error:
            raise _unreachable(error) from None
        if response.status == 401 or (response.status == 403 and not _code_of(whole)):
            response.close()
            raise HttpError(
                502,
                "UPSTREAM_REFUSED",
                "The server above this one did not accept this one's token; nothing was carried out",
            )
        return sent, response, whole

    async def _answer(
        self, response: Response, whole: bytes, send: Send, access: Access, baton_of: BatonOf
    ) -> str | None:
        """Send a small answer on; the baton in it."""
        kind = response.header("content-type").encode("latin-1")
        baton = _baton_in(response, whole, baton_of)
        if self._last is not None and response.status == 200:
            self._last.answered(_json_of(response, whole))
        elif self._last is not None and (code := _code_of(whole)):
            self._last.statement(code)
        try:
            await self._answering.whole(send, response.status, whole, kind, _down(response))
        except BaseException:
            if baton is not None:
                self._soon(self._abandon(baton, access))
            raise
        return baton

    async def _hand_on(self, sent: Sent, response: Response, send: Send, leaving: Leaving) -> None:
        """Send a large answer on as it comes; a client that leaves ends it up there."""
        kind = response.header("content-type").encode("latin-1")
        headers = _down(response)
        length = response.length
        if length is not None:
            headers = ((b"content-length", b"%d" % length), *headers)
        await self._answering.start(send, response.status, kind, headers)
        buffer = memoryview(bytearray(_PIECE))
        while True:
            piece = asyncio.ensure_future(self._thread(response.readinto, buffer))
            if not await either(piece, leaving):
                sent.abort()
            try:
                count = await piece
            except (
                OfflineError
            ) as error:  # its client sees an answer that ends too early, or is not there
                raise ClientGoneError from error
            if count == 0:
                break
            data = bytes(buffer[:count])
            if self._last is not None:
                self._last.answered(data)
            await self._answering.piece(send, data)
        await self._answering.end(send)

    async def _close(self, response: Response) -> None:
        try:
            await self._thread(response.close)
        except ClientGoneError:
            response.close()

    # ------------------------------------------------------------------ streams up there

    def _forget(
        self,
        asked: asyncio.Future[_Asked],
        *,
        access: Access,
        baton_of: BatonOf,
    ) -> None:
        """Nobody wants what comes of it."""
        if asked.cancelled() or asked.exception() is not None:
            return
        _sent, response, whole = asked.result()
        response.close()
        baton = None if whole is None else _baton_in(response, whole, baton_of)
        if baton is not None:  # it was quicker than its end
            self._soon(self._abandon(baton, access))

    async def _abandon(self, baton: str, access: Access) -> None:
        """End a stream whose baton has reached nobody: others wait for its transaction."""
        body = msgspec.json.encode({"baton": baton, "requests": [{"type": "close"}]})
        headers = {"Content-Type": "application/json"} | _rights(access)

        def work() -> None:
            deadline = Deadline(self._transport.timeout)
            with self._transport.send("v3/pipeline", deadline, body=body, headers=headers).answer(
                deadline
            ) as response:
                response.error_body()

        try:
            await self._thread(work)
        except Exception as error:  # noqa: BLE001 - it ends by itself, later
            log.debug("an abandoned stream could not be ended: %s", error)

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    def _thread(self, work: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        """Raises ClientGoneError: this has been closed, and what is under way goes to nobody."""
        try:
            return asyncio.get_running_loop().run_in_executor(self._of_streams, work, *args)
        except RuntimeError:  # no new futures after shutdown
            raise ClientGoneError from None


def _rights(access: Access) -> dict[str, str]:
    """What this server's token may do up there is more than somebody here may who only reads."""
    return {} if access.write else {"Nearlite-Access": "read"}


def _code_of(body: bytes | None) -> str:
    """The code of a refusal of what was asked for; empty: it is of who asks, by something in between."""
    try:
        return "" if body is None else msgspec.json.decode(body, type=_Refusal).code
    except (msgspec.MsgspecError, RecursionError):
        return ""


def _down(response: Response) -> Headers:
    found = ((name, response.header(name)) for name in _DOWN)
    return tuple((name.encode(), value.encode("latin-1")) for name, value in found if value)


def _baton_in(response: Response, body: bytes, baton_of: BatonOf) -> str | None:
    """The baton in the answer to a pipeline."""
    if response.status != 200:
        return None
    return baton_of(_json_of(response, body))


def _json_of(response: Response, body: bytes) -> bytes:
    """An answer without the page set behind it."""
    if response.header("content-type") == ANSWER_TYPE:
        return body[4 : 4 + int.from_bytes(body[:4], "big")]
    return body


def _shutting_down() -> HttpError:
    return HttpError(503, "SHUTTING_DOWN", "The server is about to end; nothing was carried out")


def _unreachable(error: OfflineError) -> HttpError:
    """What the client hears: whether it may have been carried out."""
    if error.state == "nothing was sent":
        return HttpError(
            503,
            "UPSTREAM_UNREACHABLE",
            f"{error.message}; nothing was carried out",
            ((b"retry-after", b"1"),),
        )
    return HttpError(
        502, "UPSTREAM_LOST", f"{error.message}; what was asked for may have been carried out"
    )
