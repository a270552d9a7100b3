"""A program with an embedded replica forks: the child's copy is dead, a new connection works."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import stack

EITHER = True

SCRIPT = """
import os, sys, nearlite

path, url = sys.argv[1:]
c = nearlite.connect(path, sync_url=url, isolation_level=None)
c.execute("CREATE TABLE t(a)")
c.execute("INSERT INTO t VALUES('parent')")
c.execute("BEGIN")
c.execute("INSERT INTO t VALUES('in a transaction')")
pid = os.fork()
if pid == 0:
    code = 1
    try:
        for use in (lambda: c.execute("SELECT * FROM t"), c.sync):
            try:
                use()
                print("not refused")
            except nearlite.Error as error:
                print(type(error).__name__)
        c.close()
        own = nearlite.connect(path, sync_url=url, isolation_level=None)
        print(own.execute("SELECT count(*) FROM t").fetchone()[0], flush=True)
        own.close()
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
c.execute("COMMIT")
pid = os.fork()
if pid == 0:
    own = nearlite.connect(path, sync_url=url, isolation_level=None)
    own.execute("INSERT INTO t VALUES('child')")
    os._exit(0)
os.waitpid(pid, 0)
c.sync()
print([row[0] for row in c.execute("SELECT a FROM t")])
c.close()
"""


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[stack.Primary]:
    made = stack.Primary(tmp_path / "primary.db")
    yield made
    made.kill()


def test_a_childs_copy_of_a_replica_connection_is_dead_and_harmless(
    primary: stack.Primary, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / "r.db"), primary.url],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    refused, again, count, code, rows = done.stdout.splitlines()
    assert refused == "ProgrammingError"
    assert again.endswith("Error")
    assert (count, code) == ("1", "0")
    assert rows == "['parent', 'in a transaction', 'child']"
