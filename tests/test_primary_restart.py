"""What a primary makes of its log when it starts again."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pagemodel import PageModel
from sealing import log_file, page_of, put_log_file, put_page, wal_of
from stock import Stock, dump, run
from test_primary import bootstrap, execute, follow

from nearlite import errors, log
from nearlite._native.database import NO_PARAMETERS
from nearlite.logformat import Journal
from nearlite.primary import Primary
from nearlite.streams import baton_key

EITHER = True

CHILD = """
import sys
from nearlite.primary import Primary
primary = Primary.open(sys.argv[1], durability=sys.argv[2])
database = primary.connect()
for line in sys.stdin:
    if line.startswith("roll"):
        primary.roll()
    elif line.startswith("quit"):
        primary.close()
        break
    else:
        database.exec(line)
    state = primary.state()
    primary.after_commit()
    print(state.position, format(state.hash, "016x"), flush=True)
"""


class Child:
    """A primary in another process, which can be killed."""

    def __init__(self, path: Path, durability: str = "full", **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), durability],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def do(self, line: str) -> str:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def killed(path: Path, *lines: str, durability: str = "full") -> list[str]:
    child = Child(path, durability)
    answers = [child.do(line) for line in lines]
    child.kill()
    return answers


def glance(path: Path) -> None:
    """What `sqlite3 file 'select 1'` does: the last close removes the WAL."""
    run(path, "SELECT count(*) FROM sqlite_schema")
    assert not wal_of(path).exists()


def state_of(path: Path) -> dict:
    return json.loads(log_file(path, "state.json"))


def edit_state(path: Path, **fields) -> None:
    put_log_file(path, "state.json", json.dumps({**state_of(path), **fields}).encode())


def test_after_a_clean_stop_the_next_generation_goes_on(tmp_path):
    path = tmp_path / "data.db"
    with Primary.open(path) as primary:
        model = bootstrap(primary)
        execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
        follow(primary, model)
        last = primary.state()
    assert state_of(path)["clean"] is True
    with Primary.open(path) as primary:
        now = primary.state()
        assert now.position == type(now.position)(last.position.lineage, 2, 0)
        assert now.hash == last.hash
        follow(primary, model)
        execute(primary, "INSERT INTO t VALUES(2)")
        follow(primary, model)
        assert model.hash == primary.verify()[0]


def test_after_a_kill_the_same_generation_goes_on(tmp_path):
    path = tmp_path / "data.db"
    told = killed(path, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")[-1]
    with Primary.open(path) as primary:
        state = primary.state()
        assert f"{state.position} {state.hash:016x}" == told
        assert state.position.generation == 1
        assert primary.verify() == (state.hash, 0)


def test_after_a_kill_and_a_glance_by_stock_sqlite_replicas_go_on(tmp_path):
    path = tmp_path / "data.db"
    with Primary.open(path) as primary:
        model = bootstrap(primary)
    child = Child(path)
    child.do("CREATE TABLE t(a)")
    first = child.do("INSERT INTO t VALUES(1)")
    child.kill()
    with Primary.open(path) as primary:  # model stands inside the generation
        follow(primary, model)
        assert f"{model.at} {model.hash:016x}" == first
        # No clean stop: as a kill would leave it.
        primary._tail.close()
        primary._closed = True
        primary._log.close()
    child = Child(path)
    last = child.do("INSERT INTO t VALUES(2)")
    child.kill()
    glance(path)
    with Primary.open(path) as primary:
        now = primary.state()
        assert f"{now.hash:016x}" == last.split()[1]
        assert now.position.generation == model.at.generation + 1
        assert follow(primary, model) > 0
        assert model.hash == now.hash
        assert not state_of(path)["archived"][-1]["foreign"]
        assert model.dump(tmp_path / "copy.db") == dump(path)


def test_what_others_wrote_while_the_primary_was_down_reaches_replicas(tmp_path):
    path = tmp_path / "data.db"
    with Primary.open(path) as primary:
        execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(zeroblob(100000))")
        model = bootstrap(primary)
        execute(primary, "INSERT INTO t VALUES(1)")
        follow(primary, model)
    run(path, "INSERT INTO t VALUES(randomblob(50000))")
    with Primary.open(path) as primary:
        carried = follow(primary, model)
        assert 0 < carried < 20
        assert model.hash == primary.verify()[0]
        assert model.dump(tmp_path / "copy.db") == dump(path)


def test_others_write_after_a_kill_and_remove_the_wal(tmp_path):
    path = tmp_path / "data.db"
    with Primary.open(path) as primary:
        execute(primary, "CREATE TABLE t(a)")
        model = bootstrap(primary)
    killed(path, "INSERT INTO t VALUES(1)", "INSERT INTO t VALUES(randomblob(9000))")
    run(path, "DELETE FROM t WHERE a = 1", "INSERT INTO t VALUES(randomblob(50000))")
    with Primary.open(path) as primary:
        assert state_of(path)["archived"][-1]["foreign"]
        follow(primary, model)
        assert model.hash == primary.verify()[0]
        assert model.dump(tmp_path / "copy.db") == dump(path)


def test_a_foreign_wal_on_a_clean_base_is_bound(tmp_path):
    path = tmp_path / "data.db"
    with Primary.open(path) as primary:
        execute(primary, "CREATE TABLE t(a)")
        model = bootstrap(primary)
    with Stock(path) as stock:
        stock.execute("INSERT INTO t VALUES(7)")
        with Primary.open(path) as primary:
            assert primary.state().position.frame > 0
            follow(primary, model)
            assert model.hash == primary.verify()[0]


@pytest.mark.parametrize("durability", ["normal", "full"])
def test_rule_a4_a_restart_under_another_boot_id_ends_the_generation(tmp_path, durability):
    """With `full`, too: another program's commits were perhaps shown before they were on the disk."""
    path = tmp_path / "data.db"
    told = killed(path, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)", durability=durability)
    edit_state(path, boot_id="another")
    with Primary.open(path, durability=durability) as primary:
        state = primary.state()
        assert state.position.generation == 2
        assert f"{state.hash:016x}" == told[-1].split()[1]
        model = PageModel()
        model.take(primary.snapshot())
        execute(primary, "INSERT INTO t VALUES(2)")
        follow(primary, model)
        assert model.hash == primary.verify()[0]
        first = told[0].split()
        answer = primary.changes(state.position.parse(first[0]), int(first[1], 16))
        assert answer is not None


