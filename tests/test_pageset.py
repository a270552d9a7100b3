"""Headers and chunks of page sets: what decodes, and above all what does not."""

from __future__ import annotations

import dataclasses
import random

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from page_sets import build, guard_chunk, guard_set, header, make_page, patch, raw_chunk

from nearlite import wire
from nearlite._native import frames
from nearlite._native._lib import FormatError, HashError, MisuseError
from nearlite.position import Position

PAGE_SIZES = sorted(frames.PAGE_SIZES)


@pytest.fixture
def lock_byte_at_1024():
    """Page 3 of 512-byte pages is the lock-byte page."""
    frames.use_lock_byte(0x400)
    yield
    frames.use_lock_byte(0x40000000)


def chunk_header(chunk, **changes):
    """The header that fits a raw chunk."""
    size = len(chunk.body)
    return dataclasses.replace(frames.ChunkHeader(chunk.count, size, size, chunk.digest), **changes)


def verify(top, chunk, **options):
    return frames.Chunk(top, chunk_header(chunk), chunk.body, **options)


# ---------------------------------------------------------------- set header

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)


@st.composite
def set_headers(draw):
    page_size = draw(st.sampled_from(PAGE_SIZES))
    pages = draw(st.integers(1, 2**32 - 2))
    existing = pages - (frames.lock_page(page_size) <= pages)
    snapshot = draw(st.booleans())
    lineage = draw(st.integers(1, 2**28 - 1))
    generation, frame = draw(st.integers(1, 2**32 - 2)), draw(st.integers(0, 2**32 - 2))
    later = draw(st.booleans())
    return frames.SetHeader(
        page_size=page_size,
        pages=pages,
        count=existing if snapshot else draw(st.integers(0, existing)),
        start=Position(0, 0, 0) if snapshot else Position(lineage, generation, frame),
        target=Position(lineage, generation + later, 0 if later else frame + 1),
        hash_start=0 if snapshot else draw(u64),
        hash_target=draw(u64),
        commit_ms=draw(st.integers(-(2**63), 2**63 - 1)),
        snapshot=snapshot,
    )


@given(set_headers())
def test_a_set_header_comes_back_as_it_was_written(top):
    assert top == frames.SetHeader.decode(top.encode())


def test_a_set_header_has_the_documented_bytes():
    top = header(4096, pages=0x01020304, count=0x0A0B)
    head = bytes.fromhex(
        "4e4c5345540d0a1a" "00000001" "00000000" "00001000" "01020304" "00000a0b"
        "000000070000000200000 00a".replace(" ", "") + "00000007000000020000000e" "00000000"
        "1122334455667788" "99aabbccddeeff00" "0000018bcfe5687b" "0000000000000000"
    )  # fmt: skip
    assert head + xxhash.xxh3_64_digest(head) == top.encode()


def test_a_set_header_with_any_flipped_bit_is_refused():
    data = header().encode()
    for bit in range(96 * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            frames.SetHeader.decode(damaged)


@pytest.mark.parametrize("size", [0, 1, 8, 95])
def test_a_cut_set_header_is_refused(size):
    with pytest.raises(FormatError, match="cut short"):
        frames.SetHeader.decode(header().encode()[:size])


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (8, 2, "version 2"),
        (12, 2, "names a position"),  # a repair starts from whatever there is
        (12, 4, "flags 0x4"),
        (12, 1, "a snapshot starts nowhere"),
        (16, 0, "page size 0"),
        (16, 256, "page size 256"),
        (16, 4095, "page size 4095"),
        (16, 131072, "page size 131072"),
        (20, 0, "database size"),
        (20, 2**32 - 1, "database size"),
        (24, 10, "more pages than the database"),
        (28, 0, "starts from is impossible"),
        (28, 1 << 28 | 7, "starts from is impossible"),
        (28, 8, "one lineage to another"),
        (32, 0, "starts from is impossible"),
        (32, 3, "not lead forwards"),
        (36, 14, "not lead forwards"),
        (36, 15, "not lead forwards"),
        (40, 0, "leads to is impossible"),
        (40, 1 << 28 | 7, "leads to is impossible"),
        (44, 0, "leads to is impossible"),
        (44, 1, "not lead forwards"),
        (52, 1, "reserved"),
        (80, 1, "reserved"),
        (84, 1, "reserved"),
    ],
)
def test_a_well_guarded_set_header_that_makes_no_sense_is_refused(offset, value, why):
    data = guard_set(patch(header().encode(), offset, value))
    with pytest.raises(FormatError, match=why):
        frames.SetHeader.decode(data)


