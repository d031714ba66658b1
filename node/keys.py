"""A node's keys, as they lie in its data folder: made at the first start, read at each later one.

    keys/peer.key         ed25519 seed: the peer on the mesh; `p2p.keys` signs with it
    keys/receipt.key      secp256k1: signs receipts and quotes
    keys/session.key      the seed of every channel's session key
    keys/wallet.json      secp256k1 in a keystore v3; keys/wallet.password opens it unless the user has a password
    keys/binding.cbor     the public statement that they belong together

Secrets leave this module as signers; the two seeds that must leave are never printed.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from contracts.wallet import assert_fast_backend, new_secret, open_keystore, seal_keystore
from market.errors import EncodingInvalid, NodeMisconfigured
from market.identity import Binding, PeerSigner, SignedBinding, check_binding, sign_binding
from market.signing import Secp256k1Signer
from market.values import decode, encode
from node.folder import Folder, write_whole

DAY_MS = 24 * 3600 * 1000
BINDING_LIFE_MS = 90 * DAY_MS
BINDING_RENEW_MS = 7 * DAY_MS
_CLOCK_SKEW_MS = 3600 * 1000  # others check our binding by their own clocks
_FILE_LIMIT_BYTES = 16 * 1024
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """`peer_seed` is 32 bytes of ed25519 seed, for `p2p.keys.PeerKey`."""

    peer_seed: bytes = field(repr=False)
    receipt: Secp256k1Signer
    wallet: Secp256k1Signer
    session_seed: bytes = field(repr=False)

    def session_key(self, salt: bytes) -> Secp256k1Signer:
        """The key that signs one channel's vouchers, by the salt in the channel's terms.

        Derived, so that a back-up of the seed brings back every channel's key; one that leaks (RFC 2104:
        HMAC is one-way) tells nothing of the others.
        """
        return Secp256k1Signer(hmac.digest(self.session_seed, b"octo/session/1" + salt, "sha256"))


def open_keys(folder: Folder, *, password: str | None = None, ask_password: Callable[[], str] | None = None) -> Keys:
    """Read the folder's keys, making those that are missing.

    `password` is the user's own for the wallet; without one, a random password is made beside the new
    wallet. `ask_password` is called for a wallet whose password is neither given nor in the folder.
    Blocks for a second if the wallet has a user's password. Raises NodeMisconfigured, DiskFull.
    """
    assert_fast_backend()
    return Keys(
        peer_seed=_secret(folder.path("keys", "peer.key")),
        receipt=Secp256k1Signer(_secret(folder.path("keys", "receipt.key"))),
        session_seed=_secret(folder.path("keys", "session.key")),
        wallet=_wallet(folder, password, ask_password),
    )


def rotate_receipt_key(folder: Folder) -> None:
    """Make the folder take a new receipt key at its next start.

    A must after restoring a back-up: the old key may have signed receipts that the back-up forgot,
    and a second, different one for the same step is equivocation.
    """
    write_whole(folder.path("keys", "receipt.key"), new_secret().hex().encode() + b"\n")


def make_binding(keys: Keys, *, peer: PeerSigner, folder: Folder, network: str, now_ms: int) -> SignedBinding:
    """The binding of these keys: the one in the folder while it holds, else a new one with a higher nonce."""
    path = folder.path("keys", "binding.cbor")
    wanted = (peer.peer, keys.receipt.address, keys.wallet.address)
    nonce = now_ms  # higher than any before, even if the file was lost
    try:
        signed = decode(SignedBinding, _read(path)) if path.exists() else None
        if signed is not None:
            old = decode(Binding, signed.body)
            nonce = max(nonce, old.nonce + 1)
            check_binding(signed, network=network, now_ms=now_ms)
            if (
                (old.peer, old.receipt_key, old.wallet) == wanted
                and now_ms < old.not_after_ms - BINDING_RENEW_MS
            ):  # fmt: skip
                return signed
    except EncodingInvalid as error:
        _log.info("binding_renewed", reason=error.message)
    binding = Binding(
        network=network,
        peer=peer.peer,
        receipt_key=keys.receipt.address,
        wallet=keys.wallet.address,
        not_before_ms=max(0, now_ms - _CLOCK_SKEW_MS),
        not_after_ms=now_ms + BINDING_LIFE_MS,
        nonce=nonce,
    )
    signed = sign_binding(binding, peer=peer, receipt_key=keys.receipt, wallet=keys.wallet)
    write_whole(path, encode(SignedBinding, signed))
    return signed


def _secret(path: Path) -> bytes:
    """32 secret bytes from a file of 64 hex digits, made if there is none. Every one is a valid secp256k1 key."""
    if not path.exists():
        write_whole(path, new_secret().hex().encode() + b"\n")
    _refuse_shared(path)
    try:
        secret = bytes.fromhex(_read(path).decode("ascii").strip())
        if len(secret) != 32:
            raise ValueError
    except ValueError:
        raise NodeMisconfigured(
            f"{path} holds no key (64 hexadecimal digits).", next_step="Restore it from a back-up."
        ) from None
    return secret


def _wallet(folder: Folder, password: str | None, ask_password: Callable[[], str] | None) -> Secp256k1Signer:
    path, password_path = folder.path("keys", "wallet.json"), folder.path("keys", "wallet.password")
    if password == "":
        raise NodeMisconfigured("the wallet password is empty.", next_step="Set one, or unset OCTO_WALLET_PASSWORD.")
    if not path.exists():
        random_password = password is None
        if password is None:
            if not password_path.exists():  # before the wallet: a kill between must not leave a locked one
                write_whole(password_path, secrets.token_urlsafe(32).encode() + b"\n")
            password = _read_password(password_path)
        write_whole(path, seal_keystore(new_secret(), password, random_password=random_password))
        _log.info("wallet_made", file=str(path), opens_with=password_path.name if random_password else "your own")
    elif password is None:
        if password_path.exists():
            password = _read_password(password_path)
        elif ask_password is not None:
            password = ask_password()
        else:
            raise NodeMisconfigured(
                f"the wallet {path} wants its password.",
                next_step="Set OCTO_WALLET_PASSWORD_FILE or OCTO_WALLET_PASSWORD.",
            )
    return open_keystore(_read(path), password)


def _read_password(path: Path) -> str:
    _refuse_shared(path)
    return _read(path).decode(errors="replace").strip()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_FILE_LIMIT_BYTES)
    except OSError as error:
        raise NodeMisconfigured(
            f"{path} cannot be read ({error.strerror}).", next_step="Check its owner and mode."
        ) from None


def _refuse_shared(path: Path) -> None:
    if path.stat().st_mode & 0o077:
        raise NodeMisconfigured(
            f"others on this machine may read the secret {path}.",
            next_step=f"Run: chmod 600 {path}  and consider the key known to them.",
        )
