"""`nearlite encrypt` and `decrypt`: the same pages, on the other side of a key."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import nearlite
from nearlite._native.sealing import Key
from nearlite.resealing import decrypt_file, encrypt_file

KEY = bytes(range(32))


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nearlite", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )


def images(path: Path) -> list[bytes]:
    """Of all pages, but for the fields that SQLite writes in every copy."""
    with closing(sqlite3.connect(path)) as stock:
        (size,) = stock.execute("PRAGMA page_size").fetchone()
    data = path.read_bytes()
    data = data[:18] + bytes(10) + data[28:92] + bytes(8) + data[100:]
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.db"
    with closing(sqlite3.connect(path)) as stock:
        stock.execute("PRAGMA page_size=1024")
        stock.execute("CREATE TABLE t(a, b)")
        stock.executemany("INSERT INTO t VALUES(?, ?)", [(i, "x" * (i % 900)) for i in range(2000)])
        stock.execute("DELETE FROM t WHERE a % 3 = 0")
        stock.commit()
    return path


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_there_and_back(plain: Path, tmp_path: Path, mode: str) -> None:
    sealed, again = tmp_path / "sealed.db", tmp_path / "again.db"
    with closing(sqlite3.connect(plain)) as stock:
        stock.execute(f"PRAGMA journal_mode={mode}")
        stock.execute("INSERT INTO t VALUES('newest', 1)")
        stock.commit()
        encrypt_file(plain, sealed, Key.of_bytes(KEY))  # while it is open
        count = stock.execute("SELECT count(*) FROM t").fetchone()
    assert sealed.read_bytes().startswith(b"nearlite sealed\0")
    assert b"xxxxxxxx" not in sealed.read_bytes()
    with closing(nearlite.connect(sealed, encryption_key=KEY)) as con:
        assert con.execute("SELECT count(*) FROM t").fetchone() == count
        assert con.execute("PRAGMA page_size").fetchone() == (1024,)
    decrypt_file(sealed, again, Key.of_bytes(KEY))
    assert images(again) == images(plain)
    left = {f.name for f in tmp_path.iterdir()}
    assert left == {"plain.db", "sealed.db", "again.db"}


def test_the_commands(plain: Path, tmp_path: Path) -> None:
    key, sealed, again = tmp_path / "a.key", tmp_path / "sealed.db", tmp_path / "again.db"
    assert command("keygen", key).returncode == 0
    done = command("encrypt", plain, sealed, "--encryption-key-file", key)
    assert (done.returncode, done.stdout) == (0, f"{sealed}: {sealed.stat().st_size:,} bytes\n")
    done = command("decrypt", sealed, again, NEARLITE_ENCRYPTION_KEY_FILE=str(key))
    assert (done.returncode, done.stderr) == (0, "")
    assert images(again) == images(plain)

    done = command("encrypt", plain, again, "--encryption-key-file", key)
    assert (done.returncode, "exists and was not touched" in done.stderr) == (5, True)
    other, out = tmp_path / "b.key", tmp_path / "out.db"
    command("keygen", other)
    for source, says in ((sealed, "not the key that"), (plain, "is not sealed")):
        done = command("decrypt", source, out, "--encryption-key-file", other)
        assert (done.returncode, says in done.stderr) == (5, True)
    done = command("encrypt", sealed, out, "--encryption-key-file", key)
    assert (done.returncode, "is sealed" in done.stderr) == (5, True)
    assert not [f for f in tmp_path.iterdir() if "out.db" in f.name]


def test_a_replica_is_refused(plain: Path, tmp_path: Path) -> None:
    data = bytearray(plain.read_bytes())
    data[18] = 3
    plain.write_bytes(data)
    with pytest.raises(nearlite.NotSupportedError, match="is a replica"):
        encrypt_file(plain, tmp_path / "out.db", Key.of_bytes(KEY))
    assert [f.name for f in tmp_path.iterdir()] == ["plain.db"]


@pytest.mark.parametrize("copy", [encrypt_file, decrypt_file])
def test_a_missing_source_makes_nothing(tmp_path: Path, copy: Callable[..., None]) -> None:
    with pytest.raises(nearlite.DatabaseError):
        copy(tmp_path / "none.db", tmp_path / "out.db", Key.of_bytes(KEY))
    assert list(tmp_path.iterdir()) == []
