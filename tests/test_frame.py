"""WAL checksums, frames and page hashes, against stock SQLite and the xxhash package."""

from __future__ import annotations

import random
import sqlite3
import struct

import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from nearlite._native import frames
from nearlite._native._lib import FormatError
from nearlite._native.wal import WalChain, wal_checksum

LEVELS = range(frames.simd_best() + 1)
PAGE_SIZES = sorted(frames.PAGE_SIZES)


@pytest.fixture(autouse=True)
def best_level_again():
    yield
    frames.simd_use(frames.simd_best())


def reference_checksum(data, start, order):
    """File format 4.2, word by word as it is written there."""
    s1, s2 = start
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for x0, x1 in zip(words[::2], words[1::2], strict=True):
        s1 = (s1 + x0 + s2) & 0xFFFFFFFF
        s2 = (s2 + x1 + s1) & 0xFFFFFFFF
    return s1, s2


def at_alignment(data, shift):
    """The same bytes, `shift` bytes into a buffer of their own."""
    return memoryview(bytearray(shift) + data)[shift:]


def wal_of(tmp_path, page_size=4096, rows=20):
    """A WAL written by stock SQLite: database bytes, WAL bytes, rows."""
    path = tmp_path / f"stock{page_size}.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"PRAGMA page_size={page_size}")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=OFF")
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    for i in range(rows):
        db.execute("INSERT INTO t(v) VALUES (?)", (random.Random(i).randbytes(page_size // 3),))
    content = db.execute("SELECT id, v FROM t").fetchall()
    files = path.read_bytes(), path.with_name(path.name + "-wal").read_bytes()
    db.close()
    return *files, content


# ---------------------------------------------------------------- checksum


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("big_endian", [False, True])
def test_checksum_is_the_documented_one_at_every_length(level, big_endian):
    frames.simd_use(level)
    data = random.Random(1).randbytes(1600)
    order = ">" if big_endian else "<"
    for size in range(0, 1600, 8):
        expected = reference_checksum(data[:size], (3, 5), order)
        assert expected == wal_checksum(data[:size], (3, 5), big_endian=big_endian)


@pytest.mark.parametrize("level", LEVELS[1:])
@given(
    data=st.randoms(use_true_random=False).map(lambda r: r.randbytes(8 * r.randrange(1200))),
    shift=st.integers(0, 63),
    start=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    big_endian=st.booleans(),
)
def test_every_level_computes_the_same_checksum(level, data, shift, start, big_endian):
    frames.simd_use(0)
    expected = wal_checksum(data, start, big_endian=big_endian)
    assert level == frames.simd_use(level)
    assert expected == wal_checksum(at_alignment(data, shift), start, big_endian=big_endian)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [512, 4096, 65536])
def test_checksum_wraps_at_32_bits(level, size):
    frames.simd_use(level)
    data = b"\xff" * size
    start = (0xFFFFFFFF, 0xFFFFFFFF)
    assert reference_checksum(data, start, "<") == wal_checksum(data, start)


def test_checksum_of_an_odd_number_of_words_is_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        wal_checksum(b"1234")


def test_a_level_beyond_this_cpu_is_lowered_to_its_best():
    assert frames.simd_best() == frames.simd_use(99)
    assert frames.simd_use(-1) == 0


# ---------------------------------------------------------------- frames


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_every_frame_of_a_wal_by_stock_sqlite_is_valid(tmp_path, page_size):
    _, wal, _ = wal_of(tmp_path, page_size)
    chain = WalChain.decode(wal[:32])
    assert page_size == chain.page_size
    count = (len(wal) - 32) // (24 + page_size)
    assert (count, count) == chain.verify(wal[32:])
    assert struct.unpack(">II", wal[-page_size - 8 : -page_size]) == chain.checksum


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_frames_are_written_exactly_as_stock_sqlite_wrote_them(tmp_path, level, page_size):
    frames.simd_use(level)
    _, wal, _ = wal_of(tmp_path, page_size, rows=4)
    chain = WalChain.decode(wal[:32])
    sequence = int.from_bytes(wal[12:16], "big")
    assert wal[:32] == chain.encode_header(sequence)
    size = 24 + page_size
    for at in range(32, len(wal), size):
        frame = wal[at : at + size]
        number, commit = struct.unpack(">II", frame[:8])
        assert frame == chain.encode_frame(number, commit, frame[24:])


@pytest.mark.parametrize("level", LEVELS)
def test_stock_sqlite_reads_a_wal_rewritten_in_the_other_byte_order(tmp_path, level):
    frames.simd_use(level)
    main, wal, content = wal_of(tmp_path)
    native = WalChain.decode(wal[:32])
    swapped = not wal[3] & 1
    chain = WalChain(native.page_size, native.salt, big_endian=swapped)
    out = [chain.encode_header(0)]
    for at in range(32, len(wal), 4120):
        number, commit = struct.unpack(">II", wal[at : at + 8])
        out.append(chain.encode_frame(number, commit, wal[at + 24 : at + 4120]))
    rewritten = b"".join(out)
    (tmp_path / "copy.db").write_bytes(main)
    (tmp_path / "copy.db-wal").write_bytes(rewritten)
    db = sqlite3.connect(tmp_path / "copy.db")
    assert content == db.execute("SELECT id, v FROM t").fetchall()
    db.close()
    count = (len(wal) - 32) // 4120
    assert (count, count) == WalChain.decode(rewritten[:32]).verify(rewritten[32:])


def test_verification_goes_on_where_it_stopped(tmp_path):
    _, wal, _ = wal_of(tmp_path)
    chain = WalChain.decode(wal[:32])
    valid = [chain.verify(wal[at : at + 4120])[0] for at in range(32, len(wal), 4120)]
    assert {1} == set(valid)


def small_wal():
    """Three frames, the second a commit."""
    chain = WalChain(512, (11, 12))
    out = chain.encode_header(0)
    for number, commit in ((1, 0), (2, 2), (3, 0)):
        out += chain.encode_frame(number, commit, random.Random(number).randbytes(512))
    return out


def test_frames_after_the_last_commit_are_counted_apart():
    wal = small_wal()
    assert WalChain.decode(wal[:32]).verify(wal[32:]) == (3, 2)


def test_a_flipped_bit_ends_the_chain_at_its_frame():
    wal = small_wal()
    for at in range(32, len(wal)):
        damaged = bytearray(wal)
        damaged[at] ^= 1 << at % 8
        frame = (at - 32) // 536
        chain = WalChain.decode(damaged[:32])
        assert (frame, 2 if frame == 2 else 0) == chain.verify(damaged[32:]), at


def test_a_frame_of_page_zero_is_no_frame_though_its_checksum_is_right():
    chain = WalChain(512, (1, 2))
    header = chain.encode_header(0)
    page = bytes(512)
    start = chain.checksum
    sums = wal_checksum(bytes(8), start)
    sums = wal_checksum(page, sums)
    frame = struct.pack(">6I", 0, 0, 1, 2, *sums) + page
    assert WalChain.decode(header).verify(frame) == (0, 0)


def test_a_cut_frame_is_not_looked_at():
    wal = small_wal()
    assert WalChain.decode(wal[:32]).verify(wal[32:-1]) == (2, 2)


def test_a_wal_header_with_any_flipped_bit_is_refused():
    header = small_wal()[:32]
    for bit in range(32 * 8):
        damaged = bytearray(header)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            WalChain.decode(damaged)


def test_a_short_wal_header_is_refused():
    with pytest.raises(FormatError, match="cut short"):
        WalChain.decode(small_wal()[:31])


@pytest.mark.parametrize("page_size", [0, 256, 1000, 131072])
def test_a_wal_header_of_an_impossible_page_size_is_refused(page_size):
    fields = struct.pack(">6I", 0x377F0682, 3007000, page_size, 0, 1, 2)
    header = fields + struct.pack(">II", *wal_checksum(fields))
    with pytest.raises(FormatError, match="page size"):
        WalChain.decode(header)


def test_a_page_of_the_wrong_size_cannot_become_a_frame():
    with pytest.raises(ValueError, match="512 bytes"):
        WalChain(512, (1, 2)).encode_frame(1, 0, bytes(1024))


# ---------------------------------------------------------------- hashes


@pytest.mark.parametrize("level", LEVELS)
def test_xxh3_is_that_of_the_xxhash_package_at_every_length(level):
    frames.simd_use(level)
    data = random.Random(2).randbytes(1200)
    for size in range(1200):
        shift = size % 64
        expected = xxhash.xxh3_64_intdigest(data[:size], seed=size)
        assert expected == frames.xxh3(at_alignment(data[:size], shift), size)


# Published with xxHash 0.8 (its sanity check): the empty input, and one byte 0 with no seed.
def test_xxh3_of_nothing_is_the_published_value():
    assert frames.xxh3(b"") == 0x2D06800538D394C2
    assert frames.xxh3(b"", 0x9E3779B185EBCA8D) == xxhash.xxh3_64_intdigest(
        b"", seed=0x9E3779B185EBCA8D
    )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_page_hash_is_xxh3_seeded_with_the_page_number(level, page_size):
    frames.simd_use(level)
    page = random.Random(page_size).randbytes(page_size)
    for number in (2, 3, 2**32 - 2):
        assert xxhash.xxh3_64_intdigest(page, seed=number) == frames.page_hash(page, number)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_page_one_is_hashed_without_what_a_replica_keeps_there(level, page_size):
    frames.simd_use(level)
    page = bytearray(random.Random(page_size).randbytes(page_size))
    masked = bytearray(page)
    masked[18] = 0
    masked[72:92] = bytes(20)
    expected = xxhash.xxh3_64_intdigest(masked, seed=1)
    assert expected == frames.page_hash(page, 1) == frames.page_hash(masked, 1)
    assert expected != frames.page_hash(page, 2)


def test_every_other_byte_of_page_one_counts():
    page = bytes(512)
    plain = frames.page_hash(page, 1)
    same = {i for i in range(512) if frames.page_hash(page[:i] + b"\1" + page[i + 1 :], 1) == plain}
    assert {18, *range(72, 92)} == same


@given(st.sampled_from([512, 1024, 4096]), st.integers(1, 9), st.integers(0, 20))
@example(512, 1, 0)
def test_state_hash_is_the_xor_of_its_pages(page_size, first, count):
    data = random.Random(count).randbytes(page_size * count)
    pages = [data[i * page_size : (i + 1) * page_size] for i in range(count)]
    hashes = [frames.page_hash(page, first + i) for i, page in enumerate(pages)]
    expected = 0
    for value in hashes:
        expected ^= value
    table = struct.pack(f"={count}Q", *hashes)
    assert expected == frames.state_hash(data, page_size, first)
    assert (expected, table) == frames.page_hashes(data, page_size, first)


def test_two_exchanged_pages_change_the_state_hash():
    a, b = random.Random(1).randbytes(512), random.Random(2).randbytes(512)
    assert frames.state_hash(a + b, 512) != frames.state_hash(b + a, 512)


def test_a_page_of_an_impossible_size_has_no_hash():
    with pytest.raises(ValueError, match="no SQLite page"):
        frames.page_hash(bytes(100), 1)


# ---------------------------------------------------------------- lock-byte page


@pytest.mark.parametrize(("page_size", "number"), [(512, 2097153), (4096, 262145), (65536, 16385)])
def test_the_lock_byte_page_holds_the_byte_at_one_gibibyte(page_size, number):
    assert number == frames.lock_page(page_size)


def test_the_lock_byte_page_counts_for_no_hash():
    pages = random.Random(3).randbytes(4 * 512)
    frames.use_lock_byte(0x400)
    try:
        assert frames.lock_page(512) == 3
        hashes = [frames.page_hash(pages[i * 512 : (i + 1) * 512], i + 1) for i in range(4)]
        state, table = frames.page_hashes(pages, 512)
        assert hashes[0] ^ hashes[1] ^ hashes[3] == state == frames.state_hash(pages, 512)
        assert struct.pack("=4Q", hashes[0], hashes[1], 0, hashes[3]) == table
    finally:
        frames.use_lock_byte(0x40000000)
