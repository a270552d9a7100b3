"""SQLite near you: embedded replicas of a SQLite primary.

``nearlite.connect`` opens a local file with the interface of the standard ``sqlite3`` module.
"""

from __future__ import annotations

import datetime
import importlib
import logging
import os
import sqlite3 as _sqlite3
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

from nearlite._native import codes as _codes
from nearlite._native._lib import sqlite_version
from nearlite._native.codes import *  # noqa: F403 - constants, each named in its __all__
from nearlite.dbapi import constants as _constants
from nearlite.dbapi.binding import PrepareProtocol, adapters
from nearlite.dbapi.blob import Blob
from nearlite.dbapi.changeset import (
    ABSENT,
    Conflicts,
    RowChange,
    concat_changesets,
    invert_changeset,
    read_changeset,
)
from nearlite.dbapi.connection import LEGACY_TRANSACTION_CONTROL, Connection
from nearlite.dbapi.constants import *  # noqa: F403
from nearlite.dbapi.conversion import (
    PARSE_COLNAMES,
    PARSE_DECLTYPES,
    adapt,
    converters,
    register_adapter,
    register_converter,
)
from nearlite.dbapi.cursor import Cursor
from nearlite.dbapi.functions import enable_callback_tracebacks
from nearlite.dbapi.row import Row
from nearlite.dbapi.session import Session
from nearlite.dbapi.snapshot import Snapshot
from nearlite.errors import (
    AnswerError,
    DamagedError,
    DatabaseError,
    DataError,
    DiskFullError,
    EncryptionError,
    Error,
    HistoryGoneError,
    IntegrityError,
    InterfaceError,
    InternalError,
    LineageError,
    NotAReplicaError,
    NotSupportedError,
    OfflineError,
    OperationalError,
    PrimaryRestoredError,
    ProgrammingError,
    StaleReadError,
    StateMismatchError,
    SyncError,
    TamperedError,
    TokenInClearWarning,
    UnauthorizedError,
    UpstreamBehindError,
    WaitTimeoutError,
    Warning,  # noqa: A004 - the name PEP 249 asks for
    WrongKeyError,
)
from nearlite.keys import EncryptionKey, key_of
from nearlite.position import Change, Position

if TYPE_CHECKING:
    from nearlite.embedded import ReplicaConnection
    from nearlite.freshness import Freshness
    from nearlite.hooks import Hooks
    from nearlite.hosting import Hosting
    from nearlite.http import Token
    from nearlite.limits import Limits
    from nearlite.network import Certificate, Verify
    from nearlite.pool import Replica
    from nearlite.receiving import ProgressCallback
    from nearlite.remote import RemoteConnection
    from nearlite.server import App

    Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    IsolationLevel = Literal["", "DEFERRED", "IMMEDIATE", "EXCLUSIVE"] | None
    ConnectionT = TypeVar("ConnectionT", bound=Connection)

# Quiet until the program configures logging.
logging.getLogger("nearlite").addHandler(logging.NullHandler())

__version__: Final = "0.1.0"

apilevel: Final = "2.0"
paramstyle: Final = "qmark"
threadsafety: Final = (
    3  # with check_same_thread=False: calls of several threads wait for each other
)
sqlite_version_info: Final = tuple(int(part) for part in sqlite_version.split("."))

Date = datetime.date
Time = datetime.time
Timestamp = datetime.datetime
Binary = memoryview
complete_statement = _sqlite3.complete_statement
_OBSOLETE: Final = {"version": "2.6.0", "version_info": (2, 6, 0)}  # of pysqlite, as in sqlite3


def DateFromTicks(ticks: float) -> datetime.date:  # noqa: N802 - PEP 249's name
    """The date of a time in seconds since 1970, local time."""
    return Date(*time.localtime(ticks)[:3])


def TimeFromTicks(ticks: float) -> datetime.time:  # noqa: N802
    """The time of day of a time in seconds since 1970, local time."""
    return Time(*time.localtime(ticks)[3:6])


def TimestampFromTicks(ticks: float) -> datetime.datetime:  # noqa: N802
    """The date and time of a time in seconds since 1970, local time."""
    return Timestamp(*time.localtime(ticks)[:6])


