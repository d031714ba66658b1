"""What a refusal can offer instead: smaller formats, and models that are here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "models"))

from model_kit import a_file, a_manifest

from inference.models.compatibility import Machine
from inference.models.manifest import HardwareNeeds, Role
from inference.quantization.fitting import fitting_formats, what_would_fit

GB = 10**9


def model(**changes):
    """8 billion weights, 1.5 GB beside them."""
    said = {
        "name": "Otter-8B",
        "quantisation": "F16",
        "files": (a_file(size_bytes=16 * GB), a_file(Role.TOKENIZER)),
        "needs": HardwareNeeds(min_ram_bytes=17_500_000_000, min_vram_bytes=17_500_000_000),
    }
    return a_manifest(**{**said, **changes})


def machine(ram, vram=0):
    return Machine(ram_bytes=int(ram * GB), vram_bytes=int(vram * GB), accelerators=frozenset())


@pytest.mark.parametrize(("ram", "best"), [(12, "Q8_0"), (8.2, "Q6_K"), (6.4, "Q4_K_M"), (5.5, "Q3_K_M"), (3, None)])
def test_the_largest_format_that_fits_is_named_first(ram, best):
    found = fitting_formats(model(), machine(ram))
    assert (found[0].word if found else None) == best


def test_the_sentence_names_the_command():
    words = what_would_fit(model(), machine(12))
    assert "octo-node models quantize Otter-8B --to Q8_0`" in words
    assert "--again" not in words
    assert "--to Q6_K --again" in what_would_fit(model(quantisation="Q8_0"), machine(14))
    assert what_would_fit(model(), machine(1)) == ""


def test_a_card_is_room_too():
    assert fitting_formats(model(), machine(2, vram=12))[0].word == "Q8_0"


def test_what_is_here_and_small_enough_is_named():
    small = a_manifest(name="Mouse-1B", quantisation="Q4_0", needs=HardwareNeeds(min_ram_bytes=GB))
    picture = a_manifest(name="Owl", modality="image", needs=HardwareNeeds(min_ram_bytes=GB))
    words = what_would_fit(model(), machine(2), [small, picture, model()])
    assert words == "Here already, and small enough: Mouse-1B Q4_0."


def test_a_model_that_says_nothing_about_itself_gets_no_promise():
    assert fitting_formats(model(quantisation="unknown"), machine(12)) == ()
    assert fitting_formats(model(needs=HardwareNeeds()), machine(12)) == ()
