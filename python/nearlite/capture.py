"""Capture: the primary of a database that other programs write, with whatever SQLite they have.

Nothing is asked of those programs, no table is added, and nothing is written to their file but checkpoints.
What a primary does for its own writers happens here beside theirs:

    wake-up     a write to the -wal is heard of (file_events.py) before its commit is published. A look that
                finds nothing while somebody holds WRITE is repeated, soon and then less soon, until the lock
                falls. The end of the log is what the wal-index says, always (rule A7).
    pin         stands on a read mark and follows the head of the log (rule A6): the application's own
                checkpoints copy what lies before it, instead of sorting the wal-index at every commit to
                learn that they may copy nothing.
    roll        from 700 frames on, below SQLite's own 1,000. It is prepared beside the writers; the section
                in which they wait is given up when one of their readers would forbid it (roll.py). After some
                seconds without a commit the WAL is rolled as well: then it is empty, and whatever
                checkpoint the application asks for finds nobody in its way.
    checkpoint  of the application, RESTART or TRUNCATE, waits for our pin, and holds WRITE meanwhile. Seen for
                20 ms, the pin is let go. What was committed before is known by then; the WAL that
                follows is compared with it page by page (startup.py), and is a new generation.

The writers may have SQLite before 3.51.3, in which a checkpointer that has read the wal-index may miss
that the WAL is reset. While the pin stands nobody resets it, so that our PASSIVE checkpoints may run beside
theirs; and a roll holds CKPT and WRITE from before its first look to behind its new pin.

LOCKS  `_rolling` before the mutex, as in a primary. The thread of file events never waits for `_rolling`: what
       moves pins comes later then.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nearlite import errors
from nearlite._native import faults
from nearlite._native.database import NO_PARAMETERS, Database
from nearlite._native.tail import CHECKPOINTS, WRITES, MisuseError, Tail
from nearlite.datafile import refuse_replica
from nearlite.file_events import FileEvents, Next, events
from nearlite.guard import file_id
from nearlite.logstate import RETAIN_SECONDS
from nearlite.primary import Primary
from nearlite.rolling import Rolls
from nearlite.streams import Turn
from nearlite.upkeep import readers

if TYPE_CHECKING:
    from typing_extensions import Self

_LOG = logging.getLogger("nearlite")
_RELEASED = faults.declare("capture.released")
_REPINNED = faults.declare("capture.repinned")
_MOVED = faults.declare("capture.moved")
_REOPENED = faults.declare("capture.reopened")

ROLL_FRAMES: Final = 700
"""Below the 1,000 at which SQLite checkpoints by itself."""
_ROLL_PAUSE: Final = 2.0
"""Seconds from roll to roll of a database that is written to without a pause: its writers wait for
milliseconds at each, and not one in a hundred of them may notice."""
_ROLL_BYTES: Final = 24 << 20
"""Of a WAL that is rolled without regard to that."""

_QUIET: Final = 5.0
"""Seconds without a commit after which the WAL is emptied, and nobody looks any more."""
_PIN_FRAMES: Final = 1000
_PIN_SECONDS: Final = 0.05
"""The pin follows the head at one of these distances."""
_BASE_SECONDS: Final = 5.0
"""As long it stands still for whoever reads the base of the generation (bases.py)."""
_PROBE: Final = 0.01
"""Seconds between two looks for a checkpoint that waits for the pin."""
_WAITS: Final = 0.02
"""Seconds after which one that holds WRITE and CKPT is taken to wait."""
_RELEASE: Final = 0.5
"""Seconds without a pin; SQLite's busy handler sleeps for up to a tenth of a second before it tries again."""
_AGAIN: Final = 5.0
"""Seconds until the pin is let go for the next one, when the last did not end: another reader is in its way."""

_FIRST: Final = 0.0001
_STEP: Final = 0.25
"""A look for a commit that is being made is repeated after this part of the time that it has taken so far: what
is noticed late is noticed a quarter late. With 0, 0.1, 0.5, 2 ms alone a slow fsync() would be missed."""
_LAST: Final = 0.05
_UNHEARD: Final = 0.01
"""Seconds for which writes of the transaction that is waited for are no news."""
_GIVEN_UP: Final = 1.0
"""Seconds after which a lock that is held without a write is left to the probes."""
_BUSY: Final = 0.004
_PAUSE: Final = 0.002
"""Commits that follow each other closer than the former are taken together at the latter's pace."""
_RETRY: Final = 1.0
_RETRY_ROLL: Final = 2.0
"""Seconds between two attempts to roll at most: one that a reader forbids costs the writers little."""


_BUSY_MS: Final = 1000


class AbsentError(errors.OperationalError):
    """There is no database yet; its application may create it later."""


