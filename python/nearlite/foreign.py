"""A replica whose upstream may be another server than ours: one that speaks libSQL's sync, or sqld.

Which it is is asked once, when it is first needed: an edge starts also while its upstream is away. From nearlite
everything comes as on any replica. From the others come frames, of which sets are made here (gathering.py) that go
the way of all sets: one transaction, verified, with the position in page 1. So whatever is served from the file
knows nothing of where it came from.

SQL goes up as a plain Hrana pipeline. Its answer brings no pages, so what it wrote is asked for before it is
handed on: one sync for all who have written meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Final

import msgspec

from nearlite import wire
from nearlite._native._lib import HashError
from nearlite._native.applier import Applier, State
from nearlite._native.compact import Standing
from nearlite._native.frames import lock_page
from nearlite._native.sealing import Key
from nearlite.background import LIVE
from nearlite.durations import duration
from nearlite.errors import (
    AnswerError,
    DamagedError,
    Error,
    HistoryGoneError,
    LineageError,
    OfflineError,
    PrimaryRestoredError,
    SyncError,
    UnauthorizedError,
)
from nearlite.failing import failure_of, left, not_created, not_kept
from nearlite.feeds import Feed, another
from nearlite.foreign_answers import Told
from nearlite.foreign_base import ForeignRepair, Pages, chunks_of, gather, head_of
from nearlite.freshness import of_another
from nearlite.gathering import (
    PAGE_SIZE,
    Gathering,
    Seen,
    hash_of,
)
from nearlite.http import Deadline, Token
from nearlite.libsql_client import LibsqlFeed
from nearlite.logstate import now_ms
from nearlite.network import DEFAULT, Network, UpstreamProtocol
from nearlite.position import Position
from nearlite.pulling import SyncResult
from nearlite.receiving import Meter, ProgressCallback, json_of
from nearlite.repair import Repair
from nearlite.replica import Replica
from nearlite.seeding import SeedFile
from nearlite.spooling import Spool
from nearlite.sqld_client import SqldFeed
from nearlite.sync import Pull, refusal, state_of_request
from nearlite.upstream import Notes

_log = logging.getLogger("nearlite")

Tables = Callable[[list[tuple[int, int]]], tuple[Standing, list[bytes]]]
"""Where a file stands, and page hashes of runs of its pages: 8 bytes a page, big-endian."""

POLL: Final = 1.0
"""Seconds between two looks of one that follows."""
_NAP: Final = 0.1
"""Seconds between two looks of one that waits."""
_AT_ONCE: Final = 8 << 20
"""Bytes of pages from which what has come is applied, though more is to come."""
_OVERTAKEN: Final = 8
_INFO: Final = 64 * 1024
_READS_ONLY: Final = (
    "This edge's upstream does not know tokens that only read: with one, nothing is run there; nothing was "
    "carried out"
)


class ForeignReplica(Replica):
    """See `Replica`.

    Args:
      path, url, token, timeout, network, key: as there.
      protocol: what the upstream speaks; "auto": it is asked.
    """

    def __init__(
        self,
        path: str,
        url: str,
        *,
        protocol: UpstreamProtocol = "auto",
        token: Token = None,
        timeout: float = 30.0,
        network: Network = DEFAULT,
        key: Key | None = None,
    ) -> None:
        super().__init__(path, url, token=token, timeout=timeout, network=network, key=key)
        self._protocol = protocol
        self._feed: Feed | None = None
        self._decided = False
        self._deciding = threading.Lock()
        self._asking = threading.RLock()  # one sync at a time
        self._brought: tuple[float, SyncResult] | None = None
        self._tables: Tables = self._surveyed
        self._follows = False
        self._pipeline = "v3/pipeline"
        self._ending = threading.Event()
        self._met = False  # since it was opened, what is above was seen to go on from what is here
        self._estranged = False

    # ------------------------------------------------------------------ who it is

    @property
    def foreign(self) -> bool:
        """See `Replica`."""
        return self._feed is not None

    @property
    def estranged(self) -> bool:
        """Whether a foreign upstream was last seen to hold another history than the file: what comes from there is
        no continuation of what came before.
        """
        return self._estranged

    def _upstream(self, deadline: Deadline) -> Feed | None:
        """What frames come from; None: it is nearlite.

        Raises:
          SyncError: it could not be asked, or speaks no protocol that is known.
        """
        if self._decided:
            return self._feed
        if not self._deciding.acquire(timeout=left(deadline)):
            raise OfflineError(
                "the upstream has not said yet what it speaks",
                state="nothing was sent",
                action="try again",
            )
        try:
            if not self._decided:
                self._feed = self._ask_protocol(deadline)
                self._decided = True
                name = "nearlite" if self._feed is None else self._feed.name
                _log.info("%s: %s speaks %s", self.path, self.transport.url, name)
                if self._feed is None and self._follows:
                    self.background.follow()
        finally:
            self._deciding.release()
        return self._feed

    def _ask_protocol(self, deadline: Deadline) -> Feed | None:
        libsql, sqld = LibsqlFeed(self.transport), SqldFeed(self.transport)
        if self._protocol != "auto":
            return {"nearlite": None, "libsql": libsql, "sqld": sqld}[self._protocol]
        with self.transport.request("GET", "nl/v1/status", deadline=deadline) as response:
            try:
                if response.status == 200:
                    wire.Status.decode(response.read(_INFO))
                    return None
                code, message = wire.decode_error(response.error_body())
                first: SyncError = refusal(
                    response.status, code, message, None, state="nothing was changed"
                )
            except AnswerError as error:  # a page for whatever is asked
                first = error
            if response.status >= 500 or response.status in (401, 403, 408, 429):
                # Ours, perhaps, and in trouble, or what stands before it: it is asked again.
                raise first
        with self.transport.request("GET", "info", deadline=deadline) as response:
            found = 200 <= response.status < 300
            if found:
                try:
                    told = msgspec.json.decode(response.read(_INFO))
                    found = isinstance(told, dict) and "current_generation" in told
                except (msgspec.MsgspecError, AnswerError, RecursionError):
                    found = False
        if found:
            return libsql
        try:
            sqld.greet(deadline)
            sqld.forget()  # the first sync looks whose log it is
        except (OfflineError, UnauthorizedError):
            raise
        except SyncError:
            raise first from None
        return sqld

    def keep_up(self, interval: float | str | None) -> None:
        """See `Replica`."""
        if interval is None:
            return
        with self._deciding:
            self._follows = interval == LIVE
            ours = self._decided and self._feed is None
        if ours:
            super().keep_up(interval)
        elif interval == LIVE:
            self.background.every(POLL)
        else:
            self.background.every(duration("sync_interval", interval))

    def follow(self) -> None:
        """See `Replica`: a look every second."""
        self.keep_up(LIVE)

    def serve(
        self,
        *,
        applied: Callable[[], object],
        checkpoint: Callable[[], int],
        tables: Tables | None = None,
    ) -> None:
        """See `Replica`."""
        super().serve(applied=applied, checkpoint=checkpoint)
        if tables is not None:
            self._tables = tables

    def halt(self) -> None:
        """See `Replica`."""
        self._ending.set()
        super().halt()

    # ------------------------------------------------------------------ creation

    def _run(
        self, pull: Pull, deadline: Deadline, progress: ProgressCallback | None = None
    ) -> tuple[SyncResult, float]:
        feed = self._upstream(deadline)
        if feed is None or not pull.seeding:
            return super()._run(pull, deadline, progress)
        for _ in range(_OVERTAKEN):
            with contextlib.suppress(HistoryGoneError):
                return self._seed(feed, deadline, progress)
        raise OfflineError(
            "the upstream forgets frames before they can be had",
            state="no local file was created",
            action="try again",
        )

    def _seed(
        self, feed: Feed, deadline: Deadline, progress: ProgressCallback | None
    ) -> tuple[SyncResult, float]:
        began = time.monotonic()
        meter = Meter(progress or self._progress, began)
        self.folder.part.unlink(missing_ok=True)
        seed = SeedFile(self.folder, self.key)
        try:
            with closing(feed.base(deadline)) as base:
                head = head_of(base.at, base.pages)
                meter.announced(base.pages, large=True)
                seed.write(head, Pages(chunks_of(base, head, meter)))
            with closing(Gathering(base.at, base.pages, self.spool)) as gathering:
                asked = time.monotonic()
                for event in feed.since(base.at, deadline):
                    gather(gathering, event)
                    if gathering.kept_bytes >= _AT_ONCE and not gathering.inside:
                        self._write(seed, gathering)
                meter.bytes += gathering.received
                self._write(seed, gathering)
                head = head_of(gathering.at, gathering.pages)
                held = seed.write(head, Pages(iter(())))
                seed.write(head.replace(hash_target=held), Pages(iter(())))
            self._known = seed.place()
        except OfflineError:
            raise
        except SyncError as error:
            error.state = "no local file was created"
            raise
        except (Error, MemoryError) as error:
            what = f"{self.path} could not be created"
            raise failure_of(what, error, "no local file was created") from error
        except OSError as error:
            raise not_created(self.path, error) from error
        finally:
            seed.close()
        self.primary_position = head.target
        self._met = True
        self.heard_at = time.monotonic()
        seconds = self.heard_at - began
        return SyncResult(head.target, head.pages, meter.bytes, seconds), asked

    @staticmethod
    def _write(seed: SeedFile, gathering: Gathering) -> None:
        """What has come, over what is there."""
        head = head_of(gathering.at, gathering.pages)
        seed.write(head, Pages(gathering.chunks(head)))
        gathering.applied()

    def spool(self) -> Spool:
        """For what is too large for memory."""
        return Spool(self.folder.path, sealed=self.key is not None)

    # ------------------------------------------------------------------ sync

    def _pull(
        self, deadline: Deadline, wait: float, progress: ProgressCallback | None
    ) -> tuple[SyncResult, float]:
        feed = self._upstream(deadline)
        if feed is None:
            return super()._pull(deadline, wait, progress)
        asked = time.monotonic()
        until = asked + wait
        while True:
            before = self.state(wait=left(deadline)).position
            result, at = self._one_pull(feed, asked, deadline, progress)
            pause = min(_NAP, until - time.monotonic())
            if result.position != before or pause <= 0 or self._ending.wait(pause):
                return result, at
            asked = time.monotonic()

    def _one_pull(
        self, feed: Feed, asked: float, deadline: Deadline, progress: ProgressCallback | None
    ) -> tuple[SyncResult, float]:
        """What one that began after `asked` brings: whoever has waited meanwhile is served by it, too."""
        if not self._asking.acquire(timeout=left(deadline)):
            raise SyncError("another thread asks the upstream", action="try again")
        try:
            done = self._brought
            if done is not None and done[0] >= asked:
                return done[1], done[0]
            began = time.monotonic()
            try:
                result = self._bring(feed, deadline)
            except AnswerError as error:
                if isinstance(error.__cause__, HashError):
                    self._check.again()
                raise
            except (HistoryGoneError, DamagedError) as error:
                deadline.restart()
                result = self._repair_because(error, deadline, progress)
            self._brought = began, result
            self._met, self._estranged = True, False
            return result, began
        except (LineageError, PrimaryRestoredError):
            self._met, self._estranged = False, True
            raise
        finally:
            self._asking.release()

    def _bring(self, feed: Feed, deadline: Deadline) -> SyncResult:
        began = time.monotonic()
        pages = received = 0
        for _ in range(_OVERTAKEN):
            state: State | None = self._standing_now(deadline)
            assert state is not None
            with closing(Gathering(state.position, state.pages, self.spool)) as gathering:
                try:
                    with closing(feed.since(state.position, deadline)) as events:  # type: ignore[type-var]
                        for event in events:
                            self.heard_at = time.monotonic()
                            if isinstance(event, Seen):
                                self._compare(event, state)
                                continue
                            gather(gathering, event)
                            if gathering.kept_bytes >= _AT_ONCE and not gathering.inside:
                                pages += gathering.kept_bytes // PAGE_SIZE
                                state = self._apply_gathered(gathering, state, deadline)
                                if state is None:
                                    break
                except SyncError:
                    feed.forget()
                    raise
                except OSError as error:
                    raise not_kept(self.path, error) from error
                received += gathering.received
                if state is not None and gathering.moved:
                    pages += gathering.kept_bytes // PAGE_SIZE
                    state = self._apply_gathered(gathering, state, deadline)
            if state is not None:
                self.primary_position = state.position
                return SyncResult(state.position, pages, received, time.monotonic() - began)
        raise SyncError(
            "other processes keep moving this replica",
            action="nothing is wrong; call sync() again",
        )

    def _apply_gathered(
        self, gathering: Gathering, state: State, deadline: Deadline
    ) -> State | None:
        """Apply what has come so far; None when the file has moved, and nothing was written."""
        here, tables = self._tables(gathering.runs(state.pages))
        if (here.position, here.hash, here.pages) != (state.position, state.hash, state.pages):
            return None
        arrived = gathering.arrived(state.pages, state.hash, tables, commit_ms=now_ms())
        head = arrived.header
        with closing(arrived):
            self.ahead.brings(head, gathering.transactions)
            self.primary_position = head.target
            self.tally.received(head.count, PAGE_SIZE, gathering.received)
            self.tally.brought(gathering.transactions)
            now = self.apply(arrived, deadline)
        gathering.applied()
        return now

    def _compare(self, seen: Seen, state: State) -> None:
        """Whether the upstream's frame that led here is the one that did. Raises LineageError."""
        possible = 1 <= seen.page <= state.pages == seen.size and seen.page != lock_page(PAGE_SIZE)
        if possible:
            here, (table,) = self._tables([(seen.page, 1)])
            if here.position != state.position:  # moved meanwhile: nothing will be applied
                return
            if int.from_bytes(table, "big") == hash_of(seen.page, seen.image):
                # Writes need not wait for all that follows.
                self._met, self._estranged = True, False
                return
        raise another(
            state.position,
            f"what led to {state.position} is not what it was: the upstream was restored, or holds another "
            "database",
        )

    def _surveyed(self, runs: list[tuple[int, int]]) -> tuple[Standing, list[bytes]]:
        """As `Tables`, where nobody keeps page hashes: the whole file is hashed."""
        with closing(Applier(self.path, key=self.key)) as applier:
            survey = applier.survey()
            claimed = survey.claimed
            if survey.hash != claimed.hash:
                raise DamagedError(f"{self.path} is not what its header says")
            return claimed, [applier.ranges(first, 0, count) for first, count in runs]

    def ask(self, *, network_timeout: float | None = None) -> None:
        """See `Replica`. A foreign upstream tells where it stands only with what it brings."""
        patience = self.timeout if network_timeout is None else network_timeout
        if self._upstream(Deadline(patience)) is None:
            super().ask(network_timeout=network_timeout)
        else:
            self.sync(network_timeout=network_timeout)

    def wait_for(self, position: Position, timeout: float | None = None) -> None:
        """See `Replica`. Of a foreign upstream, also return when a look that began now has brought all it has.

        Its positions are counted here, and what a write led to is guessed where it could not be shown at once:
        one that changed nothing leads nowhere, and is waited for in vain.
        """
        if self._feed is None:
            super().wait_for(position, timeout)
            return
        if self.reached.includes(position):
            return
        deadline = Deadline(self.timeout if timeout is None else timeout)
        here = self.position(wait=left(deadline))
        if here.lineage != position.lineage:
            raise of_another(self.path, position, here)
        if not position.precedes(here):
            self.sync(timeout=left(deadline))

    # ------------------------------------------------------------------ repair

    def repair(
        self,
        why: str,
        deadline: Deadline | None = None,
        progress: ProgressCallback | None = None,
        *,
        claim: bool = True,
        adopt: bool = False,
    ) -> SyncResult:
        """See `Replica`: of a foreign upstream all is fetched, and what differs replaced."""
        with self._asking:
            return super().repair(why, deadline, progress, claim=claim, adopt=adopt)

    def _repair_of(self, deadline: Deadline, *, adopt: bool, claim: bool) -> Repair:
        feed = self._upstream(deadline)
        if feed is None:
            return super()._repair_of(deadline, adopt=adopt, claim=claim)
        return ForeignRepair(self, feed, adopt=adopt, claim=claim)

    # ------------------------------------------------------------------ SQL

    def forward(
        self,
        body: bytes,
        *,
        visible: bool,
        network_timeout: float | None = None,
        notes: Notes | None = None,
    ) -> bytes:
        """See `Replica`."""
        patience = self.timeout if network_timeout is None else network_timeout
        deadline = Deadline(patience, renewed=True)
        try:
            feed = self._upstream(Deadline(min(self.timeout, patience)))
        except SyncError as error:
            if isinstance(error, OfflineError):
                error.state = "nothing was sent"
            raise
        if feed is None:
            return super().forward(
                body, visible=visible, network_timeout=network_timeout, notes=notes
            )
        if notes is not None and notes.reads_only:
            raise _read_only()
        if visible and not self._met:
            self._meet(deadline)
        here = self.state(wait=left(deadline)).position
        answer = self._post_sql(body, deadline, notes)
        if notes is not None:
            notes.answer = answer
        told = Told.of(answer)
        if notes is not None and not notes.told:
            notes.counters = told.counted(notes.counters)
        looks = told.outside or (notes is not None and notes.read != "")
        if not visible or not looks:
            return answer
        # Whatever becomes of the sync: a read that shall see it is not one of where the file stood before.
        if notes is not None and told.outside:
            notes.position = Position(here.lineage, here.generation, here.frame + 1)
        feed.expect()
        try:
            result = self.sync(timeout=self.timeout)
        except SyncError as error:
            error.state = f"the request was carried out on the primary; {error.state}"
            error.action = (
                "do not repeat it: when the cause is gone, a sync brings its effects here"
            )
            raise
        if notes is not None and told.outside:
            notes.position = result.position
        return answer

    def _meet(self, deadline: Deadline) -> None:
        """What is decided by what is here is not written into another database, or an older state.

        Raises:
          LineageError, PrimaryRestoredError: it would be. Other failures are of the sync alone.
        """
        try:
            self.sync(timeout=min(self.timeout, left(deadline)))
        except (LineageError, PrimaryRestoredError) as error:
            error.state = f"nothing was carried out; {error.state}"
            raise
        except SyncError:
            return

    def _post_sql(self, body: bytes, deadline: Deadline, notes: Notes | None) -> bytes:
        headers = {"Content-Type": "application/json"}
        if notes is not None:
            headers.update(notes.headers())
            headers.pop("Nearlite-Read", None)  # a position that the upstream does not know
        while True:
            path = self._pipeline
            with self._post(path, body, headers, deadline, notes) as response:
                if response.status == 404 and path == "v3/pipeline":
                    response.error_body()
                    self._pipeline = "v2/pipeline"
                    continue
                if response.status != 200:
                    self._pipeline = "v3/pipeline"
                    code, message = wire.decode_error(response.error_body())
                    raise refusal(
                        response.status,
                        code,
                        message,
                        None,
                        state=state_of_request(response.status, code),
                    )
                if notes is not None:
                    notes.answered(response.header)
                    notes.position = None  # one of the upstream's own, if it told any
                return json_of(response)


def _read_only() -> SyncError:
    error = SyncError(_READS_ONLY, state="")
    error.code = "SQLITE_READONLY"
    return error
