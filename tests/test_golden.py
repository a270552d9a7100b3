"""What earlier versions wrote is read, opened and gone on with; and this one still writes the same bytes.

tests/golden/README.md says what the files are. Each folder there is one version's.
"""

from __future__ import annotations

import io
import json
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import goldens
import history
import pytest
from pagemodel import PageModel
from serving import serving

import nearlite
from nearlite import wire
from nearlite._native.applier import Applier
from nearlite.applications import PrimaryApp
from nearlite.logstate import boot_id
from nearlite.message import Answer
from nearlite.position import Position
from nearlite.primary import Primary
from nearlite.replica import Replica

VERSIONS = sorted(path.parent for path in goldens.FOLDER.glob("*/stated.json"))
LINEAGE = "00c0ffee"
ROWS = 29  # in the primary, 21 of them in the replica

every_version = pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)


def of(folder: Path, name: str) -> bytes:
    return (folder / "formats" / name).read_bytes()


# ---------------------------------------------------------------- formats


def test_the_bytes_are_those_of_the_latest_version() -> None:
    """A format that changes gets a number, and a folder of golden files of its own."""
    folder = VERSIONS[-1]
    made = goldens.encoded(folder)
    assert {path.name for path in (folder / "formats").iterdir()} == set(made)
    for name in made.keys() - goldens.PACKED:
        assert made[name] == of(folder, name), name


@every_version
@pytest.mark.parametrize("packed", [False, True])
def test_page_sets(folder: Path, packed: bool) -> None:
    old, new = goldens.moments(folder)
    model = PageModel()
    assert model.take([of(folder, "snapshot.zstd" if packed else "snapshot.raw")]) == len(old.pages)
    assert (model.at, model.hash) == (old.position, old.hash)
    model.take([of(folder, "changes.zstd" if packed else "changes.raw")])
    assert (model.at, model.hash) == (new.position, new.hash)
    assert tuple(model.pages[n] for n in range(1, model.size + 1)) == new.pages


@every_version
@pytest.mark.parametrize("name", ["changes.compact", "changes.packed", "changes.raw"])
def test_sets_are_applied(folder: Path, tmp_path: Path, name: str) -> None:
    old, new = goldens.moments(folder)
    data = of(folder, name)
    with closing(history.replica_of(old, tmp_path / "replica.db")) as applier:
        if wire.is_compact(data):
            told = wire.CompactSet(data, goldens.state_of(old))
            state = applier.compact(told.start, told.data, wait=5)
        else:
            whole = wire.WholeSet(data)
            state = applier.receive(whole.header, whole.data, wait=5)
        assert state is not None
        assert (state.position, state.hash) == (new.position, new.hash)
        assert applier.full_hash()[1] == new.hash
    assert tmp_path.joinpath("replica.db").stat().st_size == len(new.pages) * goldens.PAGE_SIZE


@every_version
def test_a_repair(folder: Path) -> None:
    old, new = goldens.moments(folder)
    for name, span in (("repair.ranges", 2), ("repair.pages", 0)):
        assert wire.RepairRequest.decode(of(folder, name)) == goldens.ask(old, new, span)
    found = wire.Differences.decode(of(folder, "repair.differences"), count=21)
    assert found.position == new.position
    assert found.differing() == [0, 4, 7, 16, 17]
    reader = wire.PageSetReader()
    events = list(reader.receive(of(folder, "repair.set")))
    assert reader.ended
    header, *chunks, _ = events
    assert isinstance(header, wire.Header)
    assert header.header.repair
    pages = dict(enumerate(new.pages, 1))
    for event in chunks:
        assert isinstance(event, wire.Chunk)
        with event.chunk as chunk:
            for index in range(chunk.count):
                number, _, page = chunk.page(index)
                assert pages[number] == page


@every_version
def test_answers_and_json(folder: Path) -> None:
    _, new = goldens.moments(folder)
    answer, nothing = of(folder, "sql.answer"), of(folder, "sql.nothing")
    assert nothing == wire.answer_prefix(goldens.JSON)
    assert answer == nothing + of(folder, "changes.raw")
    status = wire.Status.decode(of(folder, "status.json"))
    assert (status.position, status.hash, status.pages) == (new.position, new.hash, len(new.pages))
    assert (status.page_size, status.commit_ms, status.replicas) == (512, goldens.COMMIT_MS, 3)
    assert wire.decode_error(of(folder, "error.json")) == ("HISTORY_GONE", "that is long ago")


# ---------------------------------------------------------------- wire captures


def captured(folder: Path, name: str) -> tuple[Answer, bytes]:
    """An answer as a client reads it."""
    data = (folder / "wire" / f"{name}.answer").read_bytes()
    return read(io.BufferedReader(io.BytesIO(data)))  # type: ignore[arg-type]


def read(stream: io.BufferedReader) -> tuple[Answer, bytes]:
    answer = Answer(stream)
    body = bytearray()
    room = memoryview(bytearray(65536))
    while count := answer.readinto(room):
        body += room[:count]
    return answer, bytes(body)


def stated(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "stated.json").read_text())
    return found


@every_version
def test_answers_that_were_captured_are_read(folder: Path) -> None:
    for exchange in stated(folder):
        answer, body = captured(folder, exchange["name"])
        assert answer.status == exchange["status"]
        if answer.status >= 400:
            code, message = wire.decode_error(body)
            assert (code, bool(message)) == (exchange["code"], True)
        elif answer.headers["content-type"] == wire.ANSWER_TYPE:
            size = int.from_bytes(body[:4], "big")
            assert json.loads(body[4 : 4 + size])["results"]
            assert (len(body) > 4 + size) == (exchange["name"] == "sql")
    status = wire.Status.decode(captured(folder, "status")[1])
    assert f"{status.position.lineage:08x}" == LINEAGE
    assert len(json.loads(captured(folder, "pipeline")[1])["results"]) == 2


