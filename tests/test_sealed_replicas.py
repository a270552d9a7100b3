"""Sealed replicas, primaries and relays: nothing in clear anywhere, damage is found and repaired, keys are kept apart."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealed_reader import SealedFile
from serving import Client, serving
from stack import Primary as PrimaryProcess
from stack import Process, run_replica

import nearlite
from nearlite import arriving, spawn
from nearlite._native.sealing import Codec, Key
from nearlite.applications import RelayApp
from nearlite.bootstrap import Folder
from nearlite.errors import DamagedError, SyncError, TamperedError, WrongKeyError
from nearlite.inspection import verify
from nearlite.keys import key_of
from nearlite.logformat import DamagedError as BrokenFile
from nearlite.logseal import Sealed
from nearlite.primary import Primary
from nearlite.relay import Relay
from nearlite.spooling import BLOCK, Spool

MARK = "PLAINTEXT-MARKER"
ABOVE, MIDDLE, BELOW = bytes(range(32)), bytes(range(1, 33)), "a passphrase"
BELOW_KEY = Key.of_phrase(BELOW.encode(), cost=10)  # scrypt with a mebibyte
SLOT = 4096 + 32


def in_clear(folder: Path) -> list[str]:
    """Files that say something of what is stored."""
    words = (MARK.encode(), b"CREATE TABLE", b"SQLite format 3")
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and any(word in path.read_bytes() for word in words)
    ]


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def rows(con: Any) -> list[Any]:
    return con.execute("SELECT count(*), sum(length(b)) FROM t").fetchall()


class Scene:
    """A sealed primary, and what a test puts below it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.path = folder / "primary.db"
        self.serve()

    def serve(self) -> None:
        app = nearlite.asgi(self.path, encryption_key=ABOVE, roll_bytes=200_000)
        port = self.stack.enter_context(serving(app))
        self.url = f"http://127.0.0.1:{port}"
        Client(port).request("GET", "/nl/v1/status")  # opens it

    def replica(self, name: str = "replica.db", **options: Any) -> Any:
        options.setdefault("encryption_key", BELOW_KEY)
        con = nearlite.connect(self.folder / name, sync_url=self.url, **options)
        self.stack.callback(con.close)
        return con

    def fill(self, con: Any, count: int = 300) -> None:
        con.execute("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)")
        values = [(f"{MARK} {i} " + "x" * 500,) for i in range(count)]
        con.executemany("INSERT INTO t(b) VALUES(?)", values)
        con.commit()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(tmp_path, stack)


# ---------------------------------------------------------------- nothing in clear


def test_nothing_is_in_clear_on_any_level(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "IN_MEMORY", 100_000)
    con = scene.replica()
    scene.fill(con, 3000)  # several rolls, and sets that are spooled
    for i in range(1, 40):
        con.execute("UPDATE t SET b = ? WHERE a = ?", (f"{MARK} again {i}", i))
        con.commit()
    relay: list[Relay] = []

    def below() -> Relay:
        relay.append(Relay.open(scene.folder / "middle.db", scene.url, key=Key.of_bytes(MIDDLE)))
        return relay[-1]

    with serving(RelayApp(scene.folder / "middle.db", below)) as port:
        url = f"http://127.0.0.1:{port}"
        with closing(
            nearlite.connect(scene.folder / "leaf.db", sync_url=url, encryption_key=BELOW_KEY)
        ) as leaf:
            told: list[nearlite.Change] = []
            leaf.on_change(told.append)
            scene.fill(leaf, 2000)
            con.sync()
            leaf.sync()
            relay[0].roll(wait=10)
            assert rows(leaf) == rows(con)
            assert leaf.position == con.position
            con.execute("DELETE FROM t WHERE a % 3 = 0")
            con.execute("CREATE INDEX i ON t(b)")
            con.commit()
            leaf.sync(repair=True)
            assert rows(leaf) == rows(con)
            assert in_clear(scene.folder) == []
        suffixes = {path.suffix for path in scene.folder.rglob("*-nearlite/*")}
        assert suffixes >= {".hashes", ".index", ".wal", ".stretch"} - {".stretch"}
    assert in_clear(scene.folder) == []


