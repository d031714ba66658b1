"""Somebody's OpenAI-compatible server as an engine: what it is asked, what comes of its answers."""

from __future__ import annotations

import asyncio

import pytest

from inference.engines.openai_http import open_openai_engine
from market.errors import EngineFailed, NodeMisconfigured, RequestInvalid
from market.task import LogitBias, Sampling
from market.testing_engine import check_engine
from tests.inference.upstream_kit import (
    DONE,
    END,
    MODEL,
    PROMPT,
    a_hand,
    answer,
    attached,
    delta,
    event,
    forever,
    job,
    read_request,
    reply,
    says,
    until,
)

# ---- what is asked -------------------------------------------------------------------------------


async def test_a_chat_is_asked_as_it_was_written_and_its_text_comes_back():
    async with attached(says(delta("Hel"), delta("lo 😀"), END)) as (hand, engine):
        assert await answer(engine) == ("Hello 😀", "stop")
        asked = hand.requests[0]
    assert asked.line == "POST /v1/chat/completions HTTP/1.1"
    assert asked.body["messages"] == [{"role": "user", "content": "Say something. " * 4}]
    assert asked.body["model"] == MODEL and asked.body["stream"] is True and asked.body["max_tokens"] == 100
    assert "authorization" not in asked.headers


async def test_sampling_is_said_as_far_as_the_api_knows_it():
    sampling = Sampling(
        seed=bytes(range(32)),
        temperature_micro=700_000,
        top_k=40,
        top_p_micro=900_000,
        frequency_penalty_micro=100_000,
        presence_penalty_micro=-200_000,
    )
    async with attached(says(END)) as (hand, engine):
        await answer(engine, job(sampling=sampling))
        await answer(engine, job(sampling=Sampling(seed=bytes(range(32)), choice=1)))
    first, second = (request.body for request in hand.requests)
    wanted = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "frequency_penalty": 0.1, "presence_penalty": -0.2}
    assert {name: first[name] for name in wanted} == wanted
    assert 0 <= first["seed"] < 2**31 and first["seed"] != second["seed"]
    assert not {"top_k", "frequency_penalty", "presence_penalty"} & set(second)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"sampling": Sampling(seed=bytes(32), logit_bias=(LogitBias(token=5, bias_micro=1),))}, "logit_bias"),
        ({"logprobs": 2}, "logprobs"),
        ({"grammar": "{}"}, "response_format"),
        ({"prompt": (5, 6, 7)}, "messages"),
        ({"prompt": ()}, "messages"),
        ({"prompt": PROMPT * 100}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
async def test_what_cannot_be_asked_is_refused_and_nobody_is_asked(more, param):
    async with attached(says(END)) as (hand, engine):
        with pytest.raises(RequestInvalid) as refused:
            await answer(engine, job(**more))
        assert refused.value.param == param and hand.requests == []


async def test_the_key_of_the_moment_goes_along_and_is_never_shown():
    keys = ["first-secret", "second-secret"]
    async with attached(
        reply(401, {"error": {"message": "Bad key second-secret", "code": "second-secret", "type": "x first-secret"}}),
        key=lambda: keys[0],
    ) as (hand, engine):
        keys.pop(0)
        with pytest.raises(EngineFailed, match="401") as failed:
            await answer(engine)
        assert hand.requests[0].headers["authorization"] == "Bearer second-secret"
    assert "secret" not in repr(failed.value) + str(failed.value) + repr(vars(engine))


async def test_a_key_with_a_line_break_is_not_sent():
    async with a_hand(says(END)) as hand:
        with pytest.raises(NodeMisconfigured, match="characters") as refused:
            async with open_openai_engine(hand.url, model=MODEL, key=lambda: "se\r\ncret: x"):
                pass
    assert "cret" not in str(refused.value)


# ---- what comes ----------------------------------------------------------------------------------


async def test_a_kit_for_engines_is_passed():
    async with attached(forever, slots=2) as (_, engine):
        await check_engine(engine, PROMPT)


@pytest.mark.parametrize(
    "pieces",
    [
        [b": keep alive\r\n\r\n", delta("ab").replace(b"\n", b"\r\n"), END.replace(b"\n", b"\r\n")],
        [b"\xef\xbb\xbf", *(bytes((byte,)) for byte in delta("ab") + END)],
        [delta("a") + delta("b") + END],
        [delta("a"), b"event: message\nid: 7\nretry: 10\n", delta("b"), END],
        [b'data: {"choices": [{"delta":\ndata: {"content": "ab"}}]}\n\n', END],
        [delta("a"), event({"choices": [], "usage": {"prompt_tokens": 3}}), delta("b"), delta("", "stop")],
        [event({"choices": [{"delta": {"role": "assistant"}}]}), delta("ab"), DONE],
        [event({"choices": [{"delta": {"role": "assistant", "content": None, "tool_calls": []}}]}), delta("ab", "eos")],
        [event({"choices": [{"delta": {"reasoning_content": "hm"}}]}), delta("ab"), END],
    ],
)
async def test_every_way_to_say_the_same_is_heard(pieces):
    async with attached(says(*pieces)) as (_, engine):
        assert await answer(engine) == ("ab", "stop")


async def test_a_character_in_two_surrogates_of_two_deltas_is_whole():
    async with attached(says(delta("\ud83d"), delta("\ude00"), END)) as (_, engine):
        assert await answer(engine) == ("😀", "stop")


async def test_an_answer_over_the_limit_is_cut_and_the_server_is_told_to_stop():
    async with attached(forever) as (hand, engine):
        text, finish = await answer(engine, job(20))
        assert (len(text), finish) == (60, "length")
        await until(lambda: hand.open == 0)


async def test_length_is_length():
    async with attached(says(delta("ab", "length"), DONE)) as (_, engine):
        assert await answer(engine) == ("ab", "length")


async def test_a_connection_serves_request_after_request():
    served = []

    async def keeps_open(reader, writer):
        served.append(0)
        while not reader.at_eof():
            try:
                request = await read_request(reader)
            except asyncio.IncompleteReadError:
                break
            served[-1] += 1
            listed = b'{"data": [{"id": "some-model"}]}'
            kind, body = ("application/json", listed) if request.line.startswith("GET") else ("text/event-stream", END)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n"
            writer.write(head.encode() + body + b"\r\n")
            await asyncio.sleep(0.01)  # the end of an answer may come after its last event
            writer.write(b"0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(keeps_open, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with open_openai_engine(url, model=MODEL) as engine:
            for _ in range(3):
                assert await answer(engine) == ("", "stop")
    assert served == [4]


# ---- attaching -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "context"),
    [
        ({"id": MODEL, "owned_by": "vllm", "max_model_len": 4096}, 4096),
        ({"id": MODEL, "owned_by": "llamacpp", "meta": {"n_ctx_train": 8192}}, 8192),
        ({"id": MODEL, "context_length": 1000}, 1000),
        ({"id": MODEL, "max_model_len": "many"}, 2048),
        ({"id": f"{MODEL}:latest", "owned_by": "library"}, 2048),
    ],
)
async def test_the_context_is_what_the_server_says(listed, context):
    async with attached(says(END), models={"data": [listed]}) as (hand, engine):
        assert engine.info.context == context
        await answer(engine)
        assert hand.requests[0].body["model"] == listed["id"]
    async with attached(says(END), models={"data": [listed]}, context=500) as (_, engine):
        assert engine.info.context == 500


@pytest.mark.parametrize(
    ("owner", "name"),
    [("vllm", "vllm"), ("A Hand!\n\x00", "a-hand"), (None, "unknown"), (5, "unknown"), ("…/../…", "unknown")],
)
async def test_the_name_says_that_nothing_is_known_of_the_weights(owner, name):
    async with attached(says(END), models={"data": [{"id": MODEL, "owned_by": owner}]}) as (_, engine):
        assert engine.info.name == f"openai_http/attached/{name}"
        assert engine.info.features == frozenset()


@pytest.mark.parametrize(
    ("models", "error", "words"),
    [
        ({"data": [{"id": "other"}, {"id": "bad\nname"}]}, NodeMisconfigured, "It has other"),
        ({"data": []}, NodeMisconfigured, "none at all"),
        ({"models": []}, EngineFailed, "no list"),
        ([], EngineFailed, "no list"),
        ({"data": [{"id": "x" * 5_000_000}]}, EngineFailed, "more than"),
    ],
)
async def test_a_server_without_the_model_is_no_engine(models, error, words):
    with pytest.raises(error, match=words):
        async with attached(says(END), models=models):
            pass


async def test_a_server_that_is_not_there_is_no_engine_and_one_that_went_is_noticed():
    async with attached(says(END)) as (hand, engine):
        await engine.check()
    with pytest.raises(EngineFailed, match="reached"):
        async with open_openai_engine(hand.url, model=MODEL):
            pass


async def test_an_address_without_a_path_means_v1_and_one_with_a_path_is_taken_as_it_is():
    async with a_hand(says(END)) as hand:
        host = hand.url.removesuffix("/v1")
        for url, path in ((host, "/v1"), (f"{host}/", "/v1"), (f"{host}/v1/", "/v1"), (f"{host}/api/v3", "/api/v3")):
            async with open_openai_engine(url, model=MODEL) as engine:
                await answer(engine)
                assert hand.requests[-1].line == f"POST {path}/chat/completions HTTP/1.1"


async def test_what_stays_on_this_machine_and_what_does_not():
    async with attached(says(END)) as (_, engine):
        assert not engine.leaves_host
    async with attached(says(END), forwards=True) as (_, engine):
        assert engine.leaves_host
    async with (
        a_hand(says(END), models={"data": [{"id": "big:120b-cloud"}]}) as hand,
        open_openai_engine(hand.url, model="big:120b-cloud") as engine,
    ):
        assert engine.leaves_host


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://127.0.0.1/v1", "http or https"),
        ("127.0.0.1:8080", "http or https|malformed"),
        ("http://user:password@127.0.0.1/v1", "credentials"),
        ("http://127.0.0.1/v1?key=secret", "credentials"),
        ("http://127.0.0.1:port/v1", "malformed"),
        ("http://", "http or https|malformed"),
        ("http://192.0.2.1/v1", "in the clear"),
    ],
)
async def test_a_bad_address_is_refused_and_not_repeated(url, words):
    with pytest.raises(NodeMisconfigured, match=words) as refused:
        async with open_openai_engine(url, model=MODEL, key=lambda: "k"):
            pass
    assert "password" not in str(refused.value) and "secret" not in str(refused.value)
