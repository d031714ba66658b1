"""The embedded chain: it survives kill -9, keeps time, opens to nobody but local programs, and speaks as others do."""

import asyncio
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from worlds import NETWORK, QUICK, devchain_world

from contracts.abi import Abi
from contracts.chain import open_chain
from contracts.contract import Call
from contracts.deployments import check_deployment
from contracts.devchain import open_devchain
from contracts.evm import Evm, EvmRefused
from contracts.evm_store import EvmStore
from contracts.faucet import FaucetTerms, ask_faucet
from contracts.faults import ChainAway, ChainRefused
from contracts.rpc import open_rpc
from contracts.sender import open_sender
from contracts.tokens import Token
from contracts.transactions import Fees, Transaction, sign_transaction
from market.errors import NodeMisconfigured
from market.money import OCTO
from market.signing import Secp256k1Signer, address_text

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
async def devchain(tmp_path_factory):
    async with devchain_world(tmp_path_factory.mktemp("devchain")) as world:
        yield world


async def whole_chain(url: str) -> list:
    """Every block with its transactions, and every log: two equal ones are one chain."""
    async with open_rpc(url) as rpc:
        head = int(await rpc.call("eth_blockNumber"), 16)
        blocks = await rpc.batch([("eth_getBlockByNumber", [hex(n), True]) for n in range(head + 1)])
        return [blocks, await rpc.call("eth_getLogs", {"fromBlock": "0x0", "toBlock": hex(head)})]


async def test_kill_9_loses_nothing_that_was_answered(tmp_path):
    wallet, to = Secp256k1Signer(secrets.token_bytes(32)), secrets.token_bytes(20)
    sent = 0
    async with open_devchain(tmp_path, network=NETWORK, controls=True) as first:
        await ask_faucet(first.url, wallet.address)
        async with open_chain(first.url) as chain, open_sender(chain, wallet, QUICK) as sender:
            coin = Call(to=to, data=b"", amount=1, what="a coin", abi=Abi(()))

            async def send() -> None:
                nonlocal sent
                while True:
                    try:
                        await sender.send(coin)
                        sent += 1
                    except ChainAway:  # refused before anything was sent; what was sent waits by itself
                        await asyncio.sleep(0.05)

            sending = asyncio.create_task(send())
            await asyncio.sleep(0.5)
            before = await whole_chain(first.url)
            os.kill(first.pid, signal.SIGKILL)
            sent_before = sent
            async with open_devchain(tmp_path, network=NETWORK, controls=True) as second:
                assert second.url == first.url, "wallets find it where it was"
                assert second.deployment == first.deployment
                after = await whole_chain(second.url)
                assert after[0][: len(before[0])] == before[0]
                assert after[1][: len(before[1])] == before[1]
                await check_deployment(chain, second.deployment)
                async with asyncio.timeout(60):
                    while sent < sent_before + 5:
                        await asyncio.sleep(0.02)
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                assert await chain.balance(to) in (sent, sent + 1)


async def test_a_transaction_that_was_accepted_is_mined_after_the_kill(tmp_path):
    wallet, to = Secp256k1Signer(secrets.token_bytes(32)), secrets.token_bytes(20)
    async with open_devchain(tmp_path, network=NETWORK) as first:
        await ask_faucet(first.url, wallet.address)
        async with open_chain(first.url) as chain, open_sender(chain, wallet, QUICK) as sender:
            coin = Call(to=to, data=b"", amount=1, what="a coin", abi=Abi(()))
            sending = [asyncio.create_task(sender.send(coin)) for _ in range(5)]
            while await chain.nonce(wallet.address, pending=True) < 5:
                await asyncio.sleep(0.005)
            os.kill(first.pid, signal.SIGKILL)
            for task in sending:
                task.cancel()
    async with open_devchain(tmp_path, network=NETWORK) as second, open_chain(second.url) as chain:
        async with asyncio.timeout(60):
            while await chain.balance(to) < 5:
                await asyncio.sleep(0.05)


