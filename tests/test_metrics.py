"""``GET /metrics``: parsed as Prometheus does, and true."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Client, execute, serving

from nearlite.access import OneToken
from nearlite.applications import PrimaryApp
from nearlite.meters import BUCKETS, SIZES, Meter, Meters, route_of, size_bucket
from nearlite.primary import Primary

CLOSE = {"type": "close"}
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(params=["normal", "full"])
def port(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    path = tmp_path / "data.db"
    app = PrimaryApp(
        path,
        lambda: Primary.open(str(path), durability=request.param),
        authority=OneToken("t"),
        metrics=True,
    )
    with serving(app) as port:
        yield port


def values(port: int) -> Callable[..., float]:
    reply = Client(port, "t").request("GET", "/metrics")
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"].startswith("text/plain; version=")
    found: dict[Any, float] = {}
    families = list(text_string_to_metric_families(reply.body.decode()))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.name.startswith(("nearlite_", "process_"))
        assert family.documentation
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value

    def value(name: str, **labels: str) -> float:
        return found.get((f"nearlite_{name}", frozenset(labels.items())), 0.0)

    return value


def until(port: int, good: Callable[[Callable[..., float]], bool]) -> Callable[..., float]:
    limit = time.monotonic() + 20
    while not good(found := values(port)):
        assert time.monotonic() < limit
    return found


@pytest.mark.parametrize("whole", [True, False], ids=["short-cut", "usual"])
def test_every_request_is_counted_on_whatever_way_it_goes(port: int, whole: bool) -> None:
    client = Client(port, "t", whole=whole)
    before = values(port)
    client.run("CREATE TABLE t(a INTEGER PRIMARY KEY)")
    for number in range(10):
        client.run(f"INSERT INTO t VALUES ({number})")
    for _ in range(20):
        assert client.rows("SELECT count(*) FROM t") == [[10]]
    client.run("SELECT * FROM nowhere", "INSERT INTO t VALUES (1)")
    assert client.request("POST", "/v3/pipeline", b"{").status == 400
    assert Client(port, "wrong").request("GET", "/nl/v1/status").status == 401
    assert client.request("GET", "/nowhere/at/all").status == 404
    after = values(port)

    def more(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    route = "/v3/pipeline"
    assert more("http_requests_total", route=route, status="200") == 32
    assert more("http_requests_total", route=route, status="400") == 1
    assert more("http_requests_total", route="/nl/v1/status", status="401") == 1
    assert more("http_requests_total", route="other", status="404") == 1
    assert more("http_request_seconds_count", route=route) == 33
    assert more("http_request_seconds_bucket", route=route, le="+Inf") == 33
    assert 0 < more("http_request_seconds_sum", route=route) < 20
    assert more("http_errors_total", code="PROTOCOL_ERROR") == 1
    assert more("http_errors_total", code="UNAUTHORIZED") == 1
    assert more("statement_errors_total", code="SQLITE_ERROR") == 1
    assert more("statement_errors_total", code="SQLITE_CONSTRAINT") == 1
    assert more("commit_group_requests_bucket", le="+Inf") >= 11
    assert more("http_received_bytes_total") > 33 * 100
    assert more("http_sent_bytes_total") > 33 * 100
    assert (after("generation"), after("frame") > before("frame")) == (before("generation"), True)
    assert after("wal_bytes") > 32


def test_streams_transactions_and_replicas_are_counted(port: int) -> None:
    client = Client(port, "t")
    client.run("CREATE TABLE t(a)")
    baton = client.pipeline(execute("BEGIN"), execute("SELECT count(*) FROM t"))["baton"]
    found = values(port)
    assert (found("streams_open"), found("transactions_open")) == (1, 1)
    client.pipeline(CLOSE, baton=baton)
    position = client.request("GET", "/nl/v1/status").json["position"]
    poll = f"GET /nl/v1/changes/{position}?wait=20 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        raw.sendall(poll.encode())
        found = until(port, lambda found: found("replicas_waiting") == 1)
        assert (found("streams_open"), found("transactions_open")) == (0, 0)
        assert found("replicas_seen") >= 1
        assert found("replicas_behind") == found("replica_lag_frames") == 0
        client.run("INSERT INTO t VALUES (1)")
        assert raw.recv(1 << 16).startswith(b"HTTP/1.1 200")
    found = until(port, lambda found: found("replicas_waiting") == 0)
    changes = "/nl/v1/changes/{position}"
    assert found("http_requests_total", route=changes, status="200") == 1


def test_clients_that_leave_are_counted(port: int) -> None:
    client = Client(port, "t")
    position = client.request("GET", "/nl/v1/status").json["position"]
    poll = f"GET /nl/v1/changes/{position}?wait=20 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        raw.sendall(poll.encode())
        until(port, lambda found: found("replicas_waiting") == 1)
    changes = "/nl/v1/changes/{position}"
    found = until(port, lambda found: found("http_requests_left_total", route=changes) == 1)
    assert found("http_connections_open") >= 1
    assert found("http_connections_total") >= 3


def test_writes_that_were_committed_together_are_counted(port: int) -> None:
    Client(port, "t").run("CREATE TABLE t(a)")
    before = values(port)

    def write() -> None:
        client = Client(port, "t")
        for _ in range(10):
            client.run("INSERT INTO t VALUES (1)")

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = values(port)
    groups = after("commit_group_requests_bucket", le="+Inf") - before(
        "commit_group_requests_bucket", le="+Inf"
    )
    assert 10 <= groups <= 80


def test_the_token_is_asked_for_and_nothing_of_it_told(port: int) -> None:
    assert Client(port).request("GET", "/metrics").status == 401
    assert b"Bearer" not in Client(port, "t").request("GET", "/metrics").body
    assert Client(port, "t").request("HEAD", "/metrics").body == b""


def test_without_the_switch_there_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    with serving(PrimaryApp(path, lambda: Primary.open(str(path)))) as port:
        assert Client(port).request("GET", "/metrics").status == 404


def test_there_are_only_so_many_routes_whatever_is_asked_for() -> None:
    paths = [f"/nl/v1/changes/{number}" for number in range(100)]
    paths += [f"/export/{number}" for number in range(100)]
    paths += [f"/sync/{number}/1/2/baton" for number in range(100)]
    paths += [f"/{number}" for number in range(100)]
    assert len(set(map(route_of, paths))) == 4


def test_times_and_sizes_have_their_buckets() -> None:
    meter = Meter()
    for nanoseconds in (0, 999, 1000, 64_000, 10**15):
        meter.done(200, nanoseconds)
    assert sum(meter.times) == 5
    assert (meter.times[0], meter.times[1], meter.times[7], meter.times[BUCKETS - 1]) == (
        2,
        1,
        1,
        1,
    )
    assert [size_bucket(size) for size in (1, 2, 3, 4, 5, 1024)] == [0, 1, 2, 2, 3, 10]
    assert size_bucket(10**6) == SIZES - 1
    assert Meters().meter("/v3/pipeline").statuses == {200: 0}
    assert json.dumps(Meters().errors) == "{}"
