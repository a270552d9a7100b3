"""What a request leaves on a connection that goes back to the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Client, app_of, batch, execute, outcome, serving

CLOSE = {"type": "close"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with serving(app_of(tmp_path / "data.db", durability="normal", foreign_keys=True)) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        client.run("CREATE TABLE checked(a CHECK (a > 0))")
        client.run("CREATE TABLE child(a REFERENCES t)")
        client.pipeline(batch("BEGIN", "COMMIT"), CLOSE)
        yield client


def settings(client: Client) -> list[Any]:
    """Of the connection that the next transaction gets."""
    answer = client.pipeline(
        execute("SAVEPOINT s"),
        execute("PRAGMA foreign_keys"),
        execute("PRAGMA ignore_check_constraints"),
        execute("PRAGMA recursive_triggers"),
        execute("PRAGMA case_sensitive_like"),
        execute("PRAGMA query_only"),
        execute("SELECT 'a' LIKE 'A'"),
        execute("INSERT INTO checked VALUES(-1)"),
        execute("ROLLBACK"),
        CLOSE,
    )
    found = [outcome(result) for result in answer["results"][1:-2]]
    return [each["rows"][0][0]["value"] if each.get("rows") else each.get("code") for each in found]


@pytest.mark.parametrize(
    "pragma",
    [
        "foreign_keys=0",
        "ignore_check_constraints=1",
        "recursive_triggers=1",
        "query_only=1",
        "case_sensitive_like=1",
    ],
)
@pytest.mark.parametrize(
    "request_of",
    [
        lambda sql: {"type": "describe", "sql": sql},
        lambda sql: execute(f"{sql}; SELECT 1"),
        lambda sql: batch(f"{sql}; SELECT 1"),
        lambda sql: batch(f"EXPLAIN {sql}"),
        lambda sql: batch(f"EXPLAIN {sql}; SELECT 1"),
        lambda sql: {"type": "sequence", "sql": f"{sql}; SELECT nothing"},
        lambda sql: execute(sql, 1, 2),
        execute,
    ],
    ids=["describe", "two", "two-batch", "explain", "explain-two", "script", "args", "plain"],
)
def test_a_pragma_stays_with_its_stream(client: Client, pragma: str, request_of: Any) -> None:
    before = settings(client)
    client.pipeline(request_of(f"PRAGMA {pragma}"), CLOSE)
    assert settings(client) == before
    begun = client.pipeline(execute("BEGIN"))
    answer = client.pipeline(request_of(f"PRAGMA {pragma}"), baton=begun["baton"])
    client.pipeline(CLOSE, baton=answer["baton"])
    assert settings(client) == before