async def test_time_goes_on_with_ours_and_never_back(tmp_path):
    async with open_devchain(tmp_path, network=NETWORK) as devchain, open_chain(devchain.url) as chain:
        wallets = [Secp256k1Signer(secrets.token_bytes(32)).address for _ in range(3)]
        for wallet in wallets:
            await ask_faucet(devchain.url, wallet)
        head = await chain.head()
        assert head.timestamp <= time.time() + 1, "a burst does not run ahead of the clock"
        blocks = [await chain.block(number) for number in range(head.number + 1)]
        assert all(a.timestamp < b.timestamp for a, b in itertools.pairwise(blocks))
        async with asyncio.timeout(60):  # blocks come without transactions too
            while (await chain.head()).number < head.number + 2:
                await asyncio.sleep(0.1)


async def test_one_folder_holds_one_chain(tmp_path):
    async with open_devchain(tmp_path, network=NETWORK):
        with pytest.raises(NodeMisconfigured, match="another process runs the chain"):
            async with open_devchain(tmp_path, network=NETWORK):
                pass
    for other in ({"network": "other"}, {"network": NETWORK, "chain_id": 5}):
        with pytest.raises(NodeMisconfigured, match=r"did not start: .*Use another folder"):
            async with open_devchain(tmp_path, **other):
                pass


async def test_two_chains_share_no_key_and_no_contract(tmp_path):
    async with (
        open_devchain(tmp_path / "a", network=NETWORK) as one,
        open_devchain(tmp_path / "b", network=NETWORK) as two,
    ):
        assert one.deployment.genesis != two.deployment.genesis
        assert one.deployment.rail != two.deployment.rail


async def test_the_chain_ends_with_the_process_that_started_it(tmp_path):
    code = (
        "import asyncio, os, sys\nfrom pathlib import Path\nfrom contracts.devchain import open_devchain\n"
        "async def main():\n"
        f"    async with open_devchain(Path({str(tmp_path)!r}), network='{NETWORK}') as d:\n"
        "        print(d.pid, d.url, flush=True); await asyncio.sleep(60)\nasyncio.run(main())"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    pid, url = (await asyncio.wait_for(parent.stdout.readline(), 30)).split()
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(60):
        while Path(f"/proc/{int(pid)}").exists() and "Z" not in Path(f"/proc/{int(pid)}/stat").read_text().split()[2]:
            await asyncio.sleep(0.05)
    async with open_rpc(url.decode()) as rpc:
        with pytest.raises(ChainAway):
            await rpc.call("eth_chainId")


class FailingStore(EvmStore):
    fails = False

    def add_logs(self, logs) -> None:
        if self.fails:
            raise OSError("no space left on device")
        super().add_logs(logs)


def test_a_block_is_whole_or_not_there(tmp_path):
    wallet, store = Secp256k1Signer(secrets.token_bytes(32)), FailingStore(tmp_path / "chain.db")
    evm = Evm(store, chain_id=7, rich=wallet.address, now=1_000)
    to = secrets.token_bytes(20)
    raw = sign_transaction(
        Transaction(chain_id=7, nonce=0, fees=Fees(max_fee=10**10, tip=1), gas=21_000, to=to, amount=5), wallet
    ).raw
    evm.accept(raw)
    store.fails = True
    with pytest.raises(OSError, match="no space"):
        evm.mine(1_001)
    assert (evm.head.block_number, evm.has_waiting) == (0, True)
    store.fails = False
    evm.mine(1_002)
    again = Evm(store, chain_id=7, rich=wallet.address, now=5)
    assert again.head.hash == evm.head.hash
    assert (again.head.block_number, again.balance(to, at=again.head), again.has_waiting) == (1, 5, False)
    store.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nonce": 0}, "already known"), ({"chain_id": 8, "nonce": 1}, "invalid chain id"),
        ({"gas": 20_999, "nonce": 1}, "intrinsic gas"), ({"gas": 30_000_001, "nonce": 1}, "block gas limit"),
        ({"amount": 10**31, "nonce": 1}, "insufficient funds"), ({"nonce": 1_000}, "txpool is full"),
        ({"amount": 6, "nonce": 0}, "underpriced"),
    ],
)  # fmt: skip
def test_a_transaction_that_cannot_be_is_refused_in_words_that_clients_know(tmp_path, changes, words):
    wallet, store = Secp256k1Signer(secrets.token_bytes(32)), EvmStore(tmp_path / "chain.db")
    evm = Evm(store, chain_id=7, rich=wallet.address, now=1_000)
    plain = Transaction(chain_id=7, nonce=0, fees=Fees(max_fee=10**10, tip=1), gas=21_000, to=b"\1" * 20, amount=5)
    evm.accept(sign_transaction(plain, wallet).raw)
    with pytest.raises(EvmRefused, match=words):
        evm.accept(sign_transaction(replace(plain, **changes), wallet).raw)
    store.close()


