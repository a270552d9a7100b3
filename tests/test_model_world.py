"""Whatever happens to a tree of processes, a sync makes every replica what the primary is.

A primary and three relays below each other, each a process that is killed and started again; a replica
below each of them, live or not, copied, reopened, written through by processes that are killed, too; other
programs on the primary's file, whether it is up or down; backups that are put in its place; a cache in front
of the primary, the nginx of docs/caching.md; and between all of them a proxy that spoils what passes
(tests/spoiling.py). tests/test_model.py has what a connection shows meanwhile.

The model is how often each row may be in the table: an acknowledged INSERT once, one that may have been
carried out at most once, never twice.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import tempfile
import urllib.request
from collections import Counter
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import pytest
import stack
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from nginx import nginx
from soaking import Soak
from spoiling import Exchange, Fault, Proxy, random_fault

import nearlite
from nearlite import inspection
from nearlite.errors import LineageError, NotAReplicaError, PrimaryRestoredError, SyncError

LONG = 60.0  # seconds for what must succeed
PATIENCE = 3.0  # for what may fail
RELAYS = 3
LEAVES = st.integers(0, RELAYS)
SIZES = st.sampled_from([10, 300, 5_000, 60_000])
SEEDS = st.integers(0, 1 << 16)
WRITER_SENDS = 12

Allowed = dict[int, set[int]]


def run_writer(pipe: Connection, path: str, url: str, first: int) -> None:
    """Write rows through a replica until it is killed; tells each one that was acknowledged."""
    connection = nearlite.connect(
        path, sync_url=url, isolation_level=None, network_timeout=PATIENCE
    )
    for mark in range(first, first + WRITER_SENDS):
        try:
            connection.execute("INSERT INTO t VALUES(?, randomblob(3000))", (mark,))
        except nearlite.OperationalError:
            continue
        pipe.send(mark)
        connection._replica.checkpoint()


class Leaf:
    """A replica in this process, below one of the servers."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self.url = url
        self.foreign = False  # of a history that the primary does not have any more
        self.connection: Any = None

    def open(self, **options: Any) -> None:
        self.connection = nearlite.connect(
            self.path,
            sync_url=self.url,
            isolation_level=None,
            network_timeout=PATIENCE,
            **options,
        )

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def rows(self) -> list[Any]:
        """What stock SQLite reads."""
        with closing(sqlite3.connect(self.path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            return db.execute("SELECT mark, b FROM t ORDER BY mark, b").fetchall()


class World(RuleBasedStateMachine):
    """Rules are what happens to it; `done` counts them."""

    done: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.ends = ExitStack()
        self.allowed: Allowed = {}
        self.marks = 0
        self.backup: Allowed | None = None
        self.inode = 0
        self.path = self.folder / "primary.db"
        self.primary = stack.Primary(self.path, shared_cache=True)
        self.up, self.doomed = True, False  # it is to die at a fault point
        self.proxies: list[Proxy] = []
        self.relays: list[stack.Relay] = []
        port = int(self.primary.url.rpartition(":")[2])
        cache = self.ends.enter_context(nginx(self.folder / "nginx", port))
        self.before(cache.url)
        with closing(nearlite.connect(self.primary.url, isolation_level=None)) as remote:
            remote.execute("CREATE TABLE t(mark INTEGER, b BLOB)")
            remote.execute("CREATE INDEX t_mark ON t(mark)")
        for level in range(RELAYS):
            relay = stack.Relay(self.folder / f"relay{level}.db", self.proxies[level].url)
            self.relays.append(relay)
            self.before(relay.url)
        self.leaves = [
            Leaf(self.folder / f"leaf{n}.db", proxy.url) for n, proxy in enumerate(self.proxies)
        ]
        for leaf in self.leaves:
            leaf.open()

    def before(self, url: str) -> None:
        """A proxy before a server."""
        self.proxies.append(self.ends.enter_context(Proxy(int(url.rpartition(":")[2]))))

    # ------------------------------------------------------------ writes

    def mark(self) -> int:
        self.marks += 1
        return self.marks

    @rule(number=LEAVES, size=SIZES)
    def write(self, number: int, size: int) -> None:
        mark = self.mark()
        insert = ("INSERT INTO t VALUES(?, randomblob(?))", (mark, size))
        self.allowed[mark] = {0}
        self.allowed[mark] = self.came_of(number, insert, {1})

    @precondition(lambda self: self.allowed)
    @rule(number=LEAVES, pick=SEEDS, size=SIZES)
    def update(self, number: int, pick: int, size: int) -> None:
        mark = sorted(self.allowed)[pick % len(self.allowed)]
        update = ("UPDATE t SET b = randomblob(?) WHERE mark = ?", (size, mark))
        self.came_of(number, update, set())

    # What is there to be deleted depends on what processes did: it is not drawn, as hypothesis wants the same
    # draws after the same steps.
    @rule(number=LEAVES, pick=SEEDS)
    def delete(self, number: int, pick: int) -> None:
        sure = [mark for mark, counts in self.allowed.items() if counts == {1}]
        if sure:
            mark = sure[pick % len(sure)]
            self.allowed[mark] = {1}
            gone = self.came_of(number, ("DELETE FROM t WHERE mark = ?", (mark,)), {0})
            self.allowed[mark] = gone or {1}

    def came_of(self, number: int, statement: tuple[str, Any], done: set[int]) -> set[int]:
        """How often its row may be there after it: before it was either not there or there."""
        leaf = self.leaves[number]
        before = {1} if done == {0} else {0}
        try:
            leaf.connection.execute(*statement)
        except SyncError as error:
            assert not error.data_at_risk or leaf.foreign, error
            if "may have been carried out" in error.state:
                return before | done
            if "was carried out" in error.state.replace("nothing was", ""):
                return done
            assert "nothing was" in error.state, error
            return before
        assert not leaf.foreign, "another history was written to"
        return done

    @rule(number=LEAVES, acknowledged=st.integers(0, WRITER_SENDS - 1))
    def a_writing_process_is_killed(self, number: int, acknowledged: int) -> None:
        leaf = self.leaves[number]
        if leaf.foreign:
            return
        first = self.marks + 1
        self.marks += WRITER_SENDS
        self.allowed |= {mark: {0, 1} for mark in range(first, first + WRITER_SENDS)}
        child = stack.Process(run_writer, str(leaf.path), leaf.url, first)
        told = []
        try:
            told = [child.receive() for _ in range(acknowledged)]
        except EOFError:  # it could not do so many
            pass
        child.kill()
        self.done.update(kills=1)
        for mark in [*told, *child.messages()]:
            self.allowed[mark] = {1}

    # ------------------------------------------------------------ other programs on the primary's file

    @rule(
        sql=st.sampled_from(
            [
                "VACUUM",
                "PRAGMA wal_checkpoint(PASSIVE)",
                "PRAGMA wal_checkpoint(TRUNCATE)",
                "DELETE FROM t WHERE mark < 0",
                "ANALYZE",
            ]
        ),
        size=SIZES,
        down=st.booleans(),
    )
    def another_program_writes(self, sql: str, size: int, *, down: bool) -> None:
        if down:
            self.stop()
        mark = self.mark()
        with closing(sqlite3.connect(self.path, 30, isolation_level=None)) as foreign:
            foreign.execute("INSERT INTO t VALUES(?, randomblob(?))", (mark, size))
            self.allowed[mark] = {1}
            foreign.execute(sql).fetchall()
        self.start()

    # ------------------------------------------------------------ ends and beginnings of processes

    def stop(self) -> None:
        if self.up:
            self.primary.kill()
            self.done.update(kills=1)
            self.up = False

    def start(self) -> None:
        """The primary serves."""
        if self.up and self.primary.process.join(0) is not None:
            self.up = False
        if not self.up:
            self.primary.start()
            self.up, self.doomed = True, False

    @rule(up=st.booleans())
    def the_primary_is_killed(self, *, up: bool) -> None:
        self.start()
        self.stop()
        if up:
            self.start()

    @rule(point=st.sampled_from(stack.PRIMARY_POINTS), after=st.integers(0, 3))
    def the_primary_will_be_killed_at(self, point: str, after: int) -> None:
        self.stop()
        self.primary.start((point, after))
        self.up = self.doomed = True

    @rule(level=st.integers(0, RELAYS - 1))
    def a_relay_is_killed(self, level: int) -> None:
        self.relays[level].kill()
        self.done.update(kills=1)
        self.relays[level].start()

    @rule(number=LEAVES, live=st.booleans())
    def reopen(self, number: int, *, live: bool) -> None:
        self.leaves[number].close()
        self.leaves[number].open(**({"sync_interval": "live"} if live else {}))

    # ------------------------------------------------------------ copies and backups

    @rule(source=LEAVES, copy=LEAVES, kind=st.sampled_from(["file", "file and wal", "backup"]))
    def a_replica_is_copied(self, source: int, copy: int, kind: str) -> None:
        if source == copy:
            return
        one, two = self.leaves[source], self.leaves[copy]
        two.close()
        for left in self.folder.glob(f"{two.path.name}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if kind == "backup":
            with closing(sqlite3.connect(one.path)) as db, closing(sqlite3.connect(two.path)) as to:
                db.backup(to)
        else:
            shutil.copy(one.path, two.path)
            if kind == "file and wal" and Path(f"{one.path}-wal").exists():
                shutil.copy(f"{one.path}-wal", f"{two.path}-wal")
        two.foreign = one.foreign
        self.all_is_well()
        if kind == "file":  # what took it out of another history may be in the WAL alone
            here = inspection.file_status(two.path)["position"]
            two.foreign = here is not None and here[:8] != self.status()["position"][:8]
        try:
            two.open()
        except NotAReplicaError:
            assert kind == "backup"  # whose marks SQLite may have taken off
            two.open(adopt=True)
            two.foreign = False

    @rule()
    def a_backup_is_made(self) -> None:
        with (
            closing(sqlite3.connect(self.path)) as db,
            closing(sqlite3.connect(self.folder / "backup.db")) as to,
        ):
            db.backup(to)
        # What may have been carried out may also be carried out later.
        self.backup = {mark: set(counts) for mark, counts in self.allowed.items()}

    @precondition(lambda self: self.backup is not None)
    @rule()
    def the_backup_is_put_in_place_of_the_primary(self) -> None:
        assert self.backup is not None
        self.all_is_well()
        self.another_program_writes(
            "ANALYZE", 10, down=False
        )  # what is put in place is another state
        lineage = self.status()["position"][:8]
        self.stop()
        for relay in self.relays:
            relay.kill()
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        shutil.copy(self.folder / "backup.db", self.folder / "restored.db")
        os.replace(self.folder / "restored.db", self.path)
        self.allowed = {mark: set(counts) for mark, counts in self.backup.items()}
        self.start()
        assert self.status()["position"][:8] != lineage
        self.done.update(restores=1)
        for leaf in self.leaves:
            leaf.foreign = True
        # As an operator does it: relays hold what the primary has not, and are asked to give it up.
        for relay, above in zip(self.relays, self.proxies, strict=False):
            with closing(nearlite.Replica(relay.path, sync_url=above.url)) as replica:
                with pytest.raises((LineageError, PrimaryRestoredError)):
                    replica.sync()
                replica.sync(repair=True)
            relay.start()

    # ------------------------------------------------------------ the network

    @rule(seed=SEEDS, share=st.sampled_from([0.1, 0.5, 1.0]))
    def the_network_is_bad(self, seed: int, share: float) -> None:
        rng = random.Random(seed)

        def plan(exchange: Exchange) -> Fault | None:
            if rng.random() >= share:
                return None
            self.done.update(spoiled_exchanges=1)
            return random_fault(rng, exchange.path)

        for proxy in self.proxies:
            proxy.plan = plan

    @rule()
    def the_network_is_good(self) -> None:
        for proxy in self.proxies:
            proxy.sound()

    def all_is_well(self) -> None:
        self.the_network_is_good()
        if self.doomed:
            self.stop()
        self.start()

    # ------------------------------------------------------------ what must hold

    def status(self) -> Any:
        with urllib.request.urlopen(f"{self.primary.url}/nl/v1/status", timeout=LONG) as answer:
            return json.load(answer)

    @rule(number=LEAVES)
    def try_to_sync(self, number: int) -> None:
        """Whatever the weather: it works, or says why not."""
        leaf = self.leaves[number]
        try:
            leaf.connection.sync()
        except SyncError as error:
            assert leaf.foreign or not error.data_at_risk
        else:
            assert not leaf.foreign

    @rule(number=LEAVES)
    def sync(self, number: int) -> None:
        """A sync makes it what the primary is."""
        leaf = self.leaves[number]
        self.done.update(syncs=1)
        self.all_is_well()
        if leaf.foreign:
            before = leaf.rows()
            with pytest.raises((LineageError, PrimaryRestoredError)):
                self.synced(leaf)
            assert leaf.rows() == before, "overwritten without being asked"
            leaf.connection.sync(timeout=LONG, repair=True)
            leaf.foreign = False
        for _ in range(20):  # what was on its way from a process that was killed may still arrive
            self.synced(leaf)
            state, found = leaf.connection._replica._applier.full_hash()
            here = self.status()
            if str(state.position) == here["position"]:
                break
        assert (str(state.position), f"{state.hash:016x}") == (here["position"], here["hash"])
        assert found == state.hash
        rows = leaf.rows()
        with closing(sqlite3.connect(self.path)) as source:
            assert source.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert rows == source.execute("SELECT mark, b FROM t ORDER BY mark, b").fetchall()
        self.check_rows([mark for mark, _ in rows])

    def synced(self, leaf: Leaf) -> None:
        try:
            leaf.connection.sync(timeout=LONG)
        except (LineageError, PrimaryRestoredError):
            raise
        except SyncError:  # a relay's own connection was to a process that was killed
            leaf.connection.sync(timeout=LONG)

    def check_rows(self, found: list[int]) -> None:
        for mark in {*found, *self.allowed}:
            assert found.count(mark) in self.allowed[mark], f"row {mark}"

    @invariant()
    def files_are_whole(self) -> None:
        for leaf in self.leaves:
            with closing(sqlite3.connect(leaf.path)) as db:
                assert db.execute("PRAGMA quick_check").fetchall() == [("ok",)]

    def teardown(self) -> None:
        self.done.update(histories=1, rows=len(self.allowed))
        try:
            for number in range(len(self.leaves)):
                self.sync(number)
        finally:
            for leaf in self.leaves:
                leaf.close()
            for process in (*self.relays[::-1], self.primary):
                process.kill()
            self.ends.close()
            shutil.rmtree(self.folder)


@pytest.mark.soak
def test_whatever_happens_a_sync_makes_all_equal(soak: Soak) -> None:
    for _ in soak.turns(1):
        World.done.clear()
        lasting = settings(
            max_examples=4,
            stateful_step_count=15 if soak.share is None else 40,
            deadline=None,
            # What processes do is not the same twice: shrinking would take an hour, and tell little.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        )
        run_state_machine_as_test(World, settings=lasting)
        soak.count(**World.done)
