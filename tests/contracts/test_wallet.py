"""The keystore opens with its password alone, affordably, and signs fast."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.wallet import assert_fast_backend, new_secret, open_keystore, seal_keystore
from market.errors import NodeMisconfigured
from market.signing import Secp256k1Signer, recover_address

ROOT = Path(__file__).resolve().parents[2]
SECRET = bytes(range(1, 33))


@pytest.fixture(scope="module")
def keystore() -> bytes:
    return seal_keystore(SECRET, "a random one", random_password=True)


def test_what_was_sealed_opens_and_signs(keystore):
    signer = open_keystore(keystore, "a random one")
    assert signer.address == Secp256k1Signer(SECRET).address
    assert recover_address(b"\7" * 32, signer.sign_digest(b"\7" * 32)) == signer.address


def test_eth_account_opens_our_keystore_and_we_open_its(keystore):
    limit = sys.getrecursionlimit()
    from eth_account import Account

    sys.setrecursionlimit(limit)  # py_ecc raises it for all who come after
    assert Account.decrypt(json.loads(keystore), "a random one") == SECRET
    theirs = json.dumps(Account.encrypt(SECRET, "theirs", kdf="scrypt", iterations=4096)).encode()
    assert open_keystore(theirs, "theirs").address == Secp256k1Signer(SECRET).address
    pbkdf2 = json.dumps(Account.encrypt(SECRET, "theirs", kdf="pbkdf2", iterations=1000)).encode()
    assert open_keystore(pbkdf2, "theirs").address == Secp256k1Signer(SECRET).address


def test_wallets_leave_the_recursion_limit_alone():
    """At py_ecc's limit of 100,000 a nested JSON body from the network would crash the node."""
    code = (
        "import sys; from contracts.wallet import *; assert_fast_backend();"
        "open_keystore(seal_keystore(new_secret(), 'x', random_password=True), 'x'); print(sys.getrecursionlimit())"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "1000"


def test_a_wrong_password_is_refused_without_a_word_of_either(keystore):
    with pytest.raises(NodeMisconfigured, match="does not open") as caught:
        open_keystore(keystore, "guess-me")
    assert "guess-me" not in str(caught.value)
    assert SECRET.hex() not in str(caught.value)


def test_a_password_that_a_person_chose_is_stretched():
    params = json.loads(seal_keystore(SECRET, "hunter2", random_password=False))["crypto"]["kdfparams"]
    assert (params["n"], params["r"], params["p"]) == (262144, 8, 1)


@pytest.mark.parametrize(
    "params",
    [
        {"n": 1 << 40}, {"r": 1 << 20}, {"p": 1000}, {"n": "many"}, {"dklen": 16}, {"n": True}, {"n": -1}, {"n": 4095},
        {"salt": "xx"}, {"r": 8.0}, {"r": -8}, {"p": 0},
    ],
)  # fmt: skip
def test_a_keystore_that_would_eat_the_machine_is_refused_before_it_does(keystore, params):
    hostile = json.loads(keystore)
    hostile["crypto"]["kdfparams"].update(params)
    with pytest.raises(NodeMisconfigured, match="not an Ethereum keystore"):
        open_keystore(json.dumps(hostile).encode(), "a random one")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b"[" * 10_000, b"\xff\xfe", b" " * 20_000, b'{"crypto": 3}']
)
def test_what_is_no_keystore_is_refused(data):
    with pytest.raises(NodeMisconfigured, match="not an Ethereum keystore"):
        open_keystore(data, "x")


def test_a_flipped_bit_is_noticed(keystore):
    damaged = json.loads(keystore)
    text = damaged["crypto"]["ciphertext"]
    damaged["crypto"]["ciphertext"] = f"{int(text[0], 16) ^ 1:x}" + text[1:]
    with pytest.raises(NodeMisconfigured, match="does not open"):
        open_keystore(json.dumps(damaged).encode(), "a random one")


def test_an_address_that_is_not_the_keys_is_refused(keystore):
    other = json.loads(keystore)
    other["address"] = "00" * 20
    with pytest.raises(NodeMisconfigured, match="names another address"):
        open_keystore(json.dumps(other).encode(), "a random one")


def test_new_secrets_are_keys():
    assert len({Secp256k1Signer(new_secret()).address for _ in range(8)}) == 8


def test_coincurve_is_the_backend():
    assert_fast_backend()


def test_the_slow_backend_is_refused():
    """eth-keys reads its choice at import, so a process of its own."""
    code = "from contracts.wallet import assert_fast_backend; assert_fast_backend()"
    slow = {**os.environ, "ECC_BACKEND_CLASS": "eth_keys.backends.NativeECCBackend"}
    ran = subprocess.run([sys.executable, "-c", code], env=slow, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "NativeECCBackend, which is 12 times too slow" in ran.stderr
