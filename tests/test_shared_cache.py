"""`--shared-cache`: the nginx of docs/caching.md makes one request of a thousand replicas', and fools nobody.

What the primary is asked is counted at the primary, request by request with everything that tells polls apart.
"""

from __future__ import annotations

import re
import selectors
import shutil
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from nginx import Nginx, nginx
from serving import Client, Reply, serving
from test_background import count, eventually

import nearlite
from nearlite import beats, serve
from nearlite.access import OneToken
from nearlite.applications import PrimaryApp
from nearlite.primary import Primary

TOKEN = "the token"
REAL = 5
THOUSAND = 1000
PATIENCE = 60.0  # seconds


class Noting(PrimaryApp):
    """Counts requests to the database by path and query."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            query = scope["query_string"].decode()
            self.__dict__["seen"][f"{scope['path']}?{query}" if query else scope["path"]] += 1
        await super().__call__(scope, receive, send)

    def shortcut(self, scope: Any) -> Any:
        short = super().shortcut(scope)

        def noted(target: bytes, *rest: Any) -> bool:
            taken: bool = short(target, *rest)
            if taken and target:  # what is not taken comes the usual way
                self.__dict__["seen"][target.decode()] += 1
            return taken

        return noted if short is not None else None


class Scene:
    """A primary behind nginx, and connections to it that end with the scene.

    Attributes:
      nginx: what replicas know as the primary.
      port: of the primary itself.
      seen: requests that it got.
      path: its file.
    """

    def __init__(self, folder: Path, *, shared_cache: bool) -> None:
        self.path = folder / "primary.db"
        self.seen: Counter[str] = Counter()
        self._folder = folder
        self._shared_cache = shared_cache
        self._stack = ExitStack()
        self._serving = ExitStack()
        self._bound = serve.bind("127.0.0.1", 0)
        self.port: int = self._bound.getsockname()[1]
        self.nginx: Nginx

    def __enter__(self) -> Scene:
        self._stack.enter_context(self._bound)
        self._stack.enter_context(self._serving)
        self.start()
        self.remote().execute("CREATE TABLE t(a)")
        self.nginx = self._stack.enter_context(nginx(self._folder / "nginx", self.port))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Serve; requests that came meanwhile are answered now."""
        app = Noting(
            self.path,
            lambda: Primary.open(self.path, durability="normal"),
            authority=OneToken(TOKEN),
            shared_cache=self._shared_cache,
        )
        app.__dict__["seen"] = self.seen
        self._serving.enter_context(serving(app, self._bound))

    def stop(self) -> None:
        """Serve no more; who connects waits."""
        self._serving.pop_all().close()

    def remote(self) -> Any:
        """A connection to the primary itself."""
        return self._closed(self._connect(f"http://127.0.0.1:{self.port}", isolation_level=None))

    def replica(self, name: str = "replica.db", **options: Any) -> Any:
        """A replica that knows the cache as its primary."""
        path = str(self._folder / name)
        return self._closed(self._connect(path, sync_url=self.nginx.url, **options))

    def live(self, name: str = "live.db") -> Any:
        """A live one, whose poll belongs to a beat."""
        con = self.replica(name, sync_interval="live")
        eventually(lambda: con._replica.background.follows)
        return con

    def _connect(self, target: str, **options: Any) -> Any:
        return nearlite.connect(target, auth_token=TOKEN, **options)

    def _closed(self, connection: Any) -> Any:
        self._stack.callback(connection.close)
        return connection

    def get(self, path: str, token: str | None = TOKEN) -> Reply:
        """What the cache answers on a connection of its own."""
        client = Client(self.nginx.port, token)
        with closing(client):
            return client.request("GET", path)

    def polls(self) -> dict[str, int]:
        """How often the primary was asked each poll of a beat."""
        return {path: times for path, times in self.seen.items() if "&beat=" in path}

    def poll(self) -> str:
        """A poll of the present beat from where the primary stands, as live replicas send it."""
        status = Client(self.port, TOKEN).request("GET", "/nl/v1/status").json
        where = f"/nl/v1/changes/{status['position']}?hash={status['hash']}&z=0&v=2"
        beat = self.get(where).headers["nearlite-beat"]
        return f"{where}&beat={beat}"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Scene(tmp_path, shared_cache=True) as made:
        yield made


def follow(scene: Scene, path: str) -> tuple[str, Reply]:
    """Poll through the cache, beat after beat, until an answer brings something."""
    reply = scene.get(path)
    while reply.status == 204:
        path = re.sub(r"beat=\d+", f"beat={reply.headers['nearlite-beat']}", path)
        reply = scene.get(path)
    return path, reply


