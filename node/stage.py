"""Where the demo plays: the screen, the names of the players, and the list of what did not hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from market.quote import Quote
from market.receipt import Receipt
from node.cli.show import screen, table
from node.devnet import Devnet
from verifier.examination import Examination
from verifier.receipt_file import ReceiptFile

_WIDTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One bought answer: what was said, the `octo` facts of the API, and its receipt, checked."""

    prompt: str
    answer: str
    octo: dict[str, Any]
    file: ReceiptFile
    data: bytes
    receipt: Receipt
    quote: Quote
    examination: Examination


class Stage:
    """Every player prints here, and says here what it expects. `quiet`: show nothing."""

    def __init__(self, devnet: Devnet, *, quiet: bool) -> None:
        self.devnet = devnet
        self.out = Console(quiet=True) if quiet else screen()
        self.out.width = min(self.out.width, _WIDTH)
        self.broken: list[str] = []
        self._chapters = 0
        self._names = {member.peer_id: member.name for member in (*devnet.providers, devnet.client)}

    def chapter(self, title: str) -> None:
        self._chapters += 1
        self.out.print()
        self.out.print(Rule(Text(f" {self._chapters}  {title} ", style="bold"), align="left", style="dim"))
        self.out.print()

    def show(self, *columns: str, rows: list[tuple[object, ...]], right: tuple[str, ...] = (), below: str = "") -> None:
        """A table, and a quiet sentence below it."""
        self.out.print(table(*columns, rows=rows, right=right))
        if below:
            self.out.print(Text(below, style="dim"))

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.broken.append(otherwise)

    def who(self, peer: str) -> str:
        return self._names.get(peer, peer[-8:])

    def named(self, text: str) -> str:
        """Peers in a sentence by the names of this devnet."""
        for peer, name in self._names.items():
            for word in (peer, f"…{peer[-8:]}", peer[-8:]):
                text = text.replace(word, name)
        return text


def signed(amount: int, shown: str) -> str:
    """`shown` with a plus if it is one."""
    return f"+{shown}" if amount > 0 else shown
