"""Stakes on both chains: bonded with one transaction, bound by the receipt key, lost by two receipts for one step."""

import dataclasses
import secrets

import pytest
from worlds import NETWORK, QUICK

from contracts.faults import Reverted
from contracts.sender import open_sender
from contracts.staking import Staking, Tier
from contracts.tokens import Token
from market.identity import public_key_of_peer
from market.money import OCTO
from market.receipt import Receipt, sign_receipt
from market.signing import Secp256k1Signer
from market.testing import MemoryPeerKey


def receipt(world, **changes: object) -> Receipt:
    plain = Receipt(
        network=NETWORK, rail=world.deployment.rail, provider="p", client="c", binding="b", channel=bytes(32),
        task=b"\1" * 32, seq=0, final=True, finish="stop", model="m", weights="w", engine="e", quote=bytes(32),
        prompt=bytes(32), sampling=bytes(32), tokens_in=1, tokens_out=2, chunks=1, chain_head=bytes(32),
        transcript_root=bytes(32), amount=3, started_ms=1, ended_ms=2,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


async def test_a_stake_is_bonded_bound_and_counts_for_its_tier(world):
    staking, wallet = Staking(world.chain, world.deployment), await world.wallet()
    octo_a = Token(world.chain, world.deployment, "OctoA")
    receipt_key, peer = Secp256k1Signer(secrets.token_bytes(32)), MemoryPeerKey(secrets.token_bytes(32)).peer
    minimum = await staking.minimum_of(Tier.CONSUMER)
    assert minimum == 1_000 * OCTO
    async with open_sender(world.chain, wallet, QUICK) as sender:
        permit = await octo_a.permit(wallet, spender=staking.contract.address, amount=minimum)
        await sender.send(staking.stake(Tier.CONSUMER, minimum, permit))
        assert not await staking.is_active(wallet.address, Tier.CONSUMER), "nobody answers for it yet"
        await sender.send(staking.bind(staker=wallet.address, nonce=0, receipt_key=receipt_key, peer=peer))
        assert await staking.is_active(wallet.address, Tier.CONSUMER)
        assert not await staking.is_active(wallet.address, Tier.PROSUMER)
        held = await staking.stake_of(wallet.address)
        assert (held.bonded, held.tier, held.unbonding) == (minimum, Tier.CONSUMER, 0)
        identity = await staking.identity_of(wallet.address)
        assert identity.receipt_signer == receipt_key.address
        assert identity.peer == public_key_of_peer(peer)
        assert await staking.staker_of(receipt_key.address) == (wallet.address, 0)
        with pytest.raises(Reverted) as stolen:
            await sender.send(staking.bind(staker=wallet.address, nonce=5, receipt_key=receipt_key, peer=peer))
        assert stolen.value.name == "BadSignature"
        with pytest.raises(Reverted) as low:
            await sender.send(staking.change_tier(Tier.ENTERPRISE))
        assert low.value.name == "BelowTier"
        await sender.send(staking.unstake(minimum))
        with pytest.raises(Reverted) as early:
            await sender.send(staking.withdraw())
        assert early.value.name == "TooEarly"


async def test_two_receipts_for_one_step_cost_half_of_the_stake(world):
    staking, wallet, reporter = Staking(world.chain, world.deployment), await world.wallet(), await world.wallet()
    octo_a = Token(world.chain, world.deployment, "OctoA")
    key, peer = Secp256k1Signer(secrets.token_bytes(32)), MemoryPeerKey(secrets.token_bytes(32)).peer
    async with (
        open_sender(world.chain, wallet, QUICK) as sender,
        open_sender(world.chain, reporter, QUICK) as reporting,
    ):
        permit = await octo_a.permit(wallet, spender=staking.contract.address, amount=1_000 * OCTO)
        await sender.send(staking.stake(Tier.CONSUMER, 1_000 * OCTO, permit))
        await sender.send(staking.bind(staker=wallet.address, nonce=0, receipt_key=key, peer=peer))
        first, second = (sign_receipt(receipt(world, amount=amount), key) for amount in (3, 4))
        other_step = sign_receipt(receipt(world, seq=1), key)
        strangers = sign_receipt(receipt(world, amount=9), Secp256k1Signer(secrets.token_bytes(32)))
        for one, two, error in (
            (first, first, "NotEquivocation"),
            (first, other_step, "NotEquivocation"),
            (first, strangers, "DifferentSigners"),
        ):
            with pytest.raises(Reverted) as refused:
                await reporting.send(staking.slash(one, two))
            assert refused.value.name == error
        before = await octo_a.balance(reporter.address)
        await reporting.send(staking.slash(first, second))
        assert await octo_a.balance(reporter.address) == before + 50 * OCTO
        assert (await staking.stake_of(wallet.address)).bonded == 500 * OCTO
        assert not await staking.is_active(wallet.address, Tier.CONSUMER)
        with pytest.raises(Reverted) as again:
            await reporting.send(staking.slash(second, first))
        assert again.value.name == "AlreadySlashed"
