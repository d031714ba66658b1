"""What the clients of a soak ask a gateway, and how each question ends: answered, hung up, or refused clearly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

from market.task import Mode

BOUND_S = 240.0
"""No question may take longer, whatever dies meanwhile."""
MODES = tuple(str(mode) for mode in Mode)
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "city",
        "schema": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 24}, "people": {"type": "integer"}},
            "required": ["name", "people"],
            "additionalProperties": False,
        },
    },
}
RULES = "You answer in short, plain sentences. " + " ".join(
    f"Rule {n}: never mention the number {n}." for n in range(24)
)
"""Some 300 tokens that all long prompts begin with."""

End = Literal["whole", "left", "refused"]


class Unclear(AssertionError):
    """It ended, and nobody could say how: no error in the API's shape, no end of the stream."""


@dataclass(frozen=True)
class Question:
    """`leave_after` pieces of a stream the client hangs up. `settled`: each answer is the same."""

    kind: str
    path: str
    body: dict[str, Any]
    leave_after: int = 0
    settled: bool = True

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))


@dataclass(frozen=True)
class Answer:
    """`said` is all that has to be the same each time; `code` why it was refused."""

    end: End
    said: Any = None
    receipts: tuple[str, ...] = ()
    code: str = ""


def chat(
    kind: str, words: str, *, system: str = "", leave_after: int = 0, settled: bool = True, **more: Any
) -> Question:
    messages = [{"role": "system", "content": system}] if system else []
    body = {"model": "default", "messages": [*messages, {"role": "user", "content": words}], **more}
    return Question(kind, "/v1/chat/completions", body, leave_after, settled)


def questions(colours: str) -> list[Question]:
    """Of every kind some; `colours` is the embedding model's name."""
    asked: list[Question] = []
    for at, town in enumerate(("Oslo", "Lima", "Bern", "Kobe")):
        page = " ".join(f"In the year {1000 + 7 * n} {town} had {n * n} houses." for n in range(19 + at))
        mode = {"octo": {"mode": MODES[at % len(MODES)]}}
        asked += [
            chat("greedy", f"What is {town}?", temperature=0, max_tokens=24),
            chat("seeded stream", f"Tell me about {town}.", temperature=0.9, seed=at, max_tokens=40, stream=True),
            chat("long stream", page, system=RULES, temperature=0, max_tokens=16, stream=True),
            chat("long", page + " Why?", system=RULES, temperature=0.7, seed=at, max_tokens=12),
            chat("logprobs", f"Where is {town}?", temperature=0, max_tokens=16, logprobs=True, top_logprobs=5),
            chat("schema", f"{town} as JSON.", temperature=0, max_tokens=48, response_format=SCHEMA),
            chat("two choices", f"A word for {town}?", temperature=1.0, seed=at, max_tokens=8, n=2),
            chat("patient", f"A line on {town}.", temperature=0.8, seed=at, max_tokens=24, **mode),
            chat("hung up", f"The history of {town}.", temperature=0, max_tokens=300, stream=True, leave_after=12 + at),
            chat("tiny", town, temperature=0, max_tokens=1),
            chat("by chance", f"Anything about {town}?", max_tokens=20, settled=False),
            Question(
                "text", "/v1/completions", {"model": "default", "prompt": f"{town} is", "max_tokens": 12, "seed": at}
            ),
            Question("embedding", "/v1/embeddings", {"model": colours, "input": ["red", town, f"w{at} green"]}),
        ]
    return asked


async def ask(session: aiohttp.ClientSession, question: Question) -> Answer:
    """Raises Unclear, or TimeoutError after BOUND_S."""
    async with asyncio.timeout(BOUND_S):
        try:
            async with session.post(question.path, json=question.body) as response:
                if response.status != 200:
                    return _refused(await response.text())
                if question.streams:
                    return await _read_stream(response, question)
                return _whole(await response.json())
        except aiohttp.ClientError as error:
            raise Unclear(f"{question.kind}: {error!r}") from None


