"""Makes the committed corpus: small inputs from which the fuzzers reach every branch.

Run in an environment with nearlite built: ``python csrc/fuzz/corpus.py``. The same bytes each time.
"""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "python"), str(HERE.parents[1] / "tests")]

from page_sets import build, header, patch  # noqa: E402

from nearlite._native import compact as codec_compact  # noqa: E402
from nearlite._native import delta as codec  # noqa: E402
from nearlite._native.applier import State  # noqa: E402
from nearlite._native.frames import ChunkHeader, SetHeader  # noqa: E402
from nearlite.position import Position  # noqa: E402

GUARDS, MAGIC, SIZES, DIGEST, LOW_LOCK = 1, 2, 4, 8, 16
ALL = GUARDS | MAGIC | SIZES | DIGEST


def checksum() -> dict[str, bytes]:
    """Lengths around the blocks of 512 and 4096 bytes, at several alignments."""
    rng = random.Random(1)
    sizes = (0, 1, 7, 8, 15, 240, 241, 504, 512, 519, 1032, 4088, 4096, 4104, 8704, 9999)
    found = {f"{n}": bytes([n % 64]) + rng.randbytes(n) for n in sizes}
    found["ones"] = b"\x20" + b"\xff" * 8192
    return found


def frames() -> dict[str, bytes]:
    """Chains of several page sizes, untouched and changed in the header, a frame header, a page."""
    rng = random.Random(2)
    found = {}
    for name, choice, at, pages in (
        ("whole", b"\0\0\0\0", 0, 2),
        ("swapped", b"\0\1\0\0", 0, 2),
        ("large-pages", b"\3\0\0\0", 0, 1),
        ("no-frames", b"\0\0\0\0", 0, 0),
        ("header", b"\0\0\1\0", 8, 1),
        ("salt", b"\0\0\x80\0", 32 + 8, 2),
        ("sum", b"\0\0\1\0", 32 + 16, 2),
        ("second-page", b"\0\1\1\0", 32 + 536 + 30, 2),
        ("number", b"\0\0\1\0", 32 + 3, 1),
    ):
        data = choice + bytes(4) + at.to_bytes(4, "big")
        found[name] = data + rng.randbytes(512 * pages)
    return found


def pageset() -> dict[str, bytes]:
    """A set that verifies, and one for each rule it can break."""
    top, _, chunks = build(512, [[1, 2]], pages=9)
    size = len(chunks[0].body)
    middle = ChunkHeader(2, size, size, chunks[0].digest).encode()
    good = top.encode() + middle + bytes(chunks[0].body)
    found = {"good": b"\0" + good, "good-all": bytes([ALL]) + good}
    for name, offset, value in (
        ("flags", 12, 4),
        ("page-size", 16, 513),
        ("no-pages", 20, 0),
        ("count", 24, 10),
        ("lineage", 28, 8),
        ("backwards", 44, 1),
        ("reserved", 52, 1),
        ("chunk-flags", 96, 2),
        ("chunk-count", 100, 3),
        ("end", 100, 0),
        ("order", 128, 2),
        ("beyond", 136, 10),
        ("encoding", 132, 0x01000200),
        ("length", 132, 0x00000201),
        ("padding", 150, 1),
        ("page-one", 192 + 72, 1),
        ("page", 800, 0x12345678),
    ):
        found[name] = bytes([ALL]) + patch(good, offset, value)
    found["damaged"] = b"\0" + patch(good, 800, 1)
    found["lock-byte"] = bytes([ALL | LOW_LOCK]) + patch(good, 136, 3)
    snapshot = header(512, pages=2, count=2, snapshot=True).encode()
    found["snapshot"] = bytes([ALL]) + snapshot + good[96:]
    top, _, chunks = build(4096, [[5]])
    middle = ChunkHeader(1, len(chunks[0].body), len(chunks[0].body), 0).encode()
    found["4096"] = bytes([ALL]) + top.encode() + middle + bytes(chunks[0].body)
    return found


def leaf(cells: list[bytes], *, kind: int = 10, size: int = 512, base: bytes = b"") -> bytes:
    """A b-tree leaf as SQLite lays one out anew."""
    page = bytearray(base or bytes(size))
    head, top = 100 if page[:6] == b"SQLite" else 0, size
    for i, cell in enumerate(cells):
        top -= len(cell)
        page[top : top + len(cell)] = cell
        page[head + 8 + 2 * i : head + 10 + 2 * i] = top.to_bytes(2, "big")
    counts = b"".join(n.to_bytes(2, "big") for n in (0, len(cells), top))
    page[head : head + 8] = bytes([kind]) + counts + b"\0"
    return bytes(page)


