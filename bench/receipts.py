"""Receipts per CPU-second: one signed by the provider and fully checked by the buyer is one pair.

Rival: eth-account signing the same EIP-712 struct and recovering its signer, in the same process, on the same
receipt, turn by turn. Ours does more in a pair: it encodes the body, parses it again, and compares every field with
what the buyer knows. CPU time, not wall time: what one core of a provider or a gateway can carry.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import nacl.signing
from eth_account import Account
from eth_account.messages import encode_typed_data

from bench.rows import as_dicts, compared
from market.identity import Binding, PeerId, check_binding, peer_of_public_key, sign_binding
from market.money import OCTO
from market.ports import Expectation
from market.quote import Quote, SignedQuote, sign_quote
from market.receipt import Receipt, SignedReceipt, sign_receipt
from market.record import Commitment
from market.signing import Secp256k1Signer
from market.task import TaskId
from verifier.receipts import ReceiptVerifier

GOAL_PER_CPU_SECOND = 5_000
RUNS = 9
PAIRS = 400
RIVAL_PAIRS = 80
_NETWORK, _RAIL = "octo-bench", "ledger:octo-bench"
_FIELDS = (
    "bytes32 body,bytes32 channel,bytes32 task,uint64 seq,bool final,uint64 tokensIn,uint64 tokensOut,"
    "uint256 amount,bytes32 transcriptRoot,bytes32 quote"
)


def run() -> list[dict[str, Any]]:
    """One row: pairs per CPU-second, medians of interleaved runs."""
    secret = _digest("receipt key")
    receipt, expected = _sale(Secp256k1Signer(secret))
    ours, rival = _our_pair(receipt, expected, Secp256k1Signer(secret)), _rival_pair(receipt, secret)
    ours(), rival()  # first calls compile pydantic's parsers and load eth-account's registries
    mine, theirs = [], []
    for _ in range(RUNS):
        mine.append(_per_cpu_second(ours, PAIRS))
        theirs.append(_per_cpu_second(rival, RIVAL_PAIRS))
    beside = compared(
        "receipts_signed_and_verified",
        "pairs per CPU-second",
        mine,
        theirs,
        "eth-account, the same EIP-712 struct signed and recovered",
    )
    pairs = beside.ours
    row = replace(beside, goal=f">= {GOAL_PER_CPU_SECOND} pairs per CPU-second", met=pairs >= GOAL_PER_CPU_SECOND)
    return as_dicts([row])


def _per_cpu_second(pair: Callable[[], None], count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        pair()
    return count / (time.process_time() - start)


def _our_pair(receipt: Receipt, expected: Expectation, signer: Secp256k1Signer) -> Callable[[], None]:
    verifier = ReceiptVerifier()

    def pair() -> None:
        signed: SignedReceipt = sign_receipt(receipt, signer)
        verifier.check_receipt(signed, expected)

    return pair


def _rival_pair(receipt: Receipt, secret: bytes) -> Callable[[], None]:
    account = Account.from_key(secret)
    salt = hashlib.sha256(b"octo/network/1" + _NETWORK.encode()).digest()
    domain = {"name": "octo", "version": "1", "chainId": 0, "salt": salt}
    types = {"Receipt": [dict(zip(("type", "name"), field.split(), strict=True)) for field in _FIELDS.split(",")]}
    message = {
        "body": _digest("body"), "channel": receipt.channel, "task": receipt.task, "seq": receipt.seq,
        "final": receipt.final, "tokensIn": receipt.tokens_in, "tokensOut": receipt.tokens_out,
        "amount": receipt.amount, "transcriptRoot": receipt.transcript_root, "quote": receipt.quote,
    }  # fmt: skip

    def pair() -> None:
        signed = account.sign_typed_data(domain, types, message)
        # The verifying side hashes for itself: it was sent the struct, not the digest.
        again = encode_typed_data(domain, types, message)
        if Account.recover_message(again, signature=signed.signature) != account.address:
            raise RuntimeError("eth-account recovered another signer")

    return pair


def _sale(signer: Secp256k1Signer) -> tuple[Receipt, Expectation]:
    """A receipt over 128 tokens, and what its buyer expects. No transcript is grown: that is not measured here."""
    peer_key = nacl.signing.SigningKey(_digest("peer"))
    wallet = Secp256k1Signer(_digest("wallet"))

    class Peer:
        peer: PeerId = peer_of_public_key(bytes(peer_key.verify_key))

        def sign(self, data: bytes) -> bytes:
            return bytes(peer_key.sign(data).signature)

    client = peer_of_public_key(bytes(nacl.signing.SigningKey(_digest("client")).verify_key))
    binding = Binding(
        network=_NETWORK, peer=Peer.peer, receipt_key=signer.address, wallet=wallet.address, not_before_ms=0,
        not_after_ms=2**52, nonce=1,
    )  # fmt: skip
    signed_binding = sign_binding(binding, peer=Peer(), receipt_key=signer, wallet=wallet)
    cid = "bafyrei" + "a" * 52
    quote = Quote(
        network=_NETWORK, task=_digest("task"), provider=Peer.peer, client=client, model=cid, weights=cid,
        engine="llama.cpp/0.3.36/cpu-avx512/q4_0", rail=_RAIL, prompt=_digest("prompt"), sampling=_digest("sampling"),
        tokens_in=57, max_tokens=256, price_in=OCTO // 10, price_out=OCTO, tick_tokens=64, expires_ms=2**52,
        final=False,
    )  # fmt: skip
    signed_quote: SignedQuote = sign_quote(quote, signer)
    seen = Commitment(tokens=128, chunks=4, head=_digest("head"), root=_digest("root"))
    receipt = Receipt(
        network=_NETWORK, rail=_RAIL, provider=Peer.peer, client=client, binding=signed_binding.cid(),
        channel=_digest("channel"), task=quote.task, seq=1, final=True, finish="stop", model=cid, weights=cid,
        engine=quote.engine, quote=signed_quote.digest(), prompt=quote.prompt, sampling=quote.sampling, tokens_in=57,
        tokens_out=128, chunks=4, chain_head=seen.head, transcript_root=seen.root, amount=quote.cost_of(128),
        started_ms=1_790_000_000_000, ended_ms=1_790_000_001_000,
    )  # fmt: skip
    first = replace(receipt, seq=0, final=False, finish="", tokens_out=64, chunks=2, amount=quote.cost_of(64))
    expected = Expectation(
        network=_NETWORK, rail=_RAIL, client=client, provider=check_binding(signed_binding, network=_NETWORK, now_ms=1),
        provider_binding_cid=signed_binding.cid(), channel=receipt.channel, task=TaskId(quote.task),
        quote=signed_quote, prompt=quote.prompt, sampling=quote.sampling, tokens_in=57, commitment=seen,
        previous=first,
    )  # fmt: skip
    return receipt, expected


def _digest(tag: str) -> bytes:
    return hashlib.sha256(tag.encode()).digest()
