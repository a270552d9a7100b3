"""Tests that arm fault points in their own process: in the build that has them.

What else exercises the C core runs in that build under `make asserts`: it has SQLite's own asserts as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import is_fault_file

TESTS = Path(__file__).parent
# With thousands of examples, here as well, it takes hours.
SECONDS = 4 * 3600.0 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 400.0
FAULTS = sorted(path.name for path in TESTS.glob("test_*.py") if is_fault_file(path))


@pytest.mark.parametrize("name", FAULTS)
def test_fault_file_passes_where_faults_are_compiled_in(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["NEARLITE_FFI"] = "test"
    done = subprocess.run(
        [*command, str(TESTS / name)],
        cwd=TESTS.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_there_are_fault_files() -> None:
    assert "test_repair_faults.py" in FAULTS
