"""The application that a sidecar starts: signals go on to it, and its exit code is the sidecar's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from nearlite.errors import OperationalError

PASSED_ON: Final = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH")
    if hasattr(signal, name)
)
"""Signals that the application gets when the sidecar gets them."""
PATIENCE: Final = 30.0
"""Seconds that it has to end after SIGTERM; then it is killed."""
_FROM_TERMINAL: Final = frozenset({signal.SIGINT, signal.SIGQUIT})


class Child:
    """A process. Started by the constructor.

    Args:
      command: the program and its arguments.
      environment: of the process.
      ended: called on another thread with its exit code; 128 + N where signal N has ended it.

    Raises:
      OperationalError: it cannot be started.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], ended: Callable[[int], None]
    ) -> None:
        try:
            self._process = subprocess.Popen(list(command), env=dict(environment))
        except OSError as error:
            raise OperationalError(f"exec: {command[0]}: {error.strerror}") from None
        self._ended = ended
        threading.Thread(target=self._wait, name="nearlite-exec", daemon=True).start()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def _wait(self) -> None:
        code = self._process.wait()
        self._ended(code if code >= 0 else 128 - code)

    def pass_on(self, number: int) -> None:
        """Send it a signal that this process was sent; what a terminal sends, it sends to both."""
        if number in _FROM_TERMINAL and _in_the_foreground():
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


def _in_the_foreground() -> bool:
    """Whether this process belongs to those that a terminal's keys signal."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):  # no terminal
        return False
