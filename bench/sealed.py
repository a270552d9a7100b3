"""One engine's cost of encryption at rest, in a process of its own: bulk write, cold scan, random points.

    python bench/sealed.py ENGINE KEY FOLDER

ENGINE: nearlite, sqlite3mc (with a cipher's name behind a colon) or turso (likewise); KEY: 64 hexadecimal
digits, or "" for a plain file. Prints seconds as JSON. The same script for all, 600,000 rows in 61 MB,
a page cache of 2 MB. "Cold" is the engine's cache: the file is in the system's.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROWS = 600_000
POINTS = 50_000
TIMES = 5  # parts that take half a second feel every other program on the machine
CACHE = "PRAGMA cache_size=-2000"


def opened(engine: str, key: str, path: str) -> Any:
    name, _, cipher = engine.partition(":")
    if name == "nearlite":
        import nearlite

        sealed = {"encryption_key": f"hex:{key}"} if key else {}
        return nearlite.connect(path, isolation_level=None, **sealed)
    if name == "sqlite3mc":
        import apsw

        connection = apsw.Connection(path)
        if key:
            connection.pragma("cipher", cipher)
            connection.pragma("hexkey", key)
        return connection
    import turso

    if not key:
        return turso.connect(path, isolation_level=None)
    return turso.connect(
        path,
        isolation_level=None,
        experimental_features="encryption",
        encryption=turso.EncryptionOpts(cipher=cipher, hexkey=key),
    )


def rows() -> Any:
    text = "a text of some eighty bytes that stands in every row of the table, as texts do: "
    return ((i, i * 7919, f"{text}{i}") for i in range(ROWS))


def prepared(engine: str, key: str, path: str) -> Any:
    connection = opened(engine, key, path)
    connection.execute("PRAGMA journal_mode=WAL").fetchall()
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(CACHE)
    return connection


def scan(engine: str, key: str, path: str) -> float:
    cursor = prepared(engine, key, path).cursor()
    began = time.perf_counter()
    total = cursor.execute("SELECT sum(length(c)), sum(b) FROM t").fetchall()
    took = time.perf_counter() - began
    assert total[0][1] == 7919 * ROWS * (ROWS - 1) // 2
    return took


def points(engine: str, key: str, path: str) -> float:
    cursor = prepared(engine, key, path).cursor()
    rng = random.Random(1)
    chosen = [rng.randrange(ROWS) for _ in range(POINTS)]
    began = time.perf_counter()
    for a in chosen:
        row = cursor.execute("SELECT b FROM t WHERE a = ?", (a,)).fetchone()
    took = time.perf_counter() - began
    assert row[0] == chosen[-1] * 7919
    return took


def main(engine: str, key: str, folder: str) -> dict[str, float]:
    path = str(Path(folder) / "a.db")
    for old in Path(folder).glob("a.db*"):
        old.unlink()
    found = {}
    connection = prepared(engine, key, path)
    cursor = connection.cursor()
    began = time.perf_counter()
    cursor.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b INTEGER, c TEXT)")
    cursor.execute("BEGIN")
    cursor.executemany("INSERT INTO t VALUES(?, ?, ?)", rows())
    cursor.execute("COMMIT")
    cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    found["write"] = time.perf_counter() - began
    connection.close()

    found["scan"] = statistics.median(scan(engine, key, path) for _ in range(TIMES))
    found["random"] = statistics.median(points(engine, key, path) for _ in range(TIMES))
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
