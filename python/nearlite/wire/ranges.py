"""What a replica and its primary tell each other to find the pages that differ (docs/formats.md).

The replica sends hashes of ranges of pages; the primary answers with a bit for each, or, once single
pages are compared, with the page set. Ranges are runs: C reads them (csrc/ranges.c).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from nearlite._native import frames
from nearlite._native._lib import FormatError
from nearlite.errors import AnswerError
from nearlite.position import Position

REQUEST_TYPE: Final = "application/vnd.nearlite.ranges"
DIFFERENCES_TYPE: Final = "application/vnd.nearlite.differences"

_REQUEST: Final = Struct(">8sIIII3I3III")  # 56 bytes, then a guard
_DIFFERENCES: Final = Struct(">8sI3III")  # 32 bytes, then a guard
_GUARD: Final = Struct(">Q")
_RUN: Final = Struct(">IIB7x")
_REQUEST_MAGIC: Final = b"NLRANGES"
_DIFFERENCES_MAGIC: Final = b"NLDIFFER"
_VERSION: Final = 1
_LAST_PAGE: Final = 0xFFFFFFFE  # of the largest database that SQLite knows
NOWHERE: Final = Position(0, 0, 0)


class RequestError(ValueError):
    """A request for repair that cannot be one; the text says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """`count` ranges of ``2**span`` pages each, from page `first` on; hashes are 8 bytes each.

    ``span == frames.SPAN_WANTED``: pages that are wanted, whatever they are; no hashes.
    """

    first: int
    count: int
    span: int
    hashes: bytes = b""

    def encode(self) -> bytes:
        """Header and hashes."""
        return _RUN.pack(self.first, self.count, self.span) + self.hashes


@dataclass(frozen=True, slots=True)
class RepairRequest:
    """A replica's request.

    Attributes:
      page_size: bytes.
      pages: how many it has.
      claimed: where it says that it stands; 0.0.0: it does not say, and is to be made what the primary
        is, whatever it was.
      since: what the first answer of this repair said the primary's position was; 0.0.0 in the first
        request. What has changed there since joins the page set.
      runs: encoded.
      ranges: how many ranges of more than one page are in them: 0 asks for the page set.
    """

    page_size: int
    pages: int
    claimed: Position
    since: Position
    runs: bytes
    ranges: int

    @classmethod
    def of(
        cls, page_size: int, pages: int, claimed: Position, since: Position, runs: Sequence[Run]
    ) -> RepairRequest:
        """A request of these runs."""
        spans = (0, frames.SPAN_WANTED)
        ranges = sum(run.count for run in runs if run.span not in spans)
        data = b"".join(run.encode() for run in runs)
        return cls(page_size, pages, claimed, since, data, ranges)

    def encode(self) -> bytes:
        """The body."""
        head = _REQUEST.pack(
            _REQUEST_MAGIC, _VERSION, 0, self.page_size, self.pages,
            *_numbers(self.claimed), *_numbers(self.since), len(self.runs) % (1 << 32), 0,
        )  # fmt: skip
        guard = _GUARD.pack(frames.xxh3(self.runs, frames.xxh3(head)))
        return b"".join((head, guard, self.runs))

    @classmethod
    def decode(cls, data: bytes) -> RepairRequest:
        """Read and check a body.

        Raises:
          RequestError: malformed, damaged, or out of bounds.
        """
        size = _REQUEST.size + _GUARD.size
        if len(data) < size:
            raise RequestError("the request is cut short")
        fields = _REQUEST.unpack_from(data)
        magic, version, flags, page_size, pages = fields[:5]
        claimed, since, length, zero = Position(*fields[5:8]), Position(*fields[8:11]), *fields[11:]
        if magic != _REQUEST_MAGIC:
            raise RequestError("this is not a request for repair")
        if version != _VERSION or flags or zero:
            raise RequestError(f"a request of version {version} with flags {flags:#x}")
        runs = data[size:]
        guard = frames.xxh3(runs, frames.xxh3(data[: _REQUEST.size]))
        if length != len(runs) or _GUARD.unpack_from(data, _REQUEST.size)[0] != guard:
            raise RequestError("the request is damaged")
        if page_size not in frames.PAGE_SIZES:
            raise RequestError(f"no database has pages of {page_size} bytes")
        if pages > _LAST_PAGE:
            raise RequestError(f"no database has {pages} pages")
        try:
            ranges, _ = frames.check_runs(runs)
        except FormatError as error:
            raise RequestError(str(error)) from None
        return cls(page_size, pages, claimed, since, runs, ranges)


@dataclass(frozen=True, slots=True)
class Differences:
    """The primary's answer to ranges of more than one page.

    Attributes:
      position: where it stood when it compared.
      count: ranges compared.
      bits: one each, lowest first: 1 where replica and primary differ.
    """

    position: Position
    count: int
    bits: bytes

    def encode(self) -> bytes:
        """The body."""
        numbers = _numbers(self.position)
        head = _DIFFERENCES.pack(_DIFFERENCES_MAGIC, _VERSION, *numbers, self.count, 0)
        return head + _GUARD.pack(frames.xxh3(self.bits, frames.xxh3(head))) + self.bits

    @classmethod
    def decode(cls, data: bytes, *, count: int) -> Differences:
        """Read and check an answer to a request of `count` ranges.

        Raises:
          AnswerError: it cannot be one.
        """
        size = _DIFFERENCES.size + _GUARD.size
        if len(data) != size + (count + 7) // 8:
            raise _unusable(f"{len(data)} bytes answer {count} ranges")
        magic, version, *numbers, told, zero = _DIFFERENCES.unpack_from(data)
        bits = data[size:]
        if magic != _DIFFERENCES_MAGIC or version != _VERSION or zero:
            raise _unusable("it is none, or of a version that this program does not know")
        guard = frames.xxh3(bits, frames.xxh3(data[: _DIFFERENCES.size]))
        if _GUARD.unpack_from(data, _DIFFERENCES.size)[0] != guard:
            raise _unusable("it is damaged")
        if told != count or (count % 8 and bits[-1] >> (count % 8)):
            raise _unusable("it answers other ranges than were sent")
        position = Position(*numbers)
        if position.lineage == 0 or position.generation == 0:
            raise _unusable("it was made at an impossible position")
        return cls(position, count, bits)

    def differing(self) -> list[int]:
        """Numbers of the ranges that differ, ascending."""
        return [
            8 * i + bit
            for i, byte in enumerate(self.bits)
            if byte
            for bit in range(8)
            if byte >> bit & 1
        ]


def _numbers(position: Position) -> tuple[int, int, int]:
    return position.lineage, position.generation, position.frame


def _unusable(why: str) -> AnswerError:
    return AnswerError(
        f"the primary's comparison cannot be used: {why}",
        action="sync() again; if it keeps failing, look at what lies between this replica and the "
        "primary",
    )
