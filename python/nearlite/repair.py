"""A replica of which nothing is believed becomes what its primary has: only what differs travels.

The file is hashed page by page, and the hashes are compared with the primary's in ranges, from large
ones to single pages, two or three requests in all. What differs comes as one page set, which is applied
as one transaction: readers go on, and see the old state or the new one.

No lock is held while the network is waited for. The applier knows whether the file is still the one it
hashed; if another process has written it meanwhile, it is looked at again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from nearlite import wire
from nearlite._native import faults
from nearlite._native.applier import Applier, State, Survey
from nearlite._native.database import NO_PARAMETERS, Database, distrust_schemas
from nearlite._native.frames import Chunk, SetHeader
from nearlite._native.sealing import Key
from nearlite.arriving import IN_MEMORY, Arrived
from nearlite.bootstrap import Folder
from nearlite.comparing import Comparison
from nearlite.errors import AnswerError, DiskFullError, Error, HistoryGoneError, SyncError
from nearlite.failing import apply_failed, left, not_a_replica, not_kept
from nearlite.http import Deadline, Transport
from nearlite.receiving import Meter, SetReader

_log = logging.getLogger("nearlite")
_SURVEYED = faults.declare("repair.surveyed")
_ARRIVED = faults.declare("repair.arrived")
_SCHEMA: Final = "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema ORDER BY rowid"

_OVERTAKEN: Final = 8
"""Attempts while other processes write the file, or the primary forgets its first answer."""


@dataclass(frozen=True, slots=True)
class _Repaired:
    """What a repair led to.

    Attributes:
      state: of the file, after it.
      reread: other programs that have the file open must open it again: the schema has changed and
        they cannot see that, because its cookie has not (rule B7).
    """

    state: State
    reread: bool


class Repair:
    """One repair of one file.

    Args:
      path: of the file.
      transport: to the primary.
      folder: of the replica.
      adopt: make a file a replica that is none.
      claim: tell the primary where the replica says it stands, so that it refuses one that may hold
        what the primary does not; False: overwrite whatever it holds.
      key: of a sealed file.
    """

    def __init__(
        self,
        path: str,
        transport: Transport,
        folder: Folder,
        *,
        adopt: bool,
        claim: bool,
        key: Key | None = None,
    ) -> None:
        self._path = path
        self._key = key
        self._transport = transport
        self._folder = folder
        self._adopt = adopt
        self._claim = claim
        self._sent = 0

    def run(self, deadline: Deadline, meter: Meter, why: str) -> State:
        """Do it, and say in the log that it was done.

        Args:
          meter: counts what is received.
          why: one phrase for the log.

        Returns:
          where the file stands now.

        Raises:
          SyncError: one of its subclasses; the file is as it was.
        """
        started = time.monotonic()
        try:
            self._folder.make()
            done = self._run(deadline, meter)
        except SyncError:
            raise
        except (Error, MemoryError) as error:
            raise apply_failed(self._path, error) from error
        except OSError as error:  # of the file system: the transport has its own exception
            raise not_kept(self._path, error) from error
        _log.warning(
            "%s: repaired, because %s; now at %s: %d of %d pages replaced, %d bytes sent, "
            "%d received, %.3f s",
            self._path, why.replace(f"{self._path} ", "it "), done.state.position, meter.pages, done.state.pages, self._sent,
            meter.bytes, time.monotonic() - started,
        )  # fmt: skip
        if done.reread:
            _log.warning(
                "%s: the repair changed the schema and not the cookie by which SQLite notices that: "
                "other programs that have had the file open since before must open it again",
                self._path,
            )
        return done.state

    def _run(self, deadline: Deadline, meter: Meter) -> _Repaired:
        why = ""
        with closing(Applier(self._path, key=self._key)) as applier:
            for _ in range(_OVERTAKEN):
                wait = None if deadline.renewed else left(deadline)
                survey = applier.survey(adopt=self._adopt, wait=wait)
                deadline.restart()
                faults.hit(_SURVEYED)
                before = _schema(self._path, self._key)
                try:
                    arrived = self._receive(applier, survey, deadline, meter)
                except HistoryGoneError:
                    why = (
                        "the primary forgets what it has answered before the repair gets to its end"
                    )
                    continue
                faults.hit(_ARRIVED)
                with closing(arrived):
                    distrust_schemas()  # as near to the commit as can be, on both sides of it
                    state = _apply(applier, arrived, deadline)
                    distrust_schemas()
                if state is not None:
                    after = _schema(self._path, self._key)
                    unseen = after != before and after[0] == survey.cookie
                    return _Repaired(state, unseen)
                why = "other processes keep writing to this file"
        raise SyncError(
            why,
            state="nothing was changed by this call",
            action="try again",
        )

    # ------------------------------------------------------------------ the exchange

    def _receive(
        self, applier: Applier, survey: Survey, deadline: Deadline, meter: Meter
    ) -> Arrived:
        claimed = survey.claimed
        where = claimed.position if self._claim else wire.NOWHERE
        comparison = Comparison(self._transport, claimed.page_size, claimed.pages, where)
        try:
            response = comparison.answer(applier, deadline)
        finally:
            self._sent += comparison.sent
        with response:
            reader = SetReader(response, meter)
            header = self._checked(reader.header(), survey)
            self._check_room(header)
            sealed = self._key is not None
            return Arrived.receive(header, reader, self._folder.path, sealed=sealed)

    def _checked(self, header: SetHeader, survey: Survey) -> SetHeader:
        claimed = survey.claimed
        if not header.repair:
            raise AnswerError("the primary answered a request for repair with another page set")
        if header.page_size != claimed.page_size:
            raise AnswerError("the page set has another page size than the replica")
        known = self._claim and claimed.position != wire.NOWHERE
        if known and not claimed.position.precedes(header.target):
            raise AnswerError("the page set leads to another history than the replica's")
        return header

    def _check_room(self, header: SetHeader) -> None:
        """Rule H: the WAL grows by the whole set at once, and a large one is kept in a file before."""
        pages = header.count * header.page_size
        need = pages + 24 * header.count + (pages if pages > IN_MEMORY else 0)
        disk = os.statvfs(os.path.dirname(os.path.abspath(self._path)))
        room = disk.f_bavail * disk.f_frsize
        if need > room:
            raise DiskFullError(
                f"repairing {self._path} takes {need:,} bytes for a while; {room:,} are free",
                state="the file is as it was",
                action="make room on the disk and try again",
            )


def prepare_to_adopt(path: str, key: Key | None = None) -> None:
    """Make a database that is to become a replica one of WAL mode.

    Raises:
      NotAReplicaError: that cannot be done; the file is as it was.
    """
    try:
        with closing(Database(path, create=False, key=key)) as database:
            rows = database.prepare("PRAGMA journal_mode=WAL").run(NO_PARAMETERS)
    except Error as error:
        raise not_a_replica(path, error) from error
    if rows != [("wal",)]:
        raise not_a_replica(path, ValueError("it does not take WAL mode"))


def _schema(path: str, key: Key | None) -> tuple[int, list[object] | None]:
    """Schema cookie and schema as readers see them; (-1, None) where nothing can be read."""
    try:
        with closing(Database(path, readonly=True, checkpoint=False, key=key)) as database:
            ((cookie,),) = database.prepare("PRAGMA schema_version").run(NO_PARAMETERS)
            statement = database.prepare(_SCHEMA)
            rows: list[object] = [*statement.run(NO_PARAMETERS)]
            while more := statement.fetch():
                rows += more
            return cookie, rows
    except (Error, ValueError):
        return -1, None


def _apply(applier: Applier, arrived: Arrived, deadline: Deadline) -> State | None:
    """None when the file has changed since it was surveyed: nothing was written."""
    with contextlib.ExitStack() as stack:
        if arrived.whole is not None:  # verified before any lock is taken
            arrived.in_memory = [stack.enter_context(chunk) for chunk in arrived.whole.chunks()]
        if not applier.begin_repair(arrived.header, wait=left(deadline)):
            return None
        try:
            chunks: Iterator[Chunk] | list[Chunk] = arrived.in_memory or []
            for chunk in arrived.chunks() if arrived.in_memory is None else chunks:
                with chunk:
                    if not deadline.renewed:
                        left(deadline)
                    applier.chunk(chunk)
            return applier.commit()
        except BaseException:
            applier.rollback()
            raise
