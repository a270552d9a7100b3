"""What is brought to the disk, and when: a count of fsync and fdatasync by file.

A promise of durability is a promise about these calls, and so is its price.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WAL = "data.db-wal"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("syncs") / "syncs.so"
    source = HERE / "syncs.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True)
    return made


def steps(library: Path, folder: Path, what: str) -> dict[str, list[str]]:
    """Run one program of tests/syncing.py."""
    found = subprocess.run(
        [sys.executable, HERE / "syncing.py", what, folder],
        env={**os.environ, "LD_PRELOAD": str(library), "NL_SYNCS": str(folder / "syncs")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    answer: dict[str, list[str]] = json.loads(found.stdout)
    # SQLite syncs the folder once with a new WAL; nothing here depends on that.
    return {step: [n for n in names if n != folder.name] for step, names in answer.items()}


def test_with_durability_full_a_group_is_synced_once(library: Path, tmp_path: Path) -> None:
    found = steps(library, tmp_path, "full")
    assert found["one group of a hundred"] == [WAL]
    assert found["three groups of one"] == [WAL] * 3
    first = found["the first group of a generation"]
    assert first.count(WAL) == 2  # its header, before anything can depend on it, and the commit
    assert "state.json.part" in first  # the generation is bound to the WAL before it is shown


def test_with_durability_normal_a_commit_is_not_synced(library: Path, tmp_path: Path) -> None:
    found = steps(library, tmp_path, "normal")
    assert found["one group of a hundred"] == []
    assert found["three groups of one"] == []
    assert found["the first group of a generation"].count(WAL) == 1  # the header, as SQLite does


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_a_roll_syncs_everything_before_the_generation_is_another(
    library: Path, tmp_path: Path, durability: str
) -> None:
    found = steps(library, tmp_path, durability)["roll"]
    new = found.index("state.json.part")  # from here on there is another generation
    for suffix in (".wal.part", ".index.part", ".hashes.part"):
        assert any(name.endswith(suffix) for name in found[:new]), (suffix, found)
    assert "data.db-nearlite" in found[:new]  # their names
    # Frames are on the disk in the WAL before they are copied, the copy before the WAL is emptied.
    assert found.index(WAL) < found.index("data.db") < new


def test_a_replica_does_not_wait_for_its_disk(library: Path, tmp_path: Path) -> None:
    found = steps(library, tmp_path, "applier")
    for step in ("a large apply", "a small apply", "the next"):
        assert found[step] == [], step
    # Rule B2: the header of a WAL that begins anew, or a loss of power could mix two logs.
    assert found["the first apply"] == ["replica.db-wal"]
    assert found["an apply that restarts the WAL"] == ["replica.db-wal"]
    assert found["a checkpoint"] == ["replica.db-wal", "replica.db"]


def test_rule_b2_a_durable_apply_is_on_the_disk_when_it_returns(
    library: Path, tmp_path: Path
) -> None:
    found = steps(library, tmp_path, "durable")
    for step in ("a large apply", "a small apply", "the next"):
        assert found[step] == ["replica.db-wal"], step
    assert found["the first apply"] == ["replica.db-wal"] * 2  # header, commit
    assert found["an apply that restarts the WAL"] == ["replica.db-wal"] * 2
    assert found["a checkpoint"] == ["replica.db-wal", "replica.db"]


def test_syncs_and_forwarded_writes_of_a_replica_cost_no_sync(
    library: Path, tmp_path: Path
) -> None:
    found = steps(library, tmp_path, "replica")
    assert "unsynced" in found["bootstrap"]  # the mark is on the disk before the file has its name
    assert "replica.db" in found["bootstrap"]
    assert [name for name in found["syncs and writes"] if name.startswith("replica")] == [
        "replica.db-wal"  # its header
    ]
