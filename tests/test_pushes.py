"""Frames that libSQL's clients push become ours under the same numbers, or nothing changes."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sealing
from hosting import many
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from offline import HEADER, PAGE, STEP, Offline, frame, last, served, told
from serving import Client, app_of, execute, serving
from test_listen import Listening
from test_primary import bootstrap, follow
from test_server_hooks import Seen

from nearlite import errors, pushes
from nearlite._native._lib import FormatError, TooBigError, UnsoundError
from nearlite.access import OneToken
from nearlite.applications import PrimaryApp
from nearlite.limits import Limits
from nearlite.primary import Primary
from nearlite.pulls import End
from nearlite.pushes import HeldFullError, Pushed
from nearlite.streams import EndingError

EITHER = True
CREATE = "CREATE TABLE t(a INTEGER PRIMARY KEY, b)"
FILL = (
    "INSERT INTO t(b) WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {})"
    " SELECT randomblob({}) FROM n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.db"


@pytest.fixture
def primary(path: Path) -> Iterator[Primary]:
    with Primary.open(path, durability="normal") as opened:
        yield opened


@pytest.fixture
def offline(primary: Primary, tmp_path: Path) -> Iterator[Offline]:
    """A client of a primary with a table, whose generation has had no frame."""
    run(primary, CREATE, FILL.format(20, 500))
    primary.roll()
    with Offline.of(primary, tmp_path / "client.db") as made:
        yield made


def run(primary: Primary, *statements: str) -> None:
    with closing(primary.connect()) as database:
        for statement in statements:
            database.exec(statement)
    primary.after_commit()


def rows(path: Path, sql: str) -> list[Any]:
    with closing(sealing.reader(path)) as connection:
        return [tuple(row) for row in connection.execute(sql).fetchall()]


def equal(primary: Primary, offline: Offline) -> None:
    """Frame N of the client is frame N of the generation, and the database is what the client has."""
    assert [told(one) for one in served(primary, offline.generation)] == [
        told(one) for one in offline.frames
    ]
    everything = "SELECT * FROM t ORDER BY a"
    assert rows(Path(primary.path), everything) == offline.rows(everything)
    assert primary.verify() == (primary.state().hash, 0)


# ---------------------------------------------------------------- what is taken


STATEMENTS = (
    FILL.format(7, 900),
    FILL.format(60, 3000),
    "UPDATE t SET b = randomblob(200) WHERE a % 3 = 0",
    "DELETE FROM t WHERE a % 5 = 1",
    "DELETE FROM t",
    "CREATE INDEX IF NOT EXISTS i ON t(b)",
    "DROP INDEX IF EXISTS i",
    "CREATE TABLE IF NOT EXISTS u(x UNIQUE, y)",
    "INSERT OR REPLACE INTO t VALUES(3, zeroblob(20000))",
    "BEGIN",
    "COMMIT",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "PRAGMA cache_size=1",
    "PRAGMA cache_size=-2000",
    "VACUUM",
    "PRAGMA user_version=7",
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=12),
    batch=st.sampled_from((1, 2, 7, 128, 1000)),
)
def test_any_history_of_a_stock_sqlite_arrives_frame_by_frame(
    tmp_path_factory: pytest.TempPathFactory, history: list[str], batch: int
) -> None:
    folder = tmp_path_factory.mktemp("push")
    with Primary.open(folder / "data.db", durability="normal") as primary:
        run(primary, CREATE, FILL.format(20, 500))
        primary.roll()
        with Offline.of(primary, folder / "client.db") as offline:
            model = bootstrap(primary)
            for statement in history:
                try:
                    offline.run(statement)
                except sqlite3.OperationalError:  # there is no such transaction
                    continue
                if not offline.database.in_transaction:
                    assert offline.push(primary, batch=batch).taken
            while offline.database.in_transaction:
                offline.run("COMMIT")
            assert offline.push(primary, batch=batch).taken
            equal(primary, offline)
            follow(primary, model)
            assert model.hash == primary.state().hash


def test_a_large_transaction_is_held_until_its_end(primary: Primary, offline: Offline) -> None:
    """One that SQLite wrote before its end: nobody sees anything of it, and nobody is kept from writing."""
    offline.run("PRAGMA cache_size=1", "BEGIN", FILL.format(3000, 900), "COMMIT")
    frames = offline.frames
    assert len(frames) > 700
    before = primary.state()
    first = primary.pushes.push(offline.generation, 1, b"".join(frames[:300]), None)
    assert (first.taken, first.frame) == (True, 300)
    assert first.baton is not None
    assert primary.state() == before
    again = primary.pushes.push(offline.generation, 1, b"".join(frames[:300]), first.baton)
    assert again == first  # the answer was lost
    second = primary.pushes.push(offline.generation, 301, b"".join(frames[300:301]), first.baton)
    assert (second.taken, second.frame) == (True, 301)
    offline.done = 301
    rest = b"".join(frames[301:])
    pushed = primary.pushes.push(offline.generation, 302, rest, second.baton)
    assert pushed == Pushed(True, len(frames))
    primary.after_commit()
    assert not primary.pushes.waiting
    equal(primary, offline)


def test_who_writes_meanwhile_makes_the_rest_a_conflict(primary: Primary, offline: Offline) -> None:
    offline.run(FILL.format(100, 3000))
    frames = offline.frames
    first = primary.pushes.push(offline.generation, 1, b"".join(frames[:50]), None)
    assert first.frame == 50
    run(primary, "INSERT INTO t(b) VALUES('ours')")
    ours = primary.state()
    rest = b"".join(frames[50:])
    pushed = primary.pushes.push(offline.generation, 51, rest, first.baton)
    assert (pushed.taken, pushed.frame) == (False, ours.position.frame)
    assert primary.state() == ours
    assert not primary.pushes.waiting


def test_without_its_baton_a_client_begins_at_what_was_committed(
    primary: Primary, offline: Offline
) -> None:
    offline.run("INSERT INTO t(b) VALUES(1)")
    committed = len(offline.frames)
    offline.run(FILL.format(100, 3000))
    frames = offline.frames
    first = primary.pushes.push(offline.generation, 1, b"".join(frames[:50]), None)
    assert (first.frame, first.baton is None) == (50, False)
    for baton in (None, "x" * 24):
        pushed = primary.pushes.push(offline.generation, 51, b"".join(frames[50:]), baton)
        assert pushed == Pushed(True, committed)
    offline.done = committed
    assert offline.push(primary).taken
    equal(primary, offline)


def test_what_is_held_is_bounded(
    primary: Primary, offline: Offline, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(primary.pushes, "_clock", lambda: now[0])
    offline.run(FILL.format(100, 3000))
    some = b"".join(offline.frames[:50])
    batons = []
    for _ in range(pushes.HELD + 1):
        batons.append(primary.pushes.push(offline.generation, 1, some, None).baton)
        now[0] += 1
    assert len(set(batons)) == len(batons)
    assert list(primary.pushes._held) == batons[1:]
    now[0] += pushes.HELD_SECONDS - 2
    primary.pushes.expire()
    assert list(primary.pushes._held) == batons[-1:]
    monkeypatch.setattr(pushes, "HELD_BYTES", 2 * len(some) - 1)
    monkeypatch.setattr(pushes, "HELD_DATABASES", 1)
    before = primary.state()
    with pytest.raises(HeldFullError, match="nothing was changed"):
        primary.pushes.push(offline.generation, 1, some, None)
    assert primary.state() == before
    primary.pushes.stop()
    assert not primary.pushes.waiting


def test_frames_that_are_there_already_are_compared(primary: Primary, offline: Offline) -> None:
    offline.run("INSERT INTO t(b) VALUES(1)", "INSERT INTO t(b) VALUES(randomblob(9000))")
    assert offline.push(primary).taken
    frames, generation = offline.frames, offline.generation
    before = primary.state()
    for first, some in ((1, frames), (2, frames[1:2]), (1, frames[:1])):
        pushed = primary.pushes.push(generation, first, b"".join(some), None)
        assert pushed == Pushed(True, first + len(some) - 1)
    for at, byte in ((3, 3), (7, 3), (HEADER + 4000, 255)):  # page number, commit size, page
        other = bytearray(frames[-1])
        other[at] ^= byte
        pushed = primary.pushes.push(generation, len(frames), bytes(other), None)
        assert pushed == Pushed(False, len(frames))
    salted = bytearray(frames[0])
    salted[8:24] = bytes(16)  # salts and checksums are each WAL's own
    assert primary.pushes.push(generation, 1, bytes(salted), None).taken
    assert primary.state() == before
    offline.run("INSERT INTO t(b) VALUES(2)")
    offline.done = 0  # it crashed before it could note what was taken
    assert offline.push(primary).taken
    equal(primary, offline)


def test_a_push_from_beyond_is_sent_back(primary: Primary, offline: Offline) -> None:
    offline.run("INSERT INTO t(b) VALUES(1)", "INSERT INTO t(b) VALUES(2)")
    frames = b"".join(offline.frames)
    assert primary.pushes.push(offline.generation, 2, frames, None) == Pushed(True, 0)
    assert primary.pushes.push(offline.generation, 9**9, frames, None) == Pushed(True, 0)


def test_both_have_written(primary: Primary, offline: Offline) -> None:
    offline.run("INSERT INTO t(b) VALUES('theirs')")
    run(primary, "INSERT INTO t(b) VALUES('ours')")
    before = primary.state()
    pushed = offline.push(primary)
    assert (pushed.taken, pushed.frame) == (False, before.position.frame)
    assert primary.state() == before


def test_connections_notice_a_schema_that_was_pushed(primary: Primary, offline: Offline) -> None:
    with closing(primary.connect()) as database:
        statement = database.prepare("SELECT * FROM t WHERE a = 1")
        assert len(statement.columns) == 2
        database.exec("SELECT * FROM t")
        offline.run("ALTER TABLE t ADD COLUMN c DEFAULT 'new'", "CREATE TABLE u AS SELECT 5 AS x")
        assert offline.push(primary).taken
        database.exec("INSERT INTO t(b, c) SELECT x, 'more' FROM u")
    primary.after_commit()
    assert rows(Path(primary.path), "SELECT b, c FROM t ORDER BY a DESC LIMIT 2")[0] == (5, "more")


# ---------------------------------------------------------------- generations that have ended


def test_a_client_that_was_away_goes_on_in_its_generation(path: Path, tmp_path: Path) -> None:
    """The primary has ended it, more than once, and restarted; the client's frames still continue what it has."""
    with Primary.open(path, durability="normal") as primary:
        run(primary, CREATE)
        primary.roll()
        offline = Offline.of(primary, tmp_path / "client.db")
        offline.run("INSERT INTO t(b) VALUES('first')")
        assert offline.push(primary).taken
    with offline, Primary.open(path, durability="normal") as primary:
        assert primary.state().position.generation == offline.generation + 1
        other = Offline.of(primary, tmp_path / "other.db")
        own = len(offline.frames)
        offline.run(FILL.format(200, 3000))
        assert offline.push(primary).taken
        assert primary.roll()
        offline.run("INSERT INTO t(b) VALUES('third')")
        assert offline.push(primary).taken
        pulled = primary.pulls.frames(offline.generation, len(offline.frames) + 1, 128)
        assert pulled == End(
            offline.generation, len(offline.frames)
        )  # nothing new, it stays where it is
        run(primary, "INSERT INTO t(b) VALUES('ours')")
        frames = primary.pulls.frames(offline.generation, len(offline.frames) + 1, 128)
        assert isinstance(frames, bytes)
        ours = served(primary, primary.state().position.generation)
        assert [told(frames[at : at + STEP]) for at in range(0, len(frames), STEP)] == [
            told(one) for one in ours[-len(frames) // STEP :]
        ]
        # Whoever only pulls goes from one generation to the next.
        end = primary.pulls.frames(offline.generation, own + 1, 128)
        assert end == End(primary.state().position.generation, len(ours))
        with other:
            other.run("INSERT INTO t(b) VALUES('theirs')")
            assert not other.push(primary).taken
        offline.run("DELETE FROM t")
        assert not offline.push(primary).taken
    with Primary.open(path, durability="normal") as primary:
        assert isinstance(primary.pulls.frames(offline.generation, own + 2, 128), bytes)
        with pytest.raises(errors.PrimaryRestoredError):
            primary.pulls.frames(offline.generation, 9**6, 128)


def test_frames_are_not_read_on_for_who_was_never_told(primary: Primary, offline: Offline) -> None:
    """A replica that is ahead of the end of its generation has what the primary lost."""
    run(primary, "INSERT INTO t(b) VALUES(1)")
    own = primary.state().position.frame
    assert primary.roll()
    run(primary, FILL.format(50, 3000))
    with pytest.raises(errors.PrimaryRestoredError, match="restored"):
        primary.pulls.frames(offline.generation, own + 2, 128)
    assert primary.pulls.frames(offline.generation, own + 1, 128) == End(
        offline.generation + 1, primary.state().position.frame
    )
    pushed = primary.pushes.push(offline.generation, own + 2, frame(1, 1, bytes(PAGE)), None)
    assert pushed == Pushed(True, own)


def test_generations_that_are_not_known(primary: Primary, offline: Offline) -> None:
    offline.run("INSERT INTO t(b) VALUES(1)")
    some = b"".join(offline.frames)
    with pytest.raises(errors.PrimaryRestoredError):
        primary.pushes.push(offline.generation + 1, 1, some, None)
    with pytest.raises(errors.HistoryGoneError):
        primary.pushes.push(9**5 - 9**5, 1, some, None)


# ---------------------------------------------------------------- what is refused


def patched(page: bytes, at: int, data: bytes) -> bytes:
    return page[:at] + data + page[at + len(data) :]


def page1(at: int, data: bytes) -> Callable[[list[bytes]], list[bytes]]:
    """With other bytes in page 1."""

    def change(frames: list[bytes]) -> list[bytes]:
        made = list(frames)
        found = last(made, 1)
        made[found] = patched(made[found], HEADER + at, data)
        return made

    return change


def head(at: int, value: int, index: int = -1) -> Callable[[list[bytes]], list[bytes]]:
    """With another number in the header of a frame."""

    def change(frames: list[bytes]) -> list[bytes]:
        made = list(frames)
        made[index] = patched(made[index], at, value.to_bytes(4, "big"))
        return made

    return change


def torn(frames: list[bytes]) -> list[bytes]:
    """A b-tree page whose cells point anywhere."""
    made = list(frames)
    at = max(i for i, one in enumerate(made[:-1]) if one[HEADER] in (2, 5, 10, 13))
    made[at] = patched(made[at], HEADER + 8, bytes(range(1, 99)))
    return made


def lost(frames: list[bytes]) -> list[bytes]:
    """Without a page by which the database grows."""
    return [one for one in frames if int.from_bytes(one[:4], "big") != 12]


def twice(frames: list[bytes]) -> list[bytes]:
    return [*frames[:-1], frames[-2], frames[-1]]


MALFORMED = {
    "page 0": head(0, 0, 0),
    "page beyond all": head(0, 2**32 - 1, 0),
    "the lock-byte page": head(0, (1 << 30) // PAGE + 1, 0),
    "a page twice": twice,
    "a missing page": lost,
    "a size beyond what there is": head(4, 10**6),
    "another size than page 1 says": head(4, 2),
    "no database": page1(0, b"SQLite format 2\0"),
    "another page size": page1(16, b"\x20\x00"),
    "a rollback journal": page1(18, b"\x01\x01"),
    "a replica": page1(18, b"\x03"),
    "a future file": page1(18, b"\x02\x03"),
    "reserved bytes": page1(20, b"\x10"),
    "other fractions": page1(21, b"\x41"),
    "an older change counter": page1(24, b"\x80\0\0\0"),
    "an unknown schema format": page1(44, b"\0\0\0\x05"),
    "another encoding": page1(56, b"\0\0\0\x02"),
    "an unknown encoding": page1(56, b"\0\0\0\x09"),
    "bytes of a replica's position": page1(80, b"\1"),
}
UNSOUND = {
    "a torn page": torn,
    "a schema version that went back": page1(40, b"\0\0\0\0"),
    "a free list of nothing": page1(32, b"\0\0\0\x09\0\0\0\x09"),
    "an odd b-tree page 1": page1(100, b"\xff"),
}


@pytest.mark.parametrize(
    ("change", "kind"),
    [pytest.param(change, FormatError, id=name) for name, change in MALFORMED.items()]
    + [pytest.param(change, UnsoundError, id=name) for name, change in UNSOUND.items()],
)
def test_what_is_no_sound_push_changes_nothing(
    primary: Primary, offline: Offline, change: Callable[..., Any], kind: type[Exception]
) -> None:
    offline.run("INSERT INTO t(b) VALUES(0)")
    assert offline.push(primary).taken
    done = offline.done
    # Two transactions, so that there are commit marks on the way.
    offline.run("INSERT INTO t(b) VALUES(1)", FILL.format(30, 2000))
    good = offline.frames[done:]
    bad = change(good)
    assert bad != good
    before, wal = primary.state(), served(primary, offline.generation)
    with pytest.raises(kind):
        primary.pushes.push(offline.generation, done + 1, b"".join(bad), None)
    primary.after_commit()
    assert primary.state() == before
    assert primary.verify() == (before.hash, 0)
    assert served(primary, offline.generation) == wal
    assert rows(Path(primary.path), "SELECT max(b) FROM t WHERE typeof(b) = 'integer'") == [(0,)]
    assert offline.push(primary).taken  # the good ones
    equal(primary, offline)


def test_a_schema_that_changes_in_silence_is_refused(primary: Primary, offline: Offline) -> None:
    """Connections that know the schema look at nothing but its version (rule B7)."""
    offline.run("CREATE TABLE u(x)", "CREATE TABLE v(x)")
    assert offline.push(primary).taken
    offline.run(
        "PRAGMA writable_schema=ON",
        "UPDATE sqlite_schema SET rootpage = (SELECT sum(rootpage) FROM sqlite_schema WHERE name IN ('u', 'v'))"
        " - rootpage WHERE name IN ('u', 'v')",
    )
    before = primary.state()
    with pytest.raises(UnsoundError, match="its version does not go on"):
        offline.push(primary)
    assert primary.state() == before


def test_a_check_that_takes_too_long_is_given_up(
    primary: Primary, offline: Offline, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline.run(FILL.format(5000, 10))
    before = primary.state()
    with monkeypatch.context() as patch:
        patch.setattr(pushes, "CHECK_SECONDS", 0.0)
        with pytest.raises(TooBigError, match="longer than there is time"):
            offline.push(primary)
    assert primary.state() == before
    primary.pushes.stop()
    with pytest.raises(EndingError):
        offline.push(primary)
    assert primary.state() == before


def test_another_program_has_the_write_lock(
    primary: Primary, offline: Offline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushes, "LOCK_SECONDS", 0.01)
    offline.run("INSERT INTO t(b) VALUES(1)")
    with closing(primary.connect()) as database:
        database.exec("BEGIN IMMEDIATE")
        with pytest.raises(errors.OperationalError) as raised:
            offline.push(primary)
        assert raised.value.sqlite_errorcode & 0xFF == 5
        database.exec("ROLLBACK")
    assert offline.push(primary).taken
    equal(primary, offline)


# ---------------------------------------------------------------- over HTTP


@pytest.fixture
def port(path: Path) -> Iterator[int]:
    options = {"durability": "normal", "auth_token": "T", "allow_push": True}
    with serving(app_of(path, **options)) as port:
        Client(port, "T").pipeline(execute(CREATE))
        yield port


def base(client: Client, folder: Path) -> Offline:
    """With the frames that there are already."""
    generation = client.request("GET", "/info").json["current_generation"]
    made = Offline(
        folder / "client.db", client.request("GET", f"/export/{generation}").body, generation
    )
    made.run(CREATE)  # as the primary did it
    made.done = len(made.frames)
    return made


def post(client: Client, target: str, body: bytes) -> tuple[int, Any]:
    reply = client.request("POST", target, body)
    return reply.status, reply.json


def test_answers_are_those_that_clients_expect(port: int, tmp_path: Path, path: Path) -> None:
    client = Client(port, "T")
    with base(client, tmp_path) as offline:
        done = offline.done
        offline.run(FILL.format(100, 3000))
        frames = offline.frames
        middle, end = done + 40, len(frames)
        target = f"/sync/1/{done + 1}/{middle + 1}"
        status, said = post(client, target, b"".join(frames[done:middle]))
        baton = said.pop("baton")
        assert (status, said) == (200, {"status": "ok", "generation": 1, "max_frame_no": middle})
        assert rows(path, "SELECT count(*) FROM t") == [(0,)]
        target = f"/sync/1/{middle + 1}/{end + 1}/{baton}"
        status, said = post(client, target, b"".join(frames[middle:]))
        ok = {"status": "ok", "generation": 1, "max_frame_no": end, "baton": None}
        assert (status, said) == (200, ok)
        assert client.rows("SELECT count(*) FROM t") == [[100]]
        offline.run("DELETE FROM t")
        client.run("INSERT INTO t(b) VALUES(1)")
        some = offline.frames[end:]
        status, said = post(client, f"/sync/1/{end + 1}/{end + 1 + len(some)}", b"".join(some))
        assert (status, said["status"], said["generation"]) == (200, "conflict", 1)


@pytest.mark.parametrize(
    ("target", "size", "status", "code"),
    [
        ("/sync/1/3/4", STEP - 1, 400, "BAD_REQUEST"),
        ("/sync/1/3/4", STEP + 1, 400, "BAD_REQUEST"),
        ("/sync/1/3/5", STEP, 400, "BAD_REQUEST"),
        ("/sync/1/3/4", 24 + 8192, 400, "BAD_REQUEST"),
        ("/sync/1/3/4", 0, 400, "BAD_REQUEST"),
        ("/sync/1/3/4", STEP, 400, "PUSH_MALFORMED"),
        ("/sync/1/3/3", 0, 404, "NOT_FOUND"),
        ("/sync/1/0/1", STEP, 404, "NOT_FOUND"),
        ("/sync/0/1/2", STEP, 404, "NOT_FOUND"),
        ("/sync/1/1/4098", STEP, 413, "REQUEST_TOO_LARGE"),
        ("/sync/9/1/2", STEP, 409, "POSITION_AHEAD"),
    ],
)
def test_requests_that_are_wrong(port: int, target: str, size: int, status: int, code: str) -> None:
    client = Client(port, "T")
    before = client.request("GET", "/nl/v1/status").json
    # A commit frame of page 0.
    body = (bytes(4) + b"\0\0\0\1" + bytes(8216))[:size]
    if (target, size, code) != ("/sync/1/3/4", STEP, "PUSH_MALFORMED"):
        assert post(client, target, body)[1]["code"] == code
    first = before["position"].rpartition(".")[2]
    if code == "PUSH_MALFORMED":
        target = f"/sync/1/{int(first, 16) + 1}/{int(first, 16) + 2}"
    found, said = post(client, target, body)
    assert (found, said["code"]) == (status, code)
    after = client.request("GET", "/nl/v1/status").json
    assert (after["position"], after["hash"]) == (before["position"], before["hash"])


def test_a_length_is_judged_before_the_body_comes(port: int) -> None:
    client = Client(port, "T", whole=False)
    client.connection.putrequest("POST", "/sync/1/3/4")
    client.connection.putheader("authorization", "Bearer T")
    client.connection.putheader("content-length", str(STEP + 1))
    client.connection.endheaders()
    answer = client.connection.getresponse()
    assert (answer.status, json.loads(answer.read())["code"]) == (400, "BAD_REQUEST")


def test_a_transaction_that_is_open_keeps_a_push_waiting(path: Path, tmp_path: Path) -> None:
    """Not for ever: the client is told to come back, and does."""

    def opened() -> Primary:
        return Primary.open(path, durability="normal")

    app = PrimaryApp(
        path, opened, authority=OneToken("T", push=True), limits=Limits(wait_seconds=0.05)
    )
    with serving(app) as port:
        client = Client(port, "T")
        client.pipeline(execute(CREATE))
        with base(client, tmp_path) as offline:
            done = offline.done
            offline.run("INSERT INTO t(b) VALUES(1)")
            some = offline.frames[done:]
            target = f"/sync/1/{done + 1}/{done + 1 + len(some)}"
            begun = client.pipeline(execute("BEGIN IMMEDIATE"))
            reply = client.request("POST", target, b"".join(some))
            assert (reply.status, reply.json["code"]) == (503, "TRANSACTION_BUSY")
            assert reply.headers["retry-after"] == "1"
            client.pipeline(execute("ROLLBACK"), {"type": "close"}, baton=begun["baton"])
            assert post(client, target, b"".join(some))[1]["status"] == "ok"


def test_pushes_and_writes_of_others_take_turns(port: int, tmp_path: Path, path: Path) -> None:
    client = Client(port, "T")
    stop = threading.Event()
    outcomes: list[Any] = []

    def write() -> None:
        writer = Client(port, "T")
        while not stop.is_set():
            outcomes.extend(writer.run("UPDATE u SET x = x + 1"))

    with base(client, tmp_path) as offline:
        done = offline.done
        offline.run(*[f"INSERT INTO t(b) VALUES({number})" for number in range(30)])
        some = offline.frames[done:]
        target = f"/sync/1/{done + 1}/{done + 1 + len(some)}"
        client.run("CREATE TABLE u(x)", "INSERT INTO u VALUES(0)")
        threads = [threading.Thread(target=write) for _ in range(2)]
        for thread in threads:
            thread.start()
        told = [post(client, target, b"".join(some)) for _ in range(20)]
        stop.set()
        for thread in threads:
            thread.join()
        assert {(status, said["status"]) for status, said in told} == {(200, "conflict")}
        assert all(isinstance(one, dict) for one in outcomes)
        assert client.rows("SELECT x FROM u") == [[len(outcomes)]]


def test_pushing_is_a_permission_of_its_own(path: Path) -> None:
    with serving(app_of(path, durability="normal", auth_token="T")) as port:
        Client(port, "T").pipeline(execute(CREATE))
        before = Client(port, "T").request("GET", "/nl/v1/status").json
        status, said = post(Client(port, "T"), "/sync/1/3/4", bytes(STEP))
        assert (status, said["code"]) == (403, "FORBIDDEN")
        assert "does not allow pages to be pushed" in said["message"]
        assert Client(port, "T").request("GET", "/nl/v1/status").json["hash"] == before["hash"]


def test_what_is_unsound_is_told(port: int, tmp_path: Path) -> None:
    client = Client(port, "T")
    with base(client, tmp_path) as offline:
        done = offline.done
        offline.run(FILL.format(30, 2000))
        bad = torn(offline.frames[done:])
        status, said = post(client, f"/sync/1/{done + 1}/{done + 1 + len(bad)}", b"".join(bad))
        assert (status, said["code"]) == (422, "PUSH_UNSOUND")
        assert "nothing was changed" in said["message"]


def test_live_replicas_are_woken(port: int, tmp_path: Path) -> None:
    import nearlite

    client = Client(port, "T")
    url = f"http://127.0.0.1:{port}"
    with (
        closing(
            nearlite.connect(
                tmp_path / "ours.db", sync_url=url, auth_token="T", sync_interval="live"
            )
        ) as ours,
        base(client, tmp_path) as offline,
    ):
        assert ours.execute("SELECT count(*) FROM t").fetchone() == (0,)
        done = offline.done
        offline.run(FILL.format(30, 2000))
        some = offline.frames[done:]
        status, _ = post(client, f"/sync/1/{done + 1}/{done + 1 + len(some)}", b"".join(some))
        assert status == 200
        position = client.request("GET", "/nl/v1/status").json["position"]
        ours.wait_for(position, timeout=10)
        assert ours.execute("SELECT count(*) FROM t").fetchone() == (30,)


def test_who_listens_is_told_of_a_push(port: int, tmp_path: Path) -> None:
    client = Client(port, "T")
    with (
        closing(Listening(port, "table=u", authorization="Bearer T")) as listening,
        base(client, tmp_path) as offline,
    ):
        done = offline.done
        assert listening.answer.status == 200
        offline.run(FILL.format(3, 20))
        some = offline.frames[done:]
        target = f"/sync/1/{done + 1}/{done + 1 + len(some)}"
        assert post(client, target, b"".join(some))[0] == 200
        assert listening.changes() == {"unknown": 1}
        assert post(client, target, b"".join(some))[0] == 200  # it is there already
        client.pipeline(execute("CREATE TABLE u(a)"))
        client.pipeline(execute("INSERT INTO u VALUES (1)"))
        assert listening.changes() == {"insert": 1}


def test_hooks_hear_of_what_was_committed_and_of_nothing_else(path: Path, tmp_path: Path) -> None:
    seen = Seen()
    app = app_of(path, durability="normal", allow_push=True, auth_token="T", hooks=seen)
    with serving(app) as port:
        client = Client(port, "T")
        client.pipeline(execute(CREATE))
        with base(client, tmp_path) as offline:
            done = offline.done
            offline.run(FILL.format(30, 2000))
            some = offline.frames[done:]
            target = f"/sync/1/{done + 1}/{done + 1 + len(some)}"
            bad = torn(some)
            del seen.commits[:]
            assert post(client, target, b"".join(bad))[0] == 422
            assert seen.commits == []
            assert post(client, target, b"".join(some))[0] == 200
            assert len(seen.commits) == 1
            assert post(client, target, b"".join(some))[0] == 200
            baton = client.pipeline(execute("BEGIN"), execute("DELETE FROM t"))["baton"]
            client.pipeline(execute("ROLLBACK"), {"type": "close"}, baton=baton)
        assert len(seen.commits) == 1
        client.pipeline(execute("DELETE FROM t"))
        assert len(seen.commits) == 2
        assert client.request("GET", "/nl/v1/status").json["position"] == seen.commits[-1]


def test_a_push_keeps_to_the_size_that_a_database_may_have(tmp_path: Path) -> None:
    with many(tmp_path / "many", allow_push=True, auth_token="T") as served:
        served.create("a")
        client = served.of("a", "T")
        client.pipeline(execute(CREATE))
        assert served.configure("a", max_db_size=40 * PAGE).status == 200
        generation = client.request("GET", "/info").json["current_generation"]
        copy = client.request("GET", f"/export/{generation}").body
        with Offline(tmp_path / "client.db", copy, generation) as offline:
            offline.run(FILL.format(20, 2000))
            less = offline.frames
            offline.run(FILL.format(60, 3000))
            more = offline.frames
            begin, done = f"/sync/{generation}/1/", 0
            before = client.request("GET", "/nl/v1/status").json
            status, said = post(client, f"{begin}{done + 1 + len(more)}", b"".join(more))
            assert (status, said["code"]) == (413, "DATABASE_TOO_LARGE")
            assert "nothing was changed" in said["message"]
            assert client.request("GET", "/nl/v1/status").json["hash"] == before["hash"]
            status, said = post(client, f"{begin}{done + 1 + len(less)}", b"".join(less))
            assert (status, said["status"]) == (200, "ok")
        assert client.rows("SELECT count(*) FROM t") == [[20]]
