"""A server made by hand, down to its bytes: it can do what no library would let it do."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from inference.engines.openai_http import OpenAiEngine, Patience, open_openai_engine
from inference.models.plain_tokenizer import PlainTokenizer, bytes_of
from market.ports import Job
from market.task import ChatMessage, Sampling, TaskId

MODEL = "some-model"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@dataclass
class Request:
    line: str
    headers: dict[str, str]
    body: Any


Answer = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Hand:
    """Answers each chat with the next of `answers`, the last one again and again."""

    answers: list[Answer] = field(default_factory=list)
    models: Any = None
    requests: list[Request] = field(default_factory=list)
    open: int = 0
    url: str = ""
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.tasks.add(asyncio.current_task())
        try:
            request = await read_request(reader)
            if request.line.startswith("GET "):
                listed = self.models if self.models is not None else {"data": [{"id": MODEL, "owned_by": "A Hand!"}]}
                await reply(200, listed)(request, writer)
                return
            self.requests.append(request)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            gone = asyncio.create_task(reader.read())  # ends when the other side closes
            doing = asyncio.create_task(answer(request, writer))
            await asyncio.wait({gone, doing}, return_when=asyncio.FIRST_COMPLETED)
            for task in (gone, doing):
                task.cancel()
            await asyncio.gather(gone, doing, return_exceptions=True)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            with contextlib.suppress(ConnectionError):
                writer.close()


@asynccontextmanager
async def a_hand(*answers: Answer, models: Any = None) -> AsyncIterator[Hand]:
    hand = Hand(list(answers), models)
    server = await asyncio.start_server(hand.serve, "127.0.0.1", 0)
    hand.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield hand
    finally:
        server.close()
        async with asyncio.timeout(60):  # who leaves them to the end of the loop has their last words in another test
            await asyncio.gather(*hand.tasks, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> Request:
    line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
    headers = {name.lower(): text.strip() for name, _, text in (item.partition(":") for item in fields)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(line, headers, json.loads(body) if body else None)


def reply(status: int, body: Any, *, kind: str = "application/json", **headers: str) -> Answer:
    async def answer(_request: Request, writer: asyncio.StreamWriter) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = "".join(f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items())
        fields += f"Content-Type: {kind}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n"
        writer.write(f"HTTP/1.1 {status} X\r\n{fields}\r\n".encode() + data)
        await writer.drain()

    return answer


def says(*pieces: bytes | float, head: bytes = HEAD) -> Answer:
    """Bytes, and seconds of silence between them."""

    async def answer(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        for piece in pieces:
            if isinstance(piece, bytes):
                writer.write(piece)
                await writer.drain()
            else:
                await asyncio.sleep(piece)

    return answer


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def delta(text: str | None, finish: str | None = None, **more: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text, **more}, "finish_reason": finish}]})


DONE = b"data: [DONE]\n\n"
END = delta(None, "stop") + DONE


async def forever(_request: Request, writer: asyncio.StreamWriter) -> None:
    """A word every few milliseconds until the other side goes."""
    writer.write(HEAD)
    while True:
        writer.write(delta("word "))
        await writer.drain()
        await asyncio.sleep(0.005)


# ---- an engine before it ------------------------------------------------------------------------

PROMPT = PlainTokenizer().render((ChatMessage(role="user", content="Say something. " * 4),))
GREEDY = Sampling(seed=bytes(32), temperature_micro=0)
QUICK = Patience(first_s=60.0, silence_s=60.0, pause_s=0.01, list_s=60.0)
"""Asks again at once; waits for as long as a busy machine may need."""
STRICT = Patience(first_s=1.0, silence_s=0.4, pause_s=0.01, list_s=60.0)
"""For servers that fall silent."""


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


async def until(condition, limit_s: float = 60) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)
