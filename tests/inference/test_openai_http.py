"""Somebody's OpenAI-compatible server as an engine: what it is asked, what comes of its answers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager

import pytest

from inference.engines.openai_http import OpenAiEngine, Patience, open_openai_engine
from inference.models.plain_tokenizer import PlainTokenizer, bytes_of
from market.errors import EngineFailed, NodeMisconfigured, PromptTooLong, RequestInvalid
from market.ports import EngineLoad, Job
from market.task import ChatMessage, LogitBias, Sampling, TaskId
from market.testing import check_engine
from tests.inference.upstream_kit import (
    DONE,
    END,
    HEAD,
    MODEL,
    a_hand,
    delta,
    event,
    forever,
    read_request,
    reply,
    says,
)

PROMPT = PlainTokenizer().render((ChatMessage(role="user", content="Say something. " * 4),))
GREEDY = Sampling(seed=bytes(32), temperature_micro=0)
QUICK = Patience(first_s=1.0, silence_s=0.4, pause_s=0.01, list_s=2.0)


def job(max_tokens: int = 100, *, sampling: Sampling = GREEDY, **more: object) -> Job:
    values = {"prompt": PROMPT, "end_tokens": frozenset(), **more}
    return Job(task=TaskId(bytes(32)), sampling=sampling, max_tokens=max_tokens, **values)  # type: ignore[arg-type]


async def answer(engine: OpenAiEngine, work: Job | None = None) -> tuple[str, str]:
    items = [item async for item in engine.generate(work or job())]
    assert all(item.finish == "" for item in items[:-1])
    return bytes_of(token for item in items for token in item.tokens).decode(), items[-1].finish


@asynccontextmanager
async def attached(*answers, models=None, **more):
    async with (
        a_hand(*answers, models=models) as hand,
        open_openai_engine(hand.url, model=MODEL, **{"patience": QUICK, **more}) as engine,
    ):
        yield hand, engine


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


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
            writer.write(head.encode() + body + b"\r\n0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(keeps_open, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with open_openai_engine(url, model=MODEL) as engine:
            for _ in range(3):
                assert await answer(engine) == ("", "stop")
    assert served == [4]


# ---- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (says(delta("a")), "in the middle"),
        (says(delta("a"), b"data: {bro"), "in the middle"),
        (says(b"data: not json\n\n"), "not JSON"),
        (says(b"data: " + b"[" * 100_000 + b"\n\n"), "not JSON"),
        (says(b"data: " + b"[" * 50 + b"]" * 50 + b"\n\n"), "nests too deep"),
        (says(event([1])), "none of the API"),
        (says(event({"choices": 5})), "none of the API"),
        (says(event({"choices": ["x"]})), "none of the API"),
        (says(event({"choices": [{"delta": "x"}]})), "no text"),
        (says(event({"choices": [{"delta": {"content": ["x"]}}]})), "no text"),
        (says(delta("a", "tool_calls")), "reason"),
        (says(delta(None, tool_calls=[{"id": "1"}])), "tool"),
        (says(event({"error": {"type": "server_error", "message": "the prompt was: x"}})), "server_error"),
        (says(b"data: " + b"x" * 3_000_000), "too large"),
        (says(b"x" * 3_000_000), "too large"),
        (says(b"data: x\n" * 3_000_000), "too large|far more"),
        (says(event({"choices": [], "x": "x" * 100_000}) * 60), "far more"),
        (says(1.5), "silent"),
        (says(delta("a"), 1.0, delta("b"), END), "silent"),
        (says(*[b": still here\n\n", 0.1] * 20), "silent"),
        (says(delta("a"), *[event({"choices": []}), 0.1] * 20), "silent"),
        (says(delta("a"), END, head=b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"), "something else"),
        (says(END, head=HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")), "something else"),
        (says(END, head=b"SSH-2.0-OpenSSH_9\r\n\r\n"), "broke off"),
        (says(END, head=b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"), "broke off"),
        (reply(200, {"choices": [{"message": {"content": "x"}}]}), "something else"),
        (reply(307, b"", Location="http://169.254.169.254/"), "redirect"),
        (reply(401, b"no"), "401.*key"),
        (reply(404, {"error": {"code": "model_not_found"}}), "model_not_found.*model's name"),
        (reply(500, b"<html>" + b"x" * 1_000_000), "500"),
        (reply(429, b"", Retry_After="3600"), "429"),
        (reply(418, {"error": "I am the prompt"}), "418"),
    ],
)
async def test_whatever_a_server_does_wrong_is_a_failure_with_its_cause_and_never_a_hang(wrong, words):
    async with attached(wrong) as (hand, engine):
        async with asyncio.timeout(15):
            with pytest.raises(EngineFailed, match=words) as failed:
                await answer(engine)
        assert "prompt was" not in str(failed.value) and "I am" not in str(failed.value)
        assert engine.load() == EngineLoad(running=0, waiting=0)
        await until(lambda: hand.open == 0)


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, "context_length_exceeded", PromptTooLong),
        (413, "", PromptTooLong),
        (400, "unsupported_parameter", RequestInvalid),
        (422, "", RequestInvalid),
    ],
)
async def test_a_request_that_the_server_cannot_run_is_the_clients_and_is_not_repeated(status, code, error):
    async with attached(reply(status, {"error": {"code": code, "message": "secret"}})) as (hand, engine):
        with pytest.raises(error) as refused:
            await answer(engine)
        assert "secret" not in str(refused.value) and len(hand.requests) == 1


async def test_a_server_that_stumbles_before_its_first_token_is_asked_again():
    stumbles = (reply(503, b"loading"), reply(429, b"", Retry_After="0"), says(delta("ab"), END))
    async with attached(*stumbles) as (hand, engine):
        assert await answer(engine) == ("ab", "stop") and len(hand.requests) == 3


async def test_a_server_that_breaks_off_after_its_first_token_is_not_asked_again():
    async with attached(says(delta("a word")), says(delta("another"), END)) as (hand, engine):
        got = []
        with pytest.raises(EngineFailed):
            async for item in engine.generate(job()):
                got += item.tokens
        assert bytes_of(got) == b"a word" and len(hand.requests) == 1


async def test_what_came_before_an_error_in_the_same_piece_is_given_out_first():
    async with attached(says(delta("a word") + event({"error": {"type": "overloaded"}}))) as (_, engine):
        got = []
        with pytest.raises(EngineFailed, match="overloaded"):
            async for item in engine.generate(job()):
                got += item.tokens
        assert bytes_of(got) == b"a word"


async def test_a_server_that_thinks_is_not_silent():
    thoughts = [event({"choices": [{"delta": {"reasoning": "hm"}}]}), 0.3] * 5
    async with attached(says(*thoughts, delta("ab"), END)) as (_, engine):
        assert await answer(engine) == ("ab", "stop")


async def test_a_reader_that_takes_its_time_is_not_the_servers_silence_and_holds_it_up():
    written = 0

    async def fast(_request, writer):
        nonlocal written
        writer.write(HEAD)
        while True:
            writer.write(delta("w" * 3000))
            await writer.drain()
            written += 1

    async with attached(fast) as (_, engine), aclosing(engine.generate(job(100_000))) as stream:
        await anext(stream)
        await asyncio.sleep(0.6)  # longer than the server may be silent
        before = written
        await asyncio.sleep(0.2)
        assert written == before < 10_000
        assert (await anext(stream)).tokens


async def test_closing_the_generator_ends_the_request():
    async with attached(forever) as (hand, engine):
        async with aclosing(engine.generate(job())) as stream:
            await anext(stream)
            assert engine.load().running == 1 and hand.open == 1
        assert engine.load().running == 0
        await until(lambda: hand.open == 0)


async def test_a_cancelled_reader_ends_the_request_while_it_waits():
    async with attached(says(60.0)) as (hand, engine):
        task = asyncio.create_task(answer(engine))
        await until(lambda: hand.open == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert engine.load() == EngineLoad(running=0, waiting=0)
        await until(lambda: hand.open == 0)


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
