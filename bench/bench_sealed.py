"""What encryption at rest costs: each engine against itself in clear, and our codec against bare libcrypto.

Bad would be: more than one seal for each page that is written or read, copies of pages on the way.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

from pairs import Pairs, Sample
from peers import python_peer

import nearlite

HERE = Path(__file__).parent
CSRC = HERE.parent / "csrc"
KEY = "0123456789abcdef" * 4
PARTS = ("write", "scan", "random")

Open = Iterator[Callable[[], Sample]]


@contextmanager
def engine(name: str, prefix: str, key: str, folder: Path, package: str | None = None) -> Open:
    """Seconds of the three parts; a process of its own for each sample."""
    environment = dict(os.environ)
    if package is not None:
        environment["PYTHONPATH"] = str(python_peer(package))
    folder.mkdir()
    command = [sys.executable, str(HERE / "sealed.py"), name, key, str(folder)]

    def sample() -> dict[str, float]:
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=300, env=environment
        )
        found = json.loads(done.stdout)
        return {f"{prefix}_{part}": found[part] for part in PARTS}

    yield sample


def _against_itself(
    pairs: Pairs, folder: Path, prefix: str, name: str, package: str | None, rounds: int
) -> None:
    pairs(
        *(f"{prefix}_{part}" for part in PARTS),
        ours=partial(engine, name, prefix, KEY, folder / "sealed", package),
        peer=partial(engine, name, prefix, "", folder / "plain", package),
        rounds=rounds,
    )


def bench_sealed_against_plain(pairs: Pairs, tmp_path: Path) -> None:
    _against_itself(pairs, tmp_path, "sealed", "nearlite", None, 9)


def bench_sqlite3mc_aegis_against_itself(pairs: Pairs, tmp_path: Path) -> None:
    _against_itself(pairs, tmp_path, "sqlite3mc", "sqlite3mc:aegis", "apsw-sqlite3mc", 5)


def bench_turso_aes_against_itself(pairs: Pairs, tmp_path: Path) -> None:
    _against_itself(pairs, tmp_path, "turso", "turso:aes256gcm", "pyturso", 3)


@contextmanager
def opening(path: Path, key: str | None) -> Open:
    """Seconds to connect, read a row, and close; a file of 4 MB."""
    options = {} if key is None else {"encryption_key": f"hex:{key}"}
    with closing(nearlite.connect(path, **options)) as made:
        made.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        made.executemany("INSERT INTO t(b) VALUES(?)", [("x" * 1000,)] * 4000)
        made.commit()

    def sample() -> float:
        start = perf_counter()
        with closing(nearlite.connect(path, **options)) as connection:
            connection.execute("SELECT b FROM t WHERE a = 2000").fetchone()
        return perf_counter() - start

    yield sample


def bench_opening(pairs: Pairs, tmp_path: Path) -> None:
    pairs(
        "sealed_open",
        ours=partial(opening, tmp_path / "sealed.db", KEY),
        peer=partial(opening, tmp_path / "plain.db", None),
        rounds=101,
        warmup=5,
    )


@contextmanager
def codec(side: str, program: Path) -> Open:
    """Pages a second: sealed by us, opened by us, or by libcrypto alone in the same process."""
    if not program.exists():
        sources = ["fail", "aead", "key", "header_block", "codec", "frame", "pageset", "btree_page"]
        files = [CSRC / f"{name}.c" for name in sources]
        files += [*CSRC.glob("simd_*.c"), HERE / "codec.c"]
        compiler = shlex.split(os.environ.get("CC", "cc"))
        flags = ["-std=gnu11", "-O2", f"-I{CSRC}", f"-I{CSRC / 'vendor'}"]
        subprocess.run([*compiler, *flags, *files, "-o", program, "-lcrypto"], check=True)

    def sample() -> dict[str, float]:
        done = subprocess.run([program], check=True, capture_output=True, text=True, timeout=60)
        found = json.loads(done.stdout)
        return {f"codec_{what}": 1e9 / found[f"{side}_{what}"] for what in ("seal", "open")}

    yield sample


def bench_codec(pairs: Pairs, tmp_path: Path) -> None:
    program = tmp_path / "codec"
    pairs(
        "codec_seal",
        "codec_open",
        ours=partial(codec, "codec", program),
        peer=partial(codec, "evp", program),
        rounds=5,
    )
