"""Page sets of version 2: what they cost, what they carry, and above all what is refused."""

from __future__ import annotations

import dataclasses
import random

import pytest
from history import History, Moment
from hypothesis import given
from hypothesis import strategies as st
from page_sets import make_page

from nearlite import wire
from nearlite._native import compact, frames
from nearlite._native._lib import FormatError, HashError, MisuseError
from nearlite._native.applier import State
from nearlite.errors import AnswerError
from nearlite.position import Position

START = State(Position(7, 2, 10), 0x1122334455667788, 9, 512, 3)
GUARD_SEED = int.from_bytes(b"NLCOMPC\x02", "big")


def header(at: State, count: int, **changes: object) -> frames.SetHeader:
    """A header that leads from there."""
    plain = frames.SetHeader(
        page_size=at.page_size,
        pages=at.pages,
        count=count,
        start=at.position,
        target=Position(7, 2, 14),
        hash_start=at.hash,
        hash_target=0x99AABBCCDDEEFF00,
        commit_ms=1_764_000_000_123,
    )
    return plain.replace(**changes)


def some_pages(count: int, page_size: int = 512, seed: int = 1):
    """Numbers, bases and images; page 1 first."""
    rng = random.Random(seed)
    numbers = [1, *sorted(rng.sample(range(2, 10), count - 1))]
    bases = [make_page(page_size, n, rng) for n in numbers]
    images = [base[:-5] + rng.randbytes(5) for base in bases]
    return numbers, bases, images


def unpacked(data: bytes, start: State, bases) -> list[tuple[int, bytes]]:
    """What a reader makes of a set, verified as every chunk is."""
    with compact.Compact(data, start) as opened:
        head, body = opened.unpack(bases)
        with frames.Chunk(opened.header, head, body) as chunk:
            held = [chunk.page(i) for i in range(chunk.count)]
        assert opened.numbers == [number for number, _, _ in held]
    return [(number, image) for number, _, image in held]


def guarded(data: bytes, start: State = START) -> bytes:
    """The set with its guard made right, as somebody would who knows how."""
    p = start.position
    key = b"".join(n.to_bytes(4, "big") for n in (p.lineage, p.generation, p.frame))
    key += start.hash.to_bytes(8, "big")
    key += start.pages.to_bytes(4, "big") + start.page_size.to_bytes(4, "big")
    seed = frames.xxh3(key, GUARD_SEED)
    return data[:-4] + (frames.xxh3(data[:-4], seed) & 0xFFFFFFFF).to_bytes(4, "big")


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("page_size", sorted(frames.PAGE_SIZES))
def test_what_was_written_is_read(page_size):
    start = dataclasses.replace(START, page_size=page_size)
    numbers, bases, images = some_pages(4, page_size)
    top = header(start, 4)
    data = compact.encode(start, top, numbers, bases, images)
    assert unpacked(data, start, bases) == list(zip(numbers, images, strict=True))
    with compact.Compact(data, start) as opened:
        assert opened.header == top
        assert opened.needs == [True] * 4


@pytest.mark.parametrize(
    "changes",
    [
        {"target": Position(7, 2, 11)},
        {"target": Position(7, 2, 2**32 - 1)},
        {"target": Position(7, 3, 0)},
        {"target": Position(7, 2**32 - 1, 2**32 - 1)},
        {"pages": 8},
        {"pages": 10},
        {"pages": 2**31 - 1},
        {"commit_ms": 0},
        {"commit_ms": 2**48 - 1},
        {"hash_target": 0},
        {"hash_target": 2**64 - 1},
    ],
)
def test_every_field_of_the_header_is_carried(changes):
    page = make_page(512, 1, random.Random(1))
    top = header(START, 1, **changes)
    data = compact.encode(START, top, [1], [page], [page])
    with compact.Compact(data, START) as opened:
        assert opened.header == top


