"""Names of databases, and which of many a request is for.

A name is 1 to 64 of ``a-z 0-9 - _``, and begins with a letter or a digit. It becomes the name of a folder, so
it has nothing in it that a file system, a shell or a URL could take for something else: no separators, no
dots, no upper case (two names never differ on one system and are the same on another), nothing outside ASCII.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from nearlite.exchange import HttpError, Scope, header

LONGEST: Final = 64
"""Characters of a name."""
DEFAULT: Final = "default"
"""The database of a request that names none."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)
_PREFIX: Final = "/db/"
_SLASHES: Final = re.compile(r"^/{2,}")
_BINARY: Final = b"x-namespace-bin"
_PLAIN: Final = b"x-namespace"
_SHOWN: Final = 80
RULE: Final = (
    "a name is 1 to 64 of the characters a-z, 0-9, - and _, and begins with a letter or a digit"
)


def is_name(text: str) -> bool:
    """Whether a database may be called so."""
    return _NAME.fullmatch(text) is not None


def checked(text: str) -> str:
    """A name, as it is. Raises HttpError 400: it is none."""
    if not is_name(text):
        shown = ascii(text[:_SHOWN]) + ("..." if len(text) > _SHOWN else "")
        raise HttpError(400, "INVALID_NAME", f"{shown} names no database: {RULE}")
    return text


class Choice:
    """Tells which database a request is for: by path, else by header, else by host, else `DEFAULT`.

    Args:
      suffix: requests to the host ``NAME.suffix`` are for the database NAME; None: hosts name nothing.
    """

    def __init__(self, suffix: str | None = None) -> None:
        self._suffix = None if suffix is None else b"." + suffix.strip(".").lower().encode("idna")

    def of(self, scope: Scope) -> tuple[str, str]:
        """The name, and the path below the database. Raises HttpError 400: what is named cannot exist.

        The server has undone the percent-encoding of the path, once. It is not undone again.
        """
        path: str = scope["path"]
        root: str = scope.get("root_path", "")
        if root and path.startswith(root):
            path = path[len(root) :]
        if path.startswith("//"):
            path = _SLASHES.sub("/", path)
        if path.startswith(_PREFIX):
            name, slash, rest = path[len(_PREFIX) :].partition("/")
            return checked(name), slash + rest or "/"
        return self._beside_path(scope), path

    def _beside_path(self, scope: Scope) -> str:
        encoded = header(scope, _BINARY)
        if encoded is not None:
            return checked(_decoded(encoded))
        plain = header(scope, _PLAIN)
        if plain is not None:
            return checked(plain.decode("utf-8", "replace"))
        if self._suffix is not None:
            host, _, _ = (header(scope, b"host") or b"").lower().partition(b":")
            if host.endswith(self._suffix):
                return checked(host[: -len(self._suffix)].decode("ascii", "replace"))
        return DEFAULT


def _decoded(text: bytes) -> str:
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True).decode()
    except (binascii.Error, ValueError):
        raise HttpError(
            400, "INVALID_NAME", "The header x-namespace-bin is not base64 of UTF-8 text"
        ) from None
