"""Checksums and hashes: GB/s of each level of instructions, on 128 pages (out of the L2 cache).

The baseline is `copy`, the same bytes through memcpy. Bad would be: the best level slower than half of
it (then checking, not moving the bytes, decides how fast page sets are applied), or a level that is
slower than the one below. pytest-benchmark's table groups by kernel; "GB/s" is in its extra info and
in the last column printed here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from nearlite import wire
from nearlite._native import frames
from nearlite._native.frames import SetHeader
from nearlite._native.wal import WalChain, wal_checksum
from nearlite.position import Position

PAGE_SIZE = 4096
PAGES = 128
LEVELS = ["scalar", "base", "avx2", "avx512"][: frames.simd_best() + 1]


@pytest.fixture(params=range(len(LEVELS)), ids=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[int]:
    yield frames.simd_use(request.param)
    frames.simd_use(frames.simd_best())


@pytest.fixture(scope="module")
def pages() -> bytes:
    return random.Random(1).randbytes(PAGE_SIZE * PAGES)


def _measure(benchmark: BenchmarkFixture, size: int, function: Callable[[], object]) -> None:
    benchmark(function)
    benchmark.extra_info["GB/s"] = round(size / benchmark.stats.stats.median / 1e9, 2)


@pytest.mark.benchmark(group="frame: baseline")
def bench_copy(benchmark: BenchmarkFixture, pages: bytes) -> None:
    target = memoryview(bytearray(len(pages)))

    def copy() -> None:
        target[:] = pages

    _measure(benchmark, len(pages), copy)


@pytest.mark.benchmark(group="frame: WAL checksum")
def bench_wal_checksum(benchmark: BenchmarkFixture, level: int, pages: bytes) -> None:
    _measure(benchmark, len(pages), lambda: wal_checksum(pages))


@pytest.mark.benchmark(group="frame: verify frames of a WAL")
def bench_verify_frames(benchmark: BenchmarkFixture, level: int, pages: bytes) -> None:
    chain = WalChain(PAGE_SIZE, (1, 2))
    header = chain.encode_header(0)
    written = b"".join(
        chain.encode_frame(i + 2, 0, pages[i * PAGE_SIZE : (i + 1) * PAGE_SIZE])
        for i in range(PAGES)
    )

    def verify() -> None:
        assert WalChain.decode(header).verify(written) == (PAGES, 0)

    _measure(benchmark, len(pages), verify)


@pytest.mark.benchmark(group="frame: page hash")
def bench_page_hash(benchmark: BenchmarkFixture, level: int, pages: bytes) -> None:
    _measure(benchmark, len(pages), lambda: frames.state_hash(pages, PAGE_SIZE, 2))


def _chunk(pages: bytes) -> wire.RawChunk:
    body = bytearray(frames.chunk_size(PAGE_SIZE, PAGES))
    body[frames.pages_offset(PAGES) :] = pages
    return wire.RawChunk(body, PAGES, frames.seal(body, PAGE_SIZE, range(2, PAGES + 2)))


def _header() -> SetHeader:
    return SetHeader(PAGE_SIZE, 1000, PAGES, Position(1, 1, 0), Position(1, 1, 1), 0, 0, 0)


@pytest.mark.benchmark(group="frame: seal a chunk")
def bench_seal(benchmark: BenchmarkFixture, level: int, pages: bytes) -> None:
    body, numbers = bytearray(_chunk(pages).body), range(2, PAGES + 2)
    _measure(benchmark, len(pages), lambda: frames.seal(body, PAGE_SIZE, numbers))


@pytest.mark.benchmark(group="frame: verify a chunk")
def bench_verify_chunk(benchmark: BenchmarkFixture, level: int, pages: bytes) -> None:
    chunk, size = _chunk(pages), frames.chunk_size(PAGE_SIZE, PAGES)
    head, top = frames.ChunkHeader(PAGES, size, size, chunk.digest), _header()
    _measure(benchmark, len(pages), lambda: frames.Chunk(top, head, chunk.body).close())


@pytest.mark.benchmark(group="frame: read a page set")
@pytest.mark.parametrize("cut", [1 << 30, 65536], ids=["whole", "64 KiB pieces"])
@pytest.mark.parametrize("compress", [False, True], ids=["raw", "zstd"])
def bench_read_page_set(
    benchmark: BenchmarkFixture, pages: bytes, cut: int, compress: bool
) -> None:
    compressible = bytes(b & 0x0F for b in pages)
    data = b"".join(wire.page_set(_header(), [_chunk(compressible)], compress=compress))
    parts = [data[at : at + cut] for at in range(0, len(data), cut)]

    def read() -> None:
        reader = wire.PageSetReader()
        for part in parts:
            for event in reader.receive(part):
                if isinstance(event, wire.Chunk):
                    event.chunk.close()
        reader.close()

    _measure(benchmark, len(pages), read)


@pytest.mark.benchmark(group="frame: read a page set of one page")
def bench_read_small_set(benchmark: BenchmarkFixture, pages: bytes) -> None:
    body = bytearray(frames.chunk_size(PAGE_SIZE, 1))
    body[64:] = pages[:PAGE_SIZE]
    top = SetHeader(PAGE_SIZE, 1000, 1, Position(1, 1, 0), Position(1, 1, 1), 0, 0, 0)
    chunk = wire.RawChunk(body, 1, frames.seal(body, PAGE_SIZE, [5]))
    data = b"".join(wire.page_set(top, [chunk]))

    def read() -> None:
        reader = wire.PageSetReader()
        for event in reader.receive(data):
            if isinstance(event, wire.Chunk):
                event.chunk.close()

    _measure(benchmark, PAGE_SIZE, read)
