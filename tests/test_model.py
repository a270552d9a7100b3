"""A primary, two replicas and a dict: whatever order things happen in, everybody reads what they must.

The dict is what the primary holds; `history` are the states it had, one per commit. A replica reads
its own writes at once, after sync() the newest state, and in between some state at or after the one
that it read last.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from serving import Client, serving
from soaking import Soak

import nearlite

SIDES = st.sampled_from([0, 1])
KEYS = st.integers(0, 12)
# Around what fits a page, so that rows move to overflow pages and back.
VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.sampled_from(["x" * n for n in (900, 4000, 9000)]),
)
PAIRS = st.lists(st.tuples(KEYS, VALUES), max_size=4)
UPSERT = "INSERT INTO kv VALUES(?, ?) ON CONFLICT(k) DO UPDATE SET v = excluded.v"

State = dict[int, Any]


class Cluster(RuleBasedStateMachine):
    """The machine: rules are what users do, invariants what they may see."""

    done: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.ends = ExitStack()
        self.model: State = {}
        self.history: list[State] = [{}]
        self.seen = [0, 0]  # index in history of the newest state each replica has shown
        self.start()
        client = Client(self.port)
        client.run("CREATE TABLE kv(k INTEGER PRIMARY KEY, v)")
        client.close()
        self.replicas = [self.open(side) for side in (0, 1)]

    def start(self) -> None:
        # Small generations, so that rolls happen.
        app = nearlite.asgi(self.folder / "p.db", durability="normal", roll_bytes=200_000)
        self.port = self.ends.enter_context(serving(app))

    def open(self, side: int) -> Any:
        url = f"http://127.0.0.1:{self.port}"
        return nearlite.connect(
            str(self.folder / f"r{side}.db"), isolation_level=None, sync_url=url
        )

    def read(self, side: int) -> State:
        return dict(self.replicas[side].execute("SELECT k, v FROM kv").fetchall())

    def committed(self, side: int | None) -> None:
        """The dict was committed, by a replica that reads its own writes."""
        if self.model != self.history[-1]:
            self.history.append(dict(self.model))
        if side is not None:
            self.newest(side)

    def newest(self, side: int) -> None:
        assert self.read(side) == self.model
        self.seen[side] = len(self.history) - 1

    # ------------------------------------------------------------ writes

    @rule(side=SIDES, key=KEYS, value=VALUES)
    def put(self, side: int, key: int, value: Any) -> None:
        cursor = self.replicas[side].execute(UPSERT, (key, value))
        assert cursor.rowcount == 1
        self.model[key] = value
        self.committed(side)

    @rule(side=SIDES, key=KEYS)
    def delete(self, side: int, key: int) -> None:
        cursor = self.replicas[side].execute("DELETE FROM kv WHERE k = ?", (key,))
        assert cursor.rowcount == (key in self.model)
        self.model.pop(key, None)
        self.committed(side)

    @rule(side=SIDES, pairs=PAIRS)
    def put_many(self, side: int, pairs: list[tuple[int, Any]]) -> None:
        self.replicas[side].executemany(UPSERT, pairs)
        self.model.update(pairs)
        self.committed(side if pairs else None)  # nothing was written, nothing asked

    @rule(side=SIDES, pairs=PAIRS, commit=st.booleans())
    def transact(self, side: int, pairs: list[tuple[int, Any]], *, commit: bool) -> None:
        replica = self.replicas[side]
        outside = self.model
        inside = dict(outside)
        replica.execute("BEGIN")
        for key, value in pairs:
            replica.execute(UPSERT, (key, value))
            inside[key] = value
            assert self.read(side) == inside, "a transaction reads its own writes"
        replica.execute("COMMIT" if commit else "ROLLBACK")
        if commit:
            self.model = inside
        self.committed(side if pairs and commit else None)

    @rule(side=SIDES, key=KEYS)
    def fail(self, side: int, key: int) -> None:
        """A statement that fails half way changes nothing."""
        with_row = {key: "kept", **self.model}
        self.replicas[side].execute("INSERT OR IGNORE INTO kv VALUES(?, 'kept')", (key,))
        self.model = with_row
        self.committed(side)
        with pytest.raises(nearlite.IntegrityError):
            self.replicas[side].execute("INSERT INTO kv VALUES(100, 'new'), (?, 'again')", (key,))

    @rule(key=KEYS, value=st.integers(0, 9))
    def put_at_the_primary(self, key: int, value: int) -> None:
        client = Client(self.port)
        client.run(f"INSERT OR REPLACE INTO kv VALUES({key}, {value})")
        client.close()
        self.model[key] = value
        self.committed(None)

    @rule()
    def vacuum_at_the_primary(self) -> None:
        client = Client(self.port)
        client.run("VACUUM")
        client.close()

    # ------------------------------------------------------------ everything else

    @rule(side=SIDES)
    def sync(self, side: int) -> None:
        result = self.replicas[side].sync()
        assert result.pages >= 0
        self.newest(side)

    @rule(side=SIDES)
    def reopen(self, side: int) -> None:
        self.replicas[side].close()
        self.replicas[side] = self.open(side)

    @rule(side=SIDES)
    def read_with_stock_sqlite(self, side: int) -> None:
        mine = self.read(side)
        c = sqlite3.connect(self.folder / f"r{side}.db")
        assert dict(c.execute("SELECT k, v FROM kv").fetchall()) == mine
        assert c.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        c.close()

    @rule()
    def restart_the_primary(self) -> None:
        """On another port: the URL of an open connection does not change, so both open again."""
        for replica in self.replicas:
            replica.close()
        self.ends.pop_all().close()
        self.start()
        self.replicas = [self.open(side) for side in (0, 1)]

    @precondition(lambda self: self.model)
    @rule(side=SIDES)
    def begin_and_hold(self, side: int) -> None:
        """An open read transaction sees one state, whatever is written meanwhile."""
        replica = self.replicas[side]
        replica.execute("BEGIN")
        before = self.read(side)
        self.put_at_the_primary(0, 5)
        assert self.read(side) == before
        replica.execute("COMMIT")

    @invariant()
    def replicas_show_states_of_the_primary_in_order(self) -> None:
        for side in (0, 1):
            shown = self.read(side)
            later = range(self.seen[side], len(self.history))
            at = next((i for i in later if self.history[i] == shown), None)
            assert at is not None, (
                f"replica {side} shows a state the primary never had, or an old one"
            )
            self.seen[side] = at

    def teardown(self) -> None:
        self.done.update(histories=1, commits=len(self.history) - 1, syncs=2)
        for side in (0, 1):
            self.sync(side)
            self.replicas[side].close()
        self.ends.close()
        shutil.rmtree(self.folder)


@pytest.mark.soak
def test_everybody_reads_what_they_must(soak: Soak) -> None:
    for _ in soak.turns(1):
        Cluster.done.clear()
        lasting = settings(max_examples=6, stateful_step_count=20, deadline=None)
        run_state_machine_as_test(Cluster, settings=lasting)
        soak.count(**Cluster.done)
