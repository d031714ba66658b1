"""A kept vector and its seal: under which name it lies in the file, and with which key.

Both come from the node's secret and from the very text, so that the file alone says nothing, and the file with the
secret only confirms a text that one guesses. That matters: an embedding gives much of its text away (Morris et al.,
"Text Embeddings Reveal (Almost) As Much As Text", 2023). With the secret renewed, nothing older can be read again.
Knows no file and no network.
"""

from __future__ import annotations

import hmac
from array import array
from typing import Annotated

import numpy as np
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from pydantic import Field

from market.errors import EncodingInvalid
from market.task import Privacy
from market.values import decode, encode, value
from market.work import EmbedInput

WIDTH_LIMIT = 65_536
_PLAIN_LIMIT_BYTES = 4 * WIDTH_LIMIT + 2048


@value
class About:
    """What settles a text's vector besides the text. `privacy`: what came from a provider that nobody vetted is not
    told to who asks for a vetted one."""

    model: str
    dimensions: int
    privacy: Privacy


@value
class KeptVector:
    """Little-endian float32, and what proves it: the receipt of the answer that it was the `piece`-th of, from an
    engine of this class."""

    vector: bytes
    receipt: Annotated[str, Field(max_length=128)]
    piece: Annotated[int, Field(ge=0, lt=2**31)]
    engine: Annotated[str, Field(max_length=256)]


class Sealer:
    """Of one user's vectors about one model."""

    def __init__(self, secret: bytes, whose: str, about: About) -> None:
        self._key = hmac.digest(secret, b"octo/vector/1" + whose.encode() + b"\0" + encode(About, about), "sha256")
        self._dimensions = about.dimensions

    def seal(self, given: EmbedInput) -> Seal:
        said = b"text" + given.encode() if isinstance(given, str) else b"ids " + array("I", given).tobytes()
        return Seal(hmac.digest(self._key, said, "sha512"), self._dimensions)


class Seal:
    """Of one input. `place` is its name in the file."""

    def __init__(self, made: bytes, dimensions: int) -> None:
        self.place = made[:32]
        self._box = SecretBox(made[32:])
        self._dimensions = dimensions

    def close(self, kept: KeptVector) -> bytes:
        return bytes(self._box.encrypt(encode(KeptVector, kept)))  # a random nonce of 24 bytes stands in front

    def open(self, sealed: bytes) -> KeptVector | None:
        """None for what was not sealed with this secret for this very input, or is no vector of it."""
        try:
            kept = decode(KeptVector, self._box.decrypt(sealed), limit_bytes=_PLAIN_LIMIT_BYTES)
        except (CryptoError, EncodingInvalid, ValueError):
            return None
        return kept if is_vector(kept.vector, self._dimensions) else None


def user_mark(secret: bytes, whose: str) -> bytes:
    """What stands beside a user's vectors, so that they can be found to be forgotten."""
    return hmac.digest(secret, b"octo/vector/user/1" + whose.encode(), "sha256")[:16]


def is_vector(data: bytes, dimensions: int = 0) -> bool:
    """Whether it is as long as was asked for (0: at all), and all of it numbers."""
    width, rest = divmod(len(data), 4)
    if rest or not 1 <= width <= WIDTH_LIMIT or (dimensions and width != dimensions):
        return False
    return bool(np.isfinite(np.frombuffer(data, "<f4")).all())
