"""Another key for a sealed database: under readers and writers, under kills, beside a log; and the old key opens nothing."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import pytest
import stack
from cryptography.exceptions import InvalidTag
from sealed_reader import SealedFile
from serving import Client, serving

import nearlite
from nearlite._native.applier import Applier
from nearlite._native.sealing import Block, Codec, Key
from nearlite.errors import (
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    TamperedError,
    WrongKeyError,
)
from nearlite.failing import apply_failed
from nearlite.primary import Primary
from nearlite.rekeying import is_done, rekey_file

OLD, NEW, THIRD = bytes(range(32)), bytes(range(1, 33)), bytes(range(2, 34))
PAGES = 300


def key(raw: bytes) -> Key:
    return Key.of_bytes(raw)


def made(path: Path, secret: bytes = OLD) -> str:
    """A database of some hundred pages, part of it in the log; what it holds."""
    con = nearlite.connect(path, encryption_key=secret, isolation_level=None)
    con.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
    con.executemany("INSERT INTO t(b) VALUES(?)", [("x" * 3000,) for _ in range(PAGES)])
    con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    con.execute("UPDATE t SET b = 'in the log' WHERE a % 10 = 0")
    con.execute("DELETE FROM t WHERE a % 7 = 0")
    con.close()
    return content(path, secret)


def content(path: Path, secret: bytes) -> str:
    with closing(nearlite.connect(path, encryption_key=secret)) as con:
        assert con.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (found,) = con.execute("SELECT group_concat(a || b, ',') FROM t").fetchone()
        return str(found)


def generations(path: Path) -> set[int]:
    """Of the data keys that the slots of a file were sealed with."""
    data = path.read_bytes()
    size = Block.look(data[:4096]).page_size + 32
    return {
        int.from_bytes(data[at + size - 4 : at + size - 2], "big")
        for at in range(4096, len(data), size)
    }


def is_changed(path: Path, old: bytes = OLD, new: bytes = NEW) -> None:
    """The new key alone opens it, and nothing in it is the old data key's."""
    with pytest.raises(WrongKeyError):
        nearlite.connect(path, encryption_key=old)
    block = Block.look(path.read_bytes()[:4096])
    assert (block.previous, generations(path)) == (0, {block.generation})
    data = path.read_bytes()
    for copy in (data[:2048] * 2, data[2048:4096] * 2):  # of the header block: both of them
        with pytest.raises(InvalidTag):
            SealedFile.of(copy, old)
        with pytest.raises(WrongKeyError):
            Codec.open(copy, key(old))  # neither of the locks
        assert SealedFile.of(copy, new).keys[block.generation] != bytes(32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.db"


def test_the_key_of_a_connection_is_changed(path: Path) -> None:
    before = made(path)
    with closing(nearlite.connect(path, encryption_key=OLD)) as con:
        con.rekey(NEW)
        con.execute("INSERT INTO t VALUES(NULL, 'after')")
        con.commit()
        assert con.execute("SELECT count(*) FROM t WHERE b = 'after'").fetchone() == (1,)
        con.execute("DELETE FROM t WHERE b = 'after'")
        con.commit()
        con.execute("ATTACH ? AS other", (str(path.with_name("other.db")),))
    is_changed(path)
    assert content(path, NEW) == before
    nearlite.connect(path.with_name("other.db"), encryption_key=NEW).close()


def test_it_can_be_changed_again_and_back(path: Path) -> None:
    before = made(path)
    con = nearlite.connect(path, encryption_key=OLD)
    for secret in (NEW, OLD, "a passphrase", NEW):
        con.rekey(Key.of_phrase(secret.encode(), cost=10) if isinstance(secret, str) else secret)
    con.close()
    is_changed(path)
    assert content(path, NEW) == before


def test_others_read_and_write_on(path: Path) -> None:
    """With the old key while it lasts; those of the same Key object also afterwards."""
    made(path)
    shared = key(OLD)
    with closing(nearlite.connect(path, encryption_key=OLD)) as con:
        con.executemany("INSERT INTO t(b) VALUES(?)", [("y" * 3000,) for _ in range(3000)])
        con.commit()
    stop = threading.Event()
    failures: list[Exception] = []
    counts = [0, 0]

    def read() -> None:
        with closing(nearlite.connect(path, encryption_key=shared)) as con:
            while not stop.is_set():
                try:
                    (n,) = con.execute("SELECT count(*) FROM t WHERE b <> ''").fetchone()
                    assert n > 3000
                    con.rollback()
                    counts[0] += 1
                except Exception as error:
                    failures.append(error)
                    return

    def write() -> None:
        with closing(
            nearlite.connect(path, encryption_key=shared, isolation_level=None, timeout=20)
        ) as con:
            while not stop.is_set():
                try:
                    con.execute("UPDATE t SET b = b || '' WHERE a % 100 = ?", (counts[1] % 100,))
                    counts[1] += 1
                except Exception as error:
                    failures.append(error)
                    return

    threads = [threading.Thread(target=work) for work in (read, read, write)]
    for thread in threads:
        thread.start()
    try:
        while min(counts) < 2 and not failures:
            pass
        with closing(nearlite.connect(path, encryption_key=shared)) as con:
            con.rekey(NEW)
        at = list(counts)
        while not failures and (counts[0] < at[0] + 2 or counts[1] < at[1] + 2):
            pass
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    is_changed(path)
    assert "y" in content(path, NEW)


def test_who_shares_the_key_has_the_new_one_before_the_old_one_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(path)
    shared, end = key(OLD), Applier.rekey_end
    with (
        closing(nearlite.connect(path, encryption_key=shared)) as con,
        closing(nearlite.connect(path, encryption_key=shared, isolation_level=None)) as other,
    ):

        def ended(self: Applier, new: Key, *, wait: float) -> None:
            end(self, new, wait=wait)
            other.execute("INSERT INTO t VALUES(NULL, 'at once')")

        monkeypatch.setattr(Applier, "rekey_end", ended)
        con.rekey(NEW)
    is_changed(path)
    assert content(path, NEW).endswith("at once")


def test_a_connection_with_the_old_key_is_told(path: Path) -> None:
    made(path)
    with closing(nearlite.connect(path, encryption_key=OLD)) as stale:
        stale.execute("SELECT * FROM t LIMIT 1").fetchall()
        rekey_file(path, key(OLD), key(NEW))
        for sql in ("SELECT sum(length(b)) FROM t", "INSERT INTO t VALUES(NULL, 1)"):
            with pytest.raises(WrongKeyError, match=r"a\.db: its key has been changed"):
                stale.execute(sql).fetchall()


def test_another_file_with_the_same_key_is_not_taken_for_a_changed_one(path: Path) -> None:
    """Written over a file that is open; its pages have another size."""
    from nearlite.resealing import encrypt_file

    other = path.with_name("other.db")
    for target, size in ((path, 512), (other, 65536)):
        plain = path.with_name(f"{size}.db")
        with closing(sqlite3.connect(plain)) as stock:
            stock.execute(f"PRAGMA page_size={size}")
            stock.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
            stock.executemany("INSERT INTO t(b) VALUES(?)", [("z" * 400,)] * 500)
            stock.commit()
        encrypt_file(plain, target, key(OLD))
    rekey_file(other, key(OLD), key(OLD))
    with closing(nearlite.connect(path, encryption_key=OLD, isolation_level=None)) as con:
        con.execute("SELECT * FROM t LIMIT 1").fetchall()
        with path.open("r+b") as file:
            file.write(other.read_bytes())
        with pytest.raises(TamperedError, match="another file has been put in its place"):
            con.execute("INSERT INTO t(b) VALUES(1)")
        with pytest.raises(TamperedError):
            con.execute("SELECT sum(length(b)) FROM t").fetchall()


def test_a_reader_that_stays_leaves_both_keys_and_it_goes_on_later(path: Path) -> None:
    before = made(path)
    with closing(nearlite.connect(path, encryption_key=OLD, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM t LIMIT 1").fetchall()
        with pytest.raises(OperationalError, match="Both keys open the file"):
            rekey_file(path, key(OLD), key(NEW), wait=0.1)
        assert reader.execute("SELECT count(*) FROM t").fetchone()[0] > 200
        assert content(path, OLD) == content(path, NEW) == before
        with pytest.raises(WrongKeyError, match="another change of its key"):
            rekey_file(path, key(OLD), key(THIRD))
        with pytest.raises(WrongKeyError):
            rekey_file(path, key(THIRD), key(NEW))
        reader.execute("COMMIT")
    assert not is_done(path, key(NEW))
    rekey_file(path, key(OLD), key(NEW))
    is_changed(path)
    assert rekey_file(path, key(OLD), key(NEW)) == 0  # it was done: nothing is to be done
    assert content(path, NEW) == before


def test_a_writer_that_stays_is_told_before_anything_is_changed(path: Path) -> None:
    before = made(path)
    with closing(nearlite.connect(path, encryption_key=OLD, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError, match="Only the old key opens the file"):
            rekey_file(path, key(OLD), key(NEW), wait=0.1)
        writer.execute("ROLLBACK")
    assert not opens(path, NEW)
    assert content(path, OLD) == before


def test_what_cannot_be_changed_is_refused(path: Path) -> None:
    for options in ({}, {"encryption_key": OLD}):
        with (
            closing(nearlite.connect(":memory:", **options)) as con,
            pytest.raises(NotSupportedError),
        ):
            con.rekey(NEW)
    for size in (512, 4096):  # shorter than a header block, and not
        plain = path.with_name(f"{size}.db")
        with closing(sqlite3.connect(plain)) as stock:
            stock.execute(f"PRAGMA page_size={size}")
            stock.execute("CREATE TABLE t(a)")
        with pytest.raises(WrongKeyError, match=r"\.db is not sealed"):
            rekey_file(plain, key(OLD), key(NEW))
    with closing(nearlite.connect(path.with_name("plain.db"))) as con:
        con.execute("CREATE TABLE t(a)")
        with pytest.raises(NotSupportedError, match="nearlite encrypt"):
            con.rekey(NEW)
    made(path)
    with closing(nearlite.connect(path, encryption_key=OLD, isolation_level=None)) as con:
        con.execute("BEGIN")
        with pytest.raises(ProgrammingError, match="inside a transaction"):
            con.rekey(NEW)
        con.execute("COMMIT")
        for bad in (b"short", ""):
            with pytest.raises(WrongKeyError):
                con.rekey(bad)
    content(path, OLD)


@pytest.mark.parametrize("size", [512, 65536])
def test_other_page_sizes(path: Path, size: int) -> None:
    with closing(sqlite3.connect(path.with_name("plain.db"))) as plain:
        plain.execute(f"PRAGMA page_size={size}")
        plain.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        plain.executemany("INSERT INTO t(b) VALUES(?)", [("z" * 900,) for _ in range(500)])
        plain.commit()
    from nearlite.resealing import encrypt_file

    encrypt_file(path.with_name("plain.db"), path, key(OLD))
    before = content(path, OLD)
    assert rekey_file(path, key(OLD), key(NEW)) > 3
    is_changed(path)
    assert content(path, NEW) == before


# ---------------------------------------------------------------- kills


def change(pipe: Pipe, path: str, point: str, after: int) -> None:
    from nearlite._native import faults

    if point:
        faults.arm(point, faults.KILL, after)
    pipe.send(rekey_file(Path(path), key(OLD), key(NEW)))


POINTS = [
    ("rekey.block", 0), ("rekey.block", 1), ("rekey.begun", 0), ("rekey.page", 0), ("rekey.page", 300),
    ("rekey.commit", 0), ("rekey.commit", 1), ("rekey.emptied", 0), ("rekey.emptied", 1),
    ("rekey.resealed", 0), ("rekey.block", 2), ("rekey.block", 3),
]  # fmt: skip


@pytest.mark.parametrize(("point", "after"), POINTS, ids=str)
def test_a_kill_anywhere_loses_nothing(path: Path, point: str, after: int) -> None:
    before = made(path)
    process = stack.Process(change, str(path), point, after)
    assert process.join() == -9
    opening = [secret for secret in (OLD, NEW) if opens(path, secret)]
    assert opening
    for secret in opening:
        assert content(path, secret) == before
    with closing(nearlite.connect(path, encryption_key=opening[0], isolation_level=None)) as con:
        con.execute("INSERT INTO t VALUES(NULL, 'in between')")
    again = stack.Process(change, str(path), "", 0)
    assert again.receive() >= 0
    assert again.join() == 0
    is_changed(path)
    assert content(path, NEW).endswith("in between")


def opens(path: Path, secret: bytes) -> bool:
    try:
        nearlite.connect(path, encryption_key=secret).close()
    except WrongKeyError:
        return False
    return True


def test_it_is_killed_again_and_again(path: Path) -> None:
    before = made(path)
    points = ["begun", "page", "commit", "begun", "page", "emptied", "resealed", "resealed"]
    for point, after in ((f"rekey.{name}", 0) for name in points):
        assert stack.Process(change, str(path), point, after).join() == -9
        assert content(path, OLD) == content(path, NEW) == before
    rekey_file(path, key(OLD), key(NEW))
    is_changed(path)
    assert content(path, NEW) == before


def test_the_end_of_another_change_is_not_made(path: Path) -> None:
    """Two make the same change; one has ended it, and a second change has begun when the other ends."""
    before = made(path)
    with closing(Applier(str(path), key=key(OLD))) as slow:
        slow.rekey_begin(key(NEW), wait=1)
        rekey_file(path, key(OLD), key(NEW))
        with closing(Applier(str(path), key=key(NEW))) as second:
            second.rekey_begin(key(OLD), wait=1)
        with pytest.raises(WrongKeyError, match="begun meanwhile"):
            slow.rekey_end(key(NEW), wait=1)
    assert content(path, OLD) == content(path, NEW) == before


def unread(pipe: Pipe, path: str) -> None:
    """What is said where the header block cannot be read just when it is looked at again."""
    from nearlite._native import faults

    said = []
    with (
        closing(nearlite.connect(path, encryption_key=OLD, isolation_level=None)) as reader,
        closing(nearlite.connect(path, encryption_key=OLD, isolation_level=None)) as writer,
        closing(Applier(path, key=key(OLD))) as applier,
    ):
        reader.execute("SELECT count(*) FROM t").fetchone()
        writer.execute("SELECT count(*) FROM t").fetchone()
        applier.rekey_begin(key(NEW), wait=1)

        def attempt(con: Any, sql: str) -> None:
            faults.arm("codec.reload", faults.EIO)
            try:
                said.append(con.execute(sql).fetchall())
            except nearlite.Error as error:
                said.append((isinstance(error, OperationalError), str(error)))

        attempt(writer, "INSERT INTO t VALUES(9999, 'in between')")
        writer.execute("INSERT INTO t VALUES(9999, 'in between')")
        attempt(reader, "SELECT b FROM t WHERE a = 9999")
        said.append(reader.execute("SELECT b FROM t WHERE a = 9999").fetchall())
    pipe.send(said)


def test_a_block_that_cannot_be_read_is_not_called_another_key(path: Path) -> None:
    before = made(path)
    process = stack.Process(unread, str(path))
    refused, blind, seen = process.receive()
    assert process.join() == 0
    assert refused == (True, "disk I/O error")
    assert blind[0]
    assert "reading the header block failed" in blind[1]
    assert seen == [("in between",)]
    rekey_file(path, key(OLD), key(NEW))
    is_changed(path)
    assert content(path, NEW) == f"{before},9999in between"


# ---------------------------------------------------------------- replicas and primaries


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with serving(nearlite.asgi(tmp_path / "primary.db", encryption_key=OLD)) as port:
        yield f"http://127.0.0.1:{port}"


def test_a_replica_goes_on_with_its_new_key(url: str, path: Path) -> None:
    def connect(secret: bytes) -> Any:
        return nearlite.connect(path, sync_url=url, encryption_key=secret, isolation_level=None)

    with closing(connect(OLD)) as con:
        con.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        con.executemany("INSERT INTO t(b) VALUES(?)", [("x" * 3000,)] * 300)
        position = con.position
        con.rekey(NEW)
        assert con.position == position
        con.execute("INSERT INTO t(b) VALUES('after')")
        assert not con.sync().repaired
        con._replica._upkeep.checkpoint()
        with closing(connect(NEW)) as second:
            assert second._replica is con._replica
        state, found = con._replica._applier.full_hash()
        assert state.hash == found
    is_changed(path)
    with closing(connect(NEW)) as con:
        assert con.execute("SELECT count(*) FROM t").fetchone() == (301,)
        assert not con.sync().repaired


def test_all_who_share_a_replica_have_the_new_key(url: str, path: Path) -> None:
    def connect(secret: bytes) -> Any:
        return nearlite.connect(path, sync_url=url, encryption_key=secret, isolation_level=None)

    with closing(connect(OLD)) as first, closing(connect(OLD)) as second:
        assert first._replica is second._replica
        second.execute("CREATE TABLE t(a)")
        second.rekey(NEW)
        for con in (first, second):
            con.execute("INSERT INTO t VALUES(1)")
            con.sync()
        with closing(connect(NEW)) as third:
            assert third._replica is first._replica
            assert third.execute("SELECT count(*) FROM t").fetchone() == (2,)
    is_changed(path)


def test_connections_of_a_pool_have_the_new_key(url: str, path: Path) -> None:
    asked = []

    def service() -> bytes:
        asked.append(1)
        return OLD

    with nearlite.Replica(path, sync_url=url, encryption_key=service) as replica:
        with replica.connection() as con:
            con.execute("CREATE TABLE t(a)")
            con.commit()
            con.rekey(NEW)
            with replica.connection() as another:
                assert another.execute("SELECT count(*) FROM t").fetchone() == (0,)
        with closing(replica.connect()) as own:
            own.execute("INSERT INTO t VALUES(1)")
    assert len(asked) == 1
    is_changed(path)


def test_a_replica_whose_key_somebody_else_changed_is_told(
    url: str, path: Path, tmp_path: Path
) -> None:
    def connect(name: Path, secret: bytes | None) -> Any:
        return nearlite.connect(name, sync_url=url, encryption_key=secret, isolation_level=None)

    with closing(connect(path, OLD)) as con, closing(connect(tmp_path / "other.db", None)) as other:
        other.execute("CREATE TABLE t(a)")
        con.sync()
        rekey_file(path, key(OLD), key(NEW))
        other.execute("INSERT INTO t VALUES(1)")
        with pytest.raises(WrongKeyError, match="key has been changed") as told:
            con.sync()
    failed = apply_failed(str(path), told.value)  # where only its write lock told it
    assert isinstance(failed, WrongKeyError)
    assert "open the replica again with its new key" in str(failed)
    with closing(connect(path, NEW)) as con:
        assert not con.sync().repaired
        assert con.execute("SELECT a FROM t").fetchall() == [(1,)]


def test_a_primary_and_its_log_go_on_with_the_new_key(tmp_path: Path) -> None:
    path = tmp_path / "primary.db"
    replica = tmp_path / "replica.db"

    def connect(port: int, name: Path = replica) -> Any:
        return nearlite.connect(name, sync_url=f"http://127.0.0.1:{port}", isolation_level=None)

    options: dict[str, Any] = {"roll_bytes": 200_000}
    with serving(nearlite.asgi(path, encryption_key=OLD, **options)) as port:
        with closing(connect(port)) as con, closing(connect(port, tmp_path / "stale.db")):
            con.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
            for _ in range(4):
                con.executemany("INSERT INTO t(b) VALUES(?)", [("x" * 3000,)] * 50)
            con.sync()
        Client(port).request("GET", "/nl/v1/status")
        with pytest.raises(OperationalError, match="already served"):
            rekey_file(path, key(OLD), key(NEW))
    log = tmp_path / "primary.db-nearlite"
    archived = [p for p in log.iterdir() if p.suffix == ".wal"]
    assert archived
    assert rekey_file(path, key(OLD), key(NEW)) > 0
    is_changed(path)
    file = SealedFile.of(path.read_bytes()[:4096], NEW)
    for part in log.iterdir():
        if part.suffix in (".index", ".hashes", ".json"):
            assert file.record(part.name, 0, part.read_bytes())
        elif part.suffix == ".wal":
            assert file.frame(1, part.read_bytes()[32 : 32 + 24 + 4096 + 32])
    with serving(nearlite.asgi(path, encryption_key=NEW, **options)) as port:
        for name in (replica, tmp_path / "stale.db"):
            with closing(connect(port, name)) as con:
                assert not con.sync().repaired
                assert con.execute("SELECT count(*) FROM t").fetchone() == (200,)


def test_a_damaged_archive_is_in_nobodys_way(tmp_path: Path) -> None:
    """Nobody could have read it either: it is dropped, as other damaged files of a log are."""
    path = tmp_path / "primary.db"
    with Primary.open(path, key=key(OLD)) as primary:
        with closing(primary.connect()) as con:
            con.exec("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
            assert primary.roll()
            con.exec("INSERT INTO t VALUES(2)")
            assert primary.roll()
        before = primary.state()
    broken, short = sorted((tmp_path / "primary.db-nearlite").glob("*.wal"))[:2]
    data = bytearray(broken.read_bytes())
    data[1000] ^= 1
    broken.write_bytes(data)
    short.write_bytes(short.read_bytes()[:-1])
    rekey_file(path, key(OLD), key(NEW))
    is_changed(path)
    assert not broken.exists()
    assert not short.exists()
    assert not list(broken.parent.glob("*.part"))
    with Primary.open(path, key=key(NEW)) as primary:
        assert (primary.state().position.lineage, primary.verify()[0]) == (
            before.position.lineage,
            before.hash,
        )


def test_a_log_that_began_just_before_is_sealed_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(path)
    begin, lineages = Applier.rekey_begin, []

    def late(self: Applier, new: Key, *, wait: float) -> None:
        with Primary.open(path, key=key(OLD)) as primary:
            lineages.append(primary.state().position.lineage)
        begin(self, new, wait=wait)

    monkeypatch.setattr(Applier, "rekey_begin", late)
    rekey_file(path, key(OLD), key(NEW))
    with Primary.open(path, key=key(NEW)) as primary:
        assert [primary.state().position.lineage] == lineages


def test_what_a_relay_keeps_in_clear_is_left_alone(url: str, path: Path) -> None:
    from nearlite.relay import Relay

    Relay.open(str(path), url, key=key(OLD), sync_interval=None).close()
    folder = path.with_name(f"{path.name}-nearlite")
    folder.joinpath("stats.json").write_text("{}")
    clear = {"closed.json", "stats.json"}
    assert clear < set(os.listdir(folder))
    rekey_file(path, key(OLD), key(NEW))
    is_changed(path)
    assert clear < set(os.listdir(folder))
    with closing(Relay.open(str(path), url, key=key(NEW), sync_interval=None)) as relay:
        assert relay.state().position.generation > 0


def run_with_lock_page(pipe: Pipe, folder: str) -> None:
    from nearlite._native._lib import lib

    lib.nl_test_pending_byte(4096 * 64)
    path = Path(folder) / "primary.db"
    made(path)
    rekey_file(path, key(OLD), key(NEW))
    with Primary.open(path, key=key(NEW)) as primary:
        pipe.send(primary.state().pages > 65)


def test_nobody_reads_the_lock_byte_page(tmp_path: Path) -> None:
    """It is not sealed anew, and a primary that begins hashes every page but this."""
    child = stack.Process(run_with_lock_page, str(tmp_path))
    assert child.receive() is True
    assert child.join() == 0


def test_by_hand(path: Path, tmp_path: Path) -> None:
    before = made(path)
    for name, secret in (("old", OLD), ("new", NEW)):
        (tmp_path / name).write_bytes(secret)
    command = [sys.executable, "-m", "nearlite", "rekey", str(path)]
    command += [
        "--encryption-key-file",
        str(tmp_path / "old"),
        "--new-key-file",
        str(tmp_path / "new"),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert "sealed anew; only the new key opens it now" in done.stdout
    is_changed(path)
    assert content(path, NEW) == before
    assert os.listdir(tmp_path).count("a.db-nearlite") == 0
