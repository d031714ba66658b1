"""The peer's ed25519 key: signs offers and bindings, and is the libp2p identity.

Knows the seed and nothing of where it is kept. The seed never leaves and never prints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import nacl.signing

from market.errors import NodeMisconfigured
from market.identity import PeerId, peer_of_public_key

if TYPE_CHECKING:
    from libp2p.crypto.keys import KeyPair

SEED_BYTES = 32


class PeerKey:
    """A `market.identity.PeerSigner` made from a 32-byte seed; raises NodeMisconfigured for another length."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise NodeMisconfigured(
                f"a peer key is {SEED_BYTES} bytes, not {len(seed)}.",
                next_step="Restore the key file from a back-up, or move it away to become a new peer.",
            )
        self._key = nacl.signing.SigningKey(seed)
        self.peer: PeerId = peer_of_public_key(bytes(self._key.verify_key))

    def sign(self, data: bytes) -> bytes:
        """64 bytes, ed25519 over `data` itself (RFC 8032)."""
        return bytes(self._key.sign(data).signature)

    def key_pair(self) -> KeyPair:
        """The same key as libp2p holds it: its peer id is `peer`."""
        from libp2p.crypto.ed25519 import create_new_key_pair  # 2 s and 80 MB: only for who opens a host

        return create_new_key_pair(bytes(self._key))

    def __repr__(self) -> str:
        return f"PeerKey({self.peer})"
