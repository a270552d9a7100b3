"""Lay what was measured against the bars: a table, a JSON file, a plot, and the README's table.

Usage: python bench/report.py [--readme] [--strict]
Reads bench/out/benchmarks.json (pytest-benchmark), writes bench/out/figures.json and
bench/out/figures.svg. Exit code 0; with --strict 1 when a bar is not met or was not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import FIGURES, Bar, Figure
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench" / "out"
README_TABLE = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Result:
    """A figure as measured: medians in base units; None where a side was not measured.

    Attributes:
      fraction: median over pairs of ours / peer, the value as it stands.
      pairs: how many pairs were kept.
    """

    figure: Figure
    ours: float | None
    peer: float | None
    fraction: float | None
    pairs: int

    @property
    def times_better(self) -> float | None:
        """How many times better than the peer, whichever direction is better."""
        if self.fraction is None:
            return None
        return self.fraction if self.figure.unit.more_is_better else 1 / self.fraction

    def meets(self, bar: Bar) -> bool | None:
        """Whether one condition holds; None when it cannot be told."""
        value = {
            "at most": self.ours,
            "times better": self.times_better,
            "of peer": self.fraction,
        }[bar.kind]
        if value is None:
            return None
        return value >= bar.limit if bar.kind == "times better" else value <= bar.limit

    @property
    def met(self) -> bool | None:
        """Whether all conditions hold; None when there is none or one cannot be told."""
        verdicts = [self.meets(bar) for bar in self.figure.bars]
        if not verdicts or None in verdicts:
            return None
        return all(verdicts)


def results_of(benchmarks: dict[str, Any]) -> list[Result]:
    """Every figure of FIGURES, with what pytest-benchmark's JSON holds about it."""
    taken: dict[str, dict[str, list[float]]] = {}
    for benchmark in benchmarks["benchmarks"]:
        taken.update(benchmark["extra_info"].get("figures", {}))
    return [_result(figure, taken.get(figure.key, {})) for figure in FIGURES]


def _result(figure: Figure, taken: dict[str, list[float]]) -> Result:
    ours, peer = taken.get("ours", []), taken.get("peer", [])
    fractions = [a / b for a, b in zip(ours, peer, strict=False)]
    return Result(
        figure,
        statistics.median(ours) if ours else None,
        statistics.median(peer) if peer else None,
        statistics.median(fractions) if fractions else None,
        len(fractions),
    )


def _value(figure: Figure, value: float | None) -> str:
    if value is None:
        return "not run"
    scaled = value * figure.unit.scale
    text = f"{scaled:,.0f}" if scaled >= 100 or figure.unit.digits == 0 else f"{scaled:.3g}"
    return f"{text} {figure.unit.name}"


def _bar(figure: Figure, bar: Bar) -> str:
    if bar.kind == "at most":
        return f"<= {_value(figure, bar.limit)}"
    sign = ">=" if bar.kind == "times better" else "<="
    return f"{sign} {bar.limit:g} x {figure.peer}"


def _ratio(result: Result) -> str:
    """The peer comparison in the sense of the figure's bar: a factor, or a fraction."""
    if result.times_better is None or result.fraction is None:
        return "-"
    fraction = any(bar.kind == "of peer" for bar in result.figure.bars)
    return f"{result.fraction:.2f} x" if fraction else f"{result.times_better:.3g} x better"


def rows_of(results: list[Result]) -> list[tuple[str, ...]]:
    """Cells of the table: figure, bar, ours, peer, ratio, met."""
    verdict = {True: "yes", False: "NO", None: "-"}
    return [
        (
            result.figure.title,
            ", ".join(_bar(result.figure, bar) for bar in result.figure.bars) or "(no bar)",
            _value(result.figure, result.ours),
            f"{_value(result.figure, result.peer)} ({result.figure.peer})",
            _ratio(result),
            verdict[result.met],
        )
        for result in results
    ]


HEADINGS = ("figure", "bar", "ours", "peer", "ratio", "met?")


