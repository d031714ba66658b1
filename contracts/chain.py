"""A client to one EVM chain through any JSON-RPC endpoint: what is on it, and whether it is the right one.

Reads only; `contracts.sender` writes. Whether the chain is away, slow or another one than expected is kept
in `health`, and checked anew after every outage: a URL may lead to another chain than it did before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import structlog

from contracts.faults import ChainAway, ChainError, ChainRefused, WrongChain
from contracts.rpc import Rpc, open_rpc
from market.values import value

log = structlog.get_logger()

SLOW_S = 2.0
STALLED_S = 120.0


@value
class Block:
    number: int
    hash: bytes
    timestamp: int
    base_fee: int


@value
class Log:
    address: bytes
    topics: tuple[bytes, ...]
    data: bytes
    block: int
    block_hash: bytes
    transaction: bytes
    index: int


@value
class TxReceipt:
    """`contract` is the address of what the transaction created, if it did."""

    transaction: bytes
    block: int
    block_hash: bytes
    ok: bool
    gas_used: int
    contract: bytes | None
    logs: tuple[Log, ...]


@value
class Health:
    """`state`: up, or slow (answers take seconds), stalled (no new block for minutes), away, wrong."""

    state: Literal["unknown", "up", "slow", "stalled", "away", "wrong"] = "unknown"
    detail: str = ""
    head: int = 0
    answer_s: float = 0.0


class Chain:
    """Use `open_chain`."""

    def __init__(self, rpc: Rpc, *, chain_id: int | None, genesis: bytes | None) -> None:
        self._rpc = rpc
        self._expected_id = chain_id
        self._expected_genesis = genesis
        self._checked = False
        self._checking = asyncio.Lock()
        self.health = Health()

    @property
    def host(self) -> str:
        return self._rpc.host

    @property
    def chain_id(self) -> int:
        assert self._expected_id is not None, "the chain was asked for its id when it was opened"
        return self._expected_id

    async def check(self) -> tuple[int, bytes]:
        """(chain id, genesis hash), once they are the ones expected. Raises WrongChain or ChainAway."""
        chain_id = _number(await self._rpc.call("eth_chainId"))
        first = await self._rpc.call("eth_getBlockByNumber", "0x0", False)
        genesis = _bytes(first["hash"]) if isinstance(first, dict) else b""
        wrong = None
        if self._expected_id not in (None, chain_id):
            wrong = f"the endpoint at {self.host} serves chain {chain_id}, not {self._expected_id}."
        elif self._expected_genesis not in (None, genesis):
            wrong = f"the chain at {self.host} has the id {chain_id}, but it is another one: its first block differs."
        if wrong:
            self._checked = False
            self.health = Health(state="wrong", detail=wrong)
            raise WrongChain(wrong, next_step="Set chain.url and chain.deployment so that they name one chain.")
        self._expected_id, self._expected_genesis, self._checked = chain_id, genesis, True
        return chain_id, genesis

    async def _ask(self, method: str, *params: Any) -> Any:
        (answer,) = await self._ask_all([(method, params)])
        return answer

    async def _ask_all(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        if not self._checked:
            async with self._checking:
                if not self._checked:
                    await self.check()
        try:
            if len(calls) == 1:
                answers = [await self._rpc.call(calls[0][0], *calls[0][1])]
            else:
                answers = await self._rpc.batch(calls)
        except ChainAway as away:
            self._checked = False
            self.health = Health(state="away", detail=away.message, head=self.health.head)
            raise
        if self.health.state not in ("up", "slow", "stalled"):
            self.health = Health(state="up", head=self.health.head)
        return answers

    # ---- what is there ---------------------------------------------------------------------------

    async def head(self) -> Block:
        return _block(await self._ask("eth_getBlockByNumber", "latest", False))

    async def block(self, number: int) -> Block | None:
        found = await self._ask("eth_getBlockByNumber", hex(number), False)
        return _block(found) if found is not None else None

    async def balance(self, address: bytes) -> int:
        """In wei."""
        return _number(await self._ask("eth_getBalance", _hex(address), "latest"))

    async def nonce(self, address: bytes, *, pending: bool = False) -> int:
        return _number(await self._ask("eth_getTransactionCount", _hex(address), "pending" if pending else "latest"))

    async def code(self, address: bytes) -> bytes:
        return _bytes(await self._ask("eth_getCode", _hex(address), "latest"))

    async def tip(self) -> int:
        """What a block's maker is usually given, in wei for a unit of gas."""
        try:
            return _number(await self._ask("eth_maxPriorityFeePerGas"))
        except ChainRefused:
            return 10**9  # an old node: one gwei

    async def read(self, to: bytes, data: bytes, *, at: int | None = None, sender: bytes | None = None) -> bytes:
        """What a call would return, as of block `at` or now. Raises ChainRefused, with the revert's data."""
        return (await self.read_all([(to, data)], at=at, sender=sender))[0]

    async def read_all(
        self, calls: Sequence[tuple[bytes, bytes]], *, at: int | None = None, sender: bytes | None = None
    ) -> list[bytes]:
        """Many at once, in one request."""
        block = "latest" if at is None else hex(at)
        origin = {"from": _hex(sender)} if sender else {}
        asked = [("eth_call", [{**origin, "to": _hex(to), "data": _hex(data)}, block]) for to, data in calls]
        return [_bytes(answer) for answer in await self._ask_all(asked)] if asked else []

    async def estimate(self, *, sender: bytes, to: bytes | None, data: bytes, amount: int = 0) -> int:
        """Gas that a transaction would take. Raises ChainRefused when it would revert."""
        call = {"from": _hex(sender), "data": _hex(data), "value": hex(amount), **({"to": _hex(to)} if to else {})}
        return _number(await self._ask("eth_estimateGas", call))

    async def receipt(self, transaction: bytes) -> TxReceipt | None:
        found = await self._ask("eth_getTransactionReceipt", _hex(transaction))
        return _receipt(found) if found is not None else None

    async def logs(
        self, first: int, last: int, *, addresses: Sequence[bytes], topics: Sequence[Sequence[bytes] | None] = ()
    ) -> list[Log]:
        """Logs of blocks `first` to `last`, both included, in order; a None topic matches any."""
        wanted = [None if choice is None else [_hex(topic) for topic in choice] for choice in topics]
        question = {"fromBlock": hex(first), "toBlock": hex(last), "address": [_hex(a) for a in addresses]}
        found = await self._ask("eth_getLogs", {**question, "topics": wanted})
        return [_log(item) for item in found]

    # ---- what is sent ----------------------------------------------------------------------------

    async def broadcast(self, raw: bytes) -> None:
        """Hand in a signed transaction. Raises ChainRefused, or ChainAway when it may or may not have arrived."""
        await self._ask("eth_sendRawTransaction", _hex(raw))

    # ---- how it is -------------------------------------------------------------------------------

    async def look(self) -> Health:
        """Ask once, and keep the answer in `health`. Never raises ChainError."""
        asked = time.monotonic()
        try:
            head = await self.head()
        except WrongChain:
            return self.health
        except ChainError as error:
            self.health = Health(state="away", detail=error.message, head=self.health.head)
            return self.health
        answer_s, age_s = time.monotonic() - asked, time.time() - head.timestamp
        if answer_s > SLOW_S:
            state, detail = "slow", f"answers take {answer_s:.1f} s."
        elif age_s > STALLED_S:
            state, detail = "stalled", f"the last block is {age_s:.0f} s old."
        else:
            state, detail = "up", ""
        self.health = Health(state=state, detail=detail, head=head.number, answer_s=answer_s)  # type: ignore[arg-type]
        return self.health

    async def watch(self, period_s: float = 15.0) -> None:
        """Look again and again, and log each change."""
        while True:
            before = self.health.state
            now = await self.look()
            if now.state != before:
                log.info("chain_state", state=now.state, was=before, host=self.host, head=now.head, why=now.detail)
            await asyncio.sleep(period_s)


