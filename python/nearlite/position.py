"""Position: where in one database history a state stands; Change: that a replica stands at another one.

Text form ``LLLLLLLL.GGGGGGGG.FFFFFFFF`` (fixed-width lowercase hex: sorts, greps, parses back).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TEXT = re.compile(r"([0-9a-f]{8})\.([0-9a-f]{8})\.([0-9a-f]{8})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """One commit of a primary: lineage, generation and the number of its commit frame.

    Attributes:
      lineage: identity of one database history; the top 4 bits are the header version (0).
      generation: one life of the primary's WAL, counted from 1.
      frame: commit frame within the generation, counted from 1; 0 is the generation's base.

    """

    lineage: int
    generation: int
    frame: int

    def __str__(self) -> str:
        return f"{self.lineage:08x}.{self.generation:08x}.{self.frame:08x}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read the text form back.

        Raises:
          ValueError: the text is not exactly three groups of eight lowercase hex digits.

        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError("a position is written LLLLLLLL.GGGGGGGG.FFFFFFFF in lowercase hex")
        return cls(*(int(group, 16) for group in match.groups()))

    def precedes(self, other: Position) -> bool:
        """Whether this position is at or before `other` in the same history."""
        return self.lineage == other.lineage and self <= other


@dataclass(frozen=True, slots=True)
class Change:
    """What has happened to a replica.

    Attributes:
      position: where it stands now.
      tables: names of the tables whose content has changed since the callback was told last, or when it
        began to listen: all that have, perhaps some that have not. With "sqlite_schema" tables or indexes
        were made, dropped or altered.
    """

    position: Position
    tables: frozenset[str]
