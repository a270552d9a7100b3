"""Wherever the power fails while the key of a database is changed, nothing is lost, and the change can be made to its end."""

from __future__ import annotations

import pickle
import random
import shutil
from collections.abc import Iterator
from contextlib import closing
from copy import copy
from itertools import pairwise
from pathlib import Path

import pytest
from pagemodel import PageModel
from power import Disk, Operation, marks, recorded
from sealed_reader import SealedFile
from test_primary import bootstrap, follow
from test_primary_power import Restarted
from test_rekey import NEW, OLD, THIRD, is_changed, key, opens

import nearlite
from nearlite._native.frames import page_hash
from nearlite.errors import WrongKeyError
from nearlite.primary import Primary
from nearlite.rekeying import is_done, rekey_file

IMAGES = 90

# Two changes of the key, with transactions of another connection before, in between and after. A mark tells how many
# of those are durable, and how far the changes are: 2 more for each that has ended, 1 more for one that has begun.
WORK = """
import os, random, sys
from contextlib import closing
from pathlib import Path
import nearlite
from nearlite._native.applier import Applier
from nearlite._native.sealing import Key
from nearlite.rekeying import rekey_file
folder, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
keys = [Key.of_bytes(bytes(range(n, n + 32))) for n in range(3)]
marks = os.open(folder / "marks", os.O_WRONLY | os.O_CREAT, 0o600)
count = stage = 0
def mark():
    os.pwrite(marks, bytes([count, stage]), 0)
writer = nearlite.connect(folder / "a.db", encryption_key=keys[0], isolation_level=None)
writer.execute("PRAGMA synchronous=FULL")
writer.execute("PRAGMA cache_size=5")
writer.execute("CREATE TABLE t(n INTEGER PRIMARY KEY, b)")
def write():
    global count
    writer.execute("BEGIN")
    writer.execute("INSERT INTO t VALUES(?, zeroblob(?))", (count + 1, (count + 1) * 997 % 20000))
    if rng.random() < 0.3:
        writer.execute("UPDATE t SET b = zeroblob(length(b)) WHERE n % 3 = ?", (rng.randrange(3),))
    writer.execute("COMMIT")
    count += 1
    mark()
mark()
for _ in range(15):
    write()
def in_between(method):
    def called(self, *args, **kwargs):
        done = method(self, *args, **kwargs)
        if rng.random() < 0.6:
            write()
        return done
    return called
def begun(method):
    def called(self, *args, **kwargs):
        method(self, *args, **kwargs)
        global stage
        stage += 1
        mark()
    return called
Applier.rekey_pages = in_between(Applier.rekey_pages)
Applier.checkpoint = in_between(Applier.checkpoint)
Applier.rekey_begin = begun(Applier.rekey_begin)
for old, new in zip(keys, keys[1:]):
    rekey_file(folder / "a.db", old, new)
    stage += 1
    mark()
    writer.close()
    writer = nearlite.connect(folder / "a.db", encryption_key=new, isolation_level=None)
    writer.execute("PRAGMA synchronous=FULL")
    for _ in range(4):
        write()
writer.close()
"""
KEYS = (OLD, NEW, THIRD)


def rows(path: Path, secret: bytes) -> int:
    """How many transactions it holds: those from the first one on."""
    with closing(nearlite.connect(path, encryption_key=secret)) as con:
        assert con.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = con.execute("SELECT n, length(b) FROM t ORDER BY n").fetchall()
    assert found == [(n, n * 997 % 20000) for n in range(1, len(found) + 1)]
    return len(found)


def instants(operations: list[Operation], rng: random.Random) -> Iterator[int]:
    """Half of them where a change begins or ends."""
    known = marks(operations)
    first, last = known[0][0], len(operations)
    turns = [at for (_, a), (at, b) in pairwise(known) if a[1] != b[1]]
    for turn in range(IMAGES):
        at = rng.choice(turns)
        low, high = (first, last) if turn % 2 else (max(first, at - 12), min(last, at + 4))
        yield rng.randint(low, high)