@asynccontextmanager
async def open_chain(
    url: str, *, chain_id: int | None = None, genesis: bytes | None = None, timeout_s: float = 15.0
) -> AsyncIterator[Chain]:
    """A client for the chain at `url`. With a `chain_id` it opens though the chain is away, and checks it when it
    first answers; without one the chain must answer now and says its own. Raises ChainAway, WrongChain."""
    async with open_rpc(url, timeout_s=timeout_s) as rpc:
        chain = Chain(rpc, chain_id=chain_id, genesis=genesis)
        if chain_id is None:
            await chain.check()
        yield chain


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


def _number(text: Any) -> int:
    try:
        return int(text, 16)
    except (TypeError, ValueError):
        raise ChainError(f"the chain's node gave {str(text)[:40]!r} for a number.") from None


def _bytes(text: Any) -> bytes:
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except (AttributeError, ValueError):
        raise ChainError(f"the chain's node gave {str(text)[:40]!r} for bytes.") from None


def _block(found: Any) -> Block:
    try:
        return Block(
            number=_number(found["number"]), hash=_bytes(found["hash"]), timestamp=_number(found["timestamp"]),
            base_fee=_number(found.get("baseFeePerGas", "0x0")),
        )  # fmt: skip
    except (KeyError, TypeError):
        raise ChainError("the chain's node gave a block that is none.") from None


def _receipt(found: Any) -> TxReceipt:
    try:
        created = found.get("contractAddress")
        return TxReceipt(
            transaction=_bytes(found["transactionHash"]), block=_number(found["blockNumber"]),
            block_hash=_bytes(found["blockHash"]), ok=_number(found["status"]) == 1,
            gas_used=_number(found["gasUsed"]), contract=_bytes(created) if created else None,
            logs=tuple(_log(item) for item in found["logs"]),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError):
        raise ChainError("the chain's node gave a receipt that is none.") from None


def _log(found: Any) -> Log:
    try:
        return Log(
            address=_bytes(found["address"]), topics=tuple(_bytes(topic) for topic in found["topics"]),
            data=_bytes(found["data"]), block=_number(found["blockNumber"]), block_hash=_bytes(found["blockHash"]),
            transaction=_bytes(found["transactionHash"]), index=_number(found["logIndex"]),
        )  # fmt: skip
    except (KeyError, TypeError):
        raise ChainError("the chain's node gave a log that is none.") from None