def test_a_page_whose_base_is_not_at_hand_is_told_without():
    numbers, bases, images = some_pages(5)
    start = dataclasses.replace(START, pages=numbers[3])  # the last page is new
    top = header(start, 5, pages=9)
    for missing in range(4):
        have = [None if i in (missing, 4) else base for i, base in enumerate(bases)]
        data = compact.encode(start, top, numbers, have, images)
        assert unpacked(data, start, have) == list(zip(numbers, images, strict=True))
        with compact.Compact(data, start) as opened:
            assert opened.needs == [base is not None for base in have]
            with pytest.raises(MisuseError, match="base"):
                opened.unpack([None] * 5)
            with pytest.raises(MisuseError, match="base"):
                opened.unpack(bases)


@given(st.integers(1, 8), st.integers(0, 2**32), st.integers(9, 60))
def test_any_set_round_trips(count, seed, pages):
    numbers, bases, images = some_pages(count, seed=seed)
    data = compact.encode(START, header(START, count, pages=pages), numbers, bases, images)
    assert len(data) <= compact.bound(512, count)
    assert unpacked(data, START, bases) == list(zip(numbers, images, strict=True))


def test_a_set_that_does_not_fit_is_none():
    numbers, bases, images = some_pages(3)
    whole = compact.encode(START, header(START, 3), numbers, bases, images)
    for room in range(len(whole)):
        assert compact.encode(START, header(START, 3), numbers, bases, images, room=room) is None


# ---------------------------------------------------------------- bytes


def moments(old: Moment, new: Moment) -> bytes:
    """The set between two states."""
    numbers = [n for n, p in enumerate(new.pages, 1) if n == 1 or p not in old.pages[n - 1 : n]]
    bases = [old.pages[n - 1] if n <= len(old.pages) else None for n in numbers]
    images = [new.pages[n - 1] for n in numbers]
    start = State(old.position, old.hash, len(old.pages), old.page_size, 0)
    top = header(
        start,
        len(numbers),
        pages=len(new.pages),
        target=new.position,
        hash_target=new.hash,
    )
    data = compact.encode(start, top, numbers, bases, images)
    after = dict(enumerate(old.pages, 1)) | dict(unpacked(data, start, bases))
    after[1] = new.pages[0]
    assert b"".join(after[n] for n in range(1, len(new.pages) + 1)) == b"".join(new.pages)
    return data


def test_an_integer_takes_64_bytes_and_a_row_180(tmp_path):
    history = History(tmp_path / "x.db")
    history.db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, mail TEXT, n INT, note TEXT)")
    history.db.execute("CREATE INDEX i ON t(mail)")
    row = "hex(randomblob(10)) || '@example.org', abs(random() % 100000), hex(randomblob(20))"
    before = history.step(
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 9000) "
        f"INSERT INTO t(mail, n, note) SELECT {row} FROM c"
    )
    integer, rows = [], []
    for i in range(11):
        now = history.step(f"UPDATE t SET n = n + 1 WHERE id = {100 + 37 * i}")
        integer.append(len(moments(before, now)))
        before = history.step(f"INSERT INTO t(mail, n, note) SELECT {row}")
        rows.append(len(moments(now, before)))
    assert max(integer) <= 64
    assert sorted(rows)[5] <= 180
    history.db.close()


# ---------------------------------------------------------------- what is refused


def test_every_bit_is_guarded():
    """Each damaged bit is refused; also by a reader whose guard was made right, or by the hash."""
    numbers, bases, images = some_pages(2)
    top = header(START, 2)
    data = compact.encode(START, top, numbers, bases, images)
    right = unpacked(data, START, bases)
    database = {n: bytes(512) for n in range(1, 10)} | dict(zip(numbers, bases, strict=True))
    for at in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises((HashError, FormatError)):
            compact.Compact(bytes(damaged), START)
        if at >= 8 * (len(data) - 4):
            continue
        try:
            with compact.Compact(guarded(bytes(damaged)), START) as opened:
                have = zip(opened.numbers, opened.needs, strict=True)
                given = [database[n] if needed else None for n, needed in have]
                hashed = opened.header.hash_target
            pages = unpacked(guarded(bytes(damaged)), START, given)
        except (FormatError, HashError):
            continue
        # Then pages or state hash are others: the applier finds that they do not belong together.
        assert pages != right or hashed != top.hash_target


