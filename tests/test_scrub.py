"""Rule C1: pages that no sync touches are looked at all the same, in the background."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from primaries import primary

from nearlite.http import Deadline

EITHER = True


def scrub(replica: Any) -> None:
    """A sync after a day, and the end of what it began."""
    replica._replica._check._scrub_at = 0.0
    assert not replica.sync().repaired
    for thread in threading.enumerate():
        if thread.name == "nearlite-scrub":
            thread.join(60)


@pytest.mark.plain
def test_a_page_that_rotted_is_found_and_repaired(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with primary(tmp_path) as served:
        replica = served.replica(isolation_level=None)
        replica.execute("CREATE TABLE t(a)")
        replica.execute("INSERT INTO t VALUES ('a text that nobody changes any more')")
        inner = replica._replica
        inner._applier.checkpoint("truncate", wait=5)
        path = Path(inner.path)
        at = path.read_bytes().index(b"nobody changes")
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"x")
        assert not replica.sync().repaired, "no sync looks at it"
        with caplog.at_level(logging.WARNING, "nearlite"):
            scrub(replica)
        assert "does not hold what its header says" in caplog.text
        assert replica.sync().repaired
        assert replica.execute("SELECT a FROM t").fetchone() == (
            "a text that nobody changes any more",
        )


def test_a_sound_file_stays_trusted_and_is_looked_at_once(tmp_path: Path) -> None:
    with primary(tmp_path) as served:
        replica = served.replica(isolation_level=None)
        replica.execute("CREATE TABLE t(a)")
        scrub(replica)
        check = replica._replica._check
        assert check.passed
        due = check._scrub_at
        assert due > 0.0
        replica.sync()
        assert check._scrub_at == due


def test_a_check_whose_thread_could_not_begin_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with primary(tmp_path) as served:
        replica = served.replica(isolation_level=None)
        replica.execute("CREATE TABLE t(a)")
        check = replica._replica._check
        check.again()
        start = threading.Thread.start

        def no_more(thread: threading.Thread) -> None:
            if thread.name in ("nearlite-check", "nearlite-scrub"):
                raise RuntimeError("can't start new thread")
            start(thread)

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", no_more)
            with pytest.raises(RuntimeError):
                check.wait(Deadline(1.0))
            with pytest.raises(RuntimeError):
                check.scrub_if_due(float("inf"))
        check.wait(Deadline(5.0))
        assert check.passed
        assert check._scrubbing.acquire(blocking=False)
        check._scrubbing.release()
