"""Rule E1: nearlite's SQLite and Python's sqlite3 in one process never lose each other's locks."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import nearlite
from nearlite._native import process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="OFD locks are Linux's")

SHARED = "1073741826"  # first byte of SQLite's SHARED lock on the main file
DMS = "128"  # the byte of the -shm file that every connection holds


def near(path: Path | str, timeout: float = 5.0, *, uri: bool = False) -> nearlite.Connection:
    return nearlite.connect(str(path), timeout, isolation_level=None, uri=uri)


def stock(path: Path, timeout: float = 0.0) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout, isolation_level=None, check_same_thread=False)


def one(connection: sqlite3.Connection | nearlite.Connection, sql: str) -> object:
    return connection.execute(sql).fetchone()[0]


def shm(path: Path) -> Path:
    return Path(f"{path}-shm")


def locks(path: Path, kind: str) -> list[str]:
    """First bytes of the locks of one kind (POSIX, OFDLCK) on the file, as the kernel lists them.

    It lists all locks of the machine, in pieces of 4 KiB: what changes between two of them, by whatever
    program, makes a line appear twice or not at all. Two looks in a row have to agree.
    """
    inode = f":{path.stat().st_ino}"  # not the device: an overlay has another one than its files
    before: list[str] | None = None
    while True:
        rows = (line.split() for line in Path("/proc/locks").read_text().splitlines())
        found = sorted(row[6] for row in rows if row[1] == kind and row[5].endswith(inode))
        if found == before:
            return found
        before = found


def run(script: str, *args: object, **environment: str) -> str:
    """What a Python process of its own prints, errors included."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *map(str, args)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )
    return done.stdout + done.stderr


def elsewhere(code: str, path: Path) -> str:
    """What another process with the stock library prints."""
    opening = "c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)"
    return run(f"import sqlite3, sys; {opening}; {code}", path).strip()


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    path = tmp_path / "wal.db"
    c = stock(path)
    c.execute("PRAGMA journal_mode=WAL")
    c.execute("CREATE TABLE t(a)")
    c.execute("INSERT INTO t VALUES(1)")
    c.close()
    return path


@pytest.fixture
def rollback(tmp_path: Path) -> Path:
    path = tmp_path / "rollback.db"
    c = stock(path)
    c.execute("CREATE TABLE t(a)")
    c.execute("INSERT INTO t VALUES(1)")
    c.close()
    return path


@pytest.fixture(params=["wal", "rollback"])
def either(request: pytest.FixtureRequest) -> Path:
    """A database in WAL mode, then one with a rollback journal."""
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def mine(wal: Path) -> Iterator[nearlite.Connection]:
    connection = near(wal)
    assert one(connection, "SELECT count(*) FROM t") == 1
    yield connection
    connection.close()


# ---------------------------------------------------------------- our locks survive


def test_rule_e1_a_foreign_close_in_the_process_keeps_our_locks(
    wal: Path, mine: nearlite.Connection
) -> None:
    assert (locks(wal, "OFDLCK"), locks(shm(wal), "OFDLCK")) == ([SHARED], [DMS])
    other = stock(wal)
    assert one(other, "SELECT count(*) FROM t") == 1
    other.close()
    assert (locks(wal, "OFDLCK"), locks(shm(wal), "OFDLCK")) == ([SHARED], [DMS])
    count = "print(c.execute('SELECT count(*) FROM t').fetchone()[0]); c.close()"
    assert elsewhere(count, wal) == "1"
    assert Path(f"{wal}-wal").exists()
    mine.execute("INSERT INTO t VALUES(2)")
    assert elsewhere(count, wal) == "2"


def test_rule_e1_opening_the_files_by_path_and_closing_them_keeps_our_locks(
    wal: Path, mine: nearlite.Connection
) -> None:
    mine.execute("BEGIN IMMEDIATE")
    before = locks(wal, "OFDLCK"), locks(shm(wal), "OFDLCK")
    for path in (wal, shm(wal), Path(f"{wal}-wal")):
        path.read_bytes()
    assert (locks(wal, "OFDLCK"), locks(shm(wal), "OFDLCK")) == before
    assert "database is locked" in elsewhere("c.execute('INSERT INTO t VALUES(9)')", wal)
    mine.execute("INSERT INTO t VALUES(2)")
    mine.execute("COMMIT")
    assert one(mine, "SELECT sum(a) FROM t") == 3


