"""`nearlite status`: what was found, once or again and again, for people and for programs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table

Look = Callable[[], dict[str, Any]]

_SECONDS: Final = frozenset(["lag", "counted", "seconds_behind"])
_LATENCIES: Final = frozenset(
    f"{what}_{number}" for what in ("sync", "visible") for number in ("p50", "p99", "longest")
)
_HISTOGRAMS: Final = frozenset(["sync_histogram", "visible_histogram"])
_BYTES: Final = frozenset(["page_bytes", "wire_bytes", "bytes_behind"])
_BARS: Final = " ▁▂▃▄▅▆▇█"


def shown(name: str, value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return "none" if name == "last_error" else "not known"
    if name in _LATENCIES:
        return f"{value * 1000:.2f} ms"
    if name in _HISTOGRAMS:
        return histogram(value)
    if name in _SECONDS:
        return f"{value:.1f} s"
    if name in _BYTES:
        return f"{value:,}"
    return str(value)


def histogram(pairs: Sequence[Sequence[Any]]) -> str:
    """How many took how long at most: a bar and a count for each step, the longest bar the most."""
    if not pairs:
        return "none"
    most = max(count for _, count in pairs)
    steps = []
    for seconds, count in pairs:
        bar = _BARS[math.ceil(count / most * (len(_BARS) - 1))]
        steps.append(f"{bar} {_step(seconds)}: {count:,}")
    return "  ".join(steps)


def _step(seconds: float | None) -> str:
    if seconds is None:
        return "longer"
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"


def say(found: dict[str, Any], *, as_json: bool) -> None:
    """One line or one block on standard output."""
    if as_json:
        print(json.dumps(found), flush=True)
        return
    width = max(12, *(len(name) + 2 for name in found))
    for name, value in found.items():
        print(f"{name + ':':<{width}} {shown(name, value)}")


def watch(look: Look, *, every: float, as_json: bool, console: Console) -> None:
    """Look again and again, until Ctrl-C: in place in a terminal, line after line elsewhere."""
    if as_json or not console.is_terminal:
        while True:
            say(look(), as_json=as_json)
            print(end="" if as_json else "\n", flush=True)
            time.sleep(every)
    with Live(_table(look()), console=console, auto_refresh=False) as view:
        while True:
            time.sleep(every)
            view.update(_table(look()), refresh=True)


def _table(found: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in found.items():
        table.add_row(name, shown(name, value))
    return table