@pytest.mark.parametrize("seed", range(3))
def test_wherever_the_power_fails_the_change_goes_on(disk_folder: Path, seed: int) -> None:
    found = disk_folder.with_name("found")
    operations = recorded(WORK, disk_folder, disk_folder, seed)
    disk, rng = Disk(operations, disk_folder), random.Random(seed)
    path = found / "a.db"
    both, single = 0, 0
    for count in instants(operations, rng):
        told, stage, after = standing(operations, count)
        disk.after(count, rng).place(disk_folder, found)
        opening = [secret for secret in KEYS if opens(path, secret)]
        assert opening in (keys_at(stage), keys_at(after)), count
        held = rows(path, rng.choice(opening))
        assert held >= told, count
        if len(opening) == 2:
            old, new = opening
            both += 1
            with pytest.raises(WrongKeyError):
                rekey_file(path, key(old), key(bytes(32)))
        else:
            (old,) = opening
            new = rng.choice([secret for secret in KEYS if secret != old])
            single += 1
        rekey_file(path, key(old), key(new))
        assert is_done(path, key(new))
        is_changed(path, old, new)
        assert rows(path, new) == held, count
    assert min(both, single) > 10


# What a first loss of power left is on the disk; the change goes on, or is made again.
AGAIN = """
import os, sys
from pathlib import Path
from nearlite._native.sealing import Key
from nearlite.rekeying import rekey_file
folder, left, old, new = Path(sys.argv[1]), Path(sys.argv[2]), *map(bytes.fromhex, sys.argv[3:5])
for source in left.iterdir():
    if source.name.startswith("a.db") and not source.name.endswith("-shm"):
        to = os.open(folder / source.name, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(to, source.read_bytes())
        os.fsync(to)
to = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
os.fsync(to)
marks = os.open(folder / "marks", os.O_WRONLY | os.O_CREAT, 0o600)
os.pwrite(marks, b"\\0", 0)
rekey_file(folder / "a.db", Key.of_bytes(old), Key.of_bytes(new))
"""