def store(scene: Scene) -> tuple[str, Reply]:
    """Commit a row that a poll waits for; the poll and its answer, which the cache now has."""
    path = scene.poll()
    before = len(scene.polls())
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(follow, scene, path)
        eventually(lambda: len(scene.polls()) > before)
        scene.remote().execute("INSERT INTO t VALUES(1)")
        return answer.result(30)


# ---------------------------------------------------------------- one of a thousand


class Pollers:
    """Live replicas without files: each has one poll under way, until it brings something.

    Attributes:
      bodies: what was brought.
      nothing: how many polls of each beat ended with nothing.
    """

    def __init__(self, port: int, path: str, number: int) -> None:
        self._port = port
        self.bodies: list[bytes] = []
        self.nothing: Counter[str] = Counter()
        self._selector = selectors.DefaultSelector()
        self._received: dict[socket.socket, bytes] = {}
        self._path, self._beat = path.split("&beat=")
        for _ in range(number):
            self._begin()

    def _begin(self) -> None:
        made = socket.create_connection(("127.0.0.1", self._port))
        self._selector.register(made, selectors.EVENT_READ, self._beat)
        self._received[made] = b""
        self._ask(made, self._beat)

    def _ask(self, client: socket.socket, beat: str) -> None:
        client.sendall(
            f"GET {self._path}&beat={beat} HTTP/1.1\r\nHost: primary\r\n"
            f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
        )

    def run(self, until: Callable[[], bool]) -> None:
        """Take answers and go on, as live replicas do."""
        end = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < end, "answers come, and not the one"
            ready = self._selector.select(20)
            assert ready, "no answer came"
            for key, _ in ready:
                client: Any = key.fileobj
                self._take(client, key.data)

    def _take(self, client: socket.socket, beat: str) -> None:
        more = client.recv(65536)
        assert more, "a connection was closed"
        self._received[client] += more
        head, end, body = self._received[client].partition(b"\r\n\r\n")
        if not end:
            return
        fields = dict(re.findall(r"^([\w-]+): (.*?)\r?$", head.decode().lower(), re.MULTILINE))
        if len(body) < int(fields["content-length"]):
            return
        self._received[client] = b""
        status = int(head.split()[1])
        if status == 204:
            self.nothing[beat] += 1
            following = fields["nearlite-beat"]
            assert int(following) > int(beat)
            self._selector.modify(client, selectors.EVENT_READ, following)
            self._ask(client, following)
        else:
            assert status == 200, head
            self.bodies.append(body)

    def close(self) -> None:
        for client in self._received:
            client.close()
        self._selector.close()


def test_a_thousand_replicas_cost_one_request_a_beat_and_one_a_commit(scene: Scene) -> None:
    live = [scene.live(f"live{n}.db") for n in range(REAL)]
    eventually(scene.polls)
    path = list(scene.polls())[-1]
    with closing(Pollers(scene.nginx.port, path, THOUSAND - REAL)) as pollers:
        # To the end of a beat with nothing: everybody goes on with one and the same poll.
        pollers.run(lambda: sum(pollers.nothing.values()) >= THOUSAND - REAL)
        eventually(lambda: scene.nginx.at_work_on() >= THOUSAND)
        before = scene.polls()
        scene.remote().execute("INSERT INTO t VALUES(1)")
        pollers.run(lambda: len(pollers.bodies) == THOUSAND - REAL)
        eventually(lambda: [count(con) for con in live] == [1] * REAL)
        assert len(set(pollers.bodies)) == 1
    # All polls were one while nothing happened; the one that waited last brought the commit, and what
    # came after it is the one that waits for the next.
    polls = scene.polls()
    assert set(polls.values()) == {1}, polls
    assert {str(con.position) for con in live} == {str(live[0].position)}
    assert positions(polls) - positions(before) == {str(live[0].position)}
    assert scene.seen["/nl/v1/authorized"] <= len({beat_of(path) for path in polls}) + 2


def positions(polls: dict[str, int]) -> set[str]:
    return {path.split("/")[4].split("?")[0] for path in polls}


def beat_of(path: str) -> str:
    return path.split("&beat=")[1]


def test_others_get_the_answer_when_the_one_who_asked_first_has_left(scene: Scene) -> None:
    path = scene.poll()
    with closing(Pollers(scene.nginx.port, path, 1)):
        eventually(scene.polls)
    with closing(Pollers(scene.nginx.port, path, 10)) as pollers:
        eventually(lambda: scene.nginx.at_work_on() >= 10)
        scene.remote().execute("INSERT INTO t VALUES(1)")
        pollers.run(lambda: len(pollers.bodies) == 10)
    assert len(set(pollers.bodies)) == 1
    assert set(scene.polls().values()) == {1}


