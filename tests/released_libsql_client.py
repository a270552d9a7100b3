"""Drives the released (and archived) PyPI ``libsql-client`` over HTTP; prints what it saw as one line of JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import libsql_client  # type: ignore[import-not-found]

seen: dict[str, Any] = {}
with libsql_client.create_client_sync(sys.argv[1], auth_token=sys.argv[2]) as client:
    client.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE)")
    done = client.execute("INSERT INTO t(b) VALUES(?)", ["one"])
    seen["inserted"] = [done.rows_affected, done.last_insert_rowid]
    found = client.batch(
        [
            libsql_client.Statement("INSERT INTO t(b) VALUES(:b)", {"b": 2.5}),
            "SELECT a, b FROM t ORDER BY a",
        ]
    )
    seen["columns"] = list(found[1].columns)
    seen["rows"] = [list(row) for row in found[1].rows]
    try:
        client.batch(["INSERT INTO t(b) VALUES('kept')", "INSERT INTO t(b) VALUES('one')"])
    except libsql_client.LibsqlError as error:
        seen["unique"] = error.code
    seen["after"] = client.execute("SELECT count(*) FROM t").rows[0][0]
    try:
        client.execute("SELEC 1")
    except libsql_client.LibsqlError as error:
        seen["syntax"] = error.code
print(json.dumps(seen))
