"""Whether a replica's file is what its header says: all of it is hashed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import threading
import time
from typing import Final

from nearlite._native._lib import BusyError
from nearlite._native.applier import Applier, State
from nearlite._native.sealing import Key
from nearlite.errors import DamagedError, Error, WrongKeyError
from nearlite.failing import is_being_checked, left
from nearlite.http import Deadline

_log = logging.getLogger("nearlite")

SCRUB_SECONDS: Final = 86400.0
"""So long after a file was last hashed in full it is hashed again: pages that no sync touches rot unseen."""


class FullCheck:
    """Rule C1: a file that may be somebody's copy is hashed once before it is built upon, and every day.

    That takes as long as reading the file takes: it is done beside everything else, on a thread and a
    connection of its own, and goes on when a caller's time is over.

    Args:
      path: of the replica.

    Attributes:
      passed: it is what its header says; or it is known for another reason.
    """

    def __init__(self, path: str, key: Key | None = None) -> None:
        self.passed = False
        self._path = path
        self._key = key
        self._starting = threading.Lock()  # guards `_running`
        self._running: concurrent.futures.Future[None] | None = None
        self._scrub_at = time.monotonic() + SCRUB_SECONDS
        self._scrubbing = threading.Lock()  # held by the one who does

    def scrub_if_due(self, now: float) -> None:
        """Hash the file on a thread of its own, if that was long ago; nobody waits for it.

        A file found damaged is a reason for doubt: the next `wait` says so.
        """
        if now < self._scrub_at or not self._scrubbing.acquire(blocking=False):
            return
        self._scrub_at = now + SCRUB_SECONDS
        try:
            threading.Thread(target=self._scrub, name="nearlite-scrub", daemon=True).start()
        except BaseException:  # no more threads
            self._scrubbing.release()
            raise

    def _scrub(self) -> None:
        try:
            self._look()
        except DamagedError as error:
            _log.warning("%s", error)
            self.again()
        except Exception as error:  # noqa: BLE001 - busy, or the disk failed: the next one may tell
            _log.warning("%s could not be read in full: %s", self._path, error)
        finally:
            self._scrubbing.release()

    def again(self) -> None:
        """There is a reason for doubt: the next `wait` looks at the whole file.

        A check that is under way may have read before that reason came to be: it does not count any more.
        """
        with self._starting:
            self._running = None
            self.passed = False

    def wait(self, deadline: Deadline) -> None:
        """Begin it if nobody has, and wait for its end.

        Raises:
          DamagedError: the file is not what its header says.
          SyncError: the time is over.
        """
        with self._starting:
            running = self._running
            if running is None:
                running = concurrent.futures.Future()
                threading.Thread(
                    target=self._run, args=(running,), name="nearlite-check", daemon=True
                ).start()
                self._running = running  # only now: without a thread nobody would end it
        try:
            running.result(None if deadline.renewed else left(deadline))
        except concurrent.futures.TimeoutError:
            raise is_being_checked(self._path) from None
        deadline.restart()

    def _look(self) -> None:
        """Raises DamagedError."""
        with contextlib.closing(Applier(self._path, key=self._key)) as applier:
            survey = applier.survey()  # also of a file that has become shorter
        if survey.hash != survey.claimed.hash:
            raise _not_what_it_says(self._path, survey.claimed)

    def _run(self, running: concurrent.futures.Future[None]) -> None:
        try:
            self._look()
            with self._starting:
                if self._running is running:  # nobody has doubted it since it began
                    self.passed = True
        except BaseException as error:  # noqa: BLE001 - whatever it is, the callers raise it
            with self._starting:
                if self._running is running:
                    self._running = None  # the next call looks again
            running.set_exception(error)
        else:
            running.set_result(None)


def survived(path: str, key: Key | None = None) -> bool:
    """Whether a file that was placed before it was synced outlived a restart of the system.

    What is left otherwise is most often a file of zero bytes, or one without its page 1.

    Raises:
      BusyError: somebody works with it: nothing is known.
      WrongKeyError: it is another file than was placed, or another key.
    """
    try:
        with contextlib.closing(Applier(path, key=key)) as applier:
            state, found = applier.full_hash()
    except (BusyError, WrongKeyError):
        raise
    except Error:
        return False
    return found == state.hash


def _not_what_it_says(path: str, state: State) -> DamagedError:
    return DamagedError(
        f"{path} does not hold what its header says: it was copied without its -wal, "
        "or changed by something other than SQLite",
        state=f"its header says {state.position}; nothing was written",
        action="sync() repairs it",
        data_at_risk=True,
    )
