"""What fails under a capture is told once, loses nothing, and succeeds at the next try."""

from __future__ import annotations

from contextlib import suppress

import pytest
from stock import Stock
from test_capture import create, equal, until
from test_primary import bootstrap, follow

from nearlite._native import faults
from nearlite.capture import Capture


@pytest.fixture(autouse=True)
def _disarm():
    yield
    faults.clear()


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    for name in ("_RETRY", "_RETRY_ROLL", "_ROLL_PAUSE"):
        monkeypatch.setattr(f"nearlite.capture.{name}", 0.02)


@pytest.fixture
def path(tmp_path):
    return create(tmp_path / "data.db")


@pytest.mark.parametrize("kind", [faults.EIO, faults.ENOSPC])
@pytest.mark.parametrize(
    "point",
    [
        *("capture.moved", "capture.released", "capture.repinned"),
        *("generation.bind", "generation.closed", "log.before-append", "tail.read-frames"),
        *(
            "log.before-sync",
            "log.before-rename",
            "log.after-rename",
            "roll.copy",
            "roll.checkpoint",
        ),
        *("roll.1-prepared", "roll.2-locked", "roll.2-archived", "roll.3-table", "roll.5-emptied"),
    ],
)
def test_it_goes_on_after(path, tmp_path, point, kind):
    with Capture.open(path, roll_frames=20) as capture, Stock(path) as stock:
        model = bootstrap(capture)
        lineage = capture.latest.lineage
        faults.arm(point, kind)
        for i in range(30):
            stock.execute(f"INSERT INTO t VALUES({i})")

        def rolled() -> bool:  # the failed one may have ended the generation
            stock.execute("INSERT INTO t VALUES('more')")
            return capture.stand().rolls > 0

        until(rolled)
        assert stock.execute("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0
        stock.execute("INSERT INTO t VALUES('after')")
        until(lambda: not capture.stand().failing and capture.stand().pin_behind == 0)
        with suppress(OSError):  # whoever asks may be the one who passes it
            follow(capture, model)
        faults.clear()
        equal(capture, model, tmp_path)
        assert capture.latest.lineage == lineage
    with Capture.open(path) as capture:
        equal(capture, model, tmp_path)


def test_a_file_that_could_not_be_opened_is_opened_later(path, tmp_path):
    other = create(tmp_path / "other.db", "CREATE TABLE another(history)")
    with Capture.open(path) as capture:
        before = capture.latest
        faults.arm("capture.reopened", faults.EIO)
        for end in ("-wal", "-shm"):
            (tmp_path / f"data.db{end}").unlink()
        other.rename(path)
        with Stock(path) as stock:
            stock.execute("INSERT INTO t VALUES(1)")
            until(lambda: capture.latest.lineage != before.lineage)
            until(lambda: not capture.stand().failing and not capture.stand().missing)
            model = bootstrap(capture)
            stock.execute("INSERT INTO t VALUES(2)")
            equal(capture, model, tmp_path)
