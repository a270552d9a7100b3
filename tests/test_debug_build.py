"""The C core's tests once more, in the build with SQLite's asserts and our fault points.

Reaching into SQLite's private functions is only sound while its own asserts hold (a naive commit of a page set
trips assert_pager_state and works all the same in a normal build), so this is no optional extra.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import is_core_file

TESTS = Path(__file__).parent
# With thousands of examples, here as well, it takes hours.
SECONDS = 4 * 3600.0 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 400.0
# What these call in the core, the other files do as well; they are about the server, and take long.
SERVER = {"test_relay.py", "test_tables.py"}
CORE = sorted(path.name for path in TESTS.glob("test_*.py") if is_core_file(path))
CORE = [name for name in CORE if name not in SERVER]


@pytest.mark.parametrize("name", CORE)
def test_core_file_passes_with_all_asserts_and_faults(name: str) -> None:
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


def test_something_is_core() -> None:
    assert "test_native.py" in CORE
