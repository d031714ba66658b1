"""The demo's sums: they hold when chain, books and receipts agree, and each lie is told by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from contracts.channels import OnChain
from node.demo_chain import ChainMoney
from node.demo_ledger import LedgerMoney
from node.onlooker import ESCROW, Movement, StakeSeen
from node.stage import Stage

OCTO = 10**18
CHANNEL = bytes(31) + b"\1"
BILLED = (3_000, 4_000)
DEPOSIT, PAID = 5 * OCTO, sum(BILLED)
KEYS = {"provider": bytes(19) + b"\2", "client": bytes(19) + b"\3"}


class Member:
    """A node, as its API shows it: before the first settlement, and after."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.peer_id = f"peer-{name}"
        self.spent = self.earned = 0
        self.settled = 0

    def remote(self) -> Member:
        return self

    def get(self, path: str) -> dict[str, Any]:
        assert path == "/api/v1/wallet"
        return {
            "wallet": "0x" + KEYS[self.name].hex(),
            "receipt_key": "0x" + KEYS[self.name].hex(),
            "balances": {"spent": self.spent, "earned": self.earned},
            "channels": [
                {"id": CHANNEL.hex(), "role": "payer", "peer": "peer-provider", "deposit": DEPOSIT, "paid": PAID,
                 "leaves": 4}
            ] if self.spent else [],
        }  # fmt: skip

    def post(self, path: str, _body: object, *, timeout_s: float) -> None:
        assert path == "/api/v1/settle"
        self.settled += 1


class Chain:
    """An onlooker's sight: each figure can be made to lie."""

    def __init__(self) -> None:
        self.stake = StakeSeen(tier="consumer", bonded=1, minimum=1, active=True, receipt_key=KEYS["provider"])
        self.channel = OnChain(deposit=DEPOSIT, redeemed=PAID, closes_at=0)
        self.has = {"provider": OCTO, "client": 10 * OCTO, ESCROW: 0}
        self.moves = ["Opened", "Redeemed"]

    def balances(self, _wallets: object) -> dict[str, int]:
        return dict(self.has)

    def stakes(self, _wallets: object) -> dict[str, StakeSeen]:
        return {"provider": self.stake}

    def channels(self, ids: list[bytes]) -> dict[bytes, OnChain]:
        return dict.fromkeys(ids, self.channel)

    def movements(self, ids: list[bytes]) -> list[Movement]:
        moved = {"channel": CHANNEL, "transaction": bytes(32), "block": 1, "gas": 1, "total": PAID}
        return [Movement(event=event, **moved) for event in self.moves if ids]


@pytest.fixture
def members() -> dict[str, Member]:
    return {name: Member(name) for name in KEYS}


@pytest.fixture
def stage(members: dict[str, Member]) -> Stage:
    place = SimpleNamespace(
        url="http://127.0.0.1:1", kind="embedded", deployment=SimpleNamespace(chain_id=1, contracts={})
    )
    return Stage(SimpleNamespace(providers=(members["provider"],), client=members["client"], chain=place), quiet=True)


def turns() -> list[Any]:
    return [SimpleNamespace(receipt=SimpleNamespace(amount=a), octo={"provider": "peer-provider"}) for a in BILLED]


def play(money: LedgerMoney, members: dict[str, Member], chain: Chain | None = None) -> None:
    """The demo's order of things; between the two looks the task is paid and settled."""
    money.show_place()
    members["client"].spent = members["provider"].earned = PAID
    if chain is not None:
        chain.has["client"] -= DEPOSIT
        chain.has["provider"] += PAID
        chain.has[ESCROW] += DEPOSIT - PAID
    money.opened(CHANNEL)
    money.settle(turns())
    money.show(turns())


def on_chain(stage: Stage, chain: Chain) -> ChainMoney:
    return ChainMoney(stage, stage.devnet.chain, chain)


def test_on_a_chain_that_agrees_nothing_is_broken(stage: Stage, members: dict[str, Member]) -> None:
    chain = Chain()
    money = on_chain(stage, chain)
    play(money, members, chain)
    assert stage.broken == []
    assert members["provider"].settled == 1
    assert money.facts()["chain"]["after"] == {
        "provider": OCTO + PAID, "client": 10 * OCTO - DEPOSIT, ESCROW: DEPOSIT - PAID
    }  # fmt: skip


def _robbed(who: str) -> Callable[[Chain], None]:
    def rob(chain: Chain) -> None:
        chain.has = Thinner(chain.has, who)

    return rob


class Thinner(dict):
    """Balances of which one loses the smallest unit when the money has moved."""

    def __init__(self, has: dict[str, int], who: str) -> None:
        super().__init__(has)
        self.who = who

    def __setitem__(self, name: str, amount: int) -> None:
        super().__setitem__(name, amount - (name == self.who))


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (_robbed("client"), "lighter, its channels hold"),
        (_robbed("provider"), "its receipts say"),
        (_robbed("provider"), "its vouchers say"),
        (_robbed("provider"), "was drawn on|were drawn on"),
        (_robbed(ESCROW), "the escrow holds"),
        (_robbed(ESCROW), "came from nowhere"),
        (lambda c: setattr(c, "channel", replace(c.channel, deposit=DEPOSIT + 1)), "its channels hold"),
        (lambda c: setattr(c, "moves", ["Opened"]), "no voucher was redeemed"),
        (lambda c: setattr(c, "moves", []), "shows no opening"),
        (lambda c: setattr(c, "stake", replace(c.stake, active=False)), "not staked"),
        (lambda c: setattr(c, "stake", replace(c.stake, bonded=0)), "not staked"),
        (lambda c: setattr(c, "stake", replace(c.stake, receipt_key=KEYS["client"])), "another receipt key"),
    ],
)
def test_a_chain_that_says_otherwise_is_caught(
    stage: Stage, members: dict[str, Member], lie: Callable[[Chain], None], words: str
) -> None:
    chain = Chain()
    money = on_chain(stage, chain)
    lie(chain)
    play(money, members, chain)
    assert any(part in fault for fault in stage.broken for part in words.split("|")), stage.broken


def test_on_the_ledger_books_that_agree_break_nothing(stage: Stage, members: dict[str, Member]) -> None:
    play(LedgerMoney(stage), members)
    assert stage.broken == []


def test_on_the_ledger_a_provider_that_got_less_is_noticed(stage: Stage, members: dict[str, Member]) -> None:
    money = LedgerMoney(stage, patience_s=0.1)
    members["client"].spent, members["provider"].earned = PAID, PAID - 1
    money.settle(turns())
    money.check(turns())
    assert stage.broken == ["the client spent 0.000000000000007 OCTO, the providers earned 0.000000000000006999 OCTO"]
