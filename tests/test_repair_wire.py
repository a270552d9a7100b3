"""What travels for a repair: requests a primary must survive, answers a replica must refuse."""

from __future__ import annotations

import json
import random
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import primaries
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_hostile import Scene, http

from nearlite import wire
from nearlite._native import frames
from nearlite._native._lib import FormatError
from nearlite._native.applier import Applier
from nearlite.errors import AnswerError, SyncError
from nearlite.position import Position
from nearlite.wire import Differences, RepairRequest, RequestError, Run

HERE = Position(7, 3, 12)
SPANS = st.one_of(st.integers(0, frames.SPAN_MAX), st.just(frames.SPAN_WANTED))


def ask(*runs: Run) -> RepairRequest:
    return RepairRequest.of(4096, 100, HERE, wire.NOWHERE, runs)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9), SPANS), max_size=6))
def test_a_request_comes_back_as_it_was(parts: list[tuple[int, int, int]]) -> None:
    runs, after = [], 1
    for gap, count, span in parts:
        first = after + gap
        pages = count if span == frames.SPAN_WANTED else count << span
        if first + pages >= 1 << 32:
            break
        hashes = b"" if span == frames.SPAN_WANTED else random.Random(gap).randbytes(8 * count)
        runs.append(Run(first, count, span, hashes))
        after = first + pages
    made = ask(*runs)
    assert RepairRequest.decode(made.encode()) == made


@given(st.binary(max_size=200))
def test_runs_are_never_believed(data: bytes) -> None:
    try:
        ranges, pages = frames.check_runs(data)
    except FormatError:
        return
    assert ranges + pages <= len(data) // 8 or frames.SPAN_WANTED in data


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        (struct.pack(">IIB7x", 1, 1, 0), "cut short"),
        (struct.pack(">IIB6x", 1, 1, 0), "cut short"),
        (struct.pack(">IIB7x", 1, 0xFFFFFFFF, 0), "cut short"),
        (struct.pack(">IIB7x", 1, 0, 0), "nothing"),
        (struct.pack(">IIB7xQ", 0, 1, 0, 9), "overlap"),
        (struct.pack(">IIB7xQ", 1, 1, 32, 9), "span 32"),
        (struct.pack(">IIB6xBQ", 1, 1, 0, 1, 9), "unused bytes"),
        (struct.pack(">IIB7x", 1, 0xFFFFFFFF, 255), "beyond"),
        (struct.pack(">IIB7xQQQ", 1, 3, 31, 1, 2, 3), "beyond"),
        (struct.pack(">IIB7xQ", 5, 1, 3, 9) + struct.pack(">IIB7x", 12, 1, 255), "overlap"),
    ],
)
def test_impossible_runs_are_refused(runs: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        frames.check_runs(runs)


def test_a_request_with_any_bit_flipped_is_refused() -> None:
    good = ask(Run(1, 4, 6, bytes(range(32))), Run(300, 5, frames.SPAN_WANTED)).encode()
    assert RepairRequest.decode(good)
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        with pytest.raises(RequestError):
            RepairRequest.decode(bytes(bad))
        with pytest.raises(RequestError):
            RepairRequest.decode(good[:at])


def test_a_comparison_with_any_bit_flipped_is_refused() -> None:
    good = Differences(HERE, 21, b"\x81\x00\x10").encode()
    assert Differences.decode(good, count=21).differing() == [0, 7, 20]
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        with pytest.raises(AnswerError):
            Differences.decode(bytes(bad), count=21)
        with pytest.raises(AnswerError):
            Differences.decode(good[:at], count=21)
    for other in (20, 22, 24):
        with pytest.raises(AnswerError):
            Differences.decode(good, count=other)


# ---------------------------------------------------------------- the primary


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[primaries.Served]:
    with primaries.primary(tmp_path_factory.mktemp("served")) as here:
        here.remote(isolation_level=None).execute("CREATE TABLE t(a)")
        yield here


def post(served: primaries.Served, body: bytes) -> tuple[int, Any]:
    request = urllib.request.Request(f"{served.url}/nl/v1/repair", body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["code"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (400, "BAD_REQUEST")),
        (b"x" * 10_000, (400, "BAD_REQUEST")),
        (ask().encode(), (409, "LINEAGE_MISMATCH")),
        (
            RepairRequest.of(4096, 0xFFFFFFFF, wire.NOWHERE, wire.NOWHERE, ()).encode(),
            (400, "BAD_REQUEST"),
        ),
        (
            RepairRequest.of(512, 1, wire.NOWHERE, wire.NOWHERE, ()).encode(),
            (409, "LINEAGE_MISMATCH"),
        ),
        (RepairRequest.of(4096, 1, wire.NOWHERE, HERE, ()).encode(), (410, "HISTORY_GONE")),
    ],
)
def test_requests_that_cannot_be_served(
    served: primaries.Served, body: bytes, expected: tuple[int, str]
) -> None:
    assert post(served, body) == expected