@every_version
def test_page_sets_that_were_captured_make_the_replica_of_that_day(
    folder: Path, tmp_path: Path
) -> None:
    model = PageModel()
    model.take([captured(folder, "snapshot")[1]])
    model.take([captured(folder, "changes")[1]])
    assert model.at is not None
    path = model.write(tmp_path / "replica.db")
    moment = history.Moment(
        model.at, model.page_size, tuple(model.pages[n] for n in range(1, model.size + 1))
    )
    path.unlink()
    with closing(history.replica_of(moment, path)) as applier:
        told = wire.CompactSet(captured(folder, "changes-compact")[1], applier.state())
        state = applier.compact(told.start, told.data, wait=5)
    with closing(Applier(str(replica_of_that_day(folder, tmp_path)))) as kept:
        now = kept.state()
    assert state is not None
    assert (state.position, state.hash) == (now.position, now.hash)
    assert captured(folder, "nothing-new")[0].headers["nearlite-position"] == str(now.position)


# ---------------------------------------------------------------- files


def replica_of_that_day(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder / "replica", tmp_path / "of that day")
    return tmp_path / "of that day" / "replica.db"


@contextmanager
def primary_of_that_day(folder: Path, tmp_path: Path, boot: str) -> Iterator[int]:
    """It was killed, then started again by this version; its port."""
    shutil.copytree(folder / "primary", tmp_path / "primary")
    path = tmp_path / "primary" / "primary.db"
    state = Path(f"{path}-nearlite") / "state.json"
    state.write_text(state.read_text().replace(goldens.BOOT_ID, boot))
    with serving(PrimaryApp(path, lambda: Primary.open(path))) as port:
        yield port


def kept(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return db.execute("SELECT i, a, n FROM t ORDER BY i").fetchall()


def expected(count: int) -> list[tuple[Any, ...]]:
    return [
        (i, f"changed {i}" if i % 3 == 0 and i <= 20 else f"row number {i}", i * i)
        for i in range(1, count + 1)
    ]


@every_version
@pytest.mark.parametrize("same_boot", [True, False], ids=["killed", "the system went down"])
def test_a_primary_goes_on_and_serves_a_replica_of_that_day(
    folder: Path, tmp_path: Path, same_boot: bool
) -> None:
    path = replica_of_that_day(folder, tmp_path)
    assert kept(path) == expected(21)
    boot = boot_id() if same_boot else goldens.BOOT_ID
    with primary_of_that_day(folder, tmp_path, boot) as port:
        with closing(Replica(str(path), f"http://127.0.0.1:{port}")) as replica:
            replica.open()
            before = replica.state().position
            result = replica.sync()
            assert f"{before.lineage:08x}" == f"{result.position.lineage:08x}" == LINEAGE
            assert (before.generation, result.position.generation) == (2, 3 if same_boot else 4)
            assert result.pages > 0
            assert not result.repaired
            state, found = replica._applier.full_hash()
            assert state.hash == found
            status = wire.Status.decode(replica.transport.request("GET", "nl/v1/status").read(999))
            assert (status.position, status.hash) == (state.position, state.hash)
        with closing(nearlite.connect(path, sync_url=f"http://127.0.0.1:{port}")) as con:
            con.execute("INSERT INTO t VALUES(30, 'row number 30', 900)")
            con.commit()
    assert kept(path) == kept(tmp_path / "primary" / "primary.db") == expected(30)


@every_version
def test_a_replica_of_that_day_is_written_by_nobody(folder: Path, tmp_path: Path) -> None:
    path = replica_of_that_day(folder, tmp_path)
    with (
        closing(sqlite3.connect(path)) as db,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        db.execute("DELETE FROM t")
    with closing(Applier(str(path))) as applier:
        state, found = applier.full_hash()
    assert state.hash == found
    assert state.position.generation == 2


@every_version
def test_requests_of_that_day_are_answered(folder: Path, tmp_path: Path) -> None:
    """By a primary that stands where that of the day stood."""
    with primary_of_that_day(folder, tmp_path, boot_id()) as port:
        for exchange in stated(folder):
            data = (folder / "wire" / f"{exchange['name']}.request").read_bytes()
            with socket.create_connection(("127.0.0.1", port), 20) as sock:
                sock.sendall(data)
                with sock.makefile("rb") as stream:
                    answer, body = read(stream)  # type: ignore[arg-type]
            if exchange["name"] == "nothing-new":
                assert answer.status == 200  # there is something by now
            else:
                assert answer.status == exchange["status"], exchange["name"]
            if answer.status >= 400:
                assert wire.decode_error(body)[0] == exchange["code"]
                continue
            then, _ = captured(folder, exchange["name"])
            assert answer.headers["content-type"] == then.headers.get(
                "content-type", wire.PAGE_SET_TYPE
            )
            if exchange["name"] == "changes":
                check_set(folder, body)


def check_set(folder: Path, body: bytes) -> None:
    """It leads on from the snapshot of that day."""
    model = PageModel()
    model.take([captured(folder, "snapshot")[1]])
    model.take([body])
    assert model.at is not None
    assert model.at > Position.parse(f"{LINEAGE}.00000003.00000000")
