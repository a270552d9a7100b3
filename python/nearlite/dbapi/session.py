"""Session: what a connection changes, recorded as changesets (https://sqlite.org/sessionintro.html)."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from nearlite._native import session as native
from nearlite.errors import ProgrammingError

if TYPE_CHECKING:
    from nearlite.dbapi.whole import Whole

Self = TypeVar("Self", bound="Session")

_CLOSED: Final = "Cannot operate on a closed session."


class Session:
    """Records what a connection changes in tables that have a primary key. ``Connection.session`` makes it."""

    __slots__ = ("__weakref__", "_connection", "_recording")

    def __init__(self, connection: Whole, recording: native.Recording) -> None:
        self._connection = connection
        self._recording: native.Recording | None = recording

    def _checked(self) -> native.Recording:
        self._connection._check()
        if self._recording is None:
            raise ProgrammingError(_CLOSED)
        return self._recording

    def changeset(self) -> bytes:
        """What was recorded so far; it says what was there before, and can be undone."""
        recording = self._checked()
        with self._connection._guard():
            return recording.changes(patch=False)

    def patchset(self) -> bytes:
        """The same without what was there before: smaller, and applied with fewer conflicts."""
        recording = self._checked()
        with self._connection._guard():
            return recording.changes(patch=True)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was recorded."""
        recording = self._checked()
        with self._connection._guard():
            return recording.empty()

    @property
    def enabled(self) -> bool:
        """Whether changes are recorded now."""
        recording = self._checked()
        with self._connection._guard():
            return recording.enabled()

    @enabled.setter
    def enabled(self, on: bool) -> None:
        recording = self._checked()
        with self._connection._guard():
            recording.enabled(int(on))

    @property
    def indirect(self) -> bool:
        """Whether changes are recorded as those of a trigger would be."""
        recording = self._checked()
        with self._connection._guard():
            return recording.indirect()

    @indirect.setter
    def indirect(self, on: bool) -> None:
        recording = self._checked()
        with self._connection._guard():
            recording.indirect(int(on))

    def close(self) -> None:
        """End it. Idempotent."""
        self._connection._check()
        if self._recording is not None:
            with self._connection._guard():
                self._recording.close()
            self._recording = None

    def __enter__(self: Self) -> Self:
        self._checked()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> Literal[False]:
        self.close()
        return False
