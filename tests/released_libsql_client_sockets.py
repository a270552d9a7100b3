"""Drives the released (and archived) PyPI ``libsql-client`` over WebSocket; prints what it saw as one line of JSON."""

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
    found = client.batch(["INSERT INTO t(b) VALUES(2.5)", "SELECT a, b FROM t ORDER BY a"])
    seen["rows"] = [list(row) for row in found[1].rows]
    transaction = client.transaction()
    transaction.execute("INSERT INTO t(b) VALUES('three')")
    seen["outside"] = client.execute("SELECT count(*) FROM t").rows[0][0]
    seen["inside"] = transaction.execute("SELECT count(*) FROM t").rows[0][0]
    transaction.rollback()
    transaction = client.transaction()
    transaction.execute("INSERT INTO t(b) VALUES('four')")
    transaction.commit()
    seen["after"] = client.execute("SELECT count(*) FROM t").rows[0][0]
    for name, sql in (("unique", "INSERT INTO t(b) VALUES('one')"), ("syntax", "SELEC 1")):
        try:
            client.execute(sql)
        except libsql_client.LibsqlError as error:
            seen[name] = error.code
try:
    with libsql_client.create_client_sync(sys.argv[1], auth_token="wrong") as client:
        client.execute("SELECT 1")
except libsql_client.LibsqlError as error:
    seen["unauthorized"] = error.code
print(json.dumps(seen))