def test_ranges_far_beyond_the_database_cost_nothing(served: primaries.Served) -> None:
    runs = [Run(1, 1, 31, bytes(8)), Run((1 << 31) + 1, 0x7FFFFFF0, frames.SPAN_WANTED)]
    body = RepairRequest.of(4096, 0xFFFFFFF0, wire.NOWHERE, wire.NOWHERE, runs).encode()
    status, answer = post(served, body)
    assert status == 200
    assert Differences.decode(answer, count=1).differing() == [0]
    status, answer = post(
        served, RepairRequest.of(4096, 0, wire.NOWHERE, wire.NOWHERE, ()).encode()
    )
    header = wire.WholeSet(answer).header
    assert (status, header.repair, header.count) == (200, True, header.pages)


def test_only_post_is_allowed(served: primaries.Served) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{served.url}/nl/v1/repair", timeout=10)
    assert caught.value.code == 405
    caught.value.close()


# ---------------------------------------------------------------- the replica


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.replica.close()
    made.server.close()


def typed(raw: bytes, kind: str) -> bytes:
    """The same answer with a content type."""
    head, _, body = raw.partition(b"\r\n\r\n")
    return head + f"\r\nContent-Type: {kind}\r\n\r\n".encode() + body


def test_hostile_answers_leave_the_replica_as_it_was(scene: Scene) -> None:
    """Every prefix, every flipped byte of a good answer, and good ones of the wrong kind."""
    import history

    head, chunks = history.page_set(scene.old, scene.new)
    count = sum(chunk.count for chunk in chunks)
    header = head.replace(start=wire.NOWHERE, hash_start=0, repair=True, count=count)
    plain = history.wire_set(scene.old, scene.new)
    good = header.encode() + plain[frames.SET_HEADER_SIZE :]
    bad = [
        plain,
        good[:-40],
        good + b"x",
        b"",
        header.replace(repair=False, snapshot=True).encode(),
    ]
    for at in range(0, len(good), 97):
        flipped = bytearray(good)
        flipped[at] ^= 0x10
        bad.append(bytes(flipped))
    for body in bad:
        scene.server.raw = typed(http(body), wire.PAGE_SET_TYPE)
        with pytest.raises(SyncError):
            scene.replica.sync(repair=True, timeout=2.0)
        with closing(Applier(str(scene.path))) as applier:
            state, found = applier.full_hash()
        assert state.hash == found == scene.old.hash
    scene.server.raw = typed(http(good), wire.PAGE_SET_TYPE)
    assert scene.replica.sync(repair=True).position == scene.new.position
    with closing(Applier(str(scene.path))) as applier:
        state, found = applier.full_hash()
    assert state.hash == found == scene.new.hash


def test_a_set_that_claims_more_pages_than_it_brings_is_refused(scene: Scene) -> None:
    """The hash would be right, and the replica's table as large as the claim."""
    import history

    head, chunks = history.page_set(scene.old, scene.new)
    count = sum(chunk.count for chunk in chunks)
    plain = history.wire_set(scene.old, scene.new)[frames.SET_HEADER_SIZE :]
    for header in (
        head.replace(count=count, pages=head.pages + 3),
        head.replace(count=count, pages=0xFFFFFFFE),
        head.replace(start=wire.NOWHERE, hash_start=0, repair=True, count=count, pages=0xFFFFFFFE),
    ):
        scene.server.raw = typed(http(header.encode() + plain), wire.PAGE_SET_TYPE)
        with pytest.raises(SyncError, match="leaves out pages"):
            scene.replica.sync(repair=header.repair)
        assert scene.replica.state().position == scene.old.position
