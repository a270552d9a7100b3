"""Performs the actions of a pull (sync.py): requests, page sets for the applier, a snapshot for a new file."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from nearlite import wire
from nearlite._native.applier import Hashes, State
from nearlite._native.frames import SetHeader
from nearlite._native.sealing import Key
from nearlite.bootstrap import Folder
from nearlite.errors import (
    Error,
    HistoryGoneError,
    OfflineError,
    SyncError,
)
from nearlite.failing import UnfoundedError, failure_of, not_created
from nearlite.http import Deadline, Response, Transport
from nearlite.position import Position
from nearlite.receiving import Meter, ProgressCallback, SetReader, as_of
from nearlite.seeding import SeedFile
from nearlite.sync import Action, Apply, Compare, Done, Fetch, Local, Overlay, Pull, Seed


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What one ``sync()`` did.

    Attributes:
      position: where the replica stands now.
      pages: pages received.
      bytes: bytes of answer bodies received.
      seconds: how long it took.
      repaired: every page was compared, and those that differed were replaced.
    """

    position: Position
    pages: int
    bytes: int
    seconds: float
    repaired: bool = False


class Pulled(Protocol):
    """What is brought up to date: a Replica."""

    path: str
    folder: Folder
    key: Key | None
    transport: Transport

    def state(self) -> State:
        """Where the file stands."""

    def hears(self, response: Response, header: SetHeader | None, at: float) -> None:
        """The head of an answer came at that monotonic time; `header`: a page set comes with it."""

    def take(self, header: SetHeader, reader: SetReader, deadline: Deadline) -> State | None:
        """Receive a set, then apply it; None when the file has moved and nothing was written."""

    def doubt(self, error: Error) -> None:
        """What a set was told from is not what it should be: it is asked for again, as whole pages."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a pull.

    Attributes:
      result: as `sync()` tells it.
      at: monotonic time at which the primary stood there.
      hashes: of the pages of the file, if one was created.
    """

    result: SyncResult
    at: float
    hashes: Hashes | None


def perform(
    pull: Pull, replica: Pulled, deadline: Deadline, progress: ProgressCallback | None
) -> Outcome:
    """Perform a pull's actions until it is done.

    Raises:
      SyncError: one of its subclasses; the replica is as it was, or what has come of a new one is kept.
    """
    started = time.monotonic()
    meter = Meter(progress, started)
    seed = SeedFile(replica.folder, replica.key)
    keep = False
    try:
        performing = _Performing(pull, replica, deadline, meter, seed)
        try:
            position = performing.run()
        finally:
            performing.close()
        hashes = seed.place()
    except (OfflineError, HistoryGoneError, KeyboardInterrupt) as error:
        keep = pull.seeding
        if keep and meter.held + meter.pages and isinstance(error, SyncError):
            error.state = "no local file was created; what has come is kept"
            error.action = "try again: the download goes on where it stopped"
        raise
    except SyncError:
        raise
    except (Error, MemoryError) as error:
        what = f"{replica.path} could not be created"
        raise failure_of(what, error, "no local file was created") from error
    except OSError as error:  # of the file system: the transport has its own exception
        raise not_created(replica.path, error) from error
    finally:
        seed.close(keep=keep)
    seconds = time.monotonic() - started
    result = SyncResult(position, meter.pages, meter.bytes, seconds)
    return Outcome(result, performing.at, hashes)


class _Performing:
    """The actions of one pull, and the answer that they are about.

    Attributes:
      at: monotonic time at which the primary stood where its last answer said.
    """

    def __init__(
        self, pull: Pull, replica: Pulled, deadline: Deadline, meter: Meter, seed: SeedFile
    ) -> None:
        self._pull = pull
        self._replica = replica
        self._deadline = deadline
        self._meter = meter
        self._seed = seed
        self._response: Response | None = None
        self._reader: SetReader | None = None
        self.at = time.monotonic()

    def run(self) -> Position:
        """Until it is done; where that is."""
        if self._pull.seeding:
            self._meter.held = self._seed.resume()
            self._deadline.restart()  # all of it was hashed
        action = self._pull.start(self._meter.held)
        while not isinstance(action, Done):
            if isinstance(action, Compare):
                action = self._compare()
            elif isinstance(action, Fetch):
                action = self._fetch(action.path)
            elif isinstance(action, Apply):
                action = self._apply(action.header)
            else:
                action = self._write(action)
        return action.position

    def _compare(self) -> Action:
        self.close()
        response = self._response = self._seed.compare(self._replica.transport, self._deadline)
        reader = self._reader = SetReader(response, self._meter)
        return self._pull.header(reader.header())

    def _fetch(self, path: str) -> Action:
        self.close()
        pull, replica = self._pull, self._replica
        response = replica.transport.request("GET", path, deadline=self._deadline)
        self._response = response
        self.at = as_of(response)
        if response.status == 204:
            response.read(0)
            replica.hears(response, None, self.at)
            return pull.nothing_new(response.header("nearlite-position"))
        if response.status != 200:
            code, message = wire.decode_error(response.error_body())
            pull.refused(response.status, code, message)
        reader = self._reader = SetReader(response, self._meter, pull.stands)
        header = reader.header()
        action = pull.header(header)
        if isinstance(action, Apply):
            replica.hears(response, header, self.at)
        return action

    def _apply(self, header: SetHeader) -> Action:
        assert self._reader is not None
        try:
            state = self._replica.take(header, self._reader, self._deadline)
        except UnfoundedError as error:
            self._replica.doubt(error)
            return self._pull.unfounded()
        if state is None:
            return self._pull.moved(Local.of(self._replica.state()))
        return self._pull.applied(Local.of(state))

    def _write(self, action: Seed | Overlay) -> Action:
        assert self._reader is not None
        held = self._seed.write(action.header, self._reader)
        if isinstance(action, Seed):
            return self._pull.seeded(action.header, held)
        return self._pull.overlaid(action.header, held)

    def close(self) -> None:
        """Let go of the answer."""
        response, self._response = self._response, None
        if response is not None:
            response.close()