# ---- the door ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.org"},
        {"Host": "example.org"},
        {"Host": "example.org:8545"},
        {"Content-Type": "text/plain"},
        {"Origin": "null"},
    ],
)
async def test_no_web_page_gets_an_answer(devchain, headers):
    asked = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []})
    async with aiohttp.ClientSession() as session:
        headers = {"Content-Type": "application/json"} | headers
        async with session.post(devchain.url, data=asked, headers=headers) as response:
            assert response.status == 403
            assert "result" not in await response.json()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"7", b'"x"', b"[" * 100_000, b'{"a":' * 50_000, b"{}", b'[{"id":1}]',
        b'{"id":1,"method":"eth_call","params":[]}', b'{"id":1,"method":"eth_call","params":{}}',
        b'{"id":1,"method":"eth_getBalance","params":["0x12","latest"]}', b'{"id":1,"method":7,"params":[]}',
        b'{"id":1,"method":"eth_getBlockByNumber","params":["' + b"9" * 5000 + b'",true]}',
        b'{"id":1,"method":"eth_getLogs","params":[{"fromBlock":"0x0","topics":[{}]}]}',
        b'{"id":1,"method":"eth_sendRawTransaction","params":["0x02"]}',
        b'{"id":1,"method":"eth_sendRawTransaction","params":["0x03aa"]}',
        b'{"id":1,"method":"eth_sendRawTransaction","params":["0xf8' + b"ff" * 3000 + b'"]}',
        b'{"id":1,"method":"octo_faucet","params":["0x00"]}', b'{"id":1,"method":"octo_faucet","params":[{}]}',
        b'{"id":1,"method":"octo_faucet","params":[]}', b'{"id":1,"method":"eth_accounts","params":[1,2,3]}',
        b"[" + b",".join([b'{"id":1,"method":"eth_chainId"}'] * 500) + b"]", b"x" * 2_000_000,
    ],
)  # fmt: skip
async def test_nonsense_is_refused_and_the_chain_lives(devchain, body):
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession() as session, session.post(devchain.url, data=body, headers=headers) as response:
        text = await response.text()
        assert response.status == 413 or '"error"' in text
    assert (await devchain.chain.look()).state == "up"


async def test_no_account_is_unlocked(devchain):
    assert await devchain.rpc.call("eth_accounts") == []
    for method in ("eth_sendTransaction", "personal_unlockAccount", "eth_sign", "debug_traceTransaction"):
        with pytest.raises(ChainRefused, match="does not exist"):
            await devchain.rpc.call(method, {})


async def test_without_controls_nobody_moves_the_clock(tmp_path):
    async with open_devchain(tmp_path, network=NETWORK) as devchain, open_rpc(devchain.url) as rpc:
        for method in ("evm_mine", "evm_increaseTime", "anvil_setBalance"):
            with pytest.raises(ChainRefused, match="does not exist"):
                await rpc.call(method, 1)


