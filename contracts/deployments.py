"""Where our contracts lie on a chain: one JSON file per chain id, and the check that they are really there.

A chain id names nothing for sure: every devnet may have the same. So the file holds the first block's hash and
the hash of each contract's code, and nothing is paid before the chain has shown the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from eth_hash.auto import keccak
from pydantic import Field

from contracts.chain import Chain
from contracts.faults import WrongChain
from market.errors import NodeMisconfigured
from market.rails import chain_rail
from market.signing import address_text
from market.values import from_plain, value

CONTRACTS = ("Octo", "OctoA", "StakeRegistry", "PaymentChannels")
FILE_LIMIT_BYTES = 64 * 1024

_Hash = Annotated[str, Field(pattern=r"^0x[0-9a-f]{64}$")]
_Text = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{40}$")]


@value
class Deployed:
    """`block` is the one that holds its creation; `code` the keccak-256 of what lies there."""

    address: _Text
    block: Annotated[int, Field(ge=0, lt=2**53)]
    code: _Hash


@value
class Deployment:
    """All contracts of one network on one chain."""

    network: Annotated[str, Field(max_length=64)]
    chain_id: Annotated[int, Field(gt=0, lt=10**18)]
    genesis: _Hash
    contracts: dict[str, Deployed]

    def address(self, name: str) -> bytes:
        return bytes.fromhex(self.contracts[name].address[2:])

    @property
    def genesis_hash(self) -> bytes:
        return bytes.fromhex(self.genesis[2:])

    @property
    def first_block(self) -> int:
        return min(contract.block for contract in self.contracts.values())

    @property
    def rail(self) -> str:
        """The name of the rail that these channels are."""
        return chain_rail(self.chain_id, self.address("PaymentChannels"))


def deployment_to_json(deployment: Deployment) -> str:
    contracts = {
        name: {"address": one.address, "block": one.block, "code": one.code}
        for name, one in deployment.contracts.items()
    }
    plain = {
        "network": deployment.network, "chain_id": deployment.chain_id, "genesis": deployment.genesis,
        "contracts": contracts,
    }  # fmt: skip
    return json.dumps(plain, indent=1) + "\n"


def deployment_from_json(text: str | bytes) -> Deployment:
    """Raises NodeMisconfigured for a file that is none."""
    try:
        if len(text) > FILE_LIMIT_BYTES:
            raise ValueError("it is too long")
        plain: Any = json.loads(text)
        deployment = from_plain(Deployment, plain)
        missing = [name for name in CONTRACTS if name not in deployment.contracts]
        if missing:
            raise ValueError(f"{', '.join(missing)} is missing")
    except (ValueError, TypeError, RecursionError, NodeMisconfigured) as error:
        raise _misfit(str(error)) from None
    except Exception as error:  # noqa: BLE001 - EncodingInvalid, with the first bad field in words
        raise _misfit(str(error)) from None
    return deployment


def read_deployment(path: Path) -> Deployment:
    try:
        return deployment_from_json(path.read_bytes())
    except OSError as error:
        raise NodeMisconfigured(
            f"the deployments file {path} cannot be read ({error.strerror}).",
            next_step="Set chain.deployment, or make it with `octo-node contracts deploy`.",
        ) from None


async def check_deployment(chain: Chain, deployment: Deployment) -> None:
    """Raises WrongChain unless the chain is the file's, and each contract is there with the file's code."""
    chain_id, genesis = await chain.check()
    if (chain_id, genesis) != (deployment.chain_id, deployment.genesis_hash):
        raise WrongChain(
            f"the deployments file is for chain {deployment.chain_id} (first block {deployment.genesis[:10]}…), "
            f"{chain.host} serves chain {chain_id} (0x{genesis.hex()[:8]}…).",
            next_step="Set chain.url and chain.deployment so that they name one chain.",
        )
    for name, contract in deployment.contracts.items():
        code = await chain.code(deployment.address(name))
        if "0x" + keccak(code).hex() != contract.code:
            there = "nothing" if not code else "other code"
            raise WrongChain(
                f"{name} should be at {address_text(deployment.address(name))}, {there} is.",
                next_step="Is the deployments file of an earlier chain? Deploy again, or take the right file.",
            )


def _misfit(why: str) -> NodeMisconfigured:
    return NodeMisconfigured(
        f"the deployments file does not fit: {why[:300]}", next_step="Make it with `octo-node contracts deploy`."
    )
