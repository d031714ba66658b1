"""An EVM in this process: py-evm with a chain of its own, a pool of waiting transactions and durable blocks.

Knows no JSON and no clock: times come in as arguments. Importing it loads py-evm (0.4 s of a core, 30 MB), which
`contracts.devchain` does in a process of its own. No account is unlocked: transactions come signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contracts.evm_door import (
    AtomicDB,
    Block,
    Computation,
    Header,
    HeaderNotFound,
    RLPException,
    SpoofTransaction,
    Transaction,
    TransactionNotFound,
    ValidationError,
    chain_kind,
)
from contracts.evm_store import EvmStore, StoredLog
from market.errors import OctoError

GAS_LIMIT = 30_000_000
CALL_GAS_LIMIT = 10_000_000  # py-evm runs some 2 million gas a second: a question may not stop the chain for long
WAITING_LIMIT = 4096
_AHEAD_LIMIT = 256  # nonces after the next one that an account may have waiting
_BLOB = 3


class EvmRefused(OctoError):
    """In geth's words, which every client understands. `data` is what a contract reverted with."""

    code = "evm_refused"

    def __init__(self, message: str, *, data: bytes | None = None) -> None:
        super().__init__(message)
        self.data = data


class Evm:
    def __init__(self, store: EvmStore, *, chain_id: int, rich: bytes, now: int) -> None:
        """The chain in `store`; in an empty one, a first block of time `now` in which `rich` owns 10^12 ether."""
        self._store = store
        self._database = AtomicDB(store)  # type: ignore[arg-type]
        self._kind: Any = chain_kind(chain_id, gas_limit=GAS_LIMIT)
        if store.meta("genesis") is None:
            with store.whole():
                account = {"balance": 10**30, "nonce": 0, "code": b"", "storage": {}}
                first = self._kind.from_genesis(self._database, _genesis(now), {rich: account})
                store.keep_meta("genesis", bytes(first.get_canonical_head().hash))
        self._chain: Any = self._kind(self._database)
        self.chain_id = chain_id
        self.genesis = store.meta("genesis") or b""
        self._pool: dict[bytes, dict[int, Transaction]] = {}
        for raw in store.waiting():
            transaction = self._decode(raw)
            self._pool.setdefault(bytes(transaction.sender), {})[transaction.nonce] = transaction

    # ---- what is there ---------------------------------------------------------------------------

    @property
    def head(self) -> Header:
        return self._chain.get_canonical_head()

    @property
    def has_waiting(self) -> bool:
        """Whether a block made now would hold a transaction."""
        state = self._state(self.head)
        return any(int(state.get_nonce(sender)) in by_nonce for sender, by_nonce in self._pool.items())

    def header(self, number: int) -> Header | None:
        try:
            return self._chain.get_canonical_block_header_by_number(number)
        except HeaderNotFound:
            return None

    def header_by_hash(self, block: bytes) -> Header | None:
        try:
            return self._chain.get_block_header_by_hash(block)
        except HeaderNotFound:
            return None

    def block(self, header: Header) -> Block:
        return self._chain.get_block_by_header(header)

    def nonce(self, account: bytes, *, at: Header | None = None, pending: bool = False) -> int:
        nonce = int(self._state(at or self.head).get_nonce(account))
        waiting = self._pool.get(account, {}) if pending else {}
        while nonce in waiting:
            nonce += 1
        return nonce

    def balance(self, account: bytes, *, at: Header) -> int:
        return int(self._state(at).get_balance(account))

    def code(self, account: bytes, *, at: Header) -> bytes:
        return bytes(self._state(at).get_code(account))

    def storage(self, account: bytes, slot: int, *, at: Header) -> int:
        return int(self._state(at).get_storage(account, slot))

    def find(self, transaction: bytes) -> tuple[Header, int] | None:
        """The block of a transaction and its place in it."""
        try:
            number, place = self._chain.chaindb.get_transaction_index(transaction)
        except TransactionNotFound:
            return None
        return self._chain.get_canonical_block_header_by_number(number), place

    def receipt(self, header: Header, place: int) -> tuple[Any, int]:
        """The receipt of a block's transaction, and the gas that those before it used."""
        kind = self._chain.get_vm_class(header).get_receipt_builder()
        receipts = self._chain.chaindb.get_receipts(header, kind)
        return receipts[place], receipts[place - 1].gas_used if place else 0

    def waiting(self, transaction: bytes) -> Transaction | None:
        candidates = (held for by_nonce in self._pool.values() for held in by_nonce.values())
        return next((held for held in candidates if held.hash == transaction), None)

    def logs(self, first: int, last: int, addresses: Sequence[bytes], limit: int) -> list[StoredLog]:
        return self._store.logs(first, last, addresses, limit)

    # ---- what would happen -----------------------------------------------------------------------

    def call(
        self, *, sender: bytes, to: bytes | None, data: bytes, amount: int, at: Header | None, now: int,
        gas: int = CALL_GAS_LIMIT,
    ) -> Computation:  # fmt: skip
        """Run a call on the state after `at` and forget it; after the head if None, at time `now`.

        Raises EvmRefused when it fails. Gas costs nothing, as eth_call has it."""
        header = at or self._chain.header.copy(timestamp=max(now, self.head.timestamp + 1))
        vm = self._chain.get_vm(header.copy(base_fee_per_gas=0))
        unsigned = vm.get_transaction_builder().new_unsigned_dynamic_fee_transaction(
            chain_id=self.chain_id, nonce=vm.state.get_nonce(sender), max_priority_fee_per_gas=0,
            max_fee_per_gas=0, gas=min(gas, CALL_GAS_LIMIT), to=to or b"", value=amount, data=data, access_list=(),
        )  # fmt: skip
        try:
            done = vm.state.apply_transaction(SpoofTransaction(unsigned, from_=sender))
        except ValidationError as error:
            raise EvmRefused(_words(error)) from None
        if done.is_error:
            raise _failure(done)
        return done

    def estimate(self, *, sender: bytes, to: bytes | None, data: bytes, amount: int, now: int) -> int:
        """Gas that is enough: what it used, refunds not counted, and more only if calls inside hold back a 64th."""

        def run(gas: int) -> Computation:
            return self.call(sender=sender, to=to, data=data, amount=amount, at=None, now=now, gas=gas)

        done = run(CALL_GAS_LIMIT)
        low = CALL_GAS_LIMIT - done.get_gas_remaining()
        high = CALL_GAS_LIMIT
        tried = low
        while high - low > low // 64:
            try:
                run(tried)
                high = tried
            except EvmRefused:
                low = tried
            tried = min((low + high) // 2, low * 65 // 64 + 1)
        return high

    # ---- what happens ----------------------------------------------------------------------------

    def accept(self, raw: bytes) -> bytes:
        """Take a signed transaction into the pool, durably, and return its hash. Raises EvmRefused."""
        transaction = self._decode(raw)
        hash_, sender, nonce = bytes(transaction.hash), bytes(transaction.sender), int(transaction.nonce)
        state = self._state(self.head)
        mine = self._pool.get(sender, {})
        cost = transaction.value + transaction.gas * transaction.max_fee_per_gas
        if self.waiting(hash_) is not None or self.find(hash_) is not None:
            raise EvmRefused("already known")
        next_nonce = int(state.get_nonce(sender))
        if nonce < next_nonce:
            raise EvmRefused(f"nonce too low: next nonce {next_nonce}, tx nonce {nonce}")
        if nonce > next_nonce + _AHEAD_LIMIT or sum(map(len, self._pool.values())) >= WAITING_LIMIT:
            raise EvmRefused("txpool is full")
        if transaction.gas < transaction.intrinsic_gas:
            raise EvmRefused("intrinsic gas too low")
        if transaction.gas > GAS_LIMIT:
            raise EvmRefused("exceeds block gas limit")
        if cost > state.get_balance(sender):
            raise EvmRefused("insufficient funds for gas * price + value")
        before = mine.get(nonce)
        if before is not None and not _outbids(transaction, before):
            raise EvmRefused("replacement transaction underpriced")
        with self._store.whole():
            if before is not None:
                self._store.drop_waiting([bytes(before.hash)])
            self._store.add_waiting(hash_, raw)
        self._pool.setdefault(sender, {})[nonce] = transaction
        return hash_

    def mine(self, now: int) -> None:
        """Make a block of what waits, at time `now` or a second after the last one, whichever is later."""
        try:
            with self._store.whole():
                self._chain.set_header_timestamp(max(now, self.head.timestamp + 1))
                gone, logs = self._fill()
                self._chain.mine_block()
                self._store.add_logs(logs)
                self._store.drop_waiting([bytes(transaction.hash) for transaction in gone])
        except BaseException:
            self._chain = self._kind(self._database)  # as the disk has it
            raise
        for transaction in gone:
            mine = self._pool.get(bytes(transaction.sender), {})
            held = mine.get(transaction.nonce)
            if held is not None and held.hash == transaction.hash:
                del mine[transaction.nonce]
                if not mine:
                    del self._pool[bytes(transaction.sender)]

    def forget_waiting(self) -> None:
        with self._store.whole():
            self._store.drop_waiting(
                [bytes(held.hash) for by_nonce in self._pool.values() for held in by_nonce.values()]
            )
        self._pool.clear()

    def _fill(self) -> tuple[list[Transaction], list[StoredLog]]:
        """Run what can run, one account after the other; (what left the pool, logs)."""
        gone: list[Transaction] = []
        logs: list[StoredLog] = []
        number, base_fee, spot = self._chain.header.block_number, self._chain.header.base_fee_per_gas or 0, 0
        for sender, by_nonce in list(self._pool.items()):
            nonce = int(self._chain.get_vm().state.get_nonce(sender))
            gone += [held for at, held in by_nonce.items() if at < nonce]
            while nonce in by_nonce:
                transaction = by_nonce[nonce]
                if transaction.gas + self._chain.header.gas_used > GAS_LIMIT or transaction.max_fee_per_gas < base_fee:
                    break  # waits for a block with room, or a cheaper one
                gone.append(transaction)
                try:
                    _, receipt, _ = self._chain.apply_transaction(transaction)
                except ValidationError:
                    break  # its money went elsewhere since it was taken in
                logs += [
                    StoredLog(
                        block=number, position=len(logs) + at, address=bytes(entry.address), data=bytes(entry.data),
                        topics=tuple(topic.to_bytes(32, "big") for topic in entry.topics),
                        transaction=bytes(transaction.hash), spot=spot,
                    )
                    for at, entry in enumerate(receipt.logs)
                ]  # fmt: skip
                nonce, spot = nonce + 1, spot + 1
        return gone, logs

    def _decode(self, raw: bytes) -> Transaction:
        try:
            if raw[:1] == bytes((_BLOB,)):
                raise EvmRefused("transaction type not supported")
            transaction = self._chain.get_vm().get_transaction_builder().decode(raw)
            transaction.validate()
            chain_id = transaction.chain_id
            _ = transaction.sender
        except (RLPException, ValidationError, ValueError, IndexError, TypeError, EvmRefused) as error:
            raise error if isinstance(error, EvmRefused) else EvmRefused("rlp: not a signed transaction") from None
        if chain_id != self.chain_id:
            raise EvmRefused(f"invalid chain id for signer: have {chain_id} want {self.chain_id}")
        return transaction

    def _state(self, header: Header) -> Any:
        return self._chain.get_vm(header).state


def _genesis(now: int) -> Any:
    return {
        "coinbase": bytes(20), "difficulty": 0, "extra_data": b"octo", "gas_limit": GAS_LIMIT, "mix_hash": bytes(32),
        "nonce": bytes(8), "timestamp": now,
    }  # fmt: skip


def _outbids(fresh: Transaction, held: Transaction) -> bool:
    """A tenth more, as geth and anvil ask."""
    return all(
        10 * new >= 11 * old
        for new, old in (
            (fresh.max_fee_per_gas, held.max_fee_per_gas),
            (fresh.max_priority_fee_per_gas, held.max_priority_fee_per_gas),
        )
    )


def _failure(done: Computation) -> EvmRefused:
    name = type(done.error).__name__
    if name == "Revert":
        return EvmRefused("execution reverted", data=bytes(done.output))
    return EvmRefused(
        {"OutOfGas": "out of gas", "InsufficientFunds": "insufficient funds for transfer"}.get(name, name)
    )


def _words(error: ValidationError) -> str:
    text = str(error)
    return "insufficient funds for gas * price + value" if "insufficient" in text.lower() else text[:200]
