"""A replica that serves replicas: positions and hashes are the primary's, the frames its own.

What its upstream sends is applied as on any replica, by whatever process; its tail reads the frames of
that out of the replica's WAL, and those who wait here are answered from them. So a tree costs its primary one
follower for each of its own children, and a level adds one hop of latency.

The tail's pin keeps the WAL, so it is emptied here and not by the replica's upkeep.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import Final, Literal

from nearlite import errors
from nearlite._native._lib import HashError, NotReplicaError, SealBrokenError
from nearlite._native.database import Database
from nearlite._native.sealing import Key
from nearlite._native.tail import FRAME_HEADER_SIZE, BusyError, Tail, WalResetError
from nearlite.answers import Answer
from nearlite.background import LIVE, check_interval
from nearlite.foreign import ForeignReplica
from nearlite.http import Token
from nearlite.log import Log
from nearlite.logformat import HashTable
from nearlite.network import DEFAULT, Network, UpstreamProtocol
from nearlite.origin import Origin, OriginState
from nearlite.position import Position
from nearlite.trail import SUFFIX, Stretch, Trail

_LOG = logging.getLogger("nearlite")

ROLL_BYTES: Final = 16 << 20
_WAIT_MS: Final = 5
"""Waiting for a lock is done in slices, so that others get the mutex in between."""
_AT_OPEN: Final = 0.1
"""Seconds that a start waits for those who are in the way."""
_RETRY_FIRST: Final = 0.5
_RETRY_LAST: Final = 30.0


class Relay(Origin):
    """Serves one replica file. Every method may be called from any thread. Use `open`.

    Args:
      replica: opened; it belongs to the relay, which closes it.
      log: the folder, owned.
      tail, trail: of its file.
      roll_bytes: size of the WAL from which it is emptied.

    Attributes:
      behind: always False: there are no commits here that could not be noted.
    """

    behind = False

    def __init__(
        self, replica: ForeignReplica, log: Log, tail: Tail, trail: Trail, *, roll_bytes: int
    ) -> None:
        super().__init__(tail, trail)
        self.path = replica.path
        self._replica = replica
        self._log = log
        self._trail = trail
        self._roll_frames = max(1, roll_bytes // (FRAME_HEADER_SIZE + self.page_size))
        self._rolling = threading.Lock()
        self._retry_at = 0.0
        self._retry_after = _RETRY_FIRST
        self._closed = False
        self._lost = False  # the tail has no base
        self._still: OriginState | None = None
        trail.count = replica.ahead.between
        replica.serve(applied=self._applied, checkpoint=self._keep_short, tables=self._tables)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        url: str,
        *,
        token: Token = None,
        network: Network = DEFAULT,
        timeout: float = 30.0,
        sync_interval: float | Literal["live"] | None = LIVE,
        roll_bytes: int = ROLL_BYTES,
        key: Key | None = None,
        region: str | None = None,
        protocol: UpstreamProtocol = "auto",
    ) -> Relay:
        """Serve a replica's file, creating it from its upstream when it is missing.

        Args:
          path: of the file.
          url: of its upstream: a primary, or a replica that serves replicas.
          token, network, timeout: as for `Replica`.
          sync_interval: "live", or seconds between two looks there; None: only when somebody asks.
          roll_bytes: size of the WAL from which it is emptied.
          key: the file is sealed, or created so, and its log as well.
          region: where this server stands, in its owner's words; its upstream is told that it serves others.
          protocol: what the upstream speaks; "auto": it is asked.

        Raises:
          errors.OperationalError: another process serves it.
          NotAReplicaError, SyncError: as `Replica.open`.
        """
        check_interval(sync_interval)
        network = network.of_edge(region)
        replica = ForeignReplica(
            os.path.realpath(path),
            url,
            protocol=protocol,
            token=token,
            network=network,
            timeout=timeout,
            key=key,
        )
        log = tail = None
        try:
            log = Log(replica.path)
            replica.open()
            if key is not None:
                log.seal(key)
            tail = Tail(replica.path, key)
            trail = Trail(tail, log)
            try:
                trail.open()
            except errors.DamagedError:
                replica.repair("its pages are not what its header says")
                trail.begin()
            relay = cls(replica, log, tail, trail, roll_bytes=roll_bytes)
        except BaseException:
            if tail is not None:
                tail.close()
            replica.close()
            if log is not None:
                log.close()
            raise
        try:
            relay.roll(wait=_AT_OPEN)  # for a later start to know where this one began
        except (OSError, errors.Error) as error:
            _LOG.warning("%s: its WAL could not be emptied: %s", replica.path, error)
        replica.keep_up(sync_interval)
        return relay

    # ------------------------------------------------------------ its upstream

    def connect(self) -> Database:
        """A connection that reads the replica."""
        return Database(
            self.path, readonly=True, create=False, checkpoint=False, key=self._replica.key
        )

    @property
    def upstream(self) -> ForeignReplica:
        """The replica, which knows its upstream."""
        return self._replica

    @property
    def age(self) -> float | None:
        """Seconds since it was last known to equal the primary; None: not since it was opened."""
        return self._replica.lag

    def clock(self) -> int:
        """Milliseconds since 1970 by the primary's clock, as far as it is known here."""
        return self._replica.ahead.now_ms()

    def refresh(self) -> None:
        """Bring it to where the primary stands now. Raises what a sync raises."""
        self._replica.sync()

    def _tables(self, runs: list[tuple[int, int]]) -> tuple[OriginState, list[bytes]]:
        """State, and page hashes of runs of pages as they are in it."""
        with self._mutex:
            self._begin()
            try:
                return self._state(), [self._tail.table(first, count) for first, count in runs]
            finally:
                self._tail.end()

    def _applied(self) -> None:
        """On the thread that applied, which must not hear of what fails here."""
        try:
            self.after_commit()
        except (errors.Error, OSError):
            if not self._closed:
                _LOG.exception("%s: what was applied cannot be served", self.path)
        if self._roll_due:
            self._replica.background.checkpoint()

    @property
    def _frozen(self) -> OriginState | None:
        return self._still

    def _damaged(self, error: HashError | SealBrokenError) -> Exception:
        """It mends itself; nobody is given what it has meanwhile."""
        self._replica.suspect()
        return errors.DamagedError(
            f"the replica that serves this one is damaged: {error}",
            state="nothing of it was given out as whole",
            action="try again: it repairs itself from its own upstream",
        )

    def changes(
        self,
        start: Position,
        state_hash: int | None = None,
        *,
        compress: bool = False,
        compact: bool = False,
    ) -> Answer | None:
        """As of any origin, but a replica that is ahead of this one has to wait for it (rule A9)."""
        try:
            return super().changes(start, state_hash, compress=compress, compact=compact)
        except errors.UpstreamBehindError:
            return None

    # ------------------------------------------------------------ frames and positions

    def _begin(self) -> None:
        if self._closed:
            raise errors.ProgrammingError("the relay is closed")
        if self._lost:
            self._start_over("a base has to be found")
        try:
            self._tail.begin()
        except WalResetError as error:  # by hand, or by a program that does not know our locks
            self._start_over(str(error))
            self._tail.begin()
        try:
            self._trail.take()
        except (errors.DamagedError, NotReplicaError) as error:
            self._tail.end()
            self._start_over(str(error))
            self._tail.begin()
            self._trail.take()
        except BaseException:
            self._tail.end()
            raise
        self._answers.commit_ms = self._replica.commit_ms

    def _start_over(self, why: str) -> None:
        """Replicas behind here are repaired from now on."""
        _LOG.warning("%s: %s; its history begins anew, no data is affected", self.path, why)
        self._lost = True
        self._tail.repin()
        try:
            self._trail.begin()
        except errors.DamagedError:
            self._replica.suspect()
            raise
        self._lost = False

    # ------------------------------------------------------------ a short WAL

    def _keep_short(self) -> int:
        """Empty the WAL if it has grown; answers its bytes. On the replica's background thread."""
        frames: int = self._tail.frame
        if self._roll_due:
            try:
                done = self.roll()
            except (OSError, errors.Error):
                self._postpone()
                raise
            if done:
                frames = 0
                self._retry_at, self._retry_after = 0.0, _RETRY_FIRST
            else:
                self._postpone()
        return frames * (FRAME_HEADER_SIZE + self.page_size)

    def _postpone(self) -> None:
        self._retry_at = time.monotonic() + self._retry_after
        self._retry_after = min(self._retry_after * 2, _RETRY_LAST)

    @property
    def _roll_due(self) -> bool:
        due = self._tail.frame >= self._roll_frames or not self._trail.kept
        return due and time.monotonic() >= self._retry_at

    def roll(self, *, wait: float = 1.0) -> bool:
        """Copy the WAL into the file and empty it; what it led to is kept as a stretch.

        Args:
          wait: seconds to wait for those who apply.

        Returns:
          False when somebody needs the WAL: nothing is lost, it is tried again later.

        Raises:
          OSError, errors.OperationalError: the disk is full or failed; the WAL stays.
        """
        with self._rolling:
            with self._mutex:
                self._begin()
                self._tail.end()
                if self._tail.frame == 0 and self._trail.kept:
                    return True
                self._tail.repin()
            self._tail.passive()
            deadline = time.monotonic() + wait
            while True:
                with self._mutex:
                    ended = self._section()
                if ended is not None:
                    self._keep(*ended)
                    return True
                if time.monotonic() >= deadline:
                    _LOG.info("%s: somebody needs the WAL; it is emptied later", self.path)
                    return False
                time.sleep(_WAIT_MS / 1000)

    def _section(self) -> tuple[Stretch, bytes, set[str]] | None:
        """Mutex held. Nobody applies meanwhile; None when somebody is in the way."""
        tail, trail = self._tail, self._trail
        try:
            tail.roll_begin(_WAIT_MS)
        except BusyError:
            return None
        try:
            trail.take()
            self._still = self._state()  # nobody applies until the end: it needs no lock to be told
            ended = trail.stretch()
            table = tail.table(1, tail.pages)
            tail.roll_finish()
        except BusyError:
            return None
        finally:
            self._still = None
            tail.roll_abort()
        return ended, table, trail.turn(ended, self._held())

    def _keep(self, ended: Stretch, table: bytes, kept: set[str]) -> None:
        """For the next start: only what is whole and fits the file then is believed, so nothing is synced."""
        at = ended.end
        self._log.write(f"{at}{SUFFIX}", ended.encode(), durable=False)
        hashes = HashTable(at.lineage, at.generation, at.frame, self.page_size, table)
        self._log.save_table(hashes, durable=False)
        self._trail.kept = True
        for path in self._log.folder.glob("*.hashes"):
            if path.name != f"{at}.hashes":
                path.unlink(missing_ok=True)
        # Also what a history that began anew has left: that of another lineage may pass for the newest.
        for path in self._log.folder.glob(f"*{SUFFIX}"):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    # ------------------------------------------------------------ end

    def close(self) -> None:
        """Empty the WAL, end the replica; idempotent."""
        with contextlib.suppress(OSError, errors.Error):
            if not self._closed:
                self._replica.background.halt()
                self.roll()
        with self._rolling:
            if self._closed:
                return
            with self._mutex:
                self._closed = True
                self._tail.close()
        self._replica.close()
        self._log.close()
