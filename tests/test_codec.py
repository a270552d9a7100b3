"""Sealed pages, frames and header blocks: what was sealed comes back, and nothing else ever does."""

from __future__ import annotations

import hashlib
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealed_reader import SealedFile

from nearlite import errors
from nearlite._native._lib import FormatError, KeyRefusedError, NativeError, SealBrokenError
from nearlite._native.sealing import BLOCK_SIZE, SEAL_SIZE, Block, Codec, Key, is_sealed, random_key

COST = 10  # of scrypt: a mebibyte
SIZES = st.sampled_from([512, 1024, 4096, 65536])
RAW = bytes(range(32))
PAGE = bytes(range(256)) * 16


def frame(
    page: bytes, *, number: int = 1, salt: bytes = b"saltsalt", checksum: bytes = b"checksum"
) -> bytes:
    return struct.pack(">II", number, 0) + salt + checksum + page


@st.composite
def damages(draw: st.DrawFn, size: int) -> tuple[int, int]:
    return draw(st.integers(0, size - 1)), 1 << draw(st.integers(0, 7))


def damaged(data: bytes, damage: tuple[int, int]) -> bytes:
    at, bit = damage
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


# ---------------------------------------------------------------- pages and frames


@given(data=st.data(), size=SIZES, number=st.integers(1, 2**32 - 2), seed=st.binary(max_size=64))
def test_a_page_comes_back_and_only_it(
    data: st.DataObject, size: int, number: int, seed: bytes
) -> None:
    codec, block = Codec.create(size, Key.of_bytes(RAW))
    page = (seed or b"\0").ljust(64, b"\xa5") * (size // 64)
    slot = codec.seal_page(number, page)
    assert len(slot) == size + SEAL_SIZE
    assert seed.strip(b"\0") == b"" or len(seed) < 8 or seed not in slot
    assert codec.open_page(number, slot) == page
    assert Codec.open(block, Key.of_bytes(RAW)).open_page(number, slot) == page
    assert SealedFile.of(block, RAW).page(number, slot) == page

    with pytest.raises(NativeError) as caught:
        codec.open_page(number, damaged(slot, data.draw(damages(len(slot)))))
    assert isinstance(caught.value, errors.EncryptionError)
    assert caught.value.page == number
    other = data.draw(st.integers(1, 2**32 - 2).filter(lambda other: other != number))
    with pytest.raises(SealBrokenError, match=f"page {other} is not what was sealed"):
        codec.open_page(other, slot)


@given(data=st.data(), size=SIZES, first=st.integers(1, 2**31), count=st.integers(1, 5))
def test_frames_come_back_and_only_they(
    data: st.DataObject, size: int, first: int, count: int
) -> None:
    codec, block = Codec.create(size, Key.of_bytes(RAW))
    salt = data.draw(st.sampled_from([b"saltsalt", bytes(8)]))
    plain = [
        frame(os.urandom(32) * (size // 32), number=data.draw(st.integers(1, 2**32 - 1)), salt=salt)
        for _ in range(count)
    ]
    sealed = codec.seal_frames(first, b"".join(plain))
    assert codec.open_frames(first, sealed) == b"".join(plain)
    assert Codec.open(block, Key.of_bytes(RAW)).open_frames(first, sealed) == b"".join(plain)
    step = 24 + size + SEAL_SIZE
    reader = SealedFile.of(block, RAW)
    for i, one in enumerate(plain):
        assert reader.frame(first + i, sealed[i * step : (i + 1) * step]) == one

    damage = data.draw(damages(len(sealed)))
    with pytest.raises(NativeError) as caught:
        codec.open_frames(first, damaged(sealed, damage))
    assert isinstance(caught.value, errors.EncryptionError)
    assert caught.value.frame == first + damage[0] // step
    with pytest.raises(
        SealBrokenError, match=f"frame {first + 1} of the WAL is not what was sealed"
    ):
        codec.open_frames(first + 1, sealed)
    if count > 1:
        swapped = sealed[step : 2 * step] + sealed[:step]
        with pytest.raises(SealBrokenError):
            codec.open_frames(first, swapped)


def test_the_same_page_is_never_sealed_alike() -> None:
    codec, _ = Codec.create(512, Key.of_bytes(RAW))
    assert len({codec.seal_page(1, PAGE[:512]) for _ in range(1000)}) == 1000


def test_a_slot_of_another_file_under_the_same_key_is_refused() -> None:
    (one, _), (two, _) = Codec.create(512, Key.of_bytes(RAW)), Codec.create(512, Key.of_bytes(RAW))
    with pytest.raises(SealBrokenError):
        two.open_page(1, one.seal_page(1, PAGE[:512]))
    with pytest.raises(SealBrokenError):
        two.open_frames(1, one.seal_frames(1, frame(PAGE[:512])))


def test_zeros_are_neither_a_page_nor_a_frame() -> None:
    """What a file system leaves where a write was lost."""
    codec, _ = Codec.create(512, Key.of_bytes(RAW))
    with pytest.raises(errors.EncryptionError):
        codec.open_page(1, bytes(512 + SEAL_SIZE))
    with pytest.raises(errors.EncryptionError):
        codec.open_frames(1, bytes(24 + 512 + SEAL_SIZE))


def test_a_page_is_no_frame() -> None:
    """The same key id, number and bytes: the kind is in what is authenticated."""
    codec, _ = Codec.create(512, Key.of_bytes(RAW))
    sealed = codec.seal_frames(1, frame(PAGE[:512]))
    slot = sealed[48 + 8 :] + sealed[16:28] + sealed[32:48] + sealed[28:32]
    with pytest.raises(SealBrokenError):
        codec.open_page(1, slot)


def test_a_million_seals_and_no_nonce_twice() -> None:
    """Frames with zero salts, whose keys are those of epochs; after 2^20 seals another one is drawn."""
    codec, _ = Codec.create(512, Key.of_bytes(RAW))
    step, many = 24 + 512 + SEAL_SIZE, 1 << 12
    frames, epochs, nonces = frame(bytes(512), salt=bytes(8)) * many, set(), set()
    for _ in range(260):
        sealed = codec.seal_frames(1, frames)
        nonces.update(sealed[at + 16 : at + 28] for at in range(0, len(sealed), step))
        epochs.update(sealed[at + 28 : at + 32] for at in range(0, len(sealed), step))
    assert len(nonces) == 260 * many > 2**20
    assert len(epochs) <= 2  # 1 in a 1,024th of all runs
    assert all(
        struct.unpack(">HH", e)[0] == 1 and struct.unpack(">HH", e)[1] < 1024 for e in epochs
    )


def test_each_opening_draws_an_epoch() -> None:
    _, block = Codec.create(512, Key.of_bytes(RAW))
    ids = {Codec.open(block, Key.of_bytes(RAW)).key_id for _ in range(40)}
    assert len(ids) > 20
    assert all(key_id >> 16 == 1 and key_id & 0xFFFF < 1024 for key_id in ids)


# ---------------------------------------------------------------- header blocks and keys


def test_a_block_says_what_anybody_may_know() -> None:
    _, block = Codec.create(4096, Key.of_bytes(RAW))
    assert is_sealed(block)
    assert not is_sealed(b"SQLite format 3\0")
    assert not is_sealed(block[:15])
    found = Block.look(block)
    assert found[:5] == (4096, 1, 0, 0, 1)
    assert len(found.file_id) == 16
    assert Block.look(Codec.create(512, Key.of_phrase(b"x", cost=COST))[1]).phrases == 1


@given(damage=damages(BLOCK_SIZE))
def test_one_damaged_copy_is_no_harm(damage: tuple[int, int]) -> None:
    codec, block = Codec.create(512, Key.of_bytes(RAW))
    slot = codec.seal_page(1, PAGE[:512])
    assert Codec.open(damaged(block, damage), Key.of_bytes(RAW)).open_page(1, slot) == PAGE[:512]


@given(at=st.integers(0, 2047), bit=st.integers(0, 7))
def test_damage_in_both_copies_is_refused(at: int, bit: int) -> None:
    _, block = Codec.create(512, Key.of_bytes(RAW))
    both = damaged(damaged(block, (at, 1 << bit)), (at + 2048, 1 << bit))
    with pytest.raises(
        FormatError, match="damaged in both" if at >= 16 else "damaged|not a sealed"
    ):
        Codec.open(both, Key.of_bytes(RAW))


@given(at=st.integers(16, 2031), bit=st.integers(0, 7))
def test_a_block_that_was_changed_and_digested_again_is_refused(at: int, bit: int) -> None:
    """The digest only tells a torn copy: whoever forges one has to forge the tag."""
    _, block = Codec.create(512, Key.of_bytes(RAW))
    copy = damaged(block[:2048], (at, 1 << bit))
    copy = copy[:2032] + hashlib.sha256(copy[:2032]).digest()[:16]
    with pytest.raises((FormatError, KeyRefusedError)):
        Codec.open(copy + copy, Key.of_bytes(RAW))


@given(begin=st.binary(max_size=64))
def test_other_bytes_are_no_block(begin: bytes) -> None:
    block = begin.ljust(BLOCK_SIZE, b"x")
    with pytest.raises(FormatError, match="not a sealed database"):
        Codec.open(block, Key.of_bytes(RAW))


@pytest.mark.parametrize(
    ("made", "used", "says"),
    [
        (Key.of_bytes(RAW), Key.of_bytes(RAW[::-1]), "not the key that the file was sealed with"),
        (Key.of_bytes(RAW), Key.of_phrase(RAW, cost=COST), "with a key, not with a passphrase"),
        (Key.of_phrase(RAW, cost=COST), Key.of_bytes(RAW), "with a passphrase, not with a key"),
        (
            Key.of_phrase(b"a phrase", cost=COST),
            Key.of_phrase(b"a phrasE", cost=COST),
            "not the key that the file was sealed with",
        ),
    ],
)
def test_another_key_is_refused(made: Key, used: Key, says: str) -> None:
    _, block = Codec.create(512, made)
    with pytest.raises(KeyRefusedError, match=says) as caught:
        Codec.open(block, used)
    assert isinstance(caught.value, errors.WrongKeyError)


def test_a_passphrase_opens_with_the_cost_that_the_file_says() -> None:
    codec, block = Codec.create(512, Key.of_phrase("Grüße".encode(), cost=COST))
    slot = codec.seal_page(7, PAGE[:512])
    for cost in (COST, COST + 1):
        again = Codec.open(block, Key.of_phrase("Grüße".encode(), cost=cost))
        assert again.open_page(7, slot) == PAGE[:512]
    assert SealedFile.of(block, "Grüße".encode()).page(7, slot) == PAGE[:512]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Key.of_bytes(RAW[1:]), "32 bytes, not 31"),
        (lambda: Key.of_bytes(b""), "32 bytes, not 0"),
        (lambda: Key.of_phrase(b""), "empty"),
        (lambda: Key.of_phrase(b"x" * 1025), "above 1024 bytes"),
        (lambda: Key.of_phrase(b"x", cost=9), "2\\^10 to 2\\^20"),
        (lambda: Key.of_phrase(b"x", cost=21), "2\\^10 to 2\\^20"),
    ],
)
def test_what_is_no_key(make, says: str) -> None:
    with pytest.raises(KeyRefusedError, match=says):
        make()


def test_random_keys_differ() -> None:
    assert len({random_key() for _ in range(100)}) == 100


def test_no_page_size_but_sqlites() -> None:
    for size in (0, 256, 1000, 131072):
        with pytest.raises(NativeError, match="page size"):
            Codec.create(size, Key.of_bytes(RAW))
