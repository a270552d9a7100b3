"""What a disk may hold after the power failed: everything that was synced, and of the rest whatever it likes.

A process runs with tests/recorder.c preloaded, which notes what it does to its files. `Disk.after` then
builds the files as they may have been left at any moment of that run: each write that was not followed
by a sync of its file was kept, dropped, kept in part (by sectors), or left as garbage.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SECTOR: Final = 512
_HEAD = struct.Struct("=cHHQI")
_SOURCE: Final = Path(__file__).with_name("recorder.c")


@dataclass(frozen=True)
class Operation:
    """One thing that was done to a file: w(rite), s(ync), t(runcate), u(nlink), l(ink)."""

    kind: str
    path: str
    other: str
    at: int
    data: bytes


def recorded(script: str, folder: Path, *arguments: object) -> list[Operation]:
    """Run a Python script, which must succeed; answers what it did to files in `folder`."""
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


def _operations(data: bytes):
    at = 0
    while at < len(data):
        kind, a, b, offset, n = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        path, other = data[at : at + a].decode(), data[at + a : at + a + b].decode()
        at += a + b
        size = n if kind == b"w" else 0
        yield Operation(kind.decode(), path, other, offset, data[at : at + size])
        at += size


class Disk:
    """Files as they may be left."""

    def __init__(self, operations: list[Operation]) -> None:
        self._operations = operations

    def after(self, count: int, rng: random.Random) -> dict[str, bytes]:
        """Contents by path, when the power fails behind so many operations."""
        done = self._operations[:count]
        synced = {op.path: i for i, op in enumerate(done) if op.kind == "s"}
        files: dict[str, bytearray] = {}
        for i, op in enumerate(done):
            if op.kind == "s":  # of a file, or of the folder
                continue
            held = files.setdefault(op.path, bytearray())
            safe = i < synced.get(op.path, -1)
            if op.kind == "w":
                _write(held, op, None if safe else rng)
            elif op.kind == "t" and (safe or rng.random() < 0.5):
                held[op.at :] = bytes(max(0, op.at - len(held)))
            elif op.kind == "l":
                files[op.other] = bytearray(held)
                if op.path in synced:
                    synced[op.other] = max(synced.get(op.other, -1), 0)
            elif op.kind == "u" and rng.random() < 0.5:  # the folder is not synced
                files.pop(op.path, None)
        return {path: bytes(data) for path, data in files.items()}


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


def placed(files: dict[str, bytes], old: Path, new: Path) -> None:
    """Write those files, which were in folder `old`, into an empty folder `new`."""
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for path, data in files.items():
        (new / Path(path).relative_to(old)).write_bytes(data)
