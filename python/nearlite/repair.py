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
from nearlite._native.frames import SPAN_WANTED, Chunk, SetHeader
from nearlite.arriving import IN_MEMORY, Arrived
from nearlite.bootstrap import Folder
from nearlite.errors import AnswerError, DiskFullError, Error, HistoryGoneError, SyncError
from nearlite.failing import apply_failed, left, not_a_replica, not_kept
from nearlite.http import Deadline, Response, Transport
from nearlite.receiving import Meter, SetReader
from nearlite.sync import refusal

_log = logging.getLogger("nearlite")
_SURVEYED = faults.declare("repair.surveyed")
_COMPARED = faults.declare("repair.compared")
_ARRIVED = faults.declare("repair.arrived")
_SCHEMA: Final = "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema ORDER BY rowid"

_AT_ONCE: Final = 8192
"""Pages of a database whose every page hash is sent at once: 64 KiB, and a request less."""
_RANGES: Final = 16384
"""Ranges of the first request, at most: 128 KiB."""
_FEW: Final = 6
"""log2 of the pages in a range whose pages are compared one by one if it differs."""
_HASHES: Final = 4 << 20
"""Page hashes in one request: 32 MiB, half of what a primary takes. Beyond that pages come unasked."""
_RUNS: Final = 32768
_OVERTAKEN: Final = 8
"""Attempts while other processes write the file, or the primary forgets its first answer."""

