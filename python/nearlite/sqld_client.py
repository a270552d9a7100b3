"""sqld's replication, version 1, as a client: gRPC-web over HTTP/1.1 at the URL of its SQL.

A log has frames that are numbered from 0 for as long as it lives. ``BatchLogEntries`` tells those from one on;
where they were compacted, ``Snapshot`` tells the newest image of each page. Source: wal_log.proto and the client
in libSQL (libsql-replication), which is what sqld is made for.
"""

from __future__ import annotations

import ipaddress
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote, urlsplit

from nearlite import wire
from nearlite.errors import AnswerError, OfflineError, SyncError, UnauthorizedError
from nearlite.feeds import Base, another, lineage_of, restored
from nearlite.gathering import PAGE_SIZE, Frame, Seen, Turn
from nearlite.http import Deadline, Response, Transport
from nearlite.position import Position
from nearlite.receiving import exactly
from nearlite.sync import refusal

_SERVICE: Final = "wal_log.ReplicationLog/"
_TYPE: Final = "application/grpc-web+proto"
_TRAILERS: Final = 0x80
_HEADER: Final = 24
_FRAME: Final = _HEADER + PAGE_SIZE
_LARGEST_FRAME: Final = _FRAME + 64
"""Bytes of a Frame message: its data, a time, a number."""
_LARGEST: Final = 64 * 1024
"""Bytes of any other message, and of trailers."""
_BATCH: Final = 1024
"""Frames in an answer that is not the last one."""
_WAITS: Final = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between looks for a snapshot that is being made."""
_UNAUTHENTICATED, _PERMISSION, _FAILED, _UNAVAILABLE = 16, 7, 9, 14


class GrpcError(Exception):
    """A status that is not 0.

    Attributes:
      status: gRPC's.
      message: of the server.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"gRPC status {status}: {message}")
        self.status = status
        self.message = message


def position_of(lineage: int, count: int) -> Position:
    """Where a database stands after so many frames of its log."""
    return Position(lineage, 1 + (count >> 31), count & 0x7FFFFFFF)


def count_of(position: Position) -> int:
    """The reverse of `position_of`."""
    return (position.generation - 1) << 31 | position.frame