def agrees(answer: Answer, known: Answer, question: Question) -> bool:
    """Whether it says what was said in quiet, as far as it was read."""
    if answer.end == "refused" or not question.settled:
        return True
    if answer.end == "left":
        return all(whole.startswith(said) for said, (whole, _) in zip(answer.said, known.said, strict=True))
    return answer.said == known.said


async def _read_stream(response: aiohttp.ClientResponse, question: Question) -> Answer:
    texts: dict[int, str] = {}
    finishes: dict[int, str] = {}
    receipts: tuple[str, ...] = ()
    pieces = 0
    async for event in _events(response):
        if event is None:
            return Answer("whole", [[texts[at], finishes[at]] for at in sorted(texts)], receipts)
        if "error" in event:
            return _refused(json.dumps(event))
        receipts = _receipts(event) or receipts
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"].get("content") or "")
            finishes[choice["index"]] = choice["finish_reason"]
        pieces += 1
        if pieces == question.leave_after:
            return Answer("left", list(texts.values()))
    raise Unclear(f"{question.kind}: the stream ended without [DONE] or an error")


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any] | None]:
    """None is [DONE]."""
    async for line in response.content:
        if line.startswith(b"data: "):
            yield None if line.startswith(b"data: [DONE]") else json.loads(line[6:])


def _whole(told: dict[str, Any]) -> Answer:
    if "data" in told:
        said: Any = [item["embedding"] for item in told["data"]]
    else:
        parts = [(c.get("text") or c["message"]["content"], c["finish_reason"], c["logprobs"]) for c in told["choices"]]
        said = [list(part) for part in parts]
    return Answer("whole", said, _receipts(told))


def _receipts(told: dict[str, Any]) -> tuple[str, ...]:
    octo = told.get("octo") or {}
    return tuple(octo.get("receipts") or [octo["receipt"]]) if octo else ()


def _refused(text: str) -> Answer:
    try:
        error = json.loads(text)["error"]
        code, message = error["code"], error["message"]
    except (ValueError, KeyError, TypeError):
        raise Unclear(f"no error in the API's shape: {text[:300]}") from None
    if not message or code in (None, "", "internal_error"):
        raise Unclear(f"this tells nobody anything: {text[:300]}")
    return Answer("refused", message, code=str(error.get("octo", {}).get("remote_code") or code))


async def ask_in_a_batch(session: aiohttp.ClientSession, lines: list[Question]) -> list[Answer]:
    """All of them by /v1/batches, polled; an answer for each line. Raises Unclear, TimeoutError."""
    form = aiohttp.FormData({"purpose": "batch"})
    made = "\n".join(
        json.dumps({"custom_id": str(at), "method": "POST", "url": line.path, "body": line.body})
        for at, line in enumerate(lines)
    )
    form.add_field("file", made.encode(), filename="lines.jsonl")
    async with asyncio.timeout(2 * BOUND_S):
        async with session.post("/v1/files", data=form) as response:
            file = (await response.json())["id"]
        order = {"input_file_id": file, "endpoint": lines[0].path, "completion_window": "24h"}
        async with session.post("/v1/batches", json=order) as response:
            batch = await response.json()
        while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
            await asyncio.sleep(0.5)
            async with session.get(f"/v1/batches/{batch['id']}") as response:
                batch = await response.json()
        if batch["status"] != "completed":
            raise Unclear(f"a batch {batch['status']}: {batch}")
        answers: dict[int, Answer] = {}
        for name in (batch["output_file_id"], batch["error_file_id"]):
            if name:
                async with session.get(f"/v1/files/{name}/content") as response:
                    answers |= dict(map(_line, (await response.text()).splitlines()))
    if sorted(answers) != list(range(len(lines))):
        raise Unclear(f"of {len(lines)} lines, {sorted(answers)} were answered")
    return [answers[at] for at in range(len(lines))]


def _line(text: str) -> tuple[int, Answer]:
    line = json.loads(text)
    body = (line["response"] or {}).get("body")
    return int(line["custom_id"]), _refused(text) if line["error"] else _whole(
        body
    ) if "error" not in body else _refused(json.dumps(body))
