"""A token that somebody else may replace while the program runs."""

from __future__ import annotations

from pathlib import Path


class Renewed:
    """A token in a file: whoever sends it sends what is there now.

    Args:
      path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._token = ""
        self()

    def __repr__(self) -> str:
        return f"<Renewed {self._path}>"

    def __call__(self) -> str:
        """The token. The last one where the file cannot be read: it is being replaced."""
        try:
            found = self._path.stat()
            seen = found.st_ino, found.st_mtime_ns, found.st_size
            if seen != self._seen:
                self._token = self._path.read_text().strip()
                self._seen = seen
        except (OSError, UnicodeDecodeError):
            if self._seen is None:
                raise
        return self._token
