"""Drives the released PyPI ``libsql`` in remote mode; prints what it saw as one line of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import libsql  # type: ignore[import-not-found]

seen: dict[str, Any] = {}


def failure(work: Callable[[], Any]) -> str | None:
    try:
        work()
    except ValueError as error:
        return str(error)
    return None


connection = libsql.connect(sys.argv[1], auth_token=sys.argv[2])
connection.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
connection.commit()
cursor = connection.execute("INSERT INTO t(b) VALUES (?)", ("one",))
seen["lastrowid"] = cursor.lastrowid
seen["in_transaction"] = connection.in_transaction
connection.commit()
connection.executemany(
    "INSERT INTO t(b) VALUES (?)", [("two",), (3,), (4.5,), (b"\x00\xff",), (None,)]
)
connection.commit()
rows = connection.execute("SELECT b FROM t ORDER BY a").fetchall()
seen["rows"] = [list(row[0]) if isinstance(row[0], bytes) else row[0] for row in rows]
connection.execute("DELETE FROM t")
connection.rollback()
# Every SELECT of this client leaves its stream open, and the next one goes on with its baton.
seen["counts"] = [connection.execute("SELECT count(*) FROM t").fetchone()[0] for _ in range(20)]
seen["syntax"] = failure(lambda: connection.execute("SELEC 1"))
seen["missing"] = failure(lambda: connection.execute("SELECT * FROM nowhere").fetchall())
seen["unique"] = failure(lambda: connection.execute("INSERT INTO t(a) VALUES (1)"))
connection.rollback()
seen["after"] = connection.execute("SELECT max(a) FROM t").fetchone()[0]
seen["unauthorized"] = failure(
    lambda: libsql.connect(sys.argv[1], auth_token="wrong").execute("SELECT 1")
)
print(json.dumps(seen))
