"""The base of a foreign upstream: as chunks for a file that is created, or compared with one that is repaired."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Final, Protocol

from nearlite import wire
from nearlite._native.applier import Applier, Survey
from nearlite._native.frames import Chunk, SetHeader, chunk_size, lock_page, pages_offset
from nearlite._native.sealing import Key
from nearlite.arriving import Arrived
from nearlite.bootstrap import Folder
from nearlite.errors import AnswerError
from nearlite.feeds import Base, Feed, another, restored
from nearlite.gathering import (
    PAGE_SIZE,
    Frame,
    Gathered,
    Gathering,
    Seen,
    Turn,
    chunk_of,
    hash_of,
    plain,
)
from nearlite.http import Deadline, Transport
from nearlite.logstate import now_ms
from nearlite.position import Position
from nearlite.receiving import Meter
from nearlite.repair import Repair
from nearlite.spooling import Spool

_IN_CHUNK: Final = 256
"""Pages of a base that are written at once."""


class Mended(Protocol):
    """What is repaired: a Replica."""

    path: str
    transport: Transport
    folder: Folder
    key: Key | None
    heard_at: float
    """When its upstream was last heard of, by the monotonic clock."""

    def spool(self) -> Spool:
        """For what is too large for memory."""


def gather(gathering: Gathering, event: Frame | Turn | Seen) -> None:
    """Take what a feed tells; what it has told before was looked at."""
    if isinstance(event, Frame):
        gathering.frame(event)
    elif isinstance(event, Turn):
        gathering.turn(event)


class Pages:
    """Chunks, for whoever takes them from a set that arrives."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks = chunks

    def chunks(self) -> Iterator[Chunk]:
        """The caller closes each."""
        return self._chunks


def head_of(at: Position, pages: int) -> SetHeader:
    """Of a snapshot at that position; whoever writes it into a file takes its hash from there."""
    return SetHeader(
        page_size=PAGE_SIZE,
        pages=pages,
        count=0,
        start=wire.NOWHERE,
        target=at,
        hash_start=0,
        hash_target=0,
        commit_ms=now_ms(),
        snapshot=True,
    )


def _images_of(base: Base) -> Iterator[tuple[int, memoryview]]:
    """Number and image of each page but the lock-byte page, page 1 as it travels."""
    lock = lock_page(PAGE_SIZE)
    for first, run in base.runs():
        for at in range(len(run) // PAGE_SIZE):
            image = run[at * PAGE_SIZE : (at + 1) * PAGE_SIZE]
            if first + at == 1:
                yield 1, memoryview(plain(image))
            elif first + at != lock:
                yield first + at, image


def chunks_of(base: Base, head: SetHeader, meter: Meter) -> Iterator[Chunk]:
    """A base as chunks."""
    after = 0
    numbers: list[int] = []
    images: list[memoryview] = []

    def made() -> Chunk:
        nonlocal after
        body = bytearray(chunk_size(PAGE_SIZE, len(numbers)))
        place = pages_offset(len(numbers))
        for image in images:
            body[place : place + PAGE_SIZE] = image
            place += PAGE_SIZE
        meter.chunk(len(numbers))
        meter.bytes += len(images) * PAGE_SIZE
        chunk = chunk_of(head, body, numbers, after)
        after = numbers[-1]
        return chunk

    for number, image in _images_of(base):
        numbers.append(number)
        images.append(image)
        if len(numbers) == _IN_CHUNK:
            yield made()
            numbers, images = [], []
    if numbers:
        yield made()


class ForeignRepair(Repair):
    """A repair by all that a foreign upstream has: what equals the file's pages is left out here."""

    def __init__(self, replica: Mended, feed: Feed, *, adopt: bool, claim: bool) -> None:
        super().__init__(
            replica.path,
            replica.transport,
            replica.folder,
            adopt=adopt,
            claim=claim,
            key=replica.key,
        )
        self._replica = replica
        self._feed = feed

    def _receive(
        self, applier: Applier, survey: Survey, deadline: Deadline, meter: Meter
    ) -> Arrived:
        claimed = survey.claimed
        if claimed.page_size != PAGE_SIZE:
            raise AnswerError(f"the replica has pages of {claimed.page_size} bytes")
        here = claimed.position if self._claim else wire.NOWHERE
        with closing(self._feed.base(deadline)) as base:
            if here != wire.NOWHERE and here.lineage != base.at.lineage:
                raise another(
                    here,
                    f"the replica belongs to lineage {here.lineage:08x}, the upstream's is {base.at.lineage:08x}",
                )
            if here != wire.NOWHERE and here.generation > base.at.generation:
                raise restored(
                    here,
                    f"it stands in generation {base.at.generation}, the replica in {here.generation}",
                )
            gathering = Gathering(base.at, base.pages, self._replica.spool)
            try:
                self._take_base(applier, survey, base, gathering)
                for event in self._feed.since(base.at, deadline):
                    self._replica.heard_at = time.monotonic()
                    gather(gathering, event)
                if here != wire.NOWHERE and not here.precedes(gathering.at):
                    raise restored(here, f"it stands at {gathering.at}, the replica at {here}")
                runs = gathering.runs(claimed.pages)
                tables = [applier.ranges(first, 0, count) for first, count in runs]
                arrived = _Kept(
                    gathering,
                    gathering.arrived(
                        claimed.pages, survey.hash, tables, commit_ms=now_ms(), repair=True
                    ),
                )
                self._check_room(arrived.header)
            except BaseException:
                gathering.close()
                raise
        meter.bytes += gathering.received
        meter.chunk(arrived.header.count)
        return arrived

    def _take_base(
        self, applier: Applier, survey: Survey, base: Base, gathering: Gathering
    ) -> None:
        """The pages of a base that the file does not have."""
        have = survey.claimed.pages
        for number, image in _images_of(base):
            self._replica.heard_at = time.monotonic()  # it takes long, and is no silence
            old = applier.ranges(number, 0, 1) if number <= have else b""
            if int.from_bytes(old, "big") != hash_of(number, image):
                gathering.base(number, image)


class _Kept(Gathered):
    """A set that owns what it was made from."""

    def __init__(self, gathering: Gathering, made: Gathered) -> None:
        Arrived.__init__(self, made.header)
        self._gathering = gathering
        self._given = made
        self.whole, self.in_memory = made.whole, made.in_memory

    def chunks(self) -> Iterator[Chunk]:
        """See `Arrived`."""
        return self._given.chunks()

    def close(self) -> None:
        """See `Arrived`."""
        super().close()
        self._gathering.close()
