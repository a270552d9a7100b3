"""What an edge keeps of a client's stream beside what every server keeps: its stream above, and positions."""

from __future__ import annotations

import re
from typing import Final

from nearlite.exchange import Headers, Scope, header
from nearlite.position import Position

POSITION: Final = b"nearlite-position"
"""Header that tells where a write has led, and what a later request's reads have to have reached; and the
name of the cookie that says the same for clients that keep cookies."""
_COOKIE_SECONDS: Final = 3600
_COOKIE: Final = re.compile(rb"(?:^|;)\s*nearlite-position=([^;\s]*)")


class Above:
    """One stream.

    Attributes:
      baton: of the stream above that carries its transaction or settings; None: it has none.
      sticky: that one carries settings or temporary objects.
      after: what its reads have to have reached; None: anything will do.
      wrote: where its present request's writes have led.
      read: what a replica below has read in the transaction that its present request begins, or "".
    """

    __slots__ = ("after", "baton", "read", "sticky", "wrote")

    def __init__(self, after: Position | None = None) -> None:
        self.baton: str | None = None
        self.sticky = False
        self.after = after
        self.wrote: Position | None = None
        self.read = ""


def wanted(scope: Scope) -> Position | None:
    """What the reads of a request have to have reached, by its header or its cookie.

    One that is no position is no fault of the request: cookies are kept by browsers, and by others.
    """
    text = header(scope, POSITION)
    if text is None:
        cookie = header(scope, b"cookie")
        found = None if cookie is None else _COOKIE.search(cookie)
        if found is None:
            return None
        text = found[1]
    try:
        return Position.parse(text.decode("latin-1"))
    except ValueError:
        return None


def led_to(position: Position) -> Headers:
    """Headers that tell a client where its write has led."""
    text = str(position).encode()
    cookie = b"nearlite-position=%b; Path=/; Max-Age=%d; HttpOnly; SameSite=Lax"
    return (
        (POSITION, text),
        (b"access-control-expose-headers", b"nearlite-position, nearlite-age"),
        (b"set-cookie", cookie % (text, _COOKIE_SECONDS)),
    )
