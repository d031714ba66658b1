"""The demo's money on a chain: stakes, the channel's deposit, the settlement, and balances that add up.

The nodes say what they spent and earned; the chain is asked itself (`node.onlooker`), and both must agree.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from node.cli.show import bare, facts, octo
from node.demo_ledger import PATIENCE_S, LedgerMoney
from node.devnet_chain import DevnetChain
from node.onlooker import ESCROW, Movement, Onlooker, StakeSeen
from node.stage import Stage, Turn, signed


class ChainMoney(LedgerMoney):
    """The books of the ledger's story, and the chain beside them."""

    def __init__(self, stage: Stage, chain: DevnetChain, look: Onlooker, *, patience_s: float = PATIENCE_S) -> None:
        super().__init__(stage, patience_s=patience_s)
        self._chain = chain
        self._look = look
        self._accounts = {
            member.name: member.remote().get("/api/v1/wallet")
            for member in (*self._devnet.providers, self._devnet.client)
        }
        self._wallets = {name: _address(account["wallet"]) for name, account in self._accounts.items()}
        self._shown = set(self._channels())
        self.chain_before = self._look.balances(self._wallets)
        self.chain_after = self.chain_before
        self.stakes: dict[str, StakeSeen] = {}
        self.movements: list[Movement] = []

    # ---- before anything is bought ----

    def show_place(self) -> None:
        deployment = self._chain.deployment
        rows: list[tuple[str, object]] = [
            ("chain", f"{self._chain.kind}, id {deployment.chain_id}, at {self._chain.url}"),
            *((name, one.address) for name, one in deployment.contracts.items()),
        ]
        self._stage.out.print()
        self._stage.out.print(facts(rows))
        self._show_stakes()

    def _show_stakes(self) -> None:
        self._stage.chapter("What stands behind each provider, on chain")
        providers = {provider.name: self._wallets[provider.name] for provider in self._devnet.providers}
        self.stakes = self._look.stakes(providers)
        rows: list[tuple[object, ...]] = [
            (name, _short(providers[name]), seen.tier, bare(seen.bonded), bare(seen.minimum), _short(seen.receipt_key))
            for name, seen in self.stakes.items()
        ]
        self._stage.show(
            "PROVIDER", "WALLET", "TIER", "STAKE", "NEEDED", "RECEIPT KEY", rows=rows, right=("STAKE", "NEEDED"),
            below="OCTO-A. Signing two receipts for one step with that key can cost half of it.",
        )  # fmt: skip
        for name, seen in self.stakes.items():
            own = seen.receipt_key == _address(self._accounts[name]["receipt_key"])
            self._stage.expect(seen.active and seen.bonded >= seen.minimum > 0, f"{name} is not staked on chain")
            self._stage.expect(own, f"the stake of {name} answers for another receipt key than its own")

    def opened(self, channel: bytes) -> str | None:
        if channel in self._shown:
            return None
        self._shown.add(channel)
        move = next((m for m in self._look.movements([channel]) if m.event == "Opened"), None)
        if move is None:
            self._stage.expect(False, f"the chain shows no opening of channel {channel.hex()}")
            return None
        deposit = self._look.channels([channel])[channel].deposit
        return f"new: {octo(deposit)} locked on chain, in block {move.block}, by {_short(move.transaction)}"

    # ---- the settlement ----

    def settle(self, turns: Sequence[Turn]) -> None:
        """Once the vouchers are there, have each provider redeem them, and wait until the chain has paid."""
        super().settle(turns)
        ids = list(self._channels())
        for provider in self._devnet.providers:
            provider.remote().post("/api/v1/settle", {}, timeout_s=self._patience_s)
        owed = sum(turn.receipt.amount for turn in turns)
        deadline = time.monotonic() + self._patience_s
        while sum(state.redeemed for state in self._look.channels(ids).values()) < owed:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        self.chain_after = self._look.balances(self._wallets)
        self.movements = self._look.movements(ids)

    def show(self, turns: Sequence[Turn]) -> None:
        self._show_settlement()
        self._show_balances(turns)

    def _show_settlement(self) -> None:
        self._stage.chapter("The settlement: the newest voucher becomes money")
        channels = self._devnet.client.remote().get("/api/v1/wallet")["channels"]
        self.show_vouchers(channels)
        payees = self._channels()
        deposits = self._look.channels(list(payees))
        rows: list[tuple[object, ...]] = []
        redeemed = dict.fromkeys(payees, 0)
        for move in self.movements:
            if move.event == "Opened":
                who, what, amount = self._devnet.client.name, "locks", deposits[move.channel].deposit
            else:
                who, what, amount = payees[move.channel], "redeems", move.total - redeemed[move.channel]
                redeemed[move.channel] = move.total
            rows.append(
                (who, what, bare(amount), move.channel.hex()[:12], move.block, move.gas, _short(move.transaction))
            )
        self._stage.show(
            "NODE", "", "OCTO", "CHANNEL", "BLOCK", "GAS", "TRANSACTION", rows=rows, right=("OCTO", "BLOCK", "GAS"),
            below="As the chain has them. One transaction pays for all steps since the last.",
        )  # fmt: skip
        self._stage.expect(any(m.event == "Redeemed" for m in self.movements), "no voucher was redeemed on chain")

    def _show_balances(self, turns: Sequence[Turn]) -> None:
        self._stage.chapter("The money, on chain")
        moved = {name: self.chain_after[name] - was for name, was in self.chain_before.items()}
        rows: list[tuple[object, ...]] = [
            (name, bare(self.chain_before[name]), bare(self.chain_after[name]), signed(change, bare(change)))
            for name, change in moved.items()
        ]
        rows.append(("sum", "", "", bare(sum(moved.values()))))
        self._stage.show("OCTO", "BEFORE", "AFTER", "CHANGE", rows=rows, right=("BEFORE", "AFTER", "CHANGE"))
        self._stage.out.print()
        for name, sentence in self._sums(turns, moved):
            self._stage.out.print(Text.assemble((f"{name:<12}", "dim"), sentence))

    def _sums(self, turns: Sequence[Turn], moved: dict[str, int]) -> list[tuple[str, str]]:
        """Chain against chain, against the books, and against the receipts; the sentences that now hold."""
        expect = self._stage.expect
        self.check(turns)
        client, payees = self._devnet.client.name, self._channels()
        states = self._look.channels(list(payees))
        locked = sum(state.deposit for state in states.values())
        expect(
            -moved[client] == locked, f"{client} is {octo(-moved[client])} lighter, its channels hold {octo(locked)}"
        )
        said = [(client, f"before − after = {octo(locked)} = what it locked in its channel")]
        for provider in self._devnet.providers:
            name = provider.name
            redeemed = sum(state.redeemed for channel, state in states.items() if payees[channel] == name)
            billed = [t.receipt.amount for t in turns if t.octo["provider"] == provider.peer_id]
            got = moved[name]
            expect(got == redeemed, f"{name} got {octo(got)} on chain, its channels were drawn on for {octo(redeemed)}")
            expect(
                got == self.earned(name), f"{name} got {octo(got)} on chain, its vouchers say {octo(self.earned(name))}"
            )
            expect(got == sum(billed), f"{name} got {octo(got)} on chain, its receipts say {octo(sum(billed))}")
            if billed:
                said.append((name, f"after − before = {octo(got)} = redeemed = vouchers = {len(billed)} receipts"))
        rest = locked - sum(state.redeemed for state in states.values())
        expect(
            moved[ESCROW] == rest, f"the escrow holds {octo(moved[ESCROW])} more, the channels' rest is {octo(rest)}"
        )
        expect(sum(moved.values()) == 0, f"{octo(sum(moved.values()))} came from nowhere")
        said.append((ESCROW, f"holds the rest, {octo(rest)}, the client's when it closes"))
        return said

    # ---- small things ----

    def _channels(self) -> dict[bytes, str]:
        """The client's channels, and the name of whom each pays."""
        held = self._devnet.client.remote().get("/api/v1/wallet")["channels"]
        return {bytes.fromhex(c["id"]): self._stage.who(c["peer"]) for c in held if c["role"] == "payer"}

    def facts(self) -> dict[str, Any]:
        moves = [
            {"event": m.event, "channel": m.channel.hex(), "transaction": f"0x{m.transaction.hex()}", "block": m.block,
             "gas": m.gas, "total": m.total}
            for m in self.movements
        ]  # fmt: skip
        stakes = {
            name: {"tier": seen.tier, "bonded": seen.bonded, "active": seen.active}
            for name, seen in self.stakes.items()
        }
        on_chain = {"before": self.chain_before, "after": self.chain_after, "transactions": moves, "stakes": stakes}
        return {**super().facts(), "chain": on_chain}


def _address(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def _short(data: bytes) -> str:
    return f"0x{data.hex()[:12]}…"
