"""Answers compressed for clients that accept it."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import zstandard
from serving import Client, app_of, batch, execute, outcome, rows, serving
from test_connection import Answers, request

from nearlite import compression

LARGE = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) SELECT i, 'text' FROM n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("br, deflate", None),
        ("gzip", "gzip"),
        ("GZip ; Q=0.5", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("zstd;q=0.1, gzip;q=0.9", "gzip"),
        ("zstd;q=0, gzip", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0.000, *", "zstd"),
        ("*", "zstd"),
        ("*;q=0", None),
        ("*;q=0, gzip", "gzip"),
        ("gzip;q=2", None),
        ("gzip;level=9", None),
        (",,;q=1, gzip", "gzip"),
        ("\xff\x00gzip", None),
    ],
)
def test_what_a_client_accepts(given: str | None, expected: str | None) -> None:
    fields = [] if given is None else [(b"accept-encoding", given.encode("latin-1"))]
    assert compression.accepted({"headers": fields}) == expected


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with serving(app_of(tmp_path_factory.mktemp("c") / "data.db", durability="normal")) as port:
        yield port


def unpacked(encoding: str | None, body: bytes) -> bytes:
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "zstd":
        reader = zstandard.ZstdDecompressor().decompressobj()
        text = reader.decompress(body)
        assert reader.eof
        return text
    assert encoding is None
    return body


@pytest.mark.parametrize("whole", [True, False], ids=["short cut", "usual way"])
@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("count", [1, 300, 5000])
def test_pipelines(port: int, encoding: str, count: int, whole: bool) -> None:
    body = json.dumps({"requests": [execute(LARGE.format(count)), {"type": "close"}]}).encode()
    with closing(Client(port, whole=whole)) as client:
        for path in ("/v3/pipeline", "/v2/pipeline"):
            for _ in range(2):  # its head is known the second time
                reply = client.request("POST", path, body, accept_encoding=encoding)
                packed = reply.headers.get("content-encoding")
                assert packed == (encoding if count > 1 else None)
                if packed:
                    assert reply.headers["vary"] == "accept-encoding"
                assert int(reply.headers["content-length"]) == len(reply.body)
                answer = json.loads(unpacked(packed, reply.body))
                assert len(rows(outcome(answer["results"][0]))) == count
                assert len(reply.body) < 40_000
        plain = client.request("POST", path, body)
        assert "content-encoding" not in plain.headers


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_the_other_routes(port: int, encoding: str) -> None:
    with closing(Client(port)) as client:
        client.run("CREATE TABLE IF NOT EXISTS t(a)", "BEGIN")
        for path, asked in (
            ("/v1/execute", {"stmt": {"sql": LARGE.format(400)}}),
            ("/v1/batch", batch(LARGE.format(400))),
            ("/v3/cursor", batch(LARGE.format(400))),
            ("/v3/cursor", batch(LARGE.format(40_000))),
            ("/v3/cursor", batch("CREATE TEMP TABLE IF NOT EXISTS x(a)", LARGE.format(400))),
        ):
            body: Any = {"batch": asked["batch"]} if "batch" in asked else asked
            sent = json.dumps(body).encode()
            packed = client.request("POST", path, sent, accept_encoding=encoding)
            plain = client.request("POST", path, sent)
            assert packed.headers["content-encoding"] == encoding
            assert "content-encoding" not in plain.headers
            text = unpacked(encoding, packed.body)
            assert text.count(b'"integer"') == plain.body.count(b'"integer"') >= 400


def test_replicas_are_fed_as_ever(port: int) -> None:
    with closing(Client(port)) as client:
        client.run("CREATE TABLE IF NOT EXISTS big AS " + LARGE.format(5000))
        for path in ("/nl/v1/snapshot?z=0", "/info", "/nl/v1/status"):
            reply = client.request("GET", path, accept_encoding="gzip, zstd")
            assert "content-encoding" not in reply.headers
        generation = client.request("GET", "/info").json["current_generation"]
        for path in (f"/export/{generation}", f"/sync/{generation}/1/129"):
            reply = client.request("GET", path, accept_encoding="gzip, zstd")
            assert "content-encoding" not in reply.headers


def test_pipelined_requests_with_other_heads_are_told_apart(port: int) -> None:
    one = request(execute(LARGE.format(300)))
    packed = request(execute(LARGE.format(300)), head=b"Accept-Encoding: gzip\r\n")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        answers = Answers(raw)
        for sent, encoding in ((one, None), (packed, "gzip"), (one, None), (packed, "gzip")):
            raw.sendall(sent)
            _, fields = answers.head()
            assert fields.get("content-encoding") == encoding
            size = int(fields["content-length"])
            while len(answers._read) < size:
                answers._more()
            answers._read = answers._read[size:]


def test_a_preflight_allows_what_clients_send(port: int) -> None:
    with closing(Client(port)) as client:
        for path in ("/v3/pipeline", "/dump", "/beta/listen", "/v1/execute"):
            reply = client.request(
                "OPTIONS",
                path,
                origin="http://localhost:3000",
                access_control_request_headers="authorization,content-type",
                access_control_request_method="POST",
            )
            assert reply.status == 204
            assert reply.headers["access-control-allow-headers"] == "authorization,content-type"
            assert "GET" in reply.headers["access-control-allow-methods"]
            assert reply.headers["access-control-allow-origin"] == "*"
