"""Calls, results, events and errors, against eth-abi and web3, and with bytes that do not fit."""

import pytest
from eth_abi.abi import encode
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from contracts.abi import Abi, merge
from contracts.abis import abi_of
from contracts.faults import ChainError

WHO = bytes(range(20))
ERROR = {"type": "error", "name": "No", "inputs": [{"name": "why", "type": "bytes32"}]}
TWICE = [
    {"type": "function", "name": "f", "inputs": [{"name": "a", "type": "uint256"}], "outputs": []},
    {"type": "function", "name": "f", "inputs": [{"name": "a", "type": "address"}], "outputs": []},
]


def test_a_call_is_selector_and_arguments():
    called = abi_of("Octo").call("transfer", WHO, 7)
    assert called == keccak(b"transfer(address,uint256)")[:4] + encode(["address", "uint256"], [WHO, 7])


def test_structs_are_tuples_in_the_selector_too():
    voucher = (WHO, WHO, bytes(32), 5, bytes(32), bytes(32), bytes(32))
    called = abi_of("PaymentChannels").call("redeemBatch", WHO, [voucher, voucher])
    signature = b"redeemBatch(address,(address,address,bytes32,uint256,bytes32,bytes32,bytes32)[])"
    assert called[:4] == keccak(signature)[:4]
    assert len(called) == 4 + 32 * (2 + 1 + 2 * 7)


def test_an_overloaded_function_is_called_by_its_signature():
    abi = Abi(TWICE)
    assert abi.call("f(address)", WHO)[:4] == keccak(b"f(address)")[:4]
    assert abi.call("f(uint256)", 1)[:4] == keccak(b"f(uint256)")[:4]


@given(deposit=st.integers(0, 2**96 - 1), redeemed=st.integers(0, 2**96 - 1), closes=st.integers(0, 2**64 - 1))
def test_a_result_is_what_was_encoded(deposit, redeemed, closes):
    data = encode(["(uint96,uint96,uint64)"], [(deposit, redeemed, closes)])
    assert abi_of("PaymentChannels").result("channel", data) == (deposit, redeemed, closes)


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 31, b"\xff" * 32, b"\xff" * 4096])
def test_a_result_of_another_shape_is_an_error_with_a_next_step(data):
    with pytest.raises(ChainError, match=r"not .*Is this the address of another contract"):
        abi_of("PaymentChannels").result("channel", data)


def test_addresses_are_bytes_and_texts_stay_texts():
    assert abi_of("PaymentChannels").result("token", WHO.rjust(32, b"\0")) == WHO
    assert abi_of("Octo").result("name", encode(["string"], ["0x" + "ab" * 20])) == "0x" + "ab" * 20


def test_an_event_is_read_from_topics_and_data():
    abi = abi_of("PaymentChannels")
    topics = [abi.topic("Opened"), b"\1" * 32, WHO.rjust(32, b"\0"), WHO.rjust(32, b"\0")]
    event = abi.event(topics, encode(["address", "bytes32"], [WHO, b"\2" * 32]))
    assert event.name == "Opened"
    assert event.arguments == {
        "channelId": b"\1" * 32, "payer": WHO, "payee": WHO, "sessionKey": WHO, "salt": b"\2" * 32,
    }  # fmt: skip


def test_anothers_event_is_none():
    abi = abi_of("PaymentChannels")
    assert abi.event([], b"") is None
    assert abi.event([b"\9" * 32], b"") is None
    assert abi.event([abi.topic("Opened")], b"") is None, "anonymous or with other indexes"


def test_an_error_is_told_by_name_and_arguments():
    abi = Abi([ERROR])
    assert abi.fault(keccak(b"No(bytes32)")[:4] + b"\3" * 32) == ("No", (b"\3" * 32,))
    assert abi.fault(bytes.fromhex("08c379a0") + encode(["string"], ["no money"])) == ("Error", ("no money",))
    assert abi.fault(bytes.fromhex("4e487b71") + encode(["uint256"], [0x11])) == ("Panic", (0x11,))
    assert abi.fault(b"") == abi.fault(b"\1\2\3\4") == ("", ())


def test_merged_abis_know_the_errors_of_both():
    merged = merge(abi_of("PaymentChannels"), abi_of("Octo"))
    for signature in (b"Stale(bytes32,uint256,uint256)", b"ERC20InsufficientBalance(address,uint256,uint256)"):
        data = keccak(signature)[:4] + bytes(96)
        assert merged.fault(data)[0] == signature.split(b"(")[0].decode()
