"""The wallet: a secp256k1 key inside an Ethereum keystore v3, which every wallet program can open.

Lives here: sealing, opening, and the check that signatures are fast. Knows no folder and no network:
bytes come in and go out, `node.keys` puts them on disk. Source: Web3 Secret Storage, version 3.

Not by eth-keyfile: it imports py_ecc, which raises Python's recursion limit to 100,000 for the whole
process, and then a body of 100 kB of "[" handed to json.loads overflows the stack (measured: SIGSEGV).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import uuid
from collections.abc import Mapping
from typing import Any

from eth_hash.auto import keccak

from market.errors import NodeMisconfigured
from market.signing import Secp256k1Signer, address_text

KEYSTORE_LIMIT_BYTES = 16 * 1024
_SCRYPT_STRONG = 1 << 18  # what geth calls standard: 0.66 s and 256 MiB here, for passwords that people choose
_SCRYPT_LIGHT = 1 << 12  # 0.01 s and 4 MiB: a random 256-bit password has nothing to stretch
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
    light, and opening takes 10 ms in place of most of a second.
    """
    params = {"n": _SCRYPT_LIGHT if random_password else _SCRYPT_STRONG, "r": 8, "p": 1, "dklen": 32}
    salt, iv = secrets.token_bytes(32), secrets.token_bytes(16)
    derived = _derive("scrypt", {**params, "salt": salt.hex()}, password)
    sealed = _aes_ctr(derived[:16], iv, secret)
    keystore = {
        "address": Secp256k1Signer(secret).address.hex(),
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": {"iv": iv.hex()},
            "ciphertext": sealed.hex(),
            "kdf": "scrypt",
            "kdfparams": {**params, "salt": salt.hex()},
            "mac": keccak(derived[16:32] + sealed).hex(),
        },
        "id": str(uuid.uuid4()),
        "version": 3,
    }
    return json.dumps(keystore, indent=1).encode() + b"\n"


def open_keystore(data: bytes, password: str) -> Secp256k1Signer:
    """The signer inside; raises NodeMisconfigured for a file that is no keystore v3 or a wrong password."""
    keystore = _parse(data)
    crypto = keystore["crypto"]
    sealed = bytes.fromhex(crypto["ciphertext"])
    derived = _derive(crypto["kdf"], crypto["kdfparams"], password)
    if not hmac.compare_digest(keccak(derived[16:32] + sealed), bytes.fromhex(crypto["mac"])):
        raise NodeMisconfigured(
            "the wallet does not open with this password.",
            next_step="Give the password that it was made with (OCTO_WALLET_PASSWORD or OCTO_WALLET_PASSWORD_FILE).",
        )
    try:
        signer = Secp256k1Signer(_aes_ctr(derived[:16], bytes.fromhex(crypto["cipherparams"]["iv"]), sealed))
    except Exception:  # noqa: BLE001 - coincurve's errors for a number that is no key; none may show it
        raise _no_keystore() from None
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


def _derive(kdf: str, params: Mapping[str, Any], password: str) -> bytes:
    salt = bytes.fromhex(params["salt"])
    if kdf == "pbkdf2":
        return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, params["c"], 32)
    return hashlib.scrypt(
        password.encode(), salt=salt, n=params["n"], r=params["r"], p=params["p"], dklen=32,
        maxmem=2 * _SCRYPT_MEMORY_LIMIT_BYTES,
    )  # fmt: skip


def _aes_ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher = Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor()
    return cipher.update(data) + cipher.finalize()


def _parse(data: bytes) -> dict[str, Any]:
    """A keystore whose key derivation is affordable: its file alone could ask for a terabyte of memory."""
    try:
        if len(data) > KEYSTORE_LIMIT_BYTES:
            raise ValueError
        keystore: dict[str, Any] = {name.lower(): held for name, held in json.loads(data).items()}
        crypto = keystore["crypto"]  # "Crypto" in geth's oldest files
        kdf, params = crypto["kdf"], crypto["kdfparams"]
        if keystore["version"] != 3 or crypto["cipher"] != "aes-128-ctr" or params["dklen"] != 32:
            raise ValueError
        for text in (crypto["ciphertext"], crypto["mac"], crypto["cipherparams"]["iv"], params["salt"]):
            bytes.fromhex(text)
        if not _affordable(kdf, params) or len(crypto["cipherparams"]["iv"]) != 32 or len(crypto["ciphertext"]) != 64:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _no_keystore() from None
    return keystore


def _affordable(kdf: str, params: Mapping[str, Any]) -> bool:
    work = [params[name] for name in (("n", "r", "p") if kdf == "scrypt" else ("c",))]
    if not all(type(number) is int and number > 0 for number in work):
        return False
    if kdf == "pbkdf2":
        return bool(work[0] <= _PBKDF2_ROUNDS_LIMIT and params["prf"] == "hmac-sha256")
    rounds, block, lanes = work
    power_of_two = rounds > 1 and rounds & (rounds - 1) == 0
    return bool(kdf == "scrypt" and power_of_two and lanes <= 16 and 128 * rounds * block <= _SCRYPT_MEMORY_LIMIT_BYTES)


def _no_keystore() -> NodeMisconfigured:
    return NodeMisconfigured(
        "the wallet file is not an Ethereum keystore (version 3) that can be opened here.",
        next_step="Restore it from a back-up.",
    )
