"""The one way in to py-evm: everything that we use of it, imported here and nowhere else.

It imports py_ecc, which raises Python's recursion limit to 100,000 for the whole process; then 100 kB of "["
handed to json.loads overflow the stack (measured: SIGSEGV). So the limit is put back when the import is done.
(web3 and eth-account do the same; we need neither: `contracts.chain` speaks JSON-RPC by itself.)

py-evm's types are loose: to the rest of us its things are Any, under the names that say what they are.
"""

from __future__ import annotations

import sys
from typing import Any

_limit = sys.getrecursionlimit()
try:
    from eth.chains.base import MiningChain
    from eth.consensus.applier import ConsensusApplier
    from eth.consensus.noproof import NoProofConsensus
    from eth.db.atomic import AtomicDB
    from eth.exceptions import HeaderNotFound, TransactionNotFound
    from eth.vm.forks.cancun import CancunVM
    from eth.vm.spoof import SpoofTransaction
    from eth_utils.exceptions import ValidationError
    from rlp.exceptions import RLPException  # type: ignore[import-untyped]
finally:
    sys.setrecursionlimit(_limit)

__all__ = [
    "AtomicDB", "Block", "Computation", "Header", "HeaderNotFound", "RLPException", "SpoofTransaction", "Transaction",
    "TransactionNotFound", "ValidationError", "chain_kind",
]  # fmt: skip

Block = Any
Computation = Any
Header = Any
Transaction = Any


def chain_kind(chain_id: int, *, gas_limit: int) -> Any:
    """A class of chains with mainnet's rules as of Cancun (what our contracts are compiled for), and no proof of
    anything: whoever holds the file makes the blocks."""
    rules: Any = ConsensusApplier(NoProofConsensus).amend_vm_configuration(((0, CancunVM),))

    class DevnetChain(MiningChain):
        vm_configuration = rules

        def create_header_from_parent(self, parent_header: Header, **params: Any) -> Header:
            return super().create_header_from_parent(parent_header, **{**params, "gas_limit": gas_limit})

    DevnetChain.chain_id = chain_id
    return DevnetChain
