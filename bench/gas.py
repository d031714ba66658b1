"""What our calls cost on a chain, in gas of real transactions: beside a plain ERC-20 transfer, and what 1,000 tasks
cost beside x402's `exact`, all on one embedded chain in one run.

The rival token is OpenZeppelin's ERC-20 with EIP-3009 (`bench/rival/Exact.sol`), built with our contracts' compiler and
settings: its `transfer` is the plain transfer; its `transferWithAuthorization`, sent by a facilitator, is what x402's
scheme `exact` settles one payment with. x402's own facilitator is not run: gas is the token's doing.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_account import Account

from bench.rows import Row, compared
from contracts.abi import Abi
from contracts.chain import Chain, open_chain
from contracts.channels import Channels
from contracts.contract import Call, Contract
from contracts.deployments import Deployment
from contracts.devchain import open_devchain
from contracts.faucet import ask_faucet
from contracts.sender import Sender, SendTerms, open_sender
from contracts.staking import Staking, Tier
from contracts.tokens import Token
from market.identity import peer_of_public_key
from market.money import OCTO
from market.receipt import Receipt, sign_receipt
from market.signing import Secp256k1Signer
from market.voucher import ChannelTerms, Voucher, sign_voucher

NETWORK = "octo-bench"
TASKS = 1_000
BATCH = 100
RUNS = 5
TRANSFER = "a plain ERC-20 transfer (OpenZeppelin)"
EXACT = "x402 exact: EIP-3009 transferWithAuthorization"
_CONTRACTS = Path(__file__).resolve().parents[1] / "contracts"
_QUICK = SendTerms(poll_s=0.02)
_ROOT = bytes(range(32))


@dataclass
class Bench:
    """A chain of our own, and three wallets: who pays, who is paid, and who carries x402's payments to the chain."""

    chain: Chain
    deployment: Deployment
    payer: Sender
    payee: Sender
    facilitator: Sender
    keys: dict[str, Secp256k1Signer]
    payer_secret: bytes

    @property
    def channels(self) -> Channels:
        return Channels(self.chain, self.deployment)

    def terms(self) -> ChannelTerms:
        return ChannelTerms(
            network=NETWORK, rail=self.deployment.rail, payer=self.payer.address, payee=self.payee.address,
            session_key=self.keys["session"].address, salt=secrets.token_bytes(32),
        )  # fmt: skip

    def voucher(self, terms: ChannelTerms, amount: int) -> Voucher:
        return sign_voucher(terms, amount, _ROOT, self.keys["session"])


async def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            bench = await _open(Path(folder), stack)
            rival = await _rival(bench)
            transfer = await _transfers(bench, rival)
            exact = await _exacts(bench, rival)
            opened, redeemed, whole = await _channel(bench)
            batched = await _batch(bench)
            slashed = await _slash(bench)

    def row(name: str, gas: Sequence[float], goal: float) -> Row:
        beside = compared(name, "gas", gas, transfer[: len(gas)], TRANSFER)
        return beside.against(f"<= {goal:,.0f} gas", met=beside.ours <= goal)

    alone = [gas / TASKS for gas in redeemed]
    lives = [gas / TASKS for gas in whole]
    per_task = compared("gas_per_task_of_1000", "gas", alone, transfer, f"{TRANSFER}, per task")
    return [
        row("gas_open", opened, 70_000),
        row("gas_redeem", redeemed, 56_000),
        row("gas_redeem_in_a_batch_of_100", batched, 17_500),
        row("gas_slash_for_equivocation", slashed, 125_000),
        per_task.against("<= 60 gas", met=per_task.ours <= 60),
        compared("gas_per_task_of_1000_x402", "gas", alone, exact, f"{EXACT}, per task"),
        compared("gas_per_task_with_open_and_close", "gas", lives, exact, f"{EXACT}, per task"),
    ]


