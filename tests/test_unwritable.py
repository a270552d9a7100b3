"""A replica that belongs to somebody else."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import primaries

EITHER = True

OPEN = """
import os, sys, nearlite
import nearlite.embedded
warm = nearlite.connect(sys.argv[3], sync_url=sys.argv[2], sync_interval=None)  # loads all modules
warm.close()
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    nearlite.connect(sys.argv[1], sync_url=sys.argv[2], sync_interval=None).close()
except nearlite.Error as error:
    print(type(error).__name__, error)
"""


def test_a_replica_that_may_not_be_written_is_not_called_none(tmp_path: Path) -> None:
    """What to do is not to move it away."""
    with primaries.primary(tmp_path) as served, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "replica.db"
        remote = served.remote()
        remote.execute("CREATE TABLE t(a)")
        remote.commit()
        served.replica(str(path), sync_interval=None).close()
        path.chmod(0o444)
        folder.chmod(0o555)
        try:
            done = subprocess.run(
                [sys.executable, "-c", OPEN, path, served.url, tmp_path / "warm.db"],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
        finally:
            folder.chmod(0o755)
    assert done.stdout.startswith("SyncError"), done
    assert f"may not write {folder}" in done.stdout
    assert "is not a nearlite replica" not in done.stdout


LOOK = """
import os, sys
from pathlib import Path
from nearlite import inspection
import nearlite.embedded
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    inspection.file_status(Path(sys.argv[1]))
except nearlite.Error as error:
    print(type(error).__name__, error)
"""


def test_whoever_looks_at_it_is_told_what_is_in_the_way(tmp_path: Path) -> None:
    with primaries.primary(tmp_path) as served, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "replica.db"
        served.replica(str(path), sync_interval=None).close()
        path.chmod(0o444)
        folder.chmod(0o555)
        try:
            done = subprocess.run(
                [sys.executable, "-c", LOOK, path],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
        finally:
            folder.chmod(0o755)
    assert done.stdout.startswith("OperationalError"), done
    assert f"may not write {folder}" in done.stdout
