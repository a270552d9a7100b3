"""Pages told as differences from their older images (csrc/delta.c has the format).

Both sides give the same bases in the same order. One call takes a whole set; any thread may make it.
"""

from __future__ import annotations

from collections.abc import Sequence

from nearlite._native._lib import check, ffi, lib, new_error
from nearlite._native.frames import Buffer, lend


def lend_all(pages: Sequence[Buffer | None], page_size: int) -> tuple[object, object]:
    """A table of pointers to lent pages, and what keeps them valid."""
    if any(page is not None and len(page) != page_size for page in pages):
        raise ValueError(f"not all pages have {page_size} bytes")
    lent = [ffi.NULL if page is None else lend(page) for page in pages]
    return ffi.new("const uint8_t *[]", lent), lent


def bound(page_size: int, count: int) -> int:
    """Bytes that no delta of so many pages exceeds."""
    return int(lib.nl_delta_bound(page_size, count))


def encode(
    page_size: int,
    pages: int,
    numbers: Sequence[int],
    bases: Sequence[Buffer | None],
    images: Sequence[Buffer],
    *,
    room: int | None = None,
) -> bytes | None:
    """Tell how the pages came from their bases.

    Args:
      page_size: bytes.
      pages: database size after the set.
      numbers: page numbers, strictly ascending; no more than fit into one chunk.
      bases: what each page was before; None: it did not exist.
      images: what each page is now.
      room: bytes above which a delta is not wanted.

    Returns:
      The delta, or None when it does not fit into `room`.

    Raises:
      MisuseError: no pages, or too many.
      ValueError: a page of another size, or lists of different lengths.
    """
    if not len(numbers) == len(bases) == len(images):
        raise ValueError("each page needs a number, a base or None, and an image")
    room = bound(page_size, len(numbers)) if room is None else room
    err, out, written = new_error(), ffi.new("uint8_t[]", room), ffi.new("size_t *")
    before, keep_bases = lend_all(bases, page_size)
    now, keep_images = lend_all(images, page_size)
    rc = lib.nl_delta_encode(
        page_size,
        pages,
        ffi.new("uint32_t[]", list(numbers)),
        before,
        now,
        len(numbers),
        out,
        room,
        written,
        err,
    )
    del keep_bases, keep_images
    check(rc, err)
    return bytes(ffi.buffer(out, written[0])) if written[0] else None


def decode(
    page_size: int,
    pages: int,
    numbers: Sequence[int],
    bases: Sequence[Buffer | None],
    delta: Buffer,
) -> bytearray:
    """The pages, one after the other. The arguments are those of `encode`.

    Raises:
      FormatError: malformed. Wrong bases need not be noticed: the hashes of the pages tell.
      MisuseError: no pages, or too many.
      ValueError: a base of another size, or lists of different lengths.
    """
    if len(numbers) != len(bases):
        raise ValueError("each page needs a number and a base or None")
    err, out = new_error(), bytearray(page_size * len(numbers))
    before, keep_bases = lend_all(bases, page_size)
    rc = lib.nl_delta_decode(
        page_size,
        pages,
        ffi.new("uint32_t[]", list(numbers)),
        before,
        len(numbers),
        lend(delta),
        len(delta),
        ffi.from_buffer("uint8_t[]", out, require_writable=True),
        err,
    )
    del keep_bases
    check(rc, err)
    return out
