"""What the settings make of vLLM: whether it may run a model, and that its page in the docs names them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inference.engines.vllm_command import ARGUMENTS
from inference.models.compatibility import EngineKind, Machine
from inference.models.manifest import Format, HardwareNeeds
from market.errors import NodeMisconfigured
from node.config import load_settings
from node.serving_vllm import vllm_fits
from node.settings import VllmSettings
from tests.inference.models.model_kit import a_manifest

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "vllm.md").read_text(encoding="utf-8")
GB = 10**9
LAPTOP = Machine(ram_bytes=8 * GB, vram_bytes=0, accelerators=frozenset())


def model(gb: int = 1, **changes):
    return a_manifest(format=Format.SAFETENSORS, needs=HardwareNeeds(min_ram_bytes=gb * GB), **changes)


def test_vllm_runs_text_in_safetensors_once_the_settings_say_where_it_is() -> None:
    named = VllmSettings(python=Path("/e/bin/python"))
    assert vllm_fits(model(), named, LAPTOP).engine is EngineKind.VLLM
    assert vllm_fits(model(), named, LAPTOP).ok
    assert vllm_fits(model(), VllmSettings(), LAPTOP).reason.startswith("set vllm.python")
    assert not vllm_fits(model(modality="image"), named, LAPTOP).ok
    assert "there is at most 8.0 GB" in vllm_fits(model(9), named, LAPTOP).reason


def test_over_ray_a_model_may_be_larger_than_this_machine() -> None:
    assert vllm_fits(model(900), VllmSettings(python=Path("/e/bin/python"), ray="auto"), LAPTOP).ok


def test_settings_come_as_a_person_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[vllm]\npython = "~/vllm/bin/python"\nmemory = "8 GiB"\ndevices = ["0", "1"]\n'
        'arguments = ["--block-size=16"]\nmax_model_len = 8192\n'
    )
    vllm = load_settings(config=file).vllm
    assert (vllm.memory, vllm.devices, vllm.arguments) == (8 << 30, ("0", "1"), ("--block-size=16",))
    assert vllm.python == Path.home() / "vllm" / "bin" / "python"


@pytest.mark.parametrize(
    "wrong", [{"slots": 0}, {"memory": "lots"}, {"dtype": "int3"}, {"tensor_parallel": 0}, {"trust_remote_code": True}]
)
def test_settings_that_cannot_be_meant_are_refused_with_their_name(wrong: dict) -> None:
    ((name, given),) = wrong.items()
    with pytest.raises(NodeMisconfigured, match=f"vllm.{name}"):
        load_settings(overrides={f"vllm.{name}": given})


def test_the_docs_name_every_setting_and_every_argument_and_no_other() -> None:
    table = DOCS.split("## Settings")[1].split("## ")[0]
    named = {name for row in re.findall(r"(?m)^\| (`.+?`) \|", table) for name in re.findall(r"`vllm\.(\w+)`", row)}
    assert named == set(VllmSettings.model_fields)
    listed = table.split("`vllm.arguments` takes ")[1].split(".")[0]
    assert set(re.findall(r"`(--[a-z-]+)`", listed)) == ARGUMENTS
