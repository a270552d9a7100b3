"""Many databases behind one address: which one a request is for, and whether it is there."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal

from nearlite import errors
from nearlite._native.sealing import Key
from nearlite.access import Access, Authority, Open
from nearlite.applications import PrimaryApp
from nearlite.catalog import DATA, Catalog
from nearlite.cold import cold_paths, is_cold, program_version
from nearlite.configs import DURABILITY, Config
from nearlite.exchange import (
    Answering,
    ClientGoneError,
    Deadlines,
    HttpError,
    Message,
    Receive,
    Scope,
    Send,
    Shortcut,
    header,
    refuse_socket,
)
from nearlite.exposition import Sample
from nearlite.greeting import GREETING, Greeting, greet, turn_away
from nearlite.guarding import Guard
from nearlite.hooks import Guarded, Hooks
from nearlite.limits import Limits
from nearlite.making import hold_to
from nearlite.meters import Counts, Meters
from nearlite.names import Choice
from nearlite.primary import ROLL_BYTES, Primary
from nearlite.residents import Residents
from nearlite.server import preflight
from nearlite.streams import Holders
from nearlite.tokens import authority as authority_of
from nearlite.usage import Usage

MOST_OPEN: Final = 1000
"""Databases that are open at a time, if there are descriptors for them."""
IDLE_SECONDS: Final = 60.0
"""After so long without a request one is closed."""
_THREADS: Final = 256  # that run SQL, of all databases together
_RESTART: Final = 1012  # of a WebSocket: try again


@dataclass(frozen=True)
class Serving:
    """How all databases of a server are served.

    Attributes:
      durability, roll_bytes, key, foreign_keys, shared_cache: as of one (`nearlite.asgi`).
      limits: of each; those of connections and requests of the server.
      hooks: are told of requests, commits, rolls.
      metrics: requests are counted, for ``GET /metrics`` of the admin API.
    """

    durability: Literal["full", "normal"] = "full"
    roll_bytes: int = ROLL_BYTES
    key: Key | None = None
    foreign_keys: bool = False
    shared_cache: bool = False
    limits: Limits = field(default_factory=Limits)
    hooks: Hooks | None = None
    metrics: bool = False


class Gate:
    """Knows who may ask one database, and for what, by its own configuration.

    Args:
      authority: of the server.
      config: of the database.
    """

    def __init__(self, authority: Authority, config: Config) -> None:
        self._authority = authority
        if config.jwt_key is not None:
            self._authority = authority_of(None, [config.jwt_key])
        reason = "" if config.block_reason is None else f": {config.block_reason}"
        self._refusal = f"Operation was blocked{reason}"
        self._closed = config.block_reads
        self._reads = config.block_writes

    def access(self, scope: Scope, database: str) -> Access:
        """See `Authority`; HttpError 403 BLOCKED where it may not even be read."""
        return self._left(self._authority.access(scope, database))

    def of_token(self, token: str | None, database: str) -> Access:
        """See `Authority`."""
        return self._left(self._authority.of_token(token, database))

    def meet(self, scope: Scope) -> None:
        """See `Authority`."""
        self._authority.meet(scope)

    def _left(self, access: Access) -> Access:
        if self._closed:
            raise HttpError(403, "BLOCKED", self._refusal)
        if self._reads:
            return replace(access, write=False, push=False, refusal=(self._refusal, "BLOCKED"))
        return access


class Hosting:
    """An ASGI application of many databases. Build it with `nearlite.asgi(data_dir=...)`.

    Args:
      folder: of the databases; it is this process's from startup to shutdown.
      authority: knows who may ask for what; None: whoever reaches the server.
      serving: how each is served.
      choice: tells which one a request is for.
      most_open: databases that are open at a time.
      idle: seconds after which one is closed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        authority: Authority | None = None,
        serving: Serving | None = None,
        choice: Choice | None = None,
        most_open: int = MOST_OPEN,
        idle: float = IDLE_SECONDS,
    ) -> None:
        self._folder = folder
        self.authority: Authority = authority or Open()
        self.serving = serving or Serving()
        self.limits = self.serving.limits
        hooks = self.serving.hooks
        told = None if hooks is None else Guarded(hooks)
        self.meters = Meters(told) if self.serving.metrics or told is not None else None
        self._choice = choice or Choice()
        self._most_open = most_open
        self._idle = idle
        self._catalog: Catalog | None = None
        self._residents: Residents | None = None
        self._starting: asyncio.Lock | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._gates: dict[str, tuple[object, Gate]] = {}
        self._usage: dict[str, Usage] = {}  # of databases that were closed since
        self._counts = Counts()  # of all that were closed
        self._cold = cold_paths()
        self._deadlines = Deadlines(self.limits)
        self._answering = Answering(self._deadlines)
        self._guard = Guard(self._answering)
        self._holders: Holders = {}
        self._changes = 0
        self._changed = asyncio.Event()  # there are no more of them
        #: set when the server is about to end
        self.ending = threading.Event()

    def __repr__(self) -> str:
        return f"<nearlite.Hosting of {str(self._folder)!r}>"

    # ------------------------------------------------------------------ life

    def adopt(self, catalog: Catalog) -> None:
        """Serve a folder that was opened already; before `startup`."""
        self._catalog = catalog

    async def startup(self) -> None:
        """Take the folder; idempotent. Raises what that raises."""
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self._residents is not None:
                return
            if self._catalog is None:
                loop = asyncio.get_running_loop()
                self._catalog = await loop.run_in_executor(None, Catalog, self._folder)
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="nearlite-sql")
            catalog = self._catalog
            self._residents = Residents(
                self._make,
                lambda name: name in catalog.configs,
                most=self._most_open,
                idle=self._idle,
            )

    def stop_waiting(self) -> None:
        """Answer long polls now, and break off what is being made: the server is about to end."""
        self.ending.set()
        if self._residents is not None:
            self._residents.stop_waiting()

    async def shutdown(self) -> None:
        """Close every database, and let go of the folder; idempotent.

        What an administrator has begun is finished first, or broken off where it can be.
        """
        self.ending.set()
        while self._changes:
            self._changed.clear()
            await self._changed.wait()
        residents, catalog, threads = self._residents, self._catalog, self._threads
        self._residents = self._catalog = self._threads = None
        loop = asyncio.get_running_loop()
        if residents is not None:
            await residents.close()
        if threads is not None:
            await loop.run_in_executor(None, threads.shutdown)
        if catalog is not None:
            catalog.close()

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """The folder is being changed for as long as the block takes: it stays this process's.

        Raises:
          HttpError: 503, the server is about to end.
        """
        if self.ending.is_set():
            raise HttpError(503, "SHUTTING_DOWN", "The server is about to end")
        self._changes += 1
        try:
            yield
        finally:
            self._changes -= 1
            if not self._changes:
                self._changed.set()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.startup()
        except Exception as error:  # noqa: BLE001 - the server has to be told, whatever it is
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.shutdown()
        await send({"type": "lifespan.shutdown.complete"})

    # ------------------------------------------------------------------ one database

    @property
    def catalog(self) -> Catalog:
        """The folder. Raises HttpError 503: the server is about to end."""
        if self._catalog is None:
            raise HttpError(503, "SHUTTING_DOWN", "The server is about to end")
        return self._catalog

    @property
    def residents(self) -> Residents:
        """Those that are open. Raises HttpError 503: the server is about to end."""
        if self._residents is None:
            raise HttpError(503, "SHUTTING_DOWN", "The server is about to end")
        return self._residents

    def gate(self, name: str) -> Authority:
        """Who may ask a database. That it is there is not told: of others the server's own answers."""
        config = self.catalog.configs.get(name)
        if not isinstance(config, Config):
            return self.authority
        known = self._gates.get(name)
        if known is None or known[0] is not config:
            known = self._gates[name] = (config, Gate(self.authority, config))
        return known[1]

    def open_primary(self, path: Path, config: Config) -> Primary:
        """A database's owner. Blocks. Raises errors.Error."""
        level = DURABILITY.get(config.durability_mode or "", self.serving.durability)
        primary = Primary.open(
            path, durability=level, roll_bytes=self.serving.roll_bytes, key=self.serving.key
        )
        primary.pushes.most_bytes = config.max_db_size
        return primary

    def _make(self, name: str) -> PrimaryApp:
        catalog = self.catalog
        config = catalog.configs[name]
        if not isinstance(config, Config):
            raise config
        limits = self.serving.limits
        if config.txn_timeout_s is not None:
            longest = max(limits.transaction_seconds, config.txn_timeout_s)
            limits = replace(
                limits, contended_seconds=config.txn_timeout_s, transaction_seconds=longest
            )

        def open_owner() -> Primary:
            path = catalog.path(name)
            if not path.is_file():  # it would be created
                raise errors.OperationalError(f"{path} is missing, or no file")
            return self.open_primary(path, config)

        return PrimaryApp(
            catalog.folder / name / DATA,
            open_owner,
            authority=self.gate(name),
            name=name,
            foreign_keys=self.serving.foreign_keys,
            shared_cache=self.serving.shared_cache,
            limits=limits,
            hooks=self.serving.hooks,
            threads=self._threads,
            prepare=partial(hold_to, config),
            holders=self._holders,
            ended=partial(self._ended, name),
        )

    def forget(self, name: str) -> None:
        """It was deleted."""
        self._gates.pop(name, None)
        self._usage.pop(name, None)

    def _ended(self, name: str, usage: Usage, counts: Counts) -> None:
        self._counts.add(counts)
        if self._catalog is not None and name in self._catalog.configs:
            self._usage.setdefault(name, Usage()).add(usage)

    def reset(self, name: str, what: Literal["top", "slowest"], app: PrimaryApp) -> None:
        """Statements that took long are no longer known."""
        app.forget_notable(what)
        if name in self._usage:
            self._usage[name].forget(what)

    def usage(self, name: str, app: PrimaryApp) -> Usage:
        """What was asked of a database, which is open, since the server was started."""
        usage = Usage()
        usage.add(self._usage.get(name, usage))
        usage.add(app.usage)
        return usage

    def sample(self) -> Sample:
        """What was counted, of all databases together. Raises HttpError 404: nobody counts."""
        meters = self.meters
        if meters is None or not self.serving.metrics:
            raise HttpError(404, "NOT_FOUND", "Nothing is counted; start the server with --metrics")
        counts = Counts()
        counts.add(self._counts)
        streams = transactions = replicas = waiting = 0
        for app in self.residents.apps():
            assert isinstance(app, PrimaryApp)
            counts.add(app.counts)
            kept, busy = app.streams
            seen, waits = app.replicas
            streams, transactions = streams + kept, transactions + busy
            replicas, waiting = replicas + seen, waiting + waits
        gauges = [
            ("http_connections_open", "Connections", meters.connections),
            ("databases", "Databases of the folder", len(self.catalog.configs)),
            ("databases_open", "Those that are open", len(self.residents)),
            ("replicas_seen", "Replicas that asked lately", replicas),
            ("replicas_waiting", "Replicas in a long poll", waiting),
            ("streams_open", "Streams that are kept", streams),
            ("transactions_open", "Streams in a transaction", transactions),
        ]
        return Sample(
            meters,
            counts,
            {"version": program_version()},
            [(name, text, float(value)) for name, text, value in gauges],
        )

    # ------------------------------------------------------------------ dispatch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application; it may be mounted below a path."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(receive, send)
        elif kind == "http":
            await self._guard(scope, send, self._handle(scope, receive, send))
        elif kind == "websocket":
            await self._meet(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._residents is None:
            await self.startup()
        name, path = self._choice.of(scope)
        inner = {**scope, "path": path, "root_path": ""}
        if scope["method"] == "OPTIONS":
            await preflight(scope, send)
        elif is_cold(path):  # clients ask these without a token
            await self._cold(inner, receive, send)
        else:
            self.gate(name).access(scope, name)  # before anything is opened for whoever asks
            async with self.residents.using(name) as app:
                await app(inner, receive, send)

    async def _meet(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket. No database is opened for, nor told of to, whom a token does not let in.

        A token comes with the upgrade, or, of browsers, in the first message.
        """
        connect = await receive()
        greeting: Greeting | None = None
        try:
            if self._residents is None:
                await self.startup()
            name, path = self._choice.of(scope)
            gate = self.gate(name)
            gate.meet(scope)
            if path not in ("", "/"):
                raise HttpError(404, "NOT_FOUND", "There is nothing at this path")
            inner = {**scope, "path": path, "root_path": ""}
            if header(scope, b"authorization") is not None:
                gate.access(scope, name)
            elif not _lets_in(gate, name):
                greeting = await greet(
                    scope, receive, send, lambda token: gate.of_token(token, name)
                )
                if greeting is None:
                    return
                extensions = dict(scope.get("extensions") or {})
                extensions.pop("websocket.http.response", None)  # it was accepted
                inner |= {GREETING: greeting, "extensions": extensions}
            again = iter((connect,))

            async def receive_all() -> Message:
                for message in again:
                    return message
                return await receive()

            if not await self.residents.socket(name, inner, receive_all, send):
                with contextlib.suppress(Exception):  # it may be gone as well
                    await send({"type": "websocket.close", "code": _RESTART})
        except HttpError as error:
            if greeting is None:
                await refuse_socket(scope, send, error)
            else:
                await turn_away(greeting, send, error)
        except (ClientGoneError, OSError):
            pass

    def shortcut(self, scope: Scope) -> Shortcut | None:
        """See nearlite.server.App."""
        residents = self._residents
        if residents is None:
            return None
        try:
            name, path = self._choice.of(scope)
        except HttpError:
            return None
        return residents.shortcut(name, {**scope, "path": path, "root_path": ""})


def _lets_in(gate: Authority, name: str) -> bool:
    """Whether nobody needs a token."""
    try:
        gate.of_token(None, name)
    except HttpError as error:
        return error.status != 401
    return True
