"""Tickets: how a peer that we know from the mesh shows on the content listener who it is.

Lives here: making and checking them. A ticket says who and until when, not what: whether that peer may read is asked
when it is used. It is fetched over the encrypted mesh stream and sent as `Authorization: Bearer …`; it is a secret
until it expires, so it belongs into no URL and no log. Knows no HTTP and no store.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from market.identity import PeerId
from market.ports import Clock

_VERSION = b"\x01"
_PURPOSE = b"octo/content-ticket\0"
_MAC_BYTES = 32
_EXPIRY_BYTES = 8
_SECRET_LEAST_BYTES = 16
_TEXT_LIMIT = 256


class Tickets:
    """Issued and checked by one node, under a `secret` that it keeps (a new one makes all old tickets void)."""

    def __init__(self, secret: bytes, clock: Clock, lifetime_s: int = 600) -> None:
        if len(secret) < _SECRET_LEAST_BYTES:
            raise ValueError(f"a ticket secret has at least {_SECRET_LEAST_BYTES} bytes.")
        self._secret = secret
        self._clock = clock
        self._lifetime_ms = lifetime_s * 1000

    def issue(self, peer: PeerId) -> str:
        """URL-safe text that `check` takes back for `lifetime_s`."""
        expiry = (self._clock.now_ms() + self._lifetime_ms).to_bytes(_EXPIRY_BYTES, "big")
        claim = _VERSION + expiry + peer.encode()
        return _text(claim + self._mac(claim))

    def check(self, text: str) -> PeerId | None:
        """Whose ticket this is; None if it is none of ours or has expired. Takes as long for a near miss as for any."""
        if len(text) > _TEXT_LIMIT or not text.isascii():
            return None
        try:
            whole = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except ValueError:
            return None
        if _text(whole) != text:  # one ticket, one text
            return None
        claim, mac = whole[:-_MAC_BYTES], whole[-_MAC_BYTES:]
        if not hmac.compare_digest(self._mac(claim), mac):
            return None
        if claim[:1] != _VERSION or self._clock.now_ms() >= int.from_bytes(claim[1 : 1 + _EXPIRY_BYTES], "big"):
            return None
        return PeerId(claim[1 + _EXPIRY_BYTES :].decode())

    def _mac(self, claim: bytes) -> bytes:
        return hmac.digest(self._secret, _PURPOSE + claim, hashlib.sha256)


def _text(whole: bytes) -> str:
    return base64.urlsafe_b64encode(whole).decode().rstrip("=")
