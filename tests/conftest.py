"""What all tests share: hypothesis profiles, and which files run in which build.

NEARLITE_FFI chooses the build (see python/nearlite/_native/_lib.py). Three groups of files:

* ``test_*_faults.py`` arm fault points inside their own process, so they need a test build;
* core: whatever imports ``nearlite._native``, and the former: run in every build;
* the rest runs once, in the normal build.

A plain ``pytest`` runs all of them: tests/test_debug_build.py starts the files with fault points with
NEARLITE_FFI=test. ``make asserts`` runs the core once more in that build, which has every assert of
SQLite's: reaching into SQLite's private functions is only sound while those hold (a naive commit of a page
set trips assert_pager_state and works all the same in a normal build).
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import certificates as authority
import pytest
import sealing
import soaking
from hypothesis import HealthCheck, settings

# What a shell starts in the background ignores SIGINT, and so would every program the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, print_blob=True)
settings.register_profile(
    "nightly",
    max_examples=5_000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

BUILD = os.environ.get("NEARLITE_FFI", "")


def is_fault_file(path: Path) -> bool:
    return path.name.endswith("_faults.py")


def is_core_file(path: Path) -> bool:
    """Whether a test file exercises C directly; conftest and helpers are not test files.

    What a disk holds after a loss of power is no other one with asserts in the code.
    """
    if not path.name.startswith("test_") or path.name.endswith("_power.py") or path.suffix != ".py":
        return False
    return is_fault_file(path) or "nearlite._native" in path.read_text()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--core", action="store_true", help="only the tests of the C core")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    path = collection_path
    if path.is_dir() or not path.name.startswith("test_"):
        return None
    if (BUILD or config.getoption("--core")) and not is_core_file(path):
        return True
    if not BUILD and is_fault_file(path):
        return True
    return None


# ---------------------------------------------------------------- plain and sealed


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Files with EITHER = True run twice: plain, and with everything sealed that they open."""
    if not getattr(metafunc.module, "EITHER", False):
        return
    if any(mark.name == "plain" for mark in metafunc.definition.iter_markers()):
        return
    if BUILD == "test" and not is_fault_file(metafunc.definition.path):
        return  # SQLite's asserts are about what is above the seals; under sanitizers all run both ways
    metafunc.parametrize("kind_of_files", ["plain", "sealed"], indirect=True)


@pytest.fixture(autouse=True)
def kind_of_files(request: pytest.FixtureRequest) -> Iterator[str]:
    """How files are made and opened in this test."""
    kind: str = getattr(request, "param", "plain")
    if kind == "sealed":
        with sealing.everything_sealed():
            yield kind
    else:
        yield kind


@pytest.fixture
def disk_folder() -> Iterator[Path]:
    """For tests/power.py. In memory where there is such a place: thousands of files are synced beside it."""
    memory = Path("/dev/shm")
    there = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="power.", dir=there) as made:
        folder = Path(made).resolve() / "files"
        folder.mkdir()
        yield folder


# ---------------------------------------------------------------- tests that last

_SHARE = pytest.StashKey[float | None]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if BUILD == "sanitize":
        # GCC 12's ASan does not take its allocator's locks around fork(), as malloc does: a child made
        # while another thread allocates waits for ever in its first malloc().
        forking = [item for item in items if item.get_closest_marker("forks_threads")]
        config.hook.pytest_deselected(items=forking)
        items[:] = [item for item in items if item not in forking]
    config.stash[_SHARE] = soaking.share_of(config, items)


@pytest.fixture
def soak(request: pytest.FixtureRequest, record_property) -> Iterator[soaking.Soak]:
    """How long to go on; counts what was done."""
    made = soaking.Soak(request.config.stash[_SHARE])
    yield made
    if soaking.SOAKING:
        record_property(soaking.PROPERTY, made.line())


def pytest_terminal_summary(terminalreporter) -> None:
    stats = terminalreporter.stats.values()
    reports = [report for some in stats for report in some if isinstance(report, pytest.TestReport)]
    rows = soaking.table(reports)
    if rows:
        terminalreporter.section("soak")
        for row in ("| test | time | what it did | errors |", "|---|---|---|---|", *rows):
            terminalreporter.line(row)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA's certificate (ca.pem) and what it has signed (server.pem, client.pem)."""
    return authority.made(tmp_path_factory.mktemp("ca"))
