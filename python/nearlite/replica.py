"""One replica file in this process: create it, bring it up to date, forward writes for it.

Everything that many connections of a process share lives in one :class:`Replica`: the applier (the
only writer of the file here), the transport, what is known of the primary, and the background
thread. Connections read the file themselves.

Locks: ``_applying`` guards the applier; neither it nor the write lock of the file is held while the
network is waited for, or while user code runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from nearlite import wire
from nearlite._native._lib import HashError, NotReplicaError, SealBrokenError
from nearlite._native.applier import Applier, Hashes, State
from nearlite._native.frames import SetHeader
from nearlite._native.sealing import Key, tell_reports
from nearlite.ahead import ask_status
from nearlite.applying import apply_arrived
from nearlite.arriving import Arrived
from nearlite.background import CHECKPOINT_FRAMES, Background
from nearlite.checking import FullCheck, survived
from nearlite.errors import (
    AnswerError,
    DamagedError,
    Error,
    HistoryGoneError,
    OfflineError,
    StateMismatchError,
    SyncError,
    WrongKeyError,
)
from nearlite.failing import (
    READS_GO_ON,
    START_OVER,
    UnfoundedError,
    apply_failed,
    beyond_repair,
    is_applying,
    is_damage,
    is_lost,
    left,
    not_a_replica,
    not_created,
    not_kept,
    not_opened,
    unreadable,
)
from nearlite.guard import FileId, file_id, guard
from nearlite.http import Deadline, Response, Token, Transport
from nearlite.network import DEFAULT, Network
from nearlite.observed import Observed
from nearlite.pulling import SyncResult, perform
from nearlite.receiving import Meter, ProgressCallback, SetReader, exactly, json_of
from nearlite.repair import Repair, prepare_to_adopt
from nearlite.sync import (
    Local,
    Pull,
    refusal,
    state_of_request,
)
from nearlite.upkeep import WAL_LIMIT, Upkeep
from nearlite.upstream import Notes

_log = logging.getLogger("nearlite")

_LATE: Final = 5.0
"""Seconds that a look at the primary may take, or be late, before it is taken to hang."""


class Replica(Observed):
    """The shared side of all connections of this process to one replica file.

    Args:
      path: of the file.
      url: of the primary.
      token: bearer token, or a callable that answers one.
      timeout: network_timeout of what nobody calls: opening, and syncs in the background.
      progress: told of long downloads of those.
      wal_limit: bytes of WAL from which the log says who is in the way.
      network: how the primary is reached.
      adopt: make a file a replica that is none.
      key: the file is sealed, and created so.

    Use :meth:`open`; construction does no I/O. Connections that share it have settings of their own,
    and give them with each call.
    """

    def __init__(
        self,
        path: str,
        url: str,
        *,
        token: Token = None,
        timeout: float = 30.0,
        progress: ProgressCallback | None = None,
        wal_limit: int = WAL_LIMIT,
        network: Network = DEFAULT,
        adopt: bool = False,
        key: Key | None = None,
    ) -> None:
        super().__init__(path, timeout, key)
        self._adopt = adopt
        self.transport = Transport(url, token=token, timeout=timeout, network=network)
        self._progress = progress
        # It knows its owner: a signal's exception (Ctrl-C) may come just when it has been acquired, and
        # whoever leaves gives back what he has, without having to know whether he has it.
        self._applying = threading.RLock()
        self._applier: Applier | None = None
        self._file: FileId | None = None  # which one is open
        self._unwatch: Callable[[], object] = _nothing
        self._known: Hashes | None = None  # of the file just created, until the applier has them
        self._upkeep = Upkeep(path, wal_limit, key)
        self._check = FullCheck(path, key)
        self._compact = True  # page sets may be told from the pages of this file
        self._serving: Callable[[], object] = _nothing  # told of what was applied
        self._served = False
        self._keep_short = self._upkeep.checkpoint
        self.commit_ms = 0
        """Milliseconds since 1970, by the primary's clock, of the newest commit in the last page set; 0: none came."""
        self.background = Background(self)

    def __repr__(self) -> str:
        return f"<Replica {self.path} of {self.transport.url}>"

    # ------------------------------------------------------------------ opening

    def open(self, *, deadline: Deadline | None = None) -> None:
        """Open the file, creating it from the primary when it does not exist.

        Raises:
          NotAReplicaError: there is a file, and it is not a replica; it was not touched.
          SyncError: this process may not write it.
          OfflineError: there is no file and the primary cannot be reached.
        """
        created = not os.path.exists(self.path)
        try:
            if created:
                self._create(deadline)
            self._check.passed = created or self.folder.is_as_we_left_it()
            if self.folder.may_be_torn() and not survived(self.path, self.key):
                self._discard_and_create()
                self._check.passed = True
            self._applier = self._open_applier()
            known, self._known = self._known, None
            if known is not None:
                self._applier.adopt(known)
            self._file = file_id(self.path)
            self.folder.make()
            self._unwatch = guard.watch(self, self.path)
        except BaseException:
            applier, self._applier = self._applier, None
            if applier is not None:
                applier.close()
            self.transport.close()
            raise
        self.folder.forget()
        if self.folder.is_unsynced():
            self.background.flush()

    def _open_applier(self) -> Applier:
        """Raises NotAReplicaError, or SyncError when this process may not write it."""
        try:
            applier = Applier(self.path, key=self.key)
        except WrongKeyError:
            raise
        except Error as error:
            raise not_opened(self.path, error) from error
        try:
            self._recognise(applier)
            tell_reports()
        except BaseException:
            applier.close()
            raise
        return applier

    def _recognise(self, applier: Applier) -> None:
        """Whether it is a replica: one that SQLite finds damaged is repaired before anybody reads it."""
        try:
            applier.state()
            return
        except NotReplicaError as error:
            if not self._adopt:
                raise not_a_replica(self.path, error) from error
            why = "it was adopted"
            prepare_to_adopt(self.path, self.key)
        except Error as error:
            try:
                applier.claim()
            except SealBrokenError as broken:
                raise beyond_repair(broken) from broken
            except Error:
                raise not_opened(self.path, error) from error
            why = str(error)
        self.repair(why, adopt=self._adopt)

    def _discard_and_create(self) -> None:
        """The one case in which a file is replaced: ours, whose first bytes never reached the disk."""
        _log.warning(
            "%s: the system went down before the new replica was on the disk; creating it again",
            self.path,
        )
        self._create(None, torn=True)

    def _create(self, deadline: Deadline | None, *, torn: bool = False) -> None:
        """Create the file; `torn`: in place of the one there, unless another process has done so."""
        try:
            self._create_alone(deadline, torn=torn)
        except SyncError:
            raise
        except OSError as error:  # no such folder, or none of ours
            raise not_created(self.path, error) from error

    def _create_alone(self, deadline: Deadline | None, *, torn: bool) -> None:
        with self.folder.creating(self.timeout):
            if torn and self.folder.may_be_torn():
                for suffix in ("", "-wal", "-nlwal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.path + suffix)
            if os.path.exists(self.path):
                return  # another process was faster
            _log.info("%s: creating the replica from %s", self.path, self.transport.url)
            deadline = deadline or Deadline(self.timeout, renewed=True)
            try:
                result, _ = self._run(Pull(None, compress=not self.transport.loopback), deadline)
            except OfflineError as error:
                error.state = "no local file was created"
                raise
            _log.info(
                "%s: created at %s: %d pages, %d bytes received, %.3f s",
                self.path,
                result.position,
                result.pages,
                result.bytes,
                result.seconds,
            )

    @property
    def foreign(self) -> bool:
        """Whether the primary is known not to be nearlite."""
        return False

    def keep_up(self, interval: float | str | None) -> None:
        """Sync in the background: "live", every so many seconds, or not at all."""
        self.background.at(interval)

    def serve(self, *, applied: Callable[[], object], checkpoint: Callable[[], int]) -> None:
        """Other replicas are served from this file, by what needs its WAL.

        Args:
          applied: called after everything that was applied here, on the thread that did; must not raise.
          checkpoint: keeps the WAL short instead of this replica's upkeep; answers its bytes.
        """
        self.ahead.counts = {}
        self._served = True  # which has its WAL emptied when that is due by its own count
        self._serving = applied
        self._keep_short = checkpoint

    # ------------------------------------------------------------------ state

    def state(self, *, wait: float | None = None) -> State:
        """Where the file stands, as every reader sees it.

        Args:
          wait: seconds to wait for another thread that applies; None: `timeout` of the construction.

        Raises:
          DamagedError: it cannot be read any more: something else has written over its header, or cut it off.
        """
        try:
            if not self._applying.acquire(timeout=self.timeout if wait is None else wait):
                raise is_applying()
            return self._live().state()
        except Error as error:
            if is_damage(error):
                raise unreadable(self.path, error) from error
            raise
        finally:
            _give_back(self._applying)

    def _live(self) -> Applier:
        if self._applier is None:
            raise SyncError("the replica is closed", state="", action="connect again")
        self.check_place()
        return self._applier

    def check_place(self) -> None:
        """Raises SyncError when its path names another file by now, or none: nobody would find the changes."""
        if file_id(self.path) != self._file:
            raise SyncError(
                f"{self.path} was removed or replaced while this process had it open",
                state="what is open here goes on reading the old file; nothing was written",
                action="close all its connections in this process, then connect again",
            )

    def ask(self, *, network_timeout: float | None = None) -> None:
        """Hear from the primary how far it is ahead; nothing is brought.

        Raises:
          SyncError: one of its subclasses.
        """
        patience = self.timeout if network_timeout is None else network_timeout
        deadline = Deadline(patience)
        here = self.position(wait=left(deadline))
        status, _ = ask_status(self.transport, deadline, here)
        self.ahead.status(here, status, time.monotonic())
        self.primary_position = status.position

    # ------------------------------------------------------------------ sync

    @property
    def compact(self) -> bool:
        """Page sets may be told from the pages of this file."""
        return self._compact

    def stands_at(self, deadline: Deadline) -> Local:
        """Where it stands, once the file is known to be what it says."""
        return Local.of(self._standing_now(deadline))

    def _standing_now(self, deadline: Deadline) -> State:
        """Raises DamagedError."""
        if not self._check.passed:
            self._check.wait(deadline)
        return self.state(wait=left(deadline))

    def sync(
        self,
        *,
        timeout: float | None = None,
        wait: float = 0.0,
        network_timeout: float | None = None,
        progress: ProgressCallback | None = None,
        repair: bool = False,
    ) -> SyncResult:
        """Bring the replica to the position that the primary has when asked.

        What cannot be done by changes is done by repair: the primary does not know any more what has
        changed, or the file is not what its header says.

        Args:
          timeout: seconds for the whole call. None: as long as it takes, but the primary may not
            stand still for longer than network_timeout.
          wait: seconds the primary may wait for something new before it says that nothing is.
          network_timeout: of the connection that asks; None: the one given at construction.
          progress: of the connection that asks; likewise.
          repair: compare every page, whatever the header says, and overwrite what differs even where
            the replica holds a history that the primary does not.

        Raises:
          LineageError, PrimaryRestoredError: it does, and `repair` is not set.
          SyncError: one of its other subclasses; the replica is as it was.
        """
        patience = self.timeout if network_timeout is None else network_timeout
        seconds = patience if timeout is None else timeout
        deadline = Deadline(seconds + wait, renewed=timeout is None)
        try:
            if repair:
                began = time.monotonic()
                result = self.repair("it was asked for", deadline, progress, claim=False)
                answered = began
            else:
                result, answered = self._pull(deadline, wait, progress)
        except Error as error:
            if isinstance(error, OfflineError):
                error.state, error.action = "the replica is as it was", READS_GO_ON
            self.last_error = error
            raise
        self.last_error = None
        self.heard_at = time.monotonic()
        self._equalled(answered)
        self.tally.answered()
        self.tally.synced(result.seconds)
        return result

    def _equalled(self, at: float) -> None:
        super()._equalled(at)
        self._check.scrub_if_due(at)

    def _pull(
        self, deadline: Deadline, wait: float, progress: ProgressCallback | None
    ) -> tuple[SyncResult, float]:
        """One page set; a repair where that is not possible."""
        try:
            pull = Pull(
                self.stands_at(deadline),
                compress=not self.transport.loopback,
                wait=wait,
                compact=self._compact,
            )
            try:
                return self._run(pull, deadline, progress)
            except AnswerError as error:
                if not isinstance(error.__cause__, HashError):
                    raise
                # The answer is wrong, or what it was laid over is: then the check says so.
                self._check.again()
                self._check.wait(deadline)
                raise
        except (HistoryGoneError, StateMismatchError, DamagedError) as error:
            deadline.restart()
            began = time.monotonic()
            return self._repair_because(error, deadline, progress), began

    def _repair_because(
        self, error: SyncError, deadline: Deadline, progress: ProgressCallback | None = None
    ) -> SyncResult:
        try:
            return self.repair(error.message, deadline, progress)
        except SyncError as failure:
            failure.message = f"{error.message}; it could not be repaired: {failure.message}"
            failure.data_at_risk |= error.data_at_risk
            if is_lost(failure.__cause__):
                failure.action = START_OVER
            raise failure from error

    def repair(
        self,
        why: str,
        deadline: Deadline | None = None,
        progress: ProgressCallback | None = None,
        *,
        claim: bool = True,
        adopt: bool = False,
    ) -> SyncResult:
        """Make every page what the primary has, as one transaction; see :class:`Repair`.

        Args:
          why: one phrase for the log.
          deadline: of all of it; None: the primary may not stand still for longer than `timeout`.
          progress: told of a long one.
          claim: a replica that holds a history which the primary does not is refused.
          adopt: a file that is no replica becomes one.
        """
        deadline = deadline or Deadline(self.timeout, renewed=True)
        started = time.monotonic()
        meter = Meter(progress or self._progress, started)
        job = self._repair_of(deadline, adopt=adopt, claim=claim)
        state = job.run(deadline, meter, why)
        self._check.passed = self._compact = True
        self._applied(state)
        if self.listeners.any:
            self.listeners.repaired(state.position)
        self.primary_position = state.position
        seconds = time.monotonic() - started
        return SyncResult(state.position, meter.pages, meter.bytes, seconds, repaired=True)

    def _repair_of(self, deadline: Deadline, *, adopt: bool, claim: bool) -> Repair:  # noqa: ARG002 - for others
        """What makes the file what the primary has."""
        return Repair(
            self.path, self.transport, self.folder, adopt=adopt, claim=claim, key=self.key
        )

    def _run(
        self, pull: Pull, deadline: Deadline, progress: ProgressCallback | None = None
    ) -> tuple[SyncResult, float]:
        """What a pull did, and the monotonic time at which the primary stood there."""
        outcome = perform(pull, self, deadline, progress or self._progress)
        self._known = outcome.hashes
        self.primary_position = outcome.result.position
        return outcome.result, outcome.at

    def suspect(self) -> None:
        """The file may not be what its header says: a sync looks at all of it, soon."""
        self._check.again()
        self.background.sync()

    def doubt(self, error: Error) -> None:
        """What a set was told from is not what it should be: it is asked for again, as whole pages.

        From now on all are, until a repair: those that come mend what they are about. The next sync looks at all
        the others.
        """
        self._compact = False
        self._check.again()
        _log.warning("%s", error)

    # ------------------------------------------------------------------ applying

    def receive(self, header: SetHeader, reader: SetReader) -> Arrived:
        """Receive a set to its end; nothing is locked meanwhile. The caller closes it."""
        try:
            arrived = Arrived.receive(header, reader, self.folder.path, sealed=self.key is not None)
        except OSError as error:
            raise not_kept(self.path, error) from error
        self.tally.received(header.count, header.page_size, reader.received)
        return arrived

    def take(
        self,
        header: SetHeader,
        reader: SetReader,
        deadline: Deadline,
        *,
        announce: bool = True,
    ) -> State | None:
        """Receive a set, then apply it; None when the replica has moved and nothing was written."""
        with contextlib.closing(self.receive(header, reader)) as arrived:
            return self.apply(arrived, deadline, announce=announce)

    def apply(self, arrived: Arrived, deadline: Deadline, *, announce: bool = True) -> State | None:
        """Apply a set; None when the replica does not stand at its start, and nothing was written.

        `announce`: to those who are served from here; otherwise the caller calls `announce` soon.
        """
        try:
            if not self._applying.acquire(timeout=left(deadline)):
                raise is_applying()
            state = apply_arrived(self._live(), self.path, arrived, deadline)
        except SyncError:
            raise
        except (Error, MemoryError) as error:
            raise apply_failed(self.path, error) from error
        finally:
            _give_back(self._applying)
        if state is not None:
            self.commit_ms = arrived.header.commit_ms
            self._equalled(arrived.as_of)
            self._applied(state, announce=announce)
            if self.listeners.any:
                self.listeners.applied(arrived.header, state)
        return state

    def announce(self) -> None:
        """Tell those who are served from this file that something was applied."""
        self._serving()

    @property
    def is_late(self) -> bool:
        """Whether the primary should have been heard of by now: perhaps it hangs."""
        within, lag = self.background.heard_within, self.lag
        if within is None:
            return False
        silent = time.monotonic() - self.heard_at
        if lag is not None:  # another process may be the one that looks
            silent = min(silent, lag)
        return silent > within + _LATE

    def look(self) -> None:
        """Bring what the primary has, soon and once, on the background's thread."""
        self.background.sync()

    def _applied(self, state: State, *, announce: bool = True) -> None:
        self.reached.note(state.position)
        if announce:
            self._serving()
        self.wal_bytes = state.wal_frames * (state.page_size + 24)
        if state.wal_frames >= CHECKPOINT_FRAMES and not self._served:
            self.background.checkpoint()

    # ------------------------------------------------------------------ forwarding

    def forward(
        self,
        body: bytes,
        *,
        visible: bool,
        network_timeout: float | None = None,
        notes: Notes | None = None,
    ) -> bytes:
        """Send a Hrana pipeline to the primary; apply what it wrote before returning.

        Args:
          body: the pipeline request, JSON.
          visible: bring the replica to the state after the request (read-your-writes).
          network_timeout: as for :meth:`sync`.
          notes: what travels beside it. Whoever has `sent` in it calls `announce` when this has returned,
            or raised: his client hears first.

        Returns:
          the pipeline's answer, JSON.

        Raises:
          OfflineError: no answer; its `state` says whether the write may have been carried out.
          SyncError: the request was carried out, but its result could not be applied here.
        """
        patience = self.timeout if network_timeout is None else network_timeout
        deadline = Deadline(patience, renewed=True)
        try:
            state = self._standing(deadline) if visible else None
        except SyncError as error:
            error.state = f"nothing was carried out; {error.state}"
            raise
        headers = {"Content-Type": "application/json"}
        if notes is not None:
            headers.update(notes.headers())
        path = "v3/pipeline"  # its answer has no page set
        if state is not None:
            path = "nl/v1/sql?v=2" if self._compact else "nl/v1/sql"
            headers["Nearlite-Position"] = str(state.position)
            headers["Nearlite-Hash"] = f"{state.hash:016x}"
        with self._post(path, body, headers, deadline, notes) as response:
            if response.status != 200:
                code, message = wire.decode_error(response.error_body())
                local = None if state is None else Local.of(state)
                raise refusal(
                    response.status,
                    code,
                    message,
                    local,
                    state=state_of_request(response.status, code),
                )
            if isinstance(self.last_error, OfflineError):
                self.last_error = None  # it can be asked again
            if notes is not None:
                notes.answered(response.header)
            if response.header("content-type") != wire.ANSWER_TYPE:
                return json_of(response)
            return self._take_answer(response, state, deadline, notes)

    def _post(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        deadline: Deadline,
        notes: Notes | None,
    ) -> Response:
        if notes is None or notes.sent is None:
            return self.transport.request(
                "POST", path, body=body, headers=headers, deadline=deadline, repeatable=False
            )
        sent = self.transport.send(path, deadline, body=body, headers=headers)
        notes.sent(sent)
        return sent.answer(deadline)

    def _standing(self, deadline: Deadline) -> State:
        """Where it stands; repaired first if it is not what it says."""
        try:
            return self._standing_now(deadline)
        except DamagedError as error:
            self._repair_because(error, deadline)
        return self.state(wait=left(deadline))

    def _take_answer(
        self, response: Response, state: State | None, deadline: Deadline, notes: Notes | None
    ) -> bytes:
        """u32 length, JSON, page set or nothing."""
        answered = time.monotonic()
        position = response.header("nearlite-position")
        reader = SetReader(response, Meter(None, 0.0), state)
        try:
            size = int.from_bytes(exactly(response, 4), "big")
            if size > wire.MAX_JSON:
                raise AnswerError(f"the primary announced {size} bytes of JSON")
            answer = exactly(response, size)
            if notes is not None:
                notes.answer = bytes(answer)
            if reader.at_end():
                moved = state is not None and position not in ("", str(state.position))
                if moved and response.header("nearlite-autocommit") != "0":
                    self.sync(timeout=left(deadline))
                return bytes(answer)
            header = reader.header()
            self.hears(response, header, answered)
            try:
                later = notes is not None and notes.sent is not None
                applied = self.take(header, reader, deadline, announce=not later)
            except UnfoundedError as error:
                self.doubt(error)
                applied = None
            if applied is None and not header.target.precedes(self.state().position):
                self.sync(timeout=left(deadline))
        except SyncError as error:
            if response.header("nearlite-autocommit") == "0":
                error.state = "nothing was committed: the primary rolls the transaction back"
                error.action = "call rollback() and start again"
                raise
            error.state = f"the request was carried out on the primary; {error.state}"
            error.action = (
                "do not repeat it: when the cause is gone, sync() brings its effects here"
            )
            raise
        self.primary_position = header.target
        self._equalled(answered)
        return bytes(answer)

    # ------------------------------------------------------------------ upkeep and end

    def checkpoint(self) -> None:
        """Keep the replica's WAL short (rule B5). Only the background thread calls it."""
        self.wal_bytes = self._keep_short()

    def halt(self) -> None:
        """Begin nothing any more, and end what waits for the primary, on whatever thread; idempotent.

        Reads and `close` go on.
        """
        self.background.halt()
        self.transport.close()

    def close(self) -> None:
        """Close the applier (checkpointing when it is the last user) and the connections."""
        if self.background.is_current() or self.listeners.is_current():
            # A garbage collection on our own thread found the last connection: in its own time.
            threading.Thread(target=self.close, name="nearlite-close", daemon=True).start()
            return
        self.halt()
        stopped = self.background.stop()
        self.listeners.stop()
        with self._applying:
            if stopped:
                self._upkeep.close()
            applier, self._applier = self._applier, None
            if applier is not None:
                applier.close()
                if self._check.passed:
                    self.folder.remember()
                self._unwatch()


def _give_back(lock: threading.RLock) -> None:
    """Release it if this thread has it."""
    try:
        lock.release()
    except RuntimeError:
        return


def _nothing() -> None:
    """Nobody watches yet."""
