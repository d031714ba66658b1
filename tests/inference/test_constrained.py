"""Grammars on the real model: what comes out always matches, and nobody else notices."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import signal
from functools import cache

import numpy as np
import pytest

from inference.engines.batched import BatchedEngine
from inference.engines.llama_cpp import open_llama_engine
from inference.grammar import as_gbnf
from inference.llama_grammar import LlamaGrammars
from market.errors import EngineFailed, RequestInvalid
from market.ports import Job
from market.task import LogitBias, Sampling
from tests.inference.engine_kit import SEEDED, answer, job, until

pytestmark = pytest.mark.model

HOT = Sampling(seed=bytes(range(32)), temperature_micro=1_500_000)
WEATHER = json.dumps(
    {
        "properties": {
            "city": {"type": "string", "maxLength": 12},
            "degrees": {"type": "integer", "minimum": -40, "maximum": 50},
            "sky": {"enum": ["clear", "rain"]},
        },
        "required": ["city", "degrees", "sky"],
        "additionalProperties": False,
    }
)


@cache
def vocabulary(path):
    import llama_cpp

    options = llama_cpp.llama_model_default_params()
    options.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    return model, llama_cpp.llama_model_get_vocab(model)


def tokens_of(vocab, text: str) -> list[int]:
    import llama_cpp

    data = text.encode()
    found = (llama_cpp.llama_token * 4096)()
    return list(found[: llama_cpp.llama_tokenize(vocab, data, len(data), found, 4096, False, False)])


def text_of(vocab, tokens: list[int]) -> str:
    import llama_cpp

    piece, text = ctypes.create_string_buffer(256), b""
    for token in tokens:
        size = llama_cpp.llama_token_to_piece(vocab, token, piece, 256, 0, False)
        text += piece.raw[:size]
    return text.decode(errors="replace")


@pytest.fixture(scope="module")
async def engine(default_model):
    async with open_llama_engine(default_model, workers=1, slots=4, context=1024) as opened:
        yield opened


@pytest.fixture(scope="module")
def vocab(default_model):
    return vocabulary(default_model)[1]


async def say(engine: BatchedEngine, vocab, work: Job) -> tuple[str, str]:
    items = [item async for item in engine.generate(work)]
    return text_of(vocab, [token for item in items for token in item.tokens]), items[-1].finish


# ---- the mask ------------------------------------------------------------------------------------


def test_looking_level_by_level_permits_what_a_full_look_does(vocab):
    grammars = LlamaGrammars(vocab)
    everything = np.arange(grammars.vocabulary)
    checked = 0
    for grammar, said in (
        (WEATHER, '{"city": "Paris é\\n", "degrees": -17, "sky": "rain"}'),
        ('root ::= ("é" | "日本" | [^a-z\\n]){1,9} "!"', "é日本é日本!"),
    ):
        matcher = grammars.open(as_gbnf(grammar), frozenset())
        for token in [*tokens_of(vocab, said), -1]:
            full = matcher._ask(everything)
            assert np.array_equal(matcher.permits(everything), full)
            assert not full[grammars.hidden].any()
            checked += 1
            if token >= 0:
                assert full[token]
                matcher.accept(token)
        assert full[list(grammars.ends)].all(), "it may end here"
        matcher.close()
    assert checked > 25


def test_a_jobs_own_end_token_is_permitted_where_the_text_may_end_only(vocab):
    grammars = LlamaGrammars(vocab)
    [letter, own] = tokens_of(vocab, "a"), tokens_of(vocab, " the")[0]
    matcher = grammars.open('root ::= "a"', frozenset({own}))
    everything = np.arange(grammars.vocabulary)
    assert not matcher.permits(everything)[own]
    matcher.accept(letter[0])
    assert matcher.permits(everything)[own] and matcher.ends(own)
    with pytest.raises(EngineFailed, match="does not permit"):
        matcher.accept(letter[0])
    matcher.close()


# ---- the engine ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [SEEDED, HOT, Sampling(seed=bytes(32), temperature_micro=0)])
async def test_a_schema_is_always_kept_and_ends_the_answer(engine, vocab, sampling):
    for salt in range(3):
        text, finish = await say(engine, vocab, job(12, 200, sampling=sampling, salt=salt, grammar=WEATHER))
        found = json.loads(text)
        assert list(found) == ["city", "degrees", "sky"] and finish == "stop"
        assert len(found["city"]) <= 12 and -40 <= found["degrees"] <= 50 and found["sky"] in ("clear", "rain")


async def test_bias_comes_before_the_grammar_and_cannot_break_it(engine, vocab):
    comma = tokens_of(vocab, ",")[0]
    yes, no = tokens_of(vocab, "yes")[0], tokens_of(vocab, "no")[0]
    for wanted, word in ((yes, "yes"), (no, "no")):
        biased = Sampling(
            seed=bytes(32),
            temperature_micro=1_000_000,
            logit_bias=(
                LogitBias(token=comma, bias_micro=100_000_000),
                LogitBias(token=wanted, bias_micro=90_000_000),
            ),
        )
        work = job(12, 20, sampling=biased, grammar='root ::= "yes" | "no"')
        assert await say(engine, vocab, work) == (word, "stop")


async def test_a_constrained_job_draws_the_same_alone_in_company_and_after_losing_its_slot(default_model):
    async with open_llama_engine(default_model, workers=1, slots=2, context=512) as engine:
        work = job(20, 150, sampling=HOT, priority=1, grammar="root ::= [a-z ]{90,100}")
        alone = await answer(engine, work)
        plain = await answer(engine, job(20, 40, sampling=SEEDED))
        assert len(alone) > 20
        task, other = (asyncio.create_task(answer(engine, job_)) for job_ in (work, work))
        await asyncio.sleep(0.3)
        urgent = await asyncio.gather(*(answer(engine, job(20, 40, sampling=SEEDED)) for _ in range(2)))
        assert urgent == [plain, plain]
        assert await task == await other == alone


async def test_a_grammar_that_is_malformed_or_cannot_be_satisfied_fails_alone_with_the_reason(engine, vocab):
    company = asyncio.create_task(answer(engine, job(20, 60)))
    assert await say(engine, vocab, job(12, 20, grammar="root ::= ")) == ("", "stop"), "nothing is a text too"
    for grammar, error, reason in (
        ("root ::= missing", RequestInvalid, "does not define"),
        ('{"type": "string", "pattern": "x"}', RequestInvalid, "pattern"),
        (r"root ::= [^\x00-\U0010FFFF]", EngineFailed, "permits no token"),
    ):
        with pytest.raises(error, match=reason):
            await answer(engine, job(12, 20, grammar=grammar))
    assert len(await company) == 60


async def test_a_grammar_that_the_library_refuses_is_the_clients_fault(engine):
    with pytest.raises(RequestInvalid, match=r"llama\.cpp cannot read"):
        await answer(engine, job(12, 20, grammar=r'root ::= "\q"'))


async def test_a_constrained_job_under_which_a_worker_ends_is_not_given_another(default_model):
    """Its grammar may be what ended it."""
    async with open_llama_engine(default_model, workers=1, slots=2, context=512) as engine:
        bound = engine.generate(job(20, 300, grammar="root ::= [a-z ]{500,900}"))
        await anext(bound)
        free = asyncio.create_task(answer(engine, job(20, 100)))
        await until(lambda: engine.load().running == 2)
        os.kill(engine.worker_pids[0], signal.SIGKILL)
        with pytest.raises(EngineFailed, match="SIGKILL"):
            async for _ in bound:
                pass
        assert len(await free) == 100


async def test_unicode_is_whole_even_where_tokens_cut_it(engine, vocab):
    text, finish = await say(engine, vocab, job(12, 60, sampling=HOT, grammar="root ::= [é日本ß🙂]{5}"))
    assert re.fullmatch("[é日本ß🙂]{5}", text) and finish == "stop"
