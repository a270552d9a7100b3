"""Makes the committed corpus: small inputs from which the fuzzers reach every branch.

Run in an environment with nearlite built: ``python csrc/fuzz/corpus.py``. The same bytes each time.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "python"), str(HERE.parents[1] / "tests")]

from page_sets import build, header, patch  # noqa: E402

from nearlite._native.frames import ChunkHeader  # noqa: E402

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


def main(corpus: Path) -> None:
    """Write the three folders anew."""
    for make in (checksum, frames, pageset):
        folder = corpus / make.__name__
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for name, data in make().items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "corpus")
