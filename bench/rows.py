"""What a benchmark says: rows, each beside its rival in the same run; one file each, one table for all.

Lives here: `Row`, the files in `bench/results/`, the table, the machine's description. Knows no benchmark.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure: `ours` and `rival` are medians, `ratio` the median of the pairs' ours / rival; `goal` says in
    words what it must reach, `met` whether it did (None: no goal). `runs` are the raw numbers, a pair
    [ours, rival] a run.
    """

    name: str
    unit: str
    ours: float
    rival: float | None
    rival_name: str
    ratio: float | None
    goal: str
    met: bool | None
    runs: list[list[float]]
    machine: str

    def against(self, goal: str, *, met: bool) -> Row:
        """The same figure with a goal that is not a bound on its ratio."""
        return replace(self, goal=goal, met=met)


def compared(
    name: str,
    unit: str,
    ours: Sequence[float],
    rival: Sequence[float],
    rival_name: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row:
    """Medians of paired runs, and the median of their ratios against a goal for the ratio."""
    ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, rival, strict=True))
    goal, met = "", None
    if at_least is not None:
        goal, met = f"ratio >= {at_least:g}", ratio >= at_least
    if at_most is not None:
        goal, met = f"ratio <= {at_most:g}", ratio <= at_most
    mine, theirs = statistics.median(ours), statistics.median(rival)
    return Row(
        name=name,
        unit=unit,
        ours=round(mine, 3),
        rival=round(theirs, 3),
        rival_name=rival_name,
        ratio=float(f"{ratio:.4g}"),
        goal=goal,
        met=met,
        runs=[[round(mine, 3), round(theirs, 3)] for mine, theirs in zip(ours, rival, strict=True)],
        machine=machine(),
    )


def measured(
    name: str, unit: str, ours: Sequence[float], *, at_least: float | None = None, at_most: float | None = None
) -> Row:
    """A figure without a rival, against a goal in its own unit."""
    mine = statistics.median(ours)
    goal, met = "", None
    if at_least is not None:
        goal, met = f">= {at_least:g} {unit}", mine >= at_least
    if at_most is not None:
        goal, met = f"<= {at_most:g} {unit}", mine <= at_most
    return Row(
        name=name,
        unit=unit,
        ours=round(mine, 3),
        rival=None,
        rival_name="",
        ratio=None,
        goal=goal,
        met=met,
        runs=[[round(mine, 3)] for mine in ours],
        machine=machine(),
    )


def machine() -> str:
    """The processor, how many cores we may use, and the memory."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    name = found.group(1).strip() if found else os.uname().machine
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def write_rows(rows: Iterable[Row], *, folder: Path = RESULTS) -> None:
    """Each row to `<folder>/<name>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        (folder / f"{row.name}.json").write_text(json.dumps(asdict(row), indent=2) + "\n")


def as_dicts(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def ratio_text(ratio: float) -> str:
    """Two decimals, or two digits of what is smaller."""
    return f"{ratio:.2f}" if ratio >= 0.01 else f"{ratio:.2g}"


def print_table(rows: Iterable[Row], *, console: Console | None = None) -> None:
    """One line a row; as wide as it needs to be where the output is a file or a pipe."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=180)
    table = Table(title=machine(), title_justify="left")
    for heading in ("figure", "unit", "ours", "rival", "ratio", "goal", "met", "runs", "rival's name"):
        right = heading in ("ours", "rival", "ratio", "runs")
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "rival's name")
    for row in rows:
        rival = "" if row.rival is None else f"{row.rival:g}"
        met = "" if row.met is None else "[green]yes[/]" if row.met else "[red]no[/]"
        ratio = "" if row.ratio is None else ratio_text(row.ratio)
        table.add_row(
            row.name, row.unit, f"{row.ours:g}", rival, ratio, row.goal, met, str(len(row.runs)), row.rival_name
        )
    console.print(table)
