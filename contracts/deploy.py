"""Puts all our contracts on a chain, in four transactions, and says where they are.

Nothing of it can be changed afterwards: no contract has an owner. The deployer gets all OCTO and OCTO-A.
"""

from __future__ import annotations

from eth_hash.auto import keccak

from contracts.abis import abi_of, bytecode_of
from contracts.chain import Chain
from contracts.contract import Call
from contracts.deployments import Deployed, Deployment
from contracts.faults import ChainError
from contracts.sender import Sender
from market.signing import address_text

DAY_S = 24 * 3600
CHALLENGE_S = DAY_S


async def deploy(chain: Chain, sender: Sender, *, network: str, challenge_s: int = CHALLENGE_S) -> Deployment:
    """Deploy for the network of this name; `challenge_s` is how long a payee has to answer a request to close.

    Raises GasPurseEmpty, Reverted or ChainAway; what was deployed until then stays, unused."""
    chain_id, genesis = await chain.check()
    octo = await _create(chain, sender, "Octo")
    octo_a = await _create(chain, sender, "OctoA")
    registry = await _create(chain, sender, "StakeRegistry", _address(octo_a), network)
    channels = await _create(chain, sender, "PaymentChannels", _address(octo), network, challenge_s)
    return Deployment(
        network=network,
        chain_id=chain_id,
        genesis="0x" + genesis.hex(),
        contracts={"Octo": octo, "OctoA": octo_a, "StakeRegistry": registry, "PaymentChannels": channels},
    )


async def _create(chain: Chain, sender: Sender, name: str, *arguments: object) -> Deployed:
    abi = abi_of(name)
    data = bytecode_of(name) + abi.construct(*arguments)
    receipt = await sender.send(Call(to=None, data=data, what=f"creation of {name}", abi=abi))
    if receipt.contract is None:
        raise ChainError(f"the creation of {name} left no contract.")
    code = await chain.code(receipt.contract)
    return Deployed(address=address_text(receipt.contract), block=receipt.block, code="0x" + keccak(code).hex())


def _address(deployed: Deployed) -> bytes:
    return bytes.fromhex(deployed.address[2:])
