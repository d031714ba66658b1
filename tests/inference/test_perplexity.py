"""Perplexity: the formula by hand, the order of formats on real weights, and what is refused."""

from __future__ import annotations

import math

import pytest
from tokenizers import Tokenizer

from inference.models.gguf_tokenizer import read_gguf_tokenizer
from inference.perplexity import from_surprises, measure_perplexity
from inference.quantization.comparing import TEXT
from inference.quantize import quantize
from market.errors import EngineFailed, ModelFileInvalid, RequestInvalid


def test_the_formula_is_the_exponential_of_the_mean_surprise():
    found = from_surprises([math.log(2), math.log(8)], "e")
    assert found.perplexity == pytest.approx(4)
    spread = math.log(8) - math.log(4)
    assert found.error == pytest.approx(4 * spread * math.sqrt(2) / math.sqrt(2))
    assert (found.tokens, found.engine) == (2, "e")
    assert from_surprises([math.log(50)] * 7, "e").error == pytest.approx(0)


def test_a_model_that_gives_no_numbers_has_no_perplexity():
    with pytest.raises(EngineFailed, match="no probabilities"):
        from_surprises([1.0, math.nan], "e")


@pytest.fixture(scope="module")
def tokens(wheel_model):
    """The first 66 of the text: a whole chunk is fed, and a lone row."""
    return Tokenizer.from_str(read_gguf_tokenizer(wheel_model).tokenizer_json).encode(TEXT.read_text()).ids[:66]


@pytest.mark.model
async def test_fewer_bits_foretell_worse(wheel_model, default_model, tokens, tmp_path):
    """F16 <= Q8_0 <= Q4_0, give or take a hundredth; all by the same weights."""
    found = {}
    for word in ("F16", "Q8_0"):
        made = tmp_path / f"{word}.gguf"
        await quantize(wheel_model, made, word)
        found[word] = await measure_perplexity(made, tokens)
        made.unlink()
    found["Q4_0"] = await measure_perplexity(default_model, tokens)
    assert found["F16"].perplexity <= found["Q8_0"].perplexity * 1.01
    assert found["Q8_0"].perplexity * 1.02 <= found["Q4_0"].perplexity
    assert 5 < found["F16"].perplexity < 100
    assert {each.tokens for each in found.values()} == {65}
    assert found["Q8_0"].engine.endswith("/q8_0")


@pytest.mark.model
async def test_the_figure_is_the_same_every_time_and_with_two_threads(default_model, tokens):
    alone = await measure_perplexity(default_model, tokens)
    assert await measure_perplexity(default_model, tokens) == alone
    assert await measure_perplexity(default_model, tokens, threads=2) == alone


@pytest.mark.model
async def test_bad_files_and_bad_texts_are_refused(wheel_model, tmp_path):
    short = tmp_path / "short.gguf"
    short.write_bytes(wheel_model.read_bytes()[:4_000_000])
    with pytest.raises(ModelFileInvalid, match=r"short\.gguf"):
        await measure_perplexity(short, [1, 2, 3])
    with pytest.raises(RequestInvalid, match="does not have"):
        await measure_perplexity(wheel_model, [1, 60_000])
    with pytest.raises(RequestInvalid, match="1 tokens"):
        await measure_perplexity(wheel_model, [1])
