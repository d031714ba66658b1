"""A contract at an address: reads, calls to be sent, and what its refusals mean. Knows no key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contracts.abi import Abi, Event
from contracts.chain import Chain, Log
from contracts.faults import ChainError, ChainRefused, Reverted
from market.values import value


@value
class Call:
    """What a transaction does. `what` names it in errors and logs; `abi` explains its revert.

    `to` is None for the creation of a contract; `amount` is in wei."""

    to: bytes | None
    data: bytes
    what: str
    abi: Abi
    amount: int = 0


class Contract:
    def __init__(self, chain: Chain, address: bytes, abi: Abi, *, name: str) -> None:
        self.chain = chain
        self.address = address
        self.abi = abi
        self.name = name

    async def read(self, function: str, *arguments: Any, at: int | None = None, sender: bytes | None = None) -> Any:
        """The result, as of block `at` or now. Raises Reverted, ChainRefused or ChainAway."""
        data = self.abi.call(function, *arguments)
        try:
            answer = await self.chain.read(self.address, data, at=at, sender=sender)
        except ChainRefused as refused:
            raise explained(refused, what=f"{self.name}.{function}", abi=self.abi) from None
        return self.abi.result(function, answer)

    async def read_all(self, function: str, many: Sequence[Sequence[Any]], *, at: int | None = None) -> list[Any]:
        """One function for many arguments, in one request."""
        calls = [(self.address, self.abi.call(function, *arguments)) for arguments in many]
        answers = await self.chain.read_all(calls, at=at)
        return [self.abi.result(function, answer) for answer in answers]

    def call(self, function: str, *arguments: Any) -> Call:
        return Call(
            to=self.address, data=self.abi.call(function, *arguments), what=f"{self.name}.{function}", abi=self.abi
        )

    def events(self, logs: Sequence[Log]) -> list[Event]:
        """Those of `logs` that this contract emitted."""
        found = (self.abi.event(log.topics, log.data) for log in logs if log.address == self.address)
        return [event for event in found if event is not None]


def explained(refused: ChainRefused, *, what: str, abi: Abi) -> ChainError:
    """The same refusal; as Reverted, with the contract's own words, when it was the contract that refused."""
    if refused.data or refused.rpc_code == 3 or "revert" in refused.said:
        name, arguments = abi.fault(refused.data)
        return Reverted(what, name=name, arguments=arguments)
    return refused