def __getattr__(name: str) -> Any:
    if name == "Replica":  # what it needs is not loaded for those who open a plain file
        from nearlite.pool import Replica

        return Replica
    if name == "dbapi2":
        return importlib.import_module("nearlite.dbapi2")
    if name in _OBSOLETE:
        warnings.warn(
            f"{name} is deprecated and will be removed in Python 3.14", DeprecationWarning, 2
        )
        return _OBSOLETE[name]
    if name == "Limits":
        from nearlite.limits import Limits

        return Limits
    raise AttributeError(f"module 'nearlite' has no attribute {name!r}")


@overload
def connect(
    database: Path,
    timeout: float = ...,
    detect_types: int = ...,
    isolation_level: IsolationLevel = ...,
    check_same_thread: bool = ...,
    *,
    cached_statements: int = ...,
    uri: bool = ...,
    autocommit: bool | int = ...,
    encryption_key: EncryptionKey | None = ...,
) -> Connection: ...
@overload
def connect(
    database: Path,
    timeout: float = ...,
    detect_types: int = ...,
    isolation_level: IsolationLevel = ...,
    check_same_thread: bool = ...,
    *,
    sync_url: str,
    cached_statements: int = ...,
    uri: bool = ...,
    autocommit: bool | int = ...,
    auth_token: Token = ...,
    sync_interval: float | Literal["live"] | None = ...,
    read_your_writes: bool = ...,
    freshness: Freshness = ...,
    network_timeout: float = ...,
    verify: Verify = ...,
    cert: Certificate | None = ...,
    proxy: str | None = ...,
    headers: Mapping[str, str] | None = ...,
    progress: ProgressCallback | None = ...,
    adopt: bool = ...,
    encryption_key: EncryptionKey | None = ...,
) -> ReplicaConnection: ...
@overload
def connect(
    database: str,
    timeout: float = ...,
    detect_types: int = ...,
    isolation_level: IsolationLevel = ...,
    check_same_thread: bool = ...,
    *,
    cached_statements: int = ...,
    autocommit: bool | int = ...,
    auth_token: Token = ...,
    network_timeout: float = ...,
    verify: Verify = ...,
    cert: Certificate | None = ...,
    proxy: str | None = ...,
    headers: Mapping[str, str] | None = ...,
) -> RemoteConnection: ...
@overload
def connect(
    database: Path,
    timeout: float = ...,
    detect_types: int = ...,
    isolation_level: IsolationLevel = ...,
    check_same_thread: bool = ...,
    *,
    factory: Callable[..., ConnectionT],
    sync_url: str = ...,
    **options: Any,
) -> ConnectionT: ...
@overload
def connect(
    database: Path,
    timeout: float,
    detect_types: int,
    isolation_level: IsolationLevel,
    check_same_thread: bool,
    factory: Callable[..., ConnectionT],
    cached_statements: int = ...,
    uri: bool = ...,
    *,
    sync_url: str = ...,
    **options: Any,
) -> ConnectionT: ...
def connect(
    database: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    *args: Any,
    factory: Callable[..., Any] | None = None,
    sync_url: str | None = None,
    **options: Any,
) -> Any:
    """Open a database.

    * a path, or ``":memory:"``: a local file, with the parameters of ``sqlite3.connect``: see
      :class:`Connection`; with ``encryption_key=`` a sealed one, here and for replicas.
    * a path and ``sync_url=``: an embedded replica: see :class:`nearlite.embedded.ReplicaConnection`
      (``auth_token``, ``sync_interval``, ``read_your_writes``, ``freshness``, ``network_timeout``,
      ``progress``, ``verify``, ``cert``, ``proxy``, ``headers``, ``adopt``).
    * ``http://``, ``https://``, ``libsql://``: no local file: see
      :class:`nearlite.remote.RemoteConnection` (``auth_token``, ``network_timeout``).
    """
    if args and sys.version_info >= (3, 12):
        warnings.warn(
            "Passing more than 1 positional argument to sqlite3.connect() is deprecated. Parameters "
            "'timeout', 'detect_types', 'isolation_level', 'check_same_thread', 'factory', "
            "'cached_statements' and 'uri' will become keyword-only parameters in Python 3.15.",
            DeprecationWarning,
            stacklevel=2,
        )
    if factory is None and len(args) > 4:
        factory = args[4]  # the standard library's sixth parameter
    sealed = options.get("encryption_key") is not None
    if sync_url is not None:
        from nearlite.embedded import ReplicaConnection

        options["sync_url"] = sync_url
        return (factory or ReplicaConnection)(database, *args, **options)
    if isinstance(database, str) and database.startswith(("http://", "https://", "libsql://")):
        if sealed:
            raise NotSupportedError("encryption_key: there is no local file to seal")
        from nearlite.remote import RemoteConnection

        return (factory or RemoteConnection)(database, *args, **options)
    return (factory or Connection)(database, *args, **options)


