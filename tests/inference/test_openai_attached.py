"""A real server that somebody else wrote, with real weights, behind the engine: llama-cpp-python's own."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
from contextlib import aclosing, contextmanager, suppress

import pytest

from inference.engines.openai_http import open_openai_engine
from inference.isolation import child_environment
from inference.models.plain_tokenizer import PlainTokenizer
from market.errors import EngineFailed, NodeMisconfigured
from market.task import ChatMessage, Sampling
from market.testing_engine import check_engine
from tests.inference.upstream_kit import answer, job, until

pytestmark = pytest.mark.model

QUESTION = PlainTokenizer().render((ChatMessage(role="user", content="What is the capital of France?"),))
KEY = "a-key-of-the-server"


def free_port() -> int:
    """Below those that the kernel gives away, or somebody has it before the server does."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("of a hundred ports none is free")


@contextmanager
def running(model):
    port = free_port()
    command = [sys.executable, "-P", "-m", "llama_cpp.server", "--model", str(model), "--model_alias", "smollm2"]
    command += ["--n_ctx", "1024", "--n_threads", "1", "--host", "127.0.0.1", "--port", str(port), "--api_key", KEY]
    environment = {**child_environment(), "HOME": "/"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        process.kill()
        process.wait()


async def attach(stack, url, **more):
    """As soon as it has loaded its model."""
    async with asyncio.timeout(200):
        while True:
            try:
                return await stack.enter_async_context(
                    open_openai_engine(url, model="smollm2", key=lambda: KEY, context=3000, **more)
                )
            except EngineFailed:
                await asyncio.sleep(0.1)


async def test_a_server_of_others_is_an_engine(default_model):
    from contextlib import AsyncExitStack

    with running(default_model) as (url, process):
        async with AsyncExitStack() as stack:
            engine = await attach(stack, url, slots=2)
            assert engine.info.name == "openai_http/attached/me" and not engine.leaves_host

            text, finish = await answer(engine, job(30, prompt=QUESTION))
            assert "Paris" in text and finish == "stop"
            assert (await answer(engine, job(3, prompt=QUESTION)))[1] == "length"

            seeded = [Sampling(seed=bytes((n,)) * 32) for n in (1, 1, 2)]
            first, again, other = [(await answer(engine, job(40, sampling=s, prompt=QUESTION)))[0] for s in seeded]
            assert first == again != other

            await check_engine(engine, QUESTION)

            with pytest.raises(NodeMisconfigured, match="It has smollm2"):
                async with open_openai_engine(url, model="gpt-9", key=lambda: KEY):
                    pass
            with pytest.raises(EngineFailed, match="401"):
                async with open_openai_engine(url, model="smollm2", key=lambda: "another"):
                    pass

            async with aclosing(engine.generate(job(500, prompt=QUESTION))) as stream:
                await anext(stream)
                process.kill()
                with pytest.raises(EngineFailed):
                    async with asyncio.timeout(60):
                        async for _ in stream:
                            pass
            await until(lambda: engine.load().running == 0)
            with pytest.raises(EngineFailed):
                await engine.check()
