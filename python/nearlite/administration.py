"""What an administrator does to the databases of a running server: make, copy, delete, block, look."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from nearlite import configs, errors, making
from nearlite.access import unknown_database
from nearlite.applications import PrimaryApp
from nearlite.configs import Config
from nearlite.exchange import HttpError
from nearlite.hosting import Hosting
from nearlite.names import checked
from nearlite.streams import EndingError

log = logging.getLogger("nearlite.server")

_PATIENCE: Final = 5.0  # seconds that requests have to end before their database is closed
_AT_ONCE: Final = 4  # things that are done at a time; each writes and syncs

_T = TypeVar("_T")


class Administration:
    """Changes the databases of a server. Event loop thread only.

    What is begun is finished, whether whoever asked for it stays or not.

    Args:
      hosting: the server.
    """

    def __init__(self, hosting: Hosting) -> None:
        self._hosting = hosting
        self._names: dict[str, asyncio.Lock] = {}
        self._few = asyncio.Semaphore(_AT_ONCE)

    @contextlib.asynccontextmanager
    async def _turn(self, *names: str) -> AsyncIterator[None]:
        """One change at a time for each name."""
        async with contextlib.AsyncExitStack() as stack:
            for name in sorted({*map(checked, names)}):
                lock = self._names.setdefault(name, asyncio.Lock())
                await stack.enter_async_context(lock)
            await stack.enter_async_context(self._few)
            stack.enter_context(self._hosting.changing())
            yield

    def _config(self, name: str) -> Config:
        """Of one that is there. Raises HttpError."""
        found = self._hosting.catalog.configs.get(checked(name))
        if found is None:
            raise unknown_database(name)
        if not isinstance(found, Config):
            raise HttpError(503, "DATABASE_UNAVAILABLE", f"{name} cannot be served: {found}")
        return found

    def _free(self, name: str) -> None:
        """Raises HttpError 400: there is one of that name."""
        if name in self._hosting.catalog.configs:
            raise HttpError(
                400, "DATABASE_EXISTS", f"There is a database {name!r} already; nothing was changed"
            )

    async def _make(self, name: str, config: Config, fill: Callable[[Path], None]) -> None:
        catalog = self._hosting.catalog
        try:
            await _thread(lambda: catalog.create(name, config, fill))
        except FileExistsError:
            raise HttpError(
                400,
                "DATABASE_EXISTS",
                f"The name {name!r} is taken by something that is no database; nothing was changed",
            ) from None
        log.info("the database %s was made", name)

    # ------------------------------------------------------------------ all of them

    def names(self) -> list[dict[str, Any]]:
        """Which there are."""
        return [
            {
                "name": name,
                "blocked": isinstance(config, Config)
                and (config.block_reads or config.block_writes),
                "usable": isinstance(config, Config),
            }
            for name, config in sorted(self._hosting.catalog.configs.items())
        ]

    # ------------------------------------------------------------------ come and go

    async def create(self, name: str, asked: dict[str, Any]) -> None:
        """Make one. Raises HttpError."""
        with _refusing():
            config = configs.created(asked)
            if config.jwt_key is not None:
                _check_key(config.jwt_key)
            url = asked.get("dump_url")
            dump = None if url is None else making.dump_at(url, self._hosting.ending)
        key = self._hosting.serving.key

        def fill(path: Path) -> None:
            if dump is None:
                making.empty(path, key=key)
            else:
                making.loaded(path, dump, key=key, config=config)

        async with self._turn(name):
            self._free(name)
            with _refusing():
                await self._make(name, config, fill)

    async def fork(self, source: str, name: str) -> None:
        """Copy one as it is now. Raises HttpError."""
        key = self._hosting.serving.key
        # The source may go on: its own lock is not taken, and it stays open while it is copied.
        config = self._config(source)
        async with self._turn(name):
            self._free(name)
            async with self._hosting.residents.using(source) as app:
                assert isinstance(app, PrimaryApp)

                def fill(path: Path) -> None:
                    with contextlib.closing(app.owner.connect(readonly=True)) as database:
                        making.copied(path, database, key=key)

                with _refusing():
                    await self._make(name, configs.forked(config), fill)

    async def delete(self, name: str, *, keep: bool) -> Path | None:
        """Delete one, whatever it is doing; where it is kept. Raises HttpError."""
        async with self._turn(name):
            catalog = self._hosting.catalog
            if name not in catalog.configs:
                raise unknown_database(name)
            async with self._hosting.residents.alone(name, patience=_PATIENCE):
                kept = await _thread(lambda: catalog.remove(name, keep=keep))
            self._hosting.forget(name)
        log.info("the database %s was deleted", name)
        return kept

    # ------------------------------------------------------------------ one of them

    def config(self, name: str) -> dict[str, Any]:
        """Its configuration. Raises HttpError."""
        return self._config(name).told()

    async def configure(self, name: str, asked: dict[str, Any]) -> None:
        """Change it. It is opened anew: transactions are rolled back, who waits goes on. Raises HttpError."""
        async with self._turn(name):
            with _refusing():
                config = configs.changed(self._config(name), asked)
                if config.jwt_key is not None:
                    _check_key(config.jwt_key)
            catalog = self._hosting.catalog
            async with self._hosting.residents.alone(name, patience=_PATIENCE):
                await _thread(lambda: catalog.configure(name, config))
        log.info("the configuration of the database %s was changed", name)

    async def checkpoint(self, name: str) -> None:
        """End its generation. Raises HttpError 503: somebody needs its WAL."""
        self._config(name)
        async with self._hosting.residents.using(name) as app:
            assert isinstance(app, PrimaryApp)
            if not await app.roll():
                raise HttpError(
                    503,
                    "BUSY",
                    "Somebody needs the WAL; nothing is lost, it is tried again by itself later",
                    ((b"retry-after", b"1"),),
                )

    async def stats(self, name: str) -> dict[str, Any]:
        """What is known of it. Raises HttpError."""
        self._config(name)
        async with self._hosting.residents.using(name) as app:
            assert isinstance(app, PrimaryApp)
            usage = self._hosting.usage(name, app)
            position = app.owner.latest
            path = self._hosting.catalog.path(name)
            size = await _thread(lambda: _size(path))
        return {
            **usage.told(),
            "storage_bytes_used": size,
            "write_requests_delegated": 0,
            "replication_index": position.frame,
            "position": str(position),
            "embedded_replica_frames_replicated": 0,
            "queries": None,
        }

    async def reset(self, name: str, what: str) -> None:
        """Forget its notable statements: ``top`` or ``slowest``. Raises HttpError."""
        self._config(name)
        if what not in ("top", "slowest"):
            raise HttpError(404, "NOT_FOUND", "There is nothing at this path")
        kind: Literal["top", "slowest"] = "top" if what == "top" else "slowest"
        async with self._hosting.residents.using(name) as app:
            assert isinstance(app, PrimaryApp)
            self._hosting.reset(name, kind, app)


@contextlib.contextmanager
def _refusing() -> Any:
    """What is wrong with a request is its maker's; what is wrong with the disk is told as such."""
    try:
        yield
    except errors.DiskFullError:
        raise HttpError(507, "DISK_FULL", "The disk is full; nothing was changed") from None
    except errors.ProgrammingError as error:
        raise HttpError(400, "BAD_REQUEST", str(error)) from None
    except errors.NotSupportedError as error:
        raise HttpError(400, "NOT_SUPPORTED", str(error)) from None
    except EndingError:
        raise HttpError(
            503, "SHUTTING_DOWN", "The server is about to end; nothing was changed"
        ) from None
    except OSError as error:
        if errors.is_disk_full(error):
            raise HttpError(507, "DISK_FULL", "The disk is full; nothing was changed") from None
        raise


def _check_key(text: str) -> None:
    from nearlite.tokens import keys_of

    keys_of(text)


async def _thread(work: Callable[[], _T]) -> _T:
    """Run it to its end: whoever is cancelled meanwhile waits for that."""
    done = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait({done})
        raise


def _size(path: Path) -> int:
    """Bytes of a database, its WAL and its log."""
    total = 0
    for folder, _, files in os.walk(path.parent):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
