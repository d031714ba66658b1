"""An EIP-1559 transaction: its bytes, its hash, its signature. And the EIP-2612 permit that saves one.

The key stays in its signer, which is given digests only. Sources: EIP-1559, EIP-2718, EIP-2612, RLP.
"""

from __future__ import annotations

from eth_hash.auto import keccak

from market.identity import WalletSigner
from market.values import value

_DYNAMIC_FEE = b"\x02"
_DOMAIN_TYPE = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_PERMIT_TYPE = keccak(b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)")


@value
class Fees:
    """Wei for a unit of gas: the most in all, and the part of it that goes to the block's maker."""

    max_fee: int
    tip: int

    def bumped(self, per_cent: int) -> Fees:
        return Fees(max_fee=_raised(self.max_fee, per_cent), tip=_raised(self.tip, per_cent))


@value
class Transaction:
    """`to` is None for the creation of a contract."""

    chain_id: int
    nonce: int
    fees: Fees
    gas: int
    to: bytes | None
    amount: int = 0
    data: bytes = b""


@value
class SignedTransaction:
    hash: bytes
    raw: bytes
    nonce: int
    fees: Fees


@value
class Permit:
    """Lets `spender` take `amount` once, until `deadline` (seconds)."""

    amount: int
    deadline: int
    v: int
    r: bytes
    s: bytes


def sign_transaction(transaction: Transaction, signer: WalletSigner) -> SignedTransaction:
    t = transaction
    fields: list[bytes | int] = [t.chain_id, t.nonce, t.fees.tip, t.fees.max_fee, t.gas, t.to or b"", t.amount, t.data]
    body = b"".join(_rlp(field) for field in fields) + b"\xc0"  # an empty access list
    signature = signer.sign_digest(keccak(_DYNAMIC_FEE + _rlp_list(body)))
    words = (signature[64] - 27, int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"))
    raw = _DYNAMIC_FEE + _rlp_list(body + b"".join(_rlp(word) for word in words))
    return SignedTransaction(hash=bytes(keccak(raw)), raw=raw, nonce=t.nonce, fees=t.fees)


def sign_permit(
    *, token: bytes, token_name: str, chain_id: int, spender: bytes, amount: int, nonce: int, deadline: int,
    owner: WalletSigner,
) -> Permit:  # fmt: skip
    """The owner's permit on a token whose EIP-712 domain has version "1", as OpenZeppelin's has."""
    domain = keccak(
        _DOMAIN_TYPE
        + keccak(token_name.encode())
        + keccak(b"1")
        + chain_id.to_bytes(32, "big")
        + token.rjust(32, b"\0")
    )
    words = owner.address.rjust(32, b"\0") + spender.rjust(32, b"\0")
    words += b"".join(number.to_bytes(32, "big") for number in (amount, nonce, deadline))
    signature = owner.sign_digest(keccak(b"\x19\x01" + domain + keccak(_PERMIT_TYPE + words)))
    return Permit(amount=amount, deadline=deadline, v=signature[64], r=signature[:32], s=signature[32:64])


def compact(signature: bytes) -> tuple[bytes, bytes]:
    """(r, vs) of r ‖ s ‖ v: the parity of v in the top bit of s, which a low s leaves free (EIP-2098)."""
    s = int.from_bytes(signature[32:64], "big") | (signature[64] - 27) << 255
    return signature[:32], s.to_bytes(32, "big")


def contract_address(deployer: bytes, nonce: int) -> bytes:
    """Where a transaction of `deployer` with this nonce puts the contract that it creates."""
    return bytes(keccak(_rlp_list(_rlp(deployer) + _rlp(nonce)))[-20:])


def _rlp(item: bytes | int) -> bytes:
    data = item.to_bytes((item.bit_length() + 7) // 8, "big") if isinstance(item, int) else item
    if len(data) == 1 and data[0] < 0x80:
        return data
    return _head(0x80, len(data)) + data


def _rlp_list(body: bytes) -> bytes:
    return _head(0xC0, len(body)) + body


def _head(base: int, length: int) -> bytes:
    if length < 56:
        return bytes((base + length,))
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((base + 55 + len(size),)) + size


def _raised(number: int, per_cent: int) -> int:
    """At least one wei more: on a chain whose base fee is a few wei, 12 % of it is nothing."""
    return max(number + 1, number * (100 + per_cent) // 100)