def test_rule_e1_many_connections_checkpoints_and_foreign_writers_lose_nothing(wal: Path) -> None:
    writer = """
        import sqlite3, sys
        for i in range(30):
            c = sqlite3.connect(sys.argv[1], 20, isolation_level=None)
            c.execute("INSERT INTO t VALUES(0)")
            c.close()
        """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(writer), str(wal)])
    rows = 1
    while child.poll() is None:
        several = [near(wal, 20) for _ in range(3)]
        for c in several:
            c.execute("INSERT INTO t VALUES(0)")
        several[0].execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        stock(wal).close()
        several[1].execute("INSERT INTO t VALUES(0)")
        for c in several:
            c.close()
        rows += 4
    assert child.returncode == 0
    last = stock(wal)
    assert one(last, "SELECT count(*) FROM t") == rows + 30
    assert one(last, "PRAGMA integrity_check") == "ok"
    last.close()


# ---------------------------------------------------------------- theirs survive


def test_rule_e1_our_close_keeps_the_locks_of_pythons_sqlite3(either: Path) -> None:
    theirs = stock(either)
    theirs.execute("BEGIN IMMEDIATE")
    theirs.execute("INSERT INTO t VALUES(2)")
    before = locks(either, "POSIX")
    assert before
    ours = near(either)
    assert one(ours, "SELECT count(*) FROM t") == 1
    ours.close()
    near(either).close()  # opened and never read
    assert locks(either, "POSIX") == before
    assert "database is locked" in elsewhere("c.execute('INSERT INTO t VALUES(9)')", either)
    theirs.execute("COMMIT")
    theirs.close()
    assert elsewhere("print(c.execute('SELECT sum(a) FROM t').fetchone()[0])", either) == "3"


def test_our_close_of_a_database_named_like_a_side_file_keeps_their_locks(tmp_path: Path) -> None:
    path = tmp_path / "odd-wal"
    theirs = stock(path)
    theirs.execute("CREATE TABLE t(a)")
    theirs.execute("BEGIN IMMEDIATE")
    before = locks(path, "POSIX")
    near(path).close()
    ours = near(path, 0)
    with pytest.raises(nearlite.OperationalError, match="locked"):
        ours.execute("INSERT INTO t VALUES(1)")
    ours.close()
    assert before
    assert locks(path, "POSIX") == before
    theirs.close()


# ---------------------------------------------------------------- exclusion, both ways


def test_both_libraries_exclude_each_others_writers_in_one_process(either: Path) -> None:
    ours, theirs = near(either, 0), stock(either)
    for first, second in ((ours, theirs), (theirs, ours)):
        first.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            second.execute("BEGIN IMMEDIATE")
        first.execute("COMMIT")
    ours.close()
    theirs.close()


def test_a_reader_of_either_library_keeps_the_other_from_an_exclusive_lock(rollback: Path) -> None:
    ours, theirs = near(rollback, 0), stock(rollback)
    for reader, writer in ((ours, theirs), (theirs, ours)):
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM t").fetchall()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            writer.execute("BEGIN EXCLUSIVE")
        reader.execute("COMMIT")
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            reader.execute("SELECT * FROM t").fetchall()
        writer.execute("COMMIT")
    ours.close()
    theirs.close()


def test_a_writer_that_waits_for_the_other_library_gets_its_turn(
    wal: Path, mine: nearlite.Connection
) -> None:
    mine.execute("BEGIN IMMEDIATE")
    mine.execute("INSERT INTO t VALUES(2)")
    theirs = stock(wal, timeout=20)
    waiting = threading.Thread(target=theirs.execute, args=("INSERT INTO t VALUES(3)",))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    mine.execute("COMMIT")
    waiting.join(20)
    assert one(mine, "SELECT sum(a) FROM t") == 6
    theirs.close()


