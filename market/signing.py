"""EIP-712 digests and secp256k1 signatures, fast: the domain separator is computed once.

Lives here: `TypedStruct` (a struct type whose members are 32-byte words), recovery of the signer,
and the rule "low s only". Source: EIP-712, EIP-2. Knows no key: signers come in as arguments.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Annotated

import coincurve
from eth_hash.auto import keccak
from pydantic import BeforeValidator

from market.errors import EncodingInvalid, SignatureInvalid

_DOMAIN_TYPE = keccak(b"EIP712Domain(string name,string version,uint256 chainId,bytes32 salt)")
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


def _address_from_wire(raw: object) -> bytes:
    if isinstance(raw, bytes) and len(raw) == 20:
        return raw
    raise ValueError("an address is 20 bytes")


Address = Annotated[bytes, BeforeValidator(_address_from_wire)]
"""The 20 bytes of an Ethereum address."""


def address_text(address: bytes) -> str:
    """EIP-55 checksum form, 0x…"""
    plain = address.hex()
    marks = keccak(plain.encode()).hex()
    return "0x" + "".join(c.upper() if int(m, 16) > 7 else c for c, m in zip(plain, marks, strict=False))


@lru_cache(maxsize=64)
def _domain_separator(network: str, chain_id: int) -> bytes:
    salt = hashlib.sha256(b"octo/network/1" + network.encode()).digest()
    return keccak(_DOMAIN_TYPE + keccak(b"octo") + keccak(b"1") + chain_id.to_bytes(32, "big") + salt)


class TypedStruct:
    """An EIP-712 struct whose members are all one word: `Voucher(bytes32 channelId,uint256 …)`."""

    def __init__(self, type_text: str) -> None:
        self.type_text = type_text
        self._type_hash = keccak(type_text.encode())
        self._members = type_text.count(",") + 1

    def digest(self, network: str, chain_id: int, *members: bytes | int | bool) -> bytes:
        """What is signed: keccak(0x1901 ‖ domain separator ‖ struct hash). chain_id is 0 on the local ledger.

        Raises EncodingInvalid if a number does not fit a word."""
        if len(members) != self._members:
            raise TypeError(f"{self.type_text} has {self._members} members, not {len(members)}")
        try:
            words = b"".join(
                [m.rjust(32, b"\0") if isinstance(m, bytes) else int(m).to_bytes(32, "big") for m in members]
            )
        except OverflowError:  # A hostile quote: price times tokens may need more than 256 bits.
            raise EncodingInvalid(f"a number of {self.type_text.split('(')[0]} does not fit 256 bits.") from None
        return keccak(b"\x19\x01" + _domain_separator(network, chain_id) + keccak(self._type_hash + words))


class Secp256k1Signer:
    """Signs digests with one secp256k1 key. The key never leaves and never prints."""

    def __init__(self, secret: bytes) -> None:
        self._key = coincurve.PrivateKey(secret)
        self.address: bytes = _address_of(self._key.public_key)

    def sign_digest(self, digest: bytes) -> bytes:
        """65 bytes r ‖ s ‖ v, v in {27, 28}; libsecp256k1 always yields low s."""
        raw = self._key.sign_recoverable(digest, hasher=None)
        return raw[:64] + bytes((raw[64] + 27,))

    def __repr__(self) -> str:
        return f"Secp256k1Signer({address_text(self.address)})"


def recover_address(digest: bytes, signature: bytes) -> bytes:
    """The address that signed `digest`; raises SignatureInvalid for a malformed or high-s signature."""
    if len(signature) != 65 or signature[64] not in (27, 28):
        raise SignatureInvalid("a signature is 65 bytes, r ‖ s ‖ v with v 27 or 28.")
    if int.from_bytes(signature[32:64], "big") > _HALF_ORDER:
        raise SignatureInvalid("the signature has a high s value (EIP-2): it could be a second form of another.")
    try:
        public = coincurve.PublicKey.from_signature_and_message(
            signature[:64] + bytes((signature[64] - 27,)), digest, hasher=None
        )
    except Exception:  # noqa: BLE001 - coincurve raises bare Exception for a point that does not exist
        raise SignatureInvalid("the signature does not belong to any key.") from None
    return _address_of(public)


def _address_of(public: coincurve.PublicKey) -> bytes:
    return bytes(keccak(public.format(compressed=False)[1:])[-20:])
