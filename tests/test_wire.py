"""Page sets on the wire: any framing in, events out, everything hostile refused."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from page_sets import build, guard_chunk, patch, whole

from nearlite import wire, zstd
from nearlite._native import frames
from nearlite.errors import AnswerError
from nearlite.position import Position


def kinds(events):
    return [type(event) for event in events]


def read(data, cuts=()):
    """All events of `data`, fed in pieces cut at `cuts`."""
    reader = wire.PageSetReader()
    events = []
    bounds = [0, *sorted(cuts), len(data)]
    for start, stop in itertools.pairwise(bounds):
        if not reader.ended:
            events += reader.receive(data[start:stop])
    reader.close()
    return events


def images(events):
    """Page number -> bytes of everything that the events carry."""
    found = {}
    for event in events:
        if isinstance(event, wire.Chunk):
            with event.chunk as chunk:
                for index in range(chunk.count):
                    number, _, data = chunk.page(index)
                    found[number] = data
    return found


# ---------------------------------------------------------------- framing


@pytest.mark.parametrize("compress", [False, True])
def test_a_set_fed_whole_comes_back(compress):
    top, pages, chunks = build(512, [[1, 2, 3], [7, 9]])
    events = read(b"".join(wire.page_set(top, chunks, compress=compress)))
    assert kinds(events) == [wire.Header, wire.Chunk, wire.Chunk, wire.End]
    assert top == events[0].header
    assert pages == images(events)


@pytest.mark.parametrize("compress", [False, True])
def test_a_set_fed_byte_by_byte_comes_back(compress):
    top, pages, chunks = build(512, [[1, 2, 3], [7, 9]])
    data = b"".join(wire.page_set(top, chunks, compress=compress))
    events = read(data, range(1, len(data)))
    assert kinds(events) == [wire.Header, wire.Chunk, wire.Chunk, wire.End]
    assert pages == images(events)


@given(
    st.lists(st.sets(st.integers(1, 40), min_size=1, max_size=6), min_size=0, max_size=4),
    st.sampled_from([512, 1024, 4096]),
    st.booleans(),
    st.data(),
)
def test_any_set_cut_anywhere_comes_back(groups, page_size, compress, data):
    numbers = sorted(set().union(*groups))
    bounds = sorted({0, len(numbers), *(len(group) % (len(numbers) + 1) for group in groups)})
    parts = [numbers[a:b] for a, b in itertools.pairwise(bounds)]
    top, pages, chunks = build(page_size, parts, pages=40)
    stream = b"".join(wire.page_set(top, chunks, compress=compress))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    events = read(stream, cuts)
    assert kinds(events) == [wire.Header, *[wire.Chunk] * len(parts), wire.End]
    assert pages == images(events)


def test_what_follows_a_set_is_left_over():
    reader = wire.PageSetReader()
    assert kinds(reader.receive(whole(512, [[1]]) + b"tail"))[-1] is wire.End
    assert reader.ended
    assert bytes(reader.rest) == b"tail"
    assert reader.needed() == 0
    with pytest.raises(ValueError, match="ended"):
        reader.receive(b"more")


def test_nothing_fed_answers_nothing():
    assert list(wire.PageSetReader().receive(b"")) == []


def test_events_must_be_taken_before_more_is_fed():
    reader = wire.PageSetReader()
    events = reader.receive(whole(512, [[1]]))
    next(events)
    with pytest.raises(ValueError, match="not all been taken"):
        reader.receive(b"x")
    assert kinds(events) == [wire.Chunk, wire.End]


@pytest.mark.parametrize("compress", [False, True])
def test_reading_what_is_needed_takes_one_buffer_for_each_chunk(compress):
    top, pages, chunks = build(512, [[1, 2, 3], [7, 9]])
    data = b"".join(wire.page_set(top, chunks, compress=compress))
    reader, events, sizes, at = wire.PageSetReader(), [], [], 0
    while size := reader.needed():
        sizes.append(size)
        events += reader.receive(data[at : at + size])
        assert not reader.rest
        at += size
    assert at == len(data)
    assert len(sizes) == 3
    assert sizes[0] == 128
    assert pages == images(events)


def test_needed_counts_what_was_fed_already():
    data = whole(512, [[1, 2]])
    reader = wire.PageSetReader()
    assert reader.needed() == 128
    list(reader.receive(data[:100]))
    assert reader.needed() == 28
    list(reader.receive(data[100:128]))
    assert reader.needed() == 64 + 1024 + 32
    list(reader.receive(data[128:1000]))
    assert reader.needed() == 128 + 64 + 1024 + 32 - 1000


def test_pages_of_a_whole_chunk_are_used_in_place():
    data = bytearray(whole(512, [[1, 2]]))
    events = read(memoryview(data))
    with pytest.raises(BufferError):
        data.append(0)  # the chunk lends the buffer
    events[1].chunk.close()


# ---------------------------------------------------------------- hostile bytes


@pytest.mark.parametrize("compress", [False, True])
def test_a_set_cut_short_at_any_byte_is_refused(compress):
    data = whole(512, [[1, 2], [5]], compress=compress)
    for size in range(len(data)):
        with pytest.raises(AnswerError, match="cut short"):
            read(data[:size])


def test_a_flipped_bit_at_any_byte_is_refused():
    data = bytearray(whole(512, [[1, 2], [5]]))
    for at in range(len(data)):
        data[at] ^= 1 << at % 8
        with pytest.raises(AnswerError):
            read(bytes(data))
        data[at] ^= 1 << at % 8
    read(bytes(data))


def test_a_flipped_bit_in_a_compressed_set_is_refused_or_changes_nothing():
    """zstd ignores a bit of its frame header, and then the pages are the right ones."""
    top, pages, chunks = build(512, [[2, 4], [5]])
    body = bytearray(chunks[0].body)
    data = bytearray(b"".join(wire.page_set(top, chunks, compress=True)))
    assert len(data) < 96 + 3 * 32 + 2 * len(body)
    refused = 0
    for at in range(len(data)):
        data[at] ^= 1 << at % 8
        try:
            assert pages == images(read(bytes(data)))
        except AnswerError:
            refused += 1
        data[at] ^= 1 << at % 8
    assert refused >= len(data) - 4


def test_a_broken_set_stays_broken():
    reader = wire.PageSetReader()
    events = reader.receive(b"x" * 200)
    with pytest.raises(AnswerError, match="not a page set"):
        next(events)
    with pytest.raises(AnswerError, match="not a page set"):
        next(events)
    with pytest.raises(AnswerError, match="not a page set"):
        reader.close()


def test_the_error_says_that_nothing_was_changed():
    with pytest.raises(AnswerError) as caught:
        read(b"x" * 96)
    assert not caught.value.data_at_risk
    assert "the local file is unchanged" in str(caught.value)
    assert "asks for it again" in str(caught.value)


def pieces(compress=False):
    top, _, chunks = build(512, [[1, 2], [5], [9]])
    return list(wire.page_set(top, chunks, compress=compress))


def test_chunks_in_another_order_are_refused():
    p = pieces()
    with pytest.raises(AnswerError, match="out of order"):
        read(b"".join([p[0], *p[3:5], *p[1:3], *p[5:]]))


def test_a_repeated_chunk_is_refused():
    p = pieces()
    with pytest.raises(AnswerError, match="out of order"):
        read(b"".join([*p[:3], *p[1:]]))


def test_a_missing_chunk_is_refused():
    p = pieces()
    with pytest.raises(AnswerError, match="ends 1 pages early"):
        read(b"".join([*p[:3], *p[5:]]))


def test_a_chunk_too_many_is_refused_before_its_body():
    top, _, chunks = build(512, [[1, 2], [5], [9]])
    p = list(wire.page_set(top, chunks))
    fewer = top.replace(count=3).encode()
    with pytest.raises(AnswerError, match="more pages than it announced"):
        read(b"".join([fewer, *p[1:6]]))


def test_a_huge_chunk_is_refused_before_anything_is_allocated():
    p = pieces()
    for size in (frames.CHUNK_MAX_BYTES, frames.CHUNK_MAX_BYTES + 1, 2**32 - 1):
        head = guard_chunk(patch(patch(p[1], 8, size), 12, size))
        with pytest.raises(AnswerError, match=r"out of bounds|cannot make a chunk"):
            read(p[0] + head)


def packed_set(packed, raw_size):
    """A set whose one chunk, of two pages, is stored as `packed`."""
    top, _, chunks = build(512, [[1, 2]])
    head = frames.ChunkHeader(2, raw_size, len(packed), chunks[0].digest, zstd=True)
    return top.encode() + head.encode() + packed + wire.END_OF_SET


def test_a_frame_that_unpacks_to_more_than_announced_is_refused():
    for size in (0, 1087, 1089, 20_000_000):
        packed = zstandard.ZstdCompressor().compress(bytes(size))
        with pytest.raises(AnswerError, match="not a frame of 1088 bytes"):
            read(packed_set(packed, 1088))


def test_a_frame_that_hides_its_size_is_refused():
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10_000_000))
    with pytest.raises(AnswerError, match="not a frame of 1088 bytes"):
        read(packed_set(bomb, 1088))


def test_a_frame_that_lies_about_its_size_is_refused():
    packed = bytearray(zstandard.ZstdCompressor().compress(bytes(5000)))
    assert packed[5:7] == (5000 - 256).to_bytes(2, "little")
    packed[5:7] = (1088 - 256).to_bytes(2, "little")
    with pytest.raises(AnswerError):
        read(packed_set(bytes(packed), 1088))


def test_bytes_behind_a_frame_are_refused():
    top, _, chunks = build(512, [[2, 4]])
    for tail in (b"x", zstd.compress(b"", 1)):
        packed = zstd.compress(bytes(frames.chunk_size(512, 2)), 1) + tail
        head = frames.ChunkHeader(2, 1088, len(packed), chunks[0].digest, zstd=True)
        with pytest.raises(AnswerError):
            read(top.encode() + head.encode() + packed + wire.END_OF_SET)


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(data):
    with pytest.raises(AnswerError):
        read(data)


# ---------------------------------------------------------------- writing


def test_compression_is_kept_only_where_it_pays():
    rng = random.Random(1)
    noise = wire.RawChunk(rng.randbytes(4096), 1, 7)
    zeros = wire.RawChunk(bytes(4096), 1, 7)
    head, stored = wire.chunk_pieces(noise, compress=True)
    assert not frames.ChunkHeader.decode(head).zstd
    assert stored is noise.body
    head, stored = wire.chunk_pieces(zeros, compress=True)
    assert frames.ChunkHeader.decode(head) == frames.ChunkHeader(1, 4096, len(stored), 7, zstd=True)
    assert len(stored) < 100
    assert wire.chunk_pieces(zeros)[1] is zeros.body


@pytest.mark.parametrize("announced", [2, 4])
def test_a_set_that_carries_another_number_of_pages_is_not_ended(announced):
    top, _, chunks = build(512, [[1, 2, 3]])
    wrong = top.replace(count=announced)
    made = wire.page_set(wrong, chunks)
    with pytest.raises(ValueError, match="announced"):
        list(made)


# ---------------------------------------------------------------- answers (read in replica.py: test_hostile.py)


def test_the_json_of_an_answer_is_preceded_by_its_length():
    assert wire.answer_prefix(b"{}") == b"\0\0\0\2{}"


# ---------------------------------------------------------------- JSON bodies

STATUS = wire.Status(
    position=Position(7, 2, 14),
    hash=0x00AA000000000001,
    page_size=4096,
    pages=12,
    commit_ms=1_700_000_000_123,
    replicas=2,
    version="0.1.0",
)


def test_a_status_comes_back_as_it_was_written():
    assert wire.Status.decode(STATUS.encode()) == STATUS
    assert msgspec.json.decode(STATUS.encode()) == {
        "protocol": 1,
        "position": "00000007.00000002.0000000e",
        "hash": "00aa000000000001",
        "page_size": 4096,
        "pages": 12,
        "commit_ms": 1_700_000_000_123,
        "replicas": 2,
        "version": "0.1.0",
    }


def test_members_of_a_newer_status_are_passed_over():
    newer = {**msgspec.json.decode(STATUS.encode()), "color": "blue"}
    assert wire.Status.decode(msgspec.json.encode(newer)) == STATUS


@pytest.mark.parametrize(
    "change",
    [
        {"position": "1.2.3"},
        {"hash": "12"},
        {"hash": "00AA000000000001"},
        {"hash": "+0aa000000000001"},
        {"pages": "12"},
        {"protocol": None},
    ],
)
def test_a_malformed_status_is_refused(change):
    wrong = {**msgspec.json.decode(STATUS.encode()), **change}
    with pytest.raises(AnswerError, match="status cannot be read"):
        wire.Status.decode(msgspec.json.encode(wrong))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_status_is_refused(body):
    with pytest.raises(AnswerError, match="status cannot be read"):
        wire.Status.decode(body)


def test_an_error_body_comes_back_and_has_both_shapes():
    body = wire.encode_error("HISTORY_GONE", "too old")
    assert wire.decode_error(body) == ("HISTORY_GONE", "too old")
    assert msgspec.json.decode(body) == {
        "message": "too old",
        "code": "HISTORY_GONE",
        "error": {"message": "too old", "code": "HISTORY_GONE"},
    }


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":{"message":"m","code":"C"}}', ("C", "m")),
        (b'{"message":"m","code":"C"}', ("C", "m")),
        (b'{"error":"plain text"}', ("", "plain text")),
        (b'{"message":"m"}', ("", "m")),
        (b"{}", ("", "")),
        (b"", ("", "")),
        (b"<html>502 Bad Gateway</html>", ("", "")),
        (b'{"message":7}', ("", "")),
        (b'{"message":"\\u001b[31mred\\nline"}', ("", " [31mred line")),
    ],
)
def test_an_error_body_of_any_shape_can_be_read(body, expected):
    assert wire.decode_error(body) == expected


def test_a_long_error_is_cut():
    code, message = wire.decode_error(wire.encode_error("C" * 1000, "m" * 10_000))
    assert (len(code), len(message)) == (100, 500)


@given(st.binary(max_size=200))
def test_no_error_body_raises(data):
    assert len(wire.decode_error(data)) == 2
