"""Transactions and permits, byte for byte as eth-account makes them."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

_limit = sys.getrecursionlimit()
from eth_account import Account  # noqa: E402
from eth_account.messages import encode_typed_data  # noqa: E402

sys.setrecursionlimit(_limit)  # py_ecc, which it loads, sets 100,000

from contracts.transactions import (  # noqa: E402
    Fees,
    Transaction,
    compact,
    contract_address,
    sign_permit,
    sign_transaction,
)
from market.signing import Secp256k1Signer, address_text  # noqa: E402

SECRET = b"\x11" * 32
SIGNER = Secp256k1Signer(SECRET)


@given(
    chain_id=st.integers(1, 2**60), nonce=st.integers(0, 2**32), tip=st.integers(0, 2**40), more=st.integers(0, 2**40),
    gas=st.integers(21_000, 30_000_000), to=st.none() | st.binary(min_size=20, max_size=20),
    amount=st.integers(0, 2**128), data=st.binary(max_size=300),
)  # fmt: skip
def test_a_transaction_is_the_one_that_eth_account_signs(chain_id, nonce, tip, more, gas, to, amount, data):
    fees = Fees(max_fee=tip + more, tip=tip)
    ours = sign_transaction(
        Transaction(chain_id=chain_id, nonce=nonce, fees=fees, gas=gas, to=to, amount=amount, data=data), SIGNER
    )
    fields = {
        "type": 2, "chainId": chain_id, "nonce": nonce, "maxPriorityFeePerGas": tip, "maxFeePerGas": tip + more,
        "gas": gas, "value": amount, "data": data, **({"to": address_text(to)} if to else {}),
    }  # fmt: skip
    theirs = Account.from_key(SECRET).sign_transaction(fields)
    assert (ours.raw, ours.hash) == (bytes(theirs.raw_transaction), bytes(theirs.hash))


@given(amount=st.integers(0, 2**256 - 1), nonce=st.integers(0, 2**64), deadline=st.integers(0, 2**64))
def test_a_permit_is_the_one_that_eip_2612_says(amount, nonce, deadline):
    token, spender = b"\x22" * 20, b"\x33" * 20
    permit = sign_permit(
        token=token, token_name="OCTO-A", chain_id=31337, spender=spender, amount=amount, nonce=nonce,
        deadline=deadline, owner=SIGNER,
    )  # fmt: skip
    names = (("owner", "address"), ("spender", "address"), ("value", "uint256"), ("nonce", "uint256"),
             ("deadline", "uint256"))  # fmt: skip
    typed = encode_typed_data(
        {"name": "OCTO-A", "version": "1", "chainId": 31337, "verifyingContract": address_text(token)},
        {"Permit": [{"name": name, "type": kind} for name, kind in names]},
        {"owner": address_text(SIGNER.address), "spender": address_text(spender), "value": amount, "nonce": nonce,
         "deadline": deadline},
    )  # fmt: skip
    signed = Account.from_key(SECRET).sign_message(typed)
    assert (permit.v, permit.r, permit.s) == (signed.v, signed.r.to_bytes(32, "big"), signed.s.to_bytes(32, "big"))


def test_where_a_contract_will_lie_follows_from_deployer_and_nonce():
    deployer = bytes.fromhex("6ac7ea33f8831ea9dcc53393aaa88b25a785dbf0")
    known = ("cd234a471b72ba2f1ccf0a70fcaba648a5eecd8d", "343c43a37d37dff08ae8c4a11544c718abb4fcf8")
    assert [contract_address(deployer, nonce).hex() for nonce in (0, 1)] == list(known)


@pytest.mark.parametrize(("v", "top"), [(27, 0x00), (28, 0x80)])
def test_the_parity_is_in_the_top_bit_of_s(v, top):
    r, vs = compact(b"\1" * 32 + b"\2" * 32 + bytes((v,)))
    assert (r, vs) == (b"\1" * 32, bytes((top | 2,)) + b"\2" * 31)


def test_a_bump_is_always_more():
    assert Fees(max_fee=7, tip=0).bumped(12) == Fees(max_fee=8, tip=1)
    assert Fees(max_fee=1000, tip=100).bumped(25) == Fees(max_fee=1250, tip=125)