async def _open(folder: Path, stack: AsyncExitStack) -> Bench:
    devchain = await stack.enter_async_context(open_devchain(folder, network=NETWORK, controls=True))
    chain = await stack.enter_async_context(open_chain(devchain.url))
    payer_secret = secrets.token_bytes(32)
    keys = {name: Secp256k1Signer(secrets.token_bytes(32)) for name in ("payee", "facilitator", "session", "receipt")}
    keys["payer"] = Secp256k1Signer(payer_secret)
    senders = {}
    for name in ("payer", "payee", "facilitator"):
        await ask_faucet(devchain.url, keys[name].address)
        senders[name] = await stack.enter_async_context(open_sender(chain, keys[name], _QUICK))
    bench = Bench(chain=chain, deployment=devchain.deployment, keys=keys, payer_secret=payer_secret, **senders)
    octo = Token(chain, bench.deployment, "Octo")
    await bench.payer.send(octo.approve(bench.channels.contract.address, 2**256 - 1))
    return bench


# ---- the rivals ------------------------------------------------------------------------------------------------------


def _compiled() -> tuple[Abi, bytes]:
    """bench/rival/Exact.sol with the compiler and settings of our own contracts, from contracts/node_modules."""
    sources: dict[str, dict[str, str]] = {}

    def load(name: str, path: Path) -> None:
        if name in sources:
            return
        text = path.read_text()
        sources[name] = {"content": text}
        for line in text.splitlines():
            if line.startswith("import"):
                target = line.split('"')[1]
                found = target if target.startswith("@") else str((Path("/") / name).parent / target)
                whole = str(Path(found).resolve()).lstrip("/") if not target.startswith("@") else target
                load(whole, _CONTRACTS / "node_modules" / whole)

    load("Exact.sol", Path(__file__).parent / "rival" / "Exact.sol")
    settings = json.loads((_CONTRACTS / "settings.json").read_text())
    settings["outputSelection"] = {"Exact.sol": {"Exact": ["abi", "evm.bytecode.object"]}}
    job = json.dumps({"language": "Solidity", "sources": sources, "settings": settings})
    script = "process.stdout.write(require('solc').compile(require('fs').readFileSync(0, 'utf8')))"
    node = _CONTRACTS.parent / ".cache" / "node" / "bin" / "node"
    ran = subprocess.run(
        [str(node), "-e", script], cwd=_CONTRACTS, input=job, capture_output=True, text=True, check=True
    )  # fmt: skip
    output: dict[str, Any] = json.loads(ran.stdout)
    if any(message["severity"] == "error" for message in output.get("errors", ())):
        raise RuntimeError(output["errors"])
    made = output["contracts"]["Exact.sol"]["Exact"]
    return Abi(made["abi"]), bytes.fromhex(made["evm"]["bytecode"]["object"])


async def _rival(bench: Bench) -> Contract:
    abi, code = await asyncio.to_thread(_compiled)
    call = Call(to=None, data=code + abi.construct(bench.payer.address), what="creation of the rival", abi=abi)
    receipt = await bench.payer.send(call)
    assert receipt.contract is not None
    rival = Contract(bench.chain, receipt.contract, abi, name="Exact")
    await bench.payer.send(rival.call("transfer", bench.payee.address, 1))  # a first balance costs more: not counted
    return rival


async def _transfers(bench: Bench, rival: Contract) -> list[float]:
    return [
        float((await bench.payer.send(rival.call("transfer", bench.payee.address, OCTO))).gas_used)
        for _ in range(RUNS)
    ]  # fmt: skip


