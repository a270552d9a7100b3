"""npm @libsql/client, in both of its builds, on two edges of a primary that is killed meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from test_released_clients import HERE, TOKEN, npm

pytestmark = pytest.mark.xdist_group("released-clients")


class Command:
    """`nearlite` in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self.port = 0
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "nearlite", *self._arguments),
                *("--auth-token", TOKEN, "--listen", f"127.0.0.1:{self.port}"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        found = re.search(r" at http://127\.0\.0\.1:(\d+)", self._process.stdout.readline())
        assert found is not None
        self.port = int(found[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(how)
        self._process.communicate(timeout=30)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[tuple[Command, list[str]]]:
    """A primary, and the URLs of two edges."""
    with ExitStack() as stack:
        primary = Command("serve", str(tmp_path / "primary.db"))
        stack.callback(primary.end)
        urls = []
        for name, interval in (("here", "live"), ("there", "3600")):
            edge = Command(
                *("proxy", "--upstream", primary.url, "--path", str(tmp_path / f"{name}.db")),
                *("--upstream-token", TOKEN, "--sync-interval", interval),
            )
            stack.callback(edge.end)
            urls.append(edge.url)
        yield primary, urls


@pytest.mark.parametrize("build", ["node", "web"])
def test_two_edges_are_one_database(processes: tuple[Command, list[str]], build: str) -> None:
    primary, urls = processes
    folder = npm()
    program = folder / "released_edges.mjs"
    program.write_text((HERE / "released_edges.mjs").read_text())
    node = subprocess.Popen(
        ["node", str(program), *urls, TOKEN, build],
        cwd=folder,
        env=dict(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert node.stdin is not None
    assert node.stdout is not None
    try:
        for word in ("kill", "start"):
            line = node.stdout.readline().strip()
            if line != word:
                node.kill()
                pytest.fail(f"{line!r}\n{node.stderr.read() if node.stderr else ''}")
            if word == "kill":
                primary.end(signal.SIGKILL)
            else:
                primary.start()
            node.stdin.write("done\n")
            node.stdin.flush()
        out, errors = node.communicate(timeout=120)
    finally:
        node.kill()
        node.communicate()
    assert node.returncode == 0, errors
    assert json.loads(out) == {
        "users": [[1, "Iku"]],
        "counts": list(range(2, 22)),
        "batch": [11, 11],
        "read": 11,
        "before": "Iku",
        "after": "IKU",
        "errors": ["SQL_INPUT_ERROR", "SQLITE_ERROR", "SQLITE_CONSTRAINT"],
        "away": [11, "UPSTREAM_UNREACHABLE", True],
        "back": [1, 12],
    }
