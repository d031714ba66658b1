"""A Voucher: the client's signed promise, "this channel owes you so much in total, for these receipts".

Cumulative, so only the last one counts. It commits to the Merkle root of the receipts it pays for.
A session key signs vouchers: a hard spending cap per channel, while the wallet stays cold.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

from eth_hash.auto import keccak
from pydantic import Field

from market.errors import SignatureInvalid
from market.identity import WalletSigner
from market.money import Amount
from market.rails import parse_rail
from market.signing import Address, TypedStruct, recover_address
from market.values import value

_VOUCHER = TypedStruct("Voucher(bytes32 channelId,uint256 cumulativeAmount,bytes32 receiptsRoot)")
_CHANNEL_TYPE = keccak(b"Channel(address escrow,address payer,address payee,address sessionKey,bytes32 salt)")
_OPENING = TypedStruct("Opening(bytes32 channelId,uint256 deposit)")
Digest = Annotated[bytes, Field(min_length=32, max_length=32)]
Signature = Annotated[bytes, Field(min_length=65, max_length=65)]


@value
class ChannelTerms:
    """Who pays whom, over which rail, with which session key.

    The id is the one that the escrow contract computes: keccak256(abi.encode(type hash, escrow, payer,
    payee, sessionKey, salt)). The network is bound by the signatures' domain."""

    network: Annotated[str, Field(max_length=64)]
    rail: Annotated[str, Field(max_length=128)]
    payer: Address
    payee: Address
    session_key: Address
    salt: Digest

    def channel_id(self) -> bytes:
        return _channel_id(self)

    @property
    def chain_id(self) -> int:
        return parse_rail(self.rail)[0]


@lru_cache(maxsize=4096)
def _channel_id(terms: ChannelTerms) -> bytes:
    # Asked for several times a voucher: 4.5 us each, a fifth of a signature.
    _, escrow = parse_rail(terms.rail)
    words = (escrow, terms.payer, terms.payee, terms.session_key, terms.salt)
    return bytes(keccak(_CHANNEL_TYPE + b"".join(word.rjust(32, b"\0") for word in words)))


@value
class Opening:
    """The payer's wallet says: this channel holds `deposit`. On a chain, the transaction says it instead."""

    terms: ChannelTerms
    deposit: Amount
    signature: Signature


@value
class Voucher:
    channel: Digest
    amount: Amount
    receipts_root: Digest
    signature: Signature


@value
class VoucherFrame:
    """How a voucher travels: with the number of leaves and the receipt digests added since the last one,
    so that the seller can recompute the root."""

    voucher: Voucher
    leaves: Annotated[int, Field(ge=0, lt=2**53)]
    added: Annotated[tuple[Digest, ...], Field(max_length=1024)]


def sign_opening(terms: ChannelTerms, deposit: int, wallet: WalletSigner) -> Opening:
    digest = _OPENING.digest(terms.network, terms.chain_id, terms.channel_id(), deposit)
    return Opening(terms=terms, deposit=deposit, signature=wallet.sign_digest(digest))


def check_opening(opening: Opening) -> None:
    terms = opening.terms
    digest = _OPENING.digest(terms.network, terms.chain_id, terms.channel_id(), opening.deposit)
    if recover_address(digest, opening.signature) != terms.payer:
        raise SignatureInvalid("the channel's opening is not signed by the payer's wallet.")


def sign_voucher(terms: ChannelTerms, amount: int, receipts_root: bytes, session_key: WalletSigner) -> Voucher:
    digest = _VOUCHER.digest(terms.network, terms.chain_id, terms.channel_id(), amount, receipts_root)
    return Voucher(
        channel=terms.channel_id(),
        amount=amount,
        receipts_root=receipts_root,
        signature=session_key.sign_digest(digest),
    )


def check_voucher_signature(terms: ChannelTerms, voucher: Voucher) -> None:
    digest = _VOUCHER.digest(terms.network, terms.chain_id, voucher.channel, voucher.amount, voucher.receipts_root)
    if recover_address(digest, voucher.signature) != terms.session_key:
        raise SignatureInvalid("the voucher is not signed by the channel's session key.")
