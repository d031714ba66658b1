"""Vouchers per CPU-second: signed by a payer, verified by a payee.

Rival: eth-account with the same EIP-712 struct, in the same process, turn by turn; it too signs with coincurve, which
is asserted. CPU time, not wall time: what one core of a gateway or a provider can carry.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence

from eth_account import Account
from eth_account.messages import encode_typed_data

from bench.rows import Row, compared
from contracts.wallet import assert_fast_backend
from market.rails import chain_rail
from market.signing import Secp256k1Signer
from market.voucher import ChannelTerms, Voucher, check_voucher_signature, sign_voucher

RUNS = 9
COUNT = 4_000
RIVAL_COUNT = 200
SIGNED_GOAL, VERIFIED_GOAL = 30_000, 20_000
RIVAL = "eth-account, the same EIP-712 struct"
_NETWORK, _CHAIN_ID = "octo-bench", 31337
_Plain = dict[str, object]
_FIELDS = ("bytes32 channelId", "uint256 cumulativeAmount", "bytes32 receiptsRoot")


def rows() -> list[Row]:
    """`vouchers_signed` and `vouchers_verified`; medians of interleaved runs."""
    assert_fast_backend()
    key, account = Secp256k1Signer(_digest("session")), Account.from_key(_digest("session"))
    terms = ChannelTerms(
        network=_NETWORK, rail=chain_rail(_CHAIN_ID, bytes(20)), payer=_digest("payer")[:20],
        payee=_digest("payee")[:20], session_key=key.address, salt=_digest("salt"),
    )  # fmt: skip
    roots = [_digest(f"root {number}") for number in range(COUNT)]
    vouchers = [sign_voucher(terms, number, root, key) for number, root in enumerate(roots)]
    _assert_alike(terms, vouchers[1], account)

    def sign(number: int) -> None:
        sign_voucher(terms, number, roots[number], key)

    def verify(number: int) -> None:
        check_voucher_signature(terms, vouchers[number])

    def rival_sign(number: int) -> None:
        account.sign_typed_data(*_typed(terms, number, roots[number]))

    def rival_verify(number: int) -> None:
        voucher = vouchers[number]
        # The verifying side hashes for itself: it was sent the struct, not the digest.
        message = encode_typed_data(*_typed(terms, voucher.amount, voucher.receipts_root))
        if Account.recover_message(message, signature=voucher.signature) != account.address:
            raise RuntimeError("eth-account recovered another signer")

    signed = _compare("vouchers_signed", sign, rival_sign)
    verified = _compare("vouchers_verified", verify, rival_verify)
    return [
        signed.against(f">= {SIGNED_GOAL:,} per CPU-second", met=signed.ours >= SIGNED_GOAL),
        verified.against(f">= {VERIFIED_GOAL:,} per CPU-second", met=verified.ours >= VERIFIED_GOAL),
    ]


def _compare(name: str, ours: Callable[[int], None], rival: Callable[[int], None]) -> Row:
    rival(0)  # the first call loads eth-account's registries
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(RUNS):
        mine.append(_per_cpu_second(ours, range(COUNT)))
        theirs.append(_per_cpu_second(rival, range(RIVAL_COUNT)))
    return compared(name, "per CPU-second", mine, theirs, RIVAL)


def _per_cpu_second(work: Callable[[int], None], numbers: Sequence[int]) -> float:
    start = time.process_time()
    for number in numbers:
        work(number)
    return len(numbers) / (time.process_time() - start)


def _typed(
    terms: ChannelTerms, amount: int, root: bytes
) -> tuple[dict[str, object], dict[str, object], dict[str, object]]:
    salt = hashlib.sha256(b"octo/network/1" + _NETWORK.encode()).digest()
    domain: _Plain = {"name": "octo", "version": "1", "chainId": _CHAIN_ID, "salt": salt}
    fields = [dict(zip(("type", "name"), field.split(), strict=True)) for field in _FIELDS]
    message: _Plain = {
        "channelId": terms.channel_id(), "cumulativeAmount": amount, "receiptsRoot": root,
    }  # fmt: skip
    return domain, {"Voucher": fields}, message


def _assert_alike(terms: ChannelTerms, voucher: Voucher, account: Account) -> None:
    """Both sign the very same: else the comparison says nothing."""
    signed = account.sign_typed_data(*_typed(terms, voucher.amount, voucher.receipts_root))
    if signed.signature != voucher.signature:
        raise RuntimeError("the rival signs something else")


def _digest(tag: str) -> bytes:
    return hashlib.sha256(tag.encode()).digest()
