"""The folder ``<db>-nearlite/``: what a primary remembers beside its database.

A reader of the folder can understand it: names carry positions, ``state.json`` says the rest.

    lock                                    held while a process owns the database
    state.json                              lineage, generation, salts of its WAL, archived generations
    LLLLLLLL.GGGGGGGG.FFFFFFFF.hashes       page-hash table at that position, the generation's base
    LLLLLLLL.GGGGGGGG.journal               what the running generation changed so far
    LLLLLLLL.GGGGGGGG.FFFFFFFF.index        what generation G changed, up to its last frame F
    LLLLLLLL.GGGGGGGG.FFFFFFFF.wal          its frames as they were in the WAL, a copy of that file
    *.part                                  being written; removed at the next start

Beside a sealed database all of them but ``lock`` are sealed as well (logseal.py).

Every file but the journal is made durable before it gets its name: written as ``.part``, synced,
renamed, and the folder synced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import weakref
from pathlib import Path
from typing import Final

import msgspec

from nearlite import errors
from nearlite._native import faults
from nearlite._native.sealing import Key
from nearlite.logformat import DamagedError, HashTable, Index, Journal, journal_header
from nearlite.logseal import Clear, Seal, Sealed
from nearlite.logstate import State, now_ms
from nearlite.position import Position
from nearlite.spooling import Spool

_LOG = logging.getLogger("nearlite")
_BEFORE_SYNC = faults.declare("log.before-sync")
_BEFORE_RENAME = faults.declare("log.before-rename")
_AFTER_RENAME = faults.declare("log.after-rename")
_BEFORE_APPEND = faults.declare("log.before-append")
_AFTER_APPEND = faults.declare("log.after-append")


class Log:
    """The folder of one database, owned by this process until `close`.

    Args:
      database: path of the database file.

    Raises:
      errors.OperationalError: another process serves the same database, or its folder cannot be made.
    """

    def __init__(self, database: str) -> None:
        real = Path(database).resolve()
        self.database = real
        self.folder = real.with_name(real.name + "-nearlite")
        # Archives hold page images, and the database itself may be for its owner's eyes alone.
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise errors.OperationalError(
                f"{self.folder}, the folder of the database's log, could not be created: "
                f"{error.strerror}. Nothing was changed"
            ) from error
        self._lock = _lock_of(self.folder / "lock")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            owner = os.pread(self._lock, 64, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock)
            raise errors.OperationalError(
                f"{real} is already served by process {owner}; only one process may own a database. "
                "Stop that one, or connect to its address instead of opening the file again. "
                "Nothing was changed"
            ) from None
        except BaseException:
            os.close(self._lock)  # or the lock would be held by nobody, until the process ends
            raise
        self._seal: Seal = Clear()
        self._journal = -1
        self._journal_size = self._journal_entries = 0
        self._journal_of = ""  # its name
        _logs.add(self)

    def seal(self, key: Key) -> None:
        """Its files are sealed by the database's data keys; before anything is read or written.

        Raises:
          WrongKeyError: it is not the key of the database, which exists.
        """
        self._seal = Sealed(self.database, key)

    @property
    def of_pages(self) -> Seal:
        """How pages lie in the database file, and frames in its WAL and the archives."""
        return self._seal

    def spool(self) -> Spool:
        """For a page set that is too large for memory."""
        return Spool(self.folder, sealed=self._seal.sealed)

    def close(self) -> None:
        """Release the folder; idempotent."""
        if self._lock >= 0:
            # A child forked just now may not have closed its copy yet, and the lock lives as long as any.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptors, and nothing else; idempotent."""
        self.journal_close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def written_ms(self) -> int:
        """When the newest commit was made, as far as the files tell: at a start nobody has seen it."""
        times = []
        for suffix in ("", "-wal", "-nlwal"):
            path = self.database.with_name(f"{self.database.name}{suffix}")
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if stat.st_size > 0:
                    times.append(stat.st_mtime_ns // 1_000_000)
        return min(max(times, default=now_ms()), now_ms())

    # ------------------------------------------------------------ durable files

    def sync_folder(self) -> None:
        """Make renames durable."""
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def write(self, name: str, *parts: bytes, durable: bool = True) -> None:
        """Write a file that is there completely or not at all, also after a loss of power.

        Args:
          name: in the folder.
          parts: its bytes.
          durable: False: the caller syncs the folder, once for several files.
        """
        self._write(name, self._seal.file(name, parts), durable=durable)

    def _write(self, name: str, parts: tuple[bytes, ...], *, durable: bool) -> None:
        part = self.folder / (name + ".part")
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            for data in parts:
                write_all(handle, data)
            faults.hit(_BEFORE_SYNC)
            os.fsync(handle)
        finally:
            os.close(handle)
        self.publish(part, name, durable=durable)

    def publish(self, part: Path, name: str, *, durable: bool = True) -> None:
        """Give a synced file its name."""
        faults.hit(_BEFORE_RENAME)
        part.rename(self.folder / name)
        if durable:
            self.sync_folder()
        faults.hit(_AFTER_RENAME)

    def read(self, name: str) -> bytes:
        """What was written into a file.

        Raises:
          FileNotFoundError: it is not there.
          DamagedError: it is sealed, and not what was sealed under that name; or it is no file.
        """
        return self._seal.opened(name, self._bytes(name))

    def _bytes(self, name: str) -> bytes:
        try:
            handle = os.open(self.folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _NO_FILE:
                raise _NotAFileError(f"{name} is not a file") from error
            raise
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise _NotAFileError(f"{name} is not a file")
            with open(handle, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(handle)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / name).unlink()

    # ------------------------------------------------------------ state

    def load(self) -> State | None:
        """state.json, or None when the folder is new, or sealed by the keys of another file.

        Raises:
          errors.DatabaseError: it is not readable by this version, or damaged.
        """
        try:
            data = self.read("state.json")
        except FileNotFoundError:
            return None
        except DamagedError as error:
            if isinstance(error, _NotAFileError) or self._is_ours():
                raise errors.DatabaseError(
                    f"{self.folder / 'state.json'} cannot be read: {error}. The database itself is not affected. Put the "
                    "file back, or move the folder away: the primary then begins a new lineage and every replica starts "
                    "over"
                ) from error
            # Most likely the database was restored from a copy that was sealed anew.
            _LOG.warning("%s: its log is of another file and is not used: %s", self.database, error)
            return None
        try:
            return msgspec.json.decode(data, type=State)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise errors.DatabaseError(
                f"{self.folder / 'state.json'} cannot be read by this version: {error}. The database "
                "itself is not affected. Use the version that wrote it, or move the folder away: "
                "the primary then begins a new lineage and every replica starts over"
            ) from None

    def _is_ours(self) -> bool:
        """Whether anything in a sealed folder opens with the keys of the database."""
        for path in self.folder.iterdir():
            if path.suffix in (".hashes", ".index"):
                with contextlib.suppress(OSError, DamagedError):
                    self.read(path.name)
                    return True
        return False

    def save(self, state: State) -> None:
        """Make a new state durable."""
        self.write("state.json", msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")

    # ------------------------------------------------------------ the files of a generation

    def save_table(self, table: HashTable, *, durable: bool = True) -> None:
        """Write a page-hash table."""
        at = Position(table.lineage, table.generation, table.frame)
        self.write(f"{at}.hashes", table.encode(), durable=durable)

    def load_table(self, at: Position, page_size: int) -> bytes | None:
        """Entries of the page-hash table at a position; None when missing or damaged."""
        try:
            found = HashTable.decode(self.read(f"{at}.hashes"))
        except (FileNotFoundError, DamagedError):
            return None
        if (found.lineage, found.generation, found.frame) != (at.lineage, at.generation, at.frame):
            return None
        return found.table if found.page_size == page_size else None

    def save_index(self, index: Index, *, durable: bool = True) -> None:
        """Write an index, and remove those of an interrupted roll of the same generation."""
        at = Position(index.lineage, index.generation, index.frame)
        self.write(f"{at}.index", index.encode(), durable=durable)
        for other in self._generation(index.lineage, index.generation, ".index"):
            if other.name != f"{at}.index":
                other.unlink()

    def load_index(self, at: Position) -> Index | None:
        """The index of a generation that ended at `at`; None when missing or damaged."""
        try:
            return Index.decode(self.read(f"{at}.index"))
        except (FileNotFoundError, DamagedError):
            return None

    def found_index(self, lineage: int, generation: int) -> Index | None:
        """The newest index that interrupted rolls may have left of a generation.

        A kill between the write of one and the removal of the one before it leaves both.
        """
        for path in reversed(self._generation(lineage, generation, ".index")):
            with contextlib.suppress(DamagedError):
                return Index.decode(self.read(path.name))
        return None

    def _generation(self, lineage: int, generation: int, suffix: str) -> list[Path]:
        return sorted(self.folder.glob(f"{lineage:08x}.{generation:08x}.*{suffix}"))

    # ------------------------------------------------------------ journal

    def journal_open(self, state: State, records: bytes) -> None:
        """Begin the journal of a bound generation with what is known so far."""
        assert state.wal is not None
        self.journal_close()
        head = journal_header(
            state.lineage_number,
            state.generation,
            state.base.frame,
            state.page_size,
            state.wal.salt,
        )
        name = _journal_name(state)
        part = self.folder / (name + ".part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        handle = os.open(part, flags, 0o644)
        try:
            begun = self._seal.entry(name, 0, head + records)
            write_all(handle, begun)
            part.rename(self.folder / name)
        except BaseException:
            os.close(handle)
            raise
        self._journal, self._journal_size = handle, len(begun)
        self._journal_of, self._journal_entries = name, 1

    @property
    def journaling(self) -> bool:
        """Whether there is a journal to append to."""
        return self._journal >= 0

    def journal_append(self, record: bytes) -> None:
        """Add a record; it survives a kill of the process, not a loss of power."""
        record = self._seal.entry(self._journal_of, self._journal_entries, record)
        try:
            faults.hit(_BEFORE_APPEND)
            write_all(self._journal, record)
            faults.hit(_AFTER_APPEND)
        except OSError:
            # A torn record would hide all that follow it.
            os.ftruncate(self._journal, self._journal_size)
            raise
        self._journal_size += len(record)
        self._journal_entries += 1

    def journal_load(self, state: State) -> Journal | None:
        """The journal of the generation in `state`, as far as it is whole."""
        try:
            name = _journal_name(state)
            found = Journal.decode(self._seal.journal(name, self._bytes(name)))
        except (FileNotFoundError, DamagedError):
            return None
        same = (found.lineage, found.generation, found.start, found.page_size) == (
            state.lineage_number,
            state.generation,
            state.base.frame,
            state.page_size,
        )
        return found if same and state.wal is not None and found.salt == state.wal.salt else None

    def journal_whole(self, name: str) -> bytes:
        """What was written to a journal, as far as it is whole."""
        return self._seal.journal(name, self._bytes(name))

    def journals_sync(self) -> None:
        """Bring them to the disk; for whoever empties the WAL, which tells the same until then."""
        for path in self.folder.glob("*.journal"):
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        self.sync_folder()

    def journal_replace(self, name: str, data: bytes) -> None:
        """Make that all of it, sealed as the log is now."""
        self._write(name, (self._seal.entry(name, 0, data),), durable=True)

    def journal_close(self) -> None:
        """Stop appending; idempotent."""
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1

    # ------------------------------------------------------------ retention

    def tidy(self, state: State) -> None:
        """Remove what the state does not name: parts, old tables, old journals, dropped archives.

        Only files with names of this module's kinds: the folder may hold what others put there.
        """
        keep = {"lock", "state.json", f"{state.position(state.base.frame)}.hashes"}
        keep.add(_journal_name(state))
        for old in state.archived:
            at = Position(state.lineage_number, old.generation, old.frame)
            keep.add(f"{at}.index")
            if old.bytes:
                keep.add(f"{at}.wal")
        for path in self.folder.iterdir():
            if path.name not in keep and path.suffix in _SUFFIXES and path.is_file():
                path.unlink()


class _NotAFileError(DamagedError):
    """A directory, say, has the name of a file of the log."""


_NO_FILE: Final = frozenset((errno.ELOOP, errno.ENXIO, errno.ENOTDIR))


def _lock_of(path: Path) -> int:
    """The file open. Raises OperationalError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o644)
    except OSError as error:
        raise errors.OperationalError(
            f"{path}, which says who serves the database, could not be opened: {error.strerror}. Nothing was changed"
        ) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise errors.OperationalError(
            f"{path}, which says who serves the database, is not a file: remove it. Nothing was changed"
        )
    return handle


_SUFFIXES: Final = frozenset((".part", ".hashes", ".index", ".wal", ".journal"))


_logs: weakref.WeakSet[Log] = weakref.WeakSet()


def _forked() -> None:
    for log in list(_logs):
        log.abandon()  # this copy of the lock's descriptor: the lock lives as long as any; the parent has its own


os.register_at_fork(after_in_child=_forked)


def _journal_name(state: State) -> str:
    return f"{state.lineage}.{state.generation:08x}.journal"


def write_all(handle: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """Write everything, at an offset or where the file stands, or raise."""
    view = memoryview(data)
    while view:
        if offset is None:
            view = view[os.write(handle, view) :]
        else:
            n = os.pwrite(handle, view, offset)
            view, offset = view[n:], offset + n
