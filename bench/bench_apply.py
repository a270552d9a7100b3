"""Applying page sets: from the bytes of an answer to a commit that every reader sees.

Against pwrite of the same bytes into a file that is there already: what the disk and the kernel ask
for, without any checking. Bad would be: reading old pages back to keep the state hash, a system call
for each frame, the WAL's checksum or the hash in anything but vector code.

Against libsql: frames per second of its sync() of 5,000 pages; it cannot apply without fetching, so
this compares our applier with its whole path. bench_sync.py compares whole paths.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

from bench_sync import incremental
from pairs import Pairs, Sample
from systems import LIBSQL
from workload import ROWS_OF_20000_PAGES

from nearlite import wire
from nearlite._native import frames
from nearlite._native.applier import Applier, Bootstrap, State
from nearlite._native.frames import SetHeader
from nearlite._native.sealing import Key
from nearlite.position import Position

Open = Iterator[Callable[[], Sample]]
PAGE_SIZE = 4096
PAGES = 20_000
SET_PAGES = 128
SETS = 64  # page sets in one sample: a WAL of 34 MB, checkpointed between samples
NOWHERE = Position(0, 0, 0)
FRAME_SIZE = 24 + PAGE_SIZE


class Pages:
    """A database image and page sets that change it.

    Only page 1 is what SQLite would write: the applier moves pages, it does not look into them.
    """

    def __init__(self) -> None:
        self._random = random.Random(20)
        first = bytearray(PAGE_SIZE)
        first[:108] = _database_header()
        self._images = [bytes(first)]
        self._images += [self._random.randbytes(PAGE_SIZE) for _ in range(PAGES - 1)]
        self._position = Position(1, 1, 1)
        self.hash = frames.state_hash(b"".join(self._images), PAGE_SIZE)

    def snapshot(self) -> bytes:
        """Every page, as bytes on the wire."""
        return self._set(list(range(1, PAGES + 1)), snapshot=True)

    def next_set(self) -> bytes:
        """SET_PAGES changed pages, page 1 among them, as bytes on the wire."""
        numbers = sorted({1, *self._random.sample(range(2, PAGES + 1), SET_PAGES - 1)})
        start, before = self._position, self.hash
        self._position = Position(1, 1, start.frame + SET_PAGES)
        for number in numbers:
            image = bytearray(self._images[number - 1])
            at = 24 if number == 1 else 2048
            image[at : at + 4] = self._position.frame.to_bytes(4, "big")
            self.hash ^= frames.page_hash(self._images[number - 1], number)
            self.hash ^= frames.page_hash(image, number)
            self._images[number - 1] = bytes(image)
        return self._set(numbers, start=start, hash_start=before)

    def _set(
        self,
        numbers: list[int],
        *,
        snapshot: bool = False,
        start: Position = NOWHERE,
        hash_start: int = 0,
    ) -> bytes:
        header = SetHeader(
            page_size=PAGE_SIZE,
            pages=PAGES,
            count=len(numbers),
            start=start,
            target=self._position,
            hash_start=hash_start,
            hash_target=self.hash,
            commit_ms=0,
            snapshot=snapshot,
        )
        chunks = [
            self._chunk(numbers[at : at + frames.CHUNK_MAX_PAGES])
            for at in range(0, len(numbers), frames.CHUNK_MAX_PAGES)
        ]
        return b"".join(bytes(piece) for piece in wire.page_set(header, chunks))

    def _chunk(self, numbers: list[int]) -> wire.RawChunk:
        body = bytearray(frames.chunk_size(PAGE_SIZE, len(numbers)))
        body[frames.pages_offset(len(numbers)) :] = b"".join(
            self._images[number - 1] for number in numbers
        )
        return wire.RawChunk(body, len(numbers), frames.seal(body, PAGE_SIZE, numbers))


def _database_header() -> bytes:
    """The first 108 bytes of a database of PAGES pages in WAL mode with an empty schema."""
    header = bytearray(108)
    header[:16] = b"SQLite format 3\0"
    header[16:18] = PAGE_SIZE.to_bytes(2, "big")
    header[18:24] = bytes((2, 2, 0, 64, 32, 32))
    header[28:32] = PAGES.to_bytes(4, "big")
    header[44:48] = (4).to_bytes(4, "big")  # schema format
    header[56:60] = (1).to_bytes(4, "big")  # UTF-8
    header[100] = 13  # a leaf without cells, its content area empty
    header[105:107] = PAGE_SIZE.to_bytes(2, "big")
    return bytes(header)


def _place(path: Path, snapshot: bytes, key: Key | None) -> Applier:
    """A bootstrap, and the applier that a replica opens after one."""
    file = None
    for event in wire.PageSetReader().receive(snapshot):
        if isinstance(event, wire.Header):
            header = event.header
            file = Bootstrap(str(path), header.page_size, key=key)
        elif isinstance(event, wire.Chunk):
            assert file is not None
            with event.chunk:
                file.chunk(event.chunk)
    assert file is not None
    known = file.finish(header)
    file.close()
    applier = Applier(str(path), key=key)
    applier.adopt(known)
    return applier


def _apply(applier: Applier, data: bytes) -> State | None:
    """What a replica does with an answer that has arrived: verify, hash, apply, commit."""
    arrived = wire.WholeSet(data)
    return applier.receive(arrived.header, arrived.data, wait=1.0)


@contextmanager
def apply(folder: Path, key: Key | None = None) -> Open:
    """Frames per second, from received bytes to commit."""
    folder.mkdir()
    pages = Pages()
    with closing(_place(folder / "replica.db", pages.snapshot(), key)) as applier:

        def sample() -> float:
            sets = [pages.next_set() for _ in range(SETS)]
            start = perf_counter()
            for data in sets:
                state = _apply(applier, data)
            seconds = perf_counter() - start
            assert state is not None
            assert state.hash == pages.hash
            # Not timed: a replica does it in the background. The next sample overwrites the WAL.
            applier.checkpoint("passive", wait=1.0)
            return SETS * SET_PAGES / seconds

        yield sample


@contextmanager
def pwrite(folder: Path) -> Open:
    """Frames per second when the same number of bytes is only written, set by set.

    From as many buffers as there are sets: a page set that has just arrived is in no processor's
    cache as a whole, and one buffer written again and again would be.
    """
    folder.mkdir()
    source = random.Random(21)
    buffers = [source.randbytes(SET_PAGES * FRAME_SIZE) for _ in range(SETS)]
    descriptor = os.open(folder / "raw", os.O_RDWR | os.O_CREAT)
    try:

        def sample() -> float:
            start = perf_counter()
            for number, buffer in enumerate(buffers):
                os.pwrite(descriptor, buffer, number * len(buffer))
            return SETS * SET_PAGES / (perf_counter() - start)

        sample()  # from here on the file is written already
        yield sample
    finally:
        os.close(descriptor)


@contextmanager
def libsql_frames(folder: Path) -> Open:
    """Frames per second of libsql's sync() of a quarter of 20,000 pages."""
    with incremental(LIBSQL, folder) as seconds:

        def sample() -> float:
            taken = seconds()
            assert isinstance(taken, float)
            return ROWS_OF_20000_PAGES // 4 / taken

        yield sample


def bench_apply_against_pwrite(pairs: Pairs, tmp_path: Path) -> None:
    ours, peer = partial(apply, tmp_path / "ours"), partial(pwrite, tmp_path / "raw")
    pairs("apply_pwrite", ours=ours, peer=peer, rounds=21, warmup=3)


def bench_apply_against_libsql(pairs: Pairs, tmp_path: Path) -> None:
    ours, peer = partial(apply, tmp_path / "ours"), partial(libsql_frames, tmp_path / "libsql")
    pairs("apply_libsql", ours=ours, peer=peer, rounds=7)


def bench_sealed_apply(pairs: Pairs, tmp_path: Path) -> None:
    pairs(
        "sealed_apply",
        ours=partial(apply, tmp_path / "sealed", Key.of_bytes(bytes(range(32)))),
        peer=partial(apply, tmp_path / "plain"),
        rounds=15,
    )
