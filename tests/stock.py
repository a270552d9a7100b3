"""The standard library's SQLite in a process of its own, as other programs are; our driver where files are sealed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

from sealing import everything_plain

_CHILD = """
import json, sys, sealing
connection = sealing.reader(sys.argv[1], isolation_level=None, timeout=float(sys.argv[2]))
for line in sys.stdin:
    try:
        what = json.loads(line)
        if what == ".dump":
            rows = list(connection.iterdump())
        else:
            rows = [list(row) for row in connection.execute(what)]
        print(json.dumps({"rows": rows}), flush=True)
    except Exception as error:
        print(json.dumps({"error": str(error)}), flush=True)
connection.close()
"""


class Stock:
    """One connection; closing it is a last close when nobody else has the file open.

    Args:
      plain: the file is, even where all others are sealed.
    """

    def __init__(self, path: Path | str, *, timeout: float = 30.0, plain: bool = False) -> None:
        with everything_plain() if plain else nullcontext():
            self._start(path, timeout)

    def _start(self, path: Path | str, timeout: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, os.path.abspath(path), str(timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )

    def execute(self, sql: str) -> list[list]:
        """Run one statement; its rows (no BLOBs)."""
        self.process.stdin.write(json.dumps(sql) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise AssertionError(f"{sql}: {answer['error']}")
        return answer["rows"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> Stock:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def run(path: Path | str, *statements: str, plain: bool = False) -> list[list]:
    """Open, run statements, close; rows of the last one."""
    rows: list[list] = []
    with Stock(path, plain=plain) as stock:
        for statement in statements:
            rows = stock.execute(statement)
    return rows


def dump(path: Path | str, *, plain: bool = False) -> list[str]:
    """A database's SQL, after an integrity check."""
    with Stock(path, plain=plain) as stock:
        assert stock.execute("PRAGMA integrity_check") == [["ok"]]
        return stock.execute(".dump")
