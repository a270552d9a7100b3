"""Whether what was written to a connection has arrived at the client, as far as TCP can tell.

An answer may carry the only key to something that others wait for: the baton of a stream with an open
transaction. A connection that ends says nothing by itself, because clients close and reuse connections
as they like between two requests of a stream. But a client's FIN acknowledges all that had arrived
before it: what is not acknowledged when it comes, the client has never had. (A RST acknowledges nothing, and
clients that read an answer may end so: it proves nothing either.)

Over TLS bytes of answers are not those of the socket, and its own messages are among these. There every answer
is noted by where it ends in what the socket sends, and what the client has acknowledged is asked for in the same
numbers. That has to be done when the transport has closed the descriptor already: a copy of it is kept from the
first answer on that is watched.
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
_ACKNOWLEDGED: Final = struct.Struct("=120xQ")  # of Linux's tcp_info: tcpi_bytes_acked
_ALL: Final = 1 << 63  # bytes, more than there ever are


class Delivery:
    """The answers of one connection. Event loop thread only.

    Args:
      transport: the connection, whose writes are reported by `wrote`.
    """

    __slots__ = ("_copy", "_ends", "_gone", "_lost", "_tls", "_transport", "_watched", "_written")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._tls = transport.get_extra_info("ssl_object") is not None
        self._copy: socket.socket | None = None  # TLS: outlives the transport's
        self._written = 0  # bytes, without TLS
        self._lost = False  # something was written when nobody could take it any more
        self._gone = False  # TLS: the client had left when it was closed from here
        self._ends = False  # the client has ended its half
        self._watched: list[tuple[int, Callable[[], None]]] = []  # where each ends; whom to tell

    @property
    def written(self) -> int:
        """Bytes that have been written."""
        return self._written

    def wrote(self, count: int) -> None:
        """So many bytes are about to be written."""
        self._written += count
        if self._transport.is_closing():
            self._lost = True

    def expect(self, lost: Callable[[], None]) -> None:
        """Call `lost`, perhaps at once, if what was written so far is known not to have arrived."""
        closing = self._transport.is_closing()
        if self._lost or (closing and (self._gone if self._tls else self._left())):
            lost()
            return
        if self._tls and closing:
            return  # the client may leave with a RST, which nobody is told of any more
        if len(self._watched) >= _MANY:
            arrived = self._arrived()
            self._watched = [entry for entry in self._watched if entry[0] > arrived]
        self._watched.append((self._end(), lost))

    def closing(self) -> None:
        """The connection is about to be closed from here: over TLS something more will be sent then."""
        if self._tls and not self._transport.is_closing():
            self._gone = self._left()

    def eof(self) -> None:
        """The client sends nothing any more."""
        self._ends = True

    def end(self, failed: bool) -> None:
        """The connection is lost; without TLS its descriptor is still open. `failed`: it was reset."""
        watched, self._watched = self._watched, []
        if watched:
            # uvloop tells nobody of a client that ends its half without TLS's own goodbye.
            ends = self._ends or (self._tls and not failed)
            for end, lost in watched:
                if end > (self._arrived() if ends else self._sent()):
                    lost()
        self._lost = True
        if self._copy is not None:
            self._copy.close()

    # ------------------------------------------------------------------ asking the kernel

    def _end(self) -> int:
        """Where the answer ends that was written last."""
        if not self._tls:
            return self._written
        if self._copy is None:
            with contextlib.suppress(OSError):
                self._copy = socket.socket(fileno=os.dup(self._descriptor()))
        acknowledged = _acknowledged(self._copy)
        if acknowledged == _ALL or self._copy is None:
            return 0  # it cannot be told: whatever becomes of it, it has arrived
        return acknowledged + _unacknowledged(self._copy.fileno()) + self._buffered()

    def _arrived(self) -> int:
        """Bytes that the client has acknowledged, or more where that cannot be told."""
        if self._tls:
            return _acknowledged(self._copy)
        return self._written - self._buffered() - _unacknowledged(self._descriptor())

    def taken(self) -> int:
        """Bytes that the client has acknowledged; over TLS, that the system was given."""
        return self._written - self._buffered() if self._tls else self._arrived()

    def _sent(self) -> int:
        """Bytes that the system was given."""
        if self._tls:
            return _ALL
        return self._written - self._buffered()

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
                ends = copy.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"" or self._tls
            except OSError:
                return False
        # Over TLS its goodbye comes first, which cannot be told from anything else here.
        return ends and _unacknowledged(self._descriptor()) > 0


def _acknowledged(sock: socket.socket | None) -> int:
    """Bytes that the other end has acknowledged since the connection began; _ALL where that cannot be asked."""
    if sock is not None and sys.platform == "linux":
        with contextlib.suppress(OSError, struct.error):
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKNOWLEDGED.size)
            return int(_ACKNOWLEDGED.unpack(info)[0])
    return _ALL


def _unacknowledged(descriptor: int) -> int:
    """Bytes in a socket's send queue; 0 where that cannot be asked."""
    # Elsewhere than on Linux it counts something else, or nothing.
    if descriptor >= 0 and sys.platform == "linux":
        with contextlib.suppress(OSError):
            return int(_INT.unpack(fcntl.ioctl(descriptor, termios.TIOCOUTQ, _INT.pack(0)))[0])
    return 0
