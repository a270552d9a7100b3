"""Sealed database files: every kind of statement leaves nothing in clear, and no foreign byte comes in."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sealed_reader import SealedFile

import nearlite
from nearlite._native.database import Database
from nearlite._native.sealing import Key
from nearlite.errors import TamperedError, WrongKeyError

KEY = bytes(range(32))
SIZE = 4096
SLOT = SIZE + 32
BLOCK = 4096
FRAME = 24 + SLOT
MARK = "PLAINTEXT-MARKER"


def sealed(path: Path, **options) -> nearlite.Connection:
    return nearlite.connect(path, encryption_key=KEY, isolation_level=None, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.db"


@pytest.fixture
def con(path: Path) -> Iterator[nearlite.Connection]:
    made = sealed(path)
    made.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
    made.executemany(
        "INSERT INTO t(b) VALUES(?)", [(f"{MARK} {i} " + "x" * 500,) for i in range(300)]
    )
    yield made
    made.close()


def rows(
    connection: nearlite.Connection, sql: str = "SELECT count(*), sum(length(b)) FROM t"
) -> list:
    return connection.execute(sql).fetchall()


def found_in_clear(folder: Path) -> list[str]:
    return [f.name for f in folder.iterdir() if f.is_file() and MARK.encode() in f.read_bytes()]


def flip(path: Path, at: int, bit: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ bit]))


def plain_copy(path: Path, to: Path, key: bytes = KEY) -> None:
    """Decrypted by the second implementation; the WAL must have been checkpointed."""
    data = path.read_bytes()
    file = SealedFile.of(data[:BLOCK], key)
    slot = file.page_size + 32
    pages = [data[at : at + slot] for at in range(BLOCK, len(data), slot)]
    to.write_bytes(b"".join(file.page(n, page) for n, page in enumerate(pages, 1)))


# ---------------------------------------------------------------- what works


def test_what_was_written_is_read_by_any_number_of_processes(path: Path, con) -> None:
    script = """
import sys, nearlite
with nearlite.connect(sys.argv[1], 20, encryption_key="hex:" + sys.argv[2], isolation_level=None) as c:
    for _ in range(50):
        c.execute("INSERT INTO t(b) VALUES(?)", ("y" * 100,))
    print(c.execute("SELECT count(*) > 300 FROM t").fetchone()[0])
"""
    several = [
        subprocess.Popen(
            [sys.executable, "-c", script, path, KEY.hex()], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0] for process in several] == ["1\n"] * 3
    assert rows(con)[0][0] == 450
    assert rows(con, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.forks_threads
def test_the_child_of_a_fork_opens_it_while_threads_of_the_parent_do(path: Path, con) -> None:
    script = """
import os, sys, threading, nearlite
path, stop = sys.argv[1], threading.Event()
key = nearlite.keys.key_of("hex:" + sys.argv[2])
def insert(value):
    with nearlite.connect(path, 20, encryption_key=key, isolation_level=None) as own:
        own.execute("INSERT INTO t(b) VALUES(?)", (value,))
    own.close()
def churn():
    while not stop.is_set():
        insert("parent")
threads = [threading.Thread(target=churn) for _ in range(2)]
for thread in threads: thread.start()
codes = []
for _ in range(6):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            insert("child")
            code = 0
        finally:
            os._exit(code)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
