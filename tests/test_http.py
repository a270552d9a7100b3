"""The transport against servers that misbehave: every wait ends, every failure is one exception."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from nearlite.errors import AnswerError, OfflineError, ProgrammingError
from nearlite.http import Deadline, Transport, normalise_url

Behaviour = Callable[[socket.socket], None]


@contextmanager
def server(*behaviours: Behaviour) -> Iterator[str]:
    """A server whose n-th connection is handled by the n-th behaviour."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def run() -> None:
        for behaviour in behaviours:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    behaviour(connection)
                except OSError:
                    pass
        done.wait(5)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        done.set()
        listener.close()
        thread.join(5)


def request_of(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    return data


def answer(body: bytes, *, head: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), head, body)


def serving(*bodies: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        for body in bodies:
            request_of(connection)
            connection.sendall(answer(body))

    return behave


def test_requests_follow_one_another_on_one_connection() -> None:
    with server(serving(b"one", b"two")) as url, closing(Transport(url)) as transport:
        assert transport.request("GET", "a").read(100) == b"one"
        assert transport.request("GET", "b").read(100) == b"two"


def test_a_dead_kept_alive_connection_is_replaced_for_a_repeatable_request() -> None:
    def one_answer_then_silence(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(answer(b"one"))
        request_of(connection)  # and closes without a byte

    with (
        server(one_answer_then_silence, serving(b"two")) as url,
        closing(Transport(url)) as transport,
    ):
        assert transport.request("GET", "a").read(100) == b"one"
        assert transport.request("GET", "b").read(100) == b"two"


def test_an_answer_that_nobody_asked_for_is_not_that_to_the_next_request() -> None:
    """It came together with the one before, and is not in the socket any more."""

    def twice(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(answer(b"one") + answer(b"one"))

    with server(twice, serving(b"two")) as url, closing(Transport(url)) as transport:
        assert transport.request("GET", "a").read(100) == b"one"
        assert transport.request("POST", "b", body=b"", repeatable=False).read(100) == b"two"


def test_a_request_that_was_answered_can_be_aborted_no_more() -> None:
    """Its connection is somebody else's by then."""
    with server(serving(b"one", b"two")) as url, closing(Transport(url)) as transport:
        sent = transport.send("a", Deadline(5))
        with sent.answer(Deadline(5)) as response:
            assert response.read(10) == b"one"
        other = transport.send("b", Deadline(5))
        sent.abort()
        with other.answer(Deadline(5)) as response:
            assert response.read(10) == b"two"


def test_a_request_under_way_is_aborted_on_another_thread() -> None:
    def silent(connection: socket.socket) -> None:
        request_of(connection)
        connection.recv(1)

    with server(silent) as url, closing(Transport(url)) as transport:
        sent = transport.send("a", Deadline(30))
        threading.Timer(0.0, sent.abort).start()
        with pytest.raises(OfflineError):
            sent.answer(Deadline(30))


def test_a_write_is_never_sent_twice() -> None:
    seen: list[bytes] = []

    def one_answer_then_silence(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(answer(b"one"))
        seen.append(request_of(connection))

    with (
        server(one_answer_then_silence, serving(b"never")) as url,
        closing(Transport(url)) as transport,
    ):
        transport.request("GET", "a").read(100)
        with pytest.raises(OfflineError, match="may have been carried out"):
            transport.request("POST", "b", body=b"", repeatable=False)
        assert len(seen) == 1


def test_a_refused_connection_raises_at_once_and_nothing_was_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(OfflineError, match="connection refused") as caught:
        Transport(f"http://127.0.0.1:{port}", timeout=30).request("GET", "")
    assert caught.value.state == "nothing was sent"
    assert time.monotonic() - started < 5


def silent(connection: socket.socket) -> None:
    request_of(connection)
    connection.recv(1)  # until the client gives up


def dribbling(connection: socket.socket) -> None:
    request_of(connection)
    for byte in answer(b"x" * 10_000):
        connection.sendall(bytes([byte]))
        time.sleep(0.01)


@pytest.mark.parametrize("behaviour", [silent, dribbling])
def test_the_deadline_holds_whatever_the_server_does(behaviour: Behaviour) -> None:
    with server(behaviour) as url, closing(Transport(url)) as transport:
        started = time.monotonic()
        with pytest.raises(OfflineError, match=r"complete answer|deadline"):
            transport.request("GET", "", deadline=Deadline(0.2)).read(100_000)
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("cut", range(0, 44, 3))
def test_an_answer_that_breaks_off_anywhere_is_one_exception(cut: int) -> None:
    def broken(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(answer(b"hello")[:cut])

    with server(broken) as url, closing(Transport(url)) as to, pytest.raises(OfflineError):
        to.request("GET", "").read(100)


def test_a_body_beyond_the_bound_is_refused() -> None:
    with server(serving(b"x" * 200)) as url, closing(Transport(url)) as transport:
        response = transport.request("GET", "")
        with pytest.raises(AnswerError, match="longer than 100"):
            response.read(100)


def test_garbage_is_not_an_answer() -> None:
    def garbage(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(b"\x00\xff" * 100 + b"\r\n\r\n")

    with server(garbage) as url, closing(Transport(url)) as to, pytest.raises(OfflineError):
        to.request("GET", "")


def test_the_token_travels_in_the_header_and_nowhere_else() -> None:
    seen: list[bytes] = []

    def note(connection: socket.socket) -> None:
        seen.append(request_of(connection))
        connection.sendall(answer(b""))

    with server(note) as url:
        transport = Transport(url, token=lambda: "s3cret")
        transport.request("GET", "x").read(0)
        assert b"\r\nAuthorization: Bearer s3cret\r\n" in seen[0]
        assert "s3cret" not in repr(transport)
        transport.close()
        with pytest.raises(ProgrammingError):
            transport.request("GET", "x")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://h", "http://h/"),
        ("http://h:1/db/x", "http://h:1/db/x/"),
        ("https://h//", "https://h/"),
        ("libsql://h/?tls=1#f", "https://h/"),
    ],
)
def test_urls(given: str, meant: str) -> None:
    assert normalise_url(given) == meant


@pytest.mark.parametrize(
    "given",
    [
        "ftp://h",
        "h",
        "http://",
        "http://user:pw@h/",
        "http://h:99999",
        "http://h:0",
        "http://h:x",
        "http://[::1",
        "http://a b",
        "http://h\n/",
        "http://h/\0",
        "http://münchen/",
        b"http://h",
        5,
    ],
)
def test_other_urls_are_refused(given: str) -> None:
    with pytest.raises(ProgrammingError):
        normalise_url(given)


@pytest.mark.parametrize("token", ["a\0b", "a\nb", "s3crét", b"s3cret", 5])
def test_a_token_that_cannot_be_sent_is_refused_where_it_is_given(token: str) -> None:
    with pytest.raises(ProgrammingError, match="token") as caught:
        Transport("http://h", token=token)
    assert "s3cr" not in str(caught.value)
    with (
        closing(Transport("http://127.0.0.1:9", token=lambda: token)) as to,
        pytest.raises(ProgrammingError, match="token"),
    ):
        to.request("GET", "")