def test_rule_a4_no_position_is_used_twice_after_foreign_commits_were_lost(tmp_path):
    """Durability `full`, another program with synchronous=NORMAL, and the power fails: of its commits,
    which a replica has been shown, neither WAL nor journal tells any more."""
    path = tmp_path / "data.db"
    child = Child(path)
    child.do("CREATE TABLE t(a)")
    kept = wal_of(path).stat().st_size
    (journal,) = (tmp_path / "data.db-nearlite").glob("*.journal")
    journaled = journal.stat().st_size
    run(path, "PRAGMA synchronous=NORMAL", "INSERT INTO t VALUES('lost')")
    shown, shown_hash = child.do("SELECT 1").split()
    child.kill()
    os.truncate(wal_of(path), kept)
    os.truncate(journal, journaled)
    Path(f"{path}-shm").unlink()
    edit_state(path, boot_id="another")
    with Primary.open(path) as primary:
        execute(primary, "INSERT INTO t VALUES('other')", "INSERT INTO t VALUES('more')")
        now = primary.state().position
        assert now.generation == now.parse(shown).generation + 1
        with pytest.raises(errors.Error):
            primary.changes(now.parse(shown), int(shown_hash, 16))


def test_a_tail_lost_with_the_power_is_no_restored_primary(tmp_path):
    path = tmp_path / "data.db"
    child = Child(path, "normal")
    child.do("CREATE TABLE t(a)")
    kept = wal_of(path).stat().st_size
    lost = child.do("INSERT INTO t VALUES('lost')").split()
    child.kill()
    os.truncate(wal_of(path), kept)
    Path(f"{path}-shm").unlink()
    edit_state(path, boot_id="another")
    with Primary.open(path, durability="normal") as primary:
        state = primary.state()
        assert state.position.generation == 2
        answer = primary.changes(state.position.parse(lost[0]), int(lost[1], 16))
        assert answer is not None