def asgi(
    path: str | os.PathLike[str] | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    host_suffix: str | None = None,
    most_open: int = 1000,
    auth_token: str | None = None,
    auth_jwt_key: str | Sequence[str] = (),
    allow_push: bool = False,
    durability: str = "full",
    roll_bytes: int = 16 << 20,
    foreign_keys: bool = False,
    shared_cache: bool = False,
    upstream: str | None = None,
    upstream_token: str | Callable[[], str] | None = None,
    sync_interval: float | Literal["live"] = "live",
    edge: bool = False,
    region: str | None = None,
    max_staleness: float | None = None,
    encryption_key: EncryptionKey | None = None,
    limits: Limits | None = None,
    hooks: Hooks | None = None,
    metrics: bool = False,
    console: bool = False,
    **network: Any,
) -> App | Hosting:
    """An ASGI application that serves one database: SQL over HTTP, and changes to its replicas.

    With `data_dir` instead of `path` it serves many, which the admin API or `nearlite db` has made in that folder
    (docs/databases.md).

    With `upstream` the database is a replica of the one there, and serves further replicas: its changes
    are answered here, SQL by the primary. With `edge` as well, what only looks is run here (docs/edge.md).

    It owns the database from its first request (or its lifespan startup) until its lifespan
    shutdown; an application that it is mounted in calls ``await app.shutdown()`` itself. Needs
    ``nearlite[server]``.

    Args:
      path: the database; created when missing.
      data_dir: the folder of many databases; created when missing. A request is for the one that its path
        (``/db/NAME/...``) names, else the header ``x-namespace``, else the host, else for ``default``.
      host_suffix: with `data_dir`: requests to the host ``NAME.host_suffix`` are for the database NAME.
      most_open: with `data_dir`: databases that are open at a time.
      auth_token: what clients send as ``Authorization: Bearer``; None lets everybody in.
      auth_jwt_key: public keys of Ed25519 (PEM, or 32 bytes in URL-safe base64), one text or several: tokens
        (JWT) that one of them has signed are good as well.
      allow_push: libSQL's replicas may push pages (`offline=True`), which can make anything of the database.
      durability: "full": answered writes survive a power cut; "normal": a crash of the process.
      roll_bytes: size of the WAL from which it is archived and emptied.
      foreign_keys: enforce them on every connection, as ``PRAGMA foreign_keys=ON`` would.
      shared_cache: let an HTTP cache in front answer many live replicas with what one was answered
        (docs/caching.md: it has to check tokens itself).
      upstream: URL of a primary, or of a replica that serves replicas.
      upstream_token: what is sent there, or a callable that answers it.
      sync_interval: "live", or seconds between two looks there; for those who ask what is there now it is
        looked in any case.
      edge: run what only looks on the replica.
      region: where the server is: told with an edge's answers, and on the console.
      max_staleness: seconds; with an upstream that cannot be asked for so long, an edge refuses to read.
      encryption_key: the file is sealed, and created so, and what lies beside it as well
        (docs/encryption.md): see :func:`nearlite.keys.key_of` for what may be given.
      limits: what clients are allowed: sizes, numbers, times.
      hooks: are told of requests, commits and rolls (:class:`nearlite.hooks.Hooks`).
      metrics: count requests, and tell what was counted at ``GET /metrics`` (with `data_dir` the admin API does).
      console: ``GET /`` is a page that shows how the server stands, and runs SQL (docs/console.md), of one
        database. What it shows is for whoever has the token; without one, let the application listen on loopback.
      network: how the upstream is reached: ``verify``, ``cert``, ``proxy``, ``headers`` as for `connect`.
    """
    from pathlib import Path

    from nearlite.access import Guiding, Open
    from nearlite.applications import PrimaryApp, RelayApp
    from nearlite.tokens import authority

    if durability not in ("full", "normal"):
        raise ProgrammingError(f"durability is 'full' or 'normal', not {durability!r}")
    keys = [auth_jwt_key] if isinstance(auth_jwt_key, str) else auth_jwt_key
    knows = authority(auth_token, keys, push=allow_push)
    key = None if encryption_key is None else key_of(encryption_key)
    if data_dir is not None:
        if path is not None or upstream is not None or network:
            raise ProgrammingError("data_dir is given instead of path, and without upstream")
        if console:
            raise ProgrammingError("console is for one database, not for those of data_dir")
        from nearlite.hosting import Hosting, Serving
        from nearlite.names import Choice

        if most_open < 1:
            raise ProgrammingError("most_open is at least 1")
        from nearlite.limits import Limits as _Limits

        serving = Serving(
            durability,  # type: ignore[arg-type]
            roll_bytes,
            key,
            foreign_keys,
            shared_cache,
            limits or _Limits(),
            hooks,
            metrics,
        )
        return Hosting(
            Path(data_dir),
            authority=knows,
            serving=serving,
            choice=Choice(host_suffix),
            most_open=most_open,
        )
    if path is None:
        raise ProgrammingError("either path or data_dir is given")
    if host_suffix is not None:
        raise ProgrammingError("host_suffix needs data_dir")
    where = Path(path)
    if upstream is None and (edge or max_staleness is not None):
        raise ProgrammingError("an edge needs an upstream")
    if upstream is not None:
        from nearlite.background import check_interval
        from nearlite.http import normalise_url
        from nearlite.network import Network
        from nearlite.relay import Relay

        above, reached = normalise_url(upstream), Network.of(**network)
        check_interval(sync_interval)
        return RelayApp(
            where,
            lambda: Relay.open(
                where,
                above,
                token=upstream_token,
                network=reached,
                sync_interval=sync_interval,
                roll_bytes=roll_bytes,
                key=key,
                region=region,
            ),
            authority=Guiding(knows) if edge and not isinstance(knows, Open) else knows,
            shared_cache=shared_cache,
            limits=limits,
            hooks=hooks,
            edge=edge,
            region=region,
            max_staleness=max_staleness,
            metrics=metrics,
            console=console,
        )
    if network:
        raise ProgrammingError(f"{min(network)} says how an upstream is reached, and there is none")
    from nearlite.primary import Primary

    level = durability
    return PrimaryApp(
        where,
        lambda: Primary.open(where, durability=level, roll_bytes=roll_bytes, key=key),  # type: ignore[arg-type]
        authority=knows,
        foreign_keys=foreign_keys,
        shared_cache=shared_cache,
        limits=limits,
        hooks=hooks,
        metrics=metrics,
        console=console,
        region=region,
    )


