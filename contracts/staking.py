"""Stakes in OCTO-A, in our words: who stands behind a receipt key, with how much, for which tier."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import cache

from contracts.abi import Abi, merge
from contracts.abis import abi_of
from contracts.chain import Chain, Log
from contracts.contract import Call, Contract
from contracts.deployments import Deployment
from contracts.transactions import Permit, compact
from market.identity import PeerId, WalletSigner, public_key_of_peer
from market.receipt import Receipt, SignedReceipt
from market.signing import TypedStruct
from market.values import value

_BINDING = TypedStruct("StakeBinding(address registry,address staker,address receiptSigner,bytes32 peer,uint256 nonce)")


class Tier(IntEnum):
    """As the registry numbers them."""

    NONE = 0
    CONSUMER = 1
    PROSUMER = 2
    ENTERPRISE = 3


@value
class Stake:
    """`bonded` counts for the tier; `unbonding` leaves at `release_at` (seconds), and can still be slashed."""

    bonded: int
    unbonding: int
    release_at: int
    tier: Tier


@value
class StakeIdentity:
    """The receipt key that answers for a staker, and the 32-byte ed25519 key of its peer; zeros if unbound."""

    receipt_signer: bytes
    nonce: int
    peer: bytes


@cache
def _abi() -> Abi:
    return merge(abi_of("StakeRegistry"), abi_of("OctoA"))


class Staking:
    def __init__(self, chain: Chain, deployment: Deployment) -> None:
        self.contract = Contract(chain, deployment.address("StakeRegistry"), _abi(), name="StakeRegistry")
        self._network = deployment.network

    async def minimum_of(self, tier: Tier) -> int:
        minimum: int = await self.contract.read("minimumOf", tier)
        return minimum

    async def is_active(self, staker: bytes, tier: Tier) -> bool:
        """Whether the staker answers for this tier or a higher one, with enough bonded and a receipt key bound."""
        active: bool = await self.contract.read("isActive", staker, tier)
        return active

    async def stake_of(self, staker: bytes) -> Stake:
        bonded, unbonding, release_at, tier = await self.contract.read("stakeOf", staker)
        return Stake(bonded=bonded, unbonding=unbonding, release_at=release_at, tier=Tier(tier))

    async def identity_of(self, staker: bytes) -> StakeIdentity:
        receipt_signer, nonce, peer = await self.contract.read("identityOf", staker)
        return StakeIdentity(receipt_signer=receipt_signer, nonce=nonce, peer=peer)

    async def staker_of(self, receipt_signer: bytes) -> tuple[bytes, int]:
        """(staker, slashable until; 0 while bound); zeros for a key that was never bound."""
        staker, until = await self.contract.read("signerRecord", receipt_signer)
        return staker, until

    def stake(self, tier: Tier, amount: int, permit: Permit) -> Call:
        return self.contract.call(
            "stakeWithPermit", tier, amount, permit.deadline, permit.v, permit.r, permit.s
        )  # fmt: skip

    def change_tier(self, tier: Tier) -> Call:
        return self.contract.call("changeTier", tier)

    def bind(self, *, staker: bytes, nonce: int, receipt_key: WalletSigner, peer: PeerId) -> Call:
        """By the staker; `nonce` is the one of its StakeIdentity. Signed by the receipt key here."""
        key = public_key_of_peer(peer)
        digest = _BINDING.digest(
            self._network, self.contract.chain.chain_id, self.contract.address, staker, receipt_key.address, key, nonce
        )
        return self.contract.call("bind", receipt_key.address, key, compact(receipt_key.sign_digest(digest)))

    def unstake(self, amount: int) -> Call:
        return self.contract.call("unstake", amount)

    def withdraw(self) -> Call:
        return self.contract.call("withdraw")

    def slash(self, first: SignedReceipt, second: SignedReceipt) -> Call:
        """By anyone who holds two receipts by one key for one step; half of the stake goes, a part to the caller."""
        return self.contract.call(
            "slashEquivocation", _receipt(first), compact(first.signature), _receipt(second), compact(second.signature)
        )

    def touched(self, logs: Sequence[Log]) -> set[bytes]:
        """The stakers that these logs are about: the first topic of each of the registry's events."""
        return {log.topics[1][-20:] for log in logs if log.address == self.contract.address and len(log.topics) > 1}


def _receipt(signed: SignedReceipt) -> tuple[object, ...]:
    receipt: Receipt = signed.read()
    return (
        signed.digest(), receipt.channel, receipt.task, receipt.seq, receipt.final, receipt.tokens_in,
        receipt.tokens_out, receipt.amount, receipt.transcript_root, receipt.quote,
    )  # fmt: skip
