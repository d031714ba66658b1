"""What the owner of a node asks of its money and cannot have now; part of the tree in `market.errors`.

NoChain   409  this node settles on the local ledger: nothing here is staked, redeemed or closed on a chain
NotNow    409  the chain would refuse it as things stand; the message says until when, or what comes first
"""

from __future__ import annotations

from typing import ClassVar

from market.errors import Fault, OctoError


class NoChain(OctoError):
    code, http_status = "no_chain", 409
    fault: ClassVar[Fault] = "client"

    def __init__(self) -> None:
        super().__init__(
            "this node settles on the local ledger: there is no chain here.",
            next_step="Start it with --chain-url and --deployment.",
        )


class NotNow(OctoError):
    code, http_status = "not_now", 409
    fault: ClassVar[Fault] = "client"
