"""On a card or here: what each library is asked, and what happens if a card then does not do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from inference.work.ways import ctranslate2_ways, open_first, torch_ways

CARD, HERE = ("cuda", "float16"), ("cpu", "float32")


def ctranslate2(cards: int, *types: str) -> SimpleNamespace:
    return SimpleNamespace(get_cuda_device_count=lambda: cards, get_supported_compute_types=lambda _device: set(types))


def torch(*, available: bool, bf16: bool = True) -> SimpleNamespace:
    return SimpleNamespace(
        cuda=SimpleNamespace(is_available=lambda: available, is_bf16_supported=lambda: bf16), bfloat16=0, float16=0
    )


def test_a_card_comes_before_the_processor_with_sums_in_halves_where_it_can():
    assert ctranslate2_ways(ctranslate2(1, "int8", "int8_float16"), "int8", cards=True) == [
        ("cuda", "int8_float16"),
        ("cpu", "int8"),
    ]
    assert ctranslate2_ways(ctranslate2(1, "int8"), "int8", cards=True) == [("cuda", "int8"), ("cpu", "int8")]


def test_without_a_card_that_the_node_gives_or_the_library_knows_there_is_the_processor():
    only = [("cpu", "int8")]
    assert ctranslate2_ways(ctranslate2(0), "int8", cards=True) == only
    assert ctranslate2_ways(ctranslate2(4, "int8"), "int8", cards=False) == only
    assert torch_ways(torch(available=False), "", cards=True) == torch_ways(torch(available=True), "", cards=False)
    assert torch_ways(torch(available=False), "", cards=True) == [HERE]


def test_images_are_drawn_in_the_halves_that_a_card_has_unless_a_format_is_named():
    assert torch_ways(torch(available=True), "", cards=True) == [("cuda", "bfloat16"), HERE]
    assert torch_ways(torch(available=True, bf16=False), "", cards=True) == [CARD, HERE]
    assert torch_ways(torch(available=True), "float16", cards=True) == [CARD, ("cpu", "float16")]


def test_a_card_without_room_is_passed_over_and_the_processors_error_counts():
    tried = []

    def full(device: str, numbers: str) -> str:
        tried.append((device, numbers))
        if device == "cuda":
            raise RuntimeError("CUDA out of memory")
        return device

    assert open_first([CARD, HERE], full) == "cpu"
    assert tried == [CARD, HERE]
    assert open_first([CARD, HERE], lambda device, _: device) == "cuda"

    def broken(device: str, _: str) -> str:
        raise RuntimeError(device)

    with pytest.raises(RuntimeError, match="cpu"):
        open_first([CARD, HERE], broken)


def test_a_model_that_is_broken_is_not_tried_twice():
    def bad(_device: str, _numbers: str) -> str:
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="layer"):
        open_first([CARD, HERE], bad)