class SqldFeed:
    """One such upstream.

    Args:
      transport: to it.
    """

    name = "sqld"

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._headers = {
            "Content-Type": _TYPE,
            "TE": "trailers",
            "x-namespace-bin": _namespace(transport.url),
            "x-libsql-client-version": "nearlite",
        }
        self._token: str | None = None
        self._lineage = 0
        self._frames = 0  # in the log, when it was greeted
        self._looked = False  # whether the frame that led here was seen to be there

    def forget(self) -> None:
        """See `Feed`."""
        self._token = None
        self._looked = False

    def expect(self) -> None:
        """See `Feed`: nothing is done otherwise. A log that is another one has another server, which tells so."""

    def greet(self, deadline: Deadline) -> None:
        """Say hello, and hear which log it has.

        Raises:
          SyncError: it speaks another protocol, refuses, or cannot be reached.
        """
        try:
            answer = _decoded(_only(self._call("Hello", b"\x08\x01", deadline)))
        except GrpcError as error:
            raise _refused(error, None) from None
        log, token = answer.get(3), answer.get(4)
        if not isinstance(log, bytes) or not isinstance(token, bytes):
            raise AnswerError("the upstream's greeting names no log")
        try:
            identity, self._token = log.decode("ascii"), token.decode("ascii")
        except UnicodeDecodeError:
            raise AnswerError("the upstream's greeting cannot be read") from None
        if not self._token.isprintable():
            raise AnswerError("the upstream's greeting cannot be read")
        last = answer.get(5)
        self._frames = last + 1 if isinstance(last, int) else 0
        self._lineage = lineage_of(f"sqld\n{identity}")

    def base(self, deadline: Deadline) -> Base:
        """See `Feed`: a log begins with nothing."""
        self.greet(deadline)
        return Base.empty(position_of(self._lineage, 0))

    def since(self, start: Position, deadline: Deadline) -> Iterator[Frame | Turn | Seen]:
        """See `Feed`. The first time it is looked whether the frame that led there is still what it was."""
        seen = count_of(start)
        first = seen - 1 if seen and not self._looked else seen
        greeted = False
        while True:
            if self._token is None:
                self._greet(start, seen, deadline)
                greeted = True
            began = first
            deadline.restart()  # small answers, many of them, are progress too
            try:
                for number, frame in self._frames_from(first, deadline):
                    if number != first:
                        raise AnswerError(f"frame {number} came where frame {first} was due")
                    first += 1
                    if number < seen:
                        yield Seen(frame.page, frame.size, frame.image)
                    else:
                        yield frame
                if first < seen:
                    raise restored(start, "the frame that led there is gone")
                self._looked = True
            except GrpcError as error:
                if error.status == _FAILED and error.message == "NO_HELLO" and not greeted:
                    # It was started anew, perhaps with an older log that has grown since.
                    self.forget()
                    if first > seen:
                        raise _started_anew(start) from None
                    first = max(seen - 1, 0)
                    continue
                if error.status != _FAILED or error.message != "NEED_SNAPSHOT":
                    self.forget()
                    raise _refused(error, start) from None
                if first < seen:  # that frame alone may be gone
                    first, self._looked = seen, True
                    continue
                end, frames = self._snapshot(first, deadline)
                yield from frames
                first = end + 1
                continue
            if first - began < _BATCH:
                return

    def _greet(self, start: Position, seen: int, deadline: Deadline) -> None:
        self.greet(deadline)
        if self._lineage != start.lineage:
            raise another(
                start,
                f"the replica belongs to lineage {start.lineage:08x}, the log of this server is {self._lineage:08x}: "
                "of another database, or begun anew after a crash of the server",
            )
        if self._frames < seen:
            raise restored(start, f"its log has {self._frames} frames, the replica {seen}")

    # ------------------------------------------------------------ frames

    def _frames_from(self, first: int, deadline: Deadline) -> Iterator[tuple[int, Frame]]:
        for told, message in enumerate(self._call("BatchLogEntries", _offset(first), deadline)):
            if told:  # one of nothing, again and again, would be progress without an end
                raise AnswerError("the upstream sent more than one message")
            while message.left:
                if message.varint() != 0x0A:
                    raise AnswerError("the upstream's frames cannot be read")
                yield self._frame(message.take(message.varint(), _LARGEST_FRAME))

    def _frame(self, message: bytes) -> tuple[int, Frame]:
        data = _decoded(message).get(1)
        if not isinstance(data, bytes) or len(data) != _FRAME:
            raise AnswerError("the upstream sent a frame of another length")
        number = int.from_bytes(data[:8], "little")
        if number >= 1 << 62:
            raise AnswerError(f"the upstream sent a frame with the number {number}")
        page = int.from_bytes(data[16:20], "little")
        size = int.from_bytes(data[20:24], "little")
        at = position_of(self._lineage, number + 1)
        return number, Frame(page, size, at, memoryview(data)[_HEADER:])

    def _snapshot(self, first: int, deadline: Deadline) -> tuple[int, Iterator[Frame]]:
        """Number of a snapshot's last frame, and its frames, which are of one transaction."""
        for wait in (*_WAITS, None):
            frames = self._in_snapshot(first, deadline)
            try:
                end, frame = next(frames)
            except GrpcError as error:
                if error.status != _UNAVAILABLE or wait is None:
                    raise _refused(error, position_of(self._lineage, first)) from None
                time.sleep(min(wait, _left(deadline)))  # it is being made
                continue
            except StopIteration:
                raise AnswerError("the upstream's snapshot is empty") from None
            return end, self._of_snapshot(end, frame, frames, first)
        raise AssertionError("the last attempt raises")

    def _in_snapshot(self, first: int, deadline: Deadline) -> Iterator[tuple[int, Frame]]:
        for message in self._call("Snapshot", _offset(first), deadline):
            yield self._frame(message.take(message.left, _LARGEST_FRAME))

    def _of_snapshot(
        self, end: int, frame: Frame, frames: Iterator[tuple[int, Frame]], first: int
    ) -> Iterator[Frame]:
        """The newest frames first; the last one has the size of the database."""
        at = position_of(self._lineage, end + 1)
        number = end + 1
        following: tuple[int, Frame] | None = (end, frame)
        while following is not None:
            now, frame = following
            if not first <= now < number:
                raise AnswerError(f"frame {now} came in a snapshot after frame {number}")
            number = now
            try:
                following = next(frames, None)
            except GrpcError as error:
                raise _refused(error, position_of(self._lineage, first)) from None
            if (frame.size != 0) != (following is None):
                raise AnswerError("the upstream's snapshot does not end where it says")
            yield Frame(frame.page, frame.size, at, frame.image)

    # ------------------------------------------------------------ gRPC-web

    def _call(self, method: str, message: bytes, deadline: Deadline) -> Iterator[_Message]:
        """The messages of an answer, each to be read before the next. Raises GrpcError."""
        headers = dict(self._headers)
        if self._token is not None:
            headers["x-session-token"] = self._token
        try:
            response = self._transport.request(
                "POST",
                _SERVICE + method,
                body=b"\x00" + len(message).to_bytes(4, "big") + message,
                headers=headers,
                deadline=deadline,
            )
        except OfflineError:
            self.forget()
            raise
        with response:
            if response.status != 200 or not response.header("content-type").startswith(
                "application/grpc"
            ):
                code, text = wire.decode_error(response.error_body())
                raise refusal(response.status, code, text or "it does not speak gRPC-web", None)
            try:
                yield from self._messages(response)
            except GrpcError as error:
                text = self._transport.without_token(error.message)
                raise GrpcError(error.status, text) from None

    @staticmethod
    def _messages(response: Response) -> Iterator[_Message]:
        """See `_call`."""
        _raise_for(response.header("grpc-status"), response.header("grpc-message"))
        while not response.ended():
            head = exactly(response, 5)
            size = int.from_bytes(head[1:], "big")
            if head[0] == 0:
                part = _Message(response, size)
                yield part
                if part.left:
                    raise AnswerError("the upstream's message is longer than it should be")
            elif head[0] == _TRAILERS and size <= _LARGEST:
                _raise_for_trailers(bytes(exactly(response, size)))
                if not response.ended():
                    raise AnswerError("something follows the upstream's trailers")
                return
            else:
                raise AnswerError("the upstream's answer is no gRPC-web")
        raise AnswerError("the upstream's answer was cut off")


