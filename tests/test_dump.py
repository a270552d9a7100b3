"""``GET /dump``, read by stock SQLite."""

from __future__ import annotations

import gzip
import http.client
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zstandard
from serving import Client, app_of, execute, serving

import nearlite
from nearlite import dumping

SCHEMA = """
CREATE TABLE plain(a, b);
INSERT INTO plain VALUES (1, 'one'), (NULL, ''), (-9223372036854775808, 9223372036854775807);
INSERT INTO plain VALUES (1.5, -0.0), (9e999, -9e999), (1e308, 5e-324), (0.1, 1e15);
INSERT INTO plain VALUES (x'', x'00ff27'), ('it''s "quoted"', 'line' || char(10) || 'end' || char(13)),
  ('NUL' || char(0) || 'inside', char(0)), ('héllo 😀', 'a;b--c/*d*/');
INSERT INTO plain VALUES (CAST(x'ff80' AS TEXT), 'bad utf-8');
CREATE TABLE "odd ""name'" ("a b" INTEGER PRIMARY KEY, "select" TEXT DEFAULT 'x''y', [c]);
INSERT INTO "odd ""name'" VALUES (7, 'seven', 7), (3, NULL, 3);
CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT, b);
INSERT INTO counted(b) VALUES ('x'), ('y');
DELETE FROM counted WHERE id = 2;
CREATE TABLE noid(k TEXT PRIMARY KEY, v) WITHOUT ROWID;
INSERT INTO noid VALUES ('a', 1), ('b', x'01');
CREATE TABLE made(a INTEGER, twice AS (a * 2), stored TEXT AS (a || '!') STORED, last);
INSERT INTO made(a, last) VALUES (21, 'end');
CREATE TABLE strict_one(a INT, b ANY) STRICT;
INSERT INTO strict_one VALUES (1, 'any'), (2, x'00');
CREATE TABLE parent(id INTEGER PRIMARY KEY);
CREATE TABLE child(p REFERENCES parent(id));
INSERT INTO child VALUES (99);
CREATE VIRTUAL TABLE words USING fts5(text);
INSERT INTO words VALUES ('a text to find'), ('another');
CREATE INDEX i ON plain(b) WHERE b IS NOT NULL;
CREATE VIEW v AS SELECT a FROM plain;
CREATE TRIGGER t AFTER INSERT ON parent BEGIN INSERT INTO child VALUES (new.id); END;
CREATE TABLE hidden_rowids(rowid, x);
INSERT INTO hidden_rowids(_rowid_, rowid, x) VALUES (40, 'a', 1), (50, 'b', 2);
INSERT INTO plain(rowid, a) VALUES (1000, 'far away');
PRAGMA user_version = 42;
PRAGMA application_id = 7;
"""
NAMES = ["plain", '"odd ""name\'"', "counted", "noid", "made", "strict_one", "child", "words"]
NAMES += ["sqlite_sequence", "hidden_rowids"]

READERS = ["module", *(["shell"] if shutil.which("sqlite3") else [])]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.db"


@pytest.fixture
def client(path: Path) -> Iterator[Client]:
    with closing(sqlite3.connect(path)) as con:
        con.executescript(SCHEMA)
    with serving(app_of(path, durability="normal")) as port, closing(Client(port)) as client:
        yield client


def contents(path: Path, *, rowids: bool = False) -> dict[str, object]:
    """Everything in a database, as stock SQLite reads it."""
    with closing(sqlite3.connect(path)) as con:
        con.text_factory = bytes
        found: dict[str, object] = {
            "schema": sorted(con.execute("SELECT type, name, sql FROM sqlite_schema")),
            "numbers": [
                con.execute(f"PRAGMA {name}").fetchone()
                for name in ("user_version", "application_id")
            ],
        }
        for name in NAMES:
            types = ", ".join(
                f"typeof({column}), {column}"
                for column in [
                    '"' + row[1].decode().replace('"', '""') + '"'
                    for row in con.execute(f"PRAGMA table_xinfo({name})")
                ]
                if column not in ('"words"', '"rank"')
            )
            found[name] = con.execute(f"SELECT {types} FROM {name} ORDER BY 1, 2").fetchall()
        if rowids:
            found["ids"] = [
                con.execute("SELECT rowid FROM plain ORDER BY 1").fetchall(),
                con.execute("SELECT oid FROM hidden_rowids ORDER BY 1").fetchall(),
            ]
        return found


def restored(text: bytes, path: Path, how: str) -> Path:
    """A database that an SQL text was read into."""
    if how == "shell":
        done = subprocess.run(
            ["sqlite3", path], input=text, capture_output=True, timeout=60, check=True
        )
        assert done.stderr == b""
    else:
        with closing(sqlite3.connect(path)) as con:
            con.executescript(text.decode())
    return path


