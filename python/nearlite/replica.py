"""One replica file in this process: create it, bring it up to date, forward writes for it.

Everything that many connections of a process share lives in one :class:`Replica`: the applier (the
only writer of the file here), the transport, what is known of the primary, and the background
thread. Connections read the file themselves.

Locks: ``_applying`` guards the applier and is never held while waiting for the network, except that
a page set larger than memory is applied as it arrives. Nothing here is held while user code runs.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nearlite import wire
from nearlite._native._lib import BusyError, FormatError, HashError
from nearlite._native._lib import DiskFullError as NativeDiskFullError
from nearlite._native.applier import Applier, Bootstrap, State
from nearlite._native.frames import Chunk, SetHeader
from nearlite.background import CHECKPOINT_FRAMES, Background
from nearlite.bootstrap import Folder
from nearlite.errors import (
    AnswerError,
    DiskFullError,
    Error,
    NotAReplicaError,
    OperationalError,
    SyncError,
)
from nearlite.http import Deadline, Response, Token, Transport
from nearlite.position import Position
from nearlite.sync import (
    Action,
    Apply,
    Done,
    Fetch,
    Local,
    Overlay,
    Pull,
    Seed,
    refusal,
    state_of_request,
)
from nearlite.upstream import Notes

_log = logging.getLogger("nearlite")

# A set of at most this many pages is collected and applied in one call; a larger one is applied
# chunk by chunk as it arrives, so that memory stays bounded.
_ONE_CALL_PAGES = 1024
# Rule B5: above this the applier waits, a little, for the readers of the old WAL to end.
_RESTART_BYTES = 32 << 20
_RESTART_WAIT = 0.2  # seconds; new readers are not disturbed, only this replica's lag grows
_SQLITE_FULL = 13
_SMALL_SET = 1 << 20  # bytes of a body that is read in one piece


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What one ``sync()`` did.

    Attributes:
      position: where the replica stands now.
      pages: pages received.
      bytes: bytes of answer bodies received.
      seconds: how long it took.
    """

    position: Position
    pages: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long download is.

    Attributes:
      pages: pages received; `total_pages`: pages the primary announced.
      bytes: bytes of body received.
      seconds: since it began.
    """

    pages: int
    total_pages: int
    bytes: int
    seconds: float


ProgressCallback = Callable[[Progress], None]


class Replica:
    """The shared side of all connections of this process to one replica file.

    Use :meth:`open`; construction does no I/O.
    """

    def __init__(
        self,
        path: str,
        url: str,
        *,
        token: Token = None,
        timeout: float = 30.0,
        progress: ProgressCallback | None = None,
        wal_limit: int = 64 << 20,
    ) -> None:
        self.path = path
        self.timeout = timeout
        self.transport = Transport(url, token=token, timeout=timeout)
        self.folder = Folder(path)
        self.wal_limit = wal_limit
        self._progress = progress
        self._applying = threading.Lock()
        self._applier: Applier | None = None
        self._keeper: Applier | None = None  # the background thread's, for checkpoints
        self._verified = False
        self.wal_bytes = 0
        #: newest position of the primary that an answer named
        self.primary_position: Position | None = None
        #: monotonic time of the last answer that left the replica equal to the primary
        self.equal_at: float | None = None
        self.last_error: Error | None = None
        self.background = Background(self)

    def __repr__(self) -> str:
        return f"<Replica {self.path} of {self.transport.url}>"

    # ------------------------------------------------------------------ opening

    def open(self, *, deadline: Deadline | None = None) -> None:
        """Open the file, creating it from the primary when it does not exist.

        Raises:
          NotAReplicaError: there is a file, and it is not a replica; it was not touched.
          OfflineError: there is no file and the primary cannot be reached.
        """
        created = not os.path.exists(self.path)
        try:
            if created:
                self._create(deadline)
            self._verified = created or self.folder.is_as_we_left_it()
            if self.folder.may_be_torn() and not self._survived():
                self._discard_and_create()
                self._verified = True
            self._applier = self._open_applier()
        except BaseException:
            self._applier = None
            self.transport.close()
            raise
        self.folder.make()
        self.folder.forget()
        if self.folder.is_unsynced():
            self.background.flush()

    def _open_applier(self) -> Applier:
        """Raises NotAReplicaError."""
        try:
            applier = Applier(self.path)
        except Error as error:
            raise _not_a_replica(self.path, error) from error
        try:
            applier.state()
        except Error as error:
            applier.close()
            raise _not_a_replica(self.path, error) from error
        return applier

    def _survived(self) -> bool:
        """Whether a file that was placed before it was synced outlived a restart of the system.

        What is left otherwise is most often a file of zero bytes, or one without its page 1.
        """
        try:
            applier = Applier(self.path)
            try:
                state, found = applier.full_hash()
            finally:
                applier.close()
        except BusyError:
            raise  # somebody works with it: nothing is known
        except Error:
            return False
        return found == state.hash

    def _discard_and_create(self) -> None:
        """The one case in which a file is replaced: ours, whose first bytes never reached the disk."""
        _log.warning(
            "%s: the system went down before the new replica was on the disk; creating it again",
            self.path,
        )
        self._create(None, torn=True)

    def _create(self, deadline: Deadline | None, *, torn: bool = False) -> None:
        """Create the file; `torn`: in place of the one there, unless another process has done so."""
        with self.folder.creating(self.timeout):
            if torn and self.folder.may_be_torn():
                for suffix in ("", "-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.path + suffix)
            if os.path.exists(self.path):
                return  # another process was faster
            _log.info("%s: creating the replica from %s", self.path, self.transport.url)
            deadline = deadline or Deadline(self.timeout, renewed=True)
            result = self._run(Pull(None, compress=not self.transport.loopback), deadline)
            _log.info(
                "%s: created at %s: %d pages, %d bytes received, %.3f s",
                self.path,
                result.position,
                result.pages,
                result.bytes,
                result.seconds,
            )

    # ------------------------------------------------------------------ state

    def state(self, *, wait: float | None = None) -> State:
        """Where the file stands, as every reader sees it.

        Args:
          wait: seconds to wait for another thread that applies; None: network_timeout.
        """
        if not self._applying.acquire(timeout=self.timeout if wait is None else wait):
            raise _is_applying()
        try:
            return self._live().state()
        finally:
            self._applying.release()

    def _live(self) -> Applier:
        if self._applier is None:
            raise SyncError("the replica is closed", state="", action="connect again")
        return self._applier

    @property
    def lag(self) -> float | None:
        """Seconds since the replica was last known to equal its primary: what reads return is not older.

        None before anything is known. Processes that do not sync themselves learn it from the one
        that does.
        """
        known = [self.folder.seconds_since_equal()]
        if self.equal_at is not None:
            known.append(time.monotonic() - self.equal_at)
        return min((seconds for seconds in known if seconds is not None), default=None)

    # ------------------------------------------------------------------ sync

    def sync(self, *, timeout: float | None = None, wait: float = 0.0) -> SyncResult:
        """Bring the replica to the position that the primary has when asked.

        Args:
          timeout: seconds for the whole call. None: as long as it takes, but the primary may not
            stand still for longer than the connection's network_timeout.
          wait: seconds the primary may wait for something new before it says that nothing is.

        Raises:
          SyncError: one of its subclasses; the replica is as it was.
        """
        seconds = self.timeout if timeout is None else timeout
        deadline = Deadline(seconds + wait, renewed=timeout is None)
        try:
            if not self._verified:
                self._verify()
            state = self.state(wait=_left(deadline))
            local = Local(state.position, state.hash)
            pull = Pull(local, compress=not self.transport.loopback, wait=wait)
            result = self._run(pull, deadline)
        except Error as error:
            self.last_error = error
            raise
        self.last_error = None
        self.equal_at = time.monotonic()
        return result

    def _verify(self) -> None:
        """Rule C1: a file that may be somebody's copy is hashed once before it is built upon."""
        with self._applying:
            state, found = self._live().full_hash()
        if found != state.hash:
            raise SyncError(
                f"{self.path} does not hold what its header says: it was copied without its -wal, "
                "or changed by something other than SQLite",
                state=f"its header says {state.position}; nothing was written",
                action="move the file away and connect again",
                data_at_risk=True,
            )
        self._verified = True

    def _run(self, pull: Pull, deadline: Deadline) -> SyncResult:
        """Perform a pull's actions until it is done."""
        started = time.monotonic()
        meter = _Meter(self._progress, started)
        seed = _Seed(self)
        response: Response | None = None
        reader: _SetReader | None = None
        try:
            action: Action = pull.start()
            while not isinstance(action, Done):
                if isinstance(action, Fetch):
                    if response is not None:
                        response.close()
                    response = self.transport.request("GET", action.path, deadline=deadline)
                    if response.status == 204:
                        response.read(0)
                        action = pull.nothing_new()
                    elif response.status == 200:
                        reader = _SetReader(response, meter)
                        action = pull.header(reader.header())
                    else:
                        _refuse(pull, response)
                else:
                    assert reader is not None
                    action = self._perform(pull, action, reader, seed, deadline)
            seed.place()
        except SyncError:
            raise
        except (Error, MemoryError) as error:
            what = f"{self.path} could not be created"
            raise _failure(what, error, "no local file was created") from error
        except OSError as error:  # of the file system: the transport has its own exception
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise (DiskFullError if full else SyncError)(
                f"{self.path} could not be created: {error.strerror}",
                state="no local file was created",
            ) from error
        except ValueError as error:  # a body beyond its bound
            raise AnswerError(f"the primary's answer was refused: {error}") from error
        finally:
            seed.close()
            if response is not None:
                response.close()
        self.primary_position = action.position
        return SyncResult(action.position, meter.pages, meter.bytes, time.monotonic() - started)

    def _perform(
        self, pull: Pull, action: Action, reader: _SetReader, seed: _Seed, deadline: Deadline
    ) -> Action:
        if isinstance(action, Apply):
            state = self._apply(action.header, reader, deadline)
            if state is None:
                now = self.state()
                return pull.moved(Local(now.position, now.hash))
            return pull.applied(Local(state.position, state.hash))
        assert isinstance(action, (Seed, Overlay))
        held = seed.write(action.header, reader)
        if isinstance(action, Seed):
            return pull.seeded(action.header, held)
        return pull.overlaid(action.header, held)

    # ------------------------------------------------------------------ applying

    def _apply(self, header: SetHeader, reader: _SetReader, deadline: Deadline) -> State | None:
        """Apply the set that `reader` is about to deliver; None when the replica has moved."""
        small = header.count <= _ONE_CALL_PAGES
        chunks = list(reader.chunks()) if small else []
        if not self._applying.acquire(timeout=_left(deadline)):
            raise _is_applying()
        try:
            applier = self._live()
            if small:
                state = applier.apply(header, chunks, wait=_left(deadline))
            else:
                state = _apply_streamed(applier, header, reader, _left(deadline))
        except SyncError:
            raise
        except (Error, MemoryError) as error:
            raise _apply_failed(self.path, error) from error
        finally:
            self._applying.release()
            for chunk in chunks:
                chunk.close()
        if state is not None:
            self.wal_bytes = state.wal_frames * (state.page_size + 24)
            if state.wal_frames >= CHECKPOINT_FRAMES:
                self.background.checkpoint()
        return state

    # ------------------------------------------------------------------ forwarding

    def forward(
        self,
        body: bytes,
        *,
        visible: bool,
        deadline: Deadline | None = None,
        notes: Notes | None = None,
    ) -> bytes:
        """Send a Hrana pipeline to the primary; apply what it wrote before returning.

        Args:
          body: the pipeline request, JSON.
          visible: bring the replica to the state after the request (read-your-writes).
          notes: what travels beside it.

        Returns:
          the pipeline's answer, JSON.

        Raises:
          OfflineError: no answer; its `state` says whether the write may have been carried out.
          SyncError: the request was carried out, but its result could not be applied here.
        """
        if visible and not self._verified:
            self._verify()
        deadline = deadline or Deadline(self.timeout, renewed=True)
        headers = {"Content-Type": "application/json"}
        if notes is not None:
            headers.update(notes.headers())
        path = "nl/v1/sql" if visible else "v3/pipeline"  # the latter's answer has no page set
        state: State | None = None
        if visible:
            state = self.state(wait=_left(deadline))
            headers["Nearlite-Position"] = str(state.position)
            headers["Nearlite-Hash"] = f"{state.hash:016x}"
        with self.transport.request(
            "POST", path, body=body, headers=headers, deadline=deadline, repeatable=False
        ) as response:
            if response.status != 200:
                code, message = wire.decode_error(response.error_body())
                local = None if state is None else Local(state.position, state.hash)
                raise refusal(
                    response.status,
                    code,
                    message,
                    local,
                    state=state_of_request(response.status, code),
                )
            if notes is not None:
                notes.answered(response.header("nearlite-counters"))
            if response.header("content-type") != wire.ANSWER_TYPE:
                return response.read(wire.MAX_JSON)
            return self._take_answer(response, state, deadline)

    def _take_answer(self, response: Response, state: State | None, deadline: Deadline) -> bytes:
        """u32 length, JSON, page set or nothing."""
        position = response.header("nearlite-position")
        reader = _SetReader(response, _Meter(None, 0.0))
        try:
            size = int.from_bytes(_exactly(response, 4), "big")
            if size > wire.MAX_JSON:
                raise AnswerError(f"the primary announced {size} bytes of JSON")
            answer = _exactly(response, size)
            if reader.at_end():
                moved = state is not None and position not in ("", str(state.position))
                if moved and response.header("nearlite-autocommit") != "0":
                    self.sync(timeout=_left(deadline))
                return bytes(answer)
            header = reader.header()
            applied = self._apply(header, reader, deadline)
            if applied is None and not header.target.precedes(self.state().position):
                self.sync(timeout=_left(deadline))
        except SyncError as error:
            error.state = f"the request was carried out on the primary; {error.state}"
            raise
        self.primary_position = header.target
        self.equal_at = time.monotonic()
        return bytes(answer)

    # ------------------------------------------------------------------ upkeep and end

    def checkpoint(self) -> None:
        """Keep the replica's WAL short (rule B5). Only the background thread calls it.

        On a connection of its own: a checkpoint runs beside an apply and must not hold it up.
        """
        if self._keeper is None:
            self._keeper = Applier(self.path)
        frame_size = self._keeper.state().page_size + 24
        frames, moved = self._keeper.checkpoint("passive", wait=0.0)
        self.wal_bytes = 0 if frames == moved else frames * frame_size
        if frames * frame_size > _RESTART_BYTES:
            with contextlib.suppress(OperationalError):
                self._keeper.checkpoint("restart", wait=_RESTART_WAIT)
        if self.wal_bytes > self.wal_limit:
            _log.warning(
                "%s: the WAL has %d MiB because a reader keeps an old snapshot open; end that "
                "read transaction to let it shrink. No data is at risk",
                self.path,
                self.wal_bytes >> 20,
            )

    def close(self) -> None:
        """Close the applier (checkpointing when it is the last user) and the connections."""
        if self.background.is_current():
            # A garbage collection on our own thread found the last connection: in its own time.
            threading.Thread(target=self.close, name="nearlite-close", daemon=True).start()
            return
        stopped = self.background.stop()
        with self._applying:
            if stopped and self._keeper is not None:
                self._keeper.close()
            applier, self._applier = self._applier, None
            if applier is not None:
                applier.close()
                if self._verified:
                    self.folder.remember()
        self.transport.close()