class _Message:
    """A message in an answer, read piece by piece: one may hold all frames of a large transaction.

    Attributes:
      left: bytes that are still to be read.
    """

    def __init__(self, response: Response, size: int) -> None:
        self._response = response
        self.left = size
        self._ready = memoryview(b"")

    def take(self, size: int, most: int) -> bytes:
        """The next bytes. Raises AnswerError: more than `most`, or than there are."""
        if size > most or size > self.left:
            raise AnswerError(f"the upstream's message has a part of {size} bytes")
        if size > len(self._ready):
            want = min(max(size, _LARGEST), self.left) - len(self._ready)
            self._ready = memoryview(bytes(self._ready) + exactly(self._response, want))
        found, self._ready = self._ready[:size], self._ready[size:]
        self.left -= size
        return bytes(found)

    def varint(self) -> int:
        """The next number."""
        value = 0
        for at in range(10):
            byte = self.take(1, 1)[0]
            value |= (byte & 127) << 7 * at
            if byte < 128:
                return value
        raise AnswerError("the upstream's message has a number without an end")


def _only(messages: Iterator[_Message]) -> bytes:
    """The one message of an answer."""
    found: bytes | None = None
    for message in messages:
        if found is not None:
            raise AnswerError("the upstream sent more than one message")
        found = message.take(message.left, _LARGEST)
    if found is None:
        raise AnswerError("the upstream sent no message")
    return found


def _decoded(message: bytes) -> dict[int, int | bytes]:
    """The last value of each field of a protobuf message: numbers and byte strings.

    Raises:
      AnswerError: it is none.
    """
    found: dict[int, int | bytes] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while at < len(message) and shift < 70:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
        raise AnswerError("the upstream's message was cut off")

    while at < len(message):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            found[tag >> 3] = varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}.get(kind, len(message))
        if size > len(message) - at:
            raise AnswerError("the upstream's message was cut off")
        if kind == 2:
            found[tag >> 3] = message[at : at + size]
        at += size
    return found


def _offset(first: int) -> bytes:
    """A LogOffset message."""
    made = bytearray(b"\x08")
    while first > 127:
        made.append(first & 127 | 128)
        first >>= 7
    made.append(first)
    return bytes(made)


def _raise_for_trailers(text: bytes) -> None:
    found = {}
    for line in text.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        found[name.strip().lower()] = value.strip()
    _raise_for(found.get("grpc-status", ""), found.get("grpc-message", ""), ended=True)


def _raise_for(status: str, message: str, *, ended: bool = False) -> None:
    if status == "0" or (not status and not ended):
        return
    if not (status.isascii() and status.isdecimal() and len(status) <= 3):
        raise AnswerError("the upstream's answer ends without a status")
    text = "".join(c if c.isprintable() else " " for c in unquote(message[:500]))
    raise GrpcError(int(status), text)


def _refused(error: GrpcError, start: Position | None) -> SyncError:
    """What a status means to the replica."""
    stays = "no local file was created" if start is None else f"the replica stays at {start}"
    text = f"the upstream refused: {error.message} (gRPC status {error.status})"
    if error.status in (_UNAUTHENTICATED, _PERMISSION):
        return UnauthorizedError(text, state=stays, action="check the upstream's token")
    if error.status == _UNAVAILABLE:
        return OfflineError(text, state=stays, action="try again")
    return SyncError(text, state=stays, action="see the upstream's log")


def _started_anew(start: Position) -> OfflineError:
    return OfflineError(
        "the upstream was started anew while its frames were being told",
        state=f"the replica stays at {start}, or where whole transactions have led since",
        action="try again",
    )


def _namespace(url: str) -> str:
    """The namespace as libSQL's clients tell it: what the host's name begins with."""
    host = urlsplit(url).hostname or ""
    name, dot, _ = host.partition(".")
    try:
        ipaddress.ip_address(host)
        name = "default"
    except ValueError:
        if not dot:
            name = "default"
    return b64encode(name.encode()).decode("ascii").rstrip("=")


def _left(deadline: Deadline) -> float:
    """Seconds. Raises OfflineError: none."""
    try:
        return deadline.left()
    except TimeoutError:
        raise OfflineError(
            "the upstream did not make its snapshot in time",
            state="the replica is as it was",
            action="try again",
        ) from None