def test_a_checkpoint_of_the_other_library_respects_our_reader(
    wal: Path, mine: nearlite.Connection
) -> None:
    theirs = stock(wal)
    theirs.execute("INSERT INTO t VALUES(2)")
    mine.execute("BEGIN")
    assert one(mine, "SELECT sum(a) FROM t") == 3
    theirs.execute("INSERT INTO t VALUES(3)")
    assert one(theirs, "PRAGMA wal_checkpoint(TRUNCATE)") == 1
    assert one(mine, "SELECT sum(a) FROM t") == 3
    mine.execute("COMMIT")
    assert one(theirs, "PRAGMA wal_checkpoint(TRUNCATE)") == 0
    assert one(mine, "SELECT sum(a) FROM t") == 6
    theirs.close()


def test_opening_for_reading_first_does_not_hinder_a_later_writer(either: Path) -> None:
    reader = near(f"file:{either}?mode=ro", uri=True)
    assert one(reader, "SELECT count(*) FROM t") == 1
    writer = near(either)
    writer.execute("INSERT INTO t VALUES(2)")
    assert one(reader, "SELECT sum(a) FROM t") == 3
    writer.close()
    assert one(reader, "SELECT sum(a) FROM t") == 3
    reader.close()


# ---------------------------------------------------------------- descriptors


def test_the_last_close_still_deletes_the_wal(wal: Path) -> None:
    first, second = near(wal), near(wal)
    first.execute("INSERT INTO t VALUES(2)")
    assert one(second, "SELECT sum(a) FROM t") == 3
    first.close()
    assert Path(f"{wal}-wal").exists()
    second.close()
    assert not Path(f"{wal}-wal").exists()
    assert not shm(wal).exists()
    assert locks(wal, "OFDLCK") == []


def test_opening_again_and_again_leaks_no_descriptor(wal: Path) -> None:
    for _ in range(2):  # until what is parked is enough for one more
        near(wal).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        c = near(wal)
        c.execute("INSERT INTO t VALUES(0)")
        c.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_parked_descriptors_are_bounded_and_those_of_locked_files_are_kept(tmp_path: Path) -> None:
    held = stock(tmp_path / "held.db")
    held.execute("CREATE TABLE t(a)")
    held.execute("BEGIN IMMEDIATE")
    near(tmp_path / "held.db").close()
    before = locks(tmp_path / "held.db", "POSIX")
    for i in range(270):
        near(tmp_path / f"{i}.db").close()
    assert process.descriptors()[1] <= 256
    assert before
    assert locks(tmp_path / "held.db", "POSIX") == before
    held.close()


def test_descriptors_of_deleted_files_are_closed_at_the_next_open(tmp_path: Path) -> None:
    for i in range(5):
        c = near(tmp_path / f"{i}.db")
        c.execute("CREATE TABLE t(a)")
        c.close()
        (tmp_path / f"{i}.db").unlink()
    last = near(tmp_path / "last.db")
    gone = [
        link
        for fd in Path("/proc/self/fd").iterdir()
        if fd.is_symlink()
        and (link := os.readlink(fd)).startswith(str(tmp_path))
        and link.endswith("(deleted)")
    ]
    assert gone == []
    last.close()


def test_a_replaced_file_is_not_served_from_a_parked_descriptor(tmp_path: Path, wal: Path) -> None:
    path = tmp_path / "replaced.db"
    c = near(path)
    c.execute("CREATE TABLE old(a)")
    c.close()
    wal.replace(path)
    c = near(path)
    assert one(c, "SELECT count(*) FROM t") == 1
    c.close()