__all__ = [
    "ABSENT",
    "LEGACY_TRANSACTION_CONTROL",
    "PARSE_COLNAMES",
    "PARSE_DECLTYPES",
    "AnswerError",
    "Binary",
    "Blob",
    "Change",
    "Conflicts",
    "Connection",
    "Cursor",
    "DamagedError",
    "DataError",
    "DatabaseError",
    "Date",
    "DateFromTicks",
    "DiskFullError",
    "EncryptionError",
    "Error",
    "HistoryGoneError",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "Limits",
    "LineageError",
    "NotAReplicaError",
    "NotSupportedError",
    "OfflineError",
    "OperationalError",
    "Position",
    "PrepareProtocol",
    "PrimaryRestoredError",
    "ProgrammingError",
    "Replica",
    "Row",
    "RowChange",
    "Session",
    "Snapshot",
    "StaleReadError",
    "StateMismatchError",
    "SyncError",
    "TamperedError",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "TokenInClearWarning",
    "UnauthorizedError",
    "UpstreamBehindError",
    "WaitTimeoutError",
    "Warning",
    "WrongKeyError",
    "adapt",
    "adapters",
    "apilevel",
    "asgi",
    "complete_statement",
    "concat_changesets",
    "connect",
    "converters",
    "enable_callback_tracebacks",
    "invert_changeset",
    "paramstyle",
    "read_changeset",
    "register_adapter",
    "register_converter",
    "sqlite_version",
    "sqlite_version_info",
    "threadsafety",
]
__all__ += _codes.__all__
__all__ += _constants.__all__