@pytest.mark.parametrize("offset", [28, 32, 36, 56, 60])
def test_a_snapshot_that_names_a_start_is_refused(offset):
    data = header(pages=3, snapshot=True).encode()
    assert frames.SetHeader.decode(data).snapshot
    with pytest.raises(FormatError, match="starts nowhere"):
        frames.SetHeader.decode(guard_set(patch(data, offset, 1)))


@pytest.mark.parametrize("count", [2, 4])
def test_a_snapshot_that_does_not_carry_every_page_is_refused(count):
    data = header(pages=3, count=count, snapshot=True).encode()
    with pytest.raises(FormatError, match="every page"):
        frames.SetHeader.decode(data)


def test_a_snapshot_leaves_out_the_lock_byte_page(lock_byte_at_1024):
    data = header(pages=3, count=2, snapshot=True).encode()
    assert frames.SetHeader.decode(data).count == 2
    with pytest.raises(FormatError, match="every page"):
        frames.SetHeader.decode(header(pages=3, count=3, snapshot=True).encode())


def test_a_set_without_pages_may_move_to_the_next_generation():
    top = header(count=0).replace(target=Position(7, 3, 0))
    assert top == frames.SetHeader.decode(top.encode())


# ---------------------------------------------------------------- chunk header


@given(count=st.integers(1, 1024), page_bits=st.integers(9, 16), digest=u64, packed=st.booleans())
def test_a_chunk_header_comes_back_as_it_was_written(count, page_bits, digest, packed):
    count = min(count, frames.CHUNK_MAX_PAGE_BYTES >> page_bits)
    size = frames.chunk_size(1 << page_bits, count)
    top = frames.ChunkHeader(count, size, size // 2 if packed else size, digest, packed)
    assert top == frames.ChunkHeader.decode(top.encode())


def test_a_chunk_header_has_the_documented_bytes():
    top = frames.ChunkHeader(2, 1088, 500, 0x0102030405060708, zstd=True)
    head = bytes.fromhex("000000010000000200000440000001f40102030405060708")
    seed = int.from_bytes(b"NLCHUNK\x01", "big")
    assert head + xxhash.xxh3_64_digest(head, seed=seed) == top.encode()
    assert bytes(24) + xxhash.xxh3_64_digest(bytes(24), seed=seed) == wire.END_OF_SET


def test_a_chunk_header_with_any_flipped_bit_is_refused():
    data = frames.ChunkHeader(2, 1088, 1088, 77).encode()
    for bit in range(32 * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            frames.ChunkHeader.decode(damaged)


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (0, 2, "flags 0x2"),
        (0, 0x80000000, "flags 0x80000000"),
        (0, 1, "stored in"),  # compressed to its own size
        (4, 1025, "out of bounds"),
        (4, 2**32 - 1, "out of bounds"),
        (8, 0, "out of bounds"),
        (8, 64, "out of bounds"),  # the table alone
        (8, frames.CHUNK_MAX_BYTES + 1, "out of bounds"),
        (8, 2**32 - 1, "out of bounds"),
        (12, 0, "stored in"),
        (12, 1087, "stored in"),
        (12, 1089, "stored in"),
        (12, 2**32 - 1, "stored in"),
        (4, 0, "the end of the page set carries data"),
    ],
)
def test_a_well_guarded_chunk_header_out_of_bounds_is_refused(offset, value, why):
    data = guard_chunk(patch(frames.ChunkHeader(2, 1088, 1088, 77).encode(), offset, value))
    with pytest.raises(FormatError, match=why):
        frames.ChunkHeader.decode(data)


@pytest.mark.parametrize("offset", [0, 8, 12, 16, 20])
def test_the_end_of_a_set_carries_nothing(offset):
    with pytest.raises(FormatError, match="end of the page set"):
        frames.ChunkHeader.decode(guard_chunk(patch(wire.END_OF_SET, offset, 1)))


def test_a_cut_chunk_header_is_refused():
    with pytest.raises(FormatError, match="cut short"):
        frames.ChunkHeader.decode(wire.END_OF_SET[:31])


# ---------------------------------------------------------------- chunks


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_verified_chunk_holds_the_pages_and_their_hashes(page_size):
    numbers = [1, 2, 5, 9]
    top, images, chunks = build(page_size, [numbers])
    with verify(top, chunks[0]) as chunk:
        assert (chunk.count, chunk.last) == (4, 9)
        for index, number in enumerate(numbers):
            digest = frames.page_hash(images[number], number)
            assert (number, digest, images[number]) == chunk.page(index)