def test_a_parked_descriptor_does_not_outlive_the_permission_to_write(tmp_path: Path) -> None:
    script = """
        import os, sys, nearlite
        nearlite.connect(":memory:").close()  # everything is imported
        if os.getuid() == 0:  # to root, permissions mean nothing
            os.setgid(65534)
            os.setuid(65534)
        os.chdir(sys.argv[1])
        c = nearlite.connect("perm.db", isolation_level=None)
        c.execute("CREATE TABLE t(a)")
        c.close()
        os.chmod("perm.db", 0o444)
        c = nearlite.connect("perm.db", isolation_level=None)
        try:
            c.execute("INSERT INTO t VALUES(1)")
        except nearlite.OperationalError as error:
            print(error)
        """
    folder = Path(f"/dev/shm/nearlite-{os.getpid()}")
    folder.mkdir()
    folder.chmod(0o777)
    try:
        assert run(script, folder).strip() == "attempt to write a readonly database"
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


# ---------------------------------------------------------------- fork

FORK = """
import gc, os, signal, sqlite3, sys, threading, nearlite

def forked(body):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException as error:
            print("child:", type(error).__name__, error, flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

path = sys.argv[1]
c = nearlite.connect(path, 0.1, isolation_level=None)
"""


def forking(script: str, *args: object, **environment: str) -> str:
    return run(FORK + textwrap.dedent(script), *args, **environment)


def test_an_inherited_connection_refuses_work_in_the_child(wal: Path) -> None:
    out = forking(
        """
        cursor = c.execute("SELECT a FROM t")
        uses = [
            lambda: c.execute("SELECT 1"),
            lambda: c.execute("INSERT INTO t VALUES(1)"),
            lambda: c.executemany("INSERT INTO t VALUES(?)", [(1,)]),
            lambda: c.executescript("SELECT 1"),
            lambda: cursor.execute("SELECT 1"),
        ]
        print([forked(use) for use in uses])
        """,
        wal,
    )
    assert out.count("child: ProgrammingError the connection was opened before a fork") == 5
    assert "[1, 1, 1, 1, 1]" in out


@pytest.mark.parametrize("how", ["c.close()", "c = rows = None; gc.collect()", "rows.close()", "0"])
def test_leaving_an_inherited_connection_in_the_child_harms_nothing_in_the_parent(
    how: str, either: Path
) -> None:
    """The parent is inside a transaction that has spilled pages to disk, with a half-read cursor."""
    out = forking(
        f"""
        c.execute("PRAGMA cache_size=5")
        c.execute("BEGIN IMMEDIATE")
        c.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<50) "
                  "INSERT INTO t SELECT randomblob(4000) FROM n")
        rows = c.execute("SELECT a FROM t")
        rows.fetchone()
        def leave():
            global c, rows
            {how}
        print(forked(leave))
        c.execute("INSERT INTO t VALUES(2)")
        c.execute("COMMIT")
        other = sqlite3.connect(path)
        print(other.execute("SELECT count(*) FROM t").fetchone()[0])
        print(other.execute("PRAGMA integrity_check").fetchone()[0])
        print(c.execute("SELECT count(*) FROM t").fetchone()[0])
        """,
        either,
    )
    assert out.split() == ["0", "52", "ok", "52"]


def test_a_childs_own_connection_is_excluded_by_the_parent(wal: Path) -> None:
    out = forking(
        """
        c.execute("BEGIN IMMEDIATE")
        c.execute("INSERT INTO t VALUES(2)")
        def excluded():
            own = nearlite.connect(path, 0, isolation_level=None)
            print(own.execute("SELECT count(*) FROM t").fetchone()[0], flush=True)
            try:
                own.execute("INSERT INTO t VALUES(9)")
            except nearlite.OperationalError as error:
                print(error, flush=True)
            own.close()
        assert forked(excluded) == 0
        c.execute("COMMIT")
        def writes():
            own = nearlite.connect(path, isolation_level=None)
            own.execute("INSERT INTO t VALUES(3)")
            own.close()
        assert forked(writes) == 0
        print(os.path.exists(path + "-wal"))  # the child was not the last one
        print(c.execute("SELECT sum(a) FROM t").fetchone()[0])
        """,
        wal,
    )
    assert out.splitlines() == ["1", "database is locked", "True", "6"]


