"""Options and fixtures of the benchmarks."""

from __future__ import annotations

import os

import pytest
from pairs import Pairs
from pytest_benchmark.fixture import BenchmarkFixture

# Before libsql is imported anywhere: its client logs one line per sync otherwise.
os.environ.setdefault("RUST_LOG", "off")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sides",
        choices=("both", "ours", "peer"),
        default="both",
        help="measure only one side (for example ours, where the peers cannot be had)",
    )


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, object]
) -> None:
    """What else the machine was doing belongs to the figures."""
    machine_info["load"] = os.getloadavg()[0]


@pytest.fixture
def pairs(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Pairs:
    """Measures a figure as interleaved pairs; see pairs.py."""
    return Pairs(benchmark, request.config.getoption("--sides"))
