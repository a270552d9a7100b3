"""A primary in a process of its own on this machine, for the demo and the benchmarks."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 30.0
STOP_SECONDS = 30.0


@contextmanager
def primary(path: Path, *options: str) -> Iterator[str]:
    """`nearlite serve` on a free loopback port until the block ends; gives its URL.

    Args:
      path: the database; created when missing.
      options: further options of `nearlite serve`.

    Raises:
      RuntimeError: it did not say where it listens within START_SECONDS.

    """
    command = [sys.executable, "-m", "nearlite", "serve", str(path), "--listen", "127.0.0.1:0"]
    # A session of its own: Ctrl-C reaches the caller alone, which then stops it in order.
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
        line = process.stdout.readline() if readable else ""
        # The last one: a replica that serves replicas names its upstream before.
        url = next((word for word in reversed(line.split()) if word.startswith("http://")), None)
        if url is None:
            raise RuntimeError(f"the primary of {path} did not start; its message is above")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
