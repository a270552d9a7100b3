"""``GET /metrics``: what a server has counted, in the text that Prometheus reads.

Taking a sample touches what belongs to the event loop; making text of it does not, and is done in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nearlite.meters import Counts, Meter, Meters

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_FIRST: Final = 6  # buckets of times from 64 microseconds on; what is quicker is in the first one


@dataclass(slots=True)
class Sample:
    """One look at a server.

    Attributes:
      meters: of its requests.
      counts: of its database; None of a replica that serves replicas.
      versions: name and version of what runs.
      gauges: name (without ``nearlite_``), explanation and value of what there is now.
    """

    meters: Meters
    counts: Counts | None
    versions: Mapping[str, str]
    gauges: list[tuple[str, str, float]] = field(default_factory=list)


def text_of(sample: Sample) -> tuple[bytes, bytes]:
    """A sample as text, and its content type. Raises ModuleNotFoundError without prometheus-client."""
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        ProcessCollector,
        generate_latest,
    )

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(sample))
    ProcessCollector(registry=registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST.encode()


class _Collector:
    def __init__(self, sample: Sample) -> None:
        self._sample = sample

    def describe(self) -> Sequence[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

        sample = self._sample
        yield InfoMetricFamily("nearlite_build", "What runs", value=dict(sample.versions))
        yield from of_requests(sample.meters)
        for name, text, value in sample.gauges:
            yield GaugeMetricFamily(f"nearlite_{name}", text, value=value)
        if sample.counts is not None:
            yield from _counts(sample.counts)


def _counter(name: str, text: str, values: Mapping[Any, float], *labels: str) -> Any:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"nearlite_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def of_requests(meters: Meters) -> Iterator[Metric]:
    """What was counted of a server's requests and connections."""
    from prometheus_client.core import HistogramMetricFamily

    routes: dict[str, Meter] = meters.routes
    answered = {
        (route, str(status)): count
        for route, meter in routes.items()
        for status, count in meter.statuses.items()
        if count
    }
    yield _counter("http_requests", "Requests that were answered", answered, "route", "status")
    left = {(route,): meter.left for route, meter in routes.items()}
    yield _counter("http_requests_left", "Requests whose clients left before", left, "route")
    times = HistogramMetricFamily(
        "nearlite_http_request_seconds",
        "From a request's arrival until its answer was handed to the system; long polls wait on purpose",
        labels=["route"],
    )
    for route, meter in routes.items():
        times.add_metric([route], _buckets(meter.times), sum_value=meter.microseconds / 1e6)
    yield times
    codes = {(code,): count for code, count in meters.errors.items()}
    yield _counter("http_errors", "Error bodies that were sent", codes, "code")
    yield _counter("http_received_bytes", "Bytes of requests", {(): meters.received})
    yield _counter("http_sent_bytes", "Bytes of answers", {(): meters.sent})
    yield _counter("http_connections", "Connections that were accepted", {(): meters.accepted})
    yield _counter("websockets", "Those that have become WebSockets", {(): meters.sockets})


def _buckets(times: Sequence[int]) -> list[tuple[str, float]]:
    """Cumulated; bucket n is of times below 2^n microseconds."""
    found: list[tuple[str, float]] = []
    total = 0
    for number, count in enumerate(times[:-1]):
        total += count
        if number >= _FIRST:
            found.append((repr((1 << number) / 1e6), total))
    return [*found, ("+Inf", total + times[-1])]


def _counts(counts: Counts) -> Iterator[Metric]:
    from prometheus_client.core import HistogramMetricFamily

    sizes = [a + b for a, b in zip(counts.grouped, counts.at_once, strict=True)]
    groups = HistogramMetricFamily(
        "nearlite_commit_group_requests", "Requests that were committed together"
    )
    total, buckets = 0, []
    for number, count in enumerate(sizes):
        total += count
        last = number == len(sizes) - 1
        buckets.append(("+Inf" if last else str(float(1 << number)), float(total)))
    groups.add_metric([], buckets, sum_value=None)
    yield groups
    failures = {(code,): count for code, count in counts.failures.items()}
    yield _counter("statement_errors", "Statements that failed", failures, "code")
    yield _counter("rolls", "Generations that were ended", {(): counts.rolls})
    yield _counter(
        "roll_seconds", "Seconds in which rolls held up writes", {(): counts.roll_seconds}
    )
    yield _counter(
        "transaction_timeouts",
        "Transactions rolled back for being open too long",
        {(): counts.timeouts},
    )
