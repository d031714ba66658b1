"""What a node's owner does with its channels and its wallet on a chain: look, redeem, close, draw play money.

Decides by what the chain says now. The rail and its follower do the same things by themselves, later; here they are
done because somebody asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

import structlog

from contracts.channels import Channels, OnChain
from contracts.collector import Settled
from contracts.faucet import ask_faucet
from contracts.faults import ChainError, ChainRefused
from contracts.rails import ChainParts
from contracts.tokens import Token
from market.channel import Channel
from market.ports import Books
from market.signing import address_text
from market.values import value
from node.faults import NotNow

log = structlog.get_logger()

LOOK_S = 10.0
"""How long whoever looks at channels waits for the chain before it gets what the chain last said."""
_AT_ONCE = 200
_NO_SUCH_METHOD = -32601  # JSON-RPC 2.0


@value
class Funds:
    """What the wallet holds outside channels and stake: 10^-18 of OCTO and OCTO-A, and wei for gas."""

    octo: int
    octo_a: int
    gas_wei: int


class Cashier:
    """`url` is the chain's endpoint; `closing` hears of a channel that closes, for purse and till; `is_busy` says
    whether a task runs on one."""

    def __init__(
        self, parts: ChainParts, books: Books, *, wallet: bytes, url: str,
        closing: Callable[[bytes, OnChain], Awaitable[None]], is_busy: Callable[[bytes], bool],
    ) -> None:  # fmt: skip
        self._parts = parts
        self._books = books
        self._wallet = wallet
        self._url = url
        self._closing = closing
        self._is_busy = is_busy
        self._channels = Channels(parts.chain, parts.deployment)
        self._octo = Token(parts.chain, parts.deployment, "Octo")
        self._octo_a = Token(parts.chain, parts.deployment, "OctoA")
        self._one_at_a_time = asyncio.Lock()

    async def funds(self) -> Funds:
        """Raises ChainError."""
        octo, octo_a, gas_wei = await asyncio.gather(
            self._octo.balance(self._wallet),
            self._octo_a.balance(self._wallet),
            self._parts.chain.balance(self._wallet),
        )
        return Funds(octo=octo, octo_a=octo_a, gas_wei=gas_wei)

    async def draw(self) -> Funds:
        """Have the devnet's faucet send gas, OCTO and OCTO-A; what the wallet holds then. Raises NotNow where there
        is no faucet, ChainError."""
        try:
            await ask_faucet(self._url, self._wallet)
        except ChainRefused as refused:
            if refused.rpc_code != _NO_SUCH_METHOD:
                raise
            raise NotNow(
                "this chain has no faucet: it is no devnet of ours.",
                next_step=f"Send OCTO, OCTO-A and some of the chain's coin to {address_text(self._wallet)}.",
            ) from None
        log.info("faucet_drawn", wallet=address_text(self._wallet))
        return await self.funds()

    async def seen(self) -> Mapping[bytes, OnChain | None]:
        """Each channel of this rail as the chain has it; as it last said, or None, while it is away."""
        ours = [c.id for c in await self._books.channels() if c.terms.rail == self._parts.rail.name]
        known = {channel_id: self._parts.rail.state_of(channel_id) for channel_id in ours}
        moving = [channel_id for channel_id, state in known.items() if state is None or not state.closed]
        try:
            async with asyncio.timeout(LOOK_S):
                for first in range(0, len(moving), _AT_ONCE):
                    some = moving[first : first + _AT_ONCE]
                    known.update(zip(some, await self._channels.channels(some), strict=True))
        except (ChainError, TimeoutError) as error:
            log.info("channels_not_seen", why=str(error) or "too slow")
        return known

    async def settle(self) -> list[Settled]:
        """Redeem all that is due, dust too. Raises ChainError; what was not redeemed stays due."""
        return await self._parts.collector.settle(everything=True)

    async def close(self, channel_id: bytes) -> list[Settled] | None:
        """The next step to the end of a channel: as its payee, redeem and close it; as its payer, ask for the close,
        and once the challenge period is over, close it. What was redeemed on the way. None if we have no such channel.

        Raises NotNow, ChainError.
        """
        async with self._one_at_a_time:
            channel = next((c for c in await self._books.channels() if c.id == channel_id), None)
            if channel is None:
                return None
            if channel.terms.rail != self._parts.rail.name:
                raise NotNow(
                    f"this channel is on another rail, {channel.terms.rail}.",
                    next_step="Start the node on that one to close it.",
                )
            state = await self._channels.channel(channel_id)
            await self._check_may_close(channel, state)
            settled: list[Settled] = []
            if channel.role == "payee":
                settled = await self.settle()
            if channel.role == "payer" and not state.closing:
                await self._parts.rail.request_close(channel)
            else:
                await self._parts.rail.close(channel)
            await self._closing(channel_id, await self._channels.channel(channel_id))
            return settled

    async def _check_may_close(self, channel: Channel, state: OnChain) -> None:
        if state.closed:
            raise NotNow("this channel is closed.")
        if channel.role == "payee" and self._is_busy(channel.id):
            raise NotNow("a task that this channel pays is running.", next_step="Close it when that has ended.")
        if not state.opened:
            raise NotNow("the chain shows no such channel.", next_step="Its deposit may not be confirmed yet.")
        if channel.role == "payer" and state.closing:
            now_s = (await self._parts.chain.head()).timestamp
            if now_s < state.closes_at:
                until = datetime.fromtimestamp(state.closes_at, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
                raise NotNow(
                    f"the payee may redeem its last voucher until {until}.",
                    next_step="The rest comes back by itself after that.",
                )
