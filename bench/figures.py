"""The figures we promise: what is measured, in which unit, and what would be bad.

A benchmark files its measurements under a key of FIGURES; report.py lays them against the bars.
Values travel in base units (seconds, operations per second, bytes); only the report scales them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Bar:
    """One condition on a figure.

    Attributes:
      kind: "at most" (the value itself, base unit), "times better" (how many times better than the
        peer, at least), "of peer" (the value as a fraction of the peer's, at most).
      limit: the number the condition is about.
    """

    kind: Literal["at most", "times better", "of peer"]
    limit: float


@dataclass(frozen=True, slots=True)
class Unit:
    """How base units are shown: value * scale, followed by the name."""

    name: str
    scale: float
    more_is_better: bool = False
    digits: int = 3


SECONDS = Unit("s", 1)
MILLISECONDS = Unit("ms", 1e3)
MICROSECONDS = Unit("us", 1e6)
PER_SECOND = Unit("/s", 1, more_is_better=True, digits=0)
FRAMES = Unit("frames/s", 1, more_is_better=True, digits=0)
GIGABYTES = Unit("GB/s", 1e-9, more_is_better=True)
BYTES = Unit("B", 1, digits=0)
KILOBYTES = Unit("kB", 1e-3, digits=0)
MEGABYTES = Unit("MB", 1e-6, digits=0)
REQUESTS = Unit("requests", 1)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    key: str
    title: str
    unit: Unit
    peer: str
    bars: tuple[Bar, ...] = ()


def _times(limit: float) -> Bar:
    return Bar("times better", limit)


def _of_peer(limit: float) -> Bar:
    return Bar("of peer", limit)


def _at_most(limit: float) -> Bar:
    return Bar("at most", limit)


def _fanout(count: int, seconds: float) -> tuple[Figure, ...]:
    def figure(part: str, title: str, *bars: Bar) -> Figure:
        return Figure(f"fanout_{count}{part}", title, MILLISECONDS, "none in the registries", bars)

    reached = f"commit sent -> {count:,} waiting replicas have it"
    return (
        figure("", f"{reached}, last", _at_most(seconds)),
        figure("_p50", f"{reached}, p50"),
        figure("_p99", f"{reached}, p99"),
        figure("_writer", f"a commit while {count:,} are told of another"),
    )


_SEALED = (
    ("write", "bulk write of 600,000 rows"),
    ("scan", "cold scan of 61 MB"),
    ("random", "50,000 random points"),
)

FIGURES = (
    Figure(
        "apply_pwrite",
        "verify + hash + apply, page sets of 128 frames",
        FRAMES,
        "raw pwrite of the same bytes",
        (_times(0.7),),
    ),
    Figure(
        "apply_libsql",
        "verify + hash + apply, page sets of 128 frames",
        FRAMES,
        "libsql sync()",
        (_times(20),),
    ),
    Figure("bootstrap", "bootstrap of 20,000 pages", SECONDS, "libsql", (_times(8),)),
    Figure("incremental", "incremental sync of 5,000 pages", SECONDS, "libsql", (_times(8),)),
    Figure(
        "empty_sync", "empty sync()", MILLISECONDS, "libsql", (_at_most(0.25e-3), _of_peer(0.6))
    ),
    Figure(
        "forward_autocommit",
        "forwarded write, autocommit, read-your-writes, p50",
        MILLISECONDS,
        "libsql",
        (_at_most(0.7e-3),),
    ),
    Figure(
        "forward_commit",
        "forwarded write, execute + commit, read-your-writes, p50",
        MILLISECONDS,
        "libsql",
        (_at_most(1.2e-3),),
    ),
    Figure(
        "pull_bootstrap",
        "libSQL's client (PyPI libsql) as a replica of ours: bootstrap of 20,000 pages",
        SECONDS,
        "libsql-experimental from sqld",
        (_times(1),),
    ),
    Figure(
        "pull_incremental",
        "the same: sync of 5,000 pages",
        SECONDS,
        "libsql-experimental from sqld",
        (_times(1),),
    ),
    Figure(
        "pull_empty",
        "the same: empty sync()",
        MILLISECONDS,
        "libsql-experimental from sqld",
        (_times(1),),
    ),
    Figure(
        "live",
        "commit -> visible to a reader on a live replica, p50",
        MILLISECONDS,
        "none in the registries",
        (_at_most(1.2e-3),),
    ),
    Figure(
        "live_p99",
        "commit -> visible to a reader on a live replica, p99",
        MILLISECONDS,
        "none in the registries",
        (_at_most(4e-3),),
    ),
    Figure(
        "live_tree",
        "the same, through one replica in between, p50",
        MILLISECONDS,
        "none in the registries",
        (_at_most(2.2e-3),),
    ),
    Figure(
        "live_tree_p99",
        "the same, through one replica in between, p99",
        MILLISECONDS,
        "none in the registries",
    ),
    *(
        figure
        for count, seconds in ((2_000, 0.2), (10_000, 1.0))
        for figure in _fanout(count, seconds)
    ),
    Figure(
        "live_flat_out",
        "pipeline writes, 16 connections, with one live replica",
        PER_SECOND,
        "without",
        (_times(0.8),),
    ),
    Figure(
        "live_offered",
        "the same, 2,000 commits/s offered",
        PER_SECOND,
        "without",
        (_times(0.95),),
    ),
    Figure(
        "sidecar_live",
        "commit of a plain sqlite3 program -> visible to another on a live replica, 30/s, p50",
        MILLISECONDS,
        "none in the registries",
        (_at_most(1.5e-3),),
    ),
    Figure(
        "sidecar_live_p99",
        "the same, p99",
        MILLISECONDS,
        "none in the registries",
        (_at_most(5e-3),),
    ),
    Figure(
        "sidecar_flat_out",
        "commits of a program that is captured, with a live replica",
        PER_SECOND,
        "alone",
        (_times(0.6),),
    ),
    Figure(
        "sidecar_offered",
        "the same, 5,000 commits/s offered",
        PER_SECOND,
        "alone",
        (_times(0.98),),
    ),
    Figure(
        "sidecar_offered_p99",
        "the same, p99 from when a commit is due",
        MILLISECONDS,
        "alone",
        (_of_peer(2),),
    ),
    Figure(
        "sidecar_idle",
        "a capture of a database that nobody writes: of a second of one core",
        SECONDS,
        "none in the registries",
        (_at_most(0.01),),
    ),
    Figure(
        "steady_lag",
        "1,000 commits/s, three readers on a live replica: lag, longest",
        MILLISECONDS,
        "none in the registries",
        (_at_most(0.1),),
    ),
    Figure("steady_lag_p50", "the same, p50", MILLISECONDS, "none in the registries"),
    Figure("steady_lag_p99", "the same, p99", MILLISECONDS, "none in the registries"),
    Figure(
        "steady_wal",
        "the same, larger WAL of the two sides",
        MEGABYTES,
        "none in the registries",
        (_at_most(64e6),),
    ),
    Figure(
        "catchup_bytes",
        "bytes of catching up after 100,000 updates of the same 1,000 rows",
        KILOBYTES,
        "the distinct pages",
        (_of_peer(1.0),),
    ),
    Figure(
        "catchup_seconds",
        "catching up after 100,000 updates of the same 1,000 rows",
        MILLISECONDS,
        "none in the registries",
    ),
    Figure(
        "delta_row",
        "body bytes, one row into a table with one index, 100k rows",
        BYTES,
        "its raw frames",
        (_at_most(180),),
    ),
    Figure("delta_integer", "body bytes, one integer", BYTES, "its raw frames", (_at_most(64),)),
    Figure(
        "delta_rows",
        "body bytes, 100 rows with random index keys",
        BYTES,
        "its raw frames",
        (_of_peer(0.09),),
    ),
    Figure(
        "point_select",
        "cached point select, four columns, local",
        MICROSECONDS,
        "standard library",
        (_of_peer(0.85),),
    ),
    Figure(
        "point_select_apsw",
        "cached point select, four columns, local",
        MICROSECONDS,
        "apsw",
        (_of_peer(1.15),),
    ),
    Figure(
        "point_select_libsql",
        "cached point select, four columns, local replica",
        MICROSECONDS,
        "libsql",
    ),
    Figure(
        "scan", "scan of 100k rows x 4 columns", MILLISECONDS, "standard library", (_of_peer(0.65),)
    ),
    Figure("scan_apsw", "scan of 100k rows x 4 columns", MILLISECONDS, "apsw", (_of_peer(1.05),)),
    Figure("executemany_apsw", "executemany of 600k rows", SECONDS, "apsw", (_of_peer(1.0),)),
    Figure(
        "another_thread",
        "another thread's loop during a long query",
        PER_SECOND,
        "by itself",
        (_times(0.95),),
    ),
    Figure("reads", "pipeline reads, 16 connections", PER_SECOND, "sqld", (_times(5),)),
    Figure(
        "reads_p99", "pipeline reads, 16 connections, p99", MILLISECONDS, "sqld", (_of_peer(0.5),)
    ),
    Figure("socket_reads", "WebSocket reads, 16 connections", PER_SECOND, "sqld", (_times(1.3),)),
    Figure(
        "socket_reads_p99",
        "WebSocket reads, 16 connections, p99",
        MILLISECONDS,
        "sqld",
        (_of_peer(1),),
    ),
    Figure(
        "writes_normal",
        "pipeline writes, 16 connections, durability normal",
        PER_SECOND,
        "sqld",
        (_times(20),),
    ),
    Figure(
        "writes_full",
        "pipeline writes, 16 connections, durability full",
        PER_SECOND,
        "sqld",
        (_times(6),),
    ),
    Figure(
        "databases_reads",
        "pipeline reads, 16 connections, 1,000 databases in turn",
        PER_SECOND,
        "one of them",
        (_times(0.5),),
    ),
    Figure(
        "databases_memory",
        "memory of a server with 1,000 databases open",
        MEGABYTES,
        "",
        (_at_most(350e6),),
    ),
    Figure(
        "databases_open",
        "first request to a database that is not open, over the next one",
        MILLISECONDS,
        "",
        (_at_most(10e-3),),
    ),
    Figure(
        "edge_read",
        "read through an edge, p50",
        MICROSECONDS,
        "`serve` itself",
        (_of_peer(1.3),),
    ),
    Figure(
        "edge_write",
        "write through an edge, shown there, p50",
        MILLISECONDS,
        "`serve` itself",
        (_at_most(1.5e-3),),
    ),
    Figure(
        "edge_requests",
        "requests that a write through an edge costs the primary",
        REQUESTS,
        "",
        (_at_most(1),),
    ),
    Figure(
        "edge_other",
        "write through one live edge, then the read of it by position on another one, p50",
        MILLISECONDS,
        "",
        (_at_most(3e-3),),
    ),
    Figure(
        "edge_busy",
        "reads of 100 clients on one edge, 1,000 others idle, no error",
        PER_SECOND,
        "without those",
        (_times(0.8),),
    ),
    Figure(
        "memory_primary",
        "peak memory of serving a 1 GB bootstrap",
        MEGABYTES,
        "sqld",
        (_at_most(150e6),),
    ),
    Figure(
        "memory_replica",
        "peak memory of a replica bootstrapping 1 GB",
        MEGABYTES,
        "libsql",
        (_at_most(150e6),),
    ),
    Figure(
        "repair_seconds",
        "repair of a 1 GB replica with 100 damaged pages",
        SECONDS,
        "download",
        (_at_most(3),),
    ),
    Figure(
        "repair_bytes",
        "bytes of that repair, both ways",
        KILOBYTES,
        "download",
        (_at_most(3e6),),
    ),
    *(
        Figure(f"{key}_{part}", f"{title}: {what}", SECONDS, "the same in clear", bars)
        for key, title, limits in (
            ("sealed", "sealed by AES-256-GCM", (1.14, 1.35, 1.32)),
            ("sqlite3mc", "SQLite3MultipleCiphers, AEGIS", (None, None, None)),
            ("turso", "pyturso, AES-256-GCM", (None, None, None)),
        )
        for (part, what), limit in zip(_SEALED, limits, strict=True)
        for bars in [() if limit is None else (_of_peer(limit),)]
    ),
    Figure(
        "sealed_apply",
        "verify + hash + apply, sealed replica",
        FRAMES,
        "plain replica",
        (_times(0.5),),
    ),
    Figure(
        "sealed_open",
        "open with a raw key, read one row",
        MILLISECONDS,
        "plain file",
        (_at_most(1e-3),),
    ),
    Figure("codec_seal", "pages sealed", PER_SECOND, "bare EVP loop", (_times(0.95),)),
    Figure("codec_open", "pages opened", PER_SECOND, "bare EVP loop", (_times(0.95),)),
)

BY_KEY = {figure.key: figure for figure in FIGURES}
