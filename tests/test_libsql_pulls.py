"""What libSQL's replicas are answered: bases, frames, the ends of generations, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sealing
from serving import Client, app_of, execute, serving
from stock import Stock
from test_background import eventually

from nearlite.bases import Bases
from nearlite.primary import Primary
from nearlite.pulls import End

EITHER = True
STEP = 4120


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.db"


@pytest.fixture
def primary(path: Path) -> Iterator[Primary]:
    with Primary.open(path, durability="normal") as opened:
        yield opened


def run(primary: Primary, *statements: str) -> None:
    with closing(primary.connect()) as database:
        for statement in statements:
            database.exec(statement)
    primary.after_commit()


FILL = (
    "INSERT INTO t WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {})"
    " SELECT NULL, randomblob(3000) FROM n"
)


class Copy:
    """A replica as libSQL makes one: a base, and the frames of its generation written over it."""

    def __init__(self, generation: int, base: bytes) -> None:
        self.generation, self.frame = generation, 0
        self.data = bytearray(base)
        self._open: dict[int, bytes] = {}

    def take(self, frames: bytes) -> None:
        assert len(frames) % STEP == 0
        for at in range(0, len(frames), STEP):
            number, size = (int.from_bytes(frames[at + i : at + i + 4], "big") for i in (0, 4))
            self._open[number] = frames[at + 24 : at + STEP]
            self.frame += 1
            if size:
                self._commit(size)

    def _commit(self, size: int) -> None:
        self.data.extend(bytes(max(0, 4096 * size - len(self.data))))
        for number, page in self._open.items():
            if number <= size:
                self.data[4096 * (number - 1) : 4096 * number] = page
        del self.data[4096 * size :]
        self._open.clear()

    def end(self) -> None:
        assert not self._open
        self.generation, self.frame = self.generation + 1, 0

    def pull(self, primary: Primary) -> None:
        while True:
            found = primary.pulls.frames(self.generation, self.frame + 1, 128)
            if not isinstance(found, End):
                self.take(found)
            elif found.generation > self.generation:
                self.end()
            else:
                assert found.frame == self.frame
                return

    def dump(self, folder: Path) -> list[str]:
        copy = folder / "copy.db"
        copy.write_bytes(self.data)
        for side in ("-wal", "-shm"):
            Path(f"{copy}{side}").unlink(missing_ok=True)
        with Stock(copy, plain=True) as stock:
            assert stock.execute("PRAGMA integrity_check") == [["ok"]]
            return stock.execute(".dump")


def dump(path: Path) -> list[str]:
    with Stock(path) as stock:
        return stock.execute(".dump")


def begun(primary: Primary) -> Copy:
    base = primary.pulls.base()
    assert base is not None
    return Copy(base.generation, b"".join(base))


def test_frames_bring_a_base_to_what_the_primary_is(primary: Primary, path: Path) -> None:
    copy = begun(primary)
    run(primary, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)", FILL.format(300))
    for turn in range(12):
        run(primary, f"UPDATE t SET b = randomblob(2000) WHERE a % 5 = {turn % 5}")
        if turn % 3 == 0:
            run(primary, "DELETE FROM t WHERE a % 7 = 3", "VACUUM")
        if turn % 2 == 0:
            copy.pull(primary)
        if turn % 4 == 1:
            assert primary.roll()
    copy.pull(primary)
    assert copy.dump(path.parent) == dump(path)


@pytest.mark.parametrize("rolls", [1, 3])
def test_a_base_stays_what_it_was_while_it_is_read(
    primary: Primary, path: Path, rolls: int
) -> None:
    """Pages that a checkpoint overwrites or cuts off meanwhile are put aside."""
    run(primary, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)", FILL.format(600))
    assert primary.roll()
    before = dump(path)
    base = primary.pulls.base()
    assert base is not None
    pieces = iter(base)
    taken = [next(pieces), next(pieces)]
    late = iter(base)
    for _ in range(rolls):
        run(primary, "UPDATE t SET b = randomblob(2500) WHERE a % 3 = 0")
        assert primary.prepare_roll()
        run(primary, "DELETE FROM t WHERE a > 400", "VACUUM", FILL.format(50))
        assert primary.roll()
        taken.append(next(pieces))
    copy = Copy(base.generation, b"".join([*taken, *pieces]))
    assert copy.dump(path.parent) == before
    assert b"".join(late) == copy.data
    copy.pull(primary)
    assert copy.dump(path.parent) == dump(path)


def test_nobody_begins_to_read_a_base_that_is_about_to_be_overwritten(
    primary: Primary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever did would not be known when pages are put aside."""
    run(primary, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)", FILL.format(100))
    base, found, overwrite = primary.pulls.base(), [], Bases.overwrite

    def look(bases: Bases, pairs: bytes, pages: int) -> None:
        found.append(primary.pulls.base())
        overwrite(bases, pairs, pages)

    monkeypatch.setattr(Bases, "overwrite", look)
    assert primary.prepare_roll()
    assert found == [None]
    assert base is not None


def test_a_file_that_frames_have_been_copied_into_is_no_base(primary: Primary, path: Path) -> None:
    run(primary, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)", FILL.format(100))
    assert primary.prepare_roll()
    assert primary.pulls.base() is None
    assert primary.roll()
    base = primary.pulls.base()
    assert base is not None
    assert base.generation == 2
    del base
    run(primary, "DELETE FROM t")
    primary._tail.close()  # no clean stop
    primary._closed = True
    primary._log.close()
    with Primary.open(path, durability="normal") as again:
        assert again.pulls.base() is None  # who knows what was copied
        assert again.roll()
        assert again.pulls.base() is not None


