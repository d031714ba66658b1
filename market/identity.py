"""Who is who: a peer, its receipt key and its wallet, bound by each other's signatures.

A Binding says "this peer, this receipt key and this wallet are one party"; all three sign it, so
nobody can claim a key that they do not hold. Knows the words and the checks, never where keys lie.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, ClassVar, NewType, Protocol

import nacl.exceptions
import nacl.signing
from pydantic import Field

from market.errors import EncodingInvalid, SignatureInvalid
from market.signing import Address, TypedStruct, recover_address
from market.values import cid_of, decode, encode, value

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58, of an inlined ed25519 public key: 12D3KooW…"""

_ED25519_PEER_PREFIX = bytes.fromhex("002408011220")  # identity multihash of a protobuf ed25519 key
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BINDING_TYPE = TypedStruct("Binding(bytes32 body)")


class PeerSigner(Protocol):
    """Signs with the peer's ed25519 key; the key itself stays inside."""

    peer: PeerId

    def sign(self, data: bytes) -> bytes: ...


class WalletSigner(Protocol):
    """Signs 32-byte digests with a secp256k1 key (receipt key, wallet or session key)."""

    address: Address

    def sign_digest(self, digest: bytes) -> bytes: ...


def peer_of_public_key(public_key: bytes) -> PeerId:
    raw = _ED25519_PEER_PREFIX + public_key
    number, digits = int.from_bytes(raw, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return PeerId("1" * (len(raw) - len(raw.lstrip(b"\0"))) + digits)


def public_key_of_peer(peer: str) -> bytes:
    """The 32-byte ed25519 key inside a peer id; raises EncodingInvalid for any other kind of id."""
    number = 0
    for character in peer[:64]:
        digit = _BASE58.find(character)
        if digit < 0:
            raise EncodingInvalid(f"{peer[:64]!r} is not a peer id.")
        number = number * 58 + digit
    raw = number.to_bytes(38, "big") if number < 1 << 304 else b""
    if raw[:6] != _ED25519_PEER_PREFIX or peer_of_public_key(raw[6:]) != peer:
        raise EncodingInvalid(f"{peer[:64]!r} is not the id of an ed25519 peer.")
    return raw[6:]


def check_peer_signature(peer: str, data: bytes, signature: bytes) -> None:
    try:
        nacl.signing.VerifyKey(public_key_of_peer(peer)).verify(data, signature)
    except (nacl.exceptions.BadSignatureError, ValueError):
        raise SignatureInvalid(f"the signature is not by peer {peer}.") from None


@value
class Binding:
    """`not_before_ms`/`not_after_ms` bound its life; a higher `nonce` by the same peer replaces it."""

    kind: ClassVar[str] = "octo/binding/1"

    network: Annotated[str, Field(max_length=64)]
    peer: Annotated[str, Field(max_length=64)]
    receipt_key: Address
    wallet: Address
    not_before_ms: Annotated[int, Field(ge=0, lt=2**53)]
    not_after_ms: Annotated[int, Field(ge=0, lt=2**53)]
    nonce: Annotated[int, Field(ge=0, lt=2**63)]


@value
class SignedBinding:
    body: Annotated[bytes, Field(max_length=1024)]
    by_peer: Annotated[bytes, Field(min_length=64, max_length=64)]
    by_receipt_key: Annotated[bytes, Field(min_length=65, max_length=65)]
    by_wallet: Annotated[bytes, Field(min_length=65, max_length=65)]

    def cid(self) -> str:
        return cid_of(encode(SignedBinding, self))


def sign_binding(
    binding: Binding, *, peer: PeerSigner, receipt_key: WalletSigner, wallet: WalletSigner
) -> SignedBinding:
    body = encode(Binding, binding)
    digest = _binding_digest(binding.network, body)
    return SignedBinding(
        body=body,
        by_peer=peer.sign(digest),
        by_receipt_key=receipt_key.sign_digest(digest),
        by_wallet=wallet.sign_digest(digest),
    )


def check_binding(signed: SignedBinding, *, network: str, now_ms: int | None) -> Binding:
    """The Binding inside, once all three signatures, the network and (unless None) the time hold."""
    binding = decode(Binding, signed.body)
    if binding.network != network:
        raise SignatureInvalid(f"the binding is for network {binding.network!r}, not {network!r}.")
    if now_ms is not None and not binding.not_before_ms <= now_ms < binding.not_after_ms:
        raise SignatureInvalid("the binding is not valid at this time.", next_step="Check both clocks.")
    digest = _binding_digest(binding.network, signed.body)
    check_peer_signature(binding.peer, digest, signed.by_peer)
    for role, address, signature in (
        ("receipt key", binding.receipt_key, signed.by_receipt_key),
        ("wallet", binding.wallet, signed.by_wallet),
    ):
        if recover_address(digest, signature) != address:
            raise SignatureInvalid(f"the binding is not signed by its {role}.")
    return binding


def _binding_digest(network: str, body: bytes) -> bytes:
    return _BINDING_TYPE.digest(network, 0, hashlib.sha256(body).digest())


def short(peer: str) -> str:
    """The last eight characters: enough for people, never for code."""
    return f"…{peer[-8:]}"
