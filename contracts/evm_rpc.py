"""Ethereum's JSON-RPC methods on the devnet chain, in geth's shapes and words. Knows no HTTP.

What is not here (filters, subscriptions, traces, unlocked accounts) is refused as unknown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from contracts.evm import CALL_GAS_LIMIT, GAS_LIMIT, Evm, EvmRefused
from contracts.evm_door import Header, Transaction
from contracts.evm_store import StoredLog
from contracts.transactions import contract_address

LOGS_LIMIT = 10_000
_TIP = 10**9


class MethodUnknown(EvmRefused):
    """No such method."""


class EvmRpc:
    """`skew_s` moves the chain's clock ahead of ours; only tests do."""

    def __init__(self, evm: Evm, *, now: Callable[[], float] = time.time) -> None:
        self._evm = evm
        self._clock = now
        self.skew_s = 0
        self._methods: Mapping[str, Callable[..., Any]] = {
            "web3_clientVersion": lambda: "octo-devchain/1",
            "net_version": lambda: str(evm.chain_id),
            "eth_chainId": lambda: hex(evm.chain_id),
            "eth_syncing": lambda: False,
            "eth_accounts": list,
            "eth_blockNumber": lambda: hex(evm.head.block_number),
            "eth_gasPrice": lambda: hex((evm.head.base_fee_per_gas or 0) + _TIP),
            "eth_maxPriorityFeePerGas": lambda: hex(_TIP),
            "eth_feeHistory": self._fee_history,
            "eth_getBlockByNumber": lambda tag, full=False: self._block(self._header(tag), full),
            "eth_getBlockByHash": lambda block, full=False: self._block(evm.header_by_hash(_bytes(block, 32)), full),
            "eth_getTransactionByHash": self._transaction,
            "eth_getTransactionReceipt": self._receipt,
            "eth_getTransactionCount": self._count,
            "eth_getBalance": lambda who, at="latest": hex(evm.balance(_bytes(who, 20), at=self._known(at))),
            "eth_getCode": lambda who, at="latest": _hex(evm.code(_bytes(who, 20), at=self._known(at))),
            "eth_getStorageAt": self._storage,
            "eth_call": self._call,
            "eth_estimateGas": self._estimate,
            "eth_getLogs": self._logs,
            "eth_sendRawTransaction": lambda raw: _hex(evm.accept(_bytes(raw))),
        }

    def now(self) -> int:
        return int(self._clock()) + self.skew_s

    def answer(self, method: str, params: list[Any]) -> Any:
        """The result, ready for JSON. Raises EvmRefused; MethodUnknown."""
        handler = self._methods.get(method)
        if handler is None:
            raise MethodUnknown(f"the method {method[:60]} does not exist")
        try:
            return handler(*params)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise EvmRefused(f"invalid params: {error}") from None

    def _header(self, tag: Any) -> Header | None:
        if tag in ("latest", "pending", "safe", "finalized", None):
            return self._evm.head
        return self._evm.header(0 if tag == "earliest" else _number(tag))

    def _known(self, tag: Any) -> Header:
        if isinstance(tag, dict):  # EIP-1898
            tag_hash = tag.get("blockHash")
            header = self._evm.header_by_hash(_bytes(tag_hash, 32)) if tag_hash else self._header(tag["blockNumber"])
        else:
            header = self._header(tag)
        if header is None:
            raise EvmRefused("header not found")
        return header

    def _count(self, who: Any, at: Any = "latest") -> str:
        if at == "pending":
            return hex(self._evm.nonce(_bytes(who, 20), pending=True))
        return hex(self._evm.nonce(_bytes(who, 20), at=self._known(at)))

    def _storage(self, who: Any, slot: Any, at: Any = "latest") -> str:
        found = self._evm.storage(_bytes(who, 20), _number(slot), at=self._known(at))
        return _hex(found.to_bytes(32, "big"))

    def _call(self, call: Mapping[str, Any], at: Any = "latest", *_: Any) -> str:
        header = None if at in ("latest", "pending", None) else self._known(at)
        gas = _number(call["gas"]) if call.get("gas") else CALL_GAS_LIMIT
        done = self._evm.call(**_call(call), at=header, now=self.now(), gas=gas)
        return _hex(bytes(done.output))

    def _estimate(self, call: Mapping[str, Any], *_: Any) -> str:
        return hex(self._evm.estimate(**_call(call), now=self.now()))

    def _fee_history(self, count: Any, newest: Any, percentiles: Any = ()) -> dict[str, Any]:
        last = self._known(newest).block_number
        first = max(0, last + 1 - min(_number(count), 128))
        headers = [self._known(hex(number)) for number in range(first, last + 1)]
        fees = [hex(header.base_fee_per_gas or 0) for header in headers]
        reward = {"reward": [[hex(_TIP) for _ in percentiles] for _ in headers]} if percentiles else {}
        ratios = [header.gas_used / GAS_LIMIT for header in headers]
        return {"oldestBlock": hex(first), "baseFeePerGas": [*fees, fees[-1]], "gasUsedRatio": ratios, **reward}

    def _logs(self, wanted: Mapping[str, Any]) -> list[Any]:
        head = self._evm.head
        if wanted.get("blockHash"):
            header = self._evm.header_by_hash(_bytes(wanted["blockHash"], 32))
            if header is None:
                raise EvmRefused("unknown block")
            first = last = header.block_number
        else:
            first = self._known_or_beyond(wanted.get("fromBlock"), head.block_number)
            last = min(self._known_or_beyond(wanted.get("toBlock"), head.block_number), head.block_number)
        given = wanted.get("address") or []
        addresses = [_bytes(address, 20) for address in ([given] if isinstance(given, str) else given)[:64]]
        choices = [_choice(topic) for topic in (wanted.get("topics") or [])[:4]]
        found = self._evm.logs(first, last, addresses, LOGS_LIMIT + 1)
        if len(found) > LOGS_LIMIT:
            raise EvmRefused(f"query returned more than {LOGS_LIMIT} results")
        return [self._log(entry) for entry in found if _matches(entry.topics, choices)]

    def _known_or_beyond(self, tag: Any, head: int) -> int:
        if tag == "earliest":
            return 0
        return head if tag in ("latest", "pending", "safe", "finalized", None) else _number(tag)

    def _log(self, entry: StoredLog) -> dict[str, Any]:
        return {
            "address": _hex(entry.address), "topics": [_hex(topic) for topic in entry.topics],
            "data": _hex(entry.data), "blockNumber": hex(entry.block), "blockHash": _hex(self._hash_of(entry.block)),
            "transactionHash": _hex(entry.transaction), "transactionIndex": hex(entry.spot),
            "logIndex": hex(entry.position), "removed": False,
        }  # fmt: skip

    def _hash_of(self, number: int) -> bytes:
        return bytes(self._known(hex(number)).hash)

    def _transaction(self, hash_: Any) -> dict[str, Any] | None:
        found = self._evm.find(_bytes(hash_, 32))
        if found is None:
            waiting = self._evm.waiting(_bytes(hash_, 32))
            return _transaction(waiting, None, 0) if waiting is not None else None
        header, spot = found
        return _transaction(self._evm.block(header).transactions[spot], header, spot)

    def _receipt(self, hash_: Any) -> dict[str, Any] | None:
        found = self._evm.find(_bytes(hash_, 32))
        if found is None:
            return None
        header, spot = found
        transaction = self._evm.block(header).transactions[spot]
        receipt, used_before = self._evm.receipt(header, spot)
        price = min(transaction.max_fee_per_gas, transaction.max_priority_fee_per_gas + (header.base_fee_per_gas or 0))
        created = None if transaction.to else _hex(contract_address(bytes(transaction.sender), transaction.nonce))
        logs = self._evm.logs(header.block_number, header.block_number, (), LOGS_LIMIT)
        return {
            "transactionHash": _hex(transaction.hash), "transactionIndex": hex(spot), "blockHash": _hex(header.hash),
            "blockNumber": hex(header.block_number), "from": _hex(transaction.sender),
            "to": _hex(transaction.to) if transaction.to else None, "contractAddress": created,
            "cumulativeGasUsed": hex(receipt.gas_used), "gasUsed": hex(receipt.gas_used - used_before),
            "effectiveGasPrice": hex(price), "status": "0x1" if receipt.state_root == b"\x01" else "0x0",
            "logsBloom": _hex(receipt.bloom.to_bytes(256, "big")), "type": hex(transaction.type_id or 0),
            "logs": [self._log(entry) for entry in logs if entry.spot == spot],
        }  # fmt: skip

    def _block(self, header: Header | None, full: Any) -> dict[str, Any] | None:
        if header is None:
            return None
        transactions = self._evm.block(header).transactions
        return {
            "number": hex(header.block_number), "hash": _hex(header.hash), "parentHash": _hex(header.parent_hash),
            "nonce": _hex(header.nonce), "sha3Uncles": _hex(header.uncles_hash), "miner": _hex(header.coinbase),
            "logsBloom": _hex(header.bloom.to_bytes(256, "big")), "transactionsRoot": _hex(header.transaction_root),
            "stateRoot": _hex(header.state_root), "receiptsRoot": _hex(header.receipt_root),
            "difficulty": hex(header.difficulty), "totalDifficulty": "0x0", "extraData": _hex(header.extra_data),
            "size": hex(512 + sum(len(item.encode()) for item in transactions)), "gasLimit": hex(header.gas_limit),
            "gasUsed": hex(header.gas_used), "timestamp": hex(header.timestamp), "mixHash": _hex(header.mix_hash),
            "baseFeePerGas": hex(header.base_fee_per_gas or 0), "uncles": [],
            "transactions": [
                _transaction(item, header, spot) if full else _hex(item.hash) for spot, item in enumerate(transactions)
            ],
        }  # fmt: skip


