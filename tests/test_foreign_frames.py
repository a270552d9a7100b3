"""Frames of foreign upstreams as page sets: what SQLite makes of them, whatever they are, and answers that lie."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from foreigners import state_of
from hypothesis import given, settings
from hypothesis import strategies as st

from nearlite._native.applier import Applier
from nearlite._native.frames import page_hash, state_hash
from nearlite.arriving import IN_MEMORY
from nearlite.errors import AnswerError, OfflineError, SyncError
from nearlite.foreign import ForeignReplica
from nearlite.gathering import PAGE_SIZE, Frame, Gathering, Turn, empty_page, plain, size_in
from nearlite.position import Position
from nearlite.spooling import Spool
from nearlite.sqld_client import count_of, position_of

STEP = 24 + PAGE_SIZE
EMPTY = empty_page()


def test_an_empty_database_is_what_sqlite_makes(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.write_bytes(EMPTY)
    assert state_of(path)
    with closing(sqlite3.connect(path)) as stock:
        assert stock.execute("PRAGMA page_count").fetchone() == (1,)
        stock.execute("CREATE TABLE t(a)")
        stock.execute("INSERT INTO t VALUES (1)")
        stock.commit()
        assert stock.execute("PRAGMA encoding").fetchone() == ("UTF-8",)
    state_of(path)


@given(st.integers(0, 1 << 62))
def test_frames_of_sqld_have_positions(count: int) -> None:
    count %= 1 << 61
    if count >> 31 < 0xFFFFFFFF:
        at, following = position_of(5, count), position_of(5, count + 1)
        assert count_of(at) == count
        assert at.precedes(following)
        assert at != following


# ---------------------------------------------------------------- a server that says what it is told to say


class Liar:
    """Answers each path as a function says: status and pieces of a body, headers of its own."""

    def __init__(self) -> None:
        self.says: Callable[[str], tuple[int, dict[str, str], Iterator[bytes] | list[bytes]]]
        self.says = lambda _: (404, {}, [])
        self.body = b""  # of the last POST
        liar = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                liar.body = self.rfile.read(int(self.headers["content-length"]))
                self._answer()

            def _answer(self) -> None:
                status, headers, pieces = liar.says(self.path)
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    if isinstance(pieces, list):
                        headers.setdefault("content-length", str(sum(map(len, pieces))))
                    for name, value in {**headers, "connection": "close"}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    for piece in pieces:
                        self.wfile.write(piece)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Log:
    """libSQL's sync of a list of generations: base and frames of each."""

    def __init__(self, base: bytes) -> None:
        self.generations: list[tuple[bytes, list[bytes]]] = [(base, [])]

    def says(self, path: str) -> tuple[int, dict[str, str], list[bytes]]:
        parts = path.strip("/").split("/")
        if parts[0] == "info":
            return 200, {}, [json.dumps({"current_generation": len(self.generations)}).encode()]
        if parts[0] == "export":
            return 200, {}, [self.generations[int(parts[1]) - 1][0]]
        if parts[0] != "sync":
            return 404, {}, []
        frames = self.generations[int(parts[1]) - 1][1]
        found = frames[int(parts[2]) - 1 : int(parts[3]) - 1]
        if found:
            return 200, {}, [b"".join(found)]
        told = {"generation": len(self.generations), "max_frame_no": len(self.generations[-1][1])}
        return 400, {}, [json.dumps(told).encode()]


@pytest.fixture(scope="module")
def liar() -> Iterator[Liar]:
    made = Liar()
    yield made
    made.close()


@contextmanager
def replica(liar: Liar, folder: Path, protocol: Any = "libsql") -> Iterator[ForeignReplica]:
    made = ForeignReplica(str(folder / "replica.db"), liar.url, protocol=protocol, timeout=5.0)
    made.open()
    try:
        yield made
    finally:
        made.close()


# ---------------------------------------------------------------- what SQLite makes of them

