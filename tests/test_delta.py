"""The codec of page deltas, on pages that SQLite never wrote: round trips, and what is refused."""

from __future__ import annotations

import random

import delta_reference as reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_sets import make_page

from nearlite._native import delta, frames
from nearlite._native._lib import FormatError, MisuseError

PAGE_SIZES = sorted(frames.PAGE_SIZES)
SEEDS = st.integers(0, 2**32)


def round_trip(page_size, numbers, bases, images, *, pages=99):
    """Encode, decode with both decoders, compare; answers the delta."""
    data = delta.encode(page_size, pages, numbers, bases, images)
    assert data is not None
    assert len(data) <= delta.bound(page_size, len(numbers))
    expected = b"".join(map(bytes, images))
    assert delta.decode(page_size, pages, numbers, bases, data) == expected
    assert reference.decode(page_size, pages, numbers, bases, data) == expected
    assert data == delta.encode(page_size, pages, numbers, bases, images)
    return data


def btree_page(rng, page_size, *, kind=None, number=2):
    """A page with the outlines of a b-tree page; some of what it says about itself is wrong."""
    page = bytearray(make_page(page_size, number, rng))
    head = 100 if number == 1 else 0
    count = rng.randrange(page_size // 6)
    page[head] = kind or rng.choice((2, 5, 10, 13))
    page[head + 3 : head + 5] = count.to_bytes(2, "big")
    page[head + 1 : head + 3] = rng.choice((0, rng.randrange(page_size))).to_bytes(2, "big")
    page[head + 5 : head + 7] = rng.randrange(min(page_size, 65535)).to_bytes(2, "big")
    page[head + 7] = rng.randrange(60)
    for i in range(count):
        at = rng.randrange(page_size)
        page[at : at + 1] = bytes([rng.randrange(40)])
        page[head + 12 + 2 * i : head + 14 + 2 * i] = at.to_bytes(2, "big")
    return bytes(page[:page_size])


def changed(rng, page):
    """The page with a few of its bytes changed, moved or removed."""
    data = bytearray(page)
    for _ in range(rng.randrange(1, 6)):
        at, to = rng.randrange(len(data)), rng.randrange(len(data))
        size = min(rng.choice((1, 2, 30)), len(data) - at, len(data) - to)
        data[at : at + size] = data[to : to + size] if rng.random() < 0.5 else rng.randbytes(size)
    return bytes(data)


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_page_that_did_not_change_is_one_byte(page_size):
    page = random.Random(1).randbytes(page_size)
    assert round_trip(page_size, [7], [page], [page]) == b"\0"


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_changed_integer_is_a_few_bytes(page_size):
    page = random.Random(1).randbytes(page_size)
    now = page[: page_size - 9] + b"\1\2\3\4" + page[page_size - 5 :]
    assert len(round_trip(page_size, [7], [page], [now])) <= 1 + 1 + 3 + 1 + 4


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_noise_over_noise_costs_no_more_than_the_page_and_its_frame(page_size):
    rng = random.Random(2)
    base, now = rng.randbytes(page_size), rng.randbytes(page_size)
    data = round_trip(page_size, [3], [base], [now])
    assert page_size * 0.97 < len(data) <= delta.bound(page_size, 1)


def test_a_new_page_needs_no_base():
    assert len(round_trip(4096, [9], [None], [bytes(4096)])) <= 2
    page = random.Random(3).randbytes(4096)
    assert len(round_trip(4096, [9], [None], [page])) <= delta.bound(4096, 1)


@pytest.mark.parametrize("page_size", [512, 4096])
def test_what_a_new_page_shares_with_the_page_before_is_not_told_twice(page_size):
    rng = random.Random(4)
    base = rng.randbytes(page_size)
    data = round_trip(page_size, [3, 4], [base, None], [base, base[50:] + base[:50]])
    assert len(data) < 30


def test_the_history_is_bounded_and_both_sides_forget_the_same():
    """Records of more than DELTA_HISTORY bytes in all, each like one that went before."""
    rng = random.Random(5)
    parts = [rng.randbytes(4096) for _ in range(3)]
    images = [parts[i % 3][i:] + parts[i % 3][:i] for i in range(24)]
    data = round_trip(4096, list(range(2, 26)), [None] * 24, images)
    assert len(data) < 4 * 4096


def test_page_one_counts_as_that_of_a_plain_database():
    """A replica keeps its own marks there; neither side needs to take them off."""
    plain = make_page(4096, 1, random.Random(6))
    marked = bytearray(plain)
    marked[18], marked[72:92] = 3, b"r" * 20
    now = changed(random.Random(7), plain[100:])
    data = delta.encode(4096, 5, [1], [plain], [plain[:100] + now])
    assert data == delta.encode(4096, 5, [1], [bytes(marked)], [bytes(marked[:100]) + now])
    assert delta.decode(4096, 5, [1], [bytes(marked)], data) == plain[:100] + now


def test_the_counters_of_page_one_are_told_in_two_bytes():
    base = bytearray(make_page(4096, 1, random.Random(8)))
    base[24:28] = base[92:96] = (0x123456FF).to_bytes(4, "big")
    now = bytearray(base)
    now[24:28] = now[92:96] = (0x12345700).to_bytes(4, "big")
    now[28:32] = (70_000).to_bytes(4, "big")
    data = round_trip(4096, [1], [bytes(base)], [bytes(now)], pages=70_000)
    assert data == bytes([2 * 2, 32, 1])


@given(SEEDS, st.sampled_from([512, 1024, 65536]), st.integers(1, 4))
def test_any_pages_round_trip(seed, page_size, count):
    rng = random.Random(seed)
    numbers = sorted(rng.sample(range(1, 30), count))
    bases = [
        rng.choice((None, make_page(page_size, n, rng), btree_page(rng, page_size, number=n)))
        for n in numbers
    ]
    images = []
    for n, base in zip(numbers, bases, strict=True):
        image = changed(rng, base or rng.choice([b for b in bases if b] or [bytes(page_size)]))
        fixed = make_page(page_size, 1, rng)[:100] if n == 1 else b""
        images.append(fixed + image[len(fixed) :])
    round_trip(page_size, numbers, bases, images)


@given(st.binary(max_size=700), st.binary(max_size=700))
def test_any_bytes_round_trip(base, image):
    base, image = (data.ljust(1024, data[:1] or b"\0") for data in (base, image))
    round_trip(1024, [2], [base], [image])


@pytest.mark.parametrize("room", [0, 1, 20, 511])
def test_a_delta_that_does_not_fit_is_none(room):
    rng = random.Random(9)
    pages = [rng.randbytes(512) for _ in range(4)]
    assert delta.encode(512, 9, [2, 3], pages[:2], pages[2:], room=room) is None


# ---------------------------------------------------------------- what is refused


def script(*parts):
    """A record that is not packed, as the delta of one page."""
    record = b"".join(bytes([part]) if isinstance(part, int) else part for part in parts)
    assert len(record) < 64
    return bytes([2 * len(record)]) + record


EMPTY_LEAF = b"\x0d\0\0\0\0\2\0\0" + bytes(504)
CELL = b"\3\1abc"
INSERT, DELETE, MOVE, LAST = 0, 1, 2, 4


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\0\0", id="more than the page"),
        pytest.param(b"\x80", id="a number cut short"),
        pytest.param(b"\xff\xff\xff\xff\x7f", id="a number above 32 bits"),
        pytest.param(b"\x80\x80\x80\x80\x80\0", id="a number of six bytes"),
        pytest.param(b"\x04\0", id="a record cut short"),
        pytest.param(b"\x82\x10" + bytes(1025), id="a record larger than any"),
        pytest.param(script(128), id="laid without edits"),
        pytest.param(script(4, LAST | 3), id="an unknown edit"),
        pytest.param(script(8), id="wiping without edits"),
        pytest.param(script(16), id="rebuilding without edits"),
        pytest.param(script(32, 1), id="counters of a page that has none"),
        pytest.param(script(64, 1), id="the base of a page that is not in the set"),
        pytest.param(script(2), id="fresh, of no kind"),
        pytest.param(script(2, 1), id="fresh, of an unknown kind"),
        pytest.param(script(1 | 4, LAST, CELL), id="edits of no b-tree"),
        pytest.param(script(4), id="edits, none"),
        pytest.param(script(4, INSERT, CELL), id="edits, no last one"),
        pytest.param(script(4, LAST | INSERT, CELL[:4]), id="a cell cut short"),
        pytest.param(script(4, 8 | LAST, CELL), id="an index beyond the cells"),
        pytest.param(script(4, LAST | DELETE, 0), id="deleted, what is not there"),
        pytest.param(script(4, LAST | MOVE, 0, 0, 0), id="moved, what is not there"),
        pytest.param(script(4, LAST | MOVE, 1, 0, 0), id="moved, from no page"),
        pytest.param(script(132, LAST | INSERT, CELL, b"\1\xfc"), id="laid beyond the page"),
        pytest.param(script(132, LAST | INSERT, CELL, 1), id="laid, an offset cut short"),
        pytest.param(script(148, LAST | INSERT, CELL, b"\1\x90"), id="laid and rebuilt"),
        pytest.param(script(0, 0, 2, 1), id="a span cut short"),
        pytest.param(script(0, b"\x80\4", 1, 1), id="a span beyond the page"),
        pytest.param(script(0, b"\xff\x03", 1, 1, 0, 1, 1), id="a second span beyond the page"),
        pytest.param(b"\x03", id="packed, nothing"),
        pytest.param(b"\x03\x20\0\0", id="packed, more literals than there is room for"),
        pytest.param(b"\x05\x20\0", id="packed, literals cut short"),
        pytest.param(b"\x05\x10\0", id="packed, no copy before the end"),
        pytest.param(b"\x05\x21\0\0", id="packed, a copy behind the end"),
        pytest.param(b"\x0b\x11\0\0", id="packed, from distance 0"),
        pytest.param(b"\x0b\x11\0\x82\x04", id="packed, from before everything"),
        pytest.param(b"\x0b\x11\0\4", id="packed, from the base's end on"),
        pytest.param(b"\x0b\x12\0\1", id="packed, a copy beyond the record"),
        pytest.param(b"\x0b\x1f\0\xff\xff\xff\xff\x0f\1", id="packed, a copy of 2^32"),
        pytest.param(b"\x0b\xf1\xff\xff\xff\xff\x0f\1", id="packed, literals of 2^32"),
    ],
)
def test_a_malformed_delta_is_refused(data):
    with pytest.raises(FormatError, match="malformed delta"):
        delta.decode(512, 9, [2], [EMPTY_LEAF], data)
    with pytest.raises(reference.RefusedError):
        reference.decode(512, 9, [2], [EMPTY_LEAF], data)


