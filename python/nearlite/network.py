"""How a server is reached: certificates, a proxy, headers that something in between wants to see."""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3.connection

from nearlite.errors import ProgrammingError

Verify = bool | str | os.PathLike[str] | ssl.SSLContext
UpstreamProtocol = Literal["auto", "nearlite", "libsql", "sqld"]
UPSTREAM_PROTOCOLS: Final[tuple[str, ...]] = get_args(UpstreamProtocol)
"""What the upstream of an edge may be said to speak; auto: it is asked."""
Certificate = str | os.PathLike[str] | tuple[str | os.PathLike[str], ...]

# What frames a request, or belongs to the protocol: nobody else's to set.
_OURS: Final = frozenset(
    ["connection", "content-length", "content-type", "host", "te", "transfer-encoding", "upgrade"]
)
EDGE: Final = "Nearlite-Edge"
"""The header with which a replica that serves replicas says so to its upstream."""
UNNAMED: Final = "*"
"""Its value for a region that has no name."""
LONGEST_REGION: Final = 64
"""Characters."""


@dataclass(frozen=True, slots=True)
class Network:
    """The options of a transport. Equal ones let connections share a replica.

    Attributes:
      verify: whose certificates are trusted: True for the system's (and SSL_CERT_FILE), a file or folder
        of CA certificates, or an SSLContext that is used as it is.
      cert: the client's own certificate: a PEM file with its key, or (file, key file[, password]).
      proxy: "http://[user:password@]host:port"; None: what the environment says.
      headers: sent with every request, as pairs.
    """

    verify: Verify = True
    cert: tuple[str, ...] | None = None
    # Not in repr(): they may hold secrets.
    proxy: str | None = field(default=None, repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        verify: Verify = True,
        cert: Certificate | None = None,
        proxy: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Network:
        """The options as a program gives them.

        Raises:
          ProgrammingError: one of them cannot be used.
        """
        if verify is False:
            raise ProgrammingError(
                "verify=False would let anybody read and write in between; give the CA's file, or an "
                "ssl.SSLContext that does what you want"
            )
        if proxy is not None:
            _address(proxy)
        if not isinstance(verify, (bool, ssl.SSLContext)):
            verify = os.fspath(verify)
        if cert is not None:
            cert = tuple(map(_path, cert if isinstance(cert, tuple) else (cert,)))
        if headers is not None and not isinstance(headers, Mapping):
            raise ProgrammingError(f"headers is a mapping, not {type(headers).__name__}")
        network = cls(verify, cert, proxy, tuple((headers or {}).items()))
        for name, value in network.headers:
            _check_header(name, value)
        return network

    def parameters(self) -> dict[str, Any]:
        """What `connect` takes, by its names there."""
        return {
            "verify": self.verify,
            "cert": self.cert,
            "proxy": self.proxy,
            "headers": dict(self.headers),
        }

    def of_edge(self, region: str | None) -> Network:
        """The same for a server that serves others, and says so with every request.

        Args:
          region: where it is; of its name what a header can take, LONGEST_REGION characters at most.
        """
        letters = [letter for letter in region or "" if letter.isascii() and letter.isprintable()]
        named = "".join(letters).strip()[:LONGEST_REGION] or UNNAMED
        return replace(self, headers=(*self.headers, (EDGE, named)))

    def context(self) -> ssl.SSLContext:
        """What TLS is spoken with. Raises ProgrammingError: a file cannot be used."""
        if isinstance(self.verify, ssl.SSLContext):
            if self.cert is not None:
                raise ProgrammingError("load the client's certificate into the SSLContext itself")
            return self.verify
        try:
            if self.verify is True:
                context = ssl.create_default_context()  # honours SSL_CERT_FILE
            else:
                where = os.fspath(self.verify)  # type: ignore[arg-type]
                folder = os.path.isdir(where)
                context = ssl.create_default_context(
                    cafile=None if folder else where, capath=where if folder else None
                )
            if self.cert is not None:
                context.load_cert_chain(*self.cert)
        except (OSError, TypeError) as error:  # ssl.SSLError is an OSError
            raise ProgrammingError(f"the certificates cannot be used: {error}") from error
        return context

    def connection(
        self, host: str, port: int, *, context: ssl.SSLContext | None, local: bool, timeout: float
    ) -> urllib3.connection.HTTPConnection:
        """A connection that has still to be made.

        Args:
          host, port: of the server.
          context: to speak TLS with, or None.
          local: the server is on this machine: a proxy of the environment is not for it.
          timeout: seconds to make it.
        """
        proxy = self.proxy
        if proxy is None and not local and not proxy_bypass(host):
            proxy = getproxies().get("http" if context is None else "https")
        first, second, headers = (host, port, {}) if proxy is None else _address(proxy)
        if context is None:
            made = urllib3.connection.HTTPConnection(first, second, timeout=timeout)
        else:
            made = urllib3.connection.HTTPSConnection(
                first, second, timeout=timeout, ssl_context=context
            )
        if proxy is not None:
            made.set_tunnel(host, port, headers)
        return made


def _path(path: str | os.PathLike[str]) -> str:
    return os.fspath(path)


DEFAULT: Final = Network()


def split_url(url: str) -> SplitResult | None:
    """The parts of an absolute URL; None when it is none that a request could be sent to (RFC 3986).

    What urllib would take out in silence, a line break say, is refused.
    """
    if not (url.isascii() and url.isprintable()) or " " in url:
        return None
    try:
        parts = urlsplit(url)
        if not parts.hostname or parts.port == 0:
            return None
    except ValueError:  # a port that is no number, half an IPv6 address
        return None
    return parts


def _address(proxy: str) -> tuple[str, int, dict[str, str]]:
    """Host, port and headers of a proxy."""
    parts = None
    if isinstance(proxy, str):
        parts = split_url(proxy if "://" in proxy else f"http://{proxy}")
    if parts is None or parts.scheme != "http" or not parts.hostname:
        raise ProgrammingError("a proxy is given as http://[user:password@]host[:port]")
    port = parts.port or 8080
    headers = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return parts.hostname, port, headers


def _check_header(name: str, value: str) -> None:
    if not isinstance(name, str) or not isinstance(value, str):
        raise ProgrammingError("headers are pairs of str")
    if name.lower() in _OURS or name.lower().startswith("nearlite-"):
        raise ProgrammingError(f"the header {name} is not the program's to set")
    token = name.replace("-", "").replace("_", "")
    if not (token.isascii() and token.isalnum()):
        raise ProgrammingError(f"{name!r} is no name of a header")
    if not value.isascii() or not value.isprintable():
        raise ProgrammingError(f"the value of the header {name} is not printable ASCII")
