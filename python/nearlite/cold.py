"""The paths that are asked once in a while: health, versions, and what does not exist."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from importlib import metadata
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from nearlite import hrana, openapi
from nearlite._native import _lib
from nearlite.exchange import CORS, JSON, Receive, Scope, Send


@cache
def program_version() -> str:
    """Of the installed package."""
    try:
        return metadata.version("nearlite")
    except metadata.PackageNotFoundError:  # imported from a source tree
        return "0+unknown"


async def _health(_request: Request) -> Response:
    return Response(status_code=200)


async def _hello(request: Request) -> Response:
    version = request.url.path[2]
    return PlainTextResponse(f"Hello, this is HTTP API v{version} (Hrana over HTTP)")


async def _tell_version(_request: Request) -> Response:
    return PlainTextResponse(
        f"nearlite {program_version()} (SQLite {_lib.sqlite_version}, {_lib.openssl_version})"
    )


async def _describe(_request: Request) -> Response:
    return Response(openapi.document(program_version()), media_type=JSON.decode())


async def _http_exception(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    code, message = {
        404: ("NOT_FOUND", "There is nothing at this path"),
        405: ("METHOD_NOT_ALLOWED", "The method is not allowed here"),
    }.get(status, ("INTERNAL_ERROR", "The server failed; its log says why"))
    body = hrana.error_body(message, code)
    headers |= {"content-type": JSON.decode(), "cache-control": "no-store"}
    return Response(body, status, headers)


_ROUTES: Final = [
    Route("/health", _health),
    Route("/version", _tell_version),
    Route("/openapi.json", _describe),
    Route("/v1", _hello),
    Route("/v2", _hello),
    Route("/v3", _hello),
    Route("/v3-protobuf", _hello),
]
_PATHS: Final = frozenset(route.path for route in _ROUTES)


def is_cold(path: str) -> bool:
    """Whether a path is one of those: anybody may ask, and no database is needed to answer."""
    return path in _PATHS


@cache
def cold_paths() -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An ASGI application."""
    app = Starlette(routes=_ROUTES, exception_handlers={HTTPException: _http_exception})

    async def permissive(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_cors(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                assert isinstance(headers, list)
                headers.append(CORS)
            await send(message)

        await app(scope, receive, with_cors)  # type: ignore[arg-type]

    return permissive
