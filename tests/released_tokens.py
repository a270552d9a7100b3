"""Drives the released PyPI ``libsql`` with signed tokens; prints what it saw as one line of JSON.

Arguments: url, and tokens of somebody who writes, who reads, an expired one, one for another database.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import libsql  # type: ignore[import-not-found]

url, writes, reads, expired, elsewhere = sys.argv[1:]
seen: dict[str, Any] = {}


def failure(work: Callable[[], Any]) -> str | None:
    try:
        work()
    except ValueError as error:
        return str(error)
    return None


writer = libsql.connect(url, auth_token=writes)
writer.execute("CREATE TABLE t(a)")
writer.execute("INSERT INTO t VALUES (1), (2)")
writer.commit()
reader = libsql.connect(url, auth_token=reads)
count = "SELECT count(*) FROM t"
seen["rows"] = reader.execute(count).fetchone()[0]
seen["insert"] = failure(lambda: reader.execute("INSERT INTO t VALUES (3)"))
reader.rollback()
# The connection goes on after a refusal.
seen["after"] = [reader.execute(count).fetchone()[0] for _ in range(3)]
seen["drop"] = failure(lambda: reader.execute("DROP TABLE t"))
seen["last"] = reader.execute(count).fetchone()[0]
for name, token in (("expired", expired), ("elsewhere", elsewhere)):
    other = libsql.connect(url, auth_token=token)
    seen[name] = failure(lambda other=other: other.execute("SELECT 1").fetchall())
print(json.dumps(seen))
