"""A cursor's statement ends with the cursor, however that ends."""

from __future__ import annotations

import json
from pathlib import Path

from serving import Client, app_of, batch, serving

from nearlite._native.database import Database
from nearlite.hrana import RunBatch, Step
from nearlite.owned import Owned
from nearlite.session import Session
from nearlite.streams import Stream, Turn

EITHER = True

MANY = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 20000) SELECT i, t.a FROM c, t"


def test_a_cursor_that_is_given_up_keeps_no_statement_open(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "data.db"))
    database.exec("PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES('x')")
    for pieces in (1, 2):
        stream = Stream(1, 0.0)
        stream.session = Session(database)
        work = Owned(Turn(), lambda _: None).cursor(stream, RunBatch([Step(MANY)]))
        for _ in range(pieces):
            assert next(work)
        assert database.has_snapshot
        work.close()
        assert not database.has_snapshot
    database.close()


def test_a_cursor_with_a_long_text_is_answered_to_its_end(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "data.db")) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a)", "INSERT INTO t VALUES('x')")
        sql = f"/* {'longer than what is kept compiled' * 1000} */ {MANY}"
        body = json.dumps({"batch": batch("BEGIN", sql, "COMMIT")["batch"]}).encode()
        lines = client.request("POST", "/v3/cursor", body).body.splitlines()
        kinds = [json.loads(line)["type"] for line in lines[1:]]
        assert kinds.count("row") == 20_000
        assert kinds.count("step_end") == 3
