"""Runs CPython's own tests of ``sqlite3`` with nearlite in its place; prints what became of each as JSON.

    python cpython_suite.py [--replicas URL ADMIN_URL] [MODULE ...]

The interpreter's own suite is run: ``test.test_sqlite3`` from 3.11 on, ``sqlite3.test`` in 3.10. Each module of
it in a process of its own, so that a crash has a name.

With `--replicas` each ``:memory:`` of the suite is a fresh database of the server at URL, made by its admin API at
ADMIN_URL, and a fresh embedded replica of it; files of the suite stay files.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import types
import unittest
import urllib.request
from pathlib import Path
from typing import Any

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


def on_replicas(url: str, admin_url: str, folder: str) -> types.ModuleType:
    """nearlite, with a fresh replica of a fresh database for each ``:memory:``."""
    import nearlite
    from nearlite.embedded import ReplicaConnection

    numbers = itertools.count()

    class Connection(ReplicaConnection):
        """A replica's connection that makes its database first."""

        def __init__(self, database: Any, *args: Any, **options: Any) -> None:
            name = f"d{os.getpid()}-{next(numbers)}"
            asked = urllib.request.Request(
                f"{admin_url}/v1/namespaces/{name}/create",
                data=b"{}",
                headers={"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(asked, timeout=60) as answer:
                answer.read()
            super().__init__(f"{folder}/{name}.db", *args, sync_url=f"{url}/db/{name}", **options)

    of_files = nearlite.Connection

    def opened(database: Any, *args: Any, **options: Any) -> nearlite.Connection:
        kind = Connection if database == ":memory:" else of_files
        return kind(database, *args, **options)

    nearlite.Connection = (
        opened  # what connect() calls without a factory; its warnings name its caller
    )
    replaced = types.ModuleType("sqlite3", nearlite.__doc__)
    replaced.__dict__.update(nearlite.__dict__)
    replaced.__dict__.update(Connection=Connection, __name__="sqlite3")
    return replaced


def run(module: str, *servers: str) -> dict[str, str]:
    """Run one module of the suite here."""
    import nearlite
    import nearlite.dbapi2

    outcomes = Outcomes()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        replaced = on_replicas(*servers, folder) if servers else nearlite
        sys.modules["sqlite3"] = replaced
        sys.modules["sqlite3.dbapi2"] = nearlite.dbapi2
        replaced.__path__.append(str(STOCK))  # 3.10 has its tests below sqlite3
        sys.stdout, printed = io.StringIO(), sys.stdout  # some of them print
        unittest.defaultTestLoader.loadTestsFromName(f"{PACKAGE}.{module}").run(outcomes)
        sys.stdout = printed
    return {name.removeprefix(f"{PACKAGE}."): what for name, what in outcomes.seen.items()}


def main(arguments: list[str]) -> None:
    servers = arguments[1:3] if arguments[:1] == ["--replicas"] else []
    names = arguments[3:] if servers else arguments
    found: dict[str, str] = {}
    if names[:1] == ["--here"]:
        found = run(names[1], *servers)
    else:
        for module in names or modules():
            options = ["--replicas", *servers] if servers else []
            command = [sys.executable, __file__, *options, "--here", module]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SECONDS, env=os.environ
            )
            if done.returncode:
                found[module] = f"ended with {done.returncode}: {done.stderr.strip()[-300:]}"
            else:
                found |= json.loads(done.stdout)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
