"""A client of the admin API, as `nearlite db --admin` uses it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any, Final
from urllib.parse import urlsplit

from nearlite import errors

_SECONDS: Final = 3600.0  # a dump may take long to be loaded
_LARGEST: Final = 64 << 20


def ask(
    url: str, token: str | None, method: str, path: str, body: dict[str, Any] | None = None
) -> Any:
    """Ask it.

    Returns:
      The object that it answers, {} if none.

    Raises:
      errors.UnauthorizedError, errors.OfflineError; errors.ProgrammingError: with what it says.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise errors.ProgrammingError(f"--admin is http://HOST:PORT, not {url!r}")
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
        url.rstrip("/") + path, data, headers, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
            text = answer.read(_LARGEST)
    except urllib.error.HTTPError as error:
        with error:
            told = _told(error.read(_LARGEST))
        if error.code == 401:
            raise errors.UnauthorizedError(f"the admin API refused the token: {told}") from None
        raise errors.ProgrammingError(told or f"the admin API answered {error.code}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise errors.OfflineError(f"{url} could not be reached: {reason}") from None
    return json.loads(text) if text else {}


def _told(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return ""
