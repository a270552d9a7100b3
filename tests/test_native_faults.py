"""Fault points: armed by name, counted, fired once, in this process and in a child."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from nearlite._native import faults
from nearlite._native._lib import MisuseError


@pytest.fixture(autouse=True)
def _nothing_armed():
    faults.clear()
    yield
    faults.clear()


def test_a_point_fires_once_at_the_chosen_pass() -> None:
    point = faults.declare("test.point")
    faults.arm("test.point", faults.ENOSPC, after=2)
    faults.hit(point)
    faults.hit(point)
    with pytest.raises(OSError, match="No space") as caught:
        faults.hit(point)
    assert caught.value.errno == errno.ENOSPC
    faults.hit(point)
    assert faults.passes("test.point") == 4


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(MisuseError):
        faults.arm("test.point", 99)


def test_all_points_have_names_of_one_form() -> None:
    for name in faults.names():
        module, _, instant = name.partition(".")
        assert module.isidentifier()
        assert instant


def _child(fault: str, code: str = "pass") -> subprocess.CompletedProcess[str]:
    program = f"from nearlite._native import faults; {code}"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "NL_FAULT": fault},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_environment_kills_a_child_at_a_point() -> None:
    done = _child("a.b:kill:1", "[print(i, faults.hit(b'a.b'), flush=True) for i in range(3)]")
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "0 None\n"


@pytest.mark.parametrize("text", ["a.b", "a.b:explode", "a.b:kill,c", "x" * 2000])
def test_a_malformed_environment_stops_the_child_with_the_reason(text: str) -> None:
    done = _child(text)
    assert done.returncode == 1
    assert "NL_FAULT" in done.stderr
