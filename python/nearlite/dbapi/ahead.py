"""Rows that are read ahead: a half-read statement must end, its rows are still wanted.

They are kept encoded: in memory while they are few, beyond that in a temporary file without a name,
so that a loop over a large table that writes does not hold the table in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO, Any, Final

import msgspec

from nearlite._native.database import Row, Statement, decode
from nearlite.errors import DiskFullError, Error

IN_MEMORY: Final = 8 << 20
"""Bytes of encoded rows of one cursor that are kept in memory."""

_encode: Final = msgspec.msgpack.Encoder().encode


def read_ahead(statement: Statement) -> Iterator[Row]:
    """Fetch all rows that are left, now, and end the statement; iterating hands them out.

    What makes the statement fail, or a full disk, is raised behind the last row that could be kept, as if
    it were happening then.
    """
    kept = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - closed by its reader
    failure: Exception | None = None
    try:
        while statement.more:
            data = _encode(statement.fetch())
            kept.write(len(data).to_bytes(8, "big"))
            kept.write(data)
    except Error as error:
        failure = error
    except OSError as error:
        failure = DiskFullError(
            f"rows that were still to be fetched could not be kept: {error.strerror}",
            state="the rows before them were delivered; nothing else is affected",
            action="make room for temporary files, or fetch all rows before writing",
        )
    statement.reset()
    end = kept.tell()
    kept.seek(0)
    return _read_out(kept, end, failure)


def _read_out(kept: IO[bytes], end: int, failure: Exception | None) -> Iterator[Any]:
    with kept:
        while kept.tell() < end:
            head = kept.read(8)
            data = kept.read(int.from_bytes(head, "big")) if len(head) == 8 else b""
            if len(head) < 8 or len(data) < int.from_bytes(head, "big"):
                break  # the disk was full here
            yield from decode(data)
    if failure is not None:
        raise failure
