"""Faults at every border of a live replica's polls: it goes on by itself, and misses nothing."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import spoiling
from primaries import primary
from spoiling import CLOSE, HALF, RESET, Exchange, Fault, Hold
from test_background import eventually
from test_spoiled import LONG, Scene, borders

import nearlite
from nearlite.live import Live
from nearlite.replica import Replica


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with primary(tmp_path) as served, ExitStack() as stack:
        yield Scene(tmp_path, stack, served)


def is_poll(exchange: Exchange) -> bool:
    return "wait=" in exchange.path


def follow_through(scene: Scene, faults: list[Fault]) -> None:
    """Write until every fault has met a poll; each write arrives."""
    left = list(faults)
    scene.proxy.plan = lambda exchange: left.pop(0) if left and is_poll(exchange) else None
    with closing(
        nearlite.connect(scene.path, sync_url=scene.proxy.url, sync_interval="live")
    ) as live:
        for _ in range(10 * len(faults)):
            scene.writer.execute(scene.insert())
            live.wait_for(scene.writer.last_write_position, timeout=LONG)
            found = live.execute("SELECT count(*) FROM t WHERE mark = ?", (scene.mark,)).fetchone()
            assert found == (1,)
            if not left:
                break
        assert not left
    scene.check()


def poll_of(scene: Scene) -> Exchange:
    """A poll that brought a change, as it is."""
    follow_through(scene, [spoiling.SOUND] * 3)
    return next(e for e in scene.proxy.exchanges if is_poll(e) and e.answers)


def test_answers_that_break_off(scene: Scene) -> None:
    acts = [CLOSE, RESET, HALF]
    at = borders(poll_of(scene).answers[0])
    follow_through(
        scene,
        [Fault(down=spoiling.stop(n, acts[i % 3])) for i, n in enumerate(at)],
    )


def test_requests_that_break_off(scene: Scene) -> None:
    at = borders(poll_of(scene).request)
    follow_through(scene, [Fault(up=spoiling.stop(n, [CLOSE, RESET][n % 2])) for n in at])


def test_answers_that_are_garbled(scene: Scene) -> None:
    at = borders(poll_of(scene).answers[0])
    kinds = [spoiling.flip, lambda n: spoiling.swap(n, 3), lambda n: spoiling.drop(n, 2, CLOSE)]
    kinds.append(lambda n: spoiling.repeat(n, 3))
    follow_through(scene, [Fault(down=kinds[i % 4](n)) for i, n in enumerate(at)])


def test_gateways_framings_and_repetitions(scene: Scene) -> None:
    faults = [spoiling.gateway(code) for code in (200, 204, 401, 404, 500, 502, 503, 504)]
    faults += [Fault(deliveries=2, tells=tells) for tells in (0, 1)]
    faults += [Fault(down=spoiling.repeat(0, 1 << 30)), Fault(down=spoiling.until_closed)]
    faults += [Fault(down=spoiling.chunked(size)) for size in (1, 33, 1000)]
    follow_through(scene, faults)


def test_whatever_the_weather(scene: Scene) -> None:
    rng = random.Random(4)
    follow_through(scene, [spoiling.random_fault(rng, "/nl/v1/changes") for _ in range(30)])


def test_a_poll_that_stands_still_is_given_up_for_another(scene: Scene) -> None:
    """Nothing is let go before the next poll has brought what is new."""
    failures: list[Any] = []
    hold = Hold()
    scene.proxy.plan = lambda exchange: (
        Fault(down=spoiling.stop(40, hold))
        if is_poll(exchange) and not hold.held.is_set()
        else None
    )
    with closing(Replica(str(scene.path), scene.proxy.url, timeout=0.2)) as replica:
        replica.open()
        live = Live(replica, failed=lambda *failure: failures.append(failure), heartbeat=0.2)
        thread = threading.Thread(target=live.run)
        thread.start()
        assert hold.held.wait(LONG)
        scene.writer.execute(scene.insert())
        target = scene.writer.last_write_position
        eventually(lambda: replica.state().position == target)
        assert failures
        live.stop()
        replica.transport.close()
        thread.join(LONG)
        assert not thread.is_alive()
    scene.check()