def delta() -> dict[str, bytes]:
    """What happens to pages, told by the encoder, and records that break each rule of the format."""
    keys = [bytes([11]) + b"\3\x1b\1key-%03d" % i for i in range(0, 90, 2)]
    one, two, three = leaf(keys[:15]), leaf(keys[15:30]), leaf(keys[30:])
    odd = [bytes([11]) + b"\3\x1b\1key-%03d" % i for i in (7, 21, 33)]
    found = {}
    for name, choice, images in (
        ("same", 0, (one, two, three)),
        ("byte", 0, (one, two[:-3] + b"xyz", three)),
        ("insert", 0, (one, leaf(sorted([*keys[15:30], odd[2]])), three)),
        ("delete", 0, (leaf(keys[1:14]), two, leaf(keys[33:]))),
        ("balance", 0, (leaf(keys[:12]), leaf(sorted(keys[12:32] + odd[2:])), leaf(keys[32:]))),
        ("exchange", 0, (three, one, two)),
        ("new-page", 4 << 3, (one, leaf(keys[15:22]), leaf(keys[22:30]))),
        ("all-new", 7 << 3, (one, two, three)),
        ("other-kind", 0, (leaf([b"\3\1abc"], kind=13), two, three)),
    ):
        bases = [None if choice >> 3 >> i & 1 else b for i, b in enumerate((one, two, three))]
        told = codec.encode(512, 9, [2, 3, 4], bases, images) or b""
        pages = b"".join((one, two, three, *images))
        found[name] = bytes([choice]) + len(told).to_bytes(2, "big") + told + pages
    first = bytearray(b"SQLite format 3\0\2\0\2\2\0\x40\x20\x20" + bytes(488))
    base = leaf(keys[:10], base=bytes(first))
    first[27] = first[95] = 1
    images = (leaf(keys[:11], base=bytes(first)), two, three)
    told = codec.encode(512, 9, [1, 3, 4], [base, two, three], images) or b""
    pages = b"".join((base, two, three, *images))
    found["page-one"] = b"\4" + len(told).to_bytes(2, "big") + told + pages
    for name, told in (
        ("wide-delete", bytes([2 * 3, 4, 5, 7, 0, 0])),
        ("rebuild", bytes([2 * 7, 20, 1, 2, 6, 1, 0, 3, 0, 0])),
        ("laid", bytes([2 * 39, 132, 5, 0]) + bytes(range(36)) + bytes(2)),
        ("wipe", bytes([2 * 5, 12, 8 + 1, 4, 5, 2, 0, 0])),
        ("overlap", bytes([2 * 13 + 1, 0x19, 0, 1, 0, 0])),
        ("far-copy", bytes([2 * 6 + 1, 0x12, 0, 0xFF, 3, 0, 0])),
        ("bad-move", bytes([2 * 5, 4, 6, 9, 0, 0, 0, 0])),
        ("bad-span", bytes([2 * 4, 0, 0xFF, 3, 9, 0, 0])),
    ):
        pages = b"".join((one, two, three))
        found[name] = b"\0" + len(told).to_bytes(2, "big") + told + pages
    return found


def compact() -> dict[str, bytes]:
    """A set that unpacks, and one for each rule it can break."""
    base = leaf([], base=bytes(b"SQLite format 3\0\2\0\2\2\0\x40\x20\x20" + bytes(488)))
    pages = [leaf([bytes([5]) + b"\2\x13key%d" % n]) for n in range(4)]
    start = State(Position(7, 2, 10), 0x1122334455667788, 4, 512, 0)
    found = {}
    for name, numbers, bases, target, size in (
        ("good", [1, 3], [base, pages[0]], Position(7, 2, 14), 4),
        ("grown", [1, 2, 5], [base, pages[0], None], Position(7, 2, 14), 5),
        ("bare", [1, 3, 4], [None, pages[0], None], Position(7, 2, 14), 4),
        ("generation", [1], [base], Position(7, 4, 0), 4),
        ("shrunk", [1, 2], [base, pages[1]], Position(7, 2, 11), 2),
    ):
        head = SetHeader(512, size, len(numbers), start.position, target, start.hash, 0, 1)
        images = [base, *pages[1 : len(numbers)]]
        told = codec_compact.encode(start, head, numbers, bases, images) or b""
        rest = b"".join(b for b in bases if b)
        found[name] = b"\0\4" + len(told).to_bytes(2, "big") + told + rest
    good = found["good"]
    for name, offset, value in (
        ("version", 4, 0x4E),
        ("page-size", 5, 3),
        ("bits", 5, 0x80),
        ("bare-bits", 5, 0x10),
        ("length", 6, 5),
        ("not-forwards", 7, 0),
        ("size", 8, 9),
        ("count", 15, 90),
        ("number", 16, 7),
        ("record", 25, 9),
        ("guard", len(good) - 1025, 1),
    ):
        found[name] = b"\3" + patch(good, offset, value, 1)[1:]
    found["damaged"] = b"\0" + patch(good, 10, 0x55, 1)[1:]
    found["lock-byte"] = b"\7" + good[1:]
    return found