@pytest.mark.parametrize("seed", range(3))
def test_the_power_fails_again_while_the_change_goes_on(disk_folder: Path, seed: int) -> None:
    """First where the two copies of the header block differ: the one that counts must not be written first."""
    found = disk_folder.with_name("found")
    operations = recorded(WORK, disk_folder, disk_folder, seed)
    disk, rng = Disk(operations, disk_folder), random.Random(seed)
    path = found / "a.db"
    for count in instants(operations, rng):
        image = disk.after(count, rng)
        block = image.files[str(disk_folder / "a.db")][:4096]
        if block[:2048] != block[2048:]:
            break
    image.place(disk_folder, found)
    left = found.with_name("left")
    shutil.copytree(found, left)
    opening = [secret for secret in KEYS if opens(path, secret)]
    held = rows(path, opening[0])
    if len(opening) == 2:
        old, new = opening
    else:
        at = KEYS.index(opening[0])
        done = at > 0 and seed % 2 == 0  # it is made once more, and else another one
        old, new = (KEYS[at - 1], KEYS[at]) if done else (KEYS[at], KEYS[at - 1])
    again = disk_folder.with_name("again") / "files"
    again.mkdir(parents=True)
    operations = recorded(AGAIN, again, again, left, old.hex(), new.hex())
    (begun, _), *_ = marks(operations)
    disk = Disk(operations, again)
    for _ in range(IMAGES // 2):
        count = rng.randint(begun, len(operations))
        disk.after(count, rng).place(again, found)
        assert [secret for secret in KEYS if opens(path, secret)], count
        rekey_file(path, key(old), key(new))
        assert rows(path, new) == held, count  # and the log is empty
        is_changed(path, old, new)


def standing(operations: list[Operation], count: int) -> tuple[int, int, int]:
    """What is told when the power fails: transactions, the stage; and the stage that may have been reached."""
    known = marks(operations)
    told, stage = next(data for at, data in reversed(known) if at <= count)
    return told, stage, next((data[1] for at, data in known if at > count), stage)


def keys_at(stage: int) -> list[bytes]:
    """While a change has begun both of its keys open the file, otherwise one."""
    return list(KEYS[stage // 2 : stage // 2 + 1 + stage % 2])


def contents(replica: PageModel) -> int:
    """A hash of all but page 1, which has another schema cookie where the log does not tell everything (rule B7)."""
    return replica.hash ^ page_hash(replica.pages[1], 1)


# A primary commits, rolls, and stops, cleanly or not; then the key of its database is changed, and it starts again.
# Copies of what a replica was after each commit are kept.
PRIMARY = """
import copy, os, pickle, random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from pagemodel import PageModel
from nearlite._native.applier import Applier
from nearlite._native.sealing import Key
from nearlite.primary import Primary
from nearlite.rekeying import rekey_file
folder, rng, kept = Path(sys.argv[1]), random.Random(int(sys.argv[2])), sys.argv[3]
keys = [Key.of_bytes(bytes(range(n, n + 32))) for n in range(2)]
marks = os.open(folder / "marks", os.O_WRONLY | os.O_CREAT, 0o600)
replica, replicas, stage = PageModel(), [], 0
def mark():
    os.pwrite(marks, bytes([len(replicas), stage]), 0)
def work(key, count):
    primary = Primary.open(folder / "a.db", key=key)
    database = primary.connect()
    database.exec("CREATE TABLE IF NOT EXISTS t(b)")
    for n in range(count):
        database.exec("INSERT INTO t VALUES(randomblob(%d))" % rng.randrange(12000))
        primary.after_commit()
        answer = primary.changes(replica.at, replica.claimed) if replica.at else primary.snapshot()
        replica.take(answer)
        left = copy.copy(replica)
        left.pages = dict(replica.pages)
        replicas.append(left)
        mark()
        if n % 5 == 3:
            assert primary.roll()
    database.close()
    return primary
primary = work(keys[0], 16)
if int(sys.argv[2]) % 2:
    primary.close()
else:
    primary._tail.close()
    primary._log.close()
begin = Applier.rekey_begin
def rekey_begin(self, *args, **kwargs):
    global stage
    begin(self, *args, **kwargs)
    stage = 1
    mark()
Applier.rekey_begin = rekey_begin
rekey_file(folder / "a.db", *keys)
stage = 2
mark()
work(keys[1], 4).close()
pickle.dump(replicas, open(kept, "wb"))
"""


@pytest.mark.parametrize("seed", range(2), ids=["killed", "stopped"])
def test_wherever_the_power_fails_the_log_goes_on_as_well(
    disk_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    found, kept = disk_folder.with_name("found"), tmp_path / "replicas"
    operations = recorded(PRIMARY, disk_folder, disk_folder, seed, kept, Path(__file__).parent)
    replicas: list[PageModel] = pickle.loads(kept.read_bytes())
    disk, rng = Disk(operations, disk_folder), random.Random(seed)
    machine = Restarted(monkeypatch, disk_folder, found)
    path = found / "a.db"
    begun = next(at for at, data in marks(operations) if data[1])
    synced = (
        begun
        + next(  # the journal, and its folder behind it
            i
            for i, op in enumerate(operations[begun:])
            if (op.kind, op.path[-10:]) == ("s", "b-nearlite")
        )
    )
    brought = 0
    for turn, count in enumerate(instants(operations, rng)):
        if count < begun - 12:
            continue  # tests/test_primary_power.py
        told, stage, after = standing(operations, count)
        machine.with_(disk.after(count, rng))
        opening = [secret for secret in KEYS if opens(path, secret)]
        assert opening in (keys_at(stage), keys_at(after)), count
        # Before it goes on. It has to where the power may have taken the journal, and the WAL is emptied.
        if turn % 2 or count <= synced:
            Primary.open(path, key=key(rng.choice(opening))).close()
        rekey_file(path, key(OLD), key(NEW))
        is_changed(path)
        block = SealedFile.of(path.read_bytes()[:4096], NEW)
        for part in path.with_name("a.db-nearlite").iterdir():
            if part.suffix in (".index", ".hashes", ".json"):
                assert block.record(part.name, 0, part.read_bytes())
            elif part.suffix == ".wal":
                assert block.frame(1, part.read_bytes()[32 : 32 + 24 + 4096 + 32])
        with closing(Primary.open(path, key=key(NEW))) as primary:
            state = primary.state()
            assert primary.verify() == (state.hash, 0)
            here = bootstrap(primary)
            assert contents(here) in map(contents, replicas[told - 1 :]), count
            for number in {told - 1, rng.randrange(told)}:
                replica = copy(replicas[number])
                replica.pages = dict(replica.pages)
                follow(primary, replica)
                assert (replica.at, replica.hash) == (state.position, state.hash), count
                brought += 1
    assert brought > 20