def test_an_older_copy_with_its_wal_is_a_new_lineage(tmp_path):
    path = tmp_path / "data.db"
    child = Child(path)
    child.do("CREATE TABLE t(a)")
    kept = wal_of(path).stat().st_size
    before = child.do("INSERT INTO t VALUES('later')").split()[0]
    child.kill()
    os.truncate(wal_of(path), kept)
    Path(f"{path}-shm").unlink()
    with Primary.open(path) as primary:
        assert str(primary.state().position)[:8] != before[:8]


@pytest.mark.parametrize("replace", [True, False])
def test_a_file_restored_from_backup_begins_a_new_lineage_with_another_schema_cookie(
    tmp_path, replace
):
    path = tmp_path / "data.db"
    with Primary.open(path) as primary:
        execute(primary, "CREATE TABLE t(a)")
    shutil.copy(path, tmp_path / "backup")
    with Primary.open(path) as primary:
        execute(primary, "CREATE TABLE u(a)", "INSERT INTO u VALUES(1)")
        old = primary.state()
    if replace:
        (tmp_path / "backup").rename(path)
    else:
        path.write_bytes((tmp_path / "backup").read_bytes())
    wal_of(path).unlink(missing_ok=True)
    with Primary.open(path) as primary:
        now = primary.state().position
        assert now.lineage != old.position.lineage
        with pytest.raises(errors.LineageError):
            primary.changes(old.position, old.hash)
        cookie = primary.connect().prepare("PRAGMA schema_version").run(NO_PARAMETERS)[0][0]
        assert cookie > 1 << 16
        assert primary.verify() == (primary.state().hash, 0)


def test_a_file_restored_from_a_copy_that_differs_in_rows_alone_begins_a_new_lineage(tmp_path):
    """Same inode, and SQLite's change counter is the same: the log knows the content from before."""
    path = tmp_path / "data.db"
    with Primary.open(path) as primary:
        execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
    saved = path.read_bytes()
    with Primary.open(path) as primary:
        execute(primary, "INSERT INTO t VALUES('undone by the restore')")
        old = primary.state()
    assert path.read_bytes()[24:28] == saved[24:28]
    path.write_bytes(saved)
    with Primary.open(path) as primary:
        assert primary.state().position.lineage != old.position.lineage
        with pytest.raises(errors.LineageError):
            primary.changes(old.position, old.hash)


def test_an_existing_database_is_adopted_with_another_schema_cookie(tmp_path):
    path = tmp_path / "data.db"
    run(path, "CREATE TABLE t(a)")
    with Primary.open(path) as primary:
        cookie = primary.connect().prepare("PRAGMA schema_version").run(NO_PARAMETERS)[0][0]
        assert cookie > 1 << 16
        assert primary.connect().prepare("PRAGMA journal_mode").run(NO_PARAMETERS) == [("wal",)]


def test_a_replica_file_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "replica.db"
    run(path, "PRAGMA journal_mode=WAL", "CREATE TABLE t(a)")
    first = bytearray(page_of(path, 1))
    first[18] = 3
    put_page(path, 1, first)
    data = path.read_bytes()
    with pytest.raises(errors.NotSupportedError, match="VACUUM INTO"):
        Primary.open(path)
    assert path.read_bytes() == data


def test_pages_with_a_reserved_tail_are_refused(tmp_path):
    path = tmp_path / "data.db"
    Primary.open(path).close()
    first = bytearray(page_of(path, 1))
    first[20] = 8  # reserved bytes, and the empty schema page's content area before them
    first[105:107] = (4096 - 8).to_bytes(2, "big")
    put_page(path, 1, first)
    with pytest.raises(errors.NotSupportedError, match="reserved tail"):
        Primary.open(path)


def test_a_second_owner_is_refused_and_told_what_to_do(tmp_path):
    path = tmp_path / "data.db"
    with Primary.open(path), pytest.raises(errors.OperationalError, match="already served") as no:
        Primary.open(path)
    assert str(os.getpid()) in str(no.value)
    Primary.open(path).close()


def test_a_damaged_table_costs_a_comparison_and_no_history(tmp_path):
    path = tmp_path / "data.db"
    with Primary.open(path) as primary:
        execute(primary, "CREATE TABLE t(a)")
        model = bootstrap(primary)
    folder = tmp_path / "data.db-nearlite"
    (table,) = folder.glob("*.hashes")
    table.write_bytes(table.read_bytes()[:-1] + b"\xff")
    with Primary.open(path) as primary:
        assert primary.state().hash == primary.verify()[0]
        follow(primary, model)
        execute(primary, "INSERT INTO t VALUES(1)")
        follow(primary, model)
        assert model.hash == primary.verify()[0]


