"""Who may talk to the node over HTTP: API keys for clients, a token for the CLI on the same machine.

Keys are kept as plain SHA-256: with 256 random bits there is nothing to guess, so a slow hash would
only slow down each request. The token is new at each start and readable by the folder's owner alone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from pathlib import Path

from market.errors import NodeMisconfigured
from node.folder import Folder, write_whole

KEY_PREFIX = "octo-"
OWNER = "owner"
"""Whoever has the CLI's token, which is another at each start."""
_PRESENTED_LIMIT = 256
_FILE = "api_keys.json"
_FILE_LIMIT_BYTES = 1 << 20
_TOKEN_FILE = "token"  # noqa: S105 - a file's name


class ApiKeys:
    """Use `open_api_keys`."""

    def __init__(self, hashes: tuple[bytes, ...], *, token: str, token_file: Path, unkept: Path | None = None) -> None:
        self._hashes = hashes
        self._token_hash = _hash(token)
        self.token_file = token_file
        self._unkept = unkept

    def keep(self) -> None:
        """Write the first key's hash, once its text is about to be shown: a start that fails before shows nothing, and
        leaves it to the next one to make a key."""
        if self._unkept is not None:
            _add(self._unkept, self._hashes[0])
            self._unkept = None

    def check(self, presented: str) -> bool:
        """Whether this is a client's key or the CLI's token; takes as long for a near miss as for a far one."""
        found = self.is_token(presented)
        for known in self._hashes:
            found |= hmac.compare_digest(known, _hash(presented))
        return found

    def is_token(self, presented: str) -> bool:
        """Whether this is the CLI's token: what administers the node wants it."""
        return hmac.compare_digest(self._token_hash, _hash(presented))


def caller_of(presented: str) -> str:
    """What tells the users of keys apart, without being the key or what is stored of it."""
    return hashlib.sha256(b"octo/caller/1" + _hash(presented)).hexdigest()[:32]


def open_api_keys(folder: Folder) -> tuple[ApiKeys, str | None]:
    """The folder's keys, a fresh token in its file, and the first key's text if there was none yet.

    That text exists nowhere else: show it once, after `ApiKeys.keep`. Raises NodeMisconfigured for a damaged file.
    """
    path, made = folder.path(_FILE), None
    if path.exists():
        hashes = _read(path)
    else:
        made = _new_key()
        hashes = (_hash(made),)
    token = secrets.token_urlsafe(32)
    token_file = folder.path(_TOKEN_FILE)
    write_whole(token_file, token.encode())
    return ApiKeys(hashes, token=token, token_file=token_file, unkept=path if made else None), made


def make_api_key(folder: Folder) -> str:
    """Add a key to the folder's file and return its text; a node that is running learns of it at its next start."""
    key = _new_key()
    _add(folder.path(_FILE), _hash(key))
    return key


def _new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(32)


def _add(path: Path, added: bytes) -> None:
    hashes = (*(_read(path) if path.exists() else ()), added)
    write_whole(path, json.dumps({"version": 1, "sha256": [known.hex() for known in hashes]}).encode())


def _read(path: Path) -> tuple[bytes, ...]:
    try:
        if path.stat().st_size > _FILE_LIMIT_BYTES:
            raise ValueError
        stored = json.loads(path.read_bytes())
        hashes = tuple(bytes.fromhex(text) for text in stored["sha256"])
        if stored["version"] != 1 or not hashes or any(len(known) != 32 for known in hashes):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise NodeMisconfigured(
            f"{path} holds no API keys that can be read.", next_step="Move it away: the next start makes a new key."
        ) from None
    return hashes


def _hash(presented: str) -> bytes:
    # Cut first: a megabyte in an Authorization header must not buy a megabyte of hashing.
    return hashlib.sha256(presented[:_PRESENTED_LIMIT].encode(errors="replace")).digest()
