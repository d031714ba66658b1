"""Speaking token ids: what vLLM is asked, and what of its events is believed."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
from yarl import URL

from inference.engines.openai_client import open_upstream
from inference.engines.openai_dialect import Tokens
from inference.engines.openai_http import OpenAiEngine
from market.errors import EngineFailed, RequestInvalid
from market.ports import EngineInfo, Generated, TokenLogprobs
from market.task import LogitBias, Sampling
from tests.inference.upstream_kit import DONE, QUICK, a_hand, event, job, says

PROMPT = (1, 5, 9)
SEED = Sampling(seed=bytes(32))


@asynccontextmanager
async def speaking(*answers):
    dialect = Tokens("m", 100)
    info = EngineInfo(name="test/1", context=64, slots=2, features=dialect.features)
    async with (
        a_hand(*answers) as hand,
        open_upstream(URL(hand.url), lambda: None, connections=2) as upstream,
    ):
        yield hand, OpenAiEngine(upstream, dialect, info, leaves_host=False, patience=QUICK)


def ids(*tokens: int, finish: str | None = None, **more: object) -> bytes:
    return event({"choices": [{"index": 0, "text": "x", "token_ids": list(tokens), "finish_reason": finish, **more}]})


async def items(engine: OpenAiEngine, max_tokens: int = 10, **more: object) -> list[Generated]:
    work = job(max_tokens, **{"prompt": PROMPT, "end_tokens": frozenset((2,)), **more})  # type: ignore[arg-type]
    return [item async for item in engine.generate(work)]


def tokens_of(found: list[Generated]) -> tuple[int, ...]:
    return tuple(token for item in found for token in item.tokens)


async def test_the_prompt_goes_as_ids_and_what_ends_an_answer_is_the_jobs_to_say():
    async with speaking(says(ids(7, 2, finish="stop"))) as (hand, engine):
        await items(engine, sampling=Sampling(seed=bytes(32), logit_bias=(LogitBias(token=5, bias_micro=-1_500_000),)))
        asked = hand.requests[0]
    assert asked.line.startswith("POST /v1/completions")
    wanted = {
        "prompt": [1, 5, 9],
        "add_special_tokens": False,
        "return_token_ids": True,
        "ignore_eos": True,
        "stop_token_ids": [2],
        "logit_bias": {"5": -1.5},
        "max_tokens": 10,
    }
    assert {name: asked.body[name] for name in wanted} == wanted
    assert "logprobs" not in asked.body and "structured_outputs" not in asked.body


@pytest.mark.parametrize(("grammar", "kind"), [('{"type": "object"}', "json"), ('root ::= "yes"', "grammar")])
async def test_a_grammar_or_schema_goes_along(grammar, kind):
    async with speaking(says(ids(7, 2, finish="stop"))) as (hand, engine):
        await items(engine, grammar=grammar)
        assert hand.requests[0].body["structured_outputs"] == {kind: grammar}


@pytest.mark.parametrize(
    ("pieces", "tokens", "finish"),
    [
        ([ids(7, prompt_token_ids=[1, 5, 9]), ids(8), ids(2, finish="stop"), DONE], (7, 8), "stop"),
        ([ids(7, 8, 2, 9, finish="stop")], (7, 8), "stop"),
        ([ids(2, finish="stop")], (), "stop"),
        ([ids(7, 8, finish="length")], (7, 8), "length"),
        ([ids(*range(10, 30))], tuple(range(10, 20)), "length"),
        ([ids(*range(10, 19)), ids(19, 2, finish="stop")], tuple(range(10, 20)), "stop"),
        ([ids(7), DONE], (7,), "stop"),
    ],
)
async def test_ids_are_the_answer_and_an_end_token_is_not_part_of_it(pieces, tokens, finish):
    async with speaking(says(*pieces)) as (_, engine):
        found = await items(engine)
        assert (tokens_of(found), found[-1].finish) == (tokens, finish)


async def test_log_probabilities_come_best_first_equals_by_lowest_id_and_never_for_the_end_token():
    top = {"token_id:8": -2.0, "token_id:7": -0.5, "token_id:3": -2.0}
    said = {"tokens": ["token_id:7", "token_id:2"], "token_logprobs": [-0.5, -0.1], "top_logprobs": [top, {}]}
    async with speaking(says(ids(7, 2, finish="stop", logprobs=said))) as (hand, engine):
        found = await items(engine, logprobs=2)
        assert hand.requests[0].body["logprobs"] == 2
    assert found[0].logprobs == (TokenLogprobs(logprob=-0.5, top=((7, -0.5), (3, -2.0))),)


@pytest.mark.parametrize(
    "piece",
    [
        ids(100),
        ids(-1),
        ids(True),
        ids(7, prompt_token_ids=[1, 5, 9, 9]),
        event({"choices": [{"token_ids": "7"}]}),
        event({"choices": [{"token_ids": [7.0]}]}),
    ],
)
async def test_ids_that_cannot_be_are_a_failure(piece):
    async with speaking(says(piece, DONE)) as (_, engine):
        with pytest.raises(EngineFailed):
            await items(engine)


@pytest.mark.parametrize(
    "piece",
    [
        ids(7, logprobs=None),
        ids(7, logprobs={"token_logprobs": [-1.0], "top_logprobs": []}),
        ids(7, logprobs={"token_logprobs": [-1.0], "top_logprobs": [{"x": -1.0}]}),
        ids(7, logprobs={"token_logprobs": ["low"], "top_logprobs": [{}]}),
        event({"choices": [{"token_ids": [7], "logprobs": {"token_logprobs": [float("nan")], "top_logprobs": [{}]}}]}),
    ],
)
async def test_probabilities_that_cannot_be_are_a_failure(piece):
    async with speaking(says(piece, DONE)) as (_, engine):
        with pytest.raises(EngineFailed):
            await items(engine, logprobs=1)


@pytest.mark.parametrize(
    "more",
    [
        {"prompt": (1, 100)},
        {"prompt": (-1,)},
        {"logprobs": 21},
        {"sampling": Sampling(seed=bytes(32), logit_bias=(LogitBias(token=100, bias_micro=1),))},
    ],
)
async def test_ids_that_the_model_does_not_have_are_refused_and_not_asked(more):
    async with speaking(says(DONE)) as (hand, engine):
        with pytest.raises(RequestInvalid):
            await items(engine, **more)
        assert hand.requests == []
