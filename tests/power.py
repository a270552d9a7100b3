"""What a disk may hold after the power failed: everything that was synced, and of the rest whatever it likes.

A process runs with tests/recorder.c preloaded, which notes what it does to its files. `Disk.after` then builds the
files as they may have been left at any moment of that run:

* a write or truncation that was not followed by a sync of its file was kept, dropped, kept in part (by sectors), or
  left as garbage;
* a name that was given, changed or removed, without a sync of its folder since, is as it was or as it is: either
  each by itself, or, as a journal keeps them, in order up to some moment.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SECTOR: Final = 512
NAMES: Final = frozenset("clmru")
_HEAD = struct.Struct("=cHHQQI")
_SOURCE: Final = Path(__file__).with_name("recorder.c")
_DELETED: Final = " (deleted)"


@dataclass(frozen=True)
class Operation:
    """One thing that was done to a file.

    Attributes:
      kind: w(rite), t(runcate), s(ync); c(reate), m(kdir), l(ink), r(ename), u(nlink).
      file: number of the file; none has that of another, not even of one that is gone.
    """

    kind: str
    path: str
    other: str
    file: int
    inode: int
    at: int
    data: bytes


def recorded(script: str, folder: Path, *arguments: object) -> list[Operation]:
    """Run a Python script, which must succeed; answers what it did to files in `folder`, which is empty before."""
    library, record = folder.with_name("recorder.so"), folder.with_name("record")
    subprocess.run(
        ["cc", "-O1", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl", "-pthread"], check=True
    )
    preload = f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()
    environment = os.environ | {
        "LD_PRELOAD": preload,
        "NL_RECORD": str(record),
        "NL_RECORD_FOLDER": str(folder),
    }
    subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        check=True,
        timeout=120,
        env=environment,
    )
    return list(_operations(record.read_bytes()))


def _operations(data: bytes) -> Iterator[Operation]:
    at = 0
    files: dict[int, int] = {}  # by inode, whose numbers are used again
    number = itertools.count(1)
    while at < len(data):
        kind, a, b, inode, offset, n = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        path, other = data[at : at + a].decode(), data[at + a : at + a + b].decode()
        at += a + b
        size = n if kind == b"w" else 0
        if kind in b"cm":
            files[inode] = next(number)
        file = files.get(inode, 0)
        path = path.removesuffix(_DELETED)
        yield Operation(kind.decode(), path, other, file, inode, offset, data[at : at + size])
        at += size


@dataclass(frozen=True)
class Image:
    """Files as they may be left, by path.

    Attributes:
      inodes: of the files when they were written, by path.
    """

    files: dict[str, bytes]
    inodes: dict[str, int]
    folders: frozenset[str]

    def place(self, old: Path, new: Path) -> None:
        """Write the files, which were in folder `old`, into an empty folder `new`."""
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        for path in sorted(self.folders):
            (new / Path(path).relative_to(old)).mkdir()
        for path, data in self.files.items():
            (new / Path(path).relative_to(old)).write_bytes(data)


class Disk:
    """What was done to the files in a folder, and how it may have left them."""

    def __init__(self, operations: list[Operation], folder: Path) -> None:
        self._operations = operations
        self._folder = folder

    def after(self, count: int, rng: random.Random) -> Image:
        """When the power fails behind so many operations."""
        done = self._operations[:count]
        names, folders = _names(done, str(self._folder), rng)
        synced = {op.file: i for i, op in enumerate(done) if op.kind == "s"}
        contents = {file: bytearray() for file in set(names.values())}
        inodes = {op.file: op.inode for op in done}
        for i, op in enumerate(done):
            held = contents.get(op.file)
            if held is None or op.kind not in "wt":
                continue
            safe = i < synced.get(op.file, -1)
            if op.kind == "w":
                _write(held, op, None if safe else rng)
            elif safe or rng.random() < 0.5:
                held[op.at :] = bytes(max(0, op.at - len(held)))
        files = {path: bytes(contents[file]) for path, file in names.items()}
        return Image(files, {path: inodes[file] for path, file in names.items()}, folders)


def _names(
    done: list[Operation], root: str, rng: random.Random
) -> tuple[dict[str, int], frozenset[str]]:
    """Files by path, and folders."""
    synced = {op.path: i for i, op in enumerate(done) if op.kind == "s"}  # of the folders
    changes = [i for i, op in enumerate(done) if op.kind in NAMES]
    safe = {i for i in changes if i < synced.get(os.path.dirname(done[i].path), -1)}
    if rng.random() < 0.5:
        last = max(safe, default=-1)
        until = rng.choice([last, *(i for i in changes if i > last)])
        kept = [i for i in changes if i <= until]
    else:
        kept = [i for i in changes if i in safe or rng.random() < 0.5]
    names: dict[str, int] = {}
    folders: set[str] = set()
    for op in (done[i] for i in kept):
        if op.kind == "m":
            folders.add(op.path)
        elif op.kind == "c":
            names[op.path] = op.file
        elif names.get(op.path) == op.file:
            if op.kind != "u":
                names[op.other] = op.file
            if op.kind != "l":
                del names[op.path]
    there = {
        path: file for path, file in names.items() if os.path.dirname(path) in {root, *folders}
    }
    return there, frozenset(folders)


def _write(held: bytearray, op: Operation, rng: random.Random | None) -> None:
    """A whole write, or with `rng` what may be left of one."""
    end = op.at + len(op.data)
    fate = "kept" if rng is None else rng.choice(("kept", "kept", "dropped", "in part", "garbage"))
    if fate == "dropped":
        return
    if len(held) < end:
        held.extend(bytes(end - len(held)))
    if rng is None or fate == "kept":
        held[op.at : end] = op.data
        return
    # What lies beside the write in its first and last sector is not touched: powersafe overwrite.
    for begin in range(op.at - op.at % SECTOR, end, SECTOR):
        a, b = max(begin, op.at), min(begin + SECTOR, end)
        if rng.random() < 0.5:
            held[a:b] = (
                op.data[a - op.at : b - op.at] if fate == "in part" else rng.randbytes(b - a)
            )


def marks(operations: list[Operation]) -> list[tuple[int, bytes]]:
    """What a script has written whole into its file `marks`: after how many operations, and what."""
    return [
        (i + 1, op.data)
        for i, op in enumerate(operations)
        if op.kind == "w" and os.path.basename(op.path) == "marks"
    ]
