"""The secret that this node's cache keys are made with: 32 bytes in its data folder, its own and nobody else's.

Under a new one, nothing that providers keep of our answers is found again, whether they throw it away or not.
"""

from __future__ import annotations

import secrets

from market.errors import NodeMisconfigured
from node.folder import Folder, write_whole

_BYTES = 32


class CacheSalt:
    """A salt that is lost costs a few misses; so one that cannot be read is made anew."""

    def __init__(self, folder: Folder) -> None:
        self._path = folder.path("cache", "salt")
        try:
            self._salt = self._path.read_bytes()
        except FileNotFoundError:
            self._salt = b""
        except OSError as error:
            raise NodeMisconfigured(
                f"{self._path} cannot be read ({error.strerror}).", next_step="Check its owner and mode, or remove it."
            ) from None
        if len(self._salt) != _BYTES:
            self.renew()

    def current(self) -> bytes:
        return self._salt

    def renew(self) -> None:
        """Raises DiskFull or NodeMisconfigured if it cannot be written; the old one is used until then."""
        salt = secrets.token_bytes(_BYTES)
        write_whole(self._path, salt)
        self._salt = salt