@pytest.mark.parametrize(
    "changes",
    [
        {"position": Position(6, 2, 10)},
        {"position": Position(7, 1, 10)},
        {"position": Position(7, 2, 9)},
        {"hash": 0x1122334455667789},
        {"pages": 10},
        {"page_size": 1024},
    ],
)
def test_a_set_from_another_state_is_refused_before_anything_else(changes):
    numbers, bases, images = some_pages(3)
    data = compact.encode(START, header(START, 3), numbers, bases, images)
    with pytest.raises(HashError, match="another state"):
        compact.Compact(data, dataclasses.replace(START, **changes))


def test_a_refused_set_is_not_lent_any_more():
    """As in tests/test_pageset.py."""
    numbers, bases, images = some_pages(3)
    data = compact.encode(START, header(START, 3), numbers, bases, images)
    view = memoryview(bytearray(data))
    with pytest.raises(HashError) as caught:
        compact.Compact(view, dataclasses.replace(START, pages=10))
    view.release()  # BufferError while it is lent
    assert caught.value.__traceback__ is not None


def test_a_set_cut_short_or_with_a_tail_is_refused():
    numbers, bases, images = some_pages(2)
    data = compact.encode(START, header(START, 2), numbers, bases, images)
    for n in range(len(data)):
        with pytest.raises(FormatError):
            compact.Compact(data[:n], START)
        with pytest.raises((FormatError, HashError)):
            compact.Compact(guarded(data[:n]) if n > 4 else data[:n], START)
    with pytest.raises(FormatError, match="follow"):
        compact.Compact(data + b"\0", START)


def test_an_impossible_length_is_refused():
    rest = bytes(30)
    for length in (b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x80\1", b"\xff\xff\xff\xff\xff"):
        with pytest.raises(FormatError, match=r"its length|it is cut short"):
            compact.Compact(b"\xd2\0" + length + rest, START)
    for other in (b"NLSET\r\n\x1a", b"\xd3"):
        with pytest.raises(FormatError, match="not a compact"):
            compact.Compact(other + rest, START)


def plain_set(*, bits: int = 0, head: bytes = b"\4\0", count: bytes = b"\0", rest: bytes = b"\0"):
    """A set put together by hand; `rest` is what follows the hash."""
    body = head + bytes(6) + count + bytes(8) + rest + bytes(4)
    return guarded(b"\xd2" + bytes([bits, len(body)]) + body)


def test_a_set_made_by_hand_is_read():
    page = make_page(512, 1, random.Random(2))
    assert unpacked(plain_set(), START, [page]) == [(1, page)]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"bits": 0x20}, "unknown bits"),
        ({"bits": 1}, "another page size"),
        ({"head": b"\0\0"}, "forwards"),
        ({"bits": 8, "head": b"\0\4\0"}, "its generation"),
        ({"bits": 8, "head": b"\xff\xff\xff\xff\x0f\4\0"}, "its generation"),
        ({"head": b"\xff\xff\xff\xff\x0f\0"}, "its position"),
        ({"head": b"\xff\xff\xff\xff\x1f\0"}, "its position"),
        ({"head": b"\4\x11"}, "database size"),
        ({"head": b"\4\x13"}, "database size"),
        ({"head": b"\4\xfe\xff\xff\xff\x0f"}, "database size"),
        ({"count": b"\x80\x08"}, "number of pages"),
        ({"count": b"\x09" + b"\0" * 9}, "more pages"),
        ({"count": b"\1\x08"}, "beyond the end"),
        ({"bits": 16, "count": b"\0\2"}, "bits of bases"),
        ({"bits": 16, "head": b"\4\2", "count": b"\1\x08\2"}, "bits of bases"),
    ],
)
def test_a_set_that_breaks_a_rule_is_refused_whatever_its_guard(options, why):
    page = make_page(512, 1, random.Random(2))
    with pytest.raises(FormatError, match=why):
        unpacked(plain_set(**options), START, [page])


@pytest.mark.parametrize("rest", [b"", b"\0\0", b"\2\x80", b"\x80"])
def test_deltas_that_break_a_rule_are_refused_whatever_the_guard(rest):
    page = make_page(512, 1, random.Random(2))
    with pytest.raises(FormatError, match="malformed delta"):
        unpacked(plain_set(rest=rest), START, [page])