@pytest.mark.parametrize("compressed", [0, 1])
def test_large_answers_are_shared(scene: Scene, compressed: int) -> None:
    path = scene.poll().replace("&z=0", f"&z={compressed}")
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(follow, scene, path) for _ in range(4)]
        eventually(lambda: scene.nginx.at_work_on() >= 4)
        scene.remote().execute("INSERT INTO t VALUES(zeroblob(8000000) || randomblob(2000000))")
        replies = [answer.result(30)[1] for answer in answers]
        assert [reply.status for reply in replies] == [200] * 4
        bodies = {reply.body for reply in replies}
    assert len(bodies) == 1
    assert len(bodies.pop()) > 2_000_000
    assert set(scene.polls().values()) == {1}


# ---------------------------------------------------------------- who may have it


def test_a_stored_answer_is_for_those_with_the_token(scene: Scene) -> None:
    def stored() -> bool:
        """Whether one was in the cache all the while that others were refused."""
        path, first = store(scene)
        refused = [scene.get(path, None), scene.get(path, "a wrong one")]
        again = scene.get(path)
        assert [reply.status for reply in refused] == [401, 401]
        assert [reply.headers["www-authenticate"] for reply in refused] == ["Bearer"] * 2
        assert b"nearlite" not in refused[0].body + refused[1].body
        return again.body == first.body and scene.polls()[path] == 1

    eventually(stored)  # it is kept for two seconds only
    with pytest.raises(nearlite.UnauthorizedError):
        nearlite.connect(str(scene.path) + "2", sync_url=scene.nginx.url, auth_token="a wrong one")


def test_without_shared_cache_nothing_is_stored(tmp_path: Path) -> None:
    with Scene(tmp_path, shared_cache=False) as scene:
        con = scene.live()
        scene.remote().execute("INSERT INTO t VALUES(1)")
        eventually(lambda: count(con) == 1)
        assert scene.polls() == {}  # nobody names a beat
        status = scene.get("/nl/v1/status").json
        path = f"/nl/v1/changes/{status['position']}?hash={status['hash']}&z=0&v=2&beat=1"
        for times in (1, 2, 3):
            assert scene.get(path).headers["cache-control"] == "no-store"
            assert scene.polls() == {path: times}
        assert scene.nginx.stored() == []


def test_errors_are_not_stored(scene: Scene) -> None:
    path = re.sub(r"hash=\w+", "hash=0123456789abcdef", scene.poll())
    for times in (1, 2, 3):
        reply = scene.get(path)
        assert (reply.status, reply.json["code"]) == (409, "STATE_MISMATCH")
        assert reply.headers["cache-control"] == "no-store"
        assert scene.polls() == {path: times}


# ---------------------------------------------------------------- nobody is fooled


def test_a_sync_brings_the_newest_whatever_is_stored(scene: Scene) -> None:
    con, remote = scene.replica(), scene.remote()
    for n in range(1, 4):
        store(scene)  # from where con stands
        remote.execute("INSERT INTO t VALUES(2)")
        assert con.sync().position == remote.last_write_position
        assert count(con) == 2 * n
        assert con.sync().pages == 0


def test_requests_of_their_own_do_not_wait_for_each_other(scene: Scene) -> None:
    path = scene.poll().split("&beat=")[0] + "&wait=20"
    with ThreadPoolExecutor(5) as pool:
        replies = [pool.submit(scene.get, path) for _ in range(5)]
        eventually(lambda: scene.seen[path] == 5)
        scene.remote().execute("INSERT INTO t VALUES(1)")
        assert [reply.result(20).headers["cache-control"] for reply in replies] == ["private"] * 5


def test_freshness_primary_is_exact_beside_polls(scene: Scene) -> None:
    con, remote = scene.live(), scene.remote()
    con.freshness = "primary"
    for n in range(1, 21):
        remote.execute("INSERT INTO t VALUES(1)")
        assert count(con) == n
    assert scene.polls()


