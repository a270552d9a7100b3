"""Changesets: applied, undone, joined and read (https://sqlite.org/session.html)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from nearlite import errors
from nearlite._native._lib import check, ffi, lib, new_error
from nearlite._native.database import Database

# A buffer is given back at once (`with`): a traceback may keep it in a cycle, which the collector of Python
# before 3.12.6 takes apart in an order that crashes the process.

ON_CONFLICT: Final = {
    "abort": lib.NL_CONFLICT_ABORT,
    "omit": lib.NL_CONFLICT_OMIT,
    "replace": lib.NL_CONFLICT_REPLACE,
}
"""What becomes of a change that does not fit."""

_changes = msgspec.msgpack.Decoder(
    list[tuple[tuple[int, str], int, bytes, bytes | None, tuple | None, bytes | None, tuple | None]]  # type: ignore[type-arg]
).decode


def apply(database: Database, data: Any, on_conflict: int) -> tuple[int, int, int, int, int]:
    """Apply a changeset as one unit.

    Returns:
      how often a row had another content, was missing, its key was taken; a constraint, a foreign key failed.

    Raises:
      ConflictError: it did not fit, and was to be given up then; FormatError: it is none. Nothing was changed.
    """
    count = ffi.new("nl_conflicts *")
    with ffi.from_buffer(data) as raw:
        if lib.nl_changeset_apply(
            database.handle, raw, len(raw), on_conflict, count, database.error
        ):
            database.fail()
    return count.data, count.missing, count.taken, count.constraint, count.foreign_key


def invert(data: Any) -> bytes:
    """The changeset that undoes one. Raises FormatError: it is none."""
    out, size, err = ffi.new("uint8_t **"), ffi.new("int64_t *"), new_error()
    with ffi.from_buffer(data) as raw:
        check(lib.nl_changeset_invert(raw, len(raw), out, size, err), err)
    return taken(out, size)


def concat(first: Any, second: Any) -> bytes:
    """One changeset instead of two. Raises FormatError: one is none, or a table differs."""
    out, size, err = ffi.new("uint8_t **"), ffi.new("int64_t *"), new_error()
    with ffi.from_buffer(first) as a, ffi.from_buffer(second) as b:
        check(lib.nl_changeset_concat(a, len(a), b, len(b), out, size, err), err)
    return taken(out, size)


def taken(out: Any, size: Any) -> bytes:
    """The bytes that C has made."""
    try:
        return bytes(ffi.buffer(out[0], size[0])) if size[0] else b""
    finally:
        lib.nl_image_free(out[0])


def read(data: Any) -> Iterator[tuple[Any, ...]]:
    """The changes of one, one by one: see nl_changes_next(). Raises FormatError: it is none, or is damaged.

    Raises OperationalError: text in it is not UTF-8.
    """
    with ffi.from_buffer(data) as raw:
        out, err = ffi.new("nl_changes **"), new_error()
        check(lib.nl_changes_open(raw, len(raw), out, err), err)
        reading = ffi.gc(out[0], lib.nl_changes_free)
        batch, size = ffi.new("uint8_t **"), ffi.new("size_t *")
        while True:
            check(lib.nl_changes_next(reading, batch, size, err), err)
            if not size[0]:
                return
            try:
                changes = _changes(ffi.buffer(batch[0], size[0]))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                # As where such a row is fetched. Which one it is can only be told with text as bytes.
                raise errors.OperationalError(
                    "Could not decode to UTF-8: text or the name of a table in the changeset"
                ) from None
            yield from changes