def test_pages_lie_aligned_in_the_body():
    for count in (1, 7, 8, 9, 1024):
        offset = frames.pages_offset(count)
        assert offset % 64 == 0
        assert 0 <= offset - 8 * count < 64
        assert offset + count * 512 == frames.chunk_size(512, count)


def test_what_was_refused_is_not_lent_any_more():
    """Whoever keeps the exception keeps the frames it came through. Before Python 3.12.6 collecting those in a
    cycle with a memoryview that is still lent ends the process.
    """
    top, _, (raw,) = build(512, [[2, 3]])
    body = memoryview(bytearray(raw.body))
    with pytest.raises(HashError) as caught:
        frames.Chunk(top, frames.ChunkHeader(raw.count, len(body), len(body), 1), body)
    body.release()  # BufferError while it is lent
    body = memoryview(bytearray(raw.body))
    with pytest.raises(MisuseError) as again:
        frames.seal(body, 512, [3, 2])
    body.release()
    assert caught.tb is not again.tb


def test_the_digest_is_xxh3_over_page_numbers_and_hashes():
    _, images, chunks = build(512, [[1, 2, 9]])
    pairs = b"".join(
        n.to_bytes(4, "big") + frames.page_hash(image, n).to_bytes(8, "big")
        for n, image in images.items()
    )
    assert xxhash.xxh3_64_intdigest(pairs) == chunks[0].digest


@pytest.mark.parametrize("level", range(frames.simd_best() + 1))
def test_every_level_verifies_what_another_made(level):
    top, _, chunks = build(4096, [[1, 2, 3, 4]])
    try:
        frames.simd_use(level)
        verify(top, chunks[0]).close()
    finally:
        frames.simd_use(frames.simd_best())


def test_a_flipped_bit_anywhere_in_a_chunk_is_found():
    top, _, chunks = build(512, [[1, 2]])
    body = bytearray(chunks[0].body)
    head = chunk_header(chunks[0])
    for at in range(len(body)):
        body[at] ^= 1 << at % 8
        with pytest.raises((FormatError, HashError)):
            frames.Chunk(top, head, body)
        body[at] ^= 1 << at % 8
    frames.Chunk(top, head, body).close()


@pytest.mark.parametrize("size", [0, 1, 64, 1087, 1089])
def test_a_chunk_body_of_another_length_is_refused(size):
    top, _, chunks = build(512, [[1, 2]])
    body = (bytes(chunks[0].body) + b"\0")[:size]
    with pytest.raises(FormatError, match="given"):
        frames.Chunk(top, chunk_header(chunks[0]), body)