Ranges = list[tuple[int, int]]
"""First page and number of pages, ascending."""


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
    """

    def __init__(
        self, path: str, transport: Transport, folder: Folder, *, adopt: bool, claim: bool
    ) -> None:
        self._path = path
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
        except ValueError as error:  # a body beyond its bound
            raise AnswerError(f"the primary's answer was refused: {error}") from error
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
        with closing(Applier(self._path)) as applier:
            for _ in range(_OVERTAKEN):
                wait = None if deadline.renewed else left(deadline)
                survey = applier.survey(adopt=self._adopt, wait=wait)
                deadline.restart()
                faults.hit(_SURVEYED)
                before = _schema(self._path)
                try:
                    arrived = self._receive(applier, survey, deadline, meter)
                except HistoryGoneError:
                    continue  # the primary has forgotten its first answer
                faults.hit(_ARRIVED)
                with closing(arrived):
                    distrust_schemas()  # as near to the commit as can be, on both sides of it
                    state = _apply(applier, arrived, deadline)
                    distrust_schemas()
                if state is not None:
                    after = _schema(self._path)
                    unseen = after != before and after[0] == survey.cookie
                    return _Repaired(state, unseen)
        raise SyncError(
            "other processes keep writing to this file",
            state="nothing was changed by this call",
            action="try again",
        )

    # ------------------------------------------------------------------ the exchange

    def _receive(
        self, applier: Applier, survey: Survey, deadline: Deadline, meter: Meter
    ) -> Arrived:
        with self._fetch(applier, survey, deadline) as response:
            reader = SetReader(response, meter)
            header = self._checked(reader.header(), survey)
            self._check_room(header)
            return Arrived.receive(header, reader, self._folder.path)

    def _fetch(self, applier: Applier, survey: Survey, deadline: Deadline) -> Response:
        """Compare from large ranges to single pages; the answer that is the page set."""
        claimed = survey.claimed
        pages = claimed.pages
        span = _first_span(pages)
        asked: Ranges = [(1, pages)]
        since = wire.NOWHERE
        while True:
            runs = _runs(applier, asked, span)
            where = claimed.position if self._claim else wire.NOWHERE
            ask = wire.Ask.of(claimed.page_size, pages, where, since, runs)
            response = self._post(ask, deadline)
            if ask.ranges == 0:
                return response
            with response:
                body = response.read(64 + (ask.ranges + 7) // 8)
            found = wire.Differences.decode(body, count=ask.ranges)
            faults.hit(_COMPARED)
            if since == wire.NOWHERE:
                since = found.position
            asked = _differing(runs, found, pages)
            span = 0 if span <= _FEW + 2 else span // 2

    def _post(self, ask: wire.Ask, deadline: Deadline) -> Response:
        body = ask.encode()
        self._sent += len(body)
        z = "0" if self._transport.loopback else "1"
        headers = {"Content-Type": wire.REQUEST_TYPE}
        response = self._transport.request(
            "POST", f"nl/v1/repair?z={z}", body=body, headers=headers, deadline=deadline
        )
        expected = wire.PAGE_SET_TYPE if ask.ranges == 0 else wire.DIFFERENCES_TYPE
        if response.status == 200 and response.header("content-type") == expected:
            return response
        with response:
            if response.status == 200:
                raise AnswerError("the primary answered a request for repair with something else")
            code, message = wire.decode_error(response.error_body())
            raise _refused(response.status, code, message, ask.claimed)

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


def _refused(status: int, code: str, message: str, claimed: object) -> SyncError:
    if status in (404, 405):
        return SyncError(
            "the primary is of a version that cannot repair replicas",
            state="the file is as it was",
            action="move the file away and connect again, or update the primary",
        )
    return refusal(status, code, message, None, state=f"the file is as it was, at {claimed}")


def prepare_to_adopt(path: str) -> None:
    """Make a database that is to become a replica one of WAL mode.

    Raises:
      NotAReplicaError: that cannot be done; the file is as it was.
    """
    try:
        with closing(Database(path, create=False)) as database:
            rows = database.prepare("PRAGMA journal_mode=WAL").run(NO_PARAMETERS)
    except Error as error:
        raise not_a_replica(path, error) from error
    if rows != [("wal",)]:
        raise not_a_replica(path, ValueError("it does not take WAL mode"))


def _schema(path: str) -> tuple[int, list[object] | None]:
    """Schema cookie and schema as readers see them; (-1, None) where nothing can be read."""
    try:
        with closing(Database(path, readonly=True, checkpoint=False)) as database:
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


# ---------------------------------------------------------------------- which ranges


def _first_span(pages: int) -> int:
    """log2 of the pages in a range of the first request; 0: single pages."""
    if pages <= _AT_ONCE:
        return 0
    return max(_FEW, ((pages - 1) // _RANGES).bit_length())


def _runs(applier: Applier, asked: Ranges, span: int) -> list[wire.Run]:
    """Hashes of ranges of ``2**span`` pages that make up what is asked about."""
    runs = []
    budget = _HASHES
    for first, pages in asked:
        count = (pages + (1 << span) - 1) >> span
        if count > budget:
            runs.append(wire.Run(first, pages, SPAN_WANTED))
            continue
        budget -= count
        runs.append(wire.Run(first, count, span, applier.ranges(first, span, count)))
    return runs


def _differing(runs: list[wire.Run], found: wire.Differences, pages: int) -> Ranges:
    """Ranges of those runs that differ, neighbours put together; pages that are wanted stay so."""
    marks = iter(found.differing())
    mark = next(marks, None)
    at = 0
    ranges: Ranges = []
    for run in runs:
        if run.span == SPAN_WANTED:
            ranges.append((run.first, run.count))
            continue
        while mark is not None and mark < at + run.count:
            first = run.first + ((mark - at) << run.span)
            end = min(first + (1 << run.span), pages + 1)
            if ranges and ranges[-1][0] + ranges[-1][1] == first:
                ranges[-1] = (ranges[-1][0], end - ranges[-1][0])
            else:
                ranges.append((first, end - first))
            mark = next(marks, None)
        at += run.count
    while len(ranges) > _RUNS:  # comparing what lies between them costs less than so many runs
        pairs = zip(ranges[::2], [*ranges[1::2], ranges[-1]], strict=False)
        ranges = [(low[0], high[0] + high[1] - low[0]) for low, high in pairs]
    return ranges
