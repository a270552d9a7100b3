"""Drives the released PyPI ``libsql`` as an embedded replica; prints what it saw as one line of JSON.

Commands come as lines of JSON on standard input: ["open"], ["sync"], ["read", SQL], ["write", SQL],
["close"]; each is answered by a line.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import libsql  # type: ignore[import-not-found]

url, token, path = sys.argv[1:4]
options = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
connection: Any = None
for line in sys.stdin:
    command, *given = json.loads(line)
    answer: Any = None
    try:
        if command == "open":
            connection = libsql.connect(path, sync_url=url, auth_token=token, **options)
        elif command == "sync":
            connection.sync()
        elif command == "read":
            answer = [list(row) for row in connection.execute(*given).fetchall()]
        elif command == "write":
            connection.execute(*given)
            connection.commit()
        elif command == "close":
            connection.close()
        print(json.dumps({"answer": answer}), flush=True)
    except (ValueError, RuntimeError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