def test_the_lock_byte_page_is_refused_in_both_directions():
    frames.use_lock_byte(1024)
    try:
        page = make_page(512, 1, random.Random(2))
        with pytest.raises(FormatError, match="lock-byte"):
            unpacked(plain_set(count=b"\1\1", rest=b"\0\0"), START, [page, page])
        with pytest.raises(MisuseError, match="does not exist"):
            compact.encode(START, header(START, 2), [1, 3], [page] * 2, [page] * 2)
    finally:
        frames.use_lock_byte(0x40000000)


def test_page_one_must_remain_that_of_a_database():
    page = make_page(512, 1, random.Random(2))
    data = compact.encode(START, header(START, 1), [1], [page], [b"X" + page[1:]])
    with pytest.raises(FormatError, match="page 1"):
        unpacked(data, START, [page])


# ---------------------------------------------------------------- on the wire


def test_a_set_that_has_arrived_tells_what_it_is_about():
    numbers, bases, images = some_pages(3)
    data = compact.encode(START, header(START, 3), numbers, bases, images)
    arrived = wire.CompactSet(data, START)
    assert arrived.header == header(START, 3)
    assert bytes(arrived.data) == data


def large_set() -> tuple[State, bytes]:
    """A set of pages of hexadecimal noise: no copies, and half of it is air."""
    rng = random.Random(4)
    numbers, bases, _ = some_pages(8, page_size=4096)
    images = [base[:100] + rng.randbytes(1998).hex().encode() for base in bases]
    start = dataclasses.replace(START, page_size=4096)
    data = compact.encode(start, header(start, 8), numbers, bases, images)
    assert data is not None
    return start, data


def test_a_large_set_may_be_packed():
    start, data = large_set()
    packed = wire.pack_compact(data)
    assert len(packed) < 0.7 * len(data)
    assert wire.is_compact(packed)
    arrived = wire.CompactSet(packed, start)
    assert arrived.header.count == 8
    assert bytes(arrived.data) == data


def test_what_does_not_gain_a_tenth_is_not_packed():
    noise = random.Random(3).randbytes(6000)
    assert wire.pack_compact(noise) == noise
    assert wire.pack_compact(bytes(2000)) == bytes(2000)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda p: p[:1] + b"\xff\0\0\0" + p[5:], "packed into"),
        (lambda p: p[:5] + p[1:5] + p[9:], "packed into"),
        (lambda p: p[:4] + bytes([p[4] ^ 1]) + p[5:], "frame"),
        (lambda p: p[:9] + b"\0" + p[10:], "cannot be used"),
        (lambda p: p[:-1] + bytes([p[-1] ^ 0x40]), "cannot be used"),
        (lambda p: p[:5] + (len(p) - 8).to_bytes(4, "big") + p[9:] + b"\0", "cannot be used"),
    ],
)
def test_a_packed_set_that_breaks_a_rule_is_refused(change, why):
    start, data = large_set()
    with pytest.raises(AnswerError, match=why):
        wire.CompactSet(change(wire.pack_compact(data)), start)


def test_a_packed_set_cut_short_anywhere_is_refused():
    start, data = large_set()
    packed = wire.pack_compact(data)
    for size in (*range(1, 12), len(packed) // 2, len(packed) - 1):
        with pytest.raises(AnswerError):
            wire.CompactSet(packed[:size], start)


def test_the_first_byte_tells_the_versions_apart():
    page = make_page(512, 1, random.Random(2))
    told = compact.encode(START, header(START, 1), [1], [page], [page])
    assert wire.is_compact(told)
    assert wire.is_compact(memoryview(told))
    assert not wire.is_compact(header(START, 1).encode())


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"NLSET\r\n\x1a", "not a compact"),
        (b"\xd2\0\xff\xff\xff\xff\x0f", "cut short"),
        (b"\xd2\0\x15" + bytes(21), "another state"),
        (b"\xd2\0\x15", "cut short"),
    ],
)
def test_what_cannot_be_used_is_an_answer_error(data, why):
    with pytest.raises(AnswerError, match=why):
        wire.CompactSet(data, START)
