"""Builds page sets for tests, whole ones and maliciously wrong ones."""

from __future__ import annotations

import random
from collections.abc import Sequence

from nearlite import wire
from nearlite._native import frames
from nearlite.position import Position

CHUNK_SEED = int.from_bytes(b"NLCHUNK\x01", "big")


def make_page(page_size: int, number: int, rng: random.Random) -> bytes:
    """Random bytes; page 1 with as much of a database header as a chunk needs."""
    page = bytearray(rng.randbytes(page_size))
    if number == 1:
        page[:16] = b"SQLite format 3\0"
        page[16:18] = (1 if page_size == 65536 else page_size).to_bytes(2, "big")
        page[18] = 2
        page[72:92] = bytes(20)
    return bytes(page)


def raw_chunk(page_size: int, pages: dict[int, bytes]) -> wire.RawChunk:
    """Lay out and seal a chunk of these pages."""
    body = bytearray(frames.chunk_size(page_size, len(pages)))
    body[frames.pages_offset(len(pages)) :] = b"".join(pages.values())
    return wire.RawChunk(body, len(pages), frames.seal(body, page_size, list(pages)))


def header(
    page_size: int = 512, *, pages: int = 9, count: int = 3, snapshot: bool = False
) -> frames.SetHeader:
    """A header that decodes."""
    return frames.SetHeader(
        page_size=page_size,
        pages=pages,
        count=count,
        start=Position(0, 0, 0) if snapshot else Position(7, 2, 10),
        target=Position(7, 2, 14),
        hash_start=0 if snapshot else 0x1122334455667788,
        hash_target=0x99AABBCCDDEEFF00,
        commit_ms=1_700_000_000_123,
        snapshot=snapshot,
    )


def build(
    page_size: int, numbers: Sequence[Sequence[int]], *, pages: int | None = None, seed: int = 1
) -> tuple[frames.SetHeader, dict[int, bytes], list[wire.RawChunk]]:
    """Header, images and chunks of a set; `numbers` are the page numbers chunk by chunk."""
    rng = random.Random(seed)
    images = {n: make_page(page_size, n, rng) for chunk in numbers for n in chunk}
    top = header(page_size, pages=pages or max(images, default=1), count=len(images))
    chunks = [raw_chunk(page_size, {n: images[n] for n in chunk}) for chunk in numbers]
    return top, images, chunks


def whole(page_size: int, numbers: Sequence[Sequence[int]], *, compress: bool = False) -> bytes:
    """The bytes of such a set."""
    top, _, chunks = build(page_size, numbers)
    return b"".join(wire.page_set(top, chunks, compress=compress))


def guard_set(data: bytes) -> bytes:
    """Make the guard of a changed set header right again."""
    return data[:88] + frames.xxh3(data[:88]).to_bytes(8, "big")


def guard_chunk(data: bytes) -> bytes:
    """Make the guard of a changed chunk header right again."""
    return data[:24] + frames.xxh3(data[:24], CHUNK_SEED).to_bytes(8, "big")


def patch(data: bytes, offset: int, value: int, size: int = 4) -> bytes:
    """`data` with a big-endian integer put at `offset`."""
    return data[:offset] + value.to_bytes(size, "big") + data[offset + size :]
