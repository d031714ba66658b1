"""What can go wrong with a chain, in one shape for every node software; part of the tree in `market.errors`.

ChainAway       503  nobody answers, or too late: what was signed stays valid, settlement waits
ChainRefused    502  the node answered, and will not
Reverted        502  a contract said no; `name` and `arguments` are its own error
WrongChain      500  another chain, genesis or contract than the settings say
GasPurseEmpty   402  the wallet cannot pay for gas

An endpoint's URL may hold a key, so no message names more of it than the host.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from market.errors import Fault, InsufficientFunds, NodeMisconfigured, OctoError

_TEXT_LIMIT = 200


class ChainError(OctoError):
    code, http_status = "chain_error", 502
    fault: ClassVar[Fault] = "network"


class ChainAway(ChainError):
    code, http_status, retry = "chain_away", 503, True


class ChainRefused(ChainError):
    """`rpc_code` and `data` are the node's own; `said` is its sentence in lower case, shortened."""

    code = "chain_refused"

    def __init__(self, said: str, *, rpc_code: int = 0, data: bytes = b"", next_step: str = "") -> None:
        shown = said[:_TEXT_LIMIT]
        super().__init__(f"the chain's node refused: {shown}.", next_step=next_step)
        self.said = said.lower()
        self.rpc_code = rpc_code
        self.data = data

    @property
    def nonce_used(self) -> bool:
        return bool(re.search(r"nonce too low|nonce.*already|already.*nonce|old nonce", self.said))

    @property
    def known(self) -> bool:
        """The node has this very transaction."""
        return bool(re.search(r"already known|known transaction|already imported|already exists", self.said))

    @property
    def underpriced(self) -> bool:
        """Another transaction holds this nonce, or the fee is below what the node or the block takes."""
        return bool(re.search(r"underpriced|replacement|fee too low|less than block base fee|fee cap", self.said))

    @property
    def gas_purse_empty(self) -> bool:
        return bool(re.search(r"insufficient funds|insufficient balance|not enough funds|insufficientfunds", self.said))


class Reverted(ChainError):
    """`name` is the contract's error ("Stale"), or "" if it gave none that we know."""

    code = "transaction_reverted"

    def __init__(self, what: str, *, name: str = "", arguments: tuple[Any, ...] = (), next_step: str = "") -> None:
        shown = ", ".join(f"0x{a.hex()}" if isinstance(a, bytes) else str(a)[:_TEXT_LIMIT] for a in arguments)
        super().__init__(
            f"{what}: the contract refused{f' with {name}({shown})' if name else ''}.", next_step=next_step
        )
        self.name = name
        self.arguments = arguments


class WrongChain(NodeMisconfigured):
    code = "wrong_chain"


class GasPurseEmpty(InsufficientFunds):
    code = "gas_purse_empty"
