"""Failing disks under the primary: every error is reported, nothing is lost, the next try succeeds."""

from __future__ import annotations

import errno

import pytest
from sealing import wal_of
from test_primary import bootstrap, execute, follow

from nearlite import errors
from nearlite._native import faults
from nearlite.log import write_all
from nearlite.logformat import Journal
from nearlite.primary import Primary

EITHER = True

# In the order in which a roll passes them. The last of each kind is state.json, when the WAL is empty
# already: then the next generation has begun, and nothing is shown before that is durable.
ROLL = [
    ("roll.1-prepared", 0),
    ("roll.2-locked", 0),
    ("log.before-rename", 0),
    ("log.before-sync", 0),
    ("log.before-rename", 1),
    ("roll.2-archived", 0),
    ("log.before-sync", 1),
    ("log.before-rename", 2),
    ("roll.3-table", 0),
    ("log.before-sync", 2),
    ("log.before-rename", 3),
    ("log.after-rename", 3),
]


@pytest.fixture(autouse=True)
def _disarm():
    yield
    faults.clear()


@pytest.fixture
def primary(tmp_path):
    with Primary.open(tmp_path / "data.db", durability="normal") as opened:
        execute(opened, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
        yield opened


@pytest.mark.parametrize("kind", [faults.EIO, faults.ENOSPC])
@pytest.mark.parametrize(("point", "after"), ROLL)
def test_a_roll_that_fails_leaves_the_generation_going_on(primary, point, after, kind):
    model = bootstrap(primary)
    before = primary.state()
    faults.arm(point, kind, after)
    with pytest.raises(OSError) as failure:
        primary.roll()
    assert failure.value.errno in (errno.EIO, errno.ENOSPC)
    assert primary.state().position.generation in (
        before.position.generation,
        before.position.generation + 1,
    )
    execute(primary, "INSERT INTO t VALUES(2)")
    follow(primary, model)
    assert model.hash == primary.verify()[0]
    assert primary.roll()
    follow(primary, model)
    assert model.at == primary.state().position


@pytest.mark.parametrize("later", [0, 200_000, 2_000_000], ids=["nothing", "little", "much"])
def test_what_was_prepared_is_not_prepared_again(primary, later):
    """Only what came since, and that only if it is more than the commits can wait for."""
    model = bootstrap(primary)
    execute(primary, "INSERT INTO t VALUES(randomblob(3000000))")
    assert primary.prepare_roll()
    execute(primary, f"INSERT INTO t VALUES(randomblob({later}))")
    faults.arm("roll.1-prepared", faults.EIO)
    if later > 1 << 20:
        with pytest.raises(OSError, match="Input/output"):
            primary.roll()
    assert primary.roll()
    assert primary.state().position.generation == model.at.generation + 1
    follow(primary, model)
    assert model.hash == primary.verify()[0]
    assert not primary.prepare_roll(), "an empty generation has nothing to roll"


def test_a_checkpoint_that_fails_leaves_the_generation_going_on(primary):
    before = primary.state().position
    faults.arm("roll.checkpoint", faults.EIO)
    with pytest.raises(errors.OperationalError):
        primary.roll()
    assert primary.state().position == before
    assert not primary.roll_due
    execute(primary, "INSERT INTO t VALUES(2)")
    assert primary.roll()
    assert primary.verify()[1] == 0


def test_rule_a3_a_stop_whose_roll_fails_keeps_the_wal(tmp_path):
    """SQLite's last close would checkpoint and delete it, and the generation with it."""
    path = tmp_path / "data.db"
    primary = Primary.open(path)
    execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
    before = primary.state()
    faults.arm("roll.1-prepared", faults.EIO)
    primary.close()
    assert wal_of(tmp_path / "data.db").stat().st_size > 0
    with Primary.open(path) as again:
        assert (again.state().position, again.state().hash) == (before.position, before.hash)
        assert again.verify() == (before.hash, 0)


def test_an_unreadable_wal_is_an_error_and_then_read_on(primary):
    model = bootstrap(primary)
    database = primary.connect()
    database.exec("INSERT INTO t VALUES(2)")
    faults.arm("tail.read-frames", faults.EIO)
    with pytest.raises(errors.OperationalError):
        primary.after_commit()
    primary.after_commit()
    database.close()
    follow(primary, model)
    assert model.hash == primary.verify()[0]


def test_an_unreadable_page_is_an_error_and_not_an_answer(primary):
    model = bootstrap(primary)
    execute(primary, "INSERT INTO t VALUES(2)")
    faults.arm("tail.read-page", faults.EIO)
    with pytest.raises(errors.OperationalError):
        follow(primary, model)
    follow(primary, model)
    assert model.hash == primary.verify()[0]


@pytest.mark.parametrize("point", ["log.before-append", "log.after-append"])
def test_a_journal_that_cannot_be_written_stops_answers_until_it_can(primary, point):
    model = bootstrap(primary)
    database = primary.connect()
    database.exec("INSERT INTO t VALUES(2)")
    faults.arm(point, faults.ENOSPC)
    with pytest.raises(OSError, match="space"):
        primary.after_commit()
    database.close()
    follow(primary, model)
    execute(primary, "INSERT INTO t VALUES(3)")
    follow(primary, model)
    assert model.hash == primary.verify()[0]


def test_a_signal_between_the_journals_write_and_its_count(primary, monkeypatch):
    """Ctrl-C on the thread that commits: a record that is there twice would hide all that follow it."""

    def interrupted(handle, data):
        write_all(handle, data)
        raise KeyboardInterrupt

    model = bootstrap(primary)
    database = primary.connect()
    database.exec("INSERT INTO t VALUES(2)")
    with monkeypatch.context() as patched:
        patched.setattr("nearlite.log.write_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            primary.after_commit()
    database.close()
    follow(primary, model)
    execute(primary, "INSERT INTO t VALUES(3)")
    follow(primary, model)
    (journal,) = primary._log.folder.glob("*.journal")
    assert (
        Journal.decode(primary._log.journal_whole(journal.name)).frame
        == primary.state().position.frame
    )


def test_salts_that_cannot_be_made_durable_stop_answers_until_they_can(primary):
    assert primary.roll()
    model = bootstrap(primary)
    database = primary.connect()
    database.exec("INSERT INTO t VALUES(2)")
    faults.arm("log.before-sync", faults.EIO)
    with pytest.raises(OSError):
        follow(primary, model)
    database.close()
    follow(primary, model)
    assert model.hash == primary.verify()[0]
