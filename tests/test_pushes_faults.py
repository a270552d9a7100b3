"""A push that fails at any instant changes nothing, for good; one that is killed leaves whole transactions."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sealing
from offline import Offline, served, told
from serving import Client, app_of, serving

from nearlite import errors
from nearlite._native import faults
from nearlite.primary import Primary

EITHER = True

POINTS = ["push.begin", "push.commit", "push.open", "push.unchecked", "push.write", "push.written"]
KILLED = [*POINTS, "push.committed"]
FILL = (
    "INSERT INTO t(b) WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {})"
    " SELECT randomblob(3000) FROM n"
)
CHILD = """
import sys
from pathlib import Path
from nearlite.primary import Primary
from offline import STEP
primary = Primary.open(sys.argv[1])
frames = Path(sys.argv[2]).read_bytes()
primary.pushes.push(int(sys.argv[3]), int(sys.argv[4]), frames, None)
primary.after_commit()
print("done", flush=True)
"""


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    faults.clear()


def made(folder: Path) -> tuple[Primary, Offline]:
    """A primary and its client, which has written three transactions."""
    primary = Primary.open(folder / "data.db", durability="normal")
    with closing(primary.connect()) as database:
        database.exec("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
    primary.after_commit()
    primary.roll()
    offline = Offline.of(primary, folder / "client.db")
    for statement in (
        "INSERT INTO t(b) VALUES('small')",
        FILL.format(40),
        "DELETE FROM t WHERE a % 3 = 0",
    ):
        offline.run(statement)
    return primary, offline


def contents(path: Path) -> list[Any]:
    with closing(sealing.reader(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        return [tuple(row) for row in connection.execute("SELECT * FROM t ORDER BY a").fetchall()]


def recovered(path: Path, folder: Path) -> list[Any]:
    """What is there after a crash now: the database and its log without the index."""
    folder.mkdir()
    wal = sealing.wal_of(path)
    for one in (path, wal):
        shutil.copy(one, folder / one.name)
    return contents(folder / path.name)


def test_every_point_is_here() -> None:
    assert sorted(name for name in faults.names() if name.startswith("push.")) == sorted(KILLED)


@pytest.mark.parametrize("kind", [faults.EIO, faults.ENOSPC])
@pytest.mark.parametrize(
    ("point", "after"),
    [(point, 0) for point in POINTS] + [("push.write", 1), ("push.written", 2)],
)
def test_a_push_that_fails_changes_nothing_and_succeeds_later(
    tmp_path: Path, point: str, after: int, kind: int
) -> None:
    primary, offline = made(tmp_path)
    path = tmp_path / "data.db"
    with primary, offline:
        before, now = primary.state(), contents(path)
        faults.arm(point, kind, after)
        with pytest.raises(errors.Error) as raised:
            offline.push(primary)
        assert errors.is_disk_full(raised.value) == (
            kind == faults.ENOSPC and point != "push.unchecked"
        )
        primary.after_commit()
        assert primary.state() == before
        assert contents(path) == now
        # Nor does a crash bring up what has failed, though commit marks had been written.
        assert recovered(path, tmp_path / "crash") == now
        assert offline.push(primary).taken
        assert [told(one) for one in served(primary, offline.generation)] == [
            told(one) for one in offline.frames
        ]
        assert primary.verify() == (primary.state().hash, 0)


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [(faults.ENOSPC, 507, "DISK_FULL"), (faults.EIO, 503, "INTERNAL_ERROR")],
)
def test_what_a_client_is_told(tmp_path: Path, kind: int, status: int, code: str) -> None:
    primary, offline = made(tmp_path)
    primary.close()
    app = app_of(tmp_path / "data.db", durability="normal", allow_push=True)
    with offline, serving(app) as port:
        frames = offline.frames[:1]
        faults.arm("push.commit", kind)
        target = f"/sync/{offline.generation}/1/2"
        reply = Client(port).request("POST", target, b"".join(frames))
        assert (reply.status, reply.json["code"]) == (status, code)
        reply = Client(port).request("POST", target, b"".join(frames))
        assert (reply.status, reply.json["status"]) == (200, "ok")


@pytest.mark.parametrize(
    ("point", "after", "batch"),
    [(point, 0, 13) for point in KILLED if point != "push.open"]
    + [("push.write", 2, 13), ("push.written", 1, 13), ("push.written", 2, 13)]
    + [("push.open", 0, 128), ("push.written", 0, 128), ("push.committed", 0, 128)],
)
def test_a_push_that_is_killed_leaves_whole_transactions(
    tmp_path: Path, point: str, after: int, batch: int
) -> None:
    """The client pushes all of it once more: what is there already is found to be the same."""
    primary, offline = made(tmp_path)
    path = tmp_path / "data.db"
    first = 0
    if batch == 13:  # the log has frames already, and stays
        assert offline.push(primary, batch=batch).taken
        first = offline.done
        offline.run("UPDATE t SET b = 1 WHERE a = 2", FILL.format(50), "DELETE FROM t WHERE a > 20")
        primary._tail.close()
        primary._closed = True
        primary._log.close()
    else:
        primary.close()
    some = tmp_path / "frames"
    some.write_bytes(b"".join(offline.frames[first:]))
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            CHILD,
            str(path),
            str(some),
            str(offline.generation),
            str(first + 1),
        ],
        env={
            **os.environ,
            "NEARLITE_FFI": "test",
            "NL_FAULT": f"{point}:kill:{after}",
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
            ),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    with offline, Primary.open(path, durability="normal") as primary:
        with closing(sealing.reader(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        if point != "push.committed":
            assert contents(path) in [[], *prefixes(offline, tmp_path)]
        offline.done = first
        assert offline.push(primary).taken
        everything = "SELECT * FROM t ORDER BY a"
        assert contents(path) == offline.rows(everything)
        assert primary.verify() == (primary.state().hash, 0)


def prefixes(offline: Offline, folder: Path) -> list[Any]:
    """What the client had after each of its transactions."""
    found = []
    log = (folder / "client.db-wal").read_bytes()
    for number, one in enumerate(offline.frames, 1):
        if one[4:8] != bytes(4):
            copy = folder / "prefix.db"
            shutil.copy(folder / "client.db", copy)
            Path(f"{copy}-wal").write_bytes(log[: 32 + number * len(one)])
            with sealing.everything_plain():
                found.append(contents(copy))
            for side in ("-wal", "-shm"):
                Path(f"{copy}{side}").unlink(missing_ok=True)
    return found
