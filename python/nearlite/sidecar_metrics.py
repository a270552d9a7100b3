"""``GET /metrics`` of a sidecar: how each of its databases stands, in the text that Prometheus reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nearlite.cold import program_version
from nearlite.exposition import of_requests
from nearlite.members import Member
from nearlite.meters import Meters

if TYPE_CHECKING:
    from prometheus_client.core import Metric


@dataclass(frozen=True, slots=True)
class Served:
    """Replicas of one database.

    Attributes:
      seen: that asked lately.
      waiting: in a long poll.
      sent: bytes of page sets that they were sent.
    """

    seen: int
    waiting: int
    sent: int


def metrics_text(
    meters: Meters, members: Sequence[Member], served: Mapping[str, Served], *, exposed: bool
) -> tuple[bytes, bytes]:
    """The text, and its content type. Blocks; raises ModuleNotFoundError without prometheus-client.

    Args:
      meters: of requests.
      members: the databases.
      served: by name, those that somebody has asked.
      exposed: other machines read them without a token.
    """
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        ProcessCollector,
        generate_latest,
    )

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(meters, members, served, exposed=exposed))
    ProcessCollector(registry=registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST.encode()


class _Collector:
    """Args as `metrics_text`."""

    def __init__(
        self,
        meters: Meters,
        members: Sequence[Member],
        served: Mapping[str, Served],
        *,
        exposed: bool,
    ) -> None:
        self._meters = meters
        self._members = members
        self._served = served
        self._exposed = exposed

    def describe(self) -> Sequence[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

        yield InfoMetricFamily("nearlite_build", "What runs", value={"version": program_version()})
        yield GaugeMetricFamily(
            "nearlite_exposed",
            "1: other machines can read the databases without a token",
            value=float(self._exposed),
        )
        yield from of_requests(self._meters)
        yield from self._files()
        yield from self._sources()
        yield from self._replicas()

    def _files(self) -> Iterator[Any]:
        members = self._members
        yield _of_each(
            "database_open", "1: it is open", {one.name: float(one.open) for one in members}
        )
        yield _of_each(
            "database_healthy",
            "1: it is open, and does not lag more than it may",
            {one.name: float(one.failing is None) for one in members},
        )
        paths = {one.name: one.settings.path for one in members}
        yield _of_each(
            "database_bytes",
            "Size of the database file",
            {name: _size(path) for name, path in paths.items()},
        )
        yield _of_each(
            "wal_bytes",
            "Size of the database's WAL",
            {name: _size(f"{path}-wal") for name, path in paths.items()},
        )

    def _sources(self) -> Iterator[Any]:
        served = self._served
        positions = {
            one.name: source.latest
            for one in self._members
            if one.open and (source := one.source) is not None
        }
        yield _of_each(
            "generation",
            "Generation of the position",
            {name: float(position.generation) for name, position in positions.items()},
        )
        yield _of_each(
            "frame",
            "Frame of the position",
            {name: float(position.frame) for name, position in positions.items()},
        )
        yield _of_each(
            "replicas_seen",
            "Replicas that asked lately",
            {name: float(one.seen) for name, one in served.items()},
        )
        yield _of_each(
            "replicas_waiting",
            "Replicas in a long poll",
            {name: float(one.waiting) for name, one in served.items()},
        )
        yield _since(
            "sent_page_set_bytes",
            "Bytes of page sets that replicas were sent, since the database was opened",
            {name: float(one.sent) for name, one in served.items()},
        )

        stands = {
            one.name: captured for one in self._members if (captured := one.captured) is not None
        }
        yield _of_each(
            "capture_wal_bytes",
            "Bytes of the running generation, which the WAL holds",
            {name: float(one.wal_bytes) for name, one in stands.items()},
        )
        yield _of_each(
            "capture_wal_held",
            "1: a reader of another program keeps the WAL from being emptied",
            {name: float(one.reader) for name, one in stands.items()},
        )
        yield _since(
            "capture_rolls",
            "WALs that were emptied here",
            {name: float(one.rolls) for name, one in stands.items()},
        )
        yield _since(
            "capture_resets",
            "WALs that other programs emptied",
            {name: float(one.resets) for name, one in stands.items()},
        )
        yield _since(
            "capture_released",
            "Times that a checkpoint of another program was let pass",
            {name: float(one.released) for name, one in stands.items()},
        )
        yield _of_each(
            "capture_longest_section_seconds",
            "The longest time that writers were kept waiting",
            {name: one.longest_section for name, one in stands.items()},
        )

    def _replicas(self) -> Iterator[Any]:
        """What is not known has no sample."""
        lags = {one.name: one.lag for one in self._members}
        yield _of_each(
            "replica_lag_seconds",
            "What a read returns is at most so old",
            {name: lag for name, lag in lags.items() if lag is not None},
        )
        found = {one.name: one.stats() for one in self._members}
        known = {name: stats for name, stats in found.items() if stats is not None}
        yield _of_each(
            "replica_follows",
            "1: a long poll is open, so that changes come by themselves",
            {name: float(stats.follows) for name, stats in known.items()},
        )
        yield _of_each(
            "replica_transactions_behind",
            "Transactions of the primary that are not here yet",
            _known({name: stats.transactions_behind for name, stats in known.items()}),
        )
        yield _of_each(
            "replica_bytes_behind",
            "Bytes of the pages that those have changed",
            _known({name: stats.bytes_behind for name, stats in known.items()}),
        )
        yield _since(
            "replica_transactions",
            "Transactions that were brought since it was opened",
            _known({name: stats.transactions for name, stats in known.items()}),
        )
        yield _since(
            "replica_page_sets",
            "Page sets that were received",
            _known({name: stats.page_sets for name, stats in known.items()}),
        )
        yield _since(
            "replica_received_bytes",
            "Bytes that they came in",
            _known({name: stats.wire_bytes for name, stats in known.items()}),
        )


def _known(values: Mapping[str, int | None]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None}


def _since(name: str, text: str, values: Mapping[str, float]) -> Any:
    """What only grows."""
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"nearlite_{name}", text, labels=["database"])
    for database, value in values.items():
        family.add_metric([database], value)
    return family


def _of_each(name: str, text: str, values: Mapping[str, float]) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"nearlite_{name}", text, labels=["database"])
    for database, value in values.items():
        family.add_metric([database], value)
    return family


def _size(path: str) -> float:
    try:
        return float(os.stat(path).st_size)
    except OSError:
        return 0.0
