"""What a sidecar is told to do, as its parts take it; configuration.py reads it out of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

LAG_LIMIT: Final = 30.0
"""Seconds that a replica may lag before /health turns bad, beside its interval, if nobody says."""
RETAIN_SECONDS: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Secret:
    """A token or a key, or the file that holds it.

    Attributes:
      text: the secret itself; None: it is in the file.
      file: path of a file.
    """

    text: str | None = field(repr=False)
    file: str | None


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """Where a replica's changes come from.

    Attributes:
      url: of the server there; of the database itself where that server knows only one.
      path: of the database there; None: as here.
      name: of the database there, where that is said.
      token: that is sent there.
      ca_file: certificates that are trusted instead of the system's.
    """

    url: str
    path: str | None = None
    name: str | None = None
    token: Secret | None = None
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """One database: a primary's, or with an upstream a replica.

    Attributes:
      path: of the file, absolute.
      written: the same as the configuration has it, variables replaced.
      name: by which it is served, and found by replicas.
      line: of its entry.
      upstream: of a replica.
      interval: of a replica: seconds between two looks at the upstream, or "live".
      key: the replica's file is sealed with it.
      roll_bytes, roll_pages: size of the WAL from which it is emptied, in one unit or the other; None: the default.
      retain_bytes: of a primary's history; None: 4 times the database, or 256 MiB if that is more.
      retain_seconds: age up to which it is kept in any case.
      lag_limit: seconds of lag from which /health is bad.
    """

    path: str
    written: str
    name: str
    line: int
    upstream: UpstreamSettings | None = None
    interval: float | Literal["live"] = "live"
    key: Secret | None = None
    roll_bytes: int | None = None
    roll_pages: int | None = None
    retain_bytes: int | None = None
    retain_seconds: float = RETAIN_SECONDS
    lag_limit: float = LAG_LIMIT


@dataclass(frozen=True, slots=True)
class Configuration:
    """All of it.

    Attributes:
      file: its name.
      databases: at least one; no path and no name twice.
      address: host and port to listen on; None: nothing is served.
      command: of the application that is started, and its arguments; empty: none is.
      token, jwt_key_file: what clients must have.
      tls_cert, tls_key: files of the server's certificate.
      warnings: lines to be told, each with file and line.
      lines: of every key that is there, by its path ("dbs[1].upstream.url").
    """

    file: str
    databases: tuple[DatabaseSettings, ...]
    address: tuple[str, int] | None = None
    command: tuple[str, ...] = ()
    token: Secret | None = None
    jwt_key_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    warnings: tuple[str, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)
