"""A proxy that spoils what passes: between any client and any server of ours, over real sockets.

It understands as much of HTTP/1.1 as tells one message from the next. What becomes of an exchange (one
request and its answer) is decided by a :class:`Fault`, which `Proxy.plan` gives for it. A fault is two
*spoilers*, one for each direction: generators that are given a message as it comes, in pieces, and yield
what is to be passed on, or one of the acts CLOSE, RESET, HALF and :class:`Hold`.

Nothing depends on time: what is withheld stays so until the test lets it go, faults are given by plan or
drawn from a seeded generator.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import random
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

HEAD_END = b"\r\n\r\n"


class Act(enum.Enum):
    """What a spoiler can do beside passing bytes on."""

    CLOSE = "close"  # both connections end
    RESET = "reset"  # the same with RST instead of FIN
    HALF = "half"  # the receiver hears no more, and may still send


CLOSE, RESET, HALF = Act.CLOSE, Act.RESET, Act.HALF


class Hold:
    """Withholds what comes after it.

    Attributes:
      held: set when it has come to that.
    """

    def __init__(self) -> None:
        self.held = threading.Event()
        self._released = threading.Event()

    def release(self) -> None:
        """Let it pass."""
        self._released.set()

    def wait(self) -> None:
        self.held.set()
        self._released.wait()


Pieces = Iterator[bytes]
Spoiled = Iterator["bytes | Act | Hold"]
Spoiler = Callable[[Pieces], Spoiled]


# ---------------------------------------------------------------- spoilers


def intact(pieces: Pieces) -> Spoiled:
    yield from pieces


def stop(at: int, act: Act | Hold) -> Spoiler:
    """So many bytes pass, then the act; behind a Hold the rest. A shorter message passes."""

    def spoil(pieces: Pieces) -> Spoiled:
        left: int | None = at
        for piece in pieces:
            if left is None or len(piece) <= left:
                left = None if left is None else left - len(piece)
                yield piece
                continue
            yield piece[:left]
            yield act
            if isinstance(act, Act):
                return
            yield piece[left:]
            left = None

    return spoil


def whole(change: Callable[[bytes], bytes], then: Act | None = None) -> Spoiler:
    """The message is gathered and changed."""

    def spoil(pieces: Pieces) -> Spoiled:
        yield change(b"".join(pieces))
        if then is not None:
            yield then

    return spoil


def flip(at: int, mask: int = 4) -> Spoiler:
    """Bits of one byte are flipped."""
    return whole(
        lambda data: data[:at] + bytes(byte ^ mask for byte in data[at : at + 1]) + data[at + 1 :]
    )


def swap(at: int, size: int) -> Spoiler:
    """Two neighbouring blocks of `size` bytes change places."""

    def change(data: bytes) -> bytes:
        one, two = data[at : at + size], data[at + size : at + 2 * size]
        return data[:at] + two + one + data[at + 2 * size :] if len(two) == size else data

    return whole(change)


def drop(at: int, size: int, then: Act | None = None) -> Spoiler:
    """Bytes are missing, and Content-Length is as it was."""
    return whole(lambda data: data[:at] + data[at + size :], then)


def repeat(at: int, size: int) -> Spoiler:
    """Bytes come twice; of a whole message: two answers to one request."""
    return whole(lambda data: data[: at + size] + data[at:])


def framed(frame: Callable[[bytes], tuple[str, bytes]], then: Act | None = None) -> Spoiler:
    """The body is framed otherwise: `frame` answers header lines and body for it."""

    def change(data: bytes) -> bytes:
        head, body = split(data)
        lines = [
            line
            for line in head.split(b"\r\n")[:-2]
            if not line.lower().startswith((b"content-length:", b"transfer-encoding:"))
        ]
        if status(head) == 204:
            return data
        if is_chunked(head):
            body = unchunked(body)
        fields, body = frame(body)
        return b"\r\n".join([*lines, *fields.encode().splitlines()]) + HEAD_END + body

    return whole(change, then)


def chunked(
    size: int, *, lie: int = 0, end: bytes = b"0\r\n\r\n", then: Act | None = None
) -> Spoiler:
    """In chunks of `size` bytes; the second one says that it is longer by `lie`."""

    def frame(body: bytes) -> tuple[str, bytes]:
        made = []
        for number, at in enumerate(range(0, len(body), size)):
            part = body[at : at + size]
            made.append(b"%x\r\n%b\r\n" % (max(1, len(part) + (lie if number == 1 else 0)), part))
        return "Transfer-Encoding: chunked", b"".join([*made, end])

    return framed(frame, then)


def until_closed(pieces: Pieces) -> Spoiled:
    """The body ends with the connection, as in HTTP/1.0."""
    yield from framed(lambda body: ("Connection: close", body), CLOSE)(pieces)


# ---------------------------------------------------------------- faults


@dataclass(frozen=True)
class Fault:
    """What becomes of one exchange.

    Attributes:
      up, down: what becomes of the request and of the answer.
      deliveries: how often the server is given the request: 0 never, 2 as a proxy does that tries again.
      tells: which of the answers the client is given.
      instead: bytes that the client is given in place of any answer.
    """

    up: Spoiler = intact
    down: Spoiler = intact
    deliveries: int = 1
    tells: int = -1
    instead: bytes | None = None


SOUND = Fault()


def page(code: int, reason: str) -> bytes:
    """What a gateway says."""
    body = f"<html><head><title>{code} {reason}</title></head><body>{reason}</body></html>\r\n"
    return (
        f"HTTP/1.1 {code} {reason}\r\nServer: gateway\r\nContent-Type: text/html\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()


def gateway(code: int, *, deliveries: int = 1) -> Fault:
    """A gateway answers by itself; 504: perhaps after the server has had the request."""
    reason = {502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Time-out"}
    return Fault(instead=page(code, reason.get(code, "It works!")), deliveries=deliveries)


def random_fault(rng: random.Random, path: str) -> Fault:
    """Any fault, anywhere, for an exchange about that path.

    None withholds for ever, so that nobody times out. The text of SQL and its answers are not garbled,
    because nothing but TLS would notice: they are cut and come twice.
    """
    at = rng.choice([0, rng.randrange(40), rng.randrange(400), rng.randrange(20_000)])
    size = rng.choice([1, rng.randrange(1, 200)])
    act = rng.choice([CLOSE, RESET])
    faults = [
        Fault(up=stop(at, act)),
        Fault(down=stop(at, act)),
        Fault(down=stop(at, HALF)),
        Fault(down=chunked(1 + at)),
        Fault(down=until_closed),
        Fault(down=repeat(0, 1 << 30)),
        Fault(deliveries=2, tells=rng.choice([0, 1])),
        gateway(rng.choice([502, 503, 504, 200]), deliveries=rng.choice([0, 1])),
    ]
    if not path.startswith(("/nl/v1/sql", "/v2/", "/v3/")):
        faults += [
            Fault(up=flip(at, 1 << rng.randrange(8))),
            Fault(down=flip(at, 1 << rng.randrange(8))),
            Fault(down=drop(at, size, CLOSE)),
            Fault(down=swap(at, size)),
            Fault(down=repeat(at, size)),
            Fault(down=chunked(1 + at, lie=rng.choice([-1, 1, 9]), then=CLOSE)),
        ]
    return rng.choice(faults)


# ---------------------------------------------------------------- HTTP


def split(message: bytes) -> tuple[bytes, bytes]:
    """Head with its empty line, and body."""
    at = message.find(HEAD_END) + len(HEAD_END)
    return message[:at], message[at:]


def status(head: bytes) -> int:
    return int(head.split(b" ", 2)[1])


def header(head: bytes, name: bytes) -> bytes:
    """The value of a header by its lower-case name; empty when there is none."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return b""


