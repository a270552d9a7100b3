"""The log is told of a failure once, and once that it is over, however often it is met."""

from __future__ import annotations

import logging

_log = logging.getLogger("nearlite")


class Told:
    """What the log was told last about one replica, by kind of work.

    Args:
      path: of the replica.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._said: dict[str, str] = {}

    def failed(self, what: str, error: BaseException) -> str:
        """`what` failed; answers the text of it."""
        text = f"background {what} failed: {error}"
        self._say(what, text)
        return text

    def works(self, what: str) -> None:
        """`what` has been done."""
        if self._said.get(what):
            self._say(what, "")

    def _say(self, what: str, text: str) -> None:
        if text != self._said.get(what, ""):
            self._said[what] = text
            _log.warning("%s: %s", self._path, text or f"background {what} works again")
