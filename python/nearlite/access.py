"""Who may ask, and for what.

Whoever may ask at all may read. A token comes with each request, or once for all requests of a WebSocket.
"""

from __future__ import annotations

import hmac
import ipaddress
import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol
from urllib.parse import urlsplit

from nearlite.exchange import HttpError, Scope, header
from nearlite.http import is_loopback

_BEARER: Final = b"bearer"


@dataclass(frozen=True, slots=True)
class Access:
    """What the holder of a token may do with one database, beside reading it.

    Attributes:
      write: run statements that write.
      push: send pages, which can make anything of the database.
      until: Unix time from which it no longer holds.
      holder: who was given it, as far as a token tells; None: whoever is at an address.
      refusal: message and code for what would write, where that is not the token's fault.
    """

    write: bool = True
    push: bool = False
    until: float = math.inf
    holder: Hashable = field(default=None, compare=False)
    refusal: tuple[str, str] | None = None

    def holder_at(self, client: object) -> Hashable:
        """Whom streams are counted for; `client`: (address, port) as ASGI has it, or None."""
        if self.holder is not None:
            return self.holder
        return client[0] if isinstance(client, (tuple, list)) and client else None

    def reading(self) -> Access:
        """What is left when it is to be used for reading only."""
        return replace(self, write=False, push=False)


FULL: Final = Access()


class Authority(Protocol):
    """Knows tokens."""

    def access(self, scope: Scope, database: str) -> Access:
        """What a request may do.

        Args:
          scope: of the request; its token is in the header Authorization.
          database: name of what it asks for.

        Raises:
          HttpError: 401 without a good token, 403 where none would help, 404 the token is for others.
        """

    def of_token(self, token: str | None, database: str) -> Access:
        """What the holder of a token may do, None: of no token. Raises HttpError as `access`."""

    def meet(self, scope: Scope) -> None:
        """Refuse who may not even begin a connection on which a token will come. Raises HttpError 403."""


class Open:
    """Trusts whoever reaches the server, but for web pages that come from elsewhere.

    Args:
      push: everybody may send pages.
    """

    def __init__(self, *, push: bool = False) -> None:
        self._access = Access(push=push)

    def access(self, scope: Scope, database: str) -> Access:
        """See `Authority`."""
        self.meet(scope)
        return self.of_token(None, database)

    def of_token(self, _token: str | None, _database: str) -> Access:
        """See `Authority`."""
        return self._access

    def meet(self, scope: Scope) -> None:
        """See `Authority`."""
        if is_foreign(scope):
            raise HttpError(
                403,
                "FORBIDDEN",
                "Without a token only pages of this machine, and of this server by its address, may ask; start the "
                "server with one",
            )


class OneToken:
    """Knows one token, whose holder may do everything.

    Args:
      token: not empty.
      push: pages as well.
    """

    def __init__(self, token: str, *, push: bool = False) -> None:
        self._token = token.encode()
        self._access = Access(push=push, holder="the token")

    def __repr__(self) -> str:
        return "<OneToken>"

    def access(self, scope: Scope, database: str) -> Access:
        """See `Authority`."""
        return self.of_token(bearer(scope), database)

    def of_token(self, token: str | None, _database: str) -> Access:
        """See `Authority`."""
        if token is None:
            raise unauthorized("There is no token")
        if not self.is_it(token):
            raise unauthorized("The token is not the right one")
        return self._access

    def is_it(self, token: str) -> bool:
        """Whether it is the token; takes as long for every one of its length."""
        return hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._token)

    def meet(self, scope: Scope) -> None:
        """See `Authority`."""


class Guiding:
    """An authority whose refusals are told as the guides to edges tell them, whatever is wrong with a token.

    Args:
      authority: knows tokens.
    """

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    def access(self, scope: Scope, database: str) -> Access:
        """See `Authority`."""
        try:
            return self._authority.access(scope, database)
        except HttpError as error:
            missing = header(scope, b"authorization") is None
            raise _guided(error, missing=missing) from None

    def of_token(self, token: str | None, database: str) -> Access:
        """See `Authority`."""
        try:
            return self._authority.of_token(token, database)
        except HttpError as error:
            raise _guided(error, missing=token is None) from None

    def meet(self, scope: Scope) -> None:
        """See `Authority`."""
        self._authority.meet(scope)


def _guided(error: HttpError, *, missing: bool) -> HttpError:
    if error.status != 401:
        return error
    return unauthorized(
        "Missing Authorization header" if missing else "Invalid authorization token"
    )


def bearer(scope: Scope) -> str:
    """The token of a request. Raises HttpError 401: it has none."""
    given = header(scope, b"authorization")
    if given is None:
        raise unauthorized("The header Authorization is missing", "AUTH_HTTP_HEADER_MISSING")
    scheme, _, token = given.partition(b" ")
    if scheme.lower() != _BEARER:
        raise unauthorized(
            "Only the authorization scheme Bearer is supported",
            "AUTH_HTTP_HEADER_UNSUPPORTED_SCHEME",
        )
    return token.strip().decode("utf-8", "surrogateescape")


def unauthorized(why: str, code: str = "UNAUTHORIZED") -> HttpError:
    """What is answered when the token is missing or not good."""
    return HttpError(401, code, why, ((b"www-authenticate", b"Bearer"),))


def unknown_database(name: str) -> HttpError:
    """What is answered when there is no such database, or the token is not for it: which, is not told."""
    return HttpError(404, "UNKNOWN_DATABASE", f"There is no database {name!r}")


def is_foreign(scope: Scope) -> bool:
    """Whether a browser asks on behalf of a page that comes neither from here nor from this server.

    A server without a token trusts whoever reaches it. Any web page reaches the loopback address of
    the machine that shows it, with a request that needs no preflight (text/plain). And whoever owns a name
    can have it lead there a moment later (DNS rebinding): then the page and the server have one origin to the
    browser, and `Origin` is as `Host` is, or is left out. So a name counts as this server only where a browser
    has seen its certificate, which whoever owns another name cannot have.
    """
    origin = header(scope, b"origin")
    host = header(scope, b"host") or b""
    if origin is None:
        # Programs send whatever Host they like. A browser says which languages are read; that it asks something
        # with a certificate, or on loopback, it says with Sec-Fetch-Mode, which no page can add.
        return (
            header(scope, b"accept-language") is not None
            and header(scope, b"sec-fetch-mode") is None
            and _may_lead_elsewhere(host)
        )
    try:
        there = urlsplit(origin.decode("latin-1"))
        if is_loopback(there.hostname or ""):
            return False
    except ValueError:  # it is no address of a page at all
        return True
    is_ours = there.netloc.encode("latin-1") == host and there.netloc != ""
    return not is_ours or (there.scheme != "https" and _may_lead_elsewhere(host))


def _may_lead_elsewhere(host: bytes) -> bool:
    """Whether a stranger may own what a Host names: neither an address, nor a name of this machine or network."""
    try:
        name = urlsplit(f"//{host.decode('latin-1')}").hostname or ""
    except ValueError:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:  # a name without a dot is no public one
        return "." in name and not name.endswith(".localhost")
    return False
