"""How old a read may be: positions that are waited for, and the freshness of a connection.

A file never goes back: once it has reached a position, every later read has at least that. Therefore a
position is waited for once, before the read, and the read itself is what it always was.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Final, Literal, Protocol

from nearlite.errors import (
    LineageError,
    OfflineError,
    ProgrammingError,
    StaleReadError,
    SyncError,
    WaitTimeoutError,
)
from nearlite.position import Position

Freshness = Literal["local", "primary"] | float

_PATIENCE: Final = 0.05
"""Seconds in which what somebody follows is expected here; then a sync of one's own asks for it."""
_FIRST_LOOK, _LONGEST_LOOK = 0.0005, 0.01
"""Seconds between two looks at what another process may have brought."""
_A_MOMENT: Final = 0.1
"""Seconds that a look may take in any case."""
_RETRY: Final = 0.1
"""Seconds after which a primary that could not be reached is asked again."""
_LONG_POLL: Final = 10.0


class Reached:
    """How far this process has brought the file, for threads that wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._position: Position | None = None

    def note(self, position: Position) -> None:
        """It stands there now."""
        with self._changed:
            self._position = position
            self._changed.notify_all()

    def includes(self, position: Position) -> bool:
        """Whether it is known, without a look at the file, to be at or beyond `position`."""
        return self._position is not None and position.precedes(self._position)

    def wait(self, position: Position, seconds: float) -> None:
        """Return when that is so, and after so many seconds in any case."""
        with self._changed:
            self._changed.wait_for(lambda: self.includes(position), seconds)


class Reading(Protocol):
    """What is waited for: a Replica."""

    path: str
    timeout: float

    @property
    def reached(self) -> Reached:
        """How far this process has brought the file."""

    @property
    def lag(self) -> float | None:
        """Seconds since it was known to equal its primary."""

    def position(self, *, wait: float) -> Position:
        """Where the file stands, whichever process brought it there; `wait`: for a thread that applies."""

    def is_followed(self) -> bool:
        """Whether this process or another one brings changes as they happen, as far as is known."""

    def sync(
        self,
        *,
        timeout: float | None = None,
        wait: float = 0.0,
        network_timeout: float | None = None,
    ) -> object:
        """One pull."""


def wait_for(replica: Reading, position: Position, seconds: float) -> None:
    """Return when the file is at or beyond `position`.

    What this process or another one follows with is given a moment to bring it; then it is asked for.

    Raises:
      LineageError: the position is of another database history.
      WaitTimeoutError: it did not come within `seconds`.
      SyncError: the primary refused.
    """
    if replica.reached.includes(position):
        return
    end = time.monotonic() + seconds
    if replica.is_followed() and _comes(replica, position, _PATIENCE, end):
        return
    cause: OfflineError | None = None
    wait = 0.0
    while not _is_there(replica, position, end):
        left = end - time.monotonic()
        if left <= 0:
            raise _not_in_time(replica, position, seconds) from cause
        try:
            # Whoever wrote has its position from a primary: the first answer brings it, unless the one
            # that is asked is behind that itself.
            wait = min(wait, _LONG_POLL, left / 2)
            replica.sync(timeout=left - wait, wait=wait)
            cause = None
        except OfflineError as error:
            cause = error
            _comes(replica, position, _RETRY, end)
        wait = _LONG_POLL


def _is_there(replica: Reading, position: Position, end: float) -> bool:
    # Another thread may just be applying, perhaps what is waited for.
    here = replica.position(wait=max(_A_MOMENT, end - time.monotonic()))
    if here.lineage != position.lineage:
        raise of_another(replica.path, position, here)
    return position.precedes(here)


def of_another(path: str, position: Position, here: Position) -> LineageError:
    """The error for a position that is waited for in vain; `here`: where the replica stands."""
    return LineageError(
        f"{position} is a position of another database than the one {path} is a replica of",
        state=f"the replica stands at {here}",
        action="use the position with a replica of the primary that gave it",
    )


def _comes(replica: Reading, position: Position, seconds: float, end: float) -> bool:
    """Whether it is brought within so many seconds and before `end`, by whatever process."""
    nap = _FIRST_LOOK
    until = min(end, time.monotonic() + seconds)
    while not _is_there(replica, position, end):
        left = until - time.monotonic()
        if left <= 0:
            return False
        replica.reached.wait(position, min(nap, left))
        nap = min(2 * nap, _LONGEST_LOOK)
    return True


def _not_in_time(replica: Reading, position: Position, seconds: float) -> WaitTimeoutError:
    return WaitTimeoutError(
        f"{position} did not arrive within {seconds:g} seconds",
        state=f"the replica stands at {replica.position(wait=1.0)}",
        action="reads of the local file go on with what is there; wait again",
    )


# ---------------------------------------------------------------- freshness


def checked(freshness: object) -> Freshness:
    """What `freshness=` may be. Raises ProgrammingError."""
    if freshness in ("local", "primary"):
        return freshness
    if isinstance(freshness, (int, float)) and not isinstance(freshness, bool):
        seconds = float(freshness)
        if seconds >= 0 and math.isfinite(seconds):
            return seconds
    raise ProgrammingError(
        f"freshness is 'local', 'primary' or a number of seconds, not {freshness!r}"
    )


def freshen(replica: Reading, freshness: Freshness, network_timeout: float) -> None:
    """Bring the file to what a read with this freshness may see.

    Raises:
      StaleReadError: it is older, and the primary could not be asked.
    """
    if freshness == "local":
        return
    if freshness != "primary":
        lag = replica.lag
        if lag is not None and lag <= freshness:
            return
    try:
        replica.sync(network_timeout=network_timeout)
    except SyncError as error:
        raise StaleReadError(
            f"the read asks for data {_wanted(freshness)}, and the primary could not be asked: "
            f"{error.message}",
            state=_age(replica.lag),
            action="set freshness to 'local' to read what is here",
        ) from error


def _wanted(freshness: Freshness) -> str:
    if freshness == "primary":
        return "as it is on the primary now"
    return f"not older than {freshness:g} seconds"


def _age(lag: float | None) -> str:
    if lag is None:
        return "nothing was read; how old the local file is, is not known"
    return f"nothing was read; the local file equalled the primary {lag:.1f} seconds ago"
