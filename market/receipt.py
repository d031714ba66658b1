"""A Receipt: the provider's signed statement of what it ran, for whom, how many tokens, and what it costs.

Receipt k of a task extends receipt k-1: counts and amount never fall. Two different bodies for one
(channel, task, seq) are equivocation. `verifier.receipts` checks a receipt against the world; here are
the words, the signature and the order between two.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import Field

from market.errors import EncodingInvalid, SignatureInvalid
from market.identity import WalletSigner
from market.money import Amount
from market.rails import parse_rail
from market.signing import TypedStruct, recover_address
from market.values import cid_of, decode, encode, value

_RECEIPT = TypedStruct(
    "Receipt(bytes32 body,bytes32 channel,bytes32 task,uint64 seq,bool final,uint64 tokensIn,uint64 tokensOut,"
    "uint256 amount,bytes32 transcriptRoot,bytes32 quote)"
)
Digest = Annotated[bytes, Field(min_length=32, max_length=32)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Milliseconds = Annotated[int, Field(ge=0, lt=2**53)]


@value
class Receipt:
    """`amount` is the task's total so far; `chain_head` and `transcript_root` commit to `tokens_out` tokens
    in `chunks` chunks; `prompt` is the salted hash of the prompt's token ids; `binding` is a CID.

    `kind` "cached": nothing was generated; the answer of the receipt whose CID is `cached` was told again."""

    version: Literal[1] = 1
    kind: Literal["generated", "cached"] = "generated"
    cached: Annotated[str, Field(max_length=128)] = ""
    network: Annotated[str, Field(max_length=64)]
    rail: Annotated[str, Field(max_length=128)]
    provider: Annotated[str, Field(max_length=64)]
    client: Annotated[str, Field(max_length=64)]
    binding: Annotated[str, Field(max_length=128)]
    channel: Digest
    task: Digest
    seq: Count
    final: bool
    finish: Literal["", "stop", "length", "cancelled", "error"]
    model: Annotated[str, Field(max_length=128)]
    weights: Annotated[str, Field(max_length=128)]
    engine: Annotated[str, Field(max_length=128)]
    quote: Digest
    prompt: Digest
    sampling: Digest
    tokens_in: Count
    tokens_out: Count
    chunks: Count
    chain_head: Digest
    transcript_root: Digest
    amount: Amount
    started_ms: Milliseconds
    ended_ms: Milliseconds


@value
class SignedReceipt:
    body: Annotated[bytes, Field(max_length=4096)]
    signature: Annotated[bytes, Field(min_length=65, max_length=65)]

    def cid(self) -> str:
        return cid_of(self.body)

    def digest(self) -> bytes:
        """sha-256 of the body: the leaf of the channel's receipts tree and the digest in the CID."""
        return hashlib.sha256(self.body).digest()

    def read(self) -> Receipt:
        """The receipt inside, unchecked by signature."""
        return decode(Receipt, self.body)


def sign_receipt(receipt: Receipt, signer: WalletSigner) -> SignedReceipt:
    body = encode(Receipt, receipt)
    return SignedReceipt(body=body, signature=signer.sign_digest(_digest(receipt, body)))


def check_receipt_signature(signed: SignedReceipt, *, receipt_key: bytes) -> Receipt:
    """The Receipt inside, once it is canonical and signed by `receipt_key`."""
    receipt = decode(Receipt, signed.body)
    if recover_address(_digest(receipt, signed.body), signed.signature) != receipt_key:
        raise SignatureInvalid("the receipt is not signed by the provider's receipt key.")
    return receipt


def check_extends(previous: Receipt, receipt: Receipt) -> None:
    """Raises EncodingInvalid unless `receipt` is the next step after `previous` of the same task."""
    if previous.final:
        raise EncodingInvalid(f"receipt {receipt.seq} follows a final one.")
    if receipt.seq != previous.seq + 1:
        raise EncodingInvalid(f"receipt {receipt.seq} does not follow receipt {previous.seq}.")
    for name in ("kind", "cached", "network", "rail", "provider", "client", "channel", "task", "model", "weights",
                 "quote", "prompt", "sampling", "tokens_in", "started_ms"):  # fmt: skip
        if getattr(previous, name) != getattr(receipt, name):
            raise EncodingInvalid(f"receipt {receipt.seq} changed {name}.")
    for name in ("tokens_out", "chunks", "amount", "ended_ms"):
        if getattr(receipt, name) < getattr(previous, name):
            raise EncodingInvalid(f"receipt {receipt.seq} lowers {name}.")


def _digest(receipt: Receipt, body: bytes) -> bytes:
    chain_id, _ = parse_rail(receipt.rail)
    return _RECEIPT.digest(
        receipt.network,
        chain_id,
        hashlib.sha256(body).digest(),
        receipt.channel,
        receipt.task,
        receipt.seq,
        receipt.final,
        receipt.tokens_in,
        receipt.tokens_out,
        receipt.amount,
        receipt.transcript_root,
        receipt.quote,
    )