def _transaction(item: Transaction, header: Header | None, spot: int) -> dict[str, Any]:
    return {
        "hash": _hex(item.hash), "nonce": hex(item.nonce), "from": _hex(item.sender),
        "to": _hex(item.to) if item.to else None, "value": hex(item.value), "input": _hex(item.data),
        "gas": hex(item.gas), "gasPrice": hex(item.max_fee_per_gas), "maxFeePerGas": hex(item.max_fee_per_gas),
        "maxPriorityFeePerGas": hex(item.max_priority_fee_per_gas), "type": hex(item.type_id or 0),
        "chainId": hex(item.chain_id or 0), "v": hex(item.y_parity), "r": hex(item.r), "s": hex(item.s),
        "accessList": [], "blockHash": _hex(header.hash) if header else None,
        "blockNumber": hex(header.block_number) if header else None, "transactionIndex": hex(spot) if header else None,
    }  # fmt: skip


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    data = call.get("input") or call.get("data") or "0x"
    return {
        "sender": _bytes(call["from"], 20) if call.get("from") else bytes(20), "data": _bytes(data),
        "to": _bytes(call["to"], 20) if call.get("to") else None, "amount": _number(call.get("value") or "0x0"),
    }  # fmt: skip


def _choice(topic: Any) -> frozenset[bytes] | None:
    if topic is None:
        return None
    return frozenset(_bytes(one, 32) for one in ([topic] if isinstance(topic, str) else topic)[:256])


def _matches(topics: tuple[bytes, ...], choices: list[frozenset[bytes] | None]) -> bool:
    if len(choices) > len(topics):
        return False
    return all(choice is None or topic in choice for topic, choice in zip(topics, choices, strict=False))


def _hex(data: Any) -> str:
    return "0x" + bytes(data).hex()


def _number(text: Any) -> int:
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    if not isinstance(text, str) or not text.startswith("0x") or len(text) > 66:
        raise ValueError("a number is 0x and hexadecimal digits")
    return int(text, 16)


def _bytes(text: Any, length: int | None = None) -> bytes:
    if not isinstance(text, str) or not text.startswith("0x"):
        raise ValueError("bytes are 0x and hexadecimal digits")
    data = bytes.fromhex(text[2:])
    if length is not None and len(data) != length:
        raise ValueError(f"{length} bytes are wanted, not {len(data)}")
    return data
