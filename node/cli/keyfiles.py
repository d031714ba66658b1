"""A deployer's key, from a file: the only way in. Others can read argv, and histories keep it.

Knows files and their rights; what a keystore is, `contracts.wallet` knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from market.errors import NodeMisconfigured

if TYPE_CHECKING:
    from market.signing import Secp256k1Signer

_LIMIT_BYTES = 16 * 1024
_HEX_KEY = re.compile(r"(?:0x)?([0-9a-fA-F]{64})")


def signer_in_key_file(path: Path) -> Secp256k1Signer:
    """From a file of 64 hexadecimal digits that its owner alone may read. Raises NodeMisconfigured."""
    from market.signing import Secp256k1Signer

    found = _HEX_KEY.fullmatch(_read(path, secret=True).decode(errors="replace").strip())
    try:
        if found is None:
            raise ValueError
        return Secp256k1Signer(bytes.fromhex(found[1]))
    except Exception:  # noqa: BLE001 - coincurve's errors for a number that is no key; none may show it
        raise NodeMisconfigured(
            f"{path} holds no key: 64 hexadecimal digits are wanted.", next_step="Name another with --key-file."
        ) from None


def signer_in_keystore(path: Path, password_file: Path | None, ask: Callable[[], str] | None) -> Secp256k1Signer:
    """From an Ethereum keystore v3; `ask` prompts, where there is somebody to ask. Raises NodeMisconfigured."""
    from contracts.wallet import open_keystore

    if password_file is not None:
        password = _read(password_file, secret=True).decode(errors="replace").strip("\r\n")
    elif ask is not None:
        password = ask()
    else:
        raise NodeMisconfigured(f"the keystore {path} wants its password.", next_step="Name its file: --password-file.")
    return open_keystore(_read(path, secret=False), password)


def _read(path: Path, *, secret: bool) -> bytes:
    try:
        with path.open("rb") as file:
            if secret and path.stat().st_mode & 0o077:
                raise NodeMisconfigured(
                    f"others on this machine may read the secret {path}.",
                    next_step=f"Run: chmod 600 {path}  and consider it known to them.",
                )
            return file.read(_LIMIT_BYTES)
    except OSError as error:
        raise NodeMisconfigured(f"{path} cannot be read ({error.strerror}).", next_step="Check the path.") from None