def _is_applying() -> SyncError:
    return SyncError(
        "another thread of this process has been applying a large change all the time",
        state="nothing was changed by this call",
        action="try again",
    )


def _left(deadline: Deadline) -> float:
    """Seconds until it. Raises SyncError when it has passed."""
    try:
        return deadline.left()
    except TimeoutError as error:
        raise SyncError(
            f"the answer came too late to be applied: {error}",
            state="the replica is as it was before",
            action="call sync() again",
        ) from None


def _apply_streamed(
    applier: Applier, header: SetHeader, reader: _SetReader, wait: float
) -> State | None:
    if not applier.begin(header, wait=wait):
        return None
    try:
        for chunk in reader.chunks():
            with chunk:
                applier.chunk(chunk)
        return applier.commit()
    except BaseException:
        applier.rollback()
        raise


class _Seed:
    """The temporary file of a bootstrap, if there is one."""

    def __init__(self, replica: Replica) -> None:
        self._folder = replica.folder
        self._file: Bootstrap | None = None
        self._last: SetHeader | None = None

    def write(self, header: SetHeader, reader: _SetReader) -> int:
        """Write a snapshot or lay changes over it; answers the state hash of what is there."""
        if self._file is None:
            self._file = Bootstrap(str(self._folder.part), header.page_size)
        for chunk in reader.chunks():
            with chunk:
                self._file.chunk(chunk)
        self._last = header
        return self._file.hash(header.pages)

    def place(self) -> None:
        """Make it the replica; nothing when there was no bootstrap."""
        if self._file is None or self._last is None:
            return
        self._file.finish(self._last)
        self._file.close()
        self._folder.place()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            with contextlib.suppress(FileNotFoundError):
                self._folder.part.unlink()