def test_what_a_kill_leaves_behind_is_sealed_too(tmp_path: Path) -> None:
    import sealing

    with sealing.everything_sealed():
        primary = PrimaryProcess(tmp_path / "primary.db")
        with closing(nearlite.connect(primary.url)) as there:
            there.execute("CREATE TABLE t(i INTEGER PRIMARY KEY, b)")
            there.execute("INSERT INTO t(b) VALUES(?)", ("x" * 3000 + MARK,))
            there.commit()
        replica = Process(run_replica, str(tmp_path / "replica.db"), primary.url, ())
        for _ in range(20):
            replica.receive()
        replica.kill()
        primary.kill()
        assert in_clear(tmp_path) == []
        primary.start()
        with closing(nearlite.connect(tmp_path / "replica.db", sync_url=primary.url)) as con:
            con.sync()
            found = con.execute("SELECT count(*) FROM t WHERE b LIKE ?", (f"%{MARK}",)).fetchone()
        primary.kill()
    assert found == (1,)
    assert in_clear(tmp_path) == []


# ---------------------------------------------------------------- keys


def test_each_file_wants_its_own_key(scene: Scene) -> None:
    con = scene.replica()
    scene.fill(con)
    con.close()
    for bad in (None, ABOVE, "another phrase"):
        with pytest.raises(WrongKeyError, match=r"replica\.db"):
            scene.replica(encryption_key=bad)
    plain = scene.replica("plain.db", encryption_key=None)
    plain.close()
    with pytest.raises(WrongKeyError, match=r"plain\.db is not sealed"):
        scene.replica("plain.db")
    assert rows(scene.replica()) == rows(scene.replica("plain.db", encryption_key=None))


@pytest.mark.parametrize("key", [None, MIDDLE], ids=["none", "another"])
def test_a_primary_does_not_start_with_another_key(tmp_path: Path, key: bytes | None) -> None:
    path = tmp_path / "data.db"
    Primary.open(path, key=Key.of_bytes(ABOVE)).close()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"}
    with pytest.raises(WrongKeyError, match=r"data\.db"):
        Primary.open(path, key=None if key is None else Key.of_bytes(key))
    assert before == {p: p.read_bytes() for p in before}
    Primary.open(path, key=Key.of_bytes(ABOVE)).close()


def test_connections_with_the_same_key_share_a_replica(scene: Scene) -> None:
    first = scene.replica(encryption_key=bytes(range(32)))
    same = scene.replica(encryption_key="hex:" + bytes(range(32)).hex())
    assert first._replica is same._replica
    with pytest.raises(WrongKeyError):
        scene.replica(encryption_key=MIDDLE)


def test_a_pool_and_its_pickled_copy_have_the_key(scene: Scene) -> None:
    import pickle

    with nearlite.Replica(
        scene.folder / "replica.db", sync_url=scene.url, encryption_key=MIDDLE
    ) as pool:
        with pool.connection() as con:
            scene.fill(con)
        with pickle.loads(pickle.dumps(pool)) as again, again.connection() as con:
            assert rows(con)[0][0] == 300
    assert in_clear(scene.folder) == []


