"""What a server allows its clients: each limit has its code, and the server goes on."""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Client, app_of, batch, execute, outcome, rows, serving, transaction

import nearlite
from nearlite.cli import serve
from nearlite.limits import Limits

ROWS, STATEMENTS, BYTES, STREAMS = 20, 12, 100_000, 4
COUNT = (
    "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {}) SELECT i FROM c"
)
HALF = f"SELECT hex(zeroblob({BYTES // 4}))"  # two fit into an answer, hardly
CLOSE = {"type": "close"}
DOCS = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()


@pytest.fixture(scope="module", params=["normal", "full"])
def port(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[int]:
    limits = Limits(
        max_request_bytes=BYTES,
        max_response_bytes=BYTES,
        max_rows=ROWS,
        max_statements=STATEMENTS,
        max_streams_per_client=STREAMS,
        max_transactions=3,
    )
    folder = tmp_path_factory.mktemp("limits")
    app = app_of(folder / "data.db", durability=request.param, limits=limits)
    with serving(app) as port:
        yield port


@pytest.fixture(params=[True, False], ids=["whole", "in-pieces"])
def client(port: int, request: pytest.FixtureRequest) -> Iterator[Client]:
    client = Client(port, whole=request.param)
    client.run("DROP TABLE IF EXISTS t", "CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
    yield client
    assert client.rows("SELECT 1") == [[1]]
    client.close()


def codes(results: list[Any]) -> list[str | None]:
    return [result["error"]["code"] if result["type"] == "error" else None for result in results]


def refusal(client: Client, path: str, body: Any) -> tuple[int, str]:
    reply = client.request("POST", path, json.dumps(body).encode())
    return reply.status, reply.json["code"]


# ---------------------------------------------------------------- rows, bytes


@pytest.mark.parametrize("before", [[], ["BEGIN"]], ids=["shared", "own"])
def test_a_result_of_more_rows_is_refused(client: Client, before: list[str]) -> None:
    texts = [*before, COUNT.format(ROWS), COUNT.format(ROWS + 1), "SELECT 5"]
    results = client.pipeline(*map(execute, texts), CLOSE)["results"]
    assert codes(results[len(before) :]) == [None, "TOO_MANY_ROWS", None, None]


@pytest.mark.parametrize("before", [[], ["BEGIN"], ["CREATE TEMP TABLE mine(a)"]])
def test_a_write_that_answers_more_rows_is_undone(client: Client, before: list[str]) -> None:
    write = f"INSERT INTO t(a) {COUNT.format(ROWS + 1)} RETURNING a"
    for want_rows in (True, False):
        requests = [*map(execute, before), execute(write, want_rows=want_rows)]
        if "BEGIN" in before:
            requests.append(execute("COMMIT"))
        results = client.pipeline(*requests, CLOSE)["results"]
        assert codes(results)[len(before)] == "TOO_MANY_ROWS"
        assert client.rows("SELECT count(*) FROM t") == [[0]]
    (answer,) = client.pipeline(transaction("INSERT INTO t VALUES (99, 1)", write))["results"]
    assert outcome(answer)["step_errors"][2]["code"] == "TOO_MANY_ROWS"


def test_a_write_in_a_transaction_of_a_group_is_undone_alone(client: Client) -> None:
    steps = [
        "BEGIN",
        "INSERT INTO t VALUES (99, 1)",
        f"INSERT INTO t(a) {COUNT.format(ROWS + 1)} RETURNING a",
        "COMMIT",
    ]
    (answer,) = client.pipeline(batch(*steps))["results"]
    errors = [error and error["code"] for error in outcome(answer)["step_errors"]]
    assert errors == [None, None, "TOO_MANY_ROWS", None]
    assert client.rows("SELECT a FROM t") == [[99]]


def test_a_cursor_has_no_limit_of_rows(client: Client) -> None:
    body = json.dumps({"batch": batch(COUNT.format(10 * ROWS))["batch"]}).encode()
    lines = client.request("POST", "/v3/cursor", body).body.splitlines()
    assert sum(json.loads(line).get("type") == "row" for line in lines) == 10 * ROWS


@pytest.mark.parametrize("before", [[], ["BEGIN"]], ids=["shared", "own"])
def test_all_rows_of_an_answer_together_are_limited(client: Client, before: list[str]) -> None:
    """And what answers no rows is carried out all the same: a COMMIT, say."""
    texts = [*before, HALF, "SELECT 1", HALF, HALF, "INSERT INTO t VALUES (7, 7)"]
    if before:
        texts.append("COMMIT")
    requests = [*map(execute, texts), {"type": "describe", "sql": "SELECT 1"}]
    found = codes(client.pipeline(*requests, CLOSE)["results"])[len(before) :]
    assert found[:2] == [None, None]
    assert "RESPONSE_TOO_LARGE" in found[2:4]
    assert found[4 : 4 + len(texts) - len(before) - 4] == [None] * (len(texts) - len(before) - 4)
    assert client.rows("SELECT a FROM t") == [[7]]


@pytest.mark.parametrize(
    "steps",
    [
        [HALF] * 4,
        ["BEGIN", *[HALF] * 4, "COMMIT"],
        ["BEGIN", "INSERT INTO t VALUES (1, 1)", *[HALF] * 4, "COMMIT"],
        ["BEGIN", "CREATE TEMP TABLE mine(a)", *[HALF] * 4, "COMMIT", "DROP TABLE mine"],
    ],
)
def test_those_of_a_batch_are_too(client: Client, steps: list[str]) -> None:
    (answer, _) = client.pipeline(batch(*steps), CLOSE)["results"]
    errors = outcome(answer)["step_errors"]
    found = {steps[at]: error["code"] for at, error in enumerate(errors) if error}
    assert found == {HALF: "RESPONSE_TOO_LARGE"}
    results = [result for result in outcome(answer)["step_results"] if result]
    assert len(json.dumps(results)) < 2 * BYTES


def test_a_request_that_is_too_large_is_refused(client: Client) -> None:
    body = json.dumps({"requests": [], "more": "x" * BYTES}).encode()
    for path in ("/v2/pipeline", "/v3/pipeline", "/v3/cursor", "/v1/batch", "/nl/v1/repair"):
        reply = client.request("POST", path, body)
        assert (reply.status, reply.json["code"]) == (413, "REQUEST_TOO_LARGE")
        assert str(BYTES) in reply.json["message"]


def test_a_request_in_chunks_that_is_too_large_is_refused(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    pieces = iter([b"x" * (BYTES // 2)] * 3)
    connection.request("POST", "/v3/pipeline", pieces, encode_chunked=True)
    answer = connection.getresponse()
    assert (answer.status, json.load(answer)["code"]) == (413, "REQUEST_TOO_LARGE")
    connection.close()


# ---------------------------------------------------------------- statements, streams


def test_more_statements_are_refused_before_any_of_them_has_run(client: Client) -> None:
    insert = "INSERT INTO t(b) VALUES (1)"
    many = [insert] * (STATEMENTS + 1)
    for path, body in (
        ("/v2/pipeline", {"requests": list(map(execute, many))}),
        ("/v3/pipeline", {"requests": [batch(*many)]}),
        ("/v3/pipeline", {"requests": [batch(*many[:7]), batch(*many[7:])]}),
        ("/v3/cursor", {"batch": batch(*many)["batch"]}),
        ("/v1/batch", {"batch": batch(*many)["batch"]}),
    ):
        assert refusal(client, path, body) == (413, "TOO_MANY_STATEMENTS")
    assert client.rows("SELECT count(*) FROM t") == [[0]]
    client.pipeline(*map(execute, many[: STATEMENTS - 1]), CLOSE)
    assert client.rows("SELECT count(*) FROM t") == [[STATEMENTS - 1]]


STORE = {"type": "store_sql", "sql_id": 1, "sql": "SELECT 8"}


def test_a_client_has_so_many_streams_with_something_in_them(client: Client) -> None:
    batons = [client.pipeline(STORE)["baton"] for _ in range(STREAMS)]
    status, code = refusal(client, "/v3/pipeline", {"requests": [STORE]})
    assert (status, code) == (429, "TOO_MANY_STREAMS")
    assert refusal(client, "/v3/cursor", {"batch": {"steps": []}}) == (status, code)
    # Another one is somebody else.
    other = http.client.HTTPConnection("127.0.0.1", client.port, source_address=("127.0.0.2", 0))
    other.request("POST", "/v3/pipeline", json.dumps({"requests": [STORE, CLOSE]}))
    answer = other.getresponse()
    assert answer.status == 200, answer.read()
    other.close()
    # And all of them are as they were.
    for baton in batons:
        stored = {"type": "execute", "stmt": {"sql_id": 1}}
        (result, _) = client.pipeline(stored, CLOSE, baton=baton)["results"]
        assert rows(outcome(result)) == [[8]]


def test_streams_that_nobody_would_miss_make_room(client: Client) -> None:
    batons = [client.pipeline(execute("SELECT 1"))["baton"] for _ in range(3 * STREAMS)]
    for baton in batons:  # a baton of such a stream is good for ever
        (result, _) = client.pipeline(execute("SELECT 2"), CLOSE, baton=baton)["results"]
        assert rows(outcome(result)) == [[2]]


def test_one_token_is_one_client_wherever_it_comes_from(tmp_path: Path) -> None:
    limits = Limits(max_streams_per_client=1)
    with serving(app_of(tmp_path / "data.db", auth_token="t", limits=limits)) as port:
        answers = []
        for address in ("127.0.0.1", "127.0.0.2"):
            one = http.client.HTTPConnection("127.0.0.1", port, source_address=(address, 0))
            body = json.dumps({"requests": [STORE]})
            one.request("POST", "/v3/pipeline", body, {"Authorization": "Bearer t"})
            answers.append(one.getresponse().status)
            one.close()
        assert answers == [200, 429]


def test_so_many_streams_have_connections_of_their_own(client: Client) -> None:
    begin = [execute("BEGIN"), execute("SELECT count(*) FROM t")]
    batons = [client.pipeline(*begin)["baton"] for _ in range(3)]
    refused = client.pipeline(*begin)
    assert codes(refused["results"])[0] == "TRANSACTION_BUSY"
    for baton in [*batons, refused["baton"]]:
        client.pipeline(CLOSE, baton=baton)


def test_many_requests_of_one_pipeline_are_answered_in_order(tmp_path: Path) -> None:
    """More of them than are run in a row."""
    with serving(app_of(tmp_path / "data.db")) as port:
        client = Client(port)
        texts = [f"SELECT {number}" for number in range(1000)]
        results = client.pipeline(*map(execute, texts), CLOSE)["results"][:-1]
        assert [rows(outcome(result))[0][0] for result in results] == list(range(1000))


def test_500_idle_streams_are_kept(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "data.db")) as port:
        client = Client(port)
        batons = [client.pipeline(STORE)["baton"] for _ in range(500)]
        assert client.rows("SELECT 3") == [[3]]
        for baton in batons:
            stored = {"type": "execute", "stmt": {"sql_id": 1}}
            (result, _) = client.pipeline(stored, CLOSE, baton=baton)["results"]
            assert rows(outcome(result)) == [[8]]


# ---------------------------------------------------------------- how they are given


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_request_bytes", 10),
        ("max_rows", -1),
        ("max_statements", 0),
        ("max_streams", 1.5),
        ("max_streams", True),
        ("client_seconds", 0.0),
        ("client_seconds", float("nan")),
        ("idle_seconds", "60"),
        ("transaction_seconds", float("inf")),
    ],
)
def test_values_that_no_server_can_work_with_are_refused(name: str, value: Any) -> None:
    with pytest.raises(nearlite.ProgrammingError, match=name):
        nearlite.Limits(**{name: value})


def test_each_limit_is_an_option_and_documented_with_its_default() -> None:
    options = {option.name: option for option in serve.params}
    table = dict(re.findall(r"^\| `--([a-z-]+)` \| ([^|]+) \|", DOCS, re.MULTILINE))
    for field in dataclasses.fields(Limits):
        assert options[field.name].default == field.default
        told = table[field.name.replace("_", "-")].strip().replace(",", "")
        large = told.endswith("MiB")
        assert (f"{field.default >> 20}MiB" if large else f"{field.default:g}") == told, field.name


def test_the_command_line_takes_them(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from nearlite.cli import cli

    database = str(tmp_path / "data.db")
    found = CliRunner().invoke(cli, ["serve", database, "--max-request-bytes", "10"])
    assert found.exit_code == 2
    assert "max_request_bytes is at least 1024, not 10" in found.output
    assert not (tmp_path / "data.db").exists()


def test_a_socket_of_the_tests_may_come_from_another_address() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.2", 0))
