"""How things look: consoles, tables, amounts, times. A terminal gets colour; a pipe gets plain, wide text."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TextIO, cast

import click
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from market.money import format_octo

_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_TRAILING = re.compile(r"[ \t]+(?=\n)")
_WIDEST = 110
_PIPE_WIDTH = 200  # nobody reads a pipe's line ends: nothing is cut there


def screen(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    file = None if stream.isatty() else cast(TextIO, _Trimmed(stream))
    console = Console(file=file, stderr=stderr, highlight=False, emoji=False, markup=False)
    console.width = min(console.width, _WIDEST) if stream.isatty() else _PIPE_WIDTH
    return console


class _Trimmed:
    """A pipe, without the blanks that fill up a table's last column."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(_TRAILING.sub("", text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def print_json(facts: Any) -> None:
    click.echo(json.dumps(facts, indent=2, ensure_ascii=False, default=str))


def table(
    *columns: str, rows: Iterable[Iterable[object]], right: Iterable[str] = (), whole: Iterable[str] = ()
) -> Table:
    """Rows under quiet headings; columns named in `right` hold numbers, those in `whole` are never broken."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        justify: JustifyMethod = "right" if column in right else "left"
        made.add_column(column, justify=justify, overflow="fold", no_wrap=column in right or column in whole)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else printable(cell) for cell in row))
    return made


def facts(rows: Iterable[tuple[str, object]]) -> Table:
    """Names on the left, what they are on the right."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, fact in rows:
        made.add_row(name, fact if isinstance(fact, Text) else printable(fact))
    return made


def printable(fact: object) -> str:
    """Text of strangers (a peer's reason, a model's answer) without what would steer the terminal."""
    return "".join("\ufffd" if _STEERS.match(c) else c for c in str(fact))


def counted(count: int, noun: str) -> str:
    """`1 peer`, `2 peers`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def elided(cid: str, out: Console) -> str:
    """A CID that leaves room for others in a table on a terminal; whole in a pipe, and wherever it stands alone."""
    return cid if out.width >= _PIPE_WIDTH or len(cid) <= 20 else f"{cid[:9]}…{cid[-6:]}"


def octo(amount: int | str) -> str:
    """An amount of 10^-18 OCTO; the API writes it as text, JSON's numbers end at 2^53."""
    return format_octo(int(amount))


def bare(amount: int | str) -> str:
    """The same without its unit, for columns whose heading has it."""
    return octo(amount).removesuffix(" OCTO")


def moment(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def span(seconds: float) -> str:
    """`3 s`, `4 min`, `2 h 5 min`, `3 d 4 h`."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if minutes == 0:
        return f"{seconds:.0f} s"
    if hours == 0:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if days == 0 else f"{days} d {hours % 24} h"


def size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