def test_generations_of_a_restored_database_have_other_numbers(path: Path) -> None:
    with Primary.open(path) as primary:
        run(primary, "CREATE TABLE t(a)")
        primary.roll()
        run(primary, "INSERT INTO t VALUES(1)")
    saved = path.read_bytes()
    with Primary.open(path) as primary:
        run(primary, "INSERT INTO t VALUES(2)")
        last = primary.state().position
    path.write_bytes(saved)
    with Primary.open(path) as primary:
        now = primary.state().position
        assert now.lineage != last.lineage
        assert now.generation == last.generation + 2  # the clean stop ended one


# ---------------------------------------------------------------- over HTTP


@pytest.fixture
def served(path: Path) -> Iterator[Client]:
    with serving(app_of(path, durability="normal", auth_token="T", roll_bytes=1 << 30)) as port:
        client = Client(port, "T")
        client.pipeline(execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
        yield client


def told(reply: Any) -> tuple[int, Any]:
    return reply.status, reply.json.get("code", reply.json.get("generation"))


def test_what_a_client_asks_first(served: Client, path: Path) -> None:
    assert served.request("GET", "/info").json == {"current_generation": 1}
    base = served.request("GET", "/export/1")
    assert base.status == 200
    assert base.headers["content-length"] == str(len(base.body))
    pages = range(1, len(base.body) // 4096 + 1)
    assert base.body == b"".join(sealing.page_of(path, number) for number in pages)


def test_pulls_and_their_ends(served: Client) -> None:
    served.pipeline(execute(FILL.format(200)))
    first = served.request("GET", "/sync/1/1/129")
    assert (first.status, len(first.body)) == (200, 128 * STEP)
    rest = served.request("GET", "/sync/1/129/257")
    assert rest.status == 200
    last = 128 + len(rest.body) // STEP
    end = served.request("GET", f"/sync/1/{last + 1}/{last + 129}")
    assert end.status == 400
    assert end.json == {
        "baton": None,
        "status": "checkpoint_needed",
        "generation": 1,
        "max_frame_no": last,
    }
    assert told(served.request("GET", f"/sync/1/{last + 2}/{last + 129}")) == (
        409,
        "POSITION_AHEAD",
    )
    assert told(served.request("GET", "/sync/2/1/129")) == (409, "POSITION_AHEAD")


def test_a_generation_that_is_over_is_pulled_from_the_archive(path: Path) -> None:
    with serving(app_of(path, durability="normal", roll_bytes=300_000)) as port:
        client = Client(port)
        client.pipeline(execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
        generation = client.request("GET", "/info").json["current_generation"]
        client.pipeline(execute(FILL.format(20)))
        before = client.request("GET", f"/sync/{generation}/1/129").body
        client.pipeline(execute(FILL.format(100)))
        eventually(lambda: client.request("GET", "/info").json["current_generation"] > generation)
        after = b""
        frame = 1
        while (
            reply := client.request("GET", f"/sync/{generation}/{frame}/{frame + 50}")
        ).status == 200:
            after += reply.body
            frame += len(reply.body) // STEP
        assert (reply.status, reply.json["generation"]) == (400, generation + 1)
        assert after.startswith(before)
        (archive,) = path.with_name("data.db-nearlite").glob(f"*.{generation:08x}.*.wal")
        archive.unlink()
        reply = client.request("GET", f"/sync/{generation}/1/129")
        assert told(reply) == (410, "GENERATION_GONE")


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("GET", "/export/9", 410, "GENERATION_GONE"),
        ("GET", "/export/x", 404, "NOT_FOUND"),
        ("GET", "/export/1/2", 404, "NOT_FOUND"),
        ("GET", "/export/99999999999", 404, "NOT_FOUND"),
        ("GET", "/sync/1/1", 404, "NOT_FOUND"),
        ("GET", "/sync/1/0/9", 404, "NOT_FOUND"),
        ("GET", "/sync/1/9/9", 404, "NOT_FOUND"),
        ("GET", "/sync/0/1/9", 404, "NOT_FOUND"),
        ("GET", "/sync/1/-1/9", 404, "NOT_FOUND"),
        ("GET", "/sync/1/1/9/b", 404, "NOT_FOUND"),
        ("POST", "/sync/1/1/9", 403, "FORBIDDEN"),
        ("PUT", "/sync/1/1/9", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/info", 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/export/1", 405, "METHOD_NOT_ALLOWED"),
    ],
)
def test_what_is_refused(served: Client, method: str, target: str, status: int, code: str) -> None:
    assert told(served.request(method, target)) == (status, code)


def test_nobody_pulls_without_a_token(served: Client) -> None:
    for target in ("/info", "/export/1", "/sync/1/1/2"):
        assert Client(served.port).request("GET", target).status == 401
        assert Client(served.port, "other").request("GET", target).status == 401


def test_other_page_sizes_are_not_served(path: Path) -> None:
    sealing.made(path, 1024)
    with closing(sealing.reader(path)) as database:
        database.execute("PRAGMA page_size=1024")
        database.execute("CREATE TABLE t(a)")
        database.commit()
    with serving(app_of(path, durability="normal")) as port:
        for target in ("/info", "/export/1", "/sync/1/1/2"):
            reply = Client(port).request("GET", target)
            assert told(reply) == (501, "PAGE_SIZE")
