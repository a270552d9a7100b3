"""Which of the databases of a server a replica's upstream is: ``GET nl/v1/databases?path=&name=``.

A sidecar knows its databases by name and by path, and serves each below ``db/NAME/``. A server that knows nothing
of the question is one database, the one that its URL names.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from nearlite import wire
from nearlite.errors import AnswerError, OfflineError, SyncError
from nearlite.http import Deadline, Transport
from nearlite.settings import DatabaseSettings
from nearlite.sync import refusal

_LARGEST: Final = 64 << 10  # bytes of an answer
_REMEMBERED: Final = "upstream.json"


class _Named(msgspec.Struct):
    name: str


class Databases(msgspec.Struct):
    """What is answered: the database that was asked for, or none."""

    databases: list[_Named]


def url_of(settings: DatabaseSettings, transport: Transport) -> str:
    """The URL of the database that a replica is to be of.

    Args:
      settings: of the replica, which has an upstream.
      transport: to the server there.

    Raises:
      OfflineError: it cannot be reached, and was never found before.
      SyncError: it refuses, or has no such database.
    """
    upstream = settings.upstream
    assert upstream is not None
    if upstream.name is not None:
        return _below(transport.url, upstream.name)
    asked = f"nl/v1/databases?path={quote(upstream.path or settings.written, safe='')}"
    if upstream.path is None:
        asked += f"&name={quote(settings.name, safe='')}"
    try:
        name = _ask(transport, asked, settings)
    except OfflineError:
        known = _remembered(settings, transport.url, asked)
        if known is None:
            raise
        return known
    found = transport.url if name is None else _below(transport.url, name)
    _remember(settings, transport.url, asked, found)
    return found


def _ask(transport: Transport, asked: str, settings: DatabaseSettings) -> str | None:
    """The name there; None: the server is one database itself."""
    with transport.request("GET", asked, deadline=Deadline(transport.timeout)) as response:
        if response.status == 404:
            response.error_body()
            return None
        if response.status != 200:
            code, message = wire.decode_error(response.error_body())
            raise refusal(response.status, code, message, None, state="nothing was changed")
        body = response.read(_LARGEST)
    try:
        answer = msgspec.json.decode(body, type=Databases)
    except msgspec.MsgspecError:
        raise AnswerError(f"{transport.url} did not answer which databases it has") from None
    if not answer.databases:
        upstream = settings.upstream
        assert upstream is not None
        wanted = f"the path {upstream.path or settings.written}"
        if upstream.path is None:
            wanted += f", and none of the name {settings.name}"
        raise SyncError(
            f"{transport.url} has no database of {wanted}",
            state="nothing was changed",
            action="give upstream: path (as the configuration there has it) or upstream: name",
        )
    return answer.databases[0].name


def _below(url: str, name: str) -> str:
    return f"{url}db/{quote(name, safe='')}/"


# ---------------------------------------------------------------------- while it is away


def _place(settings: DatabaseSettings) -> Path:
    return Path(f"{settings.path}-nearlite", _REMEMBERED)


def _remember(settings: DatabaseSettings, url: str, asked: str, found: str) -> None:
    """For a start while the upstream is away."""
    place = _place(settings)
    with contextlib.suppress(OSError):  # it only helps then
        place.parent.mkdir(mode=0o755, exist_ok=True)  # as of any replica
        new = place.with_suffix(".new")
        new.write_text(json.dumps({"url": url, "asked": asked, "found": found}))
        os.replace(new, place)


def _remembered(settings: DatabaseSettings, url: str, asked: str) -> str | None:
    try:
        known = json.loads(_place(settings).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(known, dict) or (known.get("url"), known.get("asked")) != (url, asked):
        return None
    found = known.get("found")
    return found if isinstance(found, str) and found.startswith(url) else None
