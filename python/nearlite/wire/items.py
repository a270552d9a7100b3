"""Cutting a stream of bytes into items, and what is said when they do not fit."""

from __future__ import annotations

from nearlite.errors import AnswerError

Buffer = bytes | bytearray | memoryview


class Items:
    """Cuts a stream of bytes into items whose size is known before they arrive.

    An item that lies whole in what was fed is lent, not copied; one that arrives in pieces is
    copied once, into a buffer of its own.
    """

    __slots__ = ("_held", "_partial", "rest")

    def __init__(self) -> None:
        self.rest = memoryview(b"")
        self._partial = bytearray()
        self._held = 0

    def feed(self, data: Buffer) -> None:
        """Take in bytes; they are lent until their items were taken."""
        if self.rest:
            raise ValueError("the events of what was fed before have not all been taken")
        self.rest = memoryview(data).cast("B")

    def missing(self, size: int) -> int:
        """How many bytes of the current item, of `size` bytes, have not been fed."""
        return size - self._held - len(self.rest)

    def take(self, size: int) -> memoryview | None:
        """The next `size` bytes; None, having kept what there is, when they are not all there."""
        if not self._held and len(self.rest) >= size:
            item, self.rest = self.rest[:size], self.rest[size:]
            return item
        if not self.rest:
            return None
        if not self._held:
            self._partial = bytearray(size)
        count = min(size - self._held, len(self.rest))
        self._partial[self._held : self._held + count] = self.rest[:count]
        self._held += count
        self.rest = self.rest[count:]
        if self._held < size:
            return None
        item, self._partial, self._held = memoryview(self._partial), bytearray(), 0
        return item


def bad(why: str) -> AnswerError:
    """The exception for bytes that cannot be what they claim to be."""
    return AnswerError(
        f"the primary's page set cannot be used: {why}",
        action="the next sync asks for it again; if it keeps failing, look at what lies between "
        "this replica and the primary",
    )