@pytest.mark.parametrize("rowids", [False, True])
@pytest.mark.parametrize("how", READERS)
def test_a_dump_is_read_into_an_equal_database(
    client: Client, path: Path, tmp_path: Path, how: str, rowids: bool
) -> None:
    if how == "module":  # takes text, and so none that is no UTF-8
        client.run("DELETE FROM plain WHERE b = 'bad utf-8'")
    reply = client.request("GET", "/dump" + ("?preserve_row_ids=true" if rowids else ""))
    assert (reply.status, reply.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    copy = restored(reply.body, tmp_path / "copy.db", how)
    assert contents(copy, rowids=rowids) == contents(path, rowids=rowids)
    with closing(sqlite3.connect(copy)) as con:
        assert con.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = con.execute("SELECT rowid FROM words WHERE words MATCH 'find'").fetchall()
        assert found == [(1,)]


def test_dumps_are_compressed_when_that_is_accepted(client: Client) -> None:
    plain = client.request("GET", "/dump").body
    packed = client.request("GET", "/dump", accept_encoding="gzip")
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain
    packed = client.request("GET", "/dump", accept_encoding="zstd, gzip")
    assert packed.headers["content-encoding"] == "zstd"
    reader = zstandard.ZstdDecompressor().decompressobj()
    assert reader.decompress(packed.body) == plain
    assert reader.eof


def test_it_is_one_state_however_long_it_takes(client: Client, path: Path) -> None:
    client.run("CREATE TABLE big(a)", "CREATE TABLE zz(a)", "INSERT INTO zz VALUES ('before')")
    client.run(
        "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) "
        "INSERT INTO big SELECT hex(zeroblob(50000)) FROM n"
    )
    raw = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    raw.request("GET", "/dump")
    answer = raw.getresponse()
    text = answer.read(100_000)  # the rest is still to be read from the database
    assert client.run("UPDATE zz SET a = 'after'")[0]["affected_row_count"] == 1
    text += answer.read()
    raw.close()
    assert b"'before'" in text
    assert b"'after'" not in text
    assert text.endswith(b"COMMIT;\n")
    assert b"'after'" in client.request("GET", "/dump").body


def test_what_is_asked_wrongly_is_told(client: Client) -> None:
    for method, target, status, code in (
        ("GET", "/dump?preserve_row_ids=perhaps", 400, "BAD_REQUEST"),
        ("POST", "/dump", 405, "METHOD_NOT_ALLOWED"),
        ("HEAD", "/dump", 405, None),
    ):
        reply = client.request(method, target)
        assert reply.status == status
        assert code is None or reply.json["code"] == code
    for value in ("false", "0", "1", "", "TRUE"):
        assert client.request("GET", f"/dump?preserve_row_ids={value}").status == 200


def test_a_token_is_asked_for(path: Path) -> None:
    with serving(app_of(path, auth_token="t")) as port:
        assert Client(port).request("GET", "/dump").status == 401
        assert Client(port, "t").request("GET", "/dump").status == 200


def test_a_client_that_takes_nothing_is_cut_off_and_its_connection_closed(
    client: Client, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dumping, "_AT_A_TIME", 1)
    with serving(app := app_of(path.with_name("other.db"), durability="normal")) as port:
        other = Client(port)
        other.run("CREATE TABLE big(a)")
        other.run(
            "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) "
            "INSERT INTO big SELECT hex(zeroblob(50000)) FROM n"
        )
        app._deadlines.seconds = 0.5
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.settimeout(20)
            raw.connect(("127.0.0.1", port))
            raw.sendall(b"GET /dump HTTP/1.1\r\nhost: x\r\n\r\n")
            raw.recv(1)  # it has begun
            reply = other.request("GET", "/dump")
            assert (reply.status, reply.json["code"]) == (503, "TOO_MANY_DUMPS")
            with pytest.raises(ConnectionError):
                while True:  # until the server has dropped it
                    raw.send(b"\r\n")
        while other.request("GET", "/dump").status != 200:  # its place is free again
            pass


def test_a_replica_that_serves_dumps_what_it_has(
    client: Client, path: Path, tmp_path: Path
) -> None:
    relay = nearlite.asgi(
        tmp_path / "relay.db", upstream=f"http://127.0.0.1:{client.port}", sync_interval=0.05
    )
    with serving(relay) as port:
        assert Client(port).request("GET", "/dump").body == client.request("GET", "/dump").body


def test_a_sealed_database_is_dumped_in_clear(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "s.db", encryption_key="hex:" + "11" * 32)) as port:
        client = Client(port)
        client.pipeline(
            execute("CREATE TABLE t(a)"),
            execute("INSERT INTO t VALUES('secret')"),
            {"type": "close"},
        )
        assert b"'secret'" in client.request("GET", "/dump").body
