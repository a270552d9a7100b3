"""The formats of tests/golden, made of fixed content: what make.py writes and test_golden.py compares with."""

from __future__ import annotations

from pathlib import Path

import history
from history import Moment

from nearlite import wire
from nearlite._native import compact, frames
from nearlite._native.applier import State
from nearlite._native.frames import SetHeader
from nearlite.errors import HistoryGoneError
from nearlite.position import Position

FOLDER = Path(__file__).parent / "golden"
PAGE_SIZE = 512
BOOT_ID = "00000000-0000-4000-8000-000000000000"
COMMIT_MS = 1_764_000_000_123
JSON = b'{"baton":null,"base_url":null,"results":[]}'
# Of these the bytes depend on the version of zstd.
PACKED = frozenset(["changes.zstd", "changes.packed", "snapshot.zstd"])


def moments(folder: Path) -> tuple[Moment, Moment]:
    """The two states that everything is about, out of their files."""
    found = []
    for name, position in (("old", Position(7, 2, 10)), ("new", Position(7, 3, 4))):
        data = (folder / "images" / f"{name}.db").read_bytes()
        pages = tuple(data[at : at + PAGE_SIZE] for at in range(0, len(data), PAGE_SIZE))
        found.append(Moment(position, PAGE_SIZE, pages))
    return found[0], found[1]


def state_of(moment: Moment) -> State:
    return State(moment.position, moment.hash, len(moment.pages), moment.page_size, 0)


def header(
    old: Moment | None, new: Moment, numbers: list[int], *, repair: bool = False
) -> SetHeader:
    return SetHeader(
        page_size=PAGE_SIZE,
        pages=len(new.pages),
        count=len(numbers),
        start=Position(0, 0, 0) if old is None else old.position,
        target=new.position,
        hash_start=0 if old is None else old.hash,
        hash_target=new.hash,
        commit_ms=COMMIT_MS,
        snapshot=old is None and not repair,
        repair=repair,
    )


def page_set(head: SetHeader, new: Moment, numbers: list[int], *, compress: bool = False) -> bytes:
    chunks = history.raw_chunks(new, numbers, per_chunk=16)
    return b"".join(bytes(piece) for piece in wire.page_set(head, chunks, compress=compress))


def ask(old: Moment, new: Moment, span: int) -> wire.RepairRequest:
    """The hashes of ranges of 2**span pages of the old state."""
    size = 1 << span
    hashes = b""
    for first in range(1, len(old.pages) + 1, size):
        value = 0
        for number in range(first, min(first + size, len(old.pages) + 1)):
            value ^= frames.page_hash(old.pages[number - 1], number)
        hashes += value.to_bytes(8, "big")
    since = Position(0, 0, 0) if span else new.position
    run = wire.Run(1, len(hashes) // 8, span, hashes)
    wanted = wire.Run(len(old.pages) + 1, 3, frames.SPAN_WANTED)
    return wire.RepairRequest.of(PAGE_SIZE, len(old.pages), old.position, since, [run, wanted])


def encoded(folder: Path) -> dict[str, bytes]:
    """Every format by its file's name, out of the images in the folder."""
    old, new = moments(folder)
    numbers = history.changed(old, new)
    everything = list(range(1, len(old.pages) + 1))
    plain = header(old, new, numbers)
    told = sorted({1, *numbers})
    bases = [old.pages[n - 1] if n <= len(old.pages) else None for n in told]
    told_head = plain.replace(count=len(told))
    small = compact.encode(state_of(old), told_head, told, bases, [new.pages[n - 1] for n in told])
    assert small is not None
    # Told without bases, so that there is enough to pack.
    large = compact.encode(
        state_of(old), told_head, told, [None] * len(told), [new.pages[n - 1] for n in told]
    )
    assert large is not None
    raw = page_set(plain, new, numbers)
    differing = wire.Differences(new.position, 21, bytes([0b10010001, 0, 0b00011]))
    status = wire.Status(new.position, new.hash, PAGE_SIZE, len(new.pages), COMMIT_MS, 3, "0.1.0")
    gone = HistoryGoneError("that is long ago")
    return {
        "changes.raw": raw,
        "changes.zstd": page_set(plain, new, numbers, compress=True),
        "changes.compact": small,
        "changes.packed": wire.pack_compact(large),
        "snapshot.raw": page_set(header(None, old, everything), old, everything),
        "snapshot.zstd": page_set(header(None, old, everything), old, everything, compress=True),
        "repair.set": page_set(header(None, new, numbers, repair=True), new, numbers),
        "repair.ranges": ask(old, new, 2).encode(),
        "repair.pages": ask(old, new, 0).encode(),
        "repair.differences": differing.encode(),
        "sql.answer": wire.answer_prefix(JSON) + raw,
        "sql.nothing": wire.answer_prefix(JSON),
        "status.json": status.encode(),
        "error.json": wire.encode_error("HISTORY_GONE", str(gone.message)),
    }
