"""The key is shown once and kept as a hash; the CLI's token changes with each start."""

import json

import pytest

from market.errors import NodeMisconfigured
from node.api_keys import make_api_key, open_api_keys
from node.folder import open_folder


@pytest.fixture
def folder(tmp_path):
    with open_folder(tmp_path / "octo") as opened:
        yield opened


def test_the_first_start_makes_a_key_and_no_later_one_does(folder):
    keys, made = open_api_keys(folder)
    assert made.startswith("octo-")
    assert len(made) >= 5 + 32
    assert keys.check(made)
    keys.keep()
    again, nothing = open_api_keys(folder)
    assert nothing is None
    assert again.check(made)


def test_a_key_that_nobody_saw_is_made_anew_at_the_next_start(folder):
    _, unseen = open_api_keys(folder)
    keys, made = open_api_keys(folder)
    assert made is not None
    assert keys.check(made)
    assert not keys.check(unseen)
    keys.keep()
    keys.keep()
    later, nothing = open_api_keys(folder)
    assert nothing is None
    assert later.check(made)


def test_the_key_lies_nowhere_in_the_folder(folder):
    keys, made = open_api_keys(folder)
    keys.keep()
    assert not any(made.encode() in path.read_bytes() for path in folder.root.rglob("*") if path.is_file())
    assert folder.path("api_keys.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "change", [lambda k: k[:-1], lambda k: k + "x", str.upper, lambda k: "", lambda k: "ключ\ud800"]
)
def test_anything_but_the_key_is_refused(folder, change):
    keys, made = open_api_keys(folder)
    assert not keys.check(change(made))


def test_a_huge_key_is_refused_cheaply(folder):
    keys, made = open_api_keys(folder)
    assert not keys.check(made + "x" * 50_000_000)


def test_more_keys_may_be_made_before_or_after_the_first_start(folder):
    first = make_api_key(folder)
    keys, made = open_api_keys(folder)
    assert made is None
    assert keys.check(first)
    second = make_api_key(folder)
    later, _ = open_api_keys(folder)
    assert later.check(first)
    assert later.check(second)


def test_the_token_is_the_owners_new_at_each_start_and_more_than_a_key(folder):
    keys, made = open_api_keys(folder)
    token = keys.token_file.read_text()
    assert keys.token_file.stat().st_mode & 0o777 == 0o600
    assert keys.check(token)
    assert keys.is_token(token)
    assert not keys.is_token(made)
    later, _ = open_api_keys(folder)
    assert not later.check(token)


@pytest.mark.parametrize(
    "stored", [b"", b"[]", b"{}", b'{"version": 1, "sha256": ["00"]}', b'{"version": 1, "sha256": []}',
               json.dumps({"version": 2, "sha256": ["00" * 32]}).encode()],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_the_next_step(folder, stored):
    folder.path("api_keys.json").write_bytes(stored)
    with pytest.raises(NodeMisconfigured, match="Move it away"):
        open_api_keys(folder)
