"""The README's tables: figures from `bench/results/`, gas from `contracts/snapshots/`. `python -m bench.figures` writes
them; a test keeps them true."""

from __future__ import annotations

import json
from pathlib import Path

from bench.rows import RESULTS, ratio_text

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
GAS = ROOT / "contracts" / "snapshots" / "gas.json"
GAS_ROWS = {
    "channel: open": ("open a channel", 70_000),
    "channel: redeem": ("redeem a voucher", 56_000),
    "channel: redeem, each of a batch of 100": ("redeem, each of a batch of 100", 17_500),
    "channel: close by the payee": ("close, by the payee", None),
    "stake: first": ("stake for a tier", None),
    "stake: slash for equivocation, reporter without OCTO-A": ("slash for equivocation", 125_000),
    "OCTO: transfer": ("for comparison: transfer OCTO", None),
}


def figures_table(results: Path = RESULTS) -> str:
    """Markdown, one line a figure, in the order of their names."""
    rows = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    lines = [f"Medians on {rows[0]['machine']}:", "", "| figure | unit | ours | rival | ratio | goal | met |"]
    lines.append("|---|---|---:|---:|---:|---|---|")
    for row in rows:
        rival = f"{row['rival']:g} ({row['rival_name']})" if row["rival"] is not None else ""
        ratio = ratio_text(row["ratio"]) if row["ratio"] is not None else ""
        met = {True: "yes", False: "**no**", None: ""}[row["met"]]
        cells = (row["name"], row["unit"], f"{row['ours']:g}", rival, ratio, row["goal"], met)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gas_table(snapshot: Path = GAS) -> str:
    """Markdown, one line a call: what forge measured, which a test compares with what it measures now."""
    gas = json.loads(snapshot.read_text())
    lines = ["| call | gas | goal |", "|---|---:|---:|"]
    for name, (call, goal) in GAS_ROWS.items():
        lines.append(f"| {call} | {gas[name]:,} | {'' if goal is None else f'at most {goal:,}'} |")
    return "\n".join(lines)


def with_tables(readme: str) -> str:
    return _replaced(_replaced(readme, "figures", figures_table()), "gas", gas_table())


def _replaced(readme: str, name: str, table: str) -> str:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, found, rest = readme.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the README has no place for the {name} table")
    return f"{head}{begin}\n{table}\n{end}{tail}"


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
