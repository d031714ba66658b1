"""Servers that lie, break off, hang or send garbage: a failure with its cause, never a hang."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from inference.models.plain_tokenizer import bytes_of
from market.errors import EngineFailed, PromptTooLong, RequestInvalid
from market.ports import EngineLoad
from tests.inference.upstream_kit import (
    END,
    HEAD,
    QUICK,
    STRICT,
    answer,
    attached,
    delta,
    event,
    forever,
    job,
    reply,
    says,
    until,
)


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
        (says(600.0), "silent"),
        (says(delta("a"), 600.0, delta("b"), END), "silent"),
        (says(*[b": still here\n\n", 0.1] * 6000), "silent"),
        (says(delta("a"), *[event({"choices": []}), 0.1] * 6000), "silent"),
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
    async with attached(wrong, patience=STRICT if words == "silent" else QUICK) as (hand, engine):
        async with asyncio.timeout(120):
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


async def test_a_refusal_inside_the_stream_is_one_too():
    async with attached(says(event({"error": {"code": 400, "type": "BadRequestError"}}))) as (hand, engine):
        with pytest.raises(RequestInvalid, match="badrequesterror"):
            await answer(engine)
        assert len(hand.requests) == 1


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
    thoughts = [event({"choices": [{"delta": {"reasoning": "hm"}}]}), 0.2] * 20
    async with attached(says(*thoughts, delta("ab"), END), patience=replace(QUICK, first_s=3.0)) as (_, engine):
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

    strict = replace(QUICK, silence_s=0.4)
    async with attached(fast, patience=strict) as (_, engine), aclosing(engine.generate(job(100_000))) as stream:
        await anext(stream)
        before = -1
        while written != before:  # until it is held up, and then longer than the server may be silent
            before = written
            await asyncio.sleep(0.6)
        assert before < 10_000
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
