"""The escrow of payment channels, in our words: terms and vouchers of `market`, no ABI."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from contracts.abi import Abi, merge
from contracts.abis import abi_of
from contracts.chain import Chain, Log
from contracts.contract import Call, Contract
from contracts.deployments import Deployment
from contracts.transactions import Permit, compact
from market.values import value
from market.voucher import ChannelTerms, Voucher

DEPOSIT_LIMIT = 2**96 - 1
_CLOSED = 2**64 - 1


@value
class OnChain:
    """A channel as the chain has it. `closes_at` is 0 while open; a closed one keeps what was redeemed."""

    deposit: int
    redeemed: int
    closes_at: int

    @property
    def opened(self) -> bool:
        return self.deposit > 0 or self.closes_at > 0

    @property
    def closed(self) -> bool:
        return self.closes_at == _CLOSED

    @property
    def closing(self) -> bool:
        return 0 < self.closes_at < _CLOSED


@cache
def _abi() -> Abi:
    return merge(abi_of("PaymentChannels"), abi_of("Octo"))  # an `open` without money fails with the token's error


class Channels:
    def __init__(self, chain: Chain, deployment: Deployment) -> None:
        self.contract = Contract(chain, deployment.address("PaymentChannels"), _abi(), name="PaymentChannels")
        self.rail = deployment.rail

    async def challenge_s(self) -> int:
        period: int = await self.contract.read("challengePeriod")
        return period

    async def channel(self, channel_id: bytes, *, at: int | None = None) -> OnChain:
        return _on_chain(await self.contract.read("channel", channel_id, at=at))

    async def channels(self, channel_ids: Sequence[bytes], *, at: int | None = None) -> list[OnChain]:
        """Many in one request, in order."""
        found = await self.contract.read_all("channel", [(channel_id,) for channel_id in channel_ids], at=at)
        return [_on_chain(item) for item in found]

    def open(self, terms: ChannelTerms, deposit: int) -> Call:
        """By the payer, which has approved the escrow."""
        return self.contract.call("open", terms.payee, terms.session_key, terms.salt, deposit)

    def open_with_permit(self, terms: ChannelTerms, deposit: int, permit: Permit) -> Call:
        """By the payer, without an approval; 25,000 gas more than `open`."""
        return self.contract.call(
            "openWithPermit", terms.payee, terms.session_key, terms.salt, deposit, permit.deadline, permit.v, permit.r,
            permit.s,
        )  # fmt: skip

    def top_up(self, channel_id: bytes, amount: int) -> Call:
        return self.contract.call("topUp", channel_id, amount)

    def redeem(self, terms: ChannelTerms, voucher: Voucher) -> Call:
        """By anyone; pays the payee. Reverts with Stale, Overdrawn or BadSignature."""
        return self.contract.call("redeem", terms.payee, _voucher(terms, voucher))

    def redeem_batch(self, payee: bytes, vouchers: Sequence[tuple[ChannelTerms, Voucher]]) -> Call:
        """By anyone, for one payee; stale and overdrawn ones are skipped, a bad signature reverts all."""
        return self.contract.call("redeemBatch", payee, [_voucher(terms, voucher) for terms, voucher in vouchers])

    def request_close(self, terms: ChannelTerms) -> Call:
        """By the payer."""
        return self.contract.call("requestClose", terms.payee, terms.session_key, terms.salt)

    def close(self, terms: ChannelTerms) -> Call:
        """By the payee at any time, by anyone after the challenge period; the rest goes back to the payer."""
        return self.contract.call("close", (terms.payer, terms.payee, terms.session_key, terms.salt))

    def touched(self, logs: Sequence[Log]) -> set[bytes]:
        """The ids of the channels that these logs are about: the first topic of each of the contract's events."""
        return {log.topics[1] for log in logs if log.address == self.contract.address and len(log.topics) > 1}


def _on_chain(found: tuple[int, int, int]) -> OnChain:
    deposit, redeemed, closes_at = found
    return OnChain(deposit=deposit, redeemed=redeemed, closes_at=closes_at)


def _voucher(terms: ChannelTerms, voucher: Voucher) -> tuple[object, ...]:
    r, vs = compact(voucher.signature)
    return terms.payer, terms.session_key, terms.salt, voucher.amount, voucher.receipts_root, r, vs
