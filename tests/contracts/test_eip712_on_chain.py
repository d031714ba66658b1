"""What Python signs, the contracts accept: the vectors, and whole stories on anvil with the committed artefacts.

Here web3 and eth-account encode and deploy, as a second opinion on our own chain client.
"""

import contextlib
import hashlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from web3 import Web3
from web3.contract import Contract
from web3.exceptions import ContractCustomError

from contracts.anvil import find_anvil
from market.identity import PeerId, peer_of_public_key
from market.rails import chain_rail
from market.receipt import Receipt, SignedReceipt, sign_receipt
from market.signing import Secp256k1Signer, TypedStruct, recover_address
from market.voucher import ChannelTerms, Voucher, check_voucher_signature, sign_voucher

ROOT = Path(__file__).resolve().parents[2]
VECTORS = json.loads((ROOT / "tests/vectors/chain.json").read_text())
GAS = json.loads((ROOT / "contracts/snapshots/gas.json").read_text())
NETWORK = "octo-test"
CHAIN_ID = 31337
OCTO = 10**18


def unhex(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def words(type_text: str, case: dict[str, Any]) -> list[bytes | int | bool]:
    """The members of a vector in the order of its type, as TypedStruct takes them."""
    found: list[bytes | int | bool] = []
    for member in type_text[:-1].split("(")[1].split(","):
        kind, name = member.split(" ")
        text = case[name]
        found.append(text if kind == "bool" else int(text) if kind.startswith("uint") else unhex(text))
    return found


def compact(signature: bytes) -> tuple[bytes, bytes]:
    """(r, vs) as the contracts take them (EIP-2098)."""
    s = int.from_bytes(signature[32:64], "big") | (signature[64] - 27) << 255
    return signature[:32], s.to_bytes(32, "big")


# ---- the vectors, which forge reads as well --------------------------------------------------------

CASES = [(kind, case) for kind in ("voucher", "receipt", "binding") for case in VECTORS[f"{kind}s"]]


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_vector_is_ours(kind: str, case: dict[str, Any]) -> None:
    text = VECTORS["types"][kind]
    digest = TypedStruct(text).digest(case["network"], int(case["chainId"]), *words(text, case))
    assert digest == unhex(case["digest"])
    assert recover_address(digest, unhex(case["signature"])) == unhex(case["signer"])
    assert compact(unhex(case["signature"])) == (unhex(case["r"]), unhex(case["vs"]))


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_vector_is_eth_accounts(kind: str, case: dict[str, Any]) -> None:
    name, members = VECTORS["types"][kind][:-1].split("(")
    fields = [dict(zip(("type", "name"), member.split(" "), strict=True)) for member in members.split(",")]
    message = {
        field["name"]: int(case[field["name"]]) if field["type"].startswith("uint") else case[field["name"]]
        for field in fields
    }
    salt = hashlib.sha256(b"octo/network/1" + case["network"].encode()).digest()
    domain = {"name": "octo", "version": "1", "chainId": int(case["chainId"]), "salt": salt}
    signable = encode_typed_data(domain, {name: fields}, message)
    assert Web3.keccak(b"\x19\x01" + signable.header + signable.body) == unhex(case["digest"])
    assert signable.header == unhex(case["separator"])


@pytest.mark.parametrize("case", VECTORS["vouchers"])
def test_channel_id_of_a_vector_is_ours(case: dict[str, Any]) -> None:
    terms = ChannelTerms(
        network=case["network"], rail=chain_rail(int(case["chainId"]), unhex(case["escrow"])),
        payer=unhex(case["payer"]), payee=unhex(case["payee"]), session_key=unhex(case["sessionKey"]),
        salt=unhex(case["salt"]),
    )  # fmt: skip
    assert terms.channel_id() == unhex(case["channelId"])
    voucher = Voucher(
        channel=terms.channel_id(), amount=int(case["cumulativeAmount"]), receipts_root=unhex(case["receiptsRoot"]),
        signature=unhex(case["signature"]),
    )  # fmt: skip
    check_voucher_signature(terms, voucher)


# ---- on anvil --------------------------------------------------------------------------------------


class Market:
    """All four contracts on an anvil of ours; `who` are accounts that anvil signs for."""

    def __init__(self, web3: Web3) -> None:
        self.web3 = web3
        self.deployer, self.payer, self.payee, self.staker, self.reporter = web3.eth.accounts[:5]
        self.octo = self.deploy("Octo")
        self.octo_a = self.deploy("OctoA")
        self.channels = self.deploy("PaymentChannels", self.octo.address, NETWORK, 86_400)
        self.registry = self.deploy("StakeRegistry", self.octo_a.address, NETWORK)
        self.send(self.octo.functions.transfer(self.payer, 10_000 * OCTO), self.deployer)
        self.send(self.octo.functions.transfer(self.payee, OCTO), self.deployer)
        self.send(self.octo_a.functions.transfer(self.staker, 10_000 * OCTO), self.deployer)
        self.send(self.octo.functions.approve(self.channels.address, 2**256 - 1), self.payer)
        self.send(self.octo_a.functions.approve(self.registry.address, 2**256 - 1), self.staker)
        self.rail = chain_rail(CHAIN_ID, unhex(self.channels.address))
        self.session = Secp256k1Signer(Account.create().key)

    def deploy(self, name: str, *arguments: Any) -> Any:
        artifact = json.loads((ROOT / f"contracts/artifacts/{name}.json").read_text())
        factory = self.web3.eth.contract(abi=artifact["abi"], bytecode=artifact["bytecode"])
        receipt = self.mined(factory.constructor(*arguments).transact({"from": self.deployer}))
        return self.web3.eth.contract(address=receipt["contractAddress"], abi=artifact["abi"])

    def send(self, call: Any, sender: str) -> int:
        """The gas that it took."""
        receipt = self.mined(call.transact({"from": sender}))
        assert receipt["status"] == 1
        return int(receipt["gasUsed"])

    def mined(self, transaction: Any) -> Any:
        return self.web3.eth.wait_for_transaction_receipt(transaction, timeout=30, poll_latency=0.01)

    def open(self, salt: bytes, deposit: int) -> tuple[ChannelTerms, int]:
        """A channel from payer to payee, and the gas that it took to open it."""
        terms = ChannelTerms(
            network=NETWORK, rail=self.rail, payer=unhex(self.payer), payee=unhex(self.payee),
            session_key=self.session.address, salt=salt,
        )  # fmt: skip
        key = Web3.to_checksum_address(self.session.address)
        return terms, self.send(self.channels.functions.open(self.payee, key, salt, deposit), self.payer)

    def on_chain(self, terms: ChannelTerms, voucher: Voucher) -> tuple[Any, ...]:
        key = Web3.to_checksum_address(terms.session_key)
        return self.payer, key, terms.salt, voucher.amount, voucher.receipts_root, *compact(voucher.signature)

    def receipt(self, signer: Secp256k1Signer, *, tokens: int, rail: str | None = None) -> SignedReceipt:
        receipt = Receipt(
            network=NETWORK, rail=rail or self.rail, provider="provider", client="client", binding="binding",
            channel=Web3.keccak(text="channel"), task=Web3.keccak(text="task"), seq=3, final=True, finish="stop",
            model="model", weights="weights", engine="engine", quote=bytes(32), prompt=bytes(32), sampling=bytes(32),
            tokens_in=57, tokens_out=tokens, chunks=4, chain_head=bytes(32), transcript_root=bytes(32), amount=10**15,
            started_ms=1, ended_ms=2,
        )  # fmt: skip
        return sign_receipt(receipt, signer)

    def bind(self, signer: Secp256k1Signer, peer: bytes) -> None:
        text = VECTORS["types"]["binding"]
        nonce = self.registry.functions.identityOf(self.staker).call()[1]
        digest = TypedStruct(text).digest(
            NETWORK, CHAIN_ID, unhex(self.registry.address), unhex(self.staker), signer.address, peer, nonce
        )
        key = Web3.to_checksum_address(signer.address)
        self.send(self.registry.functions.bind(key, peer, compact(signer.sign_digest(digest))), self.staker)


def in_solidity(signed: SignedReceipt) -> tuple[Any, ...]:
    r = signed.read()
    return (signed.digest(), r.channel, r.task, r.seq, r.final, r.tokens_in, r.tokens_out, r.amount,
            r.transcript_root, r.quote)  # fmt: skip


@contextlib.contextmanager
def open_anvil_here() -> Iterator[Web3]:
    program = find_anvil()
    assert program is not None, "run `make chain-tools` first"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(program), "--silent", "--host", "127.0.0.1", "--port", str(port), "--hardfork", "cancun"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        web3 = Web3(Web3.HTTPProvider(f"http://127.0.0.1:{port}"))
        until = time.monotonic() + 20
        while not web3.is_connected():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        yield web3
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def market() -> Iterator[Market]:
    with open_anvil_here() as web3:
        yield Market(web3)


def test_code_on_chain_is_the_artefacts_but_for_its_immutables(market: Market) -> None:
    for name, contract in (("PaymentChannels", market.channels), ("StakeRegistry", market.registry)):
        artifact = json.loads((ROOT / f"contracts/artifacts/{name}.json").read_text())
        shipped, there = bytearray(unhex(artifact["deployedBytecode"])), market.web3.eth.get_code(contract.address)
        assert artifact["immutables"]
        for hole in artifact["immutables"]:
            at, end = hole["start"], hole["start"] + hole["length"]
            assert not any(shipped[at:end])
            shipped[at:end] = there[at:end]
        assert bytes(shipped) == bytes(there)


def test_supply_is_the_deployers(market: Market) -> None:
    for token in (market.octo, market.octo_a):
        assert token.functions.totalSupply().call() == 10**28
        assert token.functions.decimals().call() == 18


def test_channel_opened_on_chain_has_the_id_that_python_gives_it(market: Market) -> None:
    terms, _ = market.open(Web3.keccak(text="id"), 5 * OCTO)
    assert market.channels.functions.channel(terms.channel_id()).call() == (5 * OCTO, 0, 0)
    (opened,) = market.channels.events.Opened.get_logs(argument_filters={"channelId": terms.channel_id()})
    assert (opened["args"]["payer"], opened["args"]["payee"]) == (market.payer, market.payee)
    assert (unhex(opened["args"]["sessionKey"]), opened["args"]["salt"]) == (terms.session_key, terms.salt)


def test_voucher_that_python_signed_is_paid(market: Market) -> None:
    terms, _ = market.open(Web3.keccak(text="paid"), 100 * OCTO)
    before = market.octo.functions.balanceOf(market.payee).call()
    voucher = sign_voucher(terms, 42 * OCTO, Web3.keccak(text="root"), market.session)
    market.send(market.channels.functions.redeem(market.payee, market.on_chain(terms, voucher)), market.reporter)
    assert market.octo.functions.balanceOf(market.payee).call() == before + 42 * OCTO


def refused(contract: Contract, call: Any, error: str) -> None:
    with pytest.raises(ContractCustomError) as failed:
        call.call()
    selector = Web3.keccak(text=next(
        f"{item['name']}({','.join(argument['type'] for argument in item['inputs'])})"
        for item in contract.abi if item["type"] == "error" and item["name"] == error
    ))[:4]  # fmt: skip
    assert unhex(str(failed.value.data))[:4] == selector


@pytest.mark.parametrize("rail", ["ledger/1", "another chain", "another escrow"])
def test_voucher_signed_for_another_rail_is_refused(market: Market, rail: str) -> None:
    terms, _ = market.open(Web3.keccak(text=rail), OCTO)
    escrow = unhex(market.channels.address)
    names = {"another chain": chain_rail(CHAIN_ID + 1, escrow), "another escrow": chain_rail(CHAIN_ID, bytes(20))}
    foreign = ChannelTerms(
        network=NETWORK, rail=names.get(rail, rail), payer=terms.payer, payee=terms.payee,
        session_key=terms.session_key, salt=terms.salt,
    )  # fmt: skip
    voucher = sign_voucher(foreign, OCTO, bytes(32), market.session)
    call = market.channels.functions.redeem(market.payee, market.on_chain(terms, voucher))
    refused(market.channels, call, "BadSignature")


def test_receipts_that_python_signed_prove_equivocation(market: Market) -> None:
    signer = Secp256k1Signer(Account.create().key)
    peer: PeerId = peer_of_public_key(Web3.keccak(text="peer"))
    assert peer.startswith("12D3KooW")
    market.send(market.registry.functions.stake(1, 1_000 * OCTO), market.staker)
    market.bind(signer, Web3.keccak(text="peer"))
    assert market.registry.functions.isActive(market.staker, 1).call()

    one, other = market.receipt(signer, tokens=128), market.receipt(signer, tokens=129)
    assert market.registry.functions.receiptDigest(in_solidity(one)).call() == recovered_digest(one, signer)
    proof = (in_solidity(one), compact(one.signature), in_solidity(other), compact(other.signature))
    market.send(market.registry.functions.slashEquivocation(*proof), market.reporter)
    assert market.registry.functions.stakeOf(market.staker).call()[0] == 500 * OCTO
    assert market.octo_a.functions.balanceOf(market.reporter).call() == 50 * OCTO
    assert market.octo_a.functions.totalSupply().call() == 10**28 - 450 * OCTO
    assert not market.registry.functions.isActive(market.staker, 1).call()


def test_receipts_of_the_local_ledger_prove_nothing_on_chain(market: Market) -> None:
    signer = Secp256k1Signer(Account.create().key)
    market.bind(signer, Web3.keccak(text="peer"))
    one, other = (market.receipt(signer, tokens=tokens, rail="ledger/1") for tokens in (1, 2))
    proof = (in_solidity(one), compact(one.signature), in_solidity(other), compact(other.signature))
    refused(market.registry, market.registry.functions.slashEquivocation(*proof), "DifferentSigners")


def recovered_digest(signed: SignedReceipt, signer: Secp256k1Signer) -> bytes:
    """The digest that the signature is over, by way of Python's own hash; asserts that it is."""
    text = VECTORS["types"]["receipt"]
    digest = TypedStruct(text).digest(NETWORK, CHAIN_ID, *in_solidity(signed))
    assert recover_address(digest, signed.signature) == signer.address
    return digest


def test_gas_on_anvil_is_what_forge_measured(market: Market) -> None:
    """forge measures each call as a transaction; here they are transactions. Salts and keys differ in zero bytes."""
    terms, opening = market.open(Web3.keccak(text="gas"), 100 * OCTO)
    voucher = sign_voucher(terms, 1234567890123456789, Web3.keccak(text="root"), market.session)
    redeeming = market.send(
        market.channels.functions.redeem(market.payee, market.on_chain(terms, voucher)), market.payee
    )
    assert opening == pytest.approx(GAS["channel: open"], rel=0.002)
    assert redeeming == pytest.approx(GAS["channel: redeem"], rel=0.002)
