"""HTTP answers off a reader: whole, byte by byte, chunked, hostile; http.client as oracle."""

from __future__ import annotations

import http.client
import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nearlite.message import Answer, MessageError


class Trickle(io.RawIOBase):
    """A connection that delivers at most `step` bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = io.BytesIO(data)
        self._step = step

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        piece = self._data.read(min(self._step, len(buffer)))
        buffer[: len(piece)] = piece
        return len(piece)


def reader(data: bytes, step: int = 1 << 20) -> io.BufferedReader:
    return io.BufferedReader(Trickle(data, step), 8192)


def body_of(answer: Answer, room: int = 7) -> bytes:
    got = bytearray()
    space = memoryview(bytearray(room))
    while count := answer.readinto(space):
        got += space[:count]
    return bytes(got)


def chunked(*pieces: bytes, trailer: bytes = b"") -> bytes:
    body = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + body
        + b"0\r\n"
        + trailer
        + b"\r\n"
    )


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", b"hello"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 103 Hints\r\n\r\n" * 10 + b"HTTP/1.1 200 OK\r\n\r\nten", b"ten"),
        (chunked(b"one", b"two" * 50), b"one" + b"two" * 50),
        (chunked(b"x", trailer=b"A: b\r\nC: d\r\n"), b"x"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
    ],
)
def test_bodies_however_they_arrive(raw: bytes, expected: bytes, step: int) -> None:
    assert body_of(Answer(reader(raw, step))) == expected


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 3\r\n\r\nabc",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nX: y\r\n\r\n",
        b"Connection: close\r\n\r\nabc",
    ],
)
def test_the_end_of_a_body_is_known_without_reading_on(head: bytes, step: int) -> None:
    answer = Answer(reader(b"HTTP/1.1 200 OK\r\n" + head, step))
    room = memoryview(bytearray(1))
    for letter in b"abc":
        assert not answer.ended()
        assert not answer.ended()
        assert answer.readinto(room) == 1
        assert room[0] == letter
    assert answer.ended()
    assert answer.ended()
    assert answer.readinto(room) == 0


def test_the_next_answer_starts_behind_the_body() -> None:
    line = reader(chunked(b"one") + b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", 5)
    first = Answer(line)
    assert (body_of(first), first.keep_alive) == (b"one", True)
    assert Answer(line).status == 404


def test_no_body_where_none_can_be() -> None:
    assert Answer(reader(b"HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n")).length == 0


def test_keep_alive_as_the_version_and_the_header_say() -> None:
    def kept(head: bytes) -> bool:
        return Answer(reader(head + b"Content-Length: 0\r\n\r\n")).keep_alive

    assert kept(b"HTTP/1.1 200 OK\r\n")
    assert not kept(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
    assert not kept(b"HTTP/1.0 200 OK\r\n")
    assert kept(b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\nabc",
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: " + b"3" * 5000 + b"\r\n\r\nabc",
            id="a length of 5,000 digits",
        ),
        pytest.param(
            b"HTTP/1.1 100 Continue\r\n\r\n" * 11 + b"HTTP/1.1 204 OK\r\n\r\n",
            id="informational answers without end",
        ),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
        chunked(b"hello")[:-4],
    ],
)
def test_what_is_malformed_or_cut_short_is_one_exception(raw: bytes) -> None:
    with pytest.raises(MessageError):
        body_of(Answer(reader(raw)))


@given(st.binary(max_size=300))
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
def test_any_bytes_are_an_answer_or_that_exception(raw: bytes) -> None:
    for start in (
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    ):
        try:
            body_of(Answer(reader(start + raw)))
        except MessageError:
            pass


@given(
    st.integers(200, 599).filter(lambda status: status not in (204, 304)),
    st.lists(
        st.tuples(
            st.from_regex(r"[A-Za-z][A-Za-z-]{0,12}", fullmatch=True),
            st.from_regex(r"[a-z0-9;=]{1,9}", fullmatch=True),
        )
    ),
    st.lists(st.binary(min_size=1, max_size=40), max_size=5),
)
def test_the_standard_library_reads_the_same(
    status: int, fields: list[tuple[str, str]], pieces: list[bytes]
) -> None:
    taken = {"transfer-encoding", "content-length", "connection"}
    extra = "".join(f"X-{name}: {value}\r\n" for name, value in fields if name.lower() not in taken)
    raw = chunked(*pieces).replace(b"200 OK\r\n", b"%d OK\r\n%s" % (status, extra.encode()), 1)

    class Sock:
        def makefile(self, _mode: str) -> io.BytesIO:
            return io.BytesIO(raw)

    oracle = http.client.HTTPResponse(Sock())
    oracle.begin()
    ours = Answer(reader(raw, 3))
    assert (ours.status, body_of(ours)) == (oracle.status, oracle.read())
    for name in {name.lower() for name, _ in fields}:
        assert ours.headers.get(f"x-{name}") == oracle.getheader(f"x-{name}")
