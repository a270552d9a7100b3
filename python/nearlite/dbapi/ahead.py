"""Rows that are read ahead: a half-read statement must end, its rows are still wanted.

They are kept encoded: in memory while they are few, beyond that in a temporary file without a name,
so that a loop over a large table that writes does not hold the table in memory. Those of a sealed database
are sealed there.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from nearlite._native.database import Row, Statement, decode
from nearlite.errors import DiskFullError, Error, OperationalError
from nearlite.spooling import Spool

IN_MEMORY: Final = 8 << 20
"""Bytes of encoded rows of one cursor that are kept in memory."""

_encode: Final = msgspec.msgpack.Encoder().encode


def read_ahead(statement: Statement, *, sealed: bool) -> tuple[Iterator[Row], BaseException | None]:
    """Fetch all rows that are left, now, and end the statement; iterating hands them out.

    What makes the statement fail, or a full disk, is raised behind the last row that could be kept, as if
    it were happening then.

    Args:
      statement: half read.
      sealed: its database is.

    Returns:
      the rows, and what else was raised meanwhile (KeyboardInterrupt): behind the rows is an OperationalError then.
    """
    memory, spool = io.BytesIO(), None
    failure: Exception | None = None
    raised: BaseException | None = None
    try:
        while statement.more:
            data = _encode(statement.fetch())
            memory.write(len(data).to_bytes(8, "big"))
            memory.write(data)
            if memory.tell() > IN_MEMORY:
                if spool is None:
                    spool = Spool(Path(tempfile.gettempdir()), sealed=sealed)
                with memory.getbuffer() as kept:
                    spool.write(kept)
                memory = io.BytesIO()
    except OSError as error:
        failure = _full(error)
    except Error as error:
        failure = error
    except BaseException as error:  # noqa: BLE001 - Ctrl-C, no memory: for whoever made this necessary
        raised = error
        failure = OperationalError(f"rows that were left were not read: {type(error).__name__}")
    statement.reset()
    if spool is None:
        memory.seek(0)
        return _begun(_read_out(memory, None, failure)), raised
    if not isinstance(failure, DiskFullError):
        try:
            spool.write(memory.getvalue())
            spool.finish()
        except OSError as error:
            failure = _full(error)
    return _begun(_read_out(spool.reader(), spool, failure)), raised


def _begun(reading: Iterator[Any]) -> Iterator[Any]:
    next(reading)  # a generator that was never begun would not close its file
    return reading


def _full(error: OSError) -> DiskFullError:
    return DiskFullError(
        f"rows that were still to be fetched could not be kept: {error.strerror}",
        state="the rows before them were delivered; nothing else is affected",
        action="make room for temporary files, or fetch all rows before writing",
    )


def _read_out(kept: IO[bytes], spool: Spool | None, failure: Exception | None) -> Iterator[Any]:
    try:
        yield None
        while True:
            head = kept.read(8)
            data = kept.read(int.from_bytes(head, "big")) if len(head) == 8 else b""
            if len(head) < 8 or len(data) < int.from_bytes(head, "big"):
                break  # the end, or the disk was full here
            yield from decode(data)
    finally:
        if spool is not None:
            spool.close()
    if failure is not None:
        raise failure
