"""What is left of a soak once its nodes have ended: books, logs and processes, and whether they add up."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from market.channel import Channel
from market.money import cost
from market.receipt import Receipt
from market.record import ReceiptRecord
from market.values import decode
from node.settings import Prices

_LIMIT_BYTES = 16 << 20
_TOLD = re.compile(r"event=(task_accepted|task_served|task_ended|client_gone) .*?\btask=([0-9a-f]{64})")
_TOKENS_IN = re.compile(r"\btokens_in=(\d+)")


@dataclass(frozen=True)
class Books:
    """`receipts` by (channel, task, seq)."""

    channels: dict[bytes, Channel]
    receipts: dict[tuple[bytes, bytes, int], tuple[str, Receipt]]

    def last_amounts(self, channel: bytes) -> dict[bytes, int]:
        """What each task's last receipt asks for, by task."""
        last: dict[bytes, tuple[int, int]] = {}
        for (paid_on, task, seq), (_, receipt) in self.receipts.items():
            if paid_on == channel:
                last[task] = max(last.get(task, (-1, 0)), (seq, receipt.amount))
        return {task: amount for task, (_, amount) in last.items()}


def read_books(path: Path) -> Books:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        channels = [
            decode(Channel, body, limit_bytes=_LIMIT_BYTES)
            for (body,) in connection.execute("SELECT body FROM channels")
        ]
        receipts = {}
        for cid, record in connection.execute("SELECT cid, record FROM receipts"):
            receipt = decode(ReceiptRecord, record, limit_bytes=_LIMIT_BYTES).receipt.read()
            receipts[receipt.channel, receipt.task, receipt.seq] = cid, receipt
    finally:
        connection.close()
    return Books({channel.id: channel for channel in channels}, receipts)


def check_books(buyer: Books, sellers: dict[str, Books], accepted: dict[str, dict[str, int]], told: list[str]) -> None:
    """`accepted` are each seller's tasks with their prompts' tokens; `told` the receipts that clients heard of."""
    theirs = {key: cid for seller in sellers.values() for key, (cid, _) in seller.receipts.items()}
    assert all(theirs.get(key) == cid for key, (cid, _) in buyer.receipts.items()), "one receipt, two texts"
    finals = {cid for cid, receipt in buyer.receipts.values() if receipt.final}
    assert len(told) == len(set(told)) and set(told) <= finals
    assert {id for seller in sellers.values() for id in seller.channels} == set(buyer.channels)
    for name, seller in sellers.items():
        paid, receipted = 0, {}
        for id, theirs_of_it in seller.channels.items():
            ours = buyer.channels[id]
            assert (ours.paid, ours.receipts) == (theirs_of_it.paid, theirs_of_it.receipts)
            paid += ours.paid
            receipted |= buyer.last_amounts(id)
        # Each task's receipts are paid, once; beyond them, the inputs of tasks that ended before their first.
        inputs = sum(
            cost(tokens=tokens, price_per_million=Prices().input)
            for task, tokens in accepted[name].items()
            if bytes.fromhex(task) not in receipted
        )
        assert sum(receipted.values()) <= paid <= sum(receipted.values()) + inputs


def read_log(text: str) -> dict[str, int]:
    """A seller's tasks and their prompts' tokens. Each that it accepted ended, once, and nothing went wrong inside."""
    accepted: dict[str, int] = {}
    ends: Counter[str] = Counter()
    for line in text.splitlines():
        told = _TOLD.search(line)
        if told and told[1] == "task_accepted":
            accepted[told[2]] = int(_TOKENS_IN.search(line)[1])
        elif told:
            ends[told[2]] += 1
    assert {task: ends[task] for task in accepted} == dict.fromkeys(accepted, 1)
    check_log(text)
    return accepted


def check_log(text: str) -> None:
    wrong = [line for line in text.splitlines() if "level=error" in line or "Traceback" in line]
    assert not wrong, "\n".join(wrong[:5])