def is_chunked(head: bytes) -> bool:
    return header(head, b"transfer-encoding").lower() == b"chunked"


def unchunked(body: bytes) -> bytes:
    found = b""
    while True:
        line, _, body = body.partition(b"\r\n")
        size = int(line, 16)
        if size == 0:
            return found
        found, body = found + body[:size], body[size + 2 :]


class GoneError(Exception):
    """The connection that was read has ended."""


class Reader:
    """Messages out of a socket, in pieces as they come."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._data = b""

    @property
    def has_more(self) -> bool:
        return bool(self._data)

    def _more(self) -> None:
        try:
            data = self.sock.recv(65536)
        except OSError:
            raise GoneError from None
        if not data:
            raise GoneError
        self._data += data

    def _take(self, size: int) -> Pieces:
        while size:
            if not self._data:
                self._more()
            piece, self._data = self._data[:size], self._data[size:]
            size -= len(piece)
            yield piece

    def _through(self, mark: bytes) -> bytes:
        while (at := self._data.find(mark)) < 0:
            self._more()
        at += len(mark)
        found, self._data = self._data[:at], self._data[at:]
        return found

    def message(self, *, answer: bool) -> Pieces:
        """One message. GoneError when the connection ends before it does."""
        head = self._through(HEAD_END)
        yield head
        if answer and status(head) in (204, 304):
            return
        if is_chunked(head):
            while True:
                line = self._through(b"\r\n")
                yield line
                size = int(line, 16)
                yield from self._take(size + 2)
                if size == 0:
                    return
        yield from self._take(int(header(head, b"content-length") or 0))


# ---------------------------------------------------------------- the proxy


@dataclass
class Exchange:
    """One request, as it came from the client, and the answers to it, as they came from the server.

    Attributes:
      number: in the order in which the requests began, from 0.
      path: of the request, with what follows a question mark.
    """

    number: int
    method: str
    path: str
    request: bytes = b""
    answers: list[bytes] = field(default_factory=list)


Plan = Callable[[Exchange], Fault | None]


class Proxy:
    """Listens on a port of its own and passes on to `port`; a sound one until there is a plan.

    Args:
      port: of the server on this machine.

    Attributes:
      url: of the proxy.
      port: where new connections lead; a server may have been started again elsewhere.
      plan: what becomes of an exchange; it knows method and path. None: nothing.
      exchanges: all so far.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.plan: Plan | None = None
        self.exchanges: list[Exchange] = []
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._holds: list[Hold] = []
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def spoiling(self, *faults: Fault, path: str = "") -> Iterator[None]:
        """The next exchanges whose paths begin with `path` have these faults, in order."""
        left = list(faults)

        def plan(exchange: Exchange) -> Fault | None:
            return left.pop(0) if left and exchange.path.startswith(f"/{path}") else None

        self.plan = plan
        try:
            yield
        finally:
            self.sound()

    def sound(self) -> None:
        """From now on everything passes, what is withheld too; connections that were spoiled have ended."""
        self.plan = None
        with self._lock:
            holds, self._holds = self._holds, []
        for hold in holds:
            hold.release()

    def close(self) -> None:
        """End all connections."""
        self._closed = True
        self.sound()
        with self._lock:
            sockets = list(self._sockets)
        for sock in (self._listener, *sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive(), "a connection of the proxy does not end"

    # ------------------------------------------------------------ connections

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._start(self._serve, client)

    def _connect(self) -> socket.socket:
        try:
            server = socket.create_connection(("127.0.0.1", self.port))
        except OSError:
            raise GoneError from None
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._keep(server)
        return server

    def _keep(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.add(sock)
            if not self._closed:
                return
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    def _end(self, sock: socket.socket, how: Act = CLOSE) -> None:
        with contextlib.suppress(OSError):
            if how is RESET:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                sock.shutdown(socket.SHUT_WR)
        with self._lock:
            self._sockets.discard(sock)
            sock.close()

    def _serve(self, client: socket.socket) -> None:
        """One connection of a client, and the one to the server that belongs to it."""
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._keep(client)
        server: socket.socket | None = None
        how = CLOSE
        try:
            server = self._connect()
            pair = _Pair(Reader(client), Reader(server))
            while pair.wait_for_a_request():
                if (ended := self._exchange(pair)) is not None:
                    how = ended
                    break
        except (GoneError, OSError):
            pass
        finally:
            for sock in (client, server):
                if sock is not None:
                    self._end(sock, how)

    # ------------------------------------------------------------ one exchange

    def _exchange(self, pair: _Pair) -> Act | None:
        """Pass a request and its answer; an act when the connections are to end."""
        request = pair.client.message(answer=False)
        head = next(request)
        method, path = head.decode("latin-1").split(" ")[:2]
        with self._lock:
            exchange = Exchange(len(self.exchanges), method, path)
            self.exchanges.append(exchange)
        fault = (self.plan(exchange) if self.plan is not None else None) or SOUND

        def come() -> Pieces:
            for piece in itertools.chain([head], request):
                exchange.request += piece
                yield piece

        if fault.deliveries != 1 or fault.instead is not None:
            return self._otherwise(exchange, fault, pair, b"".join(come()))
        if (act := self._pass(fault.up(come()), pair.server.sock)) not in (None, HALF):
            return act
        ended = self._pass(fault.down(pair.answer(exchange)), pair.client.sock)
        if ended is HALF:
            pair.until_the_client_ends()
        return ended or act

    def _otherwise(
        self, exchange: Exchange, fault: Fault, pair: _Pair, request: bytes
    ) -> Act | None:
        """Deliver it as often as is wanted, each time on a connection of its own, then answer."""
        for _ in range(fault.deliveries):
            server = self._connect()
            try:
                server.sendall(request)
                for _piece in _Pair(pair.client, Reader(server)).answer(exchange):
                    pass
            finally:
                self._end(server)
        told = fault.instead if fault.instead is not None else exchange.answers[fault.tells]
        act = self._pass(fault.down(iter([told])), pair.client.sock)
        return CLOSE if act is None and fault.instead is not None else act

    def _pass(self, spoiled: Spoiled, to: socket.socket) -> Act | None:
        for piece in spoiled:
            if isinstance(piece, Act):
                if piece is HALF:
                    to.shutdown(socket.SHUT_WR)
                return piece
            if isinstance(piece, Hold):
                with self._lock:
                    self._holds.append(piece)
                piece.wait()
                if self._closed:
                    return CLOSE
            else:
                to.sendall(piece)
        return None


@dataclass
class _Pair:
    """The two connections of one client."""

    client: Reader
    server: Reader

    def wait_for_a_request(self) -> bool:
        """False when either side has gone."""
        if self.client.has_more:
            return True
        found = _readable(self.client.sock, self.server.sock)
        return self.client.sock in found and bool(self.client.sock.recv(1, socket.MSG_PEEK))

    def answer(self, exchange: Exchange) -> Pieces:
        """The server's answer as it comes. GoneError when the client does not wait for it."""
        if not self.server.has_more:
            found = _readable(self.client.sock, self.server.sock)
            if self.server.sock not in found and not self.client.sock.recv(1, socket.MSG_PEEK):
                raise GoneError
        exchange.answers.append(b"")
        for piece in self.server.message(answer=True):
            exchange.answers[-1] += piece
            yield piece

    def until_the_client_ends(self) -> None:
        with contextlib.suppress(OSError):
            while self.client.sock.recv(65536):
                pass


def _readable(*sockets: socket.socket) -> set[socket.socket]:
    """Those of them that have something, be it their end."""
    poll = select.poll()
    by_fd = {sock.fileno(): sock for sock in sockets}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    return {by_fd[fd] for fd, _ in poll.poll() if fd in by_fd}
