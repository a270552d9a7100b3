"""The primary: owns a database and its log, and ends generations."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nearlite import errors
from nearlite._native.database import Database
from nearlite._native.sealing import Key
from nearlite._native.tail import MisuseError, Tail, WalResetError
from nearlite.bases import Bases
from nearlite.datafile import move_schema, prepare_file, refuse_replica
from nearlite.generation import Generations
from nearlite.guard import file_id, guard
from nearlite.log import Log
from nearlite.logstate import RETAIN_SECONDS, Durability, now_ms
from nearlite.origin import Origin, OriginState
from nearlite.pulls import Pulls
from nearlite.pushes import Pushes
from nearlite.roll import Roller
from nearlite.startup import StartUp

if TYPE_CHECKING:
    from typing_extensions import Self

_LOG = logging.getLogger("nearlite")

ROLL_BYTES: Final = 16 << 20
_RETRY_FIRST: Final = 0.5
_RETRY_LAST: Final = 30.0


class Primary(Origin):
    """The owner of one database. Every method may be called from any thread.

    Use `open`. The connections that write are made by `connect` and belong to the caller.

    Attributes:
      pulls: its generations as frames.
      pushes: takes frames from others.
      behind: the last look at the database failed, or one is under way: there may be commits that could
        not be noted.
    """

    _retry_last = _RETRY_LAST

    def __init__(
        self,
        path: str,
        log: Log,
        tail: Tail,
        startup: StartUp,
        *,
        durability: Durability,
        roll_bytes: int,
        retain_bytes: int | None,
        retain_seconds: float,
        key: Key | None,
    ) -> None:
        super().__init__(tail, startup.generations)
        self.path = path
        self._key = key
        self._wal = f"{path}-{'wal' if key is None else 'nlwal'}"
        self.durability = durability
        self._log = log
        self._startup = startup
        self._generations = generations = startup.generations
        self._roll_bytes = roll_bytes
        self._rolling = threading.Lock()
        self._bases = Bases(log.database)
        self._roller = Roller(
            generations,
            self._mutex,
            retain_bytes=retain_bytes,
            retain_seconds=retain_seconds,
            state=self._state,
            bases=self._bases,
            yielding=self.notices,
        )
        self.pulls = Pulls(log, generations, tail, self._bases, mutex=self._mutex, look=self._begin)
        self.pushes = Pushes(
            path,
            key,
            durable=durability == "full",
            generations=generations,
            tail=tail,
            pulls=self.pulls,
            mutex=self._mutex,
            look=self._begin,
        )
        self._frame_size = tail.wal_step
        self._retry_at = 0.0
        self._retry_after = _RETRY_FIRST
        self._file = file_id(path)
        self._overgrown = 0  # size that `overgrown` told last
        self._closed = False
        self.behind = False
        self._answers.commit_ms = log.written_ms()
        self._unwatch = guard.watch(self, path)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        durability: Durability = "full",
        roll_bytes: int = ROLL_BYTES,
        retain_bytes: int | None = None,
        retain_seconds: float = RETAIN_SECONDS,
        key: Key | None = None,
    ) -> Primary:
        """Own a database: create it when missing, make it a WAL database, find its position.

        Args:
          path: the database file.
          durability: "full" syncs every commit; "normal" leaves that to the operating system, so a
            loss of power may undo the newest commits (never tear one).
          roll_bytes: size of the WAL from which it is archived and emptied.
          retain_bytes: of closed generations; None means 4 times the database or 256 MiB,
            whichever is more.
          retain_seconds: age up to which closed generations stay in any case.
          key: the database is sealed, or created so, and its log as well.

        Raises:
          errors.WrongKeyError: the file is sealed with another key, or not sealed, or is and there is none.
          errors.OperationalError: another process owns it, or it cannot be opened.
          errors.NotSupportedError: it is a replica, or its pages have a reserved tail.
        """
        if durability not in ("full", "normal"):
            raise errors.ProgrammingError(f"durability is 'full' or 'normal', not {durability!r}")

        def opened(database: Path) -> Tail:
            try:
                return Tail(str(database), key)
            except MisuseError as error:
                raise errors.NotSupportedError(f"{path}: {error}. Nothing was changed") from None

        return cls._open(
            path,
            prepare=lambda database: prepare_file(database, key),
            tail=opened,
            move_schema=lambda database: move_schema(database, key),
            durability=durability,
            roll_bytes=lambda _tail: roll_bytes,
            retain_bytes=retain_bytes,
            retain_seconds=retain_seconds,
            key=key,
        )

    @classmethod
    def _open(
        cls,
        path: str | Path,
        *,
        prepare: Callable[[Path], bool],
        tail: Callable[[Path], Tail],
        move_schema: Callable[[Path], None] | None,
        durability: Durability,
        roll_bytes: Callable[[Tail], int],
        retain_bytes: int | None,
        retain_seconds: float,
        key: Key | None,
    ) -> Self:
        """Own a database.

        Args:
          prepare: makes the file one that can be owned, or refuses; answers whether it was created.
          tail: opens its tail.
          move_schema: as `StartUp` has it.
          roll_bytes: size of the WAL from which it is archived and emptied.
          durability, retain_bytes, retain_seconds, key: as `open` has them.
        """
        log = Log(str(path))
        opened = None
        try:
            created = prepare(log.database)
            if key is not None:
                log.seal(key)
            opened = tail(log.database)
            refuse_replica(opened, log.database)
            startup = StartUp(
                Generations(log, opened),
                durability=durability,
                move_schema=move_schema and partial(move_schema, log.database),
            )
            startup.attach(created=created)
            primary = cls(
                str(log.database),
                log,
                opened,
                startup,
                durability=durability,
                roll_bytes=roll_bytes(opened),
                retain_bytes=retain_bytes,
                retain_seconds=retain_seconds,
                key=key,
            )
            primary._begun()
            primary.after_commit()
        except BaseException:
            if opened is not None:
                opened.close()
            log.close()
            raise
        return primary

    def connect(
        self, *, readonly: bool = False, busy_ms: int = 5000, frugal: bool = False
    ) -> Database:
        """A connection for SQL: it never checkpoints, and syncs as the durability says.

        Args:
          readonly: it cannot write.
          busy_ms: milliseconds that it waits for other programs' locks.
          frugal: one of thousands of connections of this process.

        Raises:
          errors.OperationalError: it cannot be opened, or the path names another file.
        """
        database = Database(
            self.path,
            readonly=readonly,
            create=False,
            busy_ms=busy_ms,
            checkpoint=False,
            frugal=frugal,
            defensive=True,  # SQL comes from clients
            key=self._key,
        )
        if self.displaced():
            database.close()
            raise errors.OperationalError(
                f"{self.path} names another file by now, or none; nothing was changed in it"
            )
        database.exec(f"PRAGMA synchronous={self.durability.upper()}")
        return database

    def _begun(self) -> None:
        """If the WAL is empty, the database file is the base of the running generation."""
        now = self._tail.state()
        if (now.start, now.live, now.mark) == (0, 0, 0):
            self._bases.begun(self._generations.state.generation)

    # ------------------------------------------------------------ what an origin is asked

    @property
    def _frozen(self) -> OriginState | None:
        return self._roller.frozen

    def _begin(self) -> None:
        """Every frame taken is bound and journaled."""
        if self._closed:
            raise errors.ProgrammingError("the primary is closed")
        self.behind = True
        if self._startup.lost:
            self._bases.lost()
            self._startup.recover()
        self._generations.settle()
        try:
            frame = self._tail.begin()
        except WalResetError as error:
            _LOG.warning("%s; a new generation begins, no committed data is affected", error)
            self._bases.lost()
            self._startup.recover()
            self._answers.commit_ms = now_ms()
            frame = self._tail.begin()
        if frame != self._generations.journaled:
            self._answers.commit_ms = now_ms()
            try:
                self._generations.moved()
            except BaseException:
                self._tail.end()
                raise
        self.behind = False

    def clock(self) -> int:
        """Milliseconds since 1970, by the clock that the times of commits are of."""
        return now_ms()

    # ------------------------------------------------------------ rolls

    @property
    def roll_due(self) -> bool:
        """Whether the WAL has passed its threshold and the last attempt was not a moment ago."""
        return self._wal_bytes >= self._roll_bytes and self.may_roll

    @property
    def may_roll(self) -> bool:
        """Whether the last attempt was not a moment ago."""
        return time.monotonic() >= self._retry_at

    @property
    def _wal_bytes(self) -> int:
        """Of the running generation."""
        return (self._tail.frame - self._generations.state.base.frame) * self._frame_size

    def displaced(self) -> bool:
        """Whether the path names another file than the one that is open, or none: what is committed
        from here on, nobody would find again.
        """
        return file_id(self.path) != self._file

    def overgrown(self) -> bool:
        """Whether the WAL has passed its threshold by commits of other programs, which nobody took.

        A look at the file's size; True once for each size.
        """
        try:
            size = os.stat(self._wal).st_size
        except OSError:
            return False
        begun = self._generations.state.base.frame * self._frame_size
        if size - begun < self._roll_bytes or size == self._overgrown:
            return False
        if self.roll_due or time.monotonic() < self._retry_at:
            return False  # the writer knows
        self._overgrown = size
        return True

    def prepare_roll(self) -> bool:
        """Do what takes long in a roll, beside those who commit; nothing if they have outrun it already.

        Returns:
          Whether there is something to roll.

        Raises:
          OSError, errors.OperationalError: the disk is full or failed; the generation goes on.
        """
        with self._rolling:
            try:
                self.state()  # recovers first if anything has to be
                return self._wal_bytes >= 2 * self._roll_bytes or self._roller.prepare()
            except (OSError, errors.Error):
                self._postpone()
                raise

    def roll(self, *, wait: float = 1.0) -> bool:
        """Archive the generation and empty the WAL. While none of our own connections is in a transaction.

        Args:
          wait: seconds to wait for writers, of this process or others.

        Returns:
          False when somebody needs the WAL: nothing is lost, it is tried again later.

        Raises:
          OSError, errors.OperationalError: the disk is full or failed; the generation goes on.
        """
        with self._rolling:
            try:
                self.state()  # recovers first if anything has to be
                held = self._held()
                done = self._roller.roll(wait=wait, held=held.generation if held else None)
            except (OSError, errors.Error):
                self._postpone()
                raise
            if done:
                with self._mutex:
                    self._begun()
                self._retry_at, self._retry_after = 0.0, _RETRY_FIRST
            else:
                self._postpone()
            return done

    def _postpone(self) -> None:
        self._retry_at = time.monotonic() + self._retry_after
        self._retry_after = min(self._retry_after * 2, self._retry_last)

    # ------------------------------------------------------------ verification and end

    def verify(self) -> tuple[int, int]:
        """Hash every page of the database again.

        Returns:
          The state hash found, and the first page that is not what was committed, or 0.
        """
        with self._mutex:
            self._begin()
            try:
                return self._tail.verify()
            finally:
                self._tail.end()

    def close(self) -> None:
        """End with a roll, so that the WAL holds nothing that is not in the log; idempotent."""
        with self._rolling:
            if self._closed:
                return
            self.pushes.stop()
            try:
                self.state()  # recovers first if anything has to be
                self._roller.roll(wait=1.0, held=None)
                with self._mutex:
                    self._generations.stop()
            except (OSError, errors.Error) as error:
                _LOG.warning(
                    "the last roll failed (%s); the next start goes on from the WAL", error
                )
            finally:  # a second Ctrl-C is no reason to keep the database
                with self._mutex:
                    self._closed = True
                    self._roller.close()
                    self._tail.close()
                    self._log.close()
                    self._unwatch()

    def __enter__(self) -> Primary:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
