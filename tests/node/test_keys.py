"""Keys are made once, whole or not at all, and never shown."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nacl.signing
import pytest

from market.errors import NodeMisconfigured
from market.identity import Binding, PeerId, check_binding, peer_of_public_key
from market.signing import recover_address
from market.values import decode
from node.folder import open_folder
from node.keys import BINDING_LIFE_MS, DAY_MS, make_binding, open_keys, rotate_receipt_key

ROOT = Path(__file__).resolve().parents[2]
NOW_MS = 1_800_000_000_000
FILES = {"peer.key", "receipt.key", "session.key", "wallet.json", "wallet.password"}


class SeedSigner:
    """Signs with a peer seed, as `p2p.keys` does."""

    def __init__(self, seed: bytes) -> None:
        self._key = nacl.signing.SigningKey(seed)
        self.peer: PeerId = peer_of_public_key(bytes(self._key.verify_key))

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data).signature


@pytest.fixture
def folder(tmp_path):
    with open_folder(tmp_path / "octo") as opened:
        yield opened


def names(folder) -> set[str]:
    return {path.name for path in folder.path("keys", "x").parent.iterdir()}


def test_a_bare_start_makes_all_keys_and_the_next_one_finds_them(folder):
    first, again = open_keys(folder), open_keys(folder)
    assert names(folder) == FILES
    assert (first.peer_seed, first.session_seed) == (again.peer_seed, again.session_seed)
    assert (first.receipt.address, first.wallet.address) == (again.receipt.address, again.wallet.address)
    assert len({first.peer_seed, first.session_seed}) == 2
    assert first.receipt.address != first.wallet.address


def test_only_the_owner_may_read_them(folder):
    open_keys(folder)
    assert {path.stat().st_mode & 0o777 for path in folder.path("keys", "x").parent.iterdir()} == {0o600}


def test_no_secret_is_in_a_repr(folder):
    keys = open_keys(folder)
    shown = repr(keys) + repr([keys]) + str(keys)
    for name in FILES - {"wallet.json"}:
        assert folder.path("keys", name).read_text().strip() not in shown
    assert repr(keys.peer_seed) not in shown
    assert repr(keys.session_seed) not in shown


def test_a_bare_start_opens_the_wallet_quickly(folder):
    """The password is random, so the derivation is light: 10 ms here, where a person's takes most of a second."""
    open_keys(folder)
    before = time.process_time()
    open_keys(folder)
    assert time.process_time() - before < 1.0
    assert json.loads(folder.path("keys", "wallet.json").read_bytes())["crypto"]["kdfparams"]["n"] == 4096


def test_the_users_own_password_is_used_and_not_written_down(folder):
    made = open_keys(folder, password="correct horse")
    assert names(folder) == FILES - {"wallet.password"}
    assert not any(b"correct horse" in path.read_bytes() for path in folder.root.rglob("*") if path.is_file())
    assert open_keys(folder, ask_password=lambda: "correct horse").wallet.address == made.wallet.address
    with pytest.raises(NodeMisconfigured, match="does not open"):
        open_keys(folder, password="wrong")
    with pytest.raises(NodeMisconfigured, match=r"wants its password.*OCTO_WALLET_PASSWORD"):
        open_keys(folder)


def test_an_empty_password_is_refused(folder):
    with pytest.raises(NodeMisconfigured, match="empty"):
        open_keys(folder, password="")


def test_a_kill_between_password_and_wallet_leaves_no_locked_wallet(folder):
    open_keys(folder)
    folder.path("keys", "wallet.json").unlink()
    password = folder.path("keys", "wallet.password").read_text()
    open_keys(folder)
    assert folder.path("keys", "wallet.password").read_text() == password
    open_keys(folder)


@pytest.mark.parametrize("content", [b"", b"00", b"zz" * 32, b"\xff" * 64, b"0" * 65])
@pytest.mark.parametrize("name", ["peer.key", "receipt.key", "session.key"])
def test_a_damaged_key_is_refused_by_name_and_not_replaced(folder, name, content):
    open_keys(folder)
    folder.path("keys", name).write_bytes(content)
    with pytest.raises(NodeMisconfigured, match=f"{name} holds no key") as caught:
        open_keys(folder)
    assert folder.path("keys", name).read_bytes() == content
    assert not content or content.decode("latin-1") not in str(caught.value)


