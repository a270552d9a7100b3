"""A Celery worker with a pool of forked processes: one process syncs, every task sees the data.

Messages go through a folder (kombu's filesystem transport), so that there is no broker to run. It takes a
message while it is still being written, so that here each is written elsewhere and put there when it is whole.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from primaries import Served, primary
from test_background import eventually

from nearlite import inspection

TASKS = """
import os, celery, celery.signals, nearlite

app = celery.Celery("tasks", broker="filesystem://", backend=f"file://{os.environ['RESULTS']}")
app.conf.broker_transport_options = {
    "data_folder_in": os.environ["QUEUE"],
    "data_folder_out": os.environ["OUT"],
    "control_folder": os.environ["CONTROL"],
    "polling_interval": 0.02,
}
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_prefetch_multiplier = 1

def make(**_):
    global replica
    replica = nearlite.Replica(os.environ["REPLICA"], sync_url=os.environ["PRIMARY"], sync_interval="live")

MADE = os.environ.get("MADE")  # nowhere in the program that only sends tasks
if MADE == "before it forks":
    make()
elif MADE == "in each process":
    celery.signals.worker_process_init.connect(make)

@app.task
def look(position):
    replica.wait_for(position, timeout=30.0)
    with replica.connection() as con:
        (rows,) = con.execute("SELECT count(*) FROM t").fetchone()
    return {"pid": os.getpid(), "parent": os.getppid(), "rows": rows, "follows": replica.stats().follows}

@app.task
def write():
    with replica.connection() as con:
        con.execute("INSERT INTO t VALUES(1)")
    with replica.connection() as con:
        return con.execute("SELECT count(*) FROM t").fetchone()[0]
"""

# One program for all that is asked: a task's name and its arguments in, its result out.
CLIENT = """
import json, os, sys, tasks
out, queue = os.environ["OUT"], os.environ["QUEUE"]
for line in sys.stdin:
    name, arguments, times = json.loads(line)
    sent = [getattr(tasks, name).delay(*arguments) for _ in range(times)]
    for message in os.listdir(out):
        os.rename(os.path.join(out, message), os.path.join(queue, message))
    print(json.dumps([one.get(timeout=60, interval=0.02) for one in sent]), flush=True)
"""

PROCESSES = 3
WORKER = ["celery", "-A", "tasks", "worker", "--pool", "prefork", "-O", "fair", "--concurrency"]
QUIET = ["--loglevel", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"]

FOLDERS = ("QUEUE", "OUT", "CONTROL", "RESULTS", "TMPDIR")


class Tasks:
    """Sends tasks and waits for what they return."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, name: str, *arguments: object, times: int = 1) -> list[object]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, arguments, times]) + "\n")
        self._process.stdin.flush()
        found: list[object] = json.loads(self._process.stdout.readline())
        return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with primary(tmp_path) as made:
        made.remote(isolation_level=None).execute("CREATE TABLE t(a)")
        yield made


@contextmanager
def worker(served: Served, tmp_path: Path, made: str) -> Iterator[Tasks]:
    """A worker whose replica is made at import, that is, before it forks, or in each process."""
    (tmp_path / "tasks.py").write_text(TASKS)
    folders = {name: tmp_path / name.lower() for name in FOLDERS}
    for folder in folders.values():
        folder.mkdir()
    environment = {
        **os.environ,
        **{name: str(folder) for name, folder in folders.items()},
        "PYTHONPATH": str(tmp_path),
        "PYTHONWARNINGS": "ignore",
    }
    theirs = {**environment, "REPLICA": str(tmp_path / "replica.db"), "PRIMARY": served.url}
    # What it binds it notes in a file of its own, for the same reason.
    theirs["CONTROL"] = str(tmp_path)
    theirs["MADE"] = made
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(
            [sys.executable, "-m", *WORKER, str(PROCESSES), *QUIET], cwd=tmp_path, env=theirs
        ) as process,
        subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            cwd=tmp_path,
            env=environment,
            stdin=pipe,
            stdout=pipe,
            text=True,
        ) as client,
    ):
        try:
            yield Tasks(client)
        finally:
            client.kill()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


@pytest.mark.parametrize("made", ["before it forks", "in each process"])
def test_tasks_of_all_processes_see_the_data_and_one_process_syncs(
    served: Served, tmp_path: Path, made: str
) -> None:
    remote = served.remote(isolation_level=None)
    with worker(served, tmp_path, made) as run:
        for rows in range(1, 4):
            remote.execute("INSERT INTO t VALUES(1)")
            position = str(remote.last_write_position)
            seen: dict[int, dict[str, object]] = {}

            def all_have_it(
                rows: int = rows, position: str = position, seen: dict[int, object] = seen
            ) -> bool:
                for found in run("look", position, times=6):
                    assert found["rows"] == rows
                    seen[found["pid"]] = found
                return len(seen) == PROCESSES

            eventually(all_have_it)
            assert len({found["parent"] for found in seen.values()}) == 1
            # Of those that were forked none: it is the process that did. It leaves its numbers.
            following = sum(found["follows"] for found in seen.values())
            assert following == (0 if made == "before it forks" else 1)
            assert inspection.file_status(tmp_path / "replica.db")["follows"]
        # What a task writes is there for itself at once, and for the primary.
        assert run("write") == [4]
        assert remote.execute("SELECT count(*) FROM t").fetchone() == (4,)
