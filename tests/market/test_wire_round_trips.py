"""Every wire type, with values drawn from its own annotations, comes back from its bytes as itself.

The strategies are derived from the types, so a new field is covered the day it is added.
"""

import contextlib
import dataclasses
import types
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from market.channel import Channel
from market.errors import EncodingInvalid
from market.identity import Binding, SignedBinding
from market.kept import Kept
from market.merkle import Peaks
from market.message import TYPE_OF, Message
from market.money import AMOUNT_LIMIT, Amount
from market.offer import Offer, SignedOffer
from market.quote import Quote, SignedQuote
from market.receipt import Receipt, SignedReceipt
from market.record import ReceiptRecord
from market.signing import Address
from market.task import ChatTask, Sampling
from market.values import Word, decode, encode
from market.voucher import ChannelTerms, Opening, Voucher, VoucherFrame

WIRE_TYPES = (
    Binding, SignedBinding, Offer, SignedOffer, Quote, SignedQuote, Receipt, SignedReceipt, ChannelTerms, Opening,
    Voucher, VoucherFrame, Sampling, ChatTask, Message, Peaks, Channel, ReceiptRecord, Kept, *TYPE_OF,
)  # fmt: skip


def drawn(hint: Any, bounds: dict[str, Any] | None = None) -> st.SearchStrategy[Any]:
    """A strategy for a type hint. Lists stay short whatever their limit: the limits have tests of their own."""
    bounds = bounds or {}
    origin = get_origin(hint)
    if isinstance(hint, NewType):
        return drawn(hint.__supertype__, bounds)
    if hint == Amount:
        return st.integers(0, AMOUNT_LIMIT)
    if hint == Address:
        return st.binary(min_size=20, max_size=20)
    if origin is Annotated:
        inner, *notes = get_args(hint)
        found = dict(bounds)
        for note in notes:
            for rule in note.metadata if isinstance(note, FieldInfo) else ():
                found |= {field: getattr(rule, field) for field in rule.__slots__}
        return drawn(inner, found)
    if origin is Literal:
        return st.sampled_from(get_args(hint))
    if origin in (Union, types.UnionType):
        return st.one_of(*(drawn(option) for option in get_args(hint)))
    if origin is tuple:
        low = bounds.get("min_length", 0)
        return st.lists(drawn(get_args(hint)[0]), min_size=low, max_size=max(low, 3)).map(tuple)
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint, include_extras=True)
        return st.builds(hint, **{f.name: drawn(hints[f.name]) for f in dataclasses.fields(hint)})
    if isinstance(hint, type) and issubclass(hint, Word):
        return st.sampled_from(list(hint))
    if hint is bool:
        return st.booleans()
    if hint is type(None):
        return st.none()
    if hint is int:
        low = bounds.get("ge", bounds.get("gt", -1) + 1)
        return st.integers(low, bounds.get("le", bounds.get("lt", 2**53) - 1))
    size = {"min_size": bounds.get("min_length", 0), "max_size": min(bounds.get("max_length", 64), 64)}
    size["max_size"] = max(size["max_size"], bounds.get("min_length", 0))
    if hint is str:
        return st.text(**size)
    assert hint is bytes, hint
    return st.binary(**size)


@pytest.mark.parametrize("kind", WIRE_TYPES, ids=lambda kind: kind.__name__)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_a_value_reads_back_from_its_bytes(kind: type, data: st.DataObject) -> None:
    item = data.draw(drawn(kind))
    raw = encode(kind, item)
    back = decode(kind, raw)
    assert back == item
    assert type(back) is kind
    assert encode(kind, back) == raw


@pytest.mark.parametrize("kind", WIRE_TYPES, ids=lambda kind: kind.__name__)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_a_flipped_bit_is_refused_or_means_another_value(kind: type, data: st.DataObject) -> None:
    item = data.draw(drawn(kind))
    raw = bytearray(encode(kind, item))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(EncodingInvalid):
        assert decode(kind, bytes(raw)) != item


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_never_a_message(noise: bytes) -> None:
    with pytest.raises(EncodingInvalid):
        decode(Message, noise)
