"""Files of new databases: empty, from a dump, a copy of another one. Each is a database of its own lineage."""

from __future__ import annotations

import codecs
import contextlib
import http.client
import logging
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from nearlite import errors, hrana
from nearlite._native.database import NO_PARAMETERS, Backup, Database
from nearlite._native.sealing import Key
from nearlite.configs import Config
from nearlite.datafile import prepare_file
from nearlite.hrana import StatementError, Step
from nearlite.primary import Primary
from nearlite.script import holds_nothing, statements_of
from nearlite.session import Session
from nearlite.statements import Kind
from nearlite.streams import EndingError

log = logging.getLogger("nearlite.server")

_PIECE: Final = 1 << 20  # bytes of a dump
_DUMP_SECONDS: Final = 3600.0
_PATIENCE: Final = 30.0  # seconds for one piece of a dump over the network, or for a lock
_AHEAD: Final = 4  # pieces that are read ahead
_LOOK: Final = 0.1  # seconds between two looks at whether anybody still wants it
_LENGTH: Final = 0  # SQLITE_LIMIT_LENGTH
_OK, _BUSY, _LOCKED, _DONE = 0, 5, 6, 101


def hold_to(config: Config, database: Database) -> None:
    """Hold a connection to a database's limits."""
    if config.max_row_size is not None:
        database.limit(_LENGTH, config.max_row_size)
    if config.max_db_size is not None:
        (row,) = database.prepare("PRAGMA page_size").run(NO_PARAMETERS)
        pages = max(config.max_db_size // row[0], 1)
        database.exec(f"PRAGMA max_page_count={pages}")


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


def loaded(path: Path, dump: Dump, *, key: Key | None = None, config: Config | None = None) -> None:
    """What the statements of a dump make: one transaction, committed by the dump itself.

    Args:
      path: of the database.
      dump: where its text comes from.
      key: of the database.
      config: whose limits hold for it.

    Raises:
      errors.ProgrammingError: what is wrong with the dump.
      EndingError: the server is about to end.
    """
    prepare_file(path, key)
    database = Database(str(path), create=False, defensive=True, key=key)
    if config is not None:
        hold_to(config, database)
    late = threading.Timer(_DUMP_SECONDS, database.interrupt)
    late.daemon = True
    late.start()
    session = Session(database)
    number = 1
    try:
        for text in _statements(dump.pieces()):
            _run(session, text)
            number += 1
        if session.native.in_transaction:
            raise errors.ProgrammingError("The dump should commit the transaction.")
    except (StatementError, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError):
            code = told = "it is no UTF-8"
        else:
            code, told = str(error.code), error.message
        if not dump.quotable:
            log.warning("statement %d of the dump of a new database: %r", number, told)
            told = f"{code} (the server's log says more)"
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
        text = decode(piece)
        held += text
        if (
            len(held) > hrana.MAX_STATEMENT or ";" in text
        ):  # small pieces of a large text are looked at once
            *whole, held = list(statements_of(held)) or [""]  # the last may go on in the next piece
            yield from (text for text in whole if not holds_nothing(text))
        if len(held) > hrana.MAX_STATEMENT:
            raise errors.ProgrammingError(
                f"The dump has a statement of more than {hrana.MAX_STATEMENT} characters"
            )
    held += decode(b"", True)
    yield from (text for text in statements_of(held) if not holds_nothing(text))


# ---------------------------------------------------------------- where dumps come from


@dataclass(frozen=True, slots=True)
class Dump:
    """Text of a dump.

    Attributes:
      pieces: begins to read it: UTF-8.
      quotable: what is wrong with it may be told in its words. A file's are kept from who asks over a network:
        who may make databases need not be who may read files of this machine.
    """

    pieces: Callable[[], Iterator[bytes]]
    quotable: bool = True


def dump_at(url: object, ending: threading.Event | None = None) -> Dump:
    """The dump at ``file:///absolute/path``, ``http://``, ``https://``.

    Args:
      url: where it is.
      ending: set when nobody wants it any more: `EndingError`.

    Raises:
      errors.ProgrammingError: it is no such URL, or there is no such file.
    """
    stop = ending or threading.Event()
    if not isinstance(url, str):
        raise errors.ProgrammingError("dump_url is text")
    parts = urlsplit(url)
    if parts.scheme == "file":
        path = Path(unquote(parts.path))
        if parts.netloc not in ("", "localhost") or not path.is_absolute():
            raise errors.ProgrammingError("The dump file path must be absolute.")
        if not path.is_file():
            raise errors.ProgrammingError("The dump file doesn't exist.")
        return Dump(lambda: _until(stop, _of_file(path)), quotable=False)
    if parts.scheme in ("http", "https") and parts.hostname:
        return Dump(lambda: _from_afar(stop, url))
    raise errors.ProgrammingError(
        "Unsupported dump URL scheme: dump_url begins with file:///, http:// or https://"
    )


def _until(stop: threading.Event, pieces: Iterator[bytes]) -> Iterator[bytes]:
    until = time.monotonic() + _DUMP_SECONDS
    for piece in pieces:
        if stop.is_set():
            raise EndingError
        if time.monotonic() > until:
            raise errors.ProgrammingError(f"The dump took longer than {_DUMP_SECONDS:.0f} seconds")
        yield piece


def _from_afar(stop: threading.Event, url: str) -> Iterator[bytes]:
    """Read ahead in a thread that nobody has to wait for: a piece may take as long as its server likes."""
    ready: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
    gone = threading.Event()

    def put(item: bytes | BaseException) -> None:
        while not gone.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=_LOOK)
                return

    def read() -> None:
        try:
            for piece in _of_web(url):
                put(piece)
                if gone.is_set():
                    return
            put(b"")
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            put(error)

    def come() -> Iterator[bytes]:
        while True:
            try:
                item = ready.get(timeout=_LOOK)
            except queue.Empty:
                yield b""  # for those who look at the clock
                continue
            if isinstance(item, BaseException):
                raise item
            if not item:
                return
            yield item

    threading.Thread(target=read, name="nearlite-dump", daemon=True).start()
    try:
        yield from _until(stop, come())
    finally:
        gone.set()


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
            while piece := answer.read1(_PIECE):
                yield piece
    except urllib.error.HTTPError as error:
        error.close()
        raise errors.ProgrammingError(f"The dump could not be fetched: {error}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise errors.ProgrammingError(f"The dump could not be fetched: {error}") from None


def _sync(path: Path) -> None:
    """Nobody of this process has it open: closing it would let go of their locks."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
