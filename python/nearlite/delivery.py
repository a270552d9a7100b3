"""Whether what was written to a connection has arrived at the client, as far as TCP can tell.

An answer may carry the only key to something that others wait for: the baton of a stream with an open
transaction. A connection that ends says nothing by itself, because clients close and reuse connections
as they like between two requests of a stream. But a client's FIN acknowledges all that had arrived
before it: what is not acknowledged when it comes, the client has never had. (A RST acknowledges nothing, and
clients that read an answer may end so: it proves nothing either.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any, Final

_MANY: Final = 16  # answers watched on one connection before those that have arrived are looked for
_INT: Final = struct.Struct("i")


class Delivery:
    """The answers of one connection. Event loop thread only.

    Args:
      transport: the connection, whose writes are reported by `wrote`.
    """

    __slots__ = ("_ends", "_lost", "_transport", "_watched", "_written")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._written = 0  # bytes
        self._lost = False  # something was written when nobody could take it any more
        self._ends = False  # the client has ended its half
        self._watched: list[tuple[int, Callable[[], None]]] = []  # where each ends; whom to tell

    def wrote(self, count: int) -> None:
        """So many bytes are about to be written."""
        self._written += count
        if self._transport.is_closing():
            self._lost = True

    def expect(self, lost: Callable[[], None]) -> None:
        """Call `lost`, perhaps at once, if what was written so far is known not to have arrived."""
        if self._lost or (self._transport.is_closing() and self._left()):
            lost()
            return
        if len(self._watched) >= _MANY:
            arrived = self._arrived()
            self._watched = [entry for entry in self._watched if entry[0] > arrived]
        self._watched.append((self._written, lost))

    def eof(self) -> None:
        """The client sends nothing any more."""
        self._ends = True

    def end(self) -> None:
        """The connection is lost; its descriptor is still open."""
        watched, self._watched = self._watched, []
        if watched:
            arrived = self._arrived() if self._ends else self._written - self._buffered()
            for end, lost in watched:
                if end > arrived:
                    lost()
        self._lost = True

    # ------------------------------------------------------------------ asking the kernel

    def _arrived(self) -> int:
        """Bytes that the client has acknowledged, or more where that cannot be told."""
        return self._written - self._buffered() - _unacknowledged(self._descriptor())

    def _buffered(self) -> int:
        size: int = self._transport.get_write_buffer_size()
        return size

    def _descriptor(self) -> int:
        sock = self._transport.get_extra_info("socket")
        return -1 if sock is None else int(sock.fileno())

    def _left(self) -> bool:
        """Whether the client had left before the connection was closed from here, which reads no more."""
        try:
            copy = socket.socket(fileno=os.dup(self._descriptor()))
        except OSError:
            return False
        with copy:
            try:
                ends = copy.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
            except OSError:
                return False
        return ends and _unacknowledged(self._descriptor()) > 0


def _unacknowledged(descriptor: int) -> int:
    """Bytes in a socket's send queue; 0 where that cannot be asked."""
    # Elsewhere than on Linux it counts something else, or nothing.
    if descriptor >= 0 and sys.platform == "linux":
        with contextlib.suppress(OSError):
            return int(_INT.unpack(fcntl.ioctl(descriptor, termios.TIOCOUTQ, _INT.pack(0)))[0])
    return 0