def test_a_replica_knows_how_old_a_stored_answer_may_be(scene: Scene) -> None:
    """It says so in its lag, and freshness in seconds goes by that."""
    live = [scene.live(f"live{n}.db") for n in range(2)]
    known = [con._replica.equal_at for con in live]  # as the primary itself has told
    remote = scene.remote()
    for n in range(1, 4):
        remote.execute("INSERT INTO t VALUES(1)")
        remote.execute("INSERT INTO t VALUES(1)")
        eventually(lambda n=n: [count(con) for con in live] == [2 * n] * 2)
    for con, before in zip(live, known, strict=True):
        at = con._replica.equal_at
        assert at == before or at < time.monotonic() - beats.FRESH
        con.freshness = 0.001
    remote.execute("INSERT INTO t VALUES(1)")
    assert [count(con) for con in live] == [7, 7]
    assert {con.stats().primary_position for con in live} == {remote.last_write_position}


def test_a_write_is_visible_where_it_was_made(scene: Scene) -> None:
    one, other = scene.live("one.db"), scene.live("other.db")
    one.isolation_level = None
    for n in range(1, 11):
        one.execute("INSERT INTO t VALUES(1)")
        assert count(one) == n
        other.wait_for(one.last_write_position)
        assert count(other) == n


def test_what_is_large_passes_through(scene: Scene) -> None:
    con = scene.replica(isolation_level=None)
    con.execute("INSERT INTO t VALUES(?)", (b"x" * 5_000_000,))
    con.executemany("INSERT INTO t VALUES(?)", [(n,) for n in range(1000)])
    other = scene.replica("other.db")
    assert count(other) == 1001
    assert other.sync(repair=True).repaired


# ---------------------------------------------------------------- other primaries


def test_another_history_is_not_masked(scene: Scene) -> None:
    live, still = scene.live(), scene.replica("still.db")
    store(scene)  # from where `still` stands
    eventually(lambda: count(live) == 1)
    scene.stop()
    shutil.rmtree(f"{scene.path}-nearlite")
    scene.path.unlink()
    scene.start()
    with pytest.raises(nearlite.LineageError):
        still.sync()
    eventually(lambda: isinstance(live.last_sync_error, nearlite.LineageError))
    assert count(live) == 1


def test_a_restored_primary_is_not_masked(scene: Scene) -> None:
    backup = scene.path.with_suffix(".backup")
    live = scene.live()
    with closing(sqlite3.connect(scene.path)) as stock:
        stock.execute("VACUUM INTO ?", (str(backup),))
    scene.remote().execute("INSERT INTO t VALUES(1)")
    eventually(lambda: count(live) == 1)
    scene.stop()
    backup.replace(scene.path)
    scene.start()
    refused = (nearlite.LineageError, nearlite.PrimaryRestoredError)
    with pytest.raises(refused):
        live.sync()
    eventually(lambda: isinstance(live.last_sync_error, refused))
    assert live.sync(repair=True).repaired
    assert count(live) == 0
    scene.remote().execute("INSERT INTO t VALUES(2)")
    eventually(lambda: count(live) == 1)


def test_a_primary_that_is_away_is_waited_for(scene: Scene) -> None:
    con = scene.live()
    scene.stop()
    scene.start()
    scene.remote().execute("INSERT INTO t VALUES(1)")
    eventually(lambda: count(con) == 1)


def test_a_cache_without_a_primary_is_no_answer_of_the_primary(scene: Scene) -> None:
    con, path = scene.live(), scene.poll()
    scene.stop()
    scene._bound.close()
    assert [scene.get(path, token).status for token in (TOKEN, "unheard of")] == [502, 502]
    for ask in (con.sync, lambda: con.execute("INSERT INTO t VALUES(1)")):
        with pytest.raises(nearlite.OfflineError, match="502"):
            ask()
    eventually(lambda: isinstance(con.last_sync_error, nearlite.OfflineError))


def test_a_tree_may_have_a_cache_at_every_level(scene: Scene, tmp_path: Path) -> None:
    relay = nearlite.asgi(
        tmp_path / "relay.db",
        auth_token=TOKEN,
        upstream=scene.nginx.url,
        upstream_token=TOKEN,
        shared_cache=True,
    )
    with serving(relay) as port, nginx(tmp_path / "below", port) as below, ExitStack() as stack:
        leaf, exact = (
            stack.enter_context(closing(scene._connect(str(tmp_path / name), sync_url=below.url)))
            for name in ("leaf.db", "exact.db")
        )
        leaf.follow()
        exact.freshness = "primary"
        known = exact.sync().position
        remote = scene.remote()
        for n in range(1, 6):
            remote.execute("INSERT INTO t VALUES(1)")
            assert count(exact) == n
            eventually(lambda n=n: count(leaf) == n)
        assert known < leaf.position == exact.position == remote.last_write_position
        assert len(below.stored()) > 1  # the token's, and polls'
    assert set(scene.polls().values()) == {1}
