"""Invariant 4: whatever a server answers, the replica is as it was, and the caller gets a SyncError.

A real replica talks over a real socket to a server that knows the right answers and spoils them.
After every spoiled answer the replica must stand where it stood, and after the last one an honest
answer must still bring it forward.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import history
import pytest
from history import History, Moment
from page_sets import guard_chunk, guard_set, patch

import nearlite
from nearlite import wire
from nearlite.errors import AnswerError, SyncError
from nearlite.replica import Replica

SET, CHUNK = 96, 32  # bytes of the two headers


def http(
    body: bytes, *, head: str = "", status: str = "200 OK", length: int | None = None
) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{head}\r\n".encode() + body


class Server:
    """Answers every request with `raw`, to the byte; ends the connection when told to."""

    def __init__(self) -> None:
        self.raw = b""
        self.hang_up = False
        self.requests = 0
        self.paths: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextmanager(_quiet)():
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    more = connection.recv(65536)
                    if not more:
                        return
                    data += more
                self.paths.append(data.split(b" ", 2)[1].decode())
                data = data.split(b"\r\n\r\n", 1)[1]
                if data:
                    data = b""  # a request body: it came in the same segment
                self.requests += 1
                self.send(connection)
                if self.hang_up:
                    return

    def send(self, connection: socket.socket) -> None:
        """The answer to one request."""
        connection.sendall(self.raw)

    def close(self) -> None:
        self._listener.close()
        for connection in self._connections:
            connection.close()


def _quiet() -> Iterator[None]:
    try:
        yield
    except OSError:  # the client had seen enough
        pass


class Scene:
    """A replica at `old`, whose primary is at `new`, three commits later."""

    def __init__(self, folder: Path) -> None:
        source = History(folder / "primary.db", page_size=512)
        rows = ", ".join(f"({i}, 'row {i}')" for i in range(40))
        self.older = source.step("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        self.old = source.step(f"INSERT INTO t VALUES{rows}")
        self.new = source.step("UPDATE t SET b = 'changed' WHERE a IN (1, 39)")
        self.newer = source.step("UPDATE t SET b = 'again' WHERE a = 20")
        source.db.close()
        self.body = history.wire_set(self.old, self.new)
        self.server = Server()
        self.path = folder / "replica.db"
        self.server.raw = http(history.wire_set(None, self.old))
        self.replica = Replica(str(self.path), self.server.url, timeout=5.0)
        self.replica.open()

    def refuses(self, raw: bytes, *, hang_up: bool = False) -> SyncError:
        """The answer `raw` is a SyncError, and the replica is where it was."""
        before = self.replica.state()
        self.server.raw, self.server.hang_up = raw, hang_up
        with pytest.raises(SyncError) as caught:
            self.replica.sync()
        assert self.replica.state() == before
        return caught.value

    def end(self) -> None:
        """Not a bit has changed, and an honest answer still works."""
        with closing(self.replica):
            state, found = self.replica._applier.full_hash()
            assert found == state.hash == self.old.hash
            self.server.raw, self.server.hang_up = http(self.body), False
            assert self.replica.sync().position == self.new.position
            state, found = self.replica._applier.full_hash()
            assert found == state.hash == self.new.hash
        self.server.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.end()


# ---------------------------------------------------------------- bytes


def test_an_answer_truncated_at_any_byte_is_refused(scene: Scene) -> None:
    """With an honest Content-Length, so that HTTP sees nothing wrong."""
    for n in range(len(scene.body)):
        error = scene.refuses(http(scene.body[:n]))
        assert isinstance(error, AnswerError)
        assert not error.data_at_risk


def test_a_connection_that_breaks_at_any_place_is_refused(scene: Scene) -> None:
    whole = http(scene.body)
    for n in range(0, len(whole), 11):
        scene.refuses(whole[:n], hang_up=True)


def test_a_flipped_bit_in_any_byte_is_refused(scene: Scene) -> None:
    rng = random.Random(1)
    for n in range(len(scene.body)):
        spoiled = bytearray(scene.body)
        spoiled[n] ^= 1 << rng.randrange(8)
        scene.refuses(http(bytes(spoiled)))


def test_bytes_behind_the_answer_are_refused(scene: Scene) -> None:
    for tail in (b"\0", scene.body[-CHUNK:], scene.body):
        scene.refuses(http(scene.body + tail))


# ---------------------------------------------------------------- lies with right checksums


HUGE = 0xFFFFFFFF
# Offsets in the set header (docs/formats.md): version, flags, page size, pages, count, start and its
# three parts, reserved, the two hashes, reserved.
FIELDS = [(8, 4), (12, 4), (16, 4), (20, 4), (24, 4), (28, 4), (32, 4), (36, 4), (52, 4), (56, 8)]
FIELDS += [(64, 8), (80, 8)]


@pytest.mark.parametrize(("offset", "size"), FIELDS)
def test_a_set_header_that_lies_is_refused(scene: Scene, offset: int, size: int) -> None:
    right = int.from_bytes(scene.body[offset : offset + size], "big")
    top = (1 << 8 * size) - 1
    for value in {0, 1, right + 1, right - 1, right ^ 0x80, top, top >> 1, 65536} - {right}:
        if 0 <= value <= top:
            scene.refuses(http(guard_set(patch(scene.body, offset, value, size))))


@pytest.mark.parametrize("offset", [0, 4, 8, 12])
def test_a_chunk_header_that_lies_is_refused(scene: Scene, offset: int) -> None:
    head, chunk, rest = scene.body[:SET], scene.body[SET : SET + CHUNK], scene.body[SET + CHUNK :]
    right = int.from_bytes(chunk[offset : offset + 4], "big")
    for value in {0, 1, 2, right + 1, right - 1, 1024, 1025, 1 << 23, HUGE >> 1, HUGE} - {right}:
        if value >= 0:
            scene.refuses(http(head + guard_chunk(patch(chunk, offset, value)) + rest))


def rebuilt(scene: Scene, numbers: list[int], *, pages: Moment | None = None) -> bytes:
    """A set that carries these pages under a header that fits, every checksum right."""
    moment = pages or scene.new
    head = history.header(scene.old, scene.new, numbers)
    return b"".join(bytes(p) for p in wire.page_set(head, history.raw_chunks(moment, numbers)))


def test_a_set_with_a_page_missing_or_stale_is_refused(scene: Scene) -> None:
    numbers = history.changed(scene.old, scene.new)
    assert len(numbers) > 1
    for left_out in numbers:
        if rest := [n for n in numbers if n != left_out]:
            scene.refuses(http(rebuilt(scene, rest)))
    scene.refuses(http(rebuilt(scene, numbers, pages=scene.old)))
    scene.refuses(http(rebuilt(scene, numbers, pages=scene.newer)))


def test_chunks_out_of_order_repeated_or_missing_are_refused(scene: Scene) -> None:
    numbers = history.changed(scene.old, scene.new)
    head = history.header(scene.old, scene.new, numbers)
    raw = history.raw_chunks(scene.new, numbers, per_chunk=1)
    pieces = [b"".join(bytes(p) for p in wire.chunk_pieces(c, compress=False)) for c in raw]
    assert len(pieces) >= 2
    for order in (pieces[::-1], [pieces[0], *pieces], [*pieces, pieces[-1]], pieces[:-1], []):
        scene.refuses(http(head.encode() + b"".join(order) + wire.END_OF_SET))


def test_an_answer_to_another_question_is_refused(scene: Scene) -> None:
    """Repeated from before, from the future, a snapshot, of another lineage."""
    other = patch(scene.body, 28, 0xDEAD)
    for body in (
        history.wire_set(scene.older, scene.old),
        history.wire_set(scene.older, scene.new),
        history.wire_set(scene.new, scene.newer),
        history.wire_set(None, scene.new),
        guard_set(patch(other, 40, 0xDEAD)),
    ):
        scene.refuses(http(body))


# ---------------------------------------------------------------- compression


def test_compressed_chunks_that_lie_are_refused(scene: Scene) -> None:
    body = history.wire_set(scene.old, scene.new, compress=True)
    head, chunk, rest = body[:SET], body[SET : SET + CHUNK], body[SET + CHUNK :]
    if int.from_bytes(chunk[:4], "big") & 1 == 0:
        pytest.fail("the chunk is not compressed: the test tests nothing")
    for offset in (8, 12):
        right = int.from_bytes(chunk[offset : offset + 4], "big")
        for value in (1, right - 1, right + 1, 8 << 20, HUGE):
            scene.refuses(http(head + guard_chunk(patch(chunk, offset, value)) + rest))
    for n in range(0, len(rest), 5):
        spoiled = bytearray(rest)
        spoiled[n] ^= 0x10
        scene.refuses(http(head + chunk + bytes(spoiled)))


# ---------------------------------------------------------------- HTTP


@pytest.mark.parametrize(
    "raw",
    [
        http(b""),
        http(b"<html>It works!</html>", head="Content-Type: text/html\r\n"),
        http(b"", status="500 Internal Server Error"),
        http(b"\xff\xfe{", status="502 Bad Gateway"),
        http(b'{"message": 5, "error": []}', status="409 Conflict"),
        http(b'{"message":"gone","code":"HISTORY_GONE"}', status="410 Gone"),
        http(b"", status="301 Moved", head="Location: http://127.0.0.1:1/\r\n"),
        http(b"", status="206 Partial Content"),
        http(b"x" * 100_000, status="400 Bad Request"),
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 999 \r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        b"\0" * 1000,
        b"",
    ],
    ids=range(18),
)
def test_answers_that_are_no_answers_are_refused(scene: Scene, raw: bytes) -> None:
    scene.refuses(raw, hang_up=True)


# ---------------------------------------------------------------- bootstrap and forwarding


def test_a_snapshot_that_is_spoiled_leaves_no_file(scene: Scene, tmp_path: Path) -> None:
    target = tmp_path / "second.db"
    body = history.wire_set(None, scene.old)
    rng = random.Random(2)
    spoiled = [body[: rng.randrange(len(body))] for _ in range(20)]
    for _ in range(40):
        flipped = bytearray(body)
        flipped[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        spoiled.append(bytes(flipped))
    spoiled.append(scene.body)
    for raw in spoiled:
        scene.server.raw = http(raw)
        with pytest.raises(SyncError):
            Replica(str(target), scene.server.url, timeout=5.0).open()
        assert not target.exists()
        left = [p.name for p in Path(f"{target}-nearlite").iterdir()]
        assert left in ([], ["bootstrap.lock"])


SPOIL: list[Callable[[bytes, int], bytes]] = [
    lambda whole, n: whole[:n],
    lambda whole, n: whole[:n] + bytes([whole[n] ^ 0x04]) + whole[n + 1 :],
]


@pytest.mark.parametrize("spoil", SPOIL, ids=["truncated", "flipped"])
def test_a_spoiled_answer_to_a_write_leaves_the_replica_as_it_was(
    scene: Scene, spoil: Callable[[bytes, int], bytes]
) -> None:
    """What was written on the primary stays written there; the error says so."""
    answer = b'{"baton":null,"base_url":null,"results":[]}'
    whole = len(answer).to_bytes(4, "big") + answer + scene.body
    head = f"Content-Type: {wire.ANSWER_TYPE}\r\nNearlite-Position: {scene.new.position}\r\n"
    before = scene.replica.state()
    for n in [*range(4), *range(4 + len(answer) + 1, len(whole), 3)]:
        scene.server.raw = http(spoil(whole, n), head=head)
        with pytest.raises(SyncError) as caught:
            scene.replica.forward(b"{}", visible=True)
        assert scene.replica.state() == before
        assert "carried out" in str(caught.value)


JSON = b'{"baton":null,"base_url":null,"results":[]}'
COMPACT = len(JSON).to_bytes(4, "big") + JSON + b"\xd3"


@pytest.mark.parametrize(
    ("kind", "begin", "most"),
    [("application/json", b"", wire.MAX_JSON), (wire.ANSWER_TYPE, COMPACT, wire.LARGEST_COMPACT)],
    ids=["JSON", "a compact set"],
)
def test_an_answer_to_a_write_that_does_not_end_is_given_up(
    scene: Scene, kind: str, begin: bytes, most: int
) -> None:
    """Nothing tells its length: what is too long is known when so much has come."""
    head = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: {kind}\r\n"
    head += f"Nearlite-Position: {scene.new.position}\r\n\r\n"
    body = begin + bytes(most + 100_000)
    scene.server.raw = head.encode() + b"%x\r\n" % len(body) + body
    before = scene.replica.state()
    with pytest.raises(AnswerError, match=f"longer than {most} bytes") as caught:
        scene.replica.forward(b"{}", visible=True)
    assert caught.value.state.startswith("the request was carried out")
    assert scene.replica.state() == before


def test_nor_is_one_to_a_connection_without_a_file(scene: Scene) -> None:
    head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
    body = JSON + bytes(wire.MAX_JSON + 100_000)
    scene.server.raw = head.encode() + b"%x\r\n" % len(body) + body
    longer = pytest.raises(AnswerError, match=f"longer than {wire.MAX_JSON} bytes")
    with (
        closing(nearlite.connect(scene.server.url, auth_token="t")) as connection,
        longer as caught,
    ):
        connection.execute("SELECT 1")
    assert caught.value.state.startswith("the request was carried out")