async def _exacts(bench: Bench, rival: Contract) -> list[float]:
    gas = []
    for _ in range(RUNS):
        message = {
            "from": bench.payer.address, "to": bench.payee.address, "value": OCTO, "validAfter": 0,
            "validBefore": 2**40, "nonce": secrets.token_bytes(32),
        }  # fmt: skip
        domain = {
            "name": "Exact", "version": "1", "chainId": bench.chain.chain_id, "verifyingContract": rival.address,
        }  # fmt: skip
        kinds = ("address", "address", "uint256", "uint256", "uint256", "bytes32")
        fields = [{"name": name, "type": kind} for name, kind in zip(message, kinds, strict=True)]
        signed = Account.from_key(bench.payer_secret).sign_typed_data(
            domain, {"TransferWithAuthorization": fields}, message
        )  # fmt: skip
        r, s = signed.r.to_bytes(32, "big"), signed.s.to_bytes(32, "big")
        call = rival.call("transferWithAuthorization", *message.values(), signed.v, r, s)
        gas.append(float((await bench.facilitator.send(call)).gas_used))
    return gas


# ---- ours ------------------------------------------------------------------------------------------------------------


async def _channel(bench: Bench) -> tuple[list[float], list[float], list[float]]:
    """Gas to open, to redeem the one voucher that TASKS tasks came to, and of the channel's whole life."""
    await bench.payer.send(bench.channels.open(bench.terms(), OCTO))  # an escrow holds others' deposits as a rule
    opened, redeemed, whole = [], [], []
    for _ in range(RUNS):
        terms = bench.terms()
        opening = await bench.payer.send(bench.channels.open(terms, OCTO))
        redeeming = await bench.payee.send(bench.channels.redeem(terms, bench.voucher(terms, TASKS * 10**12)))
        closing = await bench.payee.send(bench.channels.close(terms))
        opened.append(float(opening.gas_used))
        redeemed.append(float(redeeming.gas_used))
        whole.append(float(opening.gas_used + redeeming.gas_used + closing.gas_used))
    return opened, redeemed, whole


async def _batch(bench: Bench) -> list[float]:
    terms = [bench.terms() for _ in range(BATCH)]
    await asyncio.gather(*(bench.payer.send(bench.channels.open(one, OCTO)) for one in terms))
    gas = []
    for amount in range(1, RUNS + 1):
        vouchers = [(one, bench.voucher(one, amount * 10**15)) for one in terms]
        receipt = await bench.payee.send(bench.channels.redeem_batch(bench.payee.address, vouchers))
        gas.append(receipt.gas_used / BATCH)
    return gas


async def _slash(bench: Bench) -> list[float]:
    """Two receipts by one key for one step, brought by someone whose first OCTO-A this brings: that costs the most."""
    staking, key = Staking(bench.chain, bench.deployment), bench.keys["receipt"]
    octo_a = Token(bench.chain, bench.deployment, "OctoA")
    minimum = await staking.minimum_of(Tier.CONSUMER)
    permit = await octo_a.permit(bench.keys["payee"], spender=staking.contract.address, amount=minimum)
    await bench.payee.send(staking.stake(Tier.CONSUMER, minimum, permit))
    peer = peer_of_public_key(secrets.token_bytes(32))
    await bench.payee.send(staking.bind(staker=bench.payee.address, nonce=0, receipt_key=key, peer=peer))
    first, second = (sign_receipt(_receipt(bench.deployment.rail, amount), key) for amount in (3, 4))
    reporter = Secp256k1Signer(secrets.token_bytes(32))
    await bench.payer.send(Call(to=reporter.address, data=b"", amount=10**17, what="gas for a reporter", abi=Abi(())))
    async with open_sender(bench.chain, reporter, _QUICK) as sender:
        return [float((await sender.send(staking.slash(first, second))).gas_used)]


def _receipt(rail: str, amount: int) -> Receipt:
    return Receipt(
        network=NETWORK, rail=rail, provider="p", client="c", binding="b", channel=_ROOT, task=_ROOT, seq=0,
        final=True, finish="stop", model="m", weights="w", engine="e", quote=_ROOT, prompt=_ROOT, sampling=_ROOT,
        tokens_in=1, tokens_out=2, chunks=1, chain_head=_ROOT, transcript_root=_ROOT, amount=amount, started_ms=1,
        ended_ms=2,
    )  # fmt: skip


if __name__ == "__main__":
    print(*asyncio.run(rows()), sep="\n")
