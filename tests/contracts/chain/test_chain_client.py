"""The chain client, on both chains: nonces, fees, lost transactions, refusals, and a chain that is not there."""

import asyncio
import secrets
from dataclasses import replace

import pytest
import rlp
from eth_hash.auto import keccak
from worlds import QUICK

from contracts.abi import Abi
from contracts.anvil import give
from contracts.chain import Block, TxReceipt, open_chain
from contracts.child import free_port
from contracts.contract import Call
from contracts.faults import ChainAway, ChainRefused, GasPurseEmpty, Reverted, WrongChain
from contracts.sender import open_sender
from contracts.transactions import Fees, Transaction, sign_transaction
from market.errors import NodeMisconfigured
from market.money import OCTO
from market.signing import Secp256k1Signer


def coin(to: bytes, amount: int = 1) -> Call:
    return Call(to=to, data=b"", amount=amount, what="a coin", abi=Abi(()))


def someone() -> bytes:
    return secrets.token_bytes(20)


async def test_fifty_transactions_at_once_all_arrive_once(world):
    wallet, to = await world.wallet(), someone()
    async with open_sender(world.chain, wallet, QUICK) as sender:
        receipts = await asyncio.gather(*(sender.send(coin(to)) for _ in range(50)))
    assert await world.chain.balance(to) == 50
    assert len({receipt.transaction for receipt in receipts}) == 50
    assert await world.chain.nonce(wallet.address) == 50


async def test_a_restarted_sender_goes_on_behind_the_last_nonce(world):
    wallet, to = await world.wallet(), someone()
    for _ in range(3):
        async with open_sender(world.chain, wallet, QUICK) as sender:
            await sender.send(coin(to))
    assert await world.chain.balance(to) == 3


async def test_two_programs_with_one_wallet_lose_nothing_and_send_nothing_twice(world):
    wallet, to = await world.wallet(), someone()
    async with (
        open_chain(world.url) as other_chain,
        open_sender(world.chain, wallet, QUICK) as one,
        open_sender(other_chain, wallet, QUICK) as two,
    ):
        await asyncio.gather(*(sender.send(coin(to)) for _ in range(15) for sender in (one, two)))
    assert await world.chain.balance(to) == 30
    assert await world.chain.nonce(wallet.address) == 30


async def test_whoever_goes_away_leaves_the_transaction_in_good_hands(world):
    wallet, to = await world.wallet(), someone()
    async with open_sender(world.chain, wallet, QUICK) as sender:
        caller = asyncio.create_task(sender.send(coin(to)))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        await sender.send(coin(to))
        async with asyncio.timeout(60):
            while await world.chain.balance(to) < 2:
                await asyncio.sleep(0.05)


async def test_a_transaction_that_was_handed_in_before_counts_as_sent(world):
    wallet, to = await world.wallet(), someone()
    fees = Fees(max_fee=10**11, tip=10**9)
    signed = sign_transaction(
        Transaction(chain_id=world.chain.chain_id, nonce=0, fees=fees, gas=21_000, to=to, amount=1), wallet
    )
    await world.chain.broadcast(signed.raw)
    with pytest.raises(ChainRefused) as refused:
        await world.chain.broadcast(signed.raw)
    assert refused.value.known or refused.value.nonce_used
    async with open_sender(world.chain, wallet, QUICK) as sender:
        await sender.send(coin(to))
    assert await world.chain.balance(to) == 2


async def test_an_empty_gas_purse_says_whose_it_is_and_what_to_do(world):
    wallet = await world.wallet(gas=False)
    async with open_sender(world.chain, wallet, QUICK) as sender:
        with pytest.raises(GasPurseEmpty, match=r"0x[0-9a-fA-F]{40} cannot pay for gas.*faucet"):
            await sender.send(world.octo.approve(someone(), 1))
        with pytest.raises(GasPurseEmpty):
            await sender.send(coin(someone()), gas=21_000)


async def test_a_refusal_carries_the_contracts_own_words_on_both_chains(world):
    wallet = await world.wallet()
    async with open_sender(world.chain, wallet, QUICK) as sender:
        with pytest.raises(Reverted) as reverted:
            await sender.send(world.octo.transfer(someone(), 2**255))
    assert reverted.value.name == "ERC20InsufficientBalance"
    assert reverted.value.arguments == (wallet.address, 1_000 * OCTO, 2**255)
    assert await world.chain.nonce(wallet.address) == 0, "nothing was sent"