@pytest.mark.parametrize("name", ["peer.key", "receipt.key", "session.key", "wallet.password"])
def test_a_key_that_others_may_read_is_refused(folder, name):
    open_keys(folder)
    folder.path("keys", name).chmod(0o644)
    with pytest.raises(NodeMisconfigured, match="chmod 600"):
        open_keys(folder)


def test_each_channel_has_a_session_key_of_its_own_that_comes_back(folder):
    keys = open_keys(folder)
    first, other = keys.session_key(b"\1" * 32), keys.session_key(b"\2" * 32)
    assert first.address != other.address
    assert open_keys(folder).session_key(b"\1" * 32).address == first.address
    assert recover_address(b"\3" * 32, first.sign_digest(b"\3" * 32)) == first.address


_MAKER = """
import sys
from pathlib import Path
from node.folder import open_folder
from node.keys import open_keys
with open_folder(Path(sys.argv[1])) as folder:
    print("go", flush=True)
    open_keys(folder)
"""


def test_a_kill_at_any_moment_leaves_a_folder_that_starts(tmp_path):
    for delay_s in (0, 0.003, 0.01, 0.03, 0.1, 0.3):
        root = tmp_path / str(delay_s)
        maker = subprocess.Popen([sys.executable, "-c", _MAKER, root], stdout=subprocess.PIPE, cwd=ROOT)
        maker.stdout.readline()
        time.sleep(delay_s)
        maker.kill()
        maker.wait()
        maker.stdout.close()
        with open_folder(root) as folder:
            open_keys(folder)
            assert {name for name in names(folder) if not name.endswith(".new")} == FILES


# ---- the binding ---------------------------------------------------------------------------------


def bind(folder, *, now_ms: int = NOW_MS, network: str = "octo"):
    keys = open_keys(folder)
    return make_binding(keys, peer=SeedSigner(keys.peer_seed), folder=folder, network=network, now_ms=now_ms)


def test_the_binding_names_and_is_signed_by_all_three_keys(folder):
    keys = open_keys(folder)
    binding = check_binding(bind(folder), network="octo", now_ms=NOW_MS)
    assert binding.peer == SeedSigner(keys.peer_seed).peer
    assert (binding.receipt_key, binding.wallet) == (keys.receipt.address, keys.wallet.address)


def test_a_peer_whose_clock_is_a_little_behind_accepts_it(folder):
    check_binding(bind(folder), network="octo", now_ms=NOW_MS - 30 * 60_000)


def test_the_binding_is_the_same_until_it_nears_its_end(folder):
    first = bind(folder)
    assert bind(folder, now_ms=NOW_MS + BINDING_LIFE_MS - 8 * DAY_MS) == first
    renewed = bind(folder, now_ms=NOW_MS + BINDING_LIFE_MS - 6 * DAY_MS)
    assert decode_nonce(renewed) > decode_nonce(first)


def decode_nonce(signed) -> int:
    return decode(Binding, signed.body).nonce


def test_a_new_receipt_key_takes_a_new_binding(folder):
    first = bind(folder)
    rotate_receipt_key(folder)
    second = bind(folder)
    assert decode_nonce(second) == decode_nonce(first) + 1
    assert check_binding(second, network="octo", now_ms=NOW_MS).receipt_key == open_keys(folder).receipt.address


def test_another_network_takes_another_binding(folder):
    bind(folder)
    check_binding(bind(folder, network="other"), network="other", now_ms=NOW_MS)


def test_a_clock_that_was_set_back_does_not_lower_the_nonce(folder):
    first = bind(folder)
    rotate_receipt_key(folder)
    assert decode_nonce(bind(folder, now_ms=NOW_MS - DAY_MS)) == decode_nonce(first) + 1


@pytest.mark.parametrize("damage", [b"", b"\x81" * 9999, os.urandom(300)])
def test_a_damaged_binding_is_made_anew(folder, damage):
    bind(folder)
    folder.path("keys", "binding.cbor").write_bytes(damage)
    check_binding(bind(folder), network="octo", now_ms=NOW_MS)
