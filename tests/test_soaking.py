"""The frame of the tests that last: how time is shared, and what stands at the end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import soaking
from soaking import Soak, share_of, table


def item(*markers: str) -> Any:
    return SimpleNamespace(get_closest_marker=lambda name: name if name in markers else None)


def test_the_default_run_is_short() -> None:
    short = Soak(None)
    assert short.seconds(1.5) == 1.5
    assert list(short.turns(3)) == [0, 1, 2]


def test_a_soak_goes_on_for_its_share() -> None:
    assert Soak(700.0).seconds(1.5) == 700.0
    assert list(Soak(0.0).turns(3)) == []
    turns = Soak(700.0).turns(3)
    assert [next(turns) for _ in range(5)] == [0, 1, 2, 3, 4]


def test_the_time_is_shared_by_those_that_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [item("soak"), item(), item("soak", "parametrize"), item("soak")]
    config: Any = SimpleNamespace()
    monkeypatch.setattr(soaking, "SOAKING", True)
    monkeypatch.setenv("NL_SOAK_SECONDS", "600")
    assert share_of(config, items) == 200
    config.workerinput = {"workercount": 2}
    assert share_of(config, items) == 300  # one of the two has two of them
    assert share_of(config, [item()]) is None
    monkeypatch.setattr(soaking, "SOAKING", False)
    assert share_of(config, items) is None


def test_there_is_a_row_for_each_and_what_failed_says_so() -> None:
    def reports(test: str, *, failed: bool) -> list[Any]:
        soak = Soak(None)
        soak.count(kills=1000, acknowledged_commits=7)
        soak.count(kills=234)
        common = {"nodeid": f"tests/test_x.py::{test}", "user_properties": [("soak", soak.line())]}
        return [
            SimpleNamespace(when="call", failed=failed, **common),
            SimpleNamespace(when="teardown", failed=False, **common),
        ]

    assert table([*reports("test_b", failed=True), *reports("test_a", failed=False)]) == [
        "| test x.py test a | 0.0 min | 1,234 kills, 7 acknowledged commits | 0 |",
        "| test x.py test b | 0.0 min | 1,234 kills, 7 acknowledged commits | FAILED |",
    ]
