"""The demo's money on the local ledger: what the nodes' books say, before and after."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from node.cli.show import bare, octo
from node.stage import Stage, Turn, signed

PATIENCE_S = 20.0


class LedgerMoney:
    def __init__(self, stage: Stage, *, patience_s: float = PATIENCE_S) -> None:
        self._stage = stage
        self._patience_s = patience_s
        self._devnet = stage.devnet
        self.before = self._books()
        self.after = self.before

    def show_place(self) -> None:
        """Nothing: a ledger is no place."""

    def opened(self, channel: bytes) -> str | None:  # noqa: ARG002 - the chain's answer has one
        """How a channel came to hold its deposit, if that can be shown."""
        return None

    def settle(self, turns: Sequence[Turn]) -> None:
        """Wait for the last voucher: it travels beside the answer, and arrives a few milliseconds later."""
        owed = sum(turn.receipt.amount for turn in turns)
        deadline = time.monotonic() + self._patience_s
        while True:
            self.after = self._books()
            if self.earned() == owed or time.monotonic() > deadline:
                return
            time.sleep(0.05)

    def show(self, turns: Sequence[Turn]) -> None:
        self._stage.chapter("The money: vouchers on the local ledger")
        self.show_vouchers(self._devnet.client.remote().get("/api/v1/wallet")["channels"])
        client, rows = self._devnet.client.name, []
        for name in self.after:
            what, sign = ("spent", -1) if name == client else ("earned", 1)
            was, now = (sign * book[name][what] for book in (self.before, self.after))
            rows.append((name, bare(was), bare(now), signed(now - was, bare(now - was))))
        lost = self.earned() - self.spent()
        rows.append(("sum", "", "", signed(lost, bare(lost))))
        self._stage.show("OCTO", "BEFORE", "AFTER", "CHANGE", rows=[*rows], right=("BEFORE", "AFTER", "CHANGE"))
        billed = self.check(turns)
        self._stage.out.print()
        self._stage.out.print(
            f"Spent {octo(self.spent())} = earned {octo(self.earned())} = {len(turns)} receipts of {octo(billed)}."
        )

    def show_vouchers(self, channels: Sequence[dict[str, Any]]) -> None:
        rows: list[tuple[object, ...]] = [
            (f"{self._devnet.client.name} → {self._stage.who(c['peer'])}", c["id"][:12], bare(c["deposit"]),
             bare(c["paid"]), c["leaves"])
            for c in channels
        ]  # fmt: skip
        self._stage.show(
            "CHANNEL", "ID", "DEPOSIT", "PAID", "FOR", rows=rows, right=("DEPOSIT", "PAID", "FOR"),
            below="One signed voucher a step; FOR counts the quotes and receipts it pays for.",
        )  # fmt: skip
        self._stage.out.print()

    def check(self, turns: Sequence[Turn]) -> int:
        """Books against books and receipts; what the receipts say in all."""
        spent, earned, billed = self.spent(), self.earned(), sum(turn.receipt.amount for turn in turns)
        expect = self._stage.expect
        expect(spent == earned, f"the client spent {octo(spent)}, the providers earned {octo(earned)}")
        expect(spent == billed, f"the client spent {octo(spent)}, the receipts say {octo(billed)}")
        expect(billed > 0, "nothing was paid")
        return billed

    def spent(self) -> int:
        return self._change(self._devnet.client.name, "spent")

    def earned(self, name: str | None = None) -> int:
        """Of one provider, or of all."""
        return sum(self._change(one.name, "earned") for one in self._devnet.providers if name in (None, one.name))

    def facts(self) -> dict[str, Any]:
        return {"balances": {"before": self.before, "after": self.after}}

    def _change(self, name: str, what: str) -> int:
        return self.after[name][what] - self.before[name][what]

    def _books(self) -> dict[str, dict[str, int]]:
        return {
            member.name: member.remote().get("/api/v1/wallet")["balances"]
            for member in (*self._devnet.providers, self._devnet.client)
        }
