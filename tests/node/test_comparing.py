"""`octo-node bench quantisation`: formats beside F16, on real weights, with nothing left behind."""

from __future__ import annotations

import json
import shutil

import pytest

from inference.models.draft import Wishes
from inference.models.library import import_model
from market.errors import RequestInvalid
from node.comparing import compare_quantisations
from tests.node.bench_kit import OWNER, Q4_1, octo, store

__all__ = ["store"]


@pytest.mark.model
async def test_each_format_stands_beside_the_same_f16_and_nothing_is_kept(store):
    """Over 128 tokens, the context that this manifest names: enough to tell Q2_K from F16."""
    model = await import_model(store, {"a.gguf": Q4_1}, OWNER, wishes=Wishes(name="Otter", context=128))
    before = sorted(store.parts.iterdir())
    heard = []
    whole, (bad,) = await compare_quantisations(store, model, ("q2_k", "F16", "Q2_K"), runs=1, told=heard.append)
    assert bad.word == "Q2_K"
    assert bad.size_bytes < whole.size_bytes / 2
    assert bad.perplexity > 1.05 * whole.perplexity
    assert list(bad.tokens_per_s) == [1, 16]
    assert all(rate > 1 for pairs in bad.tokens_per_s.values() for pair in pairs for rate in pair)
    assert heard[0] == "making F16" and "Q2_K: speed" in heard
    assert sorted(store.parts.iterdir()) == before


@pytest.mark.model
async def test_what_cannot_be_compared_is_refused_before_anything_is_made(store):
    model = await import_model(store, {"a.gguf": Q4_1}, OWNER, wishes=Wishes(name="Otter", context=128))
    with pytest.raises(RequestInvalid, match="INT8"):
        await compare_quantisations(store, model, ("INT8",))
    embedder = await import_model(store, {"a.gguf": Q4_1}, OWNER, wishes=Wishes(name="Owl", modality="image"))
    with pytest.raises(RequestInvalid, match="only GGUF models that write text"):
        await compare_quantisations(store, embedder)
    short = await import_model(store, {"a.gguf": Q4_1}, OWNER, wishes=Wishes(name="Flea", context=16))
    with pytest.raises(RequestInvalid, match="too short"):
        await compare_quantisations(store, short)


@pytest.mark.model
@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_the_command_prints_the_table_and_json(tmp_path):
    def run(*more: str) -> str:
        words = ("bench", "quantisation", "--model", str(Q4_1), "--to", "Q4_0", *more)
        return octo(tmp_path / "a", *words, timeout_s=290)

    told = json.loads(run("--json"))
    (q4_0,) = told["formats"]
    assert q4_0["format"] == "Q4_0" and 0.2 < q4_0["size_ratio"] < 0.5
    assert list(q4_0["tokens_per_s"]) == list(q4_0["speed_ratio"]) == ["1", "16"]
    assert q4_0["perplexity_ratio"] > 1
    head, whole, line = run().splitlines()
    assert " ".join(head.split()) == "FORMAT SIZE OF F16 TOK/S AT 1 TOK/S AT 16 PERPLEXITY TO F16"
    assert (whole.split()[0], line.split()[0]) == ("F16", "Q4_0")
    shutil.rmtree(tmp_path / "a")
