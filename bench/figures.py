"""The README's table of figures, from `bench/results/`. `python -m bench.figures` writes it; a test keeps it true."""

from __future__ import annotations

import json
from pathlib import Path

from bench.rows import RESULTS

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def table(results: Path = RESULTS) -> str:
    """Markdown, one line a figure, in the order of their names."""
    rows = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    lines = [f"Medians on {rows[0]['machine']}:", "", "| figure | unit | ours | rival | ratio | goal | met |"]
    lines.append("|---|---|---:|---:|---:|---|---|")
    for row in rows:
        rival = f"{row['rival']:g} ({row['rival_name']})" if row["rival"] is not None else ""
        ratio = f"{row['ratio']:.2f}" if row["ratio"] is not None else ""
        met = {True: "yes", False: "**no**", None: ""}[row["met"]]
        cells = (row["name"], row["unit"], f"{row['ours']:g}", rival, ratio, row["goal"], met)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_table(readme: str) -> str:
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
