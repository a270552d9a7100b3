"""What was asked of a database: how much, and which statements took longest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

_KEPT: Final = 10  # statements of each kind
_SHOWN: Final = 512  # characters of one


@dataclass
class Usage:
    """Since the server was started, or since what it is of was opened.

    Attributes:
      queries: statements that came to their end.
      rows_read: rows that they answered.
      rows_written: rows that they changed, triggers included.
      us: microseconds that they took.
      slowest: (microseconds, rows written, rows read) of those that took longest, by text.
      top: (rows written and read, rows written, rows read) of those with most rows among those that took a
        millisecond or more, by text.
    """

    queries: int = 0
    rows_read: int = 0
    rows_written: int = 0
    us: int = 0
    slowest: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    top: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def note(self, sql: str, us: int, read: int, written: int) -> None:
        """A statement that took long."""
        text = sql[:_SHOWN]
        _keep(self.slowest, text, (us, written, read))
        _keep(self.top, text, (written + read, written, read))

    def add(self, other: Usage) -> None:
        """Count what another one has counted."""
        self.queries += other.queries
        self.rows_read += other.rows_read
        self.rows_written += other.rows_written
        self.us += other.us
        for text, values in other.slowest.items():
            _keep(self.slowest, text, values)
        for text, values in other.top.items():
            _keep(self.top, text, values)

    def forget(self, what: Literal["top", "slowest"]) -> None:
        """Statements that took long are no longer known."""
        (self.top if what == "top" else self.slowest).clear()

    def told(self) -> dict[str, Any]:
        """As the admin API answers it."""
        return {
            "rows_read_count": self.rows_read,
            "rows_written_count": self.rows_written,
            "query_count": self.queries,
            "elapsed_ms": self.us // 1000,
            "top_queries": [
                {"rows_written": written, "rows_read": read, "query": text}
                for text, (_, written, read) in _sorted(self.top)
            ],
            "slowest_queries": [
                {
                    "elapsed_ms": us // 1000,
                    "query": text,
                    "rows_written": written,
                    "rows_read": read,
                }
                for text, (us, written, read) in _sorted(self.slowest)
            ],
        }


def _keep(kept: dict[str, tuple[int, int, int]], text: str, values: tuple[int, int, int]) -> None:
    """The largest of each text, and few texts."""
    if text in kept:
        kept[text] = max(kept[text], values)
        return
    if len(kept) >= _KEPT:
        least = min(kept, key=lambda known: kept[known])
        if kept[least] >= values:
            return
        del kept[least]
    kept[text] = values


def _sorted(kept: dict[str, tuple[int, int, int]]) -> list[tuple[str, tuple[int, int, int]]]:
    return sorted(kept.items(), key=lambda item: item[1], reverse=True)