@pytest.mark.parametrize("count", [0, 3, 1025, 2**32 - 1])
def test_a_chunk_of_another_count_is_refused(count):
    top, _, chunks = build(512, [[1, 2]])
    with pytest.raises(FormatError, match="pages of 512 bytes"):
        frames.Chunk(top, chunk_header(chunks[0], count=count), chunks[0].body)


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (0, 0, "page 0 is out of order"),
        (0, 2, "page 2 is out of order"),  # twice the same
        (8, 10, "page 10 lies beyond"),
        (8, 2**32 - 1, "lies beyond"),
        (4, 0x01000200, "unknown encoding"),
        (12, 0xFF000200, "unknown encoding"),
        (12, 0x000001FF, "wrong length"),
        (12, 0x00000201, "wrong length"),
        (12, 0, "wrong length"),
        (16, 1, "padding"),
        (60, 1, "padding"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused_whatever_the_digest_says(offset, value, why):
    top, _, chunks = build(512, [[1, 2]], pages=9)
    with pytest.raises(FormatError, match=why):
        frames.Chunk(top, chunk_header(chunks[0]), patch(bytes(chunks[0].body), offset, value))


@pytest.mark.parametrize("after", [1, 2, 2**32 - 1])
def test_a_chunk_that_does_not_follow_the_one_before_is_refused(after):
    top, _, chunks = build(512, [[1, 2]])
    with pytest.raises(FormatError, match="page 1 is out of order"):
        verify(top, chunks[0], after=after)


def test_the_error_names_the_page():
    top, _, chunks = build(512, [[1, 2]])
    with pytest.raises(FormatError) as caught:
        frames.Chunk(top, chunk_header(chunks[0]), patch(bytes(chunks[0].body), 8, 77))
    assert caught.value.page == 77


def test_the_lock_byte_page_is_refused_in_both_directions(lock_byte_at_1024):
    rng = random.Random(1)
    with pytest.raises(MisuseError, match="page 3"):
        raw_chunk(512, {n: make_page(512, n, rng) for n in (2, 3)})
    chunk = raw_chunk(512, {n: make_page(512, n, rng) for n in (2, 4)})
    with pytest.raises(FormatError, match="page 3 is the lock-byte page"):
        frames.Chunk(header(), chunk_header(chunk), patch(bytes(chunk.body), 8, 3))


@pytest.mark.parametrize(
    ("offset", "value"), [(0, 0), (16, 0x10000201), (18, 3 << 24), (18, 1 << 24), (72, 1), (88, 1)]
)
def test_page_one_must_be_that_of_a_plain_database(offset, value):
    """Even with the right digest, which does not cover byte 18 and bytes 72..91."""
    top, images, _ = build(512, [[1]])
    size = 2 if offset == 18 else 4
    page = patch(images[1], offset, value >> (16 if size == 2 else 0), size)
    body = bytearray(frames.chunk_size(512, 1))
    body[:8] = b"\0\0\0\1\0\0\2\0"
    body[64:] = page
    pair = b"\0\0\0\1" + frames.page_hash(page, 1).to_bytes(8, "big")
    head = frames.ChunkHeader(1, len(body), len(body), frames.xxh3(pair))
    with pytest.raises(FormatError, match="page 1"):
        frames.Chunk(top, head, body)


def test_sealing_takes_a_replicas_own_marks_off_page_one():
    rng = random.Random(5)
    plain = make_page(4096, 1, rng)
    marked = bytearray(plain)
    marked[18] = 3
    marked[72:92] = rng.randbytes(20)
    top, _, _ = build(4096, [[1]])
    with verify(top, raw_chunk(4096, {1: bytes(marked)})) as chunk:
        assert plain == chunk.page(0)[2]


@pytest.mark.parametrize("numbers", [[], [0], [2, 2], [3, 2], [1, 0]])
def test_pages_out_of_order_cannot_be_sealed(numbers):
    body = bytearray(4096)
    with pytest.raises(MisuseError):
        frames.seal(body, 512, numbers)


def test_a_chunk_is_bounded_in_pages_and_in_bytes():
    assert frames.chunk_size(512, 1024) > 0
    assert frames.chunk_size(512, 1025) == 0
    assert frames.chunk_size(8192, 1024) == frames.CHUNK_MAX_BYTES
    assert frames.chunk_size(65536, 128) > 0
    assert frames.chunk_size(65536, 129) == 0
    assert frames.chunk_size(1000, 1) == 0
    with pytest.raises(MisuseError, match="do not fit"):
        frames.seal(bytearray(512), 512, [1])


@given(
    st.sampled_from([512, 1024, 65536]),
    st.sets(st.integers(1, 60), min_size=1, max_size=12),
    st.integers(0, 2**32),
)
def test_what_was_sealed_verifies(page_size, numbers, seed):
    top, images, chunks = build(page_size, [sorted(numbers)], seed=seed)
    with verify(top, chunks[0]) as chunk:
        held = [chunk.page(i) for i in range(chunk.count)]
    assert [(n, images[n]) for n in sorted(numbers)] == [(n, data) for n, _, data in held]


# ---------------------------------------------------------------- life of a chunk


def test_a_closed_chunk_cannot_be_used():
    top, _, chunks = build(512, [[1, 2]])
    chunk = verify(top, chunks[0])
    assert repr(chunk) == "<Chunk of 2 pages, up to page 2>"
    chunk.close()
    chunk.close()
    assert repr(chunk) == "<Chunk of 2 pages, closed>"
    with pytest.raises(ValueError, match="closed"):
        _ = chunk.handle
    with pytest.raises(ValueError, match="closed"):
        chunk.page(0)


def test_a_chunk_holds_on_to_its_body_until_closed():
    top, _, chunks = build(512, [[1, 2]])
    body = bytearray(chunks[0].body)
    chunk = frames.Chunk(top, chunk_header(chunks[0]), body)
    with pytest.raises(BufferError):
        body.append(0)
    chunk.close()
    body.append(0)


@pytest.mark.parametrize("index", [-1, 2, 2**31])
def test_a_page_that_is_not_in_the_chunk_is_an_index_error(index):
    top, _, chunks = build(512, [[1, 2]])
    with verify(top, chunks[0]) as chunk, pytest.raises(IndexError, match="2 pages"):
        chunk.page(index)
