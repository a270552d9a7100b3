"""`nearlite sync`: one sync with a progress bar, then, if wanted, every change as it happens."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nearlite import errors
from nearlite.live import Came, Live
from nearlite.pulling import SyncResult
from nearlite.receiving import Progress as Received
from nearlite.replica import Replica


class Download:
    """The progress bar of a sync, on standard error and only where that is a terminal."""

    def __init__(self, name: str) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("pages, {task.fields[rate]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._bar.add_task(name, total=None, rate="")
        self._started = time.monotonic()
        self._first: Received | None = None

    def __enter__(self) -> Download:  # Self is 3.11's
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()

    def show(self, received: Received) -> None:
        """The replica's progress callback."""
        self._first = received
        rate = f"{received.rate / 1e6:.0f} MB/s"
        if received.seconds_left is not None:
            rate += f", {received.seconds_left:.0f} s left"
        self._bar.update(
            self._task, total=received.total_pages, completed=received.pages, rate=rate
        )

    def whole(self, done: SyncResult) -> SyncResult:
        """What a bootstrap and the sync after it did together."""
        if self._first is None or done.pages >= self._first.pages:
            return done
        pages, size = self._first.pages + done.pages, self._first.bytes + done.bytes
        return SyncResult(done.position, pages, size, time.monotonic() - self._started)


def say_synced(path: Path, done: SyncResult, *, as_json: bool) -> None:
    """One line about a sync."""
    if as_json:
        facts = {"position": str(done.position), "pages": done.pages, "bytes": done.bytes}
        print(json.dumps({**facts, "seconds": round(done.seconds, 6)}), flush=True)
        return
    amount = f"{done.pages:,} pages, {done.bytes:,} bytes in {done.seconds:.3f} s"
    print(f"{path}: at {done.position}, {amount}", flush=True)


def follow_primary(replica: Replica, path: Path, *, as_json: bool) -> None:
    """Live on this thread; an unreachable primary is waited for, every other error ends it."""

    def failed(error: Exception, pause: float) -> None:
        if not isinstance(error, errors.OfflineError):
            raise error
        print(f"nearlite: {error}; trying again in {pause:.1f} s", file=sys.stderr, flush=True)

    def came(what: Came) -> None:
        replica.tally.visible(what.seconds)
        done = SyncResult(what.position, what.pages, what.bytes, what.seconds)
        say_synced(path, done, as_json=as_json)

    live = Live(replica, failed=failed, came=came)
    replica.background.led_by(live)
    live.run()
