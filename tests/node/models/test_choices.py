"""What the owner decided about models outlives the process, and a damaged file is told, not forgotten."""

from pathlib import Path

import pytest

from market.errors import NodeMisconfigured, RequestInvalid
from node.models.choices import Choices


def test_a_choice_outlives_the_process(tmp_path: Path) -> None:
    assert Choices(tmp_path / "models.json", settled={}).add("trust", "hf:owner")
    again = Choices(tmp_path / "models.json", settled={})
    assert again.all("trust") == ("hf:owner",)
    assert not again.add("trust", "hf:owner")
    assert again.remove("trust", "hf:owner")
    assert Choices(tmp_path / "models.json", settled={}).all("trust") == ()


def test_what_the_settings_say_counts_and_cannot_be_taken_back_here(tmp_path: Path) -> None:
    choices = Choices(tmp_path / "models.json", settled={"trust": ("hf:owner",)})
    assert choices.all("trust") == ("hf:owner",)
    with pytest.raises(RequestInvalid, match="settings"):
        choices.remove("trust", "hf:owner")


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b'{"trust": 5}', b"\xff\xfe"])
def test_a_damaged_file_is_told_with_the_next_step(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "models.json").write_bytes(damaged)
    with pytest.raises(NodeMisconfigured, match=r"models\.json"):
        Choices(tmp_path / "models.json", settled={})


@pytest.mark.parametrize("entry", ["", "two words", "x" * 5000, "line\nbreak"])
def test_an_entry_is_one_word(tmp_path: Path, entry: str) -> None:
    with pytest.raises(RequestInvalid):
        Choices(tmp_path / "models.json", settled={}).add("pins", entry)
