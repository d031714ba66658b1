"""The wallet: a secp256k1 key inside an Ethereum keystore v3, which every wallet program can open.

Lives here: sealing, opening, and the check that signatures are fast. Knows no folder and no network:
bytes come in and go out, `node.keys` puts them on disk. Source: Web3 Secret Storage, version 3.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from market.errors import NodeMisconfigured
from market.signing import Secp256k1Signer, address_text

KEYSTORE_LIMIT_BYTES = 16 * 1024
_SCRYPT_STRONG = 1 << 18  # what geth calls standard: 1.0 s and 256 MiB here, for passwords that people choose
_SCRYPT_LIGHT = 1 << 12  # 0.02 s and 4 MiB: a random 256-bit password has nothing to stretch
_SCRYPT_MEMORY_LIMIT_BYTES = 512 * 1024 * 1024
_PBKDF2_ROUNDS_LIMIT = 10_000_000
_CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def new_secret() -> bytes:
    """32 random bytes that are a valid secp256k1 key."""
    while True:
        secret = secrets.token_bytes(32)
        if 0 < int.from_bytes(secret, "big") < _CURVE_ORDER:
            return secret


def seal_keystore(secret: bytes, password: str, *, random_password: bool) -> bytes:
    """The keystore v3 JSON of a key.

    `random_password` says that the password is at least 128 random bits: then the key derivation is
    light, and opening takes 20 ms in place of a second.
    """
    from eth_keyfile.keyfile import create_keyfile_json

    rounds = _SCRYPT_LIGHT if random_password else _SCRYPT_STRONG
    keystore = create_keyfile_json(secret, password.encode(), version=3, kdf="scrypt", iterations=rounds, salt_size=32)
    return json.dumps(keystore, indent=1).encode() + b"\n"


def open_keystore(data: bytes, password: str) -> Secp256k1Signer:
    """The signer inside; raises NodeMisconfigured for a file that is no keystore v3 or a wrong password."""
    from eth_keyfile.keyfile import decode_keyfile_json

    keystore = _parse(data)
    try:
        secret = decode_keyfile_json(keystore, password.encode())
        signer = Secp256k1Signer(bytes(secret))
    except Exception:  # noqa: BLE001 - the library raises many kinds, and its texts may quote key material
        raise NodeMisconfigured(
            "the wallet does not open with this password.",
            next_step="Give the password that it was made with (OCTO_WALLET_PASSWORD or OCTO_WALLET_PASSWORD_FILE).",
        ) from None
    named = keystore.get("address")
    if isinstance(named, str) and named.lower().removeprefix("0x") != signer.address.hex():
        raise NodeMisconfigured(
            f"the wallet file names another address than its key has, {address_text(signer.address)}.",
            next_step="Restore the file from a back-up.",
        )
    return signer


def assert_fast_backend() -> None:
    """Raises NodeMisconfigured unless eth-keys signs with coincurve.

    It falls back to pure Python without a word, 12 to 25 times slower (facts/chain.md 3.3).
    """
    from eth_keys.datatypes import PrivateKey

    backend = type(PrivateKey(b"\x01" * 32).backend).__name__
    if backend != "CoinCurveECCBackend":
        raise NodeMisconfigured(
            f"eth-keys signs with {backend}, which is 12 times too slow for payments.",
            next_step="Install coincurve and unset ECC_BACKEND_CLASS.",
        )


def _parse(data: bytes) -> dict[str, Any]:
    """A keystore whose key derivation is affordable: its file alone could ask for a terabyte of memory."""
    try:
        if len(data) > KEYSTORE_LIMIT_BYTES:
            raise ValueError
        keystore: dict[str, Any] = json.loads(data)
        crypto = keystore["crypto"] if "crypto" in keystore else keystore["Crypto"]  # geth once wrote it large
        kdf, params = crypto["kdf"], crypto["kdfparams"]
        if keystore["version"] != 3 or params["dklen"] != 32:
            raise ValueError
        if kdf == "scrypt":
            work = [params[name] for name in ("n", "r", "p")]
            affordable = 128 * work[0] * work[1] <= _SCRYPT_MEMORY_LIMIT_BYTES and work[2] <= 16
        else:
            work = [params["c"]]
            affordable = kdf == "pbkdf2" and work[0] <= _PBKDF2_ROUNDS_LIMIT
        if not affordable or not all(type(number) is int and number > 0 for number in work):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NodeMisconfigured(
            "the wallet file is not an Ethereum keystore (version 3) that can be opened here.",
            next_step="Restore it from a back-up.",
        ) from None
    return keystore
