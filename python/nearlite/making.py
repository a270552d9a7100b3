"""Files of new databases: empty, from a dump, a copy of another one. Each is a database of its own lineage."""

from __future__ import annotations

import codecs
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from nearlite import errors, hrana
from nearlite._native.database import NO_PARAMETERS, Backup, Database
from nearlite._native.sealing import Key
from nearlite.datafile import prepare_file
from nearlite.hrana import StatementError, Step
from nearlite.primary import Primary
from nearlite.script import holds_nothing, statements_of
from nearlite.session import Session
from nearlite.statements import Kind

_PIECE: Final = 1 << 20  # bytes of a dump
_DUMP_SECONDS: Final = 3600.0
_PATIENCE: Final = 30.0  # seconds for one piece of a dump over the network, or for a lock
_OK, _BUSY, _LOCKED, _DONE = 0, 5, 6, 101


def empty(path: Path, *, key: Key | None = None) -> None:
    """A database without tables."""
    Primary.open(path, key=key).close()
    _sync(path)


def copied(path: Path, source: Database, *, key: Key | None = None) -> None:
    """A copy of what a connection sees now, page for page, while others write.

    Args:
      path: of the copy.
      source: of a database that is sealed with the same key, or not at all.
      key: of both.
    """
    (row,) = source.prepare("PRAGMA page_size").run(NO_PARAMETERS)
    sealed = {} if key is None else {"page_size": row[0]}
    with closing(Database(str(path), create=True, key=key, **sealed)) as target:
        backup = Backup((source, "main"), (target, "main"))
        try:
            until = time.monotonic() + _PATIENCE
            while (done := backup.step(-1)[0]) != _DONE:
                if done not in (_OK, _BUSY, _LOCKED) or time.monotonic() > until:
                    raise errors.OperationalError("the database is locked; it was not copied")
                time.sleep(0.01)
        finally:
            backup.end()
    empty(path, key=key)


def loaded(path: Path, dump: Iterable[bytes], *, key: Key | None = None) -> None:
    """What the statements of a dump make: one transaction, committed by the dump itself.

    Args:
      path: of the database.
      dump: UTF-8 text in pieces.
      key: of the database.

    Raises:
      errors.ProgrammingError: what is wrong with the dump.
    """
    prepare_file(path, key)
    database = Database(str(path), create=False, defensive=True, key=key)
    late = threading.Timer(_DUMP_SECONDS, database.interrupt)
    late.daemon = True
    late.start()
    session = Session(database)
    number = 1
    try:
        for text in _statements(dump):
            _run(session, text)
            number += 1
        if session.native.in_transaction:
            raise errors.ProgrammingError("The dump should commit the transaction.")
    except (StatementError, UnicodeDecodeError) as error:
        told = error.message if isinstance(error, StatementError) else str(error)
        raise errors.ProgrammingError(f"statement {number} of the dump: {told}") from None
    finally:
        late.cancel()
        session.close()
    empty(path, key=key)


def _run(session: Session, text: str) -> None:
    prepared = session.prepare(text, cached=False)
    writes = prepared.kind is Kind.WRITE or (prepared.kind is Kind.STICKY and not prepared.setting)
    if writes and not session.native.in_transaction:
        raise errors.ProgrammingError("A dump should execute within a transaction.")
    session.run(prepared, Step(text, want_rows=False))
    prepared.statement.reset()


def _statements(dump: Iterable[bytes]) -> Iterator[str]:
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    held = ""
    for piece in dump:
        held += decode(piece)
        *whole, held = list(statements_of(held)) or [""]  # the last may go on in the next piece
        yield from (text for text in whole if not holds_nothing(text))
        if len(held) > hrana.MAX_STATEMENT:
            raise errors.ProgrammingError(
                f"The dump has a statement of more than {hrana.MAX_STATEMENT} characters"
            )
    held += decode(b"", True)
    yield from (text for text in statements_of(held) if not holds_nothing(text))


# ---------------------------------------------------------------- where dumps come from


def dump_at(url: object) -> Callable[[], Iterator[bytes]]:
    """Reads a dump in pieces: ``file:///absolute/path``, ``http://``, ``https://``.

    Raises:
      errors.ProgrammingError: it is no such URL, or there is no such file.
    """
    if not isinstance(url, str):
        raise errors.ProgrammingError("dump_url is text")
    parts = urlsplit(url)
    if parts.scheme == "file":
        path = Path(unquote(parts.path))
        if parts.netloc not in ("", "localhost") or not path.is_absolute():
            raise errors.ProgrammingError("The dump file path must be absolute.")
        if not path.is_file():
            raise errors.ProgrammingError("The dump file doesn't exist.")
        return lambda: _of_file(path)
    if parts.scheme in ("http", "https") and parts.hostname:
        return lambda: _of_web(url)
    raise errors.ProgrammingError(
        "Unsupported dump URL scheme: dump_url begins with file:///, http:// or https://"
    )


def _of_file(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece
    except OSError as error:
        raise errors.ProgrammingError(f"The dump could not be read: {error.strerror}") from None


def _of_web(url: str) -> Iterator[bytes]:
    opener = urllib.request.OpenerDirector()
    for handler in (  # nothing that reads files or speaks FTP: not even where an answer leads there
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
    ):
        opener.add_handler(handler())
    try:
        answer = opener.open(url, timeout=_PATIENCE)
        if answer is None:
            raise errors.ProgrammingError("The dump could not be fetched: it leads elsewhere")
        with answer:
            while piece := answer.read(_PIECE):
                yield piece
    except urllib.error.HTTPError as error:
        error.close()
        raise errors.ProgrammingError(f"The dump could not be fetched: {error}") from None
    except (OSError, ValueError) as error:
        raise errors.ProgrammingError(f"The dump could not be fetched: {error}") from None


def _sync(path: Path) -> None:
    """Nobody of this process has it open: closing it would let go of their locks."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
