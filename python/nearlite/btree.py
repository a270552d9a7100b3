"""What a page of a SQLite database refers to: children and overflow pages (SQLite's file format, 1.6).

Pure: a page in, page numbers out. It never raises for a page that is none: a page of the freelist keeps
whatever was in it, and what such a page refers to is for the caller to disbelieve.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

_INDEX_INTERIOR: Final = 2
_TABLE_INTERIOR: Final = 5
_INDEX_LEAF: Final = 10
_TABLE_LEAF: Final = 13
_KINDS: Final = frozenset([_INDEX_INTERIOR, _TABLE_INTERIOR, _INDEX_LEAF, _TABLE_LEAF])
_U16: Final = Struct(">H")
_U32: Final = Struct(">I")


def refers_to(page: bytes, number: int, usable: int) -> list[int]:
    """Page numbers that a page points to: of a b-tree page all of them, of any other its first four bytes.

    Those are the next page of an overflow chain. 0 where there is none.

    Args:
      page: its bytes.
      number: of the page; on page 1 the b-tree begins behind the file's header.
      usable: bytes of a page without its reserved end.
    """
    at = 100 if number == 1 else 0
    kind = page[at]
    if kind not in _KINDS:
        return [_U32.unpack_from(page)[0]]
    interior = kind in (_INDEX_INTERIOR, _TABLE_INTERIOR)
    head = at + (12 if interior else 8)
    cells = _U16.unpack_from(page, at + 3)[0]
    found = [_U32.unpack_from(page, at + 8)[0]] if interior else []
    for i in range(cells):
        pointer = head + 2 * i
        if pointer + 2 > usable:
            break
        cell = _U16.unpack_from(page, pointer)[0]
        if cell + 4 > usable:
            continue
        if interior:
            found.append(_U32.unpack_from(page, cell)[0])
            cell += 4
        if kind != _TABLE_INTERIOR:
            found.append(_overflow(page, cell, kind, usable))
    return found


def _overflow(page: bytes, cell: int, kind: int, usable: int) -> int:
    """The first overflow page of a cell with a payload, or 0; `cell` is where the payload's size is."""
    if cell >= usable:
        return 0
    payload = page[cell]
    size = 1
    if payload >= 0x80:
        payload, size = _varint(page, cell)
    whole = usable - 35 if kind == _TABLE_LEAF else (usable - 12) * 64 // 255 - 23
    if payload <= whole:
        return 0
    if kind == _TABLE_LEAF:
        size += _varint(page, cell + size)[1]  # the rowid
    least = (usable - 12) * 32 // 255 - 23
    kept = least + (payload - least) % (usable - 4)
    where = cell + size + (kept if kept <= whole else least)
    return int(_U32.unpack_from(page, where)[0]) if where + 4 <= usable else 0


def _varint(page: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer and its size; beyond the end of the page it reads zeros."""
    value = 0
    for i, byte in enumerate(page[at : at + 9]):
        if i == 8:
            return value << 8 | byte, 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, i + 1
    return value, 9