def machine_of(benchmarks: dict[str, Any]) -> str:
    """One line about the machine, for the table's caption."""
    cpu = benchmarks["machine_info"].get("cpu", {})
    name = " ".join(str(cpu.get("brand_raw") or platform.processor() or "unknown CPU").split())
    day = benchmarks["datetime"][:10]
    system = f"{platform.system()} {platform.machine()}, CPython {platform.python_version()}"
    line = f"{name}, {os.cpu_count()} cores, {system}, {day}"
    load = benchmarks["machine_info"].get("load")
    if load is None or load < 0.5:
        return line
    return f"{line}; other programs were running (load {load:.1f} before the first benchmark)"


def print_table(results: list[Result], machine: str) -> None:
    """The table on the terminal."""
    table = Table(*HEADINGS, title="nearlite against its peers", caption=machine)
    for row, result in zip(rows_of(results), results, strict=True):
        colour = {True: "green", False: "red", None: None}[result.met]
        table.add_row(*row, style=colour)
    # Piped into a file, rich assumes 80 columns and folds every cell.
    console = Console()
    (console if console.is_terminal else Console(width=170)).print(table)


def markdown(results: list[Result], machine: str) -> str:
    """The same table for the README; figures that were not run are left out."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    for row, result in zip(rows_of(results), results, strict=True):
        if result.ours is not None:
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(
        [*lines, "", f"Medians of interleaved pairs; {machine}. `make bench` measures again."]
    )


def write_json(results: list[Result], machine: str, path: Path) -> None:
    """figures.json: base units, one object a figure."""
    figures = [
        {
            "figure": result.figure.key,
            "title": result.figure.title,
            "peer_name": result.figure.peer,
            "ours": result.ours,
            "peer": result.peer,
            "times_better": result.times_better,
            "pairs": result.pairs,
            "met": result.met,
        }
        for result in results
    ]
    path.write_text(json.dumps({"machine": machine, "figures": figures}, indent=1) + "\n")


def draw(results: list[Result], machine: str, path: Path) -> None:
    """Times better than the peer, on a logarithmic axis; the bar as a tick."""
    import matplotlib as mpl  # the table does not need it

    mpl.use("svg")
    import matplotlib.pyplot as plt

    # Fixed, so that drawing the same figures again gives the same file.
    plt.rcParams.update({"svg.hashsalt": "nearlite", "svg.fonttype": "none"})
    drawn = [r for r in reversed(results) if r.times_better is not None]
    if not drawn:
        return
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(drawn) + 1.2))
    axes.barh(
        range(len(drawn)), [r.times_better or 1.0 for r in drawn], color="#3b7dd8", height=0.6
    )
    for y, result in enumerate(drawn):
        for bar in result.figure.bars:
            if bar.kind != "at most":
                at = bar.limit if bar.kind == "times better" else 1 / bar.limit
                axes.plot([at, at], [y - 0.4, y + 0.4], color="#c0392b", linewidth=2)
        axes.annotate(
            f" {result.times_better:.3g} x", (result.times_better or 1, y), va="center", fontsize=8
        )
    labels = [f"{r.figure.title}\nagainst {r.figure.peer}" for r in drawn]
    axes.set_yticks(range(len(drawn)), labels, fontsize=7)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.margins(x=0.12)
    axes.set_xlabel("times better than the peer (red: the bar)", fontsize=8)
    axes.set_title(machine, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """Entry point of `make bench`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--readme", action="store_true", help="replace the table in README.md and docs/figures.svg"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 when a bar is not met")
    options = parser.parse_args()
    source = OUT / "benchmarks.json"
    if not source.exists():
        print(f"{source.relative_to(ROOT)} is missing: run `make bench`", file=sys.stderr)
        return 2
    benchmarks = json.loads(source.read_text())
    results, machine = results_of(benchmarks), machine_of(benchmarks)
    print_table(results, machine)
    write_json(results, machine, OUT / "figures.json")
    draw(results, machine, OUT / "figures.svg")
    if options.readme:
        readme = ROOT / "README.md"
        table = markdown(results, machine).replace("\\", r"\\")
        readme.write_text(README_TABLE.sub(rf"\g<1>{table}\n\g<2>", readme.read_text()))
        draw(results, machine, ROOT / "docs" / "figures.svg")
    return int(options.strict and any(r.met is not True for r in results if r.figure.bars))


if __name__ == "__main__":
    sys.exit(main())
