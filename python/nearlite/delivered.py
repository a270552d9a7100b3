"""A request that comes twice is carried out once.

Between a client and its server there may be what delivers a request again because the answer to the first one
took too long or was lost. A client of ours gives each request a number that no other has; one that has come
before is refused: what became of it, the answer to the first one tells.
"""

from __future__ import annotations

import re
from typing import Final

from nearlite.exchange import HttpError, Scope, header

MANY: Final = 1 << 16
"""Numbers that are kept at least; some 10 MB at most."""
_HEADER: Final = b"nearlite-request"
_NUMBER: Final = re.compile(rb"[0-9a-f]{16}")


class Delivered:
    """The numbers of the requests that have come, the latest ones."""

    def __init__(self) -> None:
        self._new: set[int] = set()
        self._old: set[int] = set()

    def number(self, scope: Scope) -> int | None:
        """The number of a request that has not come before; None when it has none.

        Raises:
          HttpError: 409 it has; 400 it is malformed.
        """
        text = header(scope, _HEADER)
        if text is None:
            return None
        if _NUMBER.fullmatch(text) is None:
            raise HttpError(400, "BAD_REQUEST", "Nearlite-Request is 16 hex digits")
        number = int(text, 16)
        if number in self._new or number in self._old:
            raise HttpError(
                409,
                "REQUEST_REPEATED",
                "This request has been delivered before, and was not carried out again",
            )
        return number

    def note(self, number: int | None) -> None:
        """It is being carried out."""
        if number is None:
            return
        if len(self._new) >= MANY:
            self._old, self._new = self._new, set()
        self._new.add(number)
