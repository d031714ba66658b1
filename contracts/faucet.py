"""Play money for those who ask, on chains where it is worth nothing: gas, OCTO and OCTO-A from the deployer.

Whoever can reach the chain's port can ask, so draws are limited: per address, and in all per hour.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from contracts.abi import Abi
from contracts.chain import Chain
from contracts.contract import Call
from contracts.deployments import Deployment
from contracts.faults import ChainError
from contracts.rpc import open_rpc
from contracts.sender import Sender
from contracts.tokens import Token
from market.errors import RequestInvalid
from market.money import OCTO
from market.signing import address_text
from market.values import value

METHOD = "octo_faucet"


@value
class FaucetTerms:
    """One draw, in wei and in 10^-18 of the tokens, and how many there may be."""

    gas: int = 10**18
    octo: int = 1_000 * OCTO
    octo_a: int = 10_000 * OCTO
    draws_per_address: int = 3
    draws_per_hour: int = 200


class Faucet:
    """`sender` holds the deployer's key."""

    def __init__(self, chain: Chain, sender: Sender, deployment: Deployment, terms: FaucetTerms | None = None) -> None:
        self._sender = sender
        self._octo = Token(chain, deployment, "Octo")
        self._octo_a = Token(chain, deployment, "OctoA")
        self._terms = terms or FaucetTerms()
        self._draws: dict[bytes, int] = {}
        self._recent: deque[float] = deque()

    async def draw(self, to: bytes) -> None:
        """Send one draw and wait until it is there. Raises ChainError over the limits."""
        now = time.monotonic()
        while self._recent and self._recent[0] < now - 3600:
            self._recent.popleft()
        if self._draws.get(to, 0) >= self._terms.draws_per_address:
            raise ChainError(f"the faucet has given {address_text(to)} all that it gives one address.")
        if len(self._recent) >= self._terms.draws_per_hour:
            raise ChainError("the faucet has given all that it gives in an hour.", next_step="Ask again later.")
        self._draws[to] = self._draws.get(to, 0) + 1
        self._recent.append(now)
        terms = self._terms
        gas = Call(to=to, data=b"", amount=terms.gas, what="faucet: gas", abi=Abi(()))
        calls = (gas, self._octo.transfer(to, terms.octo), self._octo_a.transfer(to, terms.octo_a))
        await asyncio.gather(*(self._sender.send(call) for call in calls))

    async def answer(self, address: Any) -> dict[str, str]:
        """The JSON-RPC method octo_faucet(address): what was given, as decimal text."""
        try:
            to = bytes.fromhex(address.removeprefix("0x"))
            if len(to) != 20:
                raise ValueError
        except (AttributeError, ValueError):
            raise RequestInvalid("an address is 0x and 40 hexadecimal digits.") from None
        await self.draw(to)
        terms = self._terms
        return {"gas": str(terms.gas), "octo": str(terms.octo), "octo_a": str(terms.octo_a)}


async def ask_faucet(url: str, address: bytes, *, timeout_s: float = 60.0) -> None:
    """Draw from the faucet of the devnet chain at `url`. Raises ChainRefused where there is none, or no more."""
    async with open_rpc(url, timeout_s=timeout_s) as rpc:
        await rpc.call(METHOD, address_text(address))
