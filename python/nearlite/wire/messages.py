"""JSON bodies of the native protocol: status and errors."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from nearlite.errors import AnswerError
from nearlite.position import Position
from nearlite.wire.items import Buffer


@dataclass(frozen=True, slots=True)
class Behind:
    """How far a position is behind the newest one.

    Attributes:
      transactions: commits that are not in it; None: nobody counted them.
      bytes: of the pages that they changed, each counted once; as differences and compressed they are
        less on the wire.
    """

    transactions: int | None
    bytes: int


class _Status(msgspec.Struct, frozen=True, omit_defaults=True):
    protocol: int
    position: str
    hash: str
    page_size: int
    pages: int
    commit_ms: int
    replicas: int
    version: str
    now_ms: int | None = None
    behind: Behind | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """What ``GET nl/v1/status`` answers.

    Attributes:
      position: newest commit of the primary.
      hash: state hash there.
      page_size: bytes.
      pages: database size in pages.
      commit_ms: the primary's clock at that commit, milliseconds since 1970.
      replicas: replicas seen lately.
      version: of the program that serves it.
      now_ms: the same clock when it answered; None: it does not tell.
      behind: how far the position that was asked about (`from`) is; None: none was, or that is not known.
      protocol: of the native protocol; this program speaks 1.
    """

    position: Position
    hash: int
    page_size: int
    pages: int
    commit_ms: int
    replicas: int
    version: str
    now_ms: int | None = None
    behind: Behind | None = None
    protocol: int = 1

    def encode(self) -> bytes:
        """JSON."""
        return msgspec.json.encode(
            _Status(
                protocol=self.protocol,
                position=str(self.position),
                hash=f"{self.hash:016x}",
                page_size=self.page_size,
                pages=self.pages,
                commit_ms=self.commit_ms,
                replicas=self.replicas,
                version=self.version,
                now_ms=self.now_ms,
                behind=self.behind,
            )
        )

    @classmethod
    def decode(cls, data: Buffer) -> Status:
        """Read it back; members this version does not know are passed over.

        Raises:
          AnswerError: it is not such a body.
        """
        try:
            s = msgspec.json.decode(data, type=_Status)
            position = Position.parse(s.position)
            if not re.fullmatch(r"[0-9a-f]{16}", s.hash, re.ASCII):
                raise ValueError("a state hash is written as 16 hex digits")
        except (ValueError, RecursionError) as error:  # msgspec's errors, too
            raise AnswerError(f"the primary's status cannot be read: {error}") from error
        return cls(
            position=position,
            hash=int(s.hash, 16),
            page_size=s.page_size,
            pages=s.pages,
            commit_ms=s.commit_ms,
            replicas=s.replicas,
            version=s.version,
            now_ms=s.now_ms,
            behind=s.behind,
            protocol=s.protocol,
        )


class _Inner(msgspec.Struct, frozen=True):
    message: str = ""
    code: str = ""


class _Error(msgspec.Struct, frozen=True):
    message: str = ""
    code: str | None = None
    error: _Inner | str | None = None


def encode_error(code: str, message: str) -> bytes:
    """An error body: flat for libSQL's clients, nested for newer ones."""
    inner = _Inner(message=message, code=code)
    return msgspec.json.encode(_Error(message=message, code=code, error=inner))


def decode_error(data: Buffer) -> tuple[str, str]:
    """Code and message of an error body, as far as it has them; never raises.

    A proxy between here and the primary may have answered anything, so what is no such body reads
    as two empty strings, and a message is cut at 500 characters and made printable: it ends up in
    exceptions and logs.
    """
    try:
        body = msgspec.json.decode(data, type=_Error)
    except (ValueError, RecursionError):
        return "", ""
    inner = body.error if isinstance(body.error, _Inner) else _Inner()
    code = body.code or inner.code
    message = body.message or inner.message or (body.error if isinstance(body.error, str) else "")
    return _printable(code)[:100], _printable(message)[:500]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:1000])