def ranges() -> dict[str, bytes]:
    """Runs of each kind, and each thing that can be wrong with one."""
    rng = random.Random(6)
    several = [(1, 4, 6), (257, 3, 0), (300, 5, 255), (1024, 2, 10)]

    def runs(*parts: tuple[int, int, int]) -> bytes:
        head = [struct.pack(">IIB7x", *part) for part in parts]
        bodies = [b"" if part[2] == 255 else rng.randbytes(8 * part[1]) for part in parts]
        return b"".join(x + y for x, y in zip(head, bodies, strict=True))

    return {
        "empty": b"",
        "several": runs(*several),
        "cut": runs(*several)[:-1],
        "head-cut": runs(*several)[:9],
        "overlap": runs((1, 4, 6), (256, 1, 0)),
        "backwards": runs((100, 1, 0), (1, 1, 0)),
        "nothing": runs((1, 0, 0)),
        "page-0": runs((0, 1, 0)),
        "span": runs((1, 1, 32)),
        "widest": runs((1, 2, 31)),
        "beyond": runs((1, 3, 31)),
        "all": runs((1, 0xFFFFFFFE, 255)),
        "too-many": runs((1, 0xFFFFFFFF, 255)),
        "unused": patch(runs((1, 1, 0)), 12, 7, 1),
    }


def seal() -> dict[str, bytes]:
    """Header blocks with one thing wrong each, and changes to every part of a slot, a frame, a record."""
    rng = random.Random(7)
    kinds = (bytes([what]) + (9).to_bytes(4, "big") for what in range(5))
    block_as_is, forged, page, frame, record = kinds
    lock = b"\1\0\0\0" + rng.randbytes(108) + bytes(16)
    fields = struct.pack(
        ">16sIIB3xHH16sQ8x", b"nearlite sealed", 1, 512, 1, 1, 0, rng.randbytes(16), 1
    )
    copy = (fields + lock).ljust(2048, b"\0")
    found = {
        "block": block_as_is + copy + copy,
        "block-torn": block_as_is + copy[:1000],
        "block-foreign": block_as_is + b"SQLite format 3\0",
        "forged": forged + copy + copy,
        "forged-newer": forged + copy + patch(copy, 48, 2, 8),
        "forged-phrase": forged + patch(copy, 64, 0x02110000) * 2,
        "forged-both": forged + patch(copy, 30, 2, 2)[:192] + lock + copy[320:] + copy,
    }
    for name, offset, value in (
        ("version", 16, 2),
        ("page-size", 20, 513),
        ("cipher", 24, 0x02000000),
        ("generation", 28, 0),
        ("generations", 28, 0x00010001),
        ("unused", 56, 1),
        ("no-lock", 64, 0),
        ("lock-kind", 64, 0x03000000),
        ("lock-cost", 64, 0x01010000),
        ("phrase-cost", 64, 0x02150000),
        ("second-lock", 192, 0x04000000),
        ("behind", 1000, 1),
    ):
        found[f"forged-{name}"] = forged + patch(copy, offset, value) * 2
    for name, at in (("page", 3), ("nonce", 512), ("tag", 524), ("key", 540), ("epoch", 543)):
        found[f"slot-{name}"] = page + at.to_bytes(2, "big") + b"\x40"
    for name, at in (
        ("number", 3),
        ("salt", 9),
        ("nonce", 16),
        ("key", 28),
        ("tag", 32),
        ("page", 99),
    ):
        found[f"frame-{name}"] = frame + at.to_bytes(2, "big") + b"\1"
    found["record"] = record + b"\x28\0"
    found["record-empty"] = record
    for name, missing in (("byte", 1), ("key", 4), ("seal", 32), ("more", 40), ("all", 72)):
        found[f"record-without-{name}"] = record + bytes([40, missing])
    for name, at in (("first", 0), ("nonce", 40), ("tag", 52), ("key", 68), ("epoch", 71)):
        found[f"record-{name}"] = record + b"\x28\0" + at.to_bytes(2, "big") + b"\x10"
    return found | {"slot": page, "frame": frame}


def main(corpus: Path) -> None:
    """Write the folders anew."""
    for make in (checksum, compact, delta, frames, pageset, ranges, seal):
        folder = corpus / make.__name__
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for name, data in make().items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "corpus")
