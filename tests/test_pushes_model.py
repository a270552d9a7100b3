"""Offline clients, the primary's own writers, rolls and restarts in any order: a client has what the primary has,
or is told that both have written.

The client is one as libSQL's source says: what it has not pushed is pushed, otherwise it pulls; it goes on in the
next generation when it is told of a newer one.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sealing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from offline import HEADER, STEP, told

from nearlite._native.wal import WalChain
from nearlite.primary import Primary
from nearlite.pulls import End

EITHER = True
PAGE = 4096


class Wandering:
    """One client's files, and what it remembers."""

    def __init__(self, primary: Primary, path: Path) -> None:
        base = primary.pulls.base()
        while base is None:
            assert primary.roll()
            base = primary.pulls.base()
        self.path = path
        self.generation = base.generation
        self.durable = 0
        self.frames: list[bytes] = []
        self.base = b"".join(base)
        self.conflict = False
        self.known = self.rows()  # what both had last

    def _opened(self) -> sqlite3.Connection:
        chain = WalChain(PAGE, (1, 2))
        log = [chain.encode_header(1)]
        for one in self.frames:
            number, size = (int.from_bytes(one[at : at + 4], "big") for at in (0, 4))
            log.append(chain.encode_frame(number, size, one[HEADER:]))
        self.path.write_bytes(self.base)
        Path(f"{self.path}-shm").unlink(missing_ok=True)
        Path(f"{self.path}-wal").write_bytes(b"".join(log) if self.frames else b"")
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("PRAGMA wal_autocheckpoint=0")
        return connection

    def write(self, sql: str) -> None:
        with closing(self._opened()) as connection:
            connection.execute(sql)
            data = Path(f"{self.path}-wal").read_bytes()[32:]
        found = [data[at : at + STEP] for at in range(0, len(data), STEP)]
        assert [told(one) for one in found[: len(self.frames)]] == [
            told(one) for one in self.frames
        ]
        self.frames = found

    def rows(self) -> list[tuple[object, ...]]:
        with closing(self._opened()) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return connection.execute("SELECT * FROM t ORDER BY a").fetchall()

    def sync(self, primary: Primary, batch: int) -> None:
        if len(self.frames) > self.durable:
            self._push(primary, batch)
        else:
            self._pull(primary, batch)

    def _push(self, primary: Primary, batch: int) -> None:
        low = 0
        baton = None
        while self.durable < len(self.frames):
            some = self.frames[self.durable : self.durable + batch]
            pushed = primary.pushes.push(self.generation, self.durable + 1, b"".join(some), baton)
            primary.after_commit()
            if not pushed.taken:
                self.conflict = True
                return
            assert pushed.frame <= self.durable + len(some)
            if pushed.frame < self.durable + len(some):
                low += 1
                assert low == 1, "it would try once only"
            self.durable, baton = pushed.frame, pushed.baton

    def _pull(self, primary: Primary, count: int) -> None:
        while True:
            found = primary.pulls.frames(self.generation, self.durable + 1, count)
            if isinstance(found, bytes):
                self.frames += [found[at : at + STEP] for at in range(0, len(found), STEP)]
                self.durable = len(self.frames)
            elif found.generation > self.generation:
                self._checkpoint()
            else:
                assert isinstance(found, End)
                return

    def _checkpoint(self) -> None:
        with closing(self._opened()) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.base = self.path.read_bytes()
        self.frames, self.durable = [], 0
        self.generation += 1


STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 1)),
    st.tuples(st.just("sync"), st.integers(0, 1)),
    st.just(("ours", 0)),
    st.just(("roll", 0)),
    st.just(("restart", 0)),
)


@pytest.mark.plain
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=14), batch=st.sampled_from((1, 3, 128)))
def test_clients_that_wander(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], batch: int
) -> None:
    folder = tmp_path_factory.mktemp("model")
    path = folder / "data.db"

    def contents() -> list[tuple[object, ...]]:
        with closing(sealing.reader(path)) as connection:
            return connection.execute("SELECT * FROM t ORDER BY a").fetchall()

    primary = Primary.open(path, durability="normal")
    try:
        with closing(primary.connect()) as database:
            database.exec("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        primary.after_commit()
        primary.roll()
        clients = [Wandering(primary, folder / f"{number}.db") for number in range(2)]
        for number, (step, who) in enumerate(steps):
            client = clients[who]
            if step == "write":
                client.write(f"INSERT INTO t(b) VALUES('{who} {number}' || hex(zeroblob(4000)))")
            elif step == "ours":
                with closing(primary.connect()) as database:
                    database.exec(f"INSERT INTO t(b) VALUES('ours {number}')")
                primary.after_commit()
            elif step == "roll":
                primary.roll()
            elif step == "restart":
                primary.close()
                primary = Primary.open(path, durability="normal")
            elif not client.conflict:
                pushes = len(client.frames) > client.durable
                others, before = primary.latest, contents()
                mine = client.rows()
                client.sync(primary, batch)
                if client.conflict:
                    assert (primary.latest, contents()) == (others, before)
                    assert before != client.known  # neither a roll nor a restart is a reason
                    clients[who] = Wandering(primary, client.path)
                elif pushes:
                    assert contents() == mine == client.rows()
                else:
                    assert contents() == before == client.rows()
                client.known = contents()
        state = primary.state()
        assert primary.verify() == (state.hash, 0)
    finally:
        primary.close()
