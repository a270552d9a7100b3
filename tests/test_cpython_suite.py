"""CPython's own tests of ``sqlite3`` with nearlite in its place, on files and on replicas of a live primary.

What is missed stands in cpython_expected.json, each test with its reason; it may only become less. The suite is
that of the Python that runs this, or of another one. With NL_EVERY_PYTHON (`make cpython`, a step of CI) those of
every Python from 3.10 to 3.13 on this machine, and the last of them on replicas as well.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hosting import many
from interpreters import ROOT, environment, has_suite, pip, pythons, run

SUITE = Path(__file__).parent / "cpython_suite.py"
EXPECTED: dict[str, Any] = json.loads((Path(__file__).parent / "cpython_expected.json").read_text())
NEEDED = ("cffi>=1.17", "msgspec>=0.18", "urllib3>=2", "zstandard>=0.22")

# The file's bars: how many of a suite's tests pass at least, of 3.13 with 467 in all.
BARS = {"files": 460, "replicas": 400}

# Debian's Python comes without these tests; others are looked for then.
PYTHONS = [path for path in pythons() if has_suite(path)]
EVERY = bool(os.environ.get("NL_EVERY_PYTHON"))
if not EVERY:
    PYTHONS = PYTHONS[:1]


def on(pythons: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "python", pythons, ids=lambda path: path.parent.parent.name or path.name
    )


Suite = Callable[..., dict[str, str]]


@pytest.fixture
def suite(python: Path, tmp_path: Path) -> Suite:
    """Runs the suite of an interpreter with this tree's nearlite; answers what became of each test."""
    target = python
    if str(python) != sys.executable:
        target = environment(python, tmp_path / "env")
        pip(target, "--only-binary", ":all:", *NEEDED)

    def outcomes(*options: str) -> dict[str, str]:
        path = {"PYTHONPATH": str(ROOT / "python")}
        found: dict[str, str] = json.loads(run(target, SUITE, *options, cwd=tmp_path, **path))
        found["version"] = run(
            target, "-c", "import sys; print('%d.%d' % sys.version_info[:2])", cwd=tmp_path
        )
        return found

    return outcomes


def compare(found: dict[str, str], where: str) -> None:
    """Fails where the outcomes are not those that are expected, better ones as well."""
    version = found.pop("version").strip()
    missed = {name: what for name, what in found.items() if what not in ("ok", "skipped")}
    expected = set(EXPECTED[where][version])
    worse = {name: what for name, what in missed.items() if name not in expected}
    better = {name for name in expected & found.keys() if name not in missed}
    assert not worse, (
        f"{len(worse)} of {len(found)} tests of CPython {version} are missed now: {worse}"
    )
    assert not better, f"these pass now: take them out of cpython_expected.json: {sorted(better)}"


if PYTHONS:

    @on(PYTHONS)
    def test_on_files(python: Path, suite: Suite) -> None:
        compare(suite(), "files")


if EVERY and PYTHONS:

    @on(PYTHONS[-1:])
    def test_on_replicas(python: Path, suite: Suite, tmp_path: Path) -> None:
        with many(tmp_path / "databases") as served:
            compare(suite("--replicas", served.url, served.admin_url), "replicas")


@pytest.mark.parametrize("where", BARS)
def test_enough_of_it_is_expected_to_pass(where: str) -> None:
    skipped = 4  # values of 2 GB
    assert 467 - skipped - len(EXPECTED[where]["3.13"]) >= BARS[where]


def test_every_miss_has_a_reason_and_every_reason_a_miss() -> None:
    given = {
        reason
        for where in BARS
        for missed in EXPECTED[where].values()
        for reason in missed.values()
    }
    assert given == set(EXPECTED["reasons"])


def test_the_misses_of_today_stand_in_the_documentation() -> None:
    text = (ROOT / "docs" / "driver.md").read_text()
    for where in BARS:
        for name, reason in EXPECTED[where]["3.13"].items():
            assert f"`{name.split('.')[-1]}`" in text, name
            assert EXPECTED["reasons"][reason] in text, reason
