"""Text that is not UTF-8: what the standard library does with it on a file, connections to a primary do, too."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import primaries
import pytest
from serving import Client, outcome

EITHER = True

ROWS = (
    "SELECT 1 AS id, 'good' AS word UNION ALL SELECT 2, CAST(x'6162ff63' AS TEXT) "
    "UNION ALL SELECT 3, 'after'"
)


@pytest.fixture(params=["remote", "replica", "replica in a transaction"])
def db(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    with primaries.primary(tmp_path) as served:
        db = served.remote() if request.param == "remote" else served.replica()
        db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, word TEXT)")
        db.execute("INSERT INTO t " + ROWS)
        db.commit()
        if request.param == "replica in a transaction":
            db.execute("UPDATE t SET id = id")
        yield db


@pytest.fixture
def stock() -> Iterator[sqlite3.Connection]:
    stock = sqlite3.connect(":memory:")
    stock.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, word TEXT)")
    stock.execute("INSERT INTO t " + ROWS)
    yield stock
    stock.close()


def told(read: Callable[[], Any]) -> Any:
    """What comes of reading: a value, or the text of the failure."""
    try:
        return read()
    except sqlite3.OperationalError as error:
        return str(error)


def test_the_row_that_holds_it_fails_when_it_is_fetched(db: Any, stock: sqlite3.Connection) -> None:
    seen = []
    for connection in (stock, db):
        cursor = connection.execute("SELECT id, word FROM t ORDER BY id")
        seen.append([told(cursor.fetchone) for _ in range(2)])
        seen[-1].append(told(connection.execute("SELECT word FROM t ORDER BY id").fetchall))
    assert seen[1] == seen[0]
    assert seen[0][0] == (1, "good")
    assert "Could not decode to UTF-8 column 'word'" in seen[0][1]


@pytest.mark.parametrize("factory", [bytes, lambda data: data.decode("latin-1")])
def test_text_factory_gets_its_bytes(
    db: Any, stock: sqlite3.Connection, factory: Callable[[bytes], Any]
) -> None:
    for connection in (stock, db):
        connection.text_factory = factory
    sql = "SELECT word FROM t ORDER BY id"
    assert db.execute(sql).fetchall() == stock.execute(sql).fetchall()


def test_other_clients_read_what_they_can(tmp_path: Path) -> None:
    with primaries.primary(tmp_path) as served:
        client = Client(int(served.url.rpartition(":")[2]))
        answer = client.pipeline(
            {"type": "execute", "stmt": {"sql": "SELECT CAST(x'6162ff63' AS TEXT), 'good'"}},
            {"type": "close"},
        )
        malformed, good = outcome(answer["results"][0])["rows"][0]
        assert malformed["value"] == "ab\N{REPLACEMENT CHARACTER}c"
        data = malformed["base64"]
        assert base64.b64decode(data + "=" * (-len(data) % 4)) == b"ab\xffc"
        assert good == {"type": "text", "value": "good"}
