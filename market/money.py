"""Money: integers of the smallest unit, 10^-18 OCTO. Prices are per million tokens.

`Amount` travels as 32 big-endian bytes (a Solidity word): DAG-CBOR integers end at 64 bits.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from market.errors import RequestInvalid

OCTO = 10**18
AMOUNT_LIMIT = 2**256 - 1
TOKENS_PER_PRICE = 1_000_000
# Digits, not Decimal: its context rounds to 28 digits, and "1e999999999" overflows it.
_OCTO_TEXT = re.compile(r"([0-9]{1,60})(?:\.([0-9]{1,18}))?\s*(?:OCTO)?")


def _amount_from_wire(raw: object) -> int:
    if isinstance(raw, bytes) and len(raw) == 32:
        return int.from_bytes(raw, "big")
    if isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw <= AMOUNT_LIMIT:
        return raw
    raise ValueError("an amount is 32 big-endian bytes")


Amount = Annotated[int, BeforeValidator(_amount_from_wire), PlainSerializer(lambda amount: amount.to_bytes(32, "big"))]
"""An integer of 10^-18 OCTO, 0 to 2^256-1."""


def cost(*, tokens: int, price_per_million: int) -> int:
    """What `tokens` cost, rounded up to the smallest unit so that no token is free at a price."""
    return -(-tokens * price_per_million // TOKENS_PER_PRICE)


def format_octo(amount: int) -> str:
    """`1.25 OCTO`: exact, without trailing zeros."""
    whole, rest = divmod(abs(amount), OCTO)
    digits = f"{rest:018d}".rstrip("0")
    sign = "-" if amount < 0 else ""
    return f"{sign}{whole}{'.' + digits if digits else ''} OCTO"


def parse_octo(text: str) -> int:
    """`1.25` or `1.25 OCTO` as an integer; raises RequestInvalid for anything else."""
    match = _OCTO_TEXT.fullmatch(text.strip())
    amount = int(match[1] + (match[2] or "").ljust(18, "0")) if match else -1
    if not 0 <= amount <= AMOUNT_LIMIT:
        raise RequestInvalid(f"{text[:40]!r} is not an amount of OCTO.", next_step="Write it like 1.25.")
    return amount
