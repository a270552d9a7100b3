"""libSQL's replicas below an edge: what was told once is not asked for again, and nothing is told that is not so."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from edges import Site, site
from hypothesis import given
from hypothesis import strategies as st
from serving import Client, Reply
from test_background import eventually
from test_libsql_pulls import Copy, dump

from nearlite.frame_cache import BLOCK, FRAME, FrameCache
from nearlite.tokens import authority

FILL = (
    "INSERT INTO t(b) WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {})"
    " SELECT randomblob(3000) FROM n"
)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path, durability="normal") as made:
        Client(made.port).run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)", FILL.format(100))
        yield made


def pulled(one: Site) -> list[str]:
    """What was asked of the primary since the last call, of these paths."""
    found, one.asked.requests = one.asked.requests, []
    return [path for path, _ in found if path.startswith(("/info", "/export/", "/sync/"))]


def begin(client: Client) -> Copy:
    generation = client.request("GET", "/info").json["current_generation"]
    reply = client.request("GET", f"/export/{generation}")
    assert reply.status == 200
    return Copy(generation, reply.body)


def ask(client: Client, copy: Copy, count: int = 128) -> Reply:
    first = copy.frame + 1
    return client.request("GET", f"/sync/{copy.generation}/{first}/{first + count}")


def follow(client: Client, copy: Copy, count: int = 128) -> None:
    while True:
        reply = ask(client, copy, count)
        if reply.status == 200:
            copy.take(reply.body)
            continue
        assert reply.status == 400, reply.body
        if reply.json["generation"] <= copy.generation:
            return
        copy.end()


def test_many_cost_the_primary_what_one_does(one: Site, tmp_path: Path) -> None:
    edge = one.edge()
    clients = [Client(edge.port) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(begin, clients))
        assert sorted(pulled(one)) == sorted(
            [f"/export/{copies[0].generation}"] + ["/info"] * len(clients)
        )
        Client(one.port).run(FILL.format(60), "UPDATE t SET b = randomblob(3001) WHERE a % 3")
        pulled(one)
        list(pool.map(follow, clients, copies))
        asked = pulled(one)
        # Each asks for the end by itself; every block came once, or in two parts.
        blocks = {path.split("/")[3] for path in asked}
        assert len(blocks) <= copies[0].frame // BLOCK + 2
    for copy in copies:
        assert copy.dump(tmp_path) == dump(one.path)
    # One that comes later, in steps of its own: only the end is asked for.
    late = begin(clients[0])
    pulled(one)
    follow(clients[0], late, 7)
    assert len(pulled(one)) <= 2
    assert late.dump(tmp_path) == dump(one.path)


def test_generations_that_end_are_gone_through(one: Site, tmp_path: Path) -> None:
    one.stop()
    one.start(durability="normal", roll_bytes=1 << 20)
    edge = one.edge()
    client, writer = Client(edge.port), Client(one.port)
    copy = begin(client)
    for _ in range(3):
        before = client.request("GET", "/info").json["current_generation"]
        writer.run(FILL.format(300), "DELETE FROM t WHERE a % 2")
        eventually(
            lambda before=before: (  # type: ignore[misc]
                client.request("GET", "/info").json["current_generation"] > before
            )
        )
    follow(client, copy)
    assert copy.dump(tmp_path) == dump(one.path)
    assert client.request("GET", "/export/99").status == 410


def test_what_is_kept_is_told_without_the_primary(one: Site, tmp_path: Path) -> None:
    edge = one.edge()
    client = Client(edge.port)
    Client(one.port).run(FILL.format(50))
    follow(client, begin(client))
    expected = dump(one.path)
    one.stop()
    again = begin(client)
    while (reply := ask(client, again)).status == 200:
        again.take(reply.body)
    assert (reply.status, reply.json["code"]) == (503, "UPSTREAM_UNREACHABLE")
    assert again.dump(tmp_path) == expected
    one.start()


def test_another_history_is_not_mixed_with_what_is_kept(one: Site, tmp_path: Path) -> None:
    edge = one.edge()
    client = Client(edge.port)
    follow(client, begin(client))
    one.stop()
    other = tmp_path / "other.db"
    one.start(other, durability="normal")
    Client(one.port).run("CREATE TABLE another(x)", "INSERT INTO another VALUES (1)")
    copy = begin(client)
    follow(client, copy)
    assert copy.dump(tmp_path) == dump(other)


def test_pushes_go_through_for_whoever_may(one: Site) -> None:
    frames = os.urandom(4120)
    assert Client(one.edge().port).request("POST", "/sync/1/1/2", frames).status == 403
    one.stop()
    one.start(durability="normal", allow_push=True)
    edge = one.edge("pushes.db", authority=authority(None, push=True))
    reply = Client(edge.port).request("POST", "/sync/1/1/2", frames)
    direct = Client(one.port).request("POST", "/sync/1/1/2", frames)
    assert (reply.status, reply.body) == (direct.status, direct.body)
    assert json.loads(reply.body)


def test_what_cannot_be_is_refused_without_asking(one: Site) -> None:
    client = Client(one.edge().port)
    pulled(one)
    for path in ("/sync/0/1/2", "/sync/1/0/2", "/sync/1/2/2", "/sync/1/1/2/baton", "/export/x"):
        assert client.request("GET", path).status == 404
    assert client.request("DELETE", "/info").status == 405
    assert client.request("POST", "/export/1").status == 405
    assert pulled(one) == []
    assert client.request("GET", "/sync/99/1/129").status not in (400, 500)


# ---------------------------------------------------------------- the cache alone


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 600), st.integers(1, 300)), max_size=60),
    st.integers(1, 40),
)
def test_the_cache_has_what_was_put_there_or_nothing(
    asked: list[tuple[int, int, int]], room: int
) -> None:
    def frame(generation: int, number: int) -> bytes:
        return (b"%d.%d." % (generation, number)).ljust(FRAME, b"x")

    cache = FrameCache(room * FRAME)
    for generation, first, count in asked:
        begin, behind = cache.missing(generation, first)
        assert begin <= behind
        assert (begin - 1) // BLOCK in ((first - 1) // BLOCK, (first - 1) // BLOCK + 1)
        coming = range(begin, min(behind, begin + count))
        cache.add(generation, begin, b"".join(frame(generation, one) for one in coming))
        found = cache.find(generation, first, first + count)
        assert len(found) % FRAME == 0
        for at in range(len(found) // FRAME):
            assert found[at * FRAME : (at + 1) * FRAME] == frame(generation, first + at)
        assert len(found) // FRAME <= count
        if begin <= first < begin + len(coming):
            assert found
    cache.clear()
    assert cache.find(1, 1, 2) == b""


def test_the_cache_refuses_what_does_not_fit() -> None:
    cache = FrameCache(1 << 20)
    for first, frames in ((1, b"x"), (2, bytes(FRAME)), (1, bytes(FRAME * (BLOCK + 1)))):
        with pytest.raises(ValueError, match="not the frames"):
            cache.add(1, first, frames)
    assert cache.missing(1, 1) == (1, BLOCK + 1)