def test_a_state_of_a_later_version_is_refused_and_not_overwritten(tmp_path):
    path = tmp_path / "data.db"
    Primary.open(path).close()
    edit_state(path, version=2)
    with pytest.raises(errors.DatabaseError, match="cannot be read by this version"):
        Primary.open(path)
    assert state_of(path)["version"] == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"{", bytes(300), b"[1]", b'{"lineage": "\xff"}'],
    ids=["empty", "cut", "zeros", "another", "no text"],
)
def test_a_damaged_state_is_refused_and_not_overwritten(tmp_path, content):
    path = tmp_path / "data.db"
    Primary.open(path).close()
    put_log_file(path, "state.json", content)
    with pytest.raises(errors.DatabaseError, match="The database itself is not affected"):
        Primary.open(path)
    assert log_file(path, "state.json") == content


def put(kind: str, at: Path) -> None:
    at.unlink()
    if kind == "directory":
        at.mkdir()
    elif kind == "fifo":
        os.mkfifo(at)
    else:
        at.symlink_to(at.name if kind == "loop" else "/dev/zero")


@pytest.mark.parametrize("kind", ["directory", "fifo", "loop", "device"])
@pytest.mark.parametrize("name", ["lock", "state.json", "*.hashes", "*.index"])
def test_what_is_no_file_in_the_folder_is_told_or_as_missing(tmp_path, name, kind):
    path = tmp_path / "data.db"
    with Primary.open(path) as primary:
        execute(primary, "CREATE TABLE t(a)")
        model = bootstrap(primary)
        execute(primary, "INSERT INTO t VALUES(1)")
        primary.roll()
    (there,) = (tmp_path / "data.db-nearlite").glob(name)
    put(kind, there)
    if name in ("lock", "state.json"):
        with pytest.raises(errors.DatabaseError, match=str(there)):
            Primary.open(path)
        return
    with Primary.open(path) as primary:
        if name == "*.index":
            with pytest.raises(errors.HistoryGoneError):
                follow(primary, model)
        else:
            follow(primary, model)
        assert bootstrap(primary).hash == primary.verify()[0]


def test_a_file_of_somebody_elses_in_the_folder_stops_no_roll(tmp_path):
    path = tmp_path / "data.db"
    with Primary.open(path) as primary:
        (tmp_path / "data.db-nearlite" / "notes.index").write_text("mine")
        execute(primary, "CREATE TABLE t(a)")
        assert primary.roll()


