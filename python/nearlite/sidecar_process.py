"""`nearlite replicate` from its start to its end: the databases, the server, the application.

The main thread waits for what happens, and signals are its own; the server runs on another one, each database on
one more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Final, Literal

from nearlite import serve
from nearlite.access import Open
from nearlite.child import PASSED_ON, PATIENCE, Child
from nearlite.configured import Secrets
from nearlite.hooks import Hooks
from nearlite.http import is_loopback
from nearlite.members import Member, SourceMember
from nearlite.replica_member import ReplicaMember
from nearlite.settings import Configuration, DatabaseSettings
from nearlite.sidecar import Sidecar

_LOG = logging.getLogger("nearlite.sidecar")

Event = tuple[Literal["signal", "complete", "child", "server", "overdue"], int]

_STOPS: Final = frozenset({signal.SIGINT, signal.SIGTERM})
_SERVER: Final = serve.SHUTDOWN_SECONDS + 10.0  # seconds that it has to end
_PATHS: Final = ("NEARLITE_DB_PATH", "LITESTREAM_DB_PATH")
"""Variables in which the application finds the path of the first database."""


class SidecarProcess:
    """Main thread only.

    Args:
      configuration: what it does.
      secrets: of the files that names.
      hooks: are told of requests.
    """

    def __init__(
        self, configuration: Configuration, secrets: Secrets, hooks: Hooks | None = None
    ) -> None:
        self._configuration = configuration
        self._secrets = secrets
        # Of this kind: a signal's handler may put something in while it is being read.
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._child: Child | None = None
        address = configuration.address
        trusting = isinstance(secrets.authority, Open)
        self._exposed = address is not None and trusting and not is_loopback(address[0])
        self._app: Sidecar | None = None
        if address is not None:
            self._app = Sidecar(authority=secrets.authority, hooks=hooks, exposed=self._exposed)
        self._members = [self._member(one) for one in configuration.databases]
        if self._app is not None:
            self._app.members.update({one.name: one for one in self._members})

    def _member(self, one: DatabaseSettings) -> Member:
        app, secrets = self._app, self._secrets

        def changed() -> None:
            if app is not None:
                app.changed(one.name)

        if one.upstream is None:
            return SourceMember(one, changed)
        return ReplicaMember(
            one,
            changed,
            served=app is not None,
            token=secrets.tokens[one.name],
            network=secrets.networks[one.name],
            key=secrets.keys[one.name],
        )

    def run(self) -> int:
        """Until it is told to end, or its application has ended.

        Returns:
          The exit code: 0, or the application's, or 1 where the server has failed.

        Raises:
          OperationalError: the address cannot be had, or the application cannot be started.
        """
        for number in PASSED_ON:
            if number in _STOPS or self._configuration.command:
                signal.signal(number, lambda found, _: self._events.put(("signal", found)))
        with self._serving():
            for member in self._members:
                member.start()
            try:
                threading.Thread(target=self._wait_for_all, daemon=True).start()
                return self._attend()
            finally:
                if self._app is not None:
                    self._app.drain_now()

    # ------------------------------------------------------------------ the server

    @contextlib.contextmanager
    def _serving(self) -> Iterator[None]:
        """The server, if there is one, for as long as the block takes; after it every database is closed."""
        address = self._configuration.address
        try:
            if address is None:
                yield
                return
            with serve.bind(*address) as listening, self._served(listening, address[0]):
                yield
        finally:
            for member in self._members:
                member.end()
            for member in self._members:
                member.join()

    @contextlib.contextmanager
    def _served(self, listening: socket.socket, host: str) -> Iterator[None]:
        assert self._app is not None
        tls = self._secrets.tls
        port = listening.getsockname()[1]
        if self._exposed:
            _LOG.warning(
                "WITHOUT A TOKEN: everybody who reaches %s:%d can read every database here (nobody can write, "
                "no SQL is run). Give auth-token-file in %s, or listen on 127.0.0.1",
                host,
                port,
                self._configuration.file,
            )
        elif tls is None and not isinstance(self._secrets.authority, Open):
            serve.warn_of_clear(host)
        serve.raise_limit()
        server = serve.server(self._app, tls)

        def work() -> None:
            try:
                server.run(sockets=[listening])
            finally:
                self._events.put(("server", 1))

        listening.listen(serve.BACKLOG)
        thread = threading.Thread(target=work, name="nearlite-server", daemon=True)
        thread.start()
        name = f"[{host}]" if ":" in host else host
        count = len(self._members)
        what = f"{count} database{'' if count == 1 else 's'}"
        scheme = "http" if tls is None else "https"
        print(f"replicating {what} at {scheme}://{name}:{port}", flush=True)
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(_SERVER)

    # ------------------------------------------------------------------ what happens

    def _wait_for_all(self) -> None:
        for member in self._members:
            member.complete.wait()
        self._events.put(("complete", 0))

    def _attend(self) -> int:
        """Returns the exit code when it is time to end."""
        while True:
            event, value = self._events.get()
            if event == "complete":
                self._complete()
            elif event == "child":
                _LOG.info("the application has ended with exit code %d", value)
                return value
            elif event == "overdue":
                self._kill()
            elif event == "server":
                self._kill()
                return value
            elif self._child is not None:
                self._child.pass_on(value)
                if value in _STOPS:
                    self._hurry()
            elif value in _STOPS:
                _LOG.info("ending: %s", signal.Signals(value).name)
                return 0

    def _complete(self) -> None:
        if any(member.is_replica for member in self._members):
            _LOG.info("there is a whole copy of every replica")
        command = self._configuration.command
        if not command:
            return
        path = self._members[0].settings.path
        environment = {**os.environ, **dict.fromkeys(_PATHS, path)}
        self._child = Child(command, environment, lambda code: self._events.put(("child", code)))
        _LOG.info("started %s (process %d)", command[0], self._child.pid)

    def _hurry(self) -> None:
        """The application was asked to end, and has so long to do it."""
        timer = threading.Timer(PATIENCE, lambda: self._events.put(("overdue", 0)))
        timer.daemon = True
        timer.start()

    def _kill(self) -> None:
        if self._child is not None:
            _LOG.warning(
                "the application is killed: it has not ended %g s after it was told", PATIENCE
            )
            self._child.kill()