stop.set()
for thread in threads: thread.join()
print(codes)
"""
    command = [sys.executable, "-W", "ignore", "-c", script, path, KEY.hex()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[0, 0, 0, 0, 0, 0]\n", "")
    assert rows(con, "SELECT count(*) FROM t WHERE b = 'child'") == [(6,)]
    assert rows(con, "PRAGMA integrity_check") == [("ok",)]


def test_the_second_implementation_reads_the_file(path: Path, con, tmp_path: Path) -> None:
    before = rows(con)
    con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    plain_copy(path, tmp_path / "plain.db")
    with closing(sqlite3.connect(tmp_path / "plain.db")) as stock:
        assert stock.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert stock.execute("SELECT count(*), sum(length(b)) FROM t").fetchall() == before


@pytest.mark.parametrize("size", [512, 1024, 8192, 65536])
def test_every_page_size(path: Path, size: int, tmp_path: Path) -> None:
    with closing(Database(str(path), key=Key.of_bytes(KEY), page_size=size)) as database:
        database.exec("CREATE TABLE t(a, b); INSERT INTO t VALUES(1, randomblob(2000000))")
    with closing(sealed(path)) as con:
        assert rows(con, "PRAGMA page_size") == [(size,)]
        assert rows(con) == [(1, 2000000)]
        con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with closing(sealed(path)) as con:  # out of the file, page after page
        assert len(rows(con, "SELECT b FROM t")[0][0]) == 2000000
        assert rows(con, "PRAGMA integrity_check") == [("ok",)]
    plain_copy(path, tmp_path / "plain.db")
    with closing(sqlite3.connect(tmp_path / "plain.db")) as stock:
        assert stock.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_transaction_that_spills_and_rewrites_its_frames(path: Path, con) -> None:
    """Pages that were written to the WAL are changed again before the commit: in place, then headers anew."""
    con.execute("PRAGMA cache_size=10")
    con.execute("BEGIN")
    for n in range(3):
        con.execute("UPDATE t SET b = b || ?", (f" again {n}",))
    con.execute("SAVEPOINT s")
    con.execute("DELETE FROM t WHERE a % 3 = 0")
    con.execute("ROLLBACK TO s")
    con.execute("COMMIT")
    expected = rows(con)
    with closing(sealed(path)) as other:
        assert rows(other) == expected
        assert rows(other, "PRAGMA integrity_check") == [("ok",)]
    # and the chain of checksums is whole: everything is there after recovery
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    shutil.copy(f"{path}-nlwal", f"{copy}-nlwal")
    with closing(sealed(copy)) as recovered:
        assert rows(recovered) == expected


def test_a_file_that_shrinks_and_grows_has_no_page_without_a_seal(
    path: Path, con, tmp_path: Path
) -> None:
    con.execute("DELETE FROM t")
    con.execute("VACUUM")
    con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    small = path.stat().st_size
    con.execute("PRAGMA auto_vacuum=INCREMENTAL")
    con.execute("VACUUM")
    con.execute("INSERT INTO t VALUES(1, zeroblob(3000000))")
    con.execute("DELETE FROM t")
    con.execute("INSERT INTO t VALUES(2, 'x')")
    con.execute("PRAGMA incremental_vacuum(100)")
    con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.stat().st_size > small
    plain_copy(path, tmp_path / "plain.db")
    with closing(sqlite3.connect(tmp_path / "plain.db")) as stock:
        assert stock.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_vacuum_into_makes_a_sealed_file(path: Path, con, tmp_path: Path) -> None:
    other = tmp_path / "into.db"
    con.execute("VACUUM INTO ?", (str(other),))
    assert found_in_clear(tmp_path) == []
    with closing(sealed(other)) as into:
        assert rows(into) == rows(con)
        assert rows(into, "PRAGMA integrity_check") == [("ok",)]
        assert rows(into, "PRAGMA journal_mode") == [("wal",)]
        into.execute("DELETE FROM t")
        assert rows(into, "SELECT count(*) FROM t") == [(0,)]
    with pytest.raises(nearlite.OperationalError, match="output file already exists"):
        con.execute("VACUUM INTO ?", (str(other),))


def test_attached_files(con, tmp_path: Path) -> None:
    other = bytes(reversed(KEY))
    con.execute("ATTACH ? AS same", (str(tmp_path / "same.db"),))
    con.attach(tmp_path / "other.db", "other", encryption_key=other)
    con.attach(tmp_path / "plain.db", "plain")
    for name in ("same", "other", "plain"):
        con.execute(f"CREATE TABLE {name}.copied AS SELECT a FROM t")
    con.execute("INSERT INTO other.copied SELECT a FROM same.copied")
    for name, key, count in (("same", KEY, 300), ("other", other, 600), ("plain", None, 300)):
        with closing(nearlite.connect(tmp_path / f"{name}.db", encryption_key=key)) as again:
            assert rows(again, "SELECT count(*) FROM copied") == [(count,)]
    with pytest.raises(WrongKeyError, match=r"plain\.db is not sealed"):
        con.execute("ATTACH ? AS again", (str(tmp_path / "plain.db"),))
    with pytest.raises(WrongKeyError, match="not the key"):
        con.attach(tmp_path / "other.db", "again", encryption_key=KEY)


def test_a_plain_connection_attaches_no_sealed_file(path: Path, con, tmp_path: Path) -> None:
    with closing(nearlite.connect(tmp_path / "plain.db", isolation_level=None)) as plain:
        with pytest.raises(WrongKeyError, match="is sealed"):
            plain.execute("ATTACH ? AS s", (str(path),))
        with pytest.raises(WrongKeyError, match="Open the connection with a key"):
            plain.attach(path, "s", encryption_key=KEY)
        plain.execute("CREATE TABLE works(a)")


def test_an_empty_file_becomes_a_sealed_one(path: Path) -> None:
    path.touch()
    with closing(sealed(path)) as con:
        con.execute("CREATE TABLE t(a)")
    with closing(sealed(path)) as con:
        assert rows(con, "SELECT name FROM sqlite_schema") == [("t",)]


def test_what_has_no_file_cannot_be_sealed() -> None:
    with pytest.raises(nearlite.NotSupportedError, match="no local file to seal"):
        nearlite.connect("http://127.0.0.1:1", encryption_key=KEY)


@pytest.mark.parametrize("vfs", ["unix", "unix-dotfile", "nearlite"])
def test_a_uri_cannot_take_the_seal_off(path: Path, vfs: str) -> None:
    with pytest.raises(WrongKeyError, match="a VFS of its own, which would not seal"):
        nearlite.connect(f"file:{path}?vfs={vfs}", uri=True, encryption_key=KEY)
    with closing(nearlite.connect(f"file:{path}?mode=rwc", uri=True, encryption_key=KEY)) as con:
        con.execute("CREATE TABLE t(a)")
    assert path.read_bytes().startswith(b"nearlite sealed\0")


def test_where_none_can_be_made_the_system_says_why(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "a.db"
    with pytest.raises(nearlite.OperationalError, match=f"{missing}.*No such file or directory"):
        sealed(missing)


def test_memory_needs_no_file() -> None:
    with closing(nearlite.connect(":memory:", encryption_key=KEY)) as con:
        con.execute("CREATE TABLE t(a)")


def test_read_only(path: Path, con) -> None:
    read_only = Database(str(path), readonly=True, key=Key.of_bytes(KEY))
    refused = pytest.raises(nearlite.OperationalError, match="readonly")
    with closing(read_only) as database, refused:
        database.exec("DELETE FROM t")


# ---------------------------------------------------------------- nothing in clear


def test_nothing_is_written_in_clear(path: Path, con, tmp_path: Path) -> None:
    con.execute("PRAGMA cache_size=10")
    steps = [
        "CREATE INDEX ib ON t(b)",
        f"CREATE TEMP TABLE tt AS SELECT b || '{MARK}' AS b FROM t",
        "INSERT INTO tt SELECT b FROM tt",
        "SELECT b FROM (SELECT b FROM tt UNION SELECT b || 'x' FROM tt) ORDER BY b DESC LIMIT 1",
        "BEGIN",
        "UPDATE t SET b = b || 'y'",
        "SAVEPOINT s",
        "DELETE FROM t WHERE a % 2",
        "ROLLBACK TO s",
        "COMMIT",
        "UPDATE OR FAIL t SET b = b || 'z'",
        "PRAGMA wal_checkpoint",
        "VACUUM",
        "REINDEX",
        "ANALYZE",
        f'CREATE TABLE "{MARK}"(a)',
        "CREATE VIRTUAL TABLE f USING fts5(b)",
        "INSERT INTO f SELECT b FROM t",
        "PRAGMA wal_checkpoint(TRUNCATE)",
    ]
    for step in steps:
        con.execute(step).fetchall()
        assert found_in_clear(tmp_path) == []
        assert {f.name for f in tmp_path.iterdir()} <= {"a.db", "a.db-nlwal", "a.db-shm"}
        open_files = {
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        }
        assert not [name for name in open_files if "etilqs" in name]


@pytest.mark.parametrize(
    "pragma",
    [
        "journal_mode=DELETE",
        "journal_mode=MEMORY",
        "journal_mode=OFF",
        "main.journal_mode=PERSIST",
        "temp_store=FILE",
        "temp_store=0",
        "synchronous=OFF",
        "synchronous=0",
        "synchronous=00",  # SQLite takes these for OFF as well
        "synchronous=7",
        "main.synchronous(0x1)",
        "locking_mode=EXCLUSIVE",
    ],
)
def test_settings_that_would_break_a_seal_are_refused(con, pragma: str) -> None:
    with pytest.raises(nearlite.OperationalError, match="a sealed database"):
        con.execute(f"PRAGMA {pragma}").fetchall()
    assert rows(con, "PRAGMA journal_mode") == [("wal",)]
    assert rows(con, "PRAGMA temp_store") == [(2,)]


def test_mapping_is_never_used(con) -> None:
    assert rows(con, "PRAGMA mmap_size=1000000") in ([(0,)], [])
    assert rows(con)[0][0] == 300


# ---------------------------------------------------------------- keys


def test_the_wrong_key_no_key_and_a_key_for_a_plain_file(path: Path, con, tmp_path: Path) -> None:
    with pytest.raises(WrongKeyError, match=f"{path} is sealed: it takes its key"):
        nearlite.connect(path)
    with pytest.raises(
        WrongKeyError, match=f"{path}: this is not the key that the file was sealed with"
    ):
        nearlite.connect(path, encryption_key=bytes(32))
    with pytest.raises(WrongKeyError, match="sealed with a key, not with a passphrase"):
        nearlite.connect(path, encryption_key="a passphrase")
    plain = tmp_path / "plain.db"
    with closing(sqlite3.connect(plain)) as stock:
        stock.execute("CREATE TABLE t(a)")
    before = plain.read_bytes()
    with pytest.raises(WrongKeyError, match=r"plain\.db is not sealed"):
        sealed(plain)
    assert plain.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"xy", b"hello" * 2000, bytes(10_000), b"nearlite sealed\0" * 300]
)
def test_a_foreign_file_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(nearlite.DatabaseError, match=r"not a sealed database|damaged"):
        sealed(path)
    assert path.read_bytes() == content


def test_keys_in_all_their_forms(path: Path, con, tmp_path: Path, monkeypatch) -> None:
    text = f"hex:{KEY.hex()}"
    (tmp_path / "raw.key").write_bytes(KEY)
    (tmp_path / "text.key").write_text(text + "\n")
    monkeypatch.setenv("NL_TEST_KEY", text)
    forms = [
        KEY, bytearray(KEY), memoryview(KEY), text, text.upper().replace("HEX", "hex"),
        tmp_path / "raw.key", f"file:{tmp_path / 'text.key'}", "env:NL_TEST_KEY",
        lambda: KEY, lambda: text, Key.of_bytes(KEY),
    ]  # fmt: skip
    for form in forms:
        with closing(nearlite.connect(path, encryption_key=form)) as again:
            assert rows(again)[0][0] == 300


def test_a_view_of_larger_items_is_all_of_its_bytes(path: Path, con) -> None:
    items = memoryview(KEY).cast("Q")
    with closing(nearlite.connect(path, encryption_key=items)) as again:
        assert rows(again)[0][0] == 300
    with pytest.raises(WrongKeyError, match="32 bytes, not 128"):
        nearlite.connect(path, encryption_key=memoryview(bytes(128)).cast("I"))


def test_a_line_of_32_bytes_is_a_passphrase(tmp_path: Path) -> None:
    phrase = "a line of thirty-one letters, so"[:31]
    for end, text in (("\n", phrase), ("\r\n", phrase[:30])):
        (tmp_path / "line.key").write_text(text + end, newline="")
        with closing(nearlite.connect(tmp_path / f"{len(text)}.db", encryption_key=text)) as con:
            con.execute("CREATE TABLE t(a)")
        with closing(
            nearlite.connect(tmp_path / f"{len(text)}.db", encryption_key=tmp_path / "line.key")
        ) as con:
            assert rows(con, "SELECT * FROM t") == []


def test_a_passphrase(path: Path) -> None:
    phrase = "correct horse: battery staple"
    with closing(nearlite.connect(path, encryption_key=phrase)) as con:
        con.execute("CREATE TABLE t(a)")
    with closing(nearlite.connect(path, encryption_key=phrase)) as con:
        con.execute("SELECT a FROM t")
    with pytest.raises(WrongKeyError, match="not the key"):
        nearlite.connect(path, encryption_key=phrase + " ")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (b"short", "32 bytes, not 5"),
        ("hex:abc", "64 hexadecimal digits"),
        ("", "empty"),
        ("file:/nowhere/at/all", "cannot be read: No such file"),
        (Path("/nowhere/at/all"), "cannot be read: No such file"),
        ("env:NL_NOT_SET", "NL_NOT_SET, which is to hold the key, is not set"),
        (lambda: None, "answered a NoneType"),
        (7, "not a int"),
        ("file:zero\0byte", "cannot be read: embedded null byte"),
        (memoryview(bytes(64))[::2], "in one piece"),
    ],
)
def test_what_is_no_key_is_told_without_telling_it(path: Path, given, says: str) -> None:
    with pytest.raises(WrongKeyError, match=says) as caught:
        nearlite.connect(path, encryption_key=given)
    assert "short" not in str(caught.value)
    assert not path.exists()


# ---------------------------------------------------------------- tampering


def checkpointed(con) -> None:
    con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    con.close()


def read_all(path: Path) -> None:
    with closing(sealed(path)) as con:
        con.execute("SELECT * FROM t").fetchall()


@pytest.mark.parametrize("at", [0, 100, SIZE - 1, SIZE, SIZE + 12, SIZE + 28, SIZE + 31])
def test_a_flipped_bit_in_a_page(path: Path, con, at: int) -> None:
    checkpointed(con)
    flip(path, BLOCK + 20 * SLOT + at)
    with pytest.raises((TamperedError, WrongKeyError), match=f"{path}: .*") as caught:
        read_all(path)
    assert "page 21" in str(caught.value) or "generation" in str(caught.value)


def test_swapped_pages(path: Path, con) -> None:
    checkpointed(con)
    data = bytearray(path.read_bytes())
    one, two = BLOCK + 20 * SLOT, BLOCK + 21 * SLOT
    data[one : one + SLOT], data[two : two + SLOT] = data[two : two + SLOT], data[one : one + SLOT]
    path.write_bytes(data)
    with pytest.raises(
        TamperedError, match="page 21 is not what was sealed: damaged, moved or forged"
    ):
        read_all(path)


def test_a_page_of_another_file_with_the_same_key(path: Path, con, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    con.execute("VACUUM INTO ?", (str(other),))
    checkpointed(con)
    data, foreign = bytearray(path.read_bytes()), other.read_bytes()
    at = BLOCK + 20 * SLOT
    data[at : at + SLOT] = foreign[at : at + SLOT]
    path.write_bytes(data)
    with pytest.raises(TamperedError, match="page 21 is not what was sealed"):
        read_all(path)


def test_zeros_are_no_page(path: Path, con) -> None:
    checkpointed(con)
    data = bytearray(path.read_bytes())
    data[BLOCK + 20 * SLOT : BLOCK + 21 * SLOT] = bytes(SLOT)
    path.write_bytes(data)
    with pytest.raises((TamperedError, WrongKeyError)):
        read_all(path)


def test_a_truncated_page_and_a_truncated_file(path: Path, con) -> None:
    checkpointed(con)
    size = path.stat().st_size
    os.truncate(path, size - 10)
    with pytest.raises(nearlite.DatabaseError):
        read_all(path)
    os.truncate(path, BLOCK + 10 * SLOT)
    with pytest.raises(nearlite.DatabaseError):
        read_all(path)
    os.truncate(path, 100)
    with pytest.raises(nearlite.DatabaseError, match=r"damaged|not a sealed"):
        read_all(path)


@pytest.mark.parametrize("size", [2048, 3000, BLOCK, BLOCK + 1, BLOCK + SLOT - 1])
def test_a_file_without_its_first_page_is_no_empty_database(path: Path, con, size: int) -> None:
    checkpointed(con)
    os.truncate(path, size)
    for _ in range(2):
        with pytest.raises(nearlite.DatabaseError, match=f"{path} is damaged: it ends before"):
            read_all(path)
    assert path.stat().st_size == size


def test_a_file_that_is_cut_off_under_a_reader(path: Path, con) -> None:
    checkpointed(con)
    with closing(sealed(path)) as reader:
        reader.execute("PRAGMA cache_size=1")
        for _ in range(3):  # the size is remembered from here on
            reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        os.truncate(path, 4096 + 3 * 4128)
        with pytest.raises(
            TamperedError, match=r"a\.db: page \d+ is missing: the file has been cut off"
        ):
            reader.execute("SELECT sum(length(b)) FROM t").fetchone()


def test_a_size_is_remembered_until_somebody_commits(path: Path, con) -> None:
    """Also where the index, made anew after a crash, says what it said in the beginning."""
    checkpointed(con)
    with closing(sealed(path)) as reader:
        (before,) = reader.execute("SELECT count(*) FROM t").fetchone()
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (before,)
        with closing(sealed(path)) as writer:
            writer.execute("INSERT INTO t SELECT NULL, randomblob(3000) FROM t LIMIT 200")
            assert reader.execute("SELECT count(*) FROM t").fetchone()[0] > before
            (pages,) = writer.execute("PRAGMA page_count").fetchone()
            writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            with open(
                f"{path}-shm", "r+b"
            ) as shm:  # as a process leaves it that is killed at its end
                shm.write(bytes(136))
            assert reader.execute("PRAGMA page_count").fetchone() == (pages,)
            assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_frame_that_was_changed_under_a_reader(path: Path, con) -> None:
    """Read through a valid index: an error that names the frame."""
    con.execute("PRAGMA wal_autocheckpoint=0")
    con.execute("UPDATE t SET b = b || 'new'")
    wal = Path(f"{path}-nlwal")
    frames = (wal.stat().st_size - 32) // FRAME
    for frame in range(frames):
        flip(wal, 32 + frame * FRAME + 500)
    with (
        closing(sealed(path)) as other,
        pytest.raises(TamperedError, match=r"frame \d+ of the WAL is not what"),
    ):
        other.execute("SELECT * FROM t").fetchall()


def test_a_bad_frame_met_in_recovery_ends_the_log(path: Path, con, tmp_path: Path, caplog) -> None:
    """It cannot be told from one that was being written when the machine stopped (rule D5): it is said."""
    con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    con.execute("PRAGMA wal_autocheckpoint=0")
    for n in range(5):
        con.execute("INSERT INTO t(b) VALUES(?)", (str(n),))
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    shutil.copy(f"{path}-nlwal", f"{copy}-nlwal")
    wal = Path(f"{copy}-nlwal")
    frames = (wal.stat().st_size - 32) // FRAME
    assert frames >= 5
    flip(wal, 32 + (frames - 2) * FRAME + 500)
    with closing(sealed(copy)) as other:
        assert rows(other)[0][0] == 303
        said = f"copy.db: the log ends before frame {frames - 1}, whose seal is broken; 1 frames"
        assert said in caplog.text
        assert rows(other, "PRAGMA integrity_check") == [("ok",)]


def test_swapped_frames_end_the_log(path: Path, con, tmp_path: Path) -> None:
    con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    con.execute("PRAGMA wal_autocheckpoint=0")
    for n in range(4):
        con.execute("INSERT INTO t(b) VALUES(?)", (str(n),))
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    data = bytearray(Path(f"{path}-nlwal").read_bytes())
    a, b = 32 + FRAME, 32 + 2 * FRAME
    data[a : a + FRAME], data[b : b + FRAME] = data[b : b + FRAME], data[a : a + FRAME]
    Path(f"{copy}-nlwal").write_bytes(data)
    with closing(sealed(copy)) as other:
        assert rows(other)[0][0] == 301
        assert rows(other, "PRAGMA integrity_check") == [("ok",)]


def test_a_journal_that_somebody_puts_there_is_not_played_back(
    path: Path, con, tmp_path: Path
) -> None:
    checkpointed(con)
    stock_path = tmp_path / "stock.db"
    with closing(sqlite3.connect(stock_path, isolation_level=None)) as stock:
        stock.execute("CREATE TABLE evil(a)")
        stock.execute("PRAGMA cache_size=1")
        stock.execute("BEGIN")
        stock.executemany("INSERT INTO evil VALUES(?)", [("x" * 5000,)] * 50)
        shutil.copy(f"{stock_path}-journal", f"{path}-journal")
        stock.execute("ROLLBACK")
    with closing(sealed(path)) as con:
        assert rows(con)[0][0] == 300
        assert rows(con, "PRAGMA integrity_check") == [("ok",)]


# ---------------------------------------------------------------- other programs


def test_stock_sqlite_sees_no_database_and_destroys_nothing(
    path: Path, con, tmp_path: Path
) -> None:
    """Rule D1: after a crash, with committed frames that only the WAL has."""
    con.execute("INSERT INTO t(b) VALUES('only in the log')")
    copy = tmp_path / "crashed.db"
    shutil.copy(path, copy)
    shutil.copy(f"{path}-nlwal", f"{copy}-nlwal")
    with (
        closing(sqlite3.connect(copy)) as stock,
        pytest.raises(sqlite3.DatabaseError, match="not a database"),
    ):
        stock.execute("SELECT * FROM sqlite_master")
    subprocess.run(["sqlite3", copy, ".tables"], capture_output=True, timeout=30, check=False)
    with pytest.raises(WrongKeyError):
        nearlite.connect(copy)
    with closing(sealed(copy)) as again:
        assert rows(again, "SELECT b FROM t ORDER BY a DESC LIMIT 1") == [("only in the log",)]


def test_the_last_connection_to_close_leaves_one_file(path: Path, con, tmp_path: Path) -> None:
    con.close()
    assert [f.name for f in tmp_path.iterdir()] == ["a.db"]


# ---------------------------------------------------------------- backup


@pytest.mark.parametrize("pages", [-1, 7])
@pytest.mark.parametrize("keys", [(KEY, None), (None, KEY), (KEY, bytes(32)), (None, None)])
def test_a_backup_between_sealed_and_plain(tmp_path: Path, keys, pages: int) -> None:
    told: list[tuple[int, int, int]] = []
    source = nearlite.connect(tmp_path / "source.db", encryption_key=keys[0], isolation_level=None)
    target = nearlite.connect(tmp_path / "target.db", encryption_key=keys[1], isolation_level=None)
    with closing(source), closing(target):
        source.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        source.executemany("INSERT INTO t(b) VALUES(?)", [(MARK * 50,)] * 200)
        target.execute("CREATE TABLE gone(a)")
        source.backup(target, pages=pages, progress=lambda *what: told.append(what))
        assert rows(target) == rows(source)
        assert rows(target, "SELECT name FROM sqlite_schema") == [("t",)]
        assert rows(target, "PRAGMA integrity_check") == [("ok",)]
    assert told[-1][:2] == (101, 0)
    assert (len(told) > 5) == (pages == 7)
    with closing(nearlite.connect(tmp_path / "target.db", encryption_key=keys[1])) as again:
        assert rows(again)[0][0] == 200
    clear = {f"{n}.db" for n, key in zip(("source", "target"), keys, strict=True) if key is None}
    assert set(found_in_clear(tmp_path)) == clear


def test_what_a_backup_refuses(con, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same connection"):
        con.backup(con)
    with (
        pytest.raises(TypeError, match=r"must be a nearlite\.Connection"),
        closing(sqlite3.connect(":memory:")) as stock,
    ):
        con.backup(stock)
    with closing(sealed(tmp_path / "b.db")) as target:
        target.execute("BEGIN")
        with pytest.raises(nearlite.OperationalError, match="target is in transaction"):
            con.backup(target)
        target.execute("ROLLBACK")
        with pytest.raises(nearlite.OperationalError, match="unknown database nowhere"):
            con.backup(target, name="nowhere")
    with pytest.raises(nearlite.ProgrammingError):
        con.backup(target)
