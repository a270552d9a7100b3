"""The databases of a sidecar: each is opened, watched and opened again on a thread of its own.

A database that is not there, an upstream that is away, a file that was replaced: none of it ends the process, or
holds up the others. What is the matter is told once, and stands in `trouble` until it is over.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from nearlite import errors
from nearlite.capture import ROLL_FRAMES, AbsentError, Capture, CaptureState, JournalModeError
from nearlite.change_service import PulledFrom, Rolling
from nearlite.live import Pauses
from nearlite.settings import DatabaseSettings
from nearlite.source import Source, Upstream
from nearlite.tally import Stats

_LOG = logging.getLogger("nearlite.sidecar")

_LOOK: Final = 0.5  # seconds between two looks whether a path still names what is open
_ABSENT: Final = 0.2  # seconds between two looks for a database that is not there
_JOIN: Final = 10.0  # seconds that a thread has to end
_LONGEST_PAUSE: Final = 2.0  # seconds between two attempts to open one
_UNOPENED: Final = "not opened yet"


def passes(error: Exception) -> bool:
    """Whether it is over by itself, when the upstream is there and is as it was."""
    away = isinstance(error, (errors.OfflineError, errors.UpstreamBehindError))
    return away or getattr(error, "code", "") in ("DATABASE_NOT_OPEN", "SHUTTING_DOWN")


class Member:
    """One database. Any thread.

    Args:
      settings: of it.
      changed: called on the member's thread when it was opened, and when it is about to be closed.

    Attributes:
      settings: the same.
      open: it can be served.
      trouble: what is the matter with it; None: nothing.
      complete: there is a whole copy, or it is a primary, which needs none.
    """

    def __init__(self, settings: DatabaseSettings, changed: Callable[[], None]) -> None:
        self.settings = settings
        self.open = False
        self.trouble: str | None = _UNOPENED
        self.complete = threading.Event()
        self._changed = changed
        self._ending = threading.Event()
        self._pauses = Pauses()
        self._thread = threading.Thread(
            target=self._run, name=f"nearlite-{settings.name}", daemon=True
        )

    @property
    def name(self) -> str:
        """By which it is served."""
        return self.settings.name

    @property
    def is_replica(self) -> bool:
        """Whether it has an upstream."""
        return self.settings.upstream is not None

    def start(self) -> None:
        """Begin to open it."""
        self._thread.start()

    def end(self) -> None:
        """Begin to close it."""
        self._ending.set()

    def join(self) -> None:
        """Return when it is closed; after _JOIN seconds in any case: what is committed is safe."""
        if self._thread.ident is None:  # it was never started
            return
        self._thread.join(_JOIN)
        if self._thread.is_alive():
            _LOG.warning("%s could not be closed in time", self.settings.path)

    # ------------------------------------------------------------------ what it is

    @property
    def source(self) -> Source | None:
        """What replicas are fed from, while it is open and is to be served."""
        raise NotImplementedError

    @property
    def upstream(self) -> Upstream | None:
        """Of a replica that serves replicas."""
        return None

    @property
    def pulled(self) -> tuple[PulledFrom, Rolling] | None:
        """What libSQL's replicas are fed from."""
        return None

    def look(self) -> None:
        """Take what was committed, now, and tell whoever waits. Raises what reading raises."""

    @property
    def lag(self) -> float | None:
        """Seconds that a replica is behind; None: it is no replica, or nothing is known."""
        return None

    @property
    def captured(self) -> CaptureState | None:
        """How the capture of a primary's database stands, while it is open."""
        return None

    def stats(self) -> Stats | None:
        """How a replica stands. May wait for what is being applied."""
        return None

    @property
    def failing(self) -> str | None:
        """What is the matter with it, or that it lags too much; None: nothing."""
        return self.trouble

    # ------------------------------------------------------------------ its thread

    def _open(self) -> None:
        """Open it. Raises what prevents that; nothing is left open then."""
        raise NotImplementedError

    def _lost(self) -> str | None:
        """Why it has to be opened anew; None: it has not."""
        raise NotImplementedError

    def _close(self) -> None:
        """Close what `_open` opened."""
        raise NotImplementedError

    def _say(self, trouble: str, level: int) -> None:
        """Told once."""
        if trouble != self.trouble:
            self.trouble = trouble
            _LOG.log(level, "%s: %s", self.settings.path, trouble)

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                pause = self._opened()
                if pause is None:
                    self._keep()
                else:
                    self._ending.wait(pause)
            except Exception:  # noqa: BLE001 - a mistake of ours: the others go on, and so does it
                _LOG.exception("%s: its thread failed", self.settings.path)
                self._ending.wait(_LONGEST_PAUSE)

    def _opened(self) -> float | None:
        """Open it; None: it is, else seconds until that is tried again."""
        try:
            self._open()
        except AbsentError as error:
            self._say(f"{error}; waiting for it", logging.WARNING)
            return _ABSENT
        except JournalModeError as error:
            self._say(str(error), logging.ERROR)
            return _LONGEST_PAUSE
        except Exception as error:  # noqa: BLE001 - whatever it is, it may be over at the next attempt
            if not self._ending.is_set():
                level = logging.WARNING if passes(error) else logging.ERROR
                self._say(str(error) or type(error).__name__, level)
            return min(self._pauses.next(), _LONGEST_PAUSE)
        self._pauses.reset()
        return None

    def _keep(self) -> None:
        """Let it be used until it has to be closed, and close it."""
        self.trouble = None
        self.open = True
        self.complete.set()
        self._changed()
        try:
            while not self._ending.wait(_LOOK):
                lost = self._lost()
                if lost is not None:
                    self._say(f"{lost}; opening it anew", logging.WARNING)
                    return
        finally:
            self.open = False
            self._changed()
            self._close()


class SourceMember(Member):
    """A primary: a database that an application writes."""

    def __init__(self, settings: DatabaseSettings, changed: Callable[[], None]) -> None:
        super().__init__(settings, changed)
        self._capture: Capture | None = None
        self.complete.set()

    @property
    def source(self) -> Source | None:
        """See `Member`."""
        return self._capture

    @property
    def pulled(self) -> tuple[PulledFrom, Rolling] | None:
        """See `Member`."""
        capture = self._capture
        return None if capture is None else (capture, capture)

    def look(self) -> None:
        """See `Member`."""
        capture = self._capture
        if capture is not None:
            capture.after_commit()

    @property
    def captured(self) -> CaptureState | None:
        """See `Member`."""
        capture = self._capture
        return None if capture is None else capture.stand()

    @property
    def failing(self) -> str | None:
        """See `Member`."""
        capture = self._capture
        return self.trouble or (None if capture is None else capture.fault)

    def _open(self) -> None:
        one = self.settings
        capture = Capture.open(
            one.path,
            roll_frames=one.roll_pages or ROLL_FRAMES,
            roll_bytes=one.roll_bytes,
            retain_bytes=one.retain_bytes,
            retain_seconds=one.retain_seconds,
        )
        _LOG.info("%s: a primary, named %s, at %s", one.path, one.name, capture.latest)
        self._capture = capture

    def _lost(self) -> str | None:
        capture = self._capture
        assert capture is not None
        return "the file was replaced or removed" if capture.displaced() else None

    def _close(self) -> None:
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.close()
