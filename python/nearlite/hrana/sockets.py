"""Hrana over WebSocket: what clients say, and what they are answered. No I/O.

A request is answered by what it would be answered over HTTP, as a stream result (answers.py); here only the
envelope is another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Protocol

import msgspec

from nearlite.hrana.answers import error_json
from nearlite.hrana.failures import ProtocolError, StatementError
from nearlite.hrana.messages import (
    Batch,
    BatchRequest,
    CloseSqlRequest,
    DescribeRequest,
    ExecuteRequest,
    GetAutocommitRequest,
    Id,
    SequenceRequest,
    StoreSqlRequest,
    decode,
)

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class OpenStream(msgspec.Struct, tag="open_stream", frozen=True):
    """Open a stream under a number that the client has chosen."""

    stream_id: Id


class CloseStream(msgspec.Struct, tag="close_stream", frozen=True):
    """Close it, with its cursor."""

    stream_id: Id


class OnStreamExecute(ExecuteRequest, tag="execute", frozen=True, kw_only=True):
    """Run one statement."""

    stream_id: Id


class OnStreamBatch(BatchRequest, tag="batch", frozen=True, kw_only=True):
    """Run a batch."""

    stream_id: Id


class OnStreamSequence(SequenceRequest, tag="sequence", frozen=True, kw_only=True):
    """Run a script (version 2)."""

    stream_id: Id


class OnStreamDescribe(DescribeRequest, tag="describe", frozen=True, kw_only=True):
    """Compile a statement (version 2)."""

    stream_id: Id


class OnStreamGetAutocommit(GetAutocommitRequest, tag="get_autocommit", frozen=True, kw_only=True):
    """Ask whether the stream is outside a transaction (version 3)."""

    stream_id: Id


class OpenCursor(msgspec.Struct, tag="open_cursor", frozen=True):
    """Run a batch whose rows will be fetched (version 3)."""

    stream_id: Id
    cursor_id: Id
    batch: Batch


class FetchCursor(msgspec.Struct, tag="fetch_cursor", frozen=True):
    """Ask for entries of a cursor (version 3)."""

    cursor_id: Id
    max_count: Count


class CloseCursor(msgspec.Struct, tag="close_cursor", frozen=True):
    """Close a cursor (version 3)."""

    cursor_id: Id


OnStream = (
    OnStreamExecute | OnStreamBatch | OnStreamSequence | OnStreamDescribe | OnStreamGetAutocommit
)
SocketRequest = (
    OpenStream
    | CloseStream
    | OnStreamExecute
    | OnStreamBatch
    | OnStreamSequence
    | OnStreamDescribe
    | OnStreamGetAutocommit
    | OpenCursor
    | FetchCursor
    | CloseCursor
    | StoreSqlRequest
    | CloseSqlRequest
)


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """The first message, with a token; later ones renew it."""

    jwt: str | None = None


class Request(msgspec.Struct, tag="request", frozen=True):
    """A request, and the number under which its answer will come."""

    request_id: Id
    request: SocketRequest


SINCE: Final[dict[type, tuple[int, str]]] = {
    OnStreamSequence: (2, "Sequence"),
    OnStreamDescribe: (2, "Describe"),
    StoreSqlRequest: (2, "StoreSql"),
    CloseSqlRequest: (2, "CloseSql"),
    OnStreamGetAutocommit: (3, "GetAutocommit"),
    OpenCursor: (3, "OpenCursor"),
    FetchCursor: (3, "FetchCursor"),
    CloseCursor: (3, "CloseCursor"),
}
"""Versions that brought a request, and the name that messages have for it."""


def check_version(request: SocketRequest, version: int) -> None:
    """Raise ProtocolError when a version does not have a request yet."""
    since, name = SINCE.get(type(request), (1, ""))
    if version < since:
        raise ProtocolError(f"{name} is only supported in protocol version hrana{since} and higher")


class Codec(Protocol):
    """An encoding of the messages.

    Attributes:
      binary: they are binary messages, otherwise text.
    """

    binary: bool

    def decode(self, data: bytes) -> Hello | Request:
        """Of a client. Raises ProtocolError."""

    def hello_ok(self) -> bytes:
        """The token is good."""

    def hello_error(self, error: StatementError) -> bytes:
        """It is not."""

    def answer(self, number: int, result: bytes) -> bytes:
        """Of a request, out of its stream result (JSON)."""

    def done(self, number: int, kind: str) -> bytes:
        """Of a request that has nothing to tell but that it is done."""

    def error(self, number: int, error: StatementError) -> bytes:
        """Of a request that has failed."""

    def entries(self, number: int, entries: Sequence[bytes], *, done: bool) -> bytes:
        """Of a `fetch_cursor`; entries as JSON."""


_MESSAGE: Final[Any] = Hello | Request  # made once: it takes longer than to decode one
_message = msgspec.json.Decoder(_MESSAGE)
_OK: Final = len(b'{"type":"ok"')
_ERROR: Final = len(b'{"type":"error"')


class Json:
    """The encoding of hrana1, hrana2 and hrana3."""

    binary = False

    @staticmethod
    def decode(data: bytes) -> Hello | Request:
        """See `Codec`."""
        found: Hello | Request = decode(_message, _MESSAGE, data)
        return found

    @staticmethod
    def hello_ok() -> bytes:
        """See `Codec`."""
        return b'{"type":"hello_ok"}'

    @staticmethod
    def hello_error(error: StatementError) -> bytes:
        """See `Codec`."""
        return b'{"type":"hello_error","error":%b}' % error_json(error)

    @staticmethod
    def answer(number: int, result: bytes) -> bytes:
        """See `Codec`."""
        if result.startswith(b'{"type":"ok"'):
            return b'{"type":"response_ok","request_id":%d%b' % (number, result[_OK:])
        return b'{"type":"response_error","request_id":%d%b' % (number, result[_ERROR:])

    @staticmethod
    def done(number: int, kind: str) -> bytes:
        """See `Codec`."""
        return b'{"type":"response_ok","request_id":%d,"response":{"type":"%b"}}' % (
            number,
            kind.encode(),
        )

    @staticmethod
    def error(number: int, error: StatementError) -> bytes:
        """See `Codec`."""
        return b'{"type":"response_error","request_id":%d,"error":%b}' % (
            number,
            error_json(error),
        )

    @staticmethod
    def entries(number: int, entries: Sequence[bytes], *, done: bool) -> bytes:
        """See `Codec`."""
        return (
            b'{"type":"response_ok","request_id":%d,"response":'
            b'{"type":"fetch_cursor","entries":[%b],"done":%b}}'
            % (number, b",".join(entries), b"true" if done else b"false")
        )