def test_no_key_is_in_what_is_said(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    secret = "hex:" + "5a" * 32
    con = scene.replica(encryption_key=secret)
    said = [repr(con), repr(con._replica), repr(con._replica.key), str(con.stats())]
    con.close()
    for wrong in (secret.replace("5a", "a5"), "passphrase-5a5a"):
        with pytest.raises(WrongKeyError) as caught:
            scene.replica(encryption_key=wrong)
        said.append(str(caught.value))
    said.append(caplog.text)
    assert "5a5a" not in "".join(said)
    assert "a5a5" not in "".join(said)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("number", [2, 20, 40])
def test_a_changed_page_is_told_by_name_and_repaired(scene: Scene, number: int) -> None:
    con = scene.replica()
    scene.fill(con)
    before = rows(con)
    con.close()
    flip(scene.folder / "replica.db", 4096 + (number - 1) * SLOT + 100)
    con = scene.replica()
    with pytest.raises(TamperedError, match=rf"replica\.db: page {number} "):
        con.execute("SELECT * FROM t ORDER BY b").fetchall()
    done = con.sync()
    assert (done.repaired, done.pages) == (True, 1)
    assert rows(con) == before
    checks = verify(scene.folder / "replica.db", scene.url, token=None, timeout=10, key=BELOW_KEY)
    assert all(check.passed for check in checks)


def test_pages_changed_places_or_come_from_an_older_copy(scene: Scene) -> None:
    con = scene.replica()
    scene.fill(con)
    con.close()
    path = scene.folder / "replica.db"
    old = path.read_bytes()
    con = scene.replica()
    con.execute("UPDATE t SET b = 'newer'")
    con.commit()
    before = rows(con)
    con.close()
    data = bytearray(path.read_bytes())
    at = [4096 + (number - 1) * SLOT for number in range(1, 50)]
    data[at[5] : at[6]], data[at[7] : at[8]] = data[at[7] : at[8]], data[at[5] : at[6]]  # swapped
    data[at[20] : at[21]] = old[at[20] : at[21]]  # replayed: it opens (rule D5), and hashes say it
    path.write_bytes(data)
    con = scene.replica()
    done = con.sync()
    assert (done.repaired, done.pages) == (True, 3)
    assert rows(con) == before


def test_a_changed_frame_is_told_and_repaired(scene: Scene) -> None:
    con = scene.replica()
    scene.fill(con, 20)
    while con._replica._upkeep.checkpoint():
        pass
    con.execute("UPDATE t SET b = 'in the log'")
    con.commit()
    flip(scene.folder / "replica.db-nlwal", 32 + 24 + 32 + 50)
    with (
        closing(nearlite.connect(scene.folder / "replica.db", encryption_key=BELOW_KEY)) as reader,
        pytest.raises(TamperedError, match=r"replica\.db: frame 1 "),
    ):
        reader.execute("SELECT * FROM t").fetchall()
        reader.execute("SELECT * FROM sqlite_schema").fetchall()
    con.sync(repair=True)
    assert rows(con) == [(20, 200)]


@pytest.mark.parametrize("what", ["header", "page 1", "all but the header"])
def test_where_too_little_is_left_it_says_what_to_do(scene: Scene, what: str) -> None:
    con = scene.replica()
    scene.fill(con)
    before = rows(con)
    con.close()
    path = scene.folder / "replica.db"
    if what == "header":
        for at in (100, 2048 + 100):
            flip(path, at)
    elif what == "page 1":
        flip(path, 4096 + 200)
    else:
        os.truncate(path, 4096)
    with pytest.raises(nearlite.Error) as caught:
        scene.replica().sync()
    assert "replica.db" in str(caught.value)
    if what == "page 1":
        assert isinstance(caught.value, DamagedError)
        assert "remove the file and its log" in str(caught.value)
    path.unlink()
    assert rows(scene.replica()) == before


@pytest.mark.parametrize("size", [0, 4096])
def test_an_emptied_replica_is_not_filled_anew(scene: Scene, size: int) -> None:
    con = scene.replica()
    con.close()
    path = scene.folder / "replica.db"
    os.truncate(path, size)
    with pytest.raises(nearlite.Error):
        scene.replica()
    assert path.stat().st_size == size


def test_a_broken_page_of_a_primary_is_given_to_nobody(scene: Scene) -> None:
    con = scene.replica()
    scene.fill(con, 600)
    con.close()
    Client(int(scene.url.rpartition(":")[2])).request("GET", "/nl/v1/status")
    scene.stack.close()
    with ExitStack() as scene.stack:
        scene.serve()
        flip(scene.path, 4096 + 30 * SLOT + 5)
        with pytest.raises(SyncError):
            scene.replica("new.db")
        assert not (scene.folder / "new.db").exists()
        assert rows(scene.replica())[0][0] == 600


# ---------------------------------------------------------------- first downloads


def test_which_page_is_broken_is_told_whoever_reads_many_at_once(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    with closing(nearlite.connect(path, encryption_key=ABOVE)) as con:
        con.execute("CREATE TABLE t(a)")
        con.executemany("INSERT INTO t VALUES(?)", [("x" * 3000,)] * 50)
        con.commit()
    flip(path, 4096 + 20 * SLOT + 7)
    with pytest.raises(TamperedError, match="page 21 is not what was sealed") as caught:
        Primary.open(path, key=key_of(ABOVE))
    assert getattr(caught.value, "page", 0) == 21


def test_a_download_begun_with_another_key_starts_over(scene: Scene) -> None:
    scene.fill(scene.replica("first.db"), 600)
    folder = Folder(str(scene.folder / "replica.db"))
    folder.make()
    data = (scene.folder / "first.db").read_bytes()
    for begun in (data, data[: 4096 + 10 * SLOT + 7], data[:4096], data[:100], b"", b"x" * 9000):
        for key in (MIDDLE, BELOW_KEY):
            folder.part.write_bytes(begun)
            con = scene.replica(encryption_key=key)
            assert rows(con)[0][0] == 600
            con.close()
            for path in scene.folder.glob("replica.db*"):
                if path.is_file():
                    path.unlink()
    assert in_clear(scene.folder) == []


def test_torn_slots_of_a_download_are_asked_for_again(scene: Scene) -> None:
    con = scene.replica("first.db")
    scene.fill(con, 600)
    con.close()
    folder = Folder(str(scene.folder / "replica.db"))
    folder.make()
    data = bytearray((scene.folder / "first.db").read_bytes())
    for number in (3, 9, 17):
        at = 4096 + (number - 1) * SLOT
        data[at + 512 : at + SLOT] = bytes(SLOT - 512)
    folder.part.write_bytes(data)
    con = scene.replica()
    assert rows(con)[0][0] == 600
    state, found = con._replica._applier.full_hash()
    assert state.hash == found


# ---------------------------------------------------------------- the log


def test_a_log_of_another_file_begins_a_new_lineage(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    con = scene.replica()
    scene.fill(con)
    old = con.position
    con.close()
    with closing(nearlite.connect(scene.path, encryption_key=ABOVE)) as here:
        here.execute("VACUUM INTO ?", (str(scene.folder / "saved.db"),))
    scene.stack.close()
    shutil.move(scene.folder / "saved.db", scene.path)
    with ExitStack() as scene.stack:
        scene.serve()
        assert "its log is of another file and is not used" in caplog.text
        con = scene.replica()
        with pytest.raises(nearlite.LineageError):
            con.sync()
        assert con.sync(repair=True).position.lineage != old.lineage
        assert rows(con)[0][0] == 300


@pytest.mark.parametrize("what", ["flipped", "cut", "emptied", "of another file"])
def test_a_damaged_state_of_the_log_is_refused_and_not_overwritten(
    scene: Scene, what: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    con = scene.replica()
    scene.fill(con)
    con.close()
    scene.stack.close()
    state = scene.path.with_name("primary.db-nearlite") / "state.json"
    before = state.read_bytes()
    if what == "flipped":
        flip(state, 100)
    elif what == "of another file":
        other = tmp_path_factory.mktemp("other") / "primary.db"
        Primary.open(other, key=Key.of_bytes(ABOVE)).close()
        shutil.copy(other.with_name("primary.db-nearlite") / "state.json", state)
    else:
        os.truncate(state, 100 if what == "cut" else 0)
    now = state.read_bytes()
    with pytest.raises(nearlite.DatabaseError, match="The database itself is not affected"):
        Primary.open(scene.path, key=Key.of_bytes(ABOVE))
    assert state.read_bytes() == now
    state.write_bytes(before)
    with ExitStack() as scene.stack:
        scene.serve()
        con = scene.replica()
        assert not con.sync().repaired
        assert rows(con)[0][0] == 300


@pytest.mark.parametrize("suffix", [".index", ".hashes", ".journal"])
def test_a_changed_file_of_the_log_is_as_a_missing_one(scene: Scene, suffix: str) -> None:
    con = scene.replica()
    scene.fill(con)
    con.close()
    stale = scene.replica("stale.db")
    stale.close()
    con = scene.replica()
    scene.fill(con, 3000)
    before = rows(con)
    con.close()
    scene.stack.close()
    folder = scene.path.with_name("primary.db-nearlite")
    changed = [path for path in folder.iterdir() if path.suffix == suffix]
    for path in changed:
        flip(path, path.stat().st_size // 2)
    with ExitStack() as scene.stack:
        scene.serve()
        for name in ("stale.db", "replica.db"):
            con = scene.replica(name)
            con.sync()
            assert rows(con) == before


def test_files_of_the_log_open_under_their_own_names_only(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    nearlite.connect(path, encryption_key=ABOVE).close()
    seal = Sealed(path, Key.of_bytes(ABOVE))
    (data,) = seal.file("one", (b"some", b"thing"))
    assert b"some" not in data
    assert seal.opened("one", data) == b"something"
    other = tmp_path / "b.db"
    nearlite.connect(other, encryption_key=ABOVE).close()
    for who, name, what in (
        (seal, "two", data),
        (Sealed(other, Key.of_bytes(ABOVE)), "one", data),
        (seal, "one", data[:-1]),
        (seal, "one", b""),
    ):
        with pytest.raises(BrokenFile):
            who.opened(name, what)


def test_a_journal_is_read_as_far_as_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    nearlite.connect(path, encryption_key=ABOVE).close()
    seal = Sealed(path, Key.of_bytes(ABOVE))
    parts = [os.urandom(n) for n in (32, 0, 100, 7)]
    entries = [seal.entry("j", number, part) for number, part in enumerate(parts)]
    whole = b"".join(entries)
    assert seal.journal("j", whole) == b"".join(parts)
    ends = [sum(map(len, entries[:n])) for n in range(5)]
    for cut in range(len(whole)):
        kept = max(n for n in range(5) if ends[n] <= cut)
        assert seal.journal("j", whole[:cut]) == b"".join(parts[:kept])
    swapped = b"".join([entries[0], entries[2], entries[1], entries[3]])
    assert seal.journal("j", swapped) == parts[0]


@given(
    record=st.binary(max_size=300), name=st.text(max_size=16), number=st.integers(0, 2**32 - 1),
    at=st.integers(0, 2**16), bit=st.integers(0, 7),
)  # fmt: skip
def test_a_record_comes_back_and_none_that_was_changed(
    record: bytes, name: str, number: int, at: int, bit: int
) -> None:
    codec, block = Codec.create(4096, Key.of_bytes(ABOVE))
    name = name.replace("\0", "")
    sealed = codec.seal_record(name, number, record)
    assert codec.open_record(name, number, sealed) == record
    assert SealedFile.of(block, ABOVE).record(name, number, sealed) == record
    changed = bytearray(sealed)
    changed[at % len(sealed)] ^= 1 << bit
    with pytest.raises((TamperedError, WrongKeyError)):
        codec.open_record(name, number, bytes(changed))
    with pytest.raises(TamperedError):
        codec.open_record(name, number ^ 1, sealed)
    with pytest.raises(TamperedError):
        codec.open_record(name + "x", number, sealed)


# ---------------------------------------------------------------- spools


@pytest.mark.parametrize("sealed", [False, True])
@given(sizes=st.lists(st.integers(0, 3 * BLOCK), max_size=6))
def test_a_spool_gives_back_what_it_was_given(
    tmp_path_factory: pytest.TempPathFactory, sealed: bool, sizes: list[int]
) -> None:
    spool = Spool(tmp_path_factory.getbasetemp(), sealed=sealed)
    pieces = [os.urandom(8) * (size // 8) for size in sizes]
    for piece in pieces:
        spool.write(piece)
    spool.finish()
    whole = b"".join(pieces)
    assert spool.size == len(whole)
    assert b"".join(spool.blocks()) == whole
    reader = spool.reader()
    assert reader.read() == whole
    if sealed and len(whole) >= 64:
        spool._file.seek(0)
        assert whole[:32] not in spool._file.read()
    spool.close()


# ---------------------------------------------------------------- by hand


def test_the_command_line_takes_key_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-m", "nearlite", "keygen", tmp_path / name], check=True)

    def run(*arguments: object, code: int = 0) -> str:
        command = [sys.executable, "-m", "nearlite", *map(str, arguments)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    with spawn.primary(
        tmp_path / "data.db", "--encryption-key-file", str(tmp_path / "a"), "--durability", "normal"
    ) as url:
        run("shell", url, "-c", f"CREATE TABLE t(a, b); INSERT INTO t VALUES(1, '{MARK}');")
        key = ("--encryption-key-file", tmp_path / "b")
        run("sync", url, tmp_path / "r.db", *key)
        assert "kind" in run("status", tmp_path / "r.db", "--json", "--against", url, *key)
        assert "ok" in run("verify", tmp_path / "r.db", "--against", url, *key)
        run("backup", tmp_path / "r.db", tmp_path / "copy.db", *key)
        run("backup", url, tmp_path / "copy2.db", *key)
        assert MARK in run("shell", tmp_path / "copy.db", "-c", "SELECT b FROM t;", *key)
        assert MARK in run("shell", tmp_path / "copy2.db", "-c", "SELECT b FROM t;", *key)
        assert "takes its key" in run("verify", tmp_path / "r.db", code=5)
        wrong = ("--encryption-key-file", tmp_path / "a")
        assert "not the key" in run("verify", tmp_path / "r.db", *wrong, code=5)
        assert in_clear(tmp_path) == []
        (tmp_path / "empty").write_text("")
        assert "empty" in run(
            "verify", tmp_path / "r.db", "--encryption-key-file", tmp_path / "empty", code=2
        )
    assert in_clear(tmp_path) == []


def test_a_key_given_by_a_callable_is_asked_for_by_each_connection(scene: Scene) -> None:
    asked: list[int] = []

    def kms() -> bytes:
        asked.append(1)
        return MIDDLE

    scene.replica(encryption_key=kms)
    scene.replica(encryption_key=kms)
    assert len(asked) == 2
    assert key_of(kms) == Key.of_bytes(MIDDLE)


def test_logging_says_nothing_of_contents(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    con = scene.replica()
    scene.fill(con)
    con.sync(repair=True)
    con.close()
    assert MARK not in caplog.text