class _Meter:
    """Counts what arrives and tells the user's callback, at most ten times a second."""

    def __init__(self, progress: ProgressCallback | None, started: float) -> None:
        self.pages = 0
        self.bytes = 0
        self.total = 0
        self._progress = progress
        self._started = started
        self._next = 0.0

    def chunk(self, pages: int) -> None:
        self.pages += pages
        if self._progress is None:
            return
        now = time.monotonic()
        if now >= self._next or self.pages == self.total:
            self._next = now + 0.1
            self._progress(Progress(self.pages, self.total, self.bytes, now - self._started))


class _SetReader:
    """A page set out of a response: header first, then verified chunks."""

    def __init__(self, response: Response, meter: _Meter) -> None:
        self._response = response
        self._meter = meter
        self._events = self._read()
        self._first: wire.Event | None = None

    def _read(self) -> Iterator[wire.Event]:
        reader = wire.PageSetReader()
        while not reader.ended:
            # A small set in one piece; a large one by its chunks, each used where it lies.
            left = self._response.length
            whole = left is not None and left <= _SMALL_SET
            buffer = memoryview(bytearray(left if whole and left else reader.needed()))
            have = 0
            while have < len(buffer):
                count = self._response.readinto(buffer[have:])
                if count == 0:
                    reader.close()  # raises AnswerError: truncated
                    return
                have += count
                self._meter.bytes += count
            yield from reader.receive(buffer)
        if reader.rest or self._response.readinto(memoryview(bytearray(1))) != 0:
            raise AnswerError("the primary sent more than one page set")

    def at_end(self) -> bool:
        """Whether there is no page set at all."""
        return self._response.length == 0

    def header(self) -> SetHeader:
        """Raises AnswerError when what arrives is not a page set."""
        event = next(self._events)
        assert isinstance(event, wire.Header)
        self._meter.total = max(self._meter.total, self._meter.pages + event.header.count)
        return event.header

    def chunks(self) -> Iterator[Chunk]:
        """The verified chunks; the caller closes each."""
        for event in self._events:
            if isinstance(event, wire.Chunk):
                self._meter.chunk(event.chunk.count)
                yield event.chunk


