"""HTTP/1.1 answers off a buffered reader (RFC 9112): head, and body by its framing.

A steady small exchange spends most of its time in the standard library's header parser, which is
that of e-mail: measured on loopback, an empty sync costs its client 167 us of processor time through
``http.client`` and 80 us here. What is left out: trailers' content, obsolete line folding (refused) and
transfer codings other than ``chunked``.
"""

from __future__ import annotations

import io
from typing import Any, Final

# Bounds on a head that a hostile server sends; ours has a handful of short lines.
_LINE_LIMIT: Final = 16 * 1024
_HEADER_LIMIT: Final = 100
_INFORMATIONAL_LIMIT: Final = 10  # before the answer that counts
_LENGTH_DIGITS: Final = 18


class MessageError(OSError):
    """What arrived is not an HTTP/1.1 answer, or broke off."""


class Answer:
    """One answer: status and headers at once, the body as the caller reads it.

    Args:
      reader: of the connection; positioned at the status line, left behind the body.
      bodiless: the request was HEAD.

    Attributes:
      status: three digits.
      headers: by lower-case name; repeated fields joined by ", ".
      keep_alive: the connection can be used again once the body was read.
      length: bytes of body still to come; None while only its end will tell.

    Raises:
      MessageError: malformed, too long, or cut short.
    """

    __slots__ = ("_chunk", "_chunked", "_reader", "headers", "keep_alive", "length", "status")

    def __init__(self, reader: io.BufferedReader[Any], *, bodiless: bool = False) -> None:
        self._reader = reader
        for _ in range(_INFORMATIONAL_LIMIT + 1):
            version, self.status = self._status_line()
            self.headers = self._header_lines()
            if not 100 <= self.status < 200:
                break
        else:
            raise MessageError("informational answers do not end")
        connection = self.headers.get("connection", "").lower()
        self.keep_alive = (
            "close" not in connection if version == b"1" else "keep-alive" in connection
        )
        self._chunked = False
        self._chunk = 0  # bytes left of the current chunk
        self.length = self._framing(bodiless=bodiless)

    # ------------------------------------------------------------------ head

    def _line(self) -> bytes:
        line = self._reader.readline(_LINE_LIMIT + 1)
        if not line.endswith(b"\n"):
            raise MessageError("a line is too long" if len(line) > _LINE_LIMIT else "it broke off")
        return line.rstrip(b"\r\n")

    def _status_line(self) -> tuple[bytes, int]:
        line = self._line()
        if line[:7] != b"HTTP/1." or line[8:9] != b" " or not line[9:12].isdigit():
            raise MessageError("it does not begin with an HTTP/1.1 status line")
        return line[7:8], int(line[9:12])

    def _header_lines(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for _ in range(_HEADER_LIMIT):
            line = self._line()
            if not line:
                return headers
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or not name or name != name.strip():
                raise MessageError("a header line is malformed")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        raise MessageError("it has too many headers")

    def _framing(self, *, bodiless: bool) -> int | None:
        """How the body ends (RFC 9112, section 6.3)."""
        if bodiless or self.status in (204, 304):
            return 0
        coding = self.headers.get("transfer-encoding")
        if coding is not None:
            if coding.lower() != "chunked":
                raise MessageError("its transfer coding is not chunked")
            self._chunked = True
            return None
        text = self.headers.get("content-length")
        if text is None:
            self.keep_alive = False  # the body ends with the connection
            return None
        if not (text.isascii() and text.isdigit()) or len(text) > _LENGTH_DIGITS:
            raise MessageError("its length is not a number")
        return int(text)

    # ------------------------------------------------------------------ body

    def readinto(self, buffer: memoryview) -> int:
        """Fill as much of `buffer` as comes with one look; 0 only at the end of the body.

        Raises:
          MessageError: the connection ended before the body did.
        """
        if not buffer:
            return 0
        if self._chunked:
            return self._read_chunked(buffer)
        if self.length is None:
            return self._reader.readinto1(buffer)
        if self.length == 0:
            return 0
        count = self._reader.readinto1(buffer[: self.length])
        if count == 0:
            raise MessageError("the answer broke off")
        self.length -= count
        return count

    def ended(self) -> bool:
        """Whether no more of the body comes; waits for what tells it.

        Raises:
          MessageError: the connection ended before the body did.
        """
        if self.length is None and self._chunked:
            self._begin_chunk()
        if self.length is None and not self._chunked:
            return not self._reader.peek(1)
        return self.length == 0

    def _begin_chunk(self) -> None:
        """Read the size of the next chunk, if none is begun; `length` is 0 when there is none."""
        if self._chunk:
            return
        size = self._line().partition(b";")[0].strip()
        if not size or len(size) > 15 or size.strip(b"0123456789abcdefABCDEF"):
            raise MessageError("a chunk's size is malformed")
        self._chunk = int(size, 16)
        if self._chunk:
            return
        for _ in range(_HEADER_LIMIT):
            if not self._line():
                self.length = 0
                return
        raise MessageError("it has too many trailers")

    def _read_chunked(self, buffer: memoryview) -> int:
        if self.ended():
            return 0
        count = self._reader.readinto1(buffer[: self._chunk])
        if count == 0:
            raise MessageError("the answer broke off")
        self._chunk -= count
        if self._chunk == 0 and self._line():
            raise MessageError("a chunk is longer than it says")
        return count