async def test_a_transaction_that_fails_in_its_block_says_why_too(world):
    wallet = await world.wallet()
    async with open_sender(world.chain, wallet, QUICK) as sender:
        with pytest.raises(Reverted) as reverted:
            await sender.send(world.octo.transfer(someone(), 2**255), gas=100_000)
    assert reverted.value.name == "ERC20InsufficientBalance"
    assert await world.chain.nonce(wallet.address) == 1, "it was sent, and cost gas"


async def test_confirmations_are_waited_for(world):
    wallet, to = await world.wallet(), someone()
    async with open_sender(world.chain, wallet, replace(QUICK, confirmations=3)) as sender:
        sending = asyncio.create_task(sender.send(coin(to)))
        async with asyncio.timeout(60):
            while await world.chain.balance(to) == 0:
                await asyncio.sleep(0.02)
        await world.mine()
        await asyncio.sleep(0.1)
        assert not sending.done()
        await world.mine()
        receipt = await sending
    assert (await world.chain.head()).number - receipt.block == 2


async def test_fees_over_the_cap_are_not_paid(world):
    wallet = await world.wallet()
    async with open_sender(world.chain, wallet, replace(QUICK, max_fee=1)) as sender:
        with pytest.raises(Exception, match="over the cap"):
            await sender.send(coin(someone()))


async def test_another_chain_id_is_noticed_before_anything_is_asked(world):
    async with open_chain(world.url, chain_id=5) as chain:
        with pytest.raises(WrongChain, match=r"serves chain \d+, not 5.*Set chain.url"):
            await chain.head()
        assert (await chain.look()).state == "wrong"


async def test_another_first_block_is_another_chain(world):
    async with open_chain(world.url, chain_id=world.chain.chain_id, genesis=bytes(32)) as chain:
        with pytest.raises(WrongChain, match="first block differs"):
            await chain.balance(bytes(20))


async def test_a_chain_that_is_away_is_said_to_be():
    async with open_chain(f"http://127.0.0.1:{free_port()}", chain_id=1) as chain:
        assert (await chain.look()).state == "away"
        with pytest.raises(ChainAway, match="cannot be reached"):
            await chain.head()


async def test_without_a_chain_id_the_chain_must_answer():
    with pytest.raises(ChainAway):
        async with open_chain(f"http://127.0.0.1:{free_port()}"):
            pass


@pytest.mark.parametrize("url", ["", "ftp://x", "file:///etc/passwd", "http://", "nonsense"])
async def test_what_is_no_url_is_refused(url):
    with pytest.raises(NodeMisconfigured):
        async with open_chain(url, chain_id=1):
            pass


# ---- what only anvil can be made to do -----------------------------------------------------------


async def test_a_dropped_transaction_is_handed_in_again(anvil):
    wallet, to = await anvil.wallet(), someone()
    await anvil.rpc.call("evm_setAutomine", False)
    async with open_sender(anvil.chain, wallet, QUICK) as sender:
        sending = asyncio.create_task(sender.send(coin(to)))
        await until(anvil, lambda pending: pending == 1)
        dropped = await waiting(anvil)
        await anvil.rpc.call("anvil_dropAllTransactions")
        async with asyncio.timeout(60):
            while await waiting(anvil) in ([], dropped):  # soon, or already, there is one with a higher fee
                await asyncio.sleep(0.02)
        await anvil.mine()
        await sending
    assert await anvil.chain.balance(to) == 1


async def waiting(world) -> list[str]:
    """The hashes of transactions that no block has taken."""
    pool = (await world.rpc.call("txpool_content"))["pending"]
    return [transaction["hash"] for of_one in pool.values() for transaction in of_one.values()]


