"""Polls that belong to beats: how the primary names and ends them, and what a replica concludes from an answer."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import history
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Client, app_of, serving
from test_background import eventually
from test_hostile import http
from test_live import Scene

from nearlite import beats
from nearlite.spawn import primary

NOW = 1_795_679_504.25
HERE = int(NOW // beats.SECONDS)


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("179567950", 179567950), ("", None), (None, None), ("-1", None), ("1.5", None)]
    + [("9" * 16, None), ("\u0661", None), ("1\n", None)],
)
def test_a_beat_is_written_in_digits(text: str | None, number: int | None) -> None:
    assert beats.number(text) == number


def test_a_poll_waits_until_its_beat_is_over() -> None:
    assert beats.left(HERE, NOW) == (HERE + 1) * beats.SECONDS - NOW
    assert beats.left(HERE - 1, NOW) == 0.0
    assert beats.left(HERE + 1, NOW) <= 2 * beats.SECONDS  # named by a timer that was early
    assert beats.left(HERE + 2, NOW) == 0.0  # of another clock


def test_after_nothing_comes_another_beat_and_after_something_the_same() -> None:
    assert beats.following(HERE, NOW, over=True) == HERE + 1
    assert beats.following(HERE, NOW, over=False) == HERE
    assert beats.following(HERE - 3, NOW, over=True) == HERE
    assert beats.following(HERE + 1, NOW, over=False) == HERE + 1
    assert beats.following(HERE + 500, NOW, over=True) == HERE
    assert beats.following(None, NOW, over=True) == HERE


@given(st.integers(-3, 3), st.floats(0, beats.SECONDS, exclude_max=True))
def test_nobody_comes_back_to_a_url_whose_answer_is_still_stored(off: int, since: float) -> None:
    """Whatever clock the first beat was named by."""
    now = HERE * beats.SECONDS + since
    beat, answered = HERE + off, dict[int, float]()
    for _ in range(6):
        assert now - answered.get(beat, 0.0) > beats.FRESH + 1
        now += beats.left(beat, now)
        answered[beat] = now
        beat = beats.following(beat, now, over=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (beats.PUBLIC, beats.FRESH + 1.0),
        ("Public,Max-Age=5", 6.0),
        ("public, max-age=0", 1.0),
        ("private", 0.0),
        ("no-store", 0.0),
        ("private, max-age=60", 0.0),
        ("max-age=60", 0.0),  # stored by nobody between: the request had a token
        ("", 0.0),
        ("public", math.inf),
        ("public, max-age=soon", math.inf),
    ],
)
def test_cache_control_says_how_old_an_answer_may_be(text: str, seconds: float) -> None:
    assert beats.greatest_age(text) == seconds


# ---------------------------------------------------------------- the primary


@pytest.fixture(params=[True, False], ids=["shared-cache", "private"])
def shared(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def client(tmp_path: Path, shared: bool) -> Iterator[Client]:
    app = app_of(tmp_path / "data.db", durability="normal", auth_token="t", shared_cache=shared)
    with serving(app) as port:
        made = Client(port, "t")
        made.run("CREATE TABLE t(a)")
        yield made


def here(client: Client) -> str:
    status = client.request("GET", "/nl/v1/status").json
    return f"/nl/v1/changes/{status['position']}?hash={status['hash']}"


def now() -> int:
    return int(time.time() // beats.SECONDS)


@pytest.mark.parametrize("shared", [True], indirect=True)
def test_only_answers_to_polls_of_a_beat_are_public(client: Client) -> None:
    path = here(client)
    client.run("INSERT INTO t VALUES(1)")
    for more, control in [
        ("", "private"),
        ("&wait=5", "private"),
        ("&beat=", "private"),
        ("&beat=x", "private"),
        (f"&beat={now()}", beats.PUBLIC),
        ("&beat=1", beats.PUBLIC),
    ]:
        reply = client.request("GET", path + more)
        assert (reply.status, reply.headers["cache-control"]) == (200, control)
        assert 0 <= now() - int(reply.headers["nearlite-beat"]) <= 1


@pytest.mark.parametrize("shared", [True], indirect=True)
def test_a_beat_that_is_over_is_answered_at_once_with_the_present_one(client: Client) -> None:
    path = here(client)
    for beat in (0, 1, now() - 1, now() + 1000):
        reply = client.request("GET", f"{path}&beat={beat}")
        assert (reply.status, reply.headers["cache-control"]) == (204, beats.PUBLIC)
        assert 0 <= now() - int(reply.headers["nearlite-beat"]) <= 1
    reply = client.request("GET", path)
    assert (reply.status, reply.headers["cache-control"]) == (204, "no-store")
    assert 0 <= now() - int(reply.headers["nearlite-beat"]) <= 1


@pytest.mark.parametrize("shared", [False], indirect=True)
def test_without_shared_cache_there_are_no_beats(client: Client) -> None:
    path = here(client)
    reply = client.request("GET", f"{path}&beat={now()}")
    assert (reply.status, reply.headers["cache-control"]) == (204, "no-store")
    assert "nearlite-beat" not in reply.headers
    client.run("INSERT INTO t VALUES(1)")
    reply = client.request("GET", f"{path}&beat={now()}")
    assert (reply.status, reply.headers["cache-control"]) == (200, "private")
    assert "nearlite-beat" not in reply.headers


def test_the_command_line_has_it(tmp_path: Path) -> None:
    for options, beat in [((), False), (("--shared-cache",), True)]:
        with primary(tmp_path / "served.db", "--durability", "normal", *options) as url:
            client = Client(urlsplit(url).port or 0)
            with closing(client):
                reply = client.request("GET", here(client))
        assert ("nearlite-beat" in reply.headers) == beat


def test_whether_a_token_is_right_can_be_asked_alone(client: Client, shared: bool) -> None:
    for method in ("GET", "HEAD"):
        right = client.request(method, "/nl/v1/authorized")
        assert (right.status, right.body) == (204, b"")
        control = "public, max-age=10, must-revalidate" if shared else "no-store"
        assert right.headers["cache-control"] == control
        assert right.headers.get("vary") == ("authorization" if shared else None)
    for token, code in ((None, "AUTH_HTTP_HEADER_MISSING"), ("wrong", "UNAUTHORIZED")):
        with closing(Client(client.port, token)) as other:
            wrong = other.request("GET", "/nl/v1/authorized")
        assert (wrong.status, wrong.json["code"]) == (401, code)
        assert wrong.headers["cache-control"] == "no-store"
    assert client.request("POST", "/nl/v1/authorized").status == 405


def test_errors_are_for_nobody_else(client: Client) -> None:
    path = here(client)
    beat = f"&beat={now()}"
    for target, status in [
        (path.split("=")[0] + "=0123456789abcdef" + beat, 409),
        ("/nl/v1/changes/12345678.00000001.00000001?z=0" + beat, 409),
        ("/nl/v1/changes/nowhere?z=0" + beat, 400),
        ("/nl/v1/nothing", 404),
        ("/nothing", 404),
        ("/v3/pipeline", 405),
    ]:
        reply = client.request("GET", target)
        assert (reply.status, reply.headers["cache-control"]) == (status, "no-store")


# ---------------------------------------------------------------- the replica


def answer(
    beat: int | None, control: str, body: bytes = b"", *, at: history.Moment | None = None
) -> bytes:
    """What a primary at `at` answers; a body says that by itself."""
    told = "" if beat is None else f"Nearlite-Beat: {beat}\r\n"
    stands = "" if at is None else f"Nearlite-Position: {at.position}\r\n"
    head = f"{told}{stands}Cache-Control: {control}\r\n"
    return http(body, head=head, status="200 OK" if body else "204 No Content")


def test_a_poll_belongs_to_the_beat_that_the_answer_before_named(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        step = history.wire_set(scene.moments[0], scene.moments[1])
        scene.server.answers = [
            answer(7, "no-store", at=scene.moments[0]),
            answer(8, beats.PUBLIC, at=scene.moments[0]),
            answer(8, beats.PUBLIC, step),
            answer(None, "no-store", at=scene.moments[1]),  # it has been restarted without
            None,
        ]
        scene.thread.start()
        eventually(lambda: scene.server.requests >= 5)
        asked = [path.partition("&v=2")[2] for path in scene.server.paths[-5:]]
        assert asked == ["", "&beat=7", "&beat=8", "&beat=8", "&wait=0.2"]
        assert scene.is_at(1)
        assert scene.failures == []


@pytest.mark.parametrize(
    ("control", "age"), [(beats.PUBLIC, beats.FRESH + 1.0), ("no-store", 0.0), ("public", None)]
)
@pytest.mark.parametrize("brings", [True, False])
def test_what_was_perhaps_stored_is_known_as_of_then(
    tmp_path: Path, control: str, age: float | None, brings: bool
) -> None:
    with Scene(tmp_path) as scene:
        body = history.wire_set(scene.moments[0], scene.moments[1]) if brings else b""
        began: list[float] = []

        def second() -> bytes:
            scene.replica.equal_at = None  # the first answer is forgotten
            began.append(time.monotonic())
            return answer(8, control, body, at=scene.moments[0])

        scene.server.answers = [answer(7, "no-store", at=scene.moments[0]), second, None]
        scene.thread.start()
        eventually(lambda: scene.server.requests >= 3)
        eventually(lambda: scene.is_at(int(brings)))
    known = scene.replica.equal_at  # nobody follows any more
    if age is None:
        assert known is None
    else:
        assert known is not None
        assert began[0] - age <= known <= time.monotonic() - age
        assert scene.replica.primary_position == scene.moments[brings].position


def test_a_server_that_repeats_a_beat_is_not_asked_without_end(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        scene.server.answers = [answer(7, beats.PUBLIC, at=scene.moments[0])]
        scene.server.until = 7
        began = time.monotonic()
        scene.thread.start()
        assert scene.server.enough.wait(20)
        assert time.monotonic() - began > 0.1
        assert scene.failures == []