def test_the_error_names_the_page():
    page = bytes(512)
    with pytest.raises(FormatError, match="page 77") as caught:
        delta.decode(512, 99, [5, 77], [page, page], b"\0\2\x80")
    assert caught.value.page == 77


def test_edits_that_go_round_in_circles_end():
    """Each edit is small, each cell it moves is work: their number is bounded."""
    base = bytearray(EMPTY_LEAF)
    base[3:5], base[5:7] = (4).to_bytes(2, "big"), (500).to_bytes(2, "big")
    base[8:16], base[500:505] = (500).to_bytes(2, "big") * 4, CELL
    four_in, four_out = bytes([MOVE, 0, 0, 3]), bytes([DELETE, 2 * 3])
    most = 2 * (512 // 6 + 1)
    for n, fits in ((most // 4, True), (most // 4 + 1, False)):
        record = bytes([4]) + (four_in + four_out) * n + bytes([DELETE | LAST, 0])
        data = bytes([2 * len(record) & 127 | 128, 2 * len(record) >> 7]) + record
        if fits:
            delta.decode(512, 9, [2], [bytes(base)], data)
        else:
            with pytest.raises(FormatError):
                delta.decode(512, 9, [2], [bytes(base)], data)


@given(SEEDS, st.sampled_from([512, 4096]))
def test_two_decoders_agree_on_damaged_deltas(seed, page_size):
    """Whatever the bytes: an exception, or pages of the right size that both decoders make of them."""
    rng = random.Random(seed)
    numbers = [1, 4, 5] if rng.random() < 0.3 else [2, 4, 5]
    bases = [btree_page(rng, page_size, number=numbers[0]), btree_page(rng, page_size), None]
    images = [changed(rng, bases[0]), changed(rng, bases[1]), changed(rng, bases[1])]
    data = bytearray(delta.encode(page_size, 9, numbers, bases, images))
    for _ in range(rng.randrange(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    agree(page_size, numbers, bases, bytes(data))


@given(st.binary(max_size=60), SEEDS)
def test_two_decoders_agree_on_any_record(record, seed):
    rng = random.Random(seed)
    bases = [btree_page(rng, 512, kind=13), btree_page(rng, 512)]
    size = 2 * len(record)
    data = (bytes([size]) if size < 128 else bytes([size & 127 | 128, 1])) + record + b"\0"
    agree(512, [2, 3], bases, data)


def agree(page_size, numbers, bases, data):
    try:
        expected = reference.decode(page_size, 9, numbers, bases, data)
    except reference.RefusedError:
        with pytest.raises(FormatError):
            delta.decode(page_size, 9, numbers, bases, data)
    else:
        assert delta.decode(page_size, 9, numbers, bases, data) == expected


# ---------------------------------------------------------------- misuse


@pytest.mark.parametrize(("page_size", "count"), [(512, 0), (512, 1025), (65536, 129), (1000, 1)])
def test_sets_that_cannot_exist_are_refused(page_size, count):
    pages = [bytes(page_size)] * count
    with pytest.raises(MisuseError):
        delta.encode(page_size, 9, range(2, count + 2), pages, pages)
    with pytest.raises(MisuseError):
        delta.decode(page_size, 9, range(2, count + 2), pages, b"")


def test_lists_of_different_lengths_and_pages_of_another_size_are_refused():
    page = bytes(512)
    for call in (
        lambda: delta.encode(512, 9, [2], [page, page], [page]),
        lambda: delta.encode(512, 9, [2], [page], [bytes(511)]),
        lambda: delta.encode(512, 9, [2], [bytes(1024)], [page]),
        lambda: delta.decode(512, 9, [2, 3], [page], b""),
        lambda: delta.decode(512, 9, [2], [b""], b"\0"),
    ):
        with pytest.raises(ValueError, match="page"):
            call()
