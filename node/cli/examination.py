"""An examination of a receipt, as a person reads it: what holds, what is broken, what nobody could tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from node.cli.show import printable

if TYPE_CHECKING:
    from verifier.examination import Examination

_MARKS = {"holds": ("✓ holds", "green"), "broken": ("✗ broken", "bold red"), "unknown": ("? unknown", "yellow")}


def findings_table(examination: Examination, *, one_line: bool = False) -> Table:
    """`one_line` cuts what does not fit."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False, expand=one_line)
    made.add_column(no_wrap=True, min_width=max(len(mark) for mark, _ in _MARKS.values()))
    made.add_column(no_wrap=True, min_width=max(len(finding.what) for finding in examination.findings))
    made.add_column(ratio=1, no_wrap=one_line, overflow="ellipsis" if one_line else "fold")
    for finding in _sorted(examination):
        made.add_row(Text(*_MARKS[finding.verdict]), Text(finding.what, style="bold"), printable(finding.detail))
    return made


def summary(examination: Examination) -> Text:
    counts = {verdict: sum(f.verdict == verdict for f in examination.findings) for verdict in _MARKS}
    if not examination.ok:
        return Text(f"BROKEN: {counts['broken']} checks failed, {counts['holds']} hold.", style="bold red")
    known = f"Nothing is broken: {counts['holds']} checks hold, {counts['unknown']} things this file cannot tell."
    return Text(known, style="bold green")


def facts(examination: Examination) -> dict[str, Any]:
    return {
        "ok": examination.ok,
        "findings": [{"what": f.what, "verdict": f.verdict, "detail": f.detail} for f in examination.findings],
    }


def _sorted(examination: Examination) -> Iterator[Any]:
    """Broken ones first: nobody should have to look for them."""
    order = ["broken", "holds", "unknown"]
    return iter(sorted(examination.findings, key=lambda finding: order.index(finding.verdict)))
