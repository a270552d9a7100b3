"""The last errors that a server's clients were told of, for the console."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from nearlite.hrana import codes_of_errors

_LAST: Final = 20
_LETTERS: Final = 300


def readable(text: str) -> str:
    """As JSON can have it: file names and headers may be no Unicode text."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class LastErrors:
    """The last errors of a server, of each code and message the last time. Any thread.

    At most 20 of them, of 300 characters: whatever clients do, it is not much.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[tuple[str, str], tuple[int, int]] = {}

    def note(self, code: str, message: str) -> None:
        """One more. `message`: nothing in it is secret, or what a client's statement holds."""
        error = readable(code[:_LETTERS]), readable(message[:_LETTERS])
        with self._lock:
            count, _ = self._found.pop(error, (0, 0))
            self._found[error] = count + 1, time.time_ns() // 1_000_000
            if len(self._found) > _LAST:
                del self._found[next(iter(self._found))]

    def answered(self, answer: bytes) -> None:
        """A client is told how its statements went; what SQLite says of one may quote a value."""
        for code in codes_of_errors(answer):
            self.statement(code)

    def statement(self, code: str) -> None:
        """A statement failed with that code, or was refused."""
        self.note(code, "A statement failed")

    def told(self) -> list[dict[str, Any]]:
        """The newest first: how often (`count`), and when the last time (`ms` since 1970)."""
        with self._lock:
            found = list(self._found.items())
        return [
            {"ms": ms, "code": code, "message": message, "count": count}
            for (code, message), (count, ms) in reversed(found)
        ]