def _exactly(response: Response, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    have = 0
    while have < size:
        count = response.readinto(view[have:])
        if count == 0:
            raise AnswerError("the primary's answer was cut off")
        have += count
    return data


def _refuse(pull: Pull, response: Response) -> None:
    code, message = wire.decode_error(response.error_body())
    pull.refused(response.status, code, message)


def _not_a_replica(path: str, error: Exception) -> NotAReplicaError:
    return NotAReplicaError(
        f"{path} is not a nearlite replica: {error}",
        state="the file was not touched",
        action="choose another path, or move the file away to let a replica be created there",
    )


def _apply_failed(path: str, error: Error | MemoryError) -> SyncError:
    """What an applier's failure means. Everything was rolled back in each case."""
    return _failure(
        f"the page set could not be applied to {path}", error, "the replica is as it was"
    )


def _failure(what: str, error: Error | MemoryError, state: str) -> SyncError:
    """The exception of our tree for a failure below it."""
    kind, action = SyncError, ""
    full = getattr(error, "sqlite_errorcode", 0) & 0xFF == _SQLITE_FULL
    if isinstance(error, (HashError, FormatError)):
        kind, action = AnswerError, "try again; if it fails again, run `nearlite verify`"
    elif full or isinstance(error, NativeDiskFullError):
        kind, action = DiskFullError, "make room on the disk and try again"
    failure = kind(f"{what}: {error}", state=state, action=action)
    for name in ("sqlite_errorcode", "sqlite_errorname"):
        if hasattr(error, name):
            setattr(failure, name, getattr(error, name))
    return failure