async def until(world, wanted, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not wanted(int((await world.rpc.call("txpool_status"))["pending"], 16)):
            await asyncio.sleep(0.02)


async def test_a_stuck_transaction_is_bumped_until_a_block_takes_it(anvil):
    wallet, to = await anvil.wallet(), someone()
    await anvil.rpc.call("evm_setAutomine", False)
    async with open_sender(anvil.chain, wallet, QUICK) as sender:
        sending = asyncio.create_task(sender.send(coin(to)))
        await until(anvil, lambda pending: pending == 1)
        await anvil.rpc.call("anvil_setNextBlockBaseFeePerGas", hex(20 * 10**9))
        await anvil.mine()
        assert not sending.done()
        async with asyncio.timeout(60):
            while not sending.done():
                await anvil.mine()
                await asyncio.sleep(0.2)
        receipt = await sending
    assert receipt.ok
    assert await anvil.chain.balance(to) == 1
    assert await anvil.chain.nonce(wallet.address) == 1


async def test_a_nonce_that_another_program_took_is_given_up_and_the_call_sent_anew(anvil):
    wallet, to, elsewhere = await anvil.wallet(), someone(), someone()
    await anvil.rpc.call("evm_setAutomine", False)
    async with open_sender(anvil.chain, wallet, QUICK) as sender:
        sending = asyncio.create_task(sender.send(coin(to)))
        await until(anvil, lambda pending: pending == 1)
        outbids = Transaction(
            chain_id=anvil.chain.chain_id, nonce=0, fees=Fees(max_fee=10**12, tip=10**11), gas=21_000, to=elsewhere,
            amount=1,
        )  # fmt: skip
        await anvil.chain.broadcast(sign_transaction(outbids, wallet).raw)
        async with asyncio.timeout(60):
            while not sending.done():
                await anvil.mine()
                await asyncio.sleep(0.1)
        await sending
    assert (await anvil.chain.balance(to), await anvil.chain.balance(elsewhere)) == (1, 1)


async def test_a_reorganisation_that_takes_a_transaction_away_does_not_lose_it(anvil):
    wallet, to = await anvil.wallet(), someone()
    async with open_sender(anvil.chain, wallet, replace(QUICK, confirmations=3)) as sender:
        sending = asyncio.create_task(sender.send(coin(to)))
        async with asyncio.timeout(60):
            while await anvil.chain.balance(to) == 0:
                await asyncio.sleep(0.02)
        await anvil.rpc.call("anvil_reorg", 1, [])
        assert await anvil.chain.balance(to) == 0
        async with asyncio.timeout(60):
            while not sending.done():
                await anvil.mine()
                await asyncio.sleep(0.1)
        await sending
    assert await anvil.chain.balance(to) == 1


async def test_money_that_comes_late_lets_the_wallet_go_on(anvil):
    wallet = Secp256k1Signer(secrets.token_bytes(32))
    async with open_sender(anvil.chain, wallet, QUICK) as sender:
        with pytest.raises(GasPurseEmpty):
            await sender.send(coin(someone()))
        await give(anvil.url, wallet.address, 10**18)
        assert (await sender.send(coin(someone()))).ok


# ---- nodes that count otherwise ------------------------------------------------------------------


class ForgetfulNode:
    """Counts no waiting transactions in its "pending" nonce, as some do, and mines when told."""

    chain_id, host = 1, "scripted"

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.mined: list[bytes] = []
        self.nonces: list[int] = []

    async def head(self) -> Block:
        return Block(number=7, hash=bytes(32), timestamp=0, base_fee=1)

    async def tip(self) -> int:
        return 1

    async def nonce(self, address: bytes, *, pending: bool = False) -> int:
        return len(self.mined)

    async def broadcast(self, raw: bytes) -> None:
        self.taken.append(keccak(raw))
        self.nonces.append(int.from_bytes(rlp.decode(raw[1:])[1], "big"))

    async def receipt(self, transaction: bytes) -> TxReceipt | None:
        if transaction not in self.mined:
            return None
        return TxReceipt(
            transaction=transaction, block=7, block_hash=bytes(32), ok=True, gas_used=1, contract=None, logs=()
        )


async def test_a_node_that_counts_no_waiting_transactions_gets_no_nonce_twice():
    node, wallet = ForgetfulNode(), Secp256k1Signer(secrets.token_bytes(32))
    async with open_sender(node, wallet, QUICK) as sender:
        sending = [asyncio.create_task(sender.send(coin(someone()), gas=21_000)) for _ in range(5)]
        async with asyncio.timeout(60):
            while len(node.taken) < 5:
                await asyncio.sleep(0.01)
        node.mined = list(node.taken)
        receipts = await asyncio.wait_for(asyncio.gather(*sending), 60)
    assert [receipt.transaction for receipt in receipts] == node.taken
    assert node.nonces == [0, 1, 2, 3, 4]