def test_a_key_for_batons_that_was_left_half_made(tmp_path):
    """In a container every start has the same process number."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / f"baton.key.{os.getpid()}").write_bytes(b"half")
    key = baton_key(tmp_path)
    assert (len(key), baton_key(tmp_path)) == (32, key)


def test_a_journal_that_could_not_begin_is_begun_again(tmp_path, monkeypatch):
    path = tmp_path / "data.db"
    with Primary.open(path) as primary:
        model = bootstrap(primary)

        def full(*_args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr("nearlite.log.write_all", full)
            patched.setattr("nearlite.generation.Generations.save", _kept_in_memory)
            with pytest.raises(OSError, match="No space"):
                execute(primary, "CREATE TABLE t(a)")
        execute(primary, "INSERT INTO t VALUES(1)")
        follow(primary, model)
        (journal,) = (tmp_path / "data.db-nearlite").glob("*.journal")
        assert Journal.decode(log_file(path, journal.name)).frame == primary.state().position.frame
        assert not list((tmp_path / "data.db-nearlite").glob("*.journal.part"))


def _kept_in_memory(generations, state):
    generations.state = state


def test_the_wal_of_an_archived_generation_is_never_taken_for_the_next(tmp_path):
    """A WAL that comes back after it was emptied (the truncation was lost with the power)."""
    path = tmp_path / "data.db"
    primary = Primary.open(path)
    execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
    model = bootstrap(primary)
    old_wal = wal_of(path).read_bytes()
    assert primary.roll()
    follow(primary, model)
    primary._tail.close()
    primary._closed = True
    primary._log.close()
    wal_of(path).write_bytes(old_wal)
    Path(f"{path}-shm").unlink(missing_ok=True)
    with Primary.open(path) as again:
        state = again.state()
        assert state.position.generation == 3
        assert state.position.frame > 0
        follow(again, model)
        execute(again, "INSERT INTO t VALUES(2)")
        follow(again, model)
        assert model.hash == again.verify()[0]
        assert again.roll()
        follow(again, model)
    assert state_of(path)["generation"] == 4


def test_after_a_restore_under_the_running_primary_the_old_historys_indexes_are_forgotten(tmp_path):
    """Written over in place, as a copy tool does: same inode, an empty WAL, an earlier state."""
    path = tmp_path / "data.db"
    with Primary.open(path) as primary:
        execute(primary, "CREATE TABLE t(a)")
        start = primary.state()
        execute(primary, "INSERT INTO t VALUES(1)")
        primary.roll()
        saved = path.read_bytes()
        execute(primary, "INSERT INTO t VALUES(2)")
        primary.roll()
        assert primary.changes(start.position, start.hash) is not None  # reads generation 1's index
        execute(primary, "INSERT INTO t VALUES(3)")
        path.write_bytes(saved)
        with open(f"{path}-shm", "r+b") as shm:
            shm.write(bytes(os.fstat(shm.fileno()).st_size))
        os.truncate(wal_of(path), 0)
        begun = primary.state()
        assert begun.position.lineage != start.position.lineage
        for number in range(5):
            execute(primary, f"CREATE TABLE u{number}(a)")
        between = primary.state()
        execute(primary, "INSERT INTO t VALUES(4)")
        while primary.state().position.generation == between.position.generation:
            primary.roll()
        assert primary.changes(between.position, between.hash) is not None


def test_a_start_that_fails_at_its_lock_can_be_tried_again(tmp_path, monkeypatch):
    path = tmp_path / "data.db"

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            Primary.open(path)
    Primary.open(path).close()


def test_a_file_system_without_locks_is_not_another_process(tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(OSError, match="No locks available"):
        Primary.open(tmp_path / "data.db")


FORK = """
import os, sys
from nearlite.primary import Primary
primary = Primary.open(sys.argv[1])
read, written = os.pipe()
child = os.fork()
if child == 0:
    os.close(written)
    os.read(read, 1)  # until the parent has closed its end
    os._exit(0)
try:
    primary.close()
    Primary.open(sys.argv[1]).close()
finally:
    os.close(written)
    os.waitpid(child, 0)
"""


def test_a_child_that_was_forked_meanwhile_does_not_keep_the_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(tmp_path / "data.db")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_primary_that_ends_before_it_has_recovered_keeps_its_history(tmp_path, monkeypatch):
    """The WAL was emptied by force while the disk was full; there is room again at the end."""
    path = tmp_path / "data.db"

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Primary.open(path) as primary:
        execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
        known = primary.state()
        execute(primary, "INSERT INTO t VALUES(2)")
        primary.state()
        primary.prepare_roll()  # the database file has it all
        with open(f"{path}-shm", "r+b") as shm:
            shm.write(bytes(os.fstat(shm.fileno()).st_size))
        os.truncate(wal_of(path), 0)
        with monkeypatch.context() as patched:
            patched.setattr(log.Log, "save_index", full)
            with pytest.raises(OSError, match="No space left"):
                primary.state()
        run(path, "INSERT INTO t VALUES(3)")
    with Primary.open(path) as primary:
        assert primary.state().position.lineage == known.position.lineage
        assert primary.changes(known.position, known.hash) is not None


def test_a_file_that_is_put_into_place_while_another_is_open_is_another_history(
    tmp_path: Path,
) -> None:
    path, other = tmp_path / "data.db", tmp_path / "other.db"
    with Primary.open(other) as primary:
        for number in range(20):  # so many changes that nothing in the file looks older
            execute(primary, f"CREATE TABLE t{number}(a)")
    primary = Primary.open(path)
    execute(primary, "CREATE TABLE t(a)")
    before = primary.latest
    other.rename(path)
    for suffix in ("-wal", "-nlwal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    assert primary.displaced()
    primary.close()
    with Primary.open(path) as primary:
        assert primary.latest.lineage != before.lineage
