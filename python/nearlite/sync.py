"""The pull protocol without I/O: answers in, actions out.

A :class:`Pull` is one ``sync()``. The shell (replica.py, threads and sockets) performs the action it
was given and reports what came of it; the pull answers with the next action until it says
:class:`Done` or raises. It targets the primary's position at the time its request is served: one
page set brings the replica there, so a busy primary cannot keep a sync running.

=============== ============================================================
action          what the shell does, and what it reports
=============== ============================================================
``Fetch``       one GET; then ``refused``, ``nothing_new`` or ``header``
``Apply``       the page set that follows the header goes through the applier; then ``applied``
                or, when another process was faster, ``moved``
``Seed``        the snapshot that follows goes into a new file; then ``seeded``
``Overlay``     the page set that follows goes over the snapshot; then ``overlaid``
``Compare``     compare every page of the snapshot with the primary's; then ``header``
``Done``        nothing
=============== ============================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from nearlite.errors import (
    AnswerError,
    DiskFullError,
    HistoryGoneError,
    LineageError,
    OfflineError,
    PrimaryRestoredError,
    StateMismatchError,
    SyncError,
    UnauthorizedError,
    UpstreamBehindError,
)
from nearlite.position import Position

if TYPE_CHECKING:
    from nearlite._native.compact import Standing
from nearlite._native.frames import SetHeader

# Another process feeding the same file can overtake us; each time costs one request.
_MAX_OVERTAKEN = 8
# A fuzzy snapshot is completed by `changes`; more rounds than this means that its pages never
# hash to the announced state: the answer is wrong, not late.
_MAX_OVERLAYS = 8


@dataclass(frozen=True, slots=True)
class Local:
    """What the shell knows of the replica file: position and state hash; its size, where compact sets
    may be told from it.
    """

    position: Position
    hash: int
    pages: int = 0
    page_size: int = 0

    @classmethod
    def of(cls, state: Standing) -> Local:
        """From what the applier says."""
        return cls(state.position, state.hash, state.pages, state.page_size)


@dataclass(frozen=True, slots=True)
class Fetch:
    """GET `path` (relative to the database's URL)."""

    path: str


@dataclass(frozen=True, slots=True)
class Apply:
    """Feed the page set to the applier, as one transaction."""

    header: SetHeader


@dataclass(frozen=True, slots=True)
class Seed:
    """Write the snapshot into a new file under a temporary name."""

    header: SetHeader


@dataclass(frozen=True, slots=True)
class Overlay:
    """Write the page set over the snapshot in the temporary file."""

    header: SetHeader


@dataclass(frozen=True, slots=True)
class Compare:
    """Ask the primary for what differs from the pages in the temporary file."""


@dataclass(frozen=True, slots=True)
class Done:
    """The replica stands at `position`, which was the primary's when it was asked."""

    position: Position


Action = Fetch | Apply | Seed | Overlay | Compare | Done


class Pull:
    """One pull from start to end.

    Args:
      local: where the replica stands; None when there is no file yet.
      compress: ask for zstd (worth it unless the primary is on this machine).
      wait: seconds the primary may wait for something new before it answers "nothing".
      compact: ask for sets that are told from what the replica has.
      beat: poll until that beat is over, and take an answer that others have got, too (beats.py);
        `wait` does not matter then.

    Attributes:
      seeding: there is no file yet.
    """

    def __init__(
        self,
        local: Local | None,
        *,
        compress: bool,
        wait: float = 0.0,
        compact: bool = False,
        beat: int | None = None,
    ) -> None:
        self._held = 0
        self._comparing = False
        self._local = local
        self._z = "1" if compress else "0"
        self._compact = compact
        self._until = f"&wait={wait:g}" if wait > 0 else ""
        if beat is not None:
            self._until = f"&beat={beat}"
        self._overtaken = 0
        self._overlays = 0
        self._target: Position | None = None
        self.seeding = local is None

    @property
    def stands(self) -> Local | None:
        """Where the replica stood at the latest request, if a compact set may answer it."""
        return self._local if self._compact and not self.seeding else None

    def start(self, held: int = 0) -> Action:
        """The first action.

        Args:
          held: pages that an earlier download has left in the temporary file.
        """
        if self._local is None:
            self._held = held
            more = f"&from={held + 1}" if held else ""
            return Fetch(f"nl/v1/snapshot?z={self._z}{more}")
        return self._changes(self._local)

    def _changes(self, since: Local) -> Fetch:
        version = "" if self.stands is None else "&v=2"
        return Fetch(
            f"nl/v1/changes/{since.position}?hash={since.hash:016x}&z={self._z}{version}{self._until}",
        )

    def refused(self, status: int, code: str, message: str) -> NoReturn:
        """The primary answered with an error; raise what it means for this replica."""
        raise refusal(status, code, message, self._local)

    def nothing_new(self, position: str) -> Action:
        """204: the replica stands where the primary stands.

        Args:
          position: that the answer is about, as text. A gateway that says 204 of its own knows none.
        """
        if self._local is None:
            raise AnswerError(
                "the primary answered a request for a snapshot with nothing",
                action="check that the URL is that of a nearlite primary",
            )
        if position != str(self._local.position):
            raise AnswerError(
                "an answer that says that nothing is new does not say since when",
                state=f"the replica stays at {self._local.position}",
                action="look at what lies between this replica and the primary",
            )
        return Done(self._local.position)

    def header(self, header: SetHeader) -> Action:
        """A page set begins; decide what it is for."""
        if self.seeding and self._local is None:
            if not header.snapshot:
                raise AnswerError("the primary answered a request for a snapshot with changes")
            if header.repair and not self._held:
                raise AnswerError("the primary answered a request for a snapshot with its end")
            self._comparing = header.repair
            self._target = header.target
            return Seed(header)
        assert self._local is not None
        if self._comparing and header.repair and not header.snapshot:
            self._comparing = False
            return Overlay(header)
        if header.snapshot or header.repair:
            raise AnswerError("the primary answered a request for changes with a snapshot")
        if header.start != self._local.position:
            raise AnswerError("the page set starts at another position than the one asked for")
        if header.target.lineage != self._local.position.lineage:
            raise AnswerError("the page set ends in another lineage than it starts in")
        if header.target < header.start:
            raise AnswerError("the page set leads backwards")
        self._target = header.target
        return Overlay(header) if self.seeding else Apply(header)

    def seeded(self, header: SetHeader, held: int) -> Action:
        """The snapshot is in the file; `held` is the state hash of the pages in it."""
        if header.repair:  # only the end of one: before it lies what an earlier download left
            self._local = Local(header.target, header.hash_target)
            return Compare()
        return self._complete(Local(header.target, header.hash_target), held)

    def overlaid(self, header: SetHeader, held: int) -> Action:
        """A page set lies over the snapshot; `held` as in :meth:`seeded`."""
        return self._complete(Local(header.target, header.hash_target), held)

    def _complete(self, at: Local, held: int) -> Action:
        """A fuzzy snapshot is complete when its pages hash to the state it is said to be."""
        self._local = at
        if held == at.hash:
            return Done(at.position)
        self._overlays += 1
        if self._overlays > _MAX_OVERLAYS:
            raise AnswerError(
                "the snapshot never became equal to the primary's state",
                state="no local file was created",
                action="try again",
            )
        return self._changes(at)

    def applied(self, local: Local) -> Action:
        """The applier committed; the replica stands at `local`."""
        self._local = local
        return Done(local.position)

    def unfounded(self) -> Action:
        """The replica's pages are not what a compact set was told from: ask for the pages themselves."""
        assert self._local is not None
        self._compact = False
        return self._changes(self._local)

    def moved(self, local: Local) -> Action:
        """Another process moved the replica meanwhile, to `local`; nothing was written."""
        self._local = local
        target = self._target
        if target is not None and target.precedes(local.position):
            return Done(local.position)
        self._overtaken += 1
        if self._overtaken > _MAX_OVERTAKEN:
            raise SyncError(
                "other processes keep moving this replica",
                state=f"the replica stands at {local.position}",
                action="nothing is wrong; call sync() again",
            )
        return self._changes(local)


REQUEST_SENT = "the request had been sent and may have been carried out"
"""State of whatever was asked when no answer, or none that can be read, has come."""
MAKE_ROOM = "make room on the primary's disk and try again; it goes on by itself"


def primary_is_full(text: str, code: int) -> DiskFullError:
    """What SQLITE_FULL of a statement on the primary means; `text` and `code` are SQLite's."""
    error = DiskFullError(
        f"on the primary: {text}",
        state="what failed was rolled back there, what was acknowledged before is kept",
        action=MAKE_ROOM,
    )
    error.sqlite_errorcode, error.sqlite_errorname = code, "SQLITE_FULL"
    return error


def state_of_request(status: int, code: str) -> str:
    """What became of SQL that was answered with an error status instead of results.

    Our server refuses before it runs anything, with three exceptions: an answer that came out too large,
    a failure of its own, and a request that it had got before. Of a gateway in between (502, 504) nothing is known, nor what it means by
    a success that is none of ours (204).
    """
    before = code in (
        "SHUTTING_DOWN",
        "DISK_FULL",
        "DATABASE_REPLACED",
        "UPSTREAM_UNREACHABLE",
        "UPSTREAM_REFUSED",
    )
    if (
        code in ("RESPONSE_TOO_LARGE", "REQUEST_REPEATED")
        or status < 400
        or (status >= 500 and not before)
    ):
        return REQUEST_SENT
    return "nothing was carried out"


def refusal(
    status: int, code: str, message: str, local: Local | None, *, state: str = ""
) -> SyncError:
    """The exception for an answer that is an error (docs/design.md lists the codes).

    Args:
      state: what became of the request, when it was more than a pull.
    """
    if not state:
        stays = f"the replica stays at {local.position}" if local is not None else ""
        state = stays or "no local file was created"
    error = _refusal(status, code, message, state)
    error.code = code
    return error


def _refusal(status: int, code: str, message: str, state: str) -> SyncError:
    where = f"HTTP {status} {code}" if code else f"HTTP {status}"
    text = f"the primary refused: {message} ({where})" if message else f"the answer was {where}"
    if status in (502, 503, 504) and not code:
        return OfflineError(
            f"the primary could not be reached: what stands before it answered {where}",
            state=state,
            action="try again",
        )
    if status == 401:
        return UnauthorizedError(text, state=state, action="check auth_token")
    if code == "LINEAGE_MISMATCH":
        return LineageError(
            text,
            state=state,
            action="this primary holds another database; check the URL, or move the local file "
            "away and connect again",
        )
    if code == "POSITION_AHEAD":
        return PrimaryRestoredError(
            text,
            state=state,
            action="the primary was restored from an older backup; save what you need from the "
            "local file, move it away and connect again",
            data_at_risk=True,
        )
    if code in ("HISTORY_GONE", "STATE_MISMATCH"):
        kind = HistoryGoneError if code == "HISTORY_GONE" else StateMismatchError
        return kind(
            text,
            state=state,
            action="move the local file away and connect again",
        )
    if code == "REQUEST_REPEATED":
        return SyncError(text, state=state, action="look whether it was, before you repeat it")
    if code == "DISK_FULL":
        return DiskFullError(text, state=state, action=MAKE_ROOM)
    if code in ("UPSTREAM_UNREACHABLE", "UPSTREAM_LOST"):
        return OfflineError(text, state=state, action="try again")
    if code == "UPSTREAM_BEHIND":
        return UpstreamBehindError(text, state=state, action="try again in a moment")
    return SyncError(text, state=state, action="see the primary's log" if status >= 500 else "")
