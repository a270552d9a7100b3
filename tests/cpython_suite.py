"""Runs CPython's own tests of ``sqlite3`` with nearlite in its place; prints what became of each as JSON.

    python cpython_suite.py [MODULE ...]

The interpreter's own suite is run: ``test.test_sqlite3`` from 3.11 on, ``sqlite3.test`` in 3.10. Each module of
it in a process of its own, so that a crash has a name.
"""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
import unittest
from pathlib import Path

STOCK = Path(sqlite3.__file__).parent
OLD = STOCK / "test"  # 3.10
PACKAGE = "sqlite3.test" if OLD.is_dir() else "test.test_sqlite3"
SECONDS = 300.0


def modules() -> list[str]:
    """Names of the suite's modules, but for that of the command line interface."""
    if OLD.is_dir():
        names = [path.stem for path in OLD.glob("*.py") if not path.stem.startswith("_")]
    else:
        import test

        names = [path.stem for path in (Path(test.__path__[0]) / "test_sqlite3").glob("test_*.py")]
    return sorted(set(names) - {"test_cli"})


class Outcomes(unittest.TestResult):
    """What became of each test; a test with subtests is as good as the worst of them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, str] = {}

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self.seen[test.id()] = "ok"

    def _miss(self, test: unittest.TestCase, error: object) -> None:
        self.seen[test.id()] = self._exc_info_to_string(error, test).strip().splitlines()[-1][:300]

    def addError(self, test: unittest.TestCase, err: object) -> None:  # noqa: N802
        self._miss(test, err)

    addFailure = addError  # noqa: N815

    def addSubTest(self, test: unittest.TestCase, subtest: object, err: object) -> None:  # noqa: N802
        if err is not None:
            self._miss(test, err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        self.seen[test.id()] = "skipped"

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self.seen[test.id()] = "unexpected success"


def run(module: str) -> dict[str, str]:
    """Run one module of the suite here."""
    import nearlite
    import nearlite.dbapi2

    sys.modules["sqlite3"] = nearlite
    sys.modules["sqlite3.dbapi2"] = nearlite.dbapi2
    nearlite.__path__.append(str(STOCK))  # 3.10 has its tests below sqlite3
    outcomes = Outcomes()
    sys.stdout, printed = io.StringIO(), sys.stdout  # some of them print
    unittest.defaultTestLoader.loadTestsFromName(f"{PACKAGE}.{module}").run(outcomes)
    sys.stdout = printed
    return {name.removeprefix(f"{PACKAGE}."): what for name, what in outcomes.seen.items()}


def main() -> None:
    found: dict[str, str] = {}
    if len(sys.argv) == 3 and sys.argv[1] == "--here":
        found = run(sys.argv[2])
    else:
        for module in sys.argv[1:] or modules():
            command = [sys.executable, __file__, "--here", module]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SECONDS, env=os.environ
            )
            if done.returncode:
                found[module] = f"ended with {done.returncode}: {done.stderr.strip()[-300:]}"
            else:
                found |= json.loads(done.stdout)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
