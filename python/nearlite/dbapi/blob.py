"""Blob: one value of a table as a file-like object, as ``sqlite3.Blob``."""

from __future__ import annotations

import os
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, SupportsIndex, TypeVar, overload

from nearlite.errors import OperationalError, ProgrammingError

if TYPE_CHECKING:
    from nearlite.dbapi.whole import Whole

Self = TypeVar("Self", bound="Blob")
Buffer = Any  # bytes, bytearray, memoryview, array ...: collections.abc.Buffer of Python 3.12

_INT_MAX: Final = 0x7FFFFFFF  # bytes: SQLite counts those of a blob in an int
_CLOSED: Final = "Cannot operate on a closed blob."


class OpenValue(Protocol):
    """What a Blob is made of: `OpenBlob` of a file, `ForwardedBlob` of a primary elsewhere."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def read(self, at: int, size: int, /) -> bytes:
        """So many bytes from there on."""
        ...

    def write(self, at: int, data: Any, /) -> None:
        """Write bytes there."""
        ...

    def close(self) -> None:
        """Give it up."""
        ...


class Blob:
    """A BLOB or TEXT value, read and written in place. ``Connection.blobopen`` makes it.

    It has a position, as a file, and can be indexed and sliced, as a bytearray. Its size cannot change. When
    its row is changed by other means, using it raises OperationalError.
    """

    __slots__ = ("__weakref__", "_at", "_connection", "_open")

    _connection: Whole
    _open: OpenValue | None
    _at: int

    def __new__(cls) -> Any:
        """Refused, as for ``sqlite3.Blob``."""
        raise TypeError(f"cannot create '{cls.__module__}.{cls.__qualname__}' instances")

    @classmethod
    def _of(cls, connection: Whole, opened: OpenValue) -> Blob:
        blob: Blob = object.__new__(cls)
        blob._connection, blob._open, blob._at = connection, opened, 0
        return blob

    # `in` and loops are refused as they are by the standard library, not carried out byte by byte.
    __iter__ = None

    def _checked(self) -> OpenValue:
        self._connection._check()
        if self._open is None:
            raise ProgrammingError(_CLOSED)
        return self._open

    # ------------------------------------------------------------ as a file

    def read(self, length: int = -1, /) -> bytes:
        """Bytes from the position on, at most `length`; negative: all that are left."""
        opened = self._checked()
        with self._connection._guard():
            left = opened.size - self._at
            if left < 0:
                raise OperationalError(
                    "query aborted: the value was changed or deleted since it was opened"
                )
            if length < 0 or length > left:
                length = left
            if length == 0:
                return b""
            data = opened.read(self._at, length)
        self._at += length
        return data

    def write(self, data: Buffer, /) -> None:
        """Write at the position.

        Raises:
          ValueError: it would end beyond the value's end; nothing was written.
        """
        opened = self._checked()
        view = _contiguous(data)
        if len(view) > _INT_MAX:
            raise OverflowError("data longer than INT_MAX bytes")
        with self._connection._guard():
            if len(view) > opened.size - self._at:
                raise ValueError("data longer than blob length")
            opened.write(self._at, view)
        self._at += len(view)

    def seek(self, offset: int, origin: int = os.SEEK_SET, /) -> None:
        """Move the position.

        Raises:
          ValueError: it would lie outside the value, or `origin` is none of os.SEEK_*.
        """
        opened = self._checked()
        with self._connection._guard():
            size = opened.size
        offset = index(offset)
        if not -_INT_MAX - 1 <= offset <= _INT_MAX:
            raise OverflowError("Python int too large to convert to C int")
        if origin == os.SEEK_CUR:
            begin = self._at
        elif origin == os.SEEK_END:
            begin = size
        elif origin == os.SEEK_SET:
            begin = 0
        else:
            raise ValueError("'origin' should be os.SEEK_SET, os.SEEK_CUR, or os.SEEK_END")
        if begin and offset > _INT_MAX - begin:
            raise OverflowError("seek offset results in overflow")
        if not 0 <= begin + offset <= size:
            raise ValueError("offset out of blob range")
        self._at = begin + offset

    def tell(self) -> int:
        """The position."""
        self._checked()
        return self._at

    def close(self) -> None:
        """Close it; outside a transaction what was written is committed. Idempotent."""
        self._connection._check()
        opened, self._open = self._open, None
        if opened is None:
            return
        with self._connection._guard():
            try:
                opened.close()
            except ProgrammingError:  # not now: a hook of a read or a write of it does this
                self._open = opened
                raise

    def __enter__(self: Self) -> Self:
        self._checked()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> Literal[False]:
        self._checked()
        self.close()
        return False

    # ------------------------------------------------------------ as a bytearray

    def __len__(self) -> int:
        opened = self._checked()
        with self._connection._guard():
            return opened.size

    @overload
    def __getitem__(self, key: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> bytes: ...
    def __getitem__(self, key: SupportsIndex | slice, /) -> int | bytes:
        opened = self._checked()
        with self._connection._guard():
            if isinstance(key, slice):
                first, last, step = _span(key, opened.size)
                return opened.read(first, last - first)[::step] if last > first else b""
            return opened.read(_place(key, opened.size), 1)[0]

    @overload
    def __setitem__(self, key: SupportsIndex, value: SupportsIndex, /) -> None: ...
    @overload
    def __setitem__(self, key: slice, value: Buffer, /) -> None: ...
    def __setitem__(self, key: SupportsIndex | slice, value: Any, /) -> None:
        opened = self._checked()
        with self._connection._guard():
            if not isinstance(key, slice):
                at = _place(key, opened.size)
                opened.write(at, bytes((_byte(value),)))
                return
            first, last, step = _span(key, opened.size)
            if last == first:
                return
            view = _contiguous(value)
            if len(view) != len(range(first, last, abs(step))):
                raise IndexError("Blob slice assignment is wrong size")
            if step == 1:
                opened.write(first, view)
                return
            whole = bytearray(opened.read(first, last - first))
            whole[::step] = view
            opened.write(first, whole)

    def __delitem__(self, key: SupportsIndex | slice, /) -> None:
        self._checked()
        what = "slice" if isinstance(key, slice) else "item"
        raise TypeError(f"Blob doesn't support {what} deletion")


def _contiguous(data: Buffer) -> memoryview:
    """The bytes of a buffer. Raises TypeError: it is none; BufferError: they do not lie in one piece."""
    view = memoryview(data)
    if not view.c_contiguous:
        raise BufferError("memoryview: underlying buffer is not C-contiguous")
    return view.cast("B")


def _place(key: Any, size: int) -> int:
    if not hasattr(type(key), "__index__"):
        raise TypeError("Blob indices must be integers")
    at = index(key)
    if not -(1 << 63) <= at < 1 << 63:
        raise IndexError("cannot fit 'int' into an index-sized integer")
    if at < 0:
        at += size
    if not 0 <= at < size:
        raise IndexError("Blob index out of range")
    return at


def _span(key: slice, size: int) -> tuple[int, int, int]:
    """First byte, the one behind the last, and the step of a slice (from the end if it is negative)."""
    first, stop, step = key.indices(size)
    many = len(range(first, stop, step))
    if many == 0:
        return first, first, step
    last = first + (many - 1) * step
    return min(first, last), max(first, last) + 1, step


def _byte(value: Any) -> int:
    if not hasattr(type(value), "__index__"):
        raise TypeError(f"'{type(value).__name__}' object cannot be interpreted as an integer")
    byte = index(value)
    if not 0 <= byte <= 255:
        raise ValueError("byte must be in range(0, 256)")
    return byte