async def test_the_faucet_gives_to_each_a_little_and_then_no_more(devchain):
    to = secrets.token_bytes(20)
    terms = FaucetTerms()
    for draw in range(1, terms.draws_per_address + 1):
        await ask_faucet(devchain.url, to)
        assert await devchain.chain.balance(to) == draw * 10**18
        assert await devchain.octo.balance(to) == draw * 1_000 * OCTO
    with pytest.raises(ChainRefused, match=r"has given 0x\w+ all"):
        await ask_faucet(devchain.url, to)
    assert await Token(devchain.chain, devchain.deployment, "OctoA").balance(to) == 30_000 * OCTO


async def test_loading_the_evm_leaves_the_recursion_limit_alone():
    """py_ecc raises it to 100,000; then 100 kB of "[" end the process by overflowing its stack."""
    code = (
        "import sys, json; before = sys.getrecursionlimit()\nimport contracts.evm\n"
        "assert sys.getrecursionlimit() == before, sys.getrecursionlimit()\n"
        "try: json.loads('[' * 100_000)\nexcept RecursionError: print('lives')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "lives", done.stderr


async def test_a_node_without_an_embedded_chain_loads_no_evm_and_no_web3():
    code = (
        "import sys\nimport contracts.rails, contracts.devchain, contracts.anvil, contracts.staking, contracts.deploy\n"
        "heavy = {'eth', 'py_ecc', 'web3', 'eth_account', 'eth_abi'} & set(sys.modules)\nprint(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "[]", done.stderr


# ---- others' eyes --------------------------------------------------------------------------------


async def test_web3_reads_our_chain_as_any_other(devchain):
    """An independent client: its formatters are strict about every field."""
    wallet = await devchain.wallet()
    code = f"""
import json, sys
from web3 import Web3
from eth_account import Account
w3 = Web3(Web3.HTTPProvider({devchain.url!r}))
key = Account.from_key({(b"w" * 32)!r})
block = w3.eth.get_block("latest", full_transactions=True)
assert w3.eth.get_block(block.hash).number == block.number and w3.eth.chain_id == {devchain.chain.chain_id}
abi = json.load(open("contracts/artifacts/Octo.json"))["abi"]
octo = w3.eth.contract(address={address_text(devchain.octo.address)!r}, abi=abi)
assert octo.functions.balanceOf({address_text(wallet.address)!r}).call() == 1000 * 10**18
log = octo.events.Transfer().get_logs(from_block=0, argument_filters={{"to": {address_text(wallet.address)!r}}})[0]
receipt = w3.eth.get_transaction_receipt(log.transactionHash)
assert receipt.status == 1 and receipt.effectiveGasPrice > 0 and octo.events.Transfer().process_receipt(receipt)
transaction = w3.eth.get_transaction(log.transactionHash)
assert transaction["to"] == octo.address and transaction.blockHash == receipt.blockHash
assert w3.eth.fee_history(4, "latest", [50]).oldestBlock >= 0 and w3.eth.gas_price > 0
fields = octo.functions.transfer(key.address, 1).build_transaction(
    {{"from": {address_text(wallet.address)!r}, "nonce": 0, "chainId": w3.eth.chain_id}})
assert 20_000 < fields["gas"] < 120_000, fields
print("agreed")
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.strip() == "agreed", done.stderr[-2000:]


async def test_both_chains_take_the_same_gas(world):
    """py-evm and anvil must agree, or what we measure on one says nothing about the other."""
    wallet = await world.wallet()
    async with open_sender(world.chain, wallet, QUICK) as sender:
        receipt = await sender.send(world.octo.approve(b"\x11" * 20, 2**256 - 1))
    assert receipt.gas_used == 46_308