class JournalModeError(errors.NotSupportedError):
    """The database is not in WAL mode."""


@dataclass(frozen=True, slots=True)
class CaptureState:
    """How a capture stands, for metrics.

    Attributes:
      wal_bytes: of the running generation.
      pin_behind: frames from the pin to the head of the log.
      reader: a reader of another program keeps the WAL from being emptied; nothing waits for it.
      missing: the path names no database.
      failing: the last look at the database failed.
      polls: the system does not tell of writes.
      rolls: WALs emptied here.
      resets: WALs that others emptied.
      released: times that the pin was let go for somebody's checkpoint.
      longest_section: seconds that writers were kept waiting for a roll at most.
    """

    wal_bytes: int
    pin_behind: int
    reader: bool
    missing: bool
    failing: bool
    polls: bool
    rolls: int
    resets: int
    released: int
    longest_section: float


class Capture(Primary):
    """The primary of a database that other programs write. Use `open`.

    Attributes:
      fault: why the last look could not take what was committed; None: it could.
    """

    notices = True
    _retry_last = _RETRY_ROLL

    def __init__(self, *args: Any, heard: FileEvents = events, **options: Any) -> None:
        super().__init__(*args, **options)
        self._events = heard
        self._rolls = Rolls(self, Turn(), linger=_QUIET)
        self._files = (self._file, file_id(self._wal))
        self._seen = self.latest
        now = time.monotonic()
        self._seen_at = self._found_at = now
        self._pin_frame, self._pin_at = 0, now
        self._base_at = now
        self._chain: float | None = None  # since when a commit that is being made is waited for
        self._written = False  # somebody held WRITE at the last look
        self._waits_since: float | None = None  # somebody's checkpoint, perhaps for our pin
        self._released_at: float | None = None  # there is no pin
        self._release_after = 0.0
        self._rolled_at = now
        self._missing = self._complained = False
        self.fault: str | None = None
        self._rolled = self._resets = self._releases = 0

    @classmethod
    def open(  # type: ignore[override] # it is opened otherwise than a file of our own
        cls,
        path: str | Path,
        *,
        roll_frames: int = ROLL_FRAMES,
        roll_bytes: int | None = None,
        retain_bytes: int | None = None,
        retain_seconds: float = RETAIN_SECONDS,
    ) -> Self:
        """Begin to capture a database.

        Args:
          path: the database file, which exists and is in WAL mode.
          roll_frames: of the WAL, from which it is emptied.
          roll_bytes: the same in bytes; None: `roll_frames` counts.
          retain_bytes, retain_seconds: of closed generations; as `Primary.open` has them.

        Raises:
          AbsentError, JournalModeError: there is no such database; it is not in WAL mode.
          errors.OperationalError: somebody captures or serves it already, or it is locked.
          errors.NotSupportedError: it is a replica, or its pages have a reserved tail.
        """
        _check(Path(path))
        capture = cls._open(
            path,
            prepare=lambda _database: False,  # nothing is created
            tail=_tail,
            move_schema=None,
            durability="full",
            roll_bytes=lambda tail: roll_bytes or roll_frames * tail.wal_step,
            retain_bytes=retain_bytes,
            retain_seconds=retain_seconds,
            key=None,
        )
        capture._watch()  # noqa: SLF001 - its own class
        return capture

    def _watch(self) -> None:
        self._events.add(self)

    def close(self) -> None:
        """Take what is committed, roll if nobody is in the way, and end; idempotent."""
        self._events.remove(self)
        self._rolls.stop()
        super().close()

    def want_roll(self) -> None:
        """Empty the WAL as soon as that can be tried. Any thread; does not wait."""
        self._rolls.want()

    def stand(self) -> CaptureState:
        """How it stands. Does not wait."""
        return CaptureState(
            wal_bytes=self._wal_bytes,
            pin_behind=max(0, self._tail.frame - self._pin_frame),
            reader=self._roller.reader,
            missing=self._missing,
            failing=self.fault is not None,
            polls=self._events.polls,
            rolls=self._rolled,
            resets=self._resets,
            released=self._releases,
            longest_section=self._roller.longest,
        )

    # ------------------------------------------------------------ looks

    def look(self, *, touched: bool, renamed: bool) -> Next:
        """On the thread of file events, when something was heard or it is time."""
        try:
            then = self._look(touched=touched, renamed=renamed)
        except Exception as error:  # noqa: BLE001 - a full disk, say: there may be room at the next look
            if self.fault is None and not self._closed:
                _LOG.exception("%s: what other programs committed could not be taken", self.path)
            self.fault = f"what was committed could not be taken: {error}"
            return Next(_RETRY)
        if self.fault is not None:
            self.fault = None
            _LOG.warning("%s: what other programs commit is taken again", self.path)
        return then

    def _look(self, *, touched: bool, renamed: bool) -> Next:
        if self._roller.frozen is not None:
            self._chain = self._chain or time.monotonic()
            return Next(_PAUSE, deaf=True)  # nobody can commit, and the mutex is held
        if renamed or self._missing:
            self._find_again()
            if self._missing:
                return Next(_RETRY)
        with self._mutex:
            others = self._tail.others()
        now = time.monotonic()
        fell = self._written and not others & WRITES
        self._written = bool(others & WRITES)
        if self._released_at is not None:
            return self._await_checkpoint(others, now)
        if not (touched or renamed or fell or self._chain):
            return self._probe(others, now)
        # After the look at the lock: one that was free then has published whatever it committed.
        self.after_commit()
        found = self.latest != self._seen
        if found:
            self._took(now)
        self._move_pin(now)
        if self.roll_due:
            self._rolls.look()
        if found and now - self._found_at < _BUSY:
            self._found_at, self._chain = now, now
            return Next(_PAUSE, deaf=True)
        if found:
            self._found_at = now
        return self._await_commit(others, now, found=found, touched=touched)

    def _took(self, now: float) -> None:
        before, self._seen, self._seen_at = self._seen, self.latest, now
        if before.generation != self._seen.generation:
            self._pin_frame, self._pin_at = 0, now

    def _await_commit(self, others: int, now: float, *, found: bool, touched: bool) -> Next:
        """A commit may be under way whose writes have been heard of."""
        if not others & WRITES:
            self._chain = None
            return self._probe(others, now)
        if self._chain is None or found or (touched and now - self._chain >= _UNHEARD):
            self._chain = now
        waited = now - self._chain
        if waited >= _GIVEN_UP:
            self._chain = None
            return self._probe(others, now)
        self._yield_to(others, now)
        return Next(min(max(waited * _STEP, _FIRST), _LAST), deaf=waited < _UNHEARD)

    def _probe(self, others: int, now: float) -> Next:
        """Nobody commits. What is left to do before nobody needs to look."""
        if self._tail.frame == 0:
            self._waits_since = None
            return Next(_LAST if others & WRITES else None)
        self._move_pin(now)
        self._yield_to(others, now)
        if self._released_at is not None:
            return Next(_PAUSE / 4, deaf=True)
        if self.roll_due:
            self._rolls.look()
        elif now - self._seen_at >= _QUIET and self.may_roll:
            self._rolls.want()
        if self._roller.reader:  # which is in the way of every checkpoint, too
            self._complain()
            return Next(_QUIET / 20)
        return Next(_PROBE)

    # ------------------------------------------------------------ pin

    def _move_pin(self, now: float, *, at_once: bool = False) -> None:
        """Let the application's checkpoints copy what is behind us."""
        behind = self._tail.frame - self._pin_frame
        near = behind < _PIN_FRAMES and now - self._pin_at < _PIN_SECONDS
        if behind <= 0 or (near and not at_once):
            return
        if self._bases.are_read and now - self._base_at < _BASE_SECONDS:
            return
        self._base_at = now
        if not self._rolling.acquire(blocking=False):
            return  # a roll moves it itself
        try:
            with self._mutex:
                self._bases.lost()
                self._tail.repin()
                self._pin_frame, self._pin_at = self._tail.frame, now
                faults.hit(_MOVED)
        finally:
            self._rolling.release()

    def _yield_to(self, others: int, now: float) -> None:
        """Let the pin go for a checkpoint that has waited for it."""
        both = WRITES | CHECKPOINTS
        if others & both != both:
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = now
            self._move_pin(now, at_once=True)  # FULL needs no more
        elif now - self._waits_since >= _WAITS and now >= self._release_after:
            if not self._rolling.acquire(blocking=False):
                return
            try:
                # Who holds WRITE for a checkpoint commits nothing: all there is is taken here.
                self.after_commit()
                with self._mutex:
                    self._bases.lost()
                    self._tail.unpin()
                    self._released_at, self._waits_since = now, None
                    self._releases += 1
                    faults.hit(_RELEASED)
            finally:
                self._rolling.release()

    def _await_checkpoint(self, others: int, now: float) -> Next:
        """There is no pin, until somebody's checkpoint has ended."""
        assert self._released_at is not None
        both = WRITES | CHECKPOINTS
        if others & both == both and now - self._released_at < _RELEASE:
            return Next(_PAUSE / 4, deaf=True)
        if others & both == both:
            self._release_after = now + _AGAIN
        if not self._rolling.acquire(blocking=False):
            return Next(_PAUSE / 4, deaf=True)
        try:
            with self._mutex:
                self._tail.repin()
                faults.hit(_REPINNED)
        finally:
            self._rolling.release()
        self._released_at, self._pin_at = None, now
        self._chain = now
        return Next(0)

    # ------------------------------------------------------------ another file

    def _find_again(self) -> None:
        """The path may name another file, or none: then a WAL with this name is another's, too."""
        files = (file_id(self.path), file_id(self._wal))
        if files == self._files:
            self._missing = False
            return
        self._missing = True
        if files[0] is None or files[1] is None:
            # Not in WAL mode yet, if it is being made: a look could be in the way of that.
            return
        if files[0] != self._files[0] and files[1] == self._files[1]:
            raise errors.OperationalError(
                f"{self.path} was replaced, and the WAL of the file before it lies beside it still: whoever "
                f"opens it reads a mixture of both. Stop the programs that use it, remove {self._wal} and put "
                "the file into place again. Nothing was changed"
            )
        with self._rolling, self._mutex:
            self._bases.lost()
            self._tail.reopen(lambda tail: refuse_replica(tail, Path(self.path)))
            self._startup.lost = True  # until it is known where it stands
            self._generations.again()
            self._startup.attach(created=False)
            self._startup.lost = False
            faults.hit(_REOPENED)
            self.page_size, self._frame_size = self._tail.page_size, self._tail.wal_step
            self._pin_frame, self._released_at = 0, None
            self._file, self._files, self._missing = files[0], files, False
        _LOG.warning("%s is another file by now; it is captured from here on", self.path)

    # ------------------------------------------------------------ what a primary does

    def _begin(self) -> None:
        before = self._startup.recovered
        try:
            super()._begin()
        finally:
            self._resets += self._startup.recovered - before

    @property
    def roll_due(self) -> bool:
        """Whether the WAL has passed its threshold, and the last roll was not a moment ago."""
        if not super().roll_due:
            return False
        return self._wal_bytes >= _ROLL_BYTES or time.monotonic() >= self._rolled_at + _ROLL_PAUSE

    def prepare_roll(self) -> bool:
        """Do what takes long in a roll beside those who write, however much they write."""
        with self._rolling:
            try:
                self.state()  # recovers first if anything has to be
                return self._roller.prepare()
            except (OSError, errors.Error):
                self._postpone()
                raise

    def roll(self, *, wait: float = 1.0) -> bool:
        """Empty the WAL, unless somebody reads out of it; as `Primary` does."""
        quiet = self._closed or time.monotonic() - self._seen_at >= _QUIET
        self._roller.keep = not quiet and self._wal_size() <= 2 * _ROLL_BYTES
        done = super().roll(wait=wait)
        if done:
            self._rolled += 1
            self._rolled_at = time.monotonic()
            self._roller.reader = False
            self._complain()
        self._events.soon(self)
        return done

    def _wal_size(self) -> int:
        """Of the file."""
        with contextlib.suppress(OSError):
            return Path(self._wal).stat().st_size
        return 0

    def _complain(self) -> None:
        """Once when somebody keeps the WAL, once when that is over."""
        if self._roller.reader and not self._complained and self._wal_bytes >= 2 * self._roll_bytes:
            self._complained = True
            _LOG.warning(
                "%s: the WAL has %.1f MiB because a read transaction keeps an old snapshot open%s; end it "
                "to let the WAL shrink. No data is at risk",
                self.path,
                self._wal_bytes / (1 << 20),
                readers(self.path),
            )
        elif self._complained and not self._roller.reader:
            self._complained = False
            _LOG.info("%s: nobody keeps the WAL any more", self.path)


def _check(path: Path) -> None:
    """Look whether a database can be captured, before anything is put beside it; nothing is changed in it.

    Raises:
      AbsentError: there is none.
      JournalModeError: it is in another mode than WAL; with the command that changes that.
      errors.DatabaseError: it is no database, or locked.
    """
    try:
        if path.stat().st_size == 0:
            raise AbsentError("the file is empty so far")
    except FileNotFoundError:
        raise AbsentError("the file is not there yet") from None
    database = Database(str(path), create=False, busy_ms=_BUSY_MS, checkpoint=False)
    try:
        mode = database.prepare("PRAGMA journal_mode").run(NO_PARAMETERS)[0][0]
    finally:
        database.close()
    if mode != "wal":
        raise JournalModeError(
            f"it is in rollback-journal mode ({mode}), in which nobody can follow its commits. Nothing was "
            "changed. This makes it a WAL database, once and for all: "
            f"sqlite3 {shlex.quote(str(path))} 'PRAGMA journal_mode=WAL'"
        )


def _tail(database: Path) -> Tail:
    try:
        return Tail(str(database))
    except MisuseError as error:
        raise errors.NotSupportedError(f"{database}: {error}. Nothing was changed") from None
