"""The admin API, on a listener of its own: libSQL's routes for namespaces, JSON in and out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from nearlite import hrana
from nearlite.access import Authority
from nearlite.administration import Administration
from nearlite.exchange import (
    NO_STORE,
    Answering,
    Deadlines,
    HttpError,
    Receive,
    Scope,
    Send,
    read_body,
    refused,
)
from nearlite.exposition import text_of
from nearlite.guarding import Guard
from nearlite.hosting import Hosting
from nearlite.server import METRICS

_LARGEST: Final = 1 << 20  # bytes of a body
_NAMESPACE: Final = "/v1/namespaces/{name}"
_ADMIN: Final = "admin"

_Work = Callable[[Administration, Request, dict[str, Any]], Awaitable[Any]]


async def _hello(_admin: Administration, _request: Request, _body: dict[str, Any]) -> Any:
    return "Welcome to the nearlite admin API"


async def _names(admin: Administration, _request: Request, _body: dict[str, Any]) -> Any:
    return {"namespaces": admin.names()}


async def _create(admin: Administration, request: Request, body: dict[str, Any]) -> None:
    await admin.create(request.path_params["name"], body)


async def _delete(admin: Administration, request: Request, body: dict[str, Any]) -> Any:
    _known(body, "keep_backup")
    keep = body.get("keep_backup", False)
    if not isinstance(keep, bool):
        raise HttpError(400, "BAD_REQUEST", "keep_backup is true or false; nothing was changed")
    kept = await admin.delete(request.path_params["name"], keep=keep)
    return None if kept is None else {"backup": kept.name}


async def _fork(admin: Administration, request: Request, body: dict[str, Any]) -> None:
    _known(body, "timestamp")
    if body.get("timestamp") is not None:
        raise HttpError(
            400,
            "NOT_SUPPORTED",
            "A fork is of the present: timestamp is not served; nothing was made",
        )
    await admin.fork(request.path_params["name"], request.path_params["to"])


async def _checkpoint(admin: Administration, request: Request, _body: dict[str, Any]) -> None:
    await admin.checkpoint(request.path_params["name"])


async def _config(admin: Administration, request: Request, body: dict[str, Any]) -> Any:
    name = request.path_params["name"]
    if request.method == "POST":
        await admin.configure(name, body)
        return None
    return admin.config(name)


async def _stats(admin: Administration, request: Request, _body: dict[str, Any]) -> Any:
    return await admin.stats(request.path_params["name"])


async def _reset(admin: Administration, request: Request, _body: dict[str, Any]) -> None:
    await admin.reset(request.path_params["name"], request.path_params["what"])


_ROUTES: Final[tuple[tuple[str, str, _Work], ...]] = (
    ("GET", "/", _hello),
    ("GET", "/v1/namespaces", _names),
    ("POST", f"{_NAMESPACE}/create", _create),
    ("DELETE", _NAMESPACE, _delete),
    ("POST", f"{_NAMESPACE}/fork/{{to}}", _fork),
    ("POST", f"{_NAMESPACE}/checkpoint", _checkpoint),
    ("GET", f"{_NAMESPACE}/config", _config),
    ("POST", f"{_NAMESPACE}/config", _config),
    ("GET", f"{_NAMESPACE}/stats", _stats),
    ("DELETE", f"{_NAMESPACE}/stats/{{what}}", _reset),
)


class AdminApp:
    """An ASGI application. Build it with `admin_app`.

    Args:
      hosting: the server that it changes.
      authority: knows who may ask.
    """

    def __init__(self, hosting: Hosting, authority: Authority) -> None:
        self._hosting = hosting
        self._authority = authority
        self._admin: Administration | None = None
        self._deadlines = Deadlines()
        self._answering = Answering(self._deadlines)
        self._guard = Guard(self._answering)
        by_path: dict[str, dict[str, _Work]] = {}
        for method, path, work in _ROUTES:
            by_path.setdefault(path, {})[method] = work
        self._app = Starlette(
            routes=[
                Route(path, self._endpoint(works), methods=list(works))
                for path, works in by_path.items()
            ],
            exception_handlers={HTTPException: _http_exception, HttpError: _refused},
        )

    def __repr__(self) -> str:
        return f"<AdminApp of {self._hosting!r}>"

    def stop_waiting(self) -> None:
        """Nobody waits here."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            await self._guard(scope, send, self._handle(scope, receive, send))
        elif scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._authority.access(scope, _ADMIN)
        if scope["path"] == METRICS and scope["method"] in ("GET", "HEAD"):
            sample = self._hosting.sample()
            text, kind = await asyncio.get_running_loop().run_in_executor(None, text_of, sample)
            head = scope["method"] == "HEAD"
            await self._answering.whole(send, 200, text, kind, (NO_STORE,), head=head)
            return
        # A fresh body for whatever the route: the deadlines of bodies are those of the other listener.
        body = await read_body(scope, receive, self._deadlines)

        async def received() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, received, send)

    def _endpoint(self, works: dict[str, _Work]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            method = "GET" if request.method == "HEAD" else request.method
            body = _object(await request.body(), required=method == "POST")
            if self._admin is None:
                self._admin = Administration(self._hosting)
            found = await works[method](self._admin, request, body)
            if isinstance(found, str):
                return PlainTextResponse(found)
            if found is None:
                return Response(status_code=200)
            return Response(json.dumps(found), media_type="application/json")

        return endpoint


def admin_app(hosting: Hosting, authority: Authority) -> AdminApp:
    """The admin API of a server of many databases."""
    return AdminApp(hosting, authority)


def _object(body: bytes, *, required: bool) -> dict[str, Any]:
    """A body. Raises HttpError 400: it is no JSON object."""
    if not body.strip():
        return {}
    if len(body) > _LARGEST:
        raise HttpError(413, "REQUEST_TOO_LARGE", f"A body has at most {_LARGEST} bytes")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        if not required and found is None and body.strip() == b"null":
            return {}
        raise HttpError(400, "BAD_REQUEST", "The body is no JSON object; nothing was changed")
    return found


def _known(body: dict[str, Any], *names: str) -> None:
    for name in body:
        if name not in names:
            raise HttpError(400, "BAD_REQUEST", f"{name!r} means nothing here; nothing was changed")


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    told = refused(error)
    headers = {name.decode(): value.decode() for name, value in told.headers}
    return Response(told.body, told.status, headers | {"content-type": "application/json"})


async def _http_exception(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    code, message = {
        404: ("NOT_FOUND", "There is nothing at this path"),
        405: ("METHOD_NOT_ALLOWED", "The method is not allowed here"),
    }.get(status, ("INTERNAL_ERROR", "The server failed; its log says why"))
    headers |= {"content-type": "application/json", "cache-control": "no-store"}
    return Response(hrana.error_body(message, code), status, headers)
