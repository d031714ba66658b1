"""OCTO and OCTO-A: balances, transfers, and permits that save the transaction of an approval."""

from __future__ import annotations

from contracts.abis import abi_of
from contracts.chain import Chain
from contracts.contract import Call, Contract
from contracts.deployments import Deployment
from contracts.transactions import Permit, sign_permit
from market.identity import WalletSigner

PERMIT_S = 3600
_EIP712_NAMES = {"Octo": "OCTO", "OctoA": "OCTO-A"}


class Token:
    """`name` is the artefact's, "Octo" or "OctoA"."""

    def __init__(self, chain: Chain, deployment: Deployment, name: str) -> None:
        self.contract = Contract(chain, deployment.address(name), abi_of(name), name=name)
        self._name = _EIP712_NAMES[name]

    @property
    def address(self) -> bytes:
        return self.contract.address

    async def balance(self, owner: bytes) -> int:
        """In 10^-18."""
        balance: int = await self.contract.read("balanceOf", owner)
        return balance

    async def allowance(self, owner: bytes, spender: bytes) -> int:
        allowance: int = await self.contract.read("allowance", owner, spender)
        return allowance

    def approve(self, spender: bytes, amount: int) -> Call:
        return self.contract.call("approve", spender, amount)

    def transfer(self, to: bytes, amount: int) -> Call:
        return self.contract.call("transfer", to, amount)

    async def permit(self, owner: WalletSigner, *, spender: bytes, amount: int) -> Permit:
        """The owner's permit for one transaction, good for an hour from the chain's last block.

        An expired one would show as a missing allowance only: the contracts go on without it."""
        nonce = await self.contract.read("nonces", owner.address)
        head = await self.contract.chain.head()
        return sign_permit(
            token=self.address, token_name=self._name, chain_id=self.contract.chain.chain_id, spender=spender,
            amount=amount, nonce=nonce, deadline=head.timestamp + PERMIT_S, owner=owner,
        )  # fmt: skip
