"""The names of payment rails, and what signatures take from them.

ledger/1                          the local ledger: chain id 0
eip155:31337:0x52908400098527…    channels held by a contract on an EVM chain (CAIP-2 chain, escrow's address)
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

LEDGER = "ledger/1"
_EIP155 = re.compile(r"eip155:([1-9][0-9]{0,17}):0x([0-9a-f]{40})")


def chain_rail(chain_id: int, escrow: bytes) -> str:
    """The name of the rail whose channels the contract at `escrow` (20 bytes) holds."""
    return f"eip155:{chain_id}:0x{escrow.hex()}"


@lru_cache(maxsize=256)
def parse_rail(name: str) -> tuple[int, bytes]:
    """(chain id, escrow address). Off chain the id is 0 and the name's hash stands in for the escrow, so that
    a channel of one rail is never a channel of another."""
    found = _EIP155.fullmatch(name)
    if found is None:
        return 0, hashlib.sha256(b"octo/rail/1" + name.encode()).digest()[:20]
    return int(found[1]), bytes.fromhex(found[2])