def test_a_child_that_outlives_its_parent_holds_none_of_its_locks(wal: Path) -> None:
    out = forking(
        """
        c.execute("BEGIN IMMEDIATE")
        c.execute("INSERT INTO t VALUES(2)")
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(write)
            os.read(read, 1)  # until the parent dies; the kernel chooses the order of its closes
            own = sqlite3.connect(path, 5, isolation_level=None)
            own.execute("INSERT INTO t VALUES(3)")
            print(own.execute("SELECT sum(a) FROM t").fetchone()[0], flush=True)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        wal,
    )
    assert out.split() == ["4"]


@pytest.mark.forks_threads
def test_a_fork_while_other_threads_are_inside_sqlite_leaves_a_working_child(wal: Path) -> None:
    out = forking(
        """
        stop = threading.Event()
        def churn():
            while not stop.is_set():
                own = nearlite.connect(path, 20, isolation_level=None)
                own.execute("INSERT INTO t VALUES(0)")
                own.close()
                sqlite3.connect(path).close()
        threads = [threading.Thread(target=churn) for _ in range(2)]
        for t in threads: t.start()
        def child():
            own = nearlite.connect(path, 20, isolation_level=None)
            own.execute("INSERT INTO t VALUES(5)")
            own.close()
        print([forked(child) for _ in range(6)])
        stop.set()
        for t in threads: t.join()
        print(c.execute("SELECT count(*) FROM t WHERE a=5").fetchone()[0])
        print(c.execute("PRAGMA integrity_check").fetchone()[0])
        """,
        wal,
    )
    assert out.splitlines() == ["[0, 0, 0, 0, 0, 0]", "6", "ok"]


def test_killing_the_process_releases_everything(wal: Path) -> None:
    holds = """
        import sys, nearlite
        c = nearlite.connect(sys.argv[1], isolation_level=None)
        c.execute("BEGIN IMMEDIATE")
        print("held", flush=True)
        sys.stdin.read()
        """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(holds), str(wal)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert "database is locked" in elsewhere("c.execute('INSERT INTO t VALUES(9)')", wal)
    holder.kill()
    holder.communicate()
    assert elsewhere("c.execute('INSERT INTO t VALUES(9)'); print('in')", wal) == "in"


# ---------------------------------------------------------------- without OFD locks

REFUSE_OFD = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
static int refuse(const char *name, int fd, int cmd, void *arg)
{
    int (*next)(int, int, ...) = (int (*)(int, int, ...))dlsym(RTLD_NEXT, name);
    if (cmd == F_OFD_SETLK || cmd == F_OFD_SETLKW) { errno = EINVAL; return -1; }
    return next(fd, cmd, arg);
}
#define CALL(name) int name(int fd, int cmd, ...) { va_list a; va_start(a, cmd); \\
    void *arg = va_arg(a, void *); va_end(a); return refuse(#name, fd, cmd, arg); }
CALL(fcntl)
CALL(fcntl64)
"""


def test_a_file_system_without_ofd_locks_gets_posix_locks(tmp_path: Path, wal: Path) -> None:
    source, library = tmp_path / "refuse.c", tmp_path / "refuse.so"
    source.write_text(REFUSE_OFD)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    out = forking(
        """
        c.execute("BEGIN IMMEDIATE")
        c.execute("INSERT INTO t VALUES(2)")
        inode = f":{os.stat(path + '-shm').st_ino}"
        kinds = set()
        for _ in range(5):  # it is read in pieces, between which lines may move
            lines = [line.split() for line in open("/proc/locks")]
            kinds |= {line[1] for line in lines if line[5].endswith(inode)}
        print(kinds)
        c.execute("COMMIT")
        c.close()
        print(os.path.exists(path + "-wal"))
        """,
        wal,
        # behind what is preloaded already: a sanitizer wants to be first
        LD_PRELOAD=f"{os.environ.get('LD_PRELOAD', '')} {library}".strip(),
    )
    assert out.splitlines() == ["{'POSIX'}", "False"]