Ops = st.lists(
    st.sampled_from(
        [
            "INSERT INTO t(b) VALUES (randomblob(9000))",
            "INSERT INTO t(b) SELECT randomblob(700) FROM json_each('[1,2,3,4,5,6,7,8,9]'), json_each('[1,2,3]')",
            "UPDATE t SET b = randomblob(100) WHERE a % 3 = 0",
            "DELETE FROM t WHERE a % 2",
            "DELETE FROM t",
            "VACUUM",
            "PRAGMA incremental_vacuum",
            "CREATE TABLE IF NOT EXISTS u(x UNIQUE, y)",
            "INSERT OR REPLACE INTO u SELECT a, b FROM t LIMIT 20",
            "DROP TABLE IF EXISTS u",
            "CREATE INDEX IF NOT EXISTS i ON t(b)",
            "DROP INDEX IF EXISTS i",
            "sync",
            "turn",
        ]
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=40, deadline=None)
@given(Ops, st.sampled_from(["NONE", "FULL", "INCREMENTAL"]), st.integers(2, 200))
def test_a_replica_is_what_sqlite_makes_of_the_frames(
    liar: Liar, ops: list[str], vacuum: str, cache: int
) -> None:
    with TemporaryDirectory() as made:
        folder = Path(made)
        path = folder / "primary.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as stock:
            for pragma in (
                f"auto_vacuum={vacuum}",
                "journal_mode=wal",
                "wal_autocheckpoint=0",
                f"cache_size={cache}",  # few: frames are written before the commit
            ):
                stock.execute(f"PRAGMA {pragma}")
            stock.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
            stock.execute("PRAGMA wal_checkpoint(truncate)")
            log = Log(path.read_bytes())
            liar.says = log.says

            def look() -> None:
                wal = Path(f"{path}-wal").read_bytes()[32:]
                frames = [wal[at : at + STEP] for at in range(0, len(wal), STEP)]
                while frames and frames[-1][4:8] == bytes(4):
                    frames.pop()
                log.generations[-1][1][:] = frames

            with replica(liar, folder) as here:
                for op in [*ops, "sync"]:
                    if op == "turn":
                        look()
                        stock.execute("PRAGMA wal_checkpoint(truncate)")
                        log.generations.append((path.read_bytes(), []))
                    elif op == "sync":
                        look()
                        here.sync()
                    else:
                        with contextlib.suppress(sqlite3.OperationalError):  # no such table
                            stock.execute(op)
                stock.execute("PRAGMA wal_checkpoint(truncate)")
                with closing(Applier(here.path)) as applier:
                    state, found = applier.full_hash()
                    assert state.hash == found
                    applier.checkpoint("truncate", wait=1.0)
            data = bytearray((folder / "replica.db").read_bytes())
            data[18] = 2
            data[72:92] = bytes(20)
            assert bytes(data) == path.read_bytes()


def small(folder: Path) -> Callable[[], Spool]:
    return lambda: Spool(folder, sealed=True)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_frames_of_all_sorts_never_make_a_wrong_set(data: st.DataObject) -> None:
    """A model: pages as a dictionary. What is refused leaves nothing, what is not is what the model has."""
    rng = random.Random(data.draw(st.integers(0, 1 << 30)))
    at = Position(5, 1, 0)
    pages = {number: rng.randbytes(PAGE_SIZE) for number in range(2, rng.randrange(3, 12))}
    pages[1] = first_page(len(pages) + 1)
    old = dict(pages)
    with (
        TemporaryDirectory() as folder,
        closing(Gathering(at, len(pages), small(Path(folder)))) as gathering,
    ):
        gathering._in_memory = rng.choice([0, IN_MEMORY])  # all of it in the file, or nothing
        open_: dict[int, bytes] = {}
        frame = 0
        try:
            for _ in range(rng.randrange(1, 30)):
                page = rng.choice([*range(1, len(pages) + 3), len(pages) + 1])
                image = rng.randbytes(PAGE_SIZE)
                size = rng.choice([0, 0, 0, len(pages), len(pages | open_ | {page: b""})])
                size = rng.choice([size, size, size, max(0, size - 2)])
                if size not in (0, len(pages)) and page != 1 and rng.random() < 0.9:
                    frame += 1
                    open_[1] = first_page(size)
                    gathering.frame(Frame(1, 0, Position(5, 1, frame), open_[1]))
                frame += 1
                open_[page] = first_page(size or len(pages)) if page == 1 else image
                gathering.frame(Frame(page, size, Position(5, 1, frame), open_[page]))
                if size:
                    pages |= open_
                    pages = {number: pages[number] for number in pages if number <= size}
                    open_.clear()
                    if len(pages) != size:
                        raise AnswerError("the model has no such pages")
            runs = gathering.runs(len(old))
            tables = [
                b"".join(page_hash(old[p], p).to_bytes(8, "big") for p in range(f, f + n))
                for f, n in runs
            ]
            before = state_hash(b"".join(old[p] for p in sorted(old)), PAGE_SIZE)
            made = gathering.arrived(len(old), before, tables, commit_ms=1)
        except AnswerError:
            return
        now = b"".join(pages[p] for p in sorted(pages))
        assert made.header.pages == len(pages) == size_in(pages[1])
        assert made.header.hash_target == state_hash(now, PAGE_SIZE)
        told = {}
        chunks = made.whole.chunks() if made.whole is not None else made.chunks()
        for chunk in chunks:
            with chunk:
                for index in range(chunk.count):
                    number, _, image = chunk.page(index)
                    told[number] = image
        made.close()
        assert {p: told.get(p, old.get(p)) for p in pages} == pages


def test_what_no_frame_may_be(tmp_path: Path) -> None:
    at = Position(5, 1, 0)
    page = bytes(PAGE_SIZE)
    for frame in (
        Frame(0, 0, at, page),
        Frame(0xFFFFFFFF, 0, at, page),
        Frame(262145, 0, at, page),
        Frame(2, 0xFFFFFFFF, Position(5, 1, 1), page),
        Frame(2, 2, at, page),
        Frame(2, 2, Position(6, 1, 1), page),
        Frame(2, 0, at, page[:-1]),
        Frame(1, 1, Position(5, 1, 1), page),
        Frame(1, 1, Position(5, 1, 1), EMPTY[:20] + b"\x08" + EMPTY[21:]),
    ):
        with closing(Gathering(at, 3, small(tmp_path))) as gathering, pytest.raises(AnswerError):
            gathering.frame(frame)
    with closing(Gathering(at, 3, small(tmp_path))) as gathering:
        gathering.frame(Frame(4, 0xFFFFFFFE, Position(5, 1, 1), page))
        with pytest.raises(AnswerError, match="grows by pages"):
            gathering.arrived(3, 0, [], commit_ms=1)
    with closing(Gathering(at, 3, small(tmp_path))) as gathering:
        gathering.frame(Frame(2, 0, at, page))
        with pytest.raises(AnswerError, match="in the middle"):
            gathering.turn(Turn(Position(5, 2, 0)))
    with (
        closing(Gathering(at, 3, small(tmp_path))) as gathering,
        pytest.raises(AnswerError, match="said to begin"),
    ):
        gathering.turn(Turn(at))
    with closing(Gathering(at, 3, small(tmp_path))) as gathering:
        frame = Frame(2, 0, at, page)
        with pytest.raises(AnswerError, match="again and again"):
            for _ in range(1 << 17):
                gathering.frame(frame)
    assert plain(EMPTY) == EMPTY


# ---------------------------------------------------------------- answers that lie

GRPC = {"content-type": "application/grpc-web+proto"}


def varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(data: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(data).to_bytes(4, "big") + data


OK = message(b"grpc-status:0\r\n", 0x80)


def greeting(frames: int = 1, log: bytes = b"a log") -> bytes:
    return message(field(3, log) + field(4, b"token") + b"\x28" + varint(frames - 1)) + OK


def logged(number: int, page: int, size: int, image: bytes) -> bytes:
    head = number.to_bytes(8, "little") + bytes(8)
    return head + page.to_bytes(4, "little") + size.to_bytes(4, "little") + image


def framed(*frames: bytes) -> bytes:
    return message(b"".join(field(1, field(1, frame)) for frame in frames)) + OK


def in_wal(page: int, size: int, image: bytes) -> bytes:
    return page.to_bytes(4, "big") + size.to_bytes(4, "big") + bytes(16) + image


def whole(here: ForeignReplica, before: Any) -> None:
    """Nothing has changed, and what is there is sound."""
    assert here.state().position == before.position
    with closing(Applier(here.path)) as applier:
        state, found = applier.full_hash()
        assert state.hash == found == before.hash


def first_page(size: int) -> bytes:
    """Page 1 of a database of so many pages."""
    return EMPTY[:28] + size.to_bytes(4, "big") + EMPTY[32:]


BASE = first_page(2) + bytes(PAGE_SIZE)
FINE = in_wal(2, 2, b"\x0d" + bytes(PAGE_SIZE - 1))
LIES: list[tuple[int, dict[str, str], list[bytes]]] = [
    (200, {}, []),
    (204, {}, []),
    (200, {}, [b"x"]),
    (200, {}, [FINE[:-1]]),
    (200, {}, [FINE + b"x"]),
    (200, {}, [FINE * 129]),
    (200, {"content-length": str(1 << 40)}, [FINE]),
    (200, {"content-length": str(STEP)}, [FINE[:100]]),
    (200, {}, [in_wal(0, 2, BASE[:PAGE_SIZE])]),
    (200, {}, [in_wal(2, 0xFFFFFFFF, BASE[PAGE_SIZE:])]),
    (200, {}, [in_wal(0xFFFFFFFF, 0xFFFFFFFF, BASE[PAGE_SIZE:])]),
    (200, {}, [in_wal(262145, 262145, BASE[PAGE_SIZE:])]),
    (200, {}, [in_wal(3, 9, BASE[PAGE_SIZE:])]),
    (200, {}, [in_wal(1, 2, BASE[PAGE_SIZE:])]),
    (400, {}, []),
    (400, {}, [b"{}"]),
    (400, {}, [b'{"generation": "1"}']),
    (400, {}, [b'{"generation": 1' + b"0" * 400 + b"}"]),
    (400, {}, [b"\xff" * 100000]),
    (500, {}, [b"oops"]),
    (400, {}, [b'{"generation": 0}']),
    (307, {"location": "http://127.0.0.1:1/"}, []),
    (429, {}, []),
    (503, {}, []),
]


@pytest.mark.parametrize("number", range(len(LIES)))
def test_lies_of_libsql_change_nothing(liar: Liar, tmp_path: Path, number: int) -> None:
    log = Log(BASE)
    liar.says = log.says
    with replica(liar, tmp_path) as here:
        before = here.state()

        def lies(path: str) -> Any:
            return LIES[number] if path.startswith("/sync") else log.says(path)

        liar.says = lies
        with pytest.raises(SyncError) as refused:
            here.sync()
        if number < 18:
            assert isinstance(refused.value, (AnswerError, OfflineError)), refused.value
        whole(here, before)
        liar.says = log.says
        log.generations[0][1].append(FINE)
        here.sync()
        assert here.state().position.frame == 1


@pytest.mark.parametrize(
    "base",
    [
        b"x",
        EMPTY[:-1],
        BASE[:-1],
        b"no database" + EMPTY[11:],
        EMPTY[:16] + b"\x02\x00" + EMPTY[18:],
        EMPTY[:28] + b"\xff\xff\xff\xff" + EMPTY[32:],
        EMPTY[:20] + b"\x20" + EMPTY[21:],
    ],
)
def test_a_base_that_is_none_makes_no_file(liar: Liar, tmp_path: Path, base: bytes) -> None:
    liar.says = Log(base).says
    with pytest.raises(AnswerError), replica(liar, tmp_path):
        pass
    assert not (tmp_path / "replica.db").exists()


def test_a_base_of_nothing_is_an_empty_database(liar: Liar, tmp_path: Path) -> None:
    liar.says = Log(b"").says
    with replica(liar, tmp_path):
        pass
    state_of(tmp_path / "replica.db")


FIRST = logged(0, 1, 1, EMPTY)
SQLD_LIES: list[tuple[dict[str, str], list[bytes]]] = [
    ({}, []),
    (GRPC, []),
    (GRPC, [b"\0\0\0"]),
    (GRPC, [message(b"")]),
    (GRPC, [b"\0\xff\xff\xff\xff"]),
    (GRPC, [b"\x01" + framed(FIRST)[1:]]),
    (GRPC, [message(b"grpc-status:0", 0x80) + b"x"]),
    (GRPC, [message(b"hello", 0x80)]),
    (GRPC, [b"\x80\xff\xff\xff\xff"]),
    (GRPC, [message(b"\xff" * 30) + OK]),
    (GRPC, [message(field(1, b"\xff" * 30)) + OK]),
    (GRPC, [message(field(1, field(1, FIRST[:-1]))) + OK]),
    (GRPC, [message(field(1, field(1, FIRST))[:-1]) + OK]),
    (GRPC, [message(b"\x0a" + varint(1 << 63)) + OK]),
    (GRPC, [framed(logged(7, 2, 2, bytes(PAGE_SIZE)))]),
    (GRPC, [framed(logged(1 << 63, 2, 2, bytes(PAGE_SIZE)))]),
    (GRPC, [framed(logged(1, 0, 2, bytes(PAGE_SIZE)))]),
    (GRPC, [framed(logged(1, 2, 0xFFFFFFFF, bytes(PAGE_SIZE)))]),
    (GRPC, [framed(logged(1, 3, 0xFFFFFFFE, bytes(PAGE_SIZE)))]),
    (GRPC, [framed(logged(1, 1, 2, bytes(PAGE_SIZE)))]),
    ({**GRPC, "grpc-status": "x"}, []),
    ({**GRPC, "grpc-status": "13", "grpc-message": "%00"}, []),
    ({**GRPC, "grpc-status": "9", "grpc-message": "NO_HELLO"}, []),
    ({**GRPC, "grpc-status": "16"}, []),
]


@pytest.mark.parametrize("number", range(len(SQLD_LIES)))
def test_lies_of_sqld_change_nothing(liar: Liar, tmp_path: Path, number: int) -> None:
    def honest(path: str) -> Any:
        if path.endswith("/Hello"):
            return 200, dict(GRPC), [greeting()]
        return 200, dict(GRPC), [framed(FIRST) if liar.count.pop() else framed()]

    liar.count = [0, 0, 0, 1]  # type: ignore[attr-defined]
    liar.says = honest
    with replica(liar, tmp_path, "sqld") as here:
        before = here.state()
        assert before.position.frame == 1
        headers, pieces = SQLD_LIES[number]

        def lies(path: str) -> Any:
            return honest(path) if path.endswith("/Hello") else (200, dict(headers), pieces)

        liar.says = lies
        with pytest.raises(SyncError):
            here.sync()
        whole(here, before)


def test_streams_without_an_end(liar: Liar, tmp_path: Path) -> None:
    """One transaction that never ends: the same page for ever, and bytes of a body that never ends."""
    log = Log(BASE)
    liar.says = log.says
    with replica(liar, tmp_path) as here:
        before = here.state()

        def endless() -> Iterator[bytes]:
            while True:
                yield FINE * 100

        liar.says = lambda path: (200, {}, endless()) if "sync" in path else log.says(path)
        with pytest.raises(AnswerError, match="longer than"):
            here.sync()
        part = in_wal(2, 0, bytes(PAGE_SIZE)) * 128
        liar.says = lambda path: (200, {}, [part]) if "sync" in path else log.says(path)
        with pytest.raises(AnswerError, match="again and again"):
            here.sync()
        whole(here, before)


def test_nothing_that_is_known_answers(liar: Liar, tmp_path: Path) -> None:
    liar.says = lambda _: (404, {}, [])
    with pytest.raises(SyncError, match="404"), replica(liar, tmp_path, "auto"):
        pass
    liar.says = lambda _: (401, {}, [])
    with pytest.raises(SyncError, match="401"), replica(liar, tmp_path, "auto"):
        pass


def test_what_it_speaks_is_asked_until_it_says_so(liar: Liar, tmp_path: Path) -> None:
    log = Log(BASE)
    liar.says = log.says
    with replica(liar, tmp_path):
        pass
    log.generations[0][1].append(FINE)
    page = (200, {"content-type": "text/html"}, [b"<p>Whatever you like</p>"])
    with replica(liar, tmp_path, "auto") as here:
        for says in ((503, {}, []), (502, {}, [b"no gateway"]), (404, {}, []), page):
            liar.says = lambda _, says=says: says  # type: ignore[misc]
            with pytest.raises(SyncError):
                here.sync()
            with pytest.raises(SyncError):
                here.forward(b'{"requests": []}', visible=True)
            assert not here.foreign
        liar.says = log.says
        here.sync()
        assert here.foreign
        assert here.state().position.frame == 1


def test_generations_without_frames_are_not_followed_for_ever(
    liar: Liar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that was away for many begins where it is now; a server that always has another one is given up."""
    monkeypatch.setattr("nearlite.libsql_client._TURNS", 20)
    log = Log(BASE)
    liar.says = log.says
    with replica(liar, tmp_path) as here:
        log.generations += [(BASE, []) for _ in range(50)]
        log.generations[-1][1].append(FINE)
        here.sync()
        assert here.state().position.generation == 51
        before = here.state()
        told = [b'{"generation": 4000000000}']
        liar.says = lambda path: (400, {}, told) if "sync" in path else log.says(path)
        with pytest.raises(SyncError):
            here.sync()
        whole(here, before)


def test_a_server_that_tells_little_at_a_time_and_one_that_always_has_more(
    liar: Liar, tmp_path: Path
) -> None:
    log = Log(BASE)
    liar.says = log.says
    with replica(liar, tmp_path) as here:
        frames = log.generations[0][1]
        for _ in range(10):  # ten transactions of ten frames, of which it tells one at a time
            frames += [in_wal(page, 0, FINE[24:]) for page in range(4, 12)]
            frames += [in_wal(1, 0, first_page(11)), in_wal(3, 11, FINE[24:])]

        def little(path: str) -> Any:
            status, headers, pieces = log.says(path)
            return (
                (status, headers, [pieces[0][:STEP]])
                if status == 200 and "sync" in path
                else (
                    status,
                    headers,
                    pieces,
                )
            )

        liar.says = little
        here.sync()
        assert here.state().position.frame == 100

        def busy(path: str) -> Any:
            if "sync" in path:
                frames.append(FINE[:4] + (11).to_bytes(4, "big") + FINE[8:])
            return log.says(path)

        liar.says = busy
        here.sync()
        assert 100 < here.state().position.frame < 200
