"""Sidecars in processes of their own, and stock SQLite that reads and writes beside them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from test_background import eventually

SHELL = shutil.which("sqlite3")
READ_ONLY = """
import sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
print(connection.execute(sys.argv[2]).fetchall())
"""


class Sidecar:
    """`nearlite replicate` in a folder of its own.

    Args:
      folder: of it; made.
      text: of its configuration.
      arguments: further ones.
      environment: of the process, beside this one's.
    """

    def __init__(
        self,
        folder: Path,
        text: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        (folder / "nearlite.yml").write_text(text)
        self.served = "addr:" in text or "--addr" in arguments
        command = [sys.executable, "-m", "nearlite", "replicate", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self._told() if self.served else ""

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def _told(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"https?://\S+", line)
        assert found is not None, (line, self.log)
        return found[0]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def says(self, text: str) -> None:
        """Return when the log says so."""
        try:
            eventually(lambda: text in self.log)
        except AssertionError:
            raise AssertionError(f"it never said {text!r}, but:\n{self.log}") from None

    # ------------------------------------------------------------------ requests

    def ask(
        self, path: str, *, method: str = "GET", body: bytes | None = None, token: str | None = None
    ) -> tuple[int, bytes]:
        """Status and body of an answer."""
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        host = self.url.replace("0.0.0.0", "127.0.0.1")
        request = urllib.request.Request(host + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read()

    def health(self, token: str | None = None) -> tuple[int, Any]:
        status, body = self.ask("/health", token=token)
        return status, json.loads(body)

    def healthy(self) -> bool:
        return self.health()[0] == 200

    def metric(self, name: str, database: str | None = None) -> float | None:
        """The value of a metric; None: it has none."""
        status, body = self.ask("/metrics")
        assert status == 200, body
        label = "" if database is None else re.escape(f'{{database="{database}"}}')
        found = re.search(rf"^{name}{label} (\S+)$", body.decode(), re.MULTILINE)
        return None if found is None else float(found[1])

    # ------------------------------------------------------------------ its end

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Tell it to end; the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(60)
        self._reader.join()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    def kill(self) -> None:
        """As a loss of power of this process alone."""
        self.stop(signal.SIGKILL)


@contextmanager
def sidecar(folder: Path, text: str, *arguments: str, **options: Any) -> Iterator[Sidecar]:
    """One that is ended with the block, if it has not ended before."""
    one = Sidecar(folder, text, *arguments, **options)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.kill()
        elif one.process.stdout is not None and not one.process.stdout.closed:
            one.wait()


def primary(folder: Path, more: str = "", at: str = "127.0.0.1:0", **options: Any) -> Any:
    """The sidecar of the guide's primary."""
    text = f'addr: "{at}"\ndbs:\n  - path: {folder}/db\n{more}'
    return sidecar(folder, text, **options)


def replica(
    folder: Path, url: str, more: str = "", at: str | None = "127.0.0.1:0", **options: Any
) -> Any:
    """The sidecar of the guide's replica."""
    served = "" if at is None else f'addr: "{at}"\n'
    text = f"{served}dbs:\n  - path: {folder}/db\n{more}    upstream:\n      url: {url}\n"
    return sidecar(folder, text, **options)


# ---------------------------------------------------------------------- stock SQLite


def read(path: Path, sql: str) -> str:
    """What another program reads that opens the file read-only by its URI."""
    answer = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(path), sql],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def shell(path: Path, sql: str, *options: str) -> subprocess.CompletedProcess[str]:
    """SQLite's own shell."""
    assert SHELL is not None
    return subprocess.run(
        [SHELL, *options, str(path), sql], capture_output=True, text=True, timeout=60
    )


def holds(path: Path, count: int) -> bool:
    """Whether the table t has so many rows there."""
    return path.exists() and read(path, "SELECT count(*) FROM t") == f"[({count},)]"
