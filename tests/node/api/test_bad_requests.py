"""What is malformed, absurd or not supported is refused by name, before anything is bought."""

import json
import time
from typing import Any

import pytest

TOOLS = [{"type": "function", "function": {"name": "f"}}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL_RESULT = {"role": "tool", "content": "x", "tool_call_id": "2"}


def schema(content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": content}}


NOT_ALLOWED: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
    ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
    ({"temperature": float("nan")}, "temperature", "finite"),
    ({"temperature": float("inf")}, "temperature", "finite"),
    ({"temperature": "0.5"}, "temperature", "valid number"),
    ({"temperature": True}, "temperature", "valid number"),
    ({"top_p": -0.1}, "top_p", "greater than or equal to 0"),
    ({"top_p": 1.01}, "top_p", "less than or equal to 1"),
    ({"top_k": 257}, "top_k", "256"),
    ({"top_k": -2}, "top_k", "-1"),
    ({"n": 0}, "n", "1"),
    ({"n": 9}, "n", "8"),
    ({"max_tokens": 0}, "max_tokens", "1"),
    ({"max_tokens": -5}, "max_tokens", "1"),
    ({"max_tokens": 10**30}, "max_tokens", "131072"),
    ({"max_tokens": 1.5}, "max_tokens", "integer"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "1"),
    ({"seed": 2**63}, "seed", "less than"),
    ({"seed": "one"}, "seed", "integer"),
    ({"presence_penalty": 2.1}, "presence_penalty", "2"),
    ({"frequency_penalty": -2.1}, "frequency_penalty", "-2"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "100"),
    ({"logit_bias": {"one": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"01": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"2147483648": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "1024"),
    ({"stop": ""}, "stop[0]", "at least 1"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4 items, not 5."),
    ({"stop": [1]}, "stop[0]", "string"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": "Hi"}, "messages", "array"),
    ({"messages": [{"role": "user", "content": "x"}] * 2049}, "messages", "2048"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'user'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "string"),
    ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content", "type"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content", "text"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 1025}]}, "messages[0].content", "1024"),
    ({"model": ""}, "model", "at least 1"),
    ({"model": 5}, "model", "string"),
    ({"model": "x" * 300}, "model", "256"),
    ({"tool_choice": "required"}, "tool_choice", "no tools"),
    ({"tool_choice": "perhaps"}, "tool_choice.type", "'required'"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "that name"),
    ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function", "type function"),
    ({"tools": [*TOOLS, *TOOLS]}, "tools", "same name"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "pattern"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "'function'"),
    ({"tools": TOOLS * 129}, "tools", "128"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
    ({"top_logprobs": 5}, "top_logprobs", "logprobs"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "'json_schema'"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "belongs"),
    ({"response_format": schema({"type": "object", "minProperties": 1})}, "response_format", "minProperties"),
    ({"response_format": schema({"$ref": "#/nowhere"})}, "response_format", "points to nothing"),
    ({"messages": [TOOL_RESULT]}, "messages[0].tool_call_id", "no call"),
    ({"messages": [{**TOOL_RESULT, "tool_call_id": None}]}, "messages[0].tool_call_id", "belongs"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls", "assistant"),
    ({"octo": {"privacy": "secret"}}, "octo.privacy", "'private'"),
    ({"octo": {"mode": "fast"}}, "octo.mode", "'batch'"),
    ({"octo": {"max_price": 5}}, "octo.max_price", "no such parameter"),
    ({"min_p": 0.1}, "min_p", "no such parameter"),
]

NOT_SUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "f"}, "function_call"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"messages": [{"role": "function", "content": "x", "name": "f"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content",
    ),
]

HARMLESS: list[dict[str, Any]] = [
    {"user": "ann", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "parallel_tool_calls": False},
    {"tools": [], "functions": None, "logprobs": False, "top_logprobs": 0, "tool_choice": "none"},
    {"response_format": {"type": "text"}, "modalities": ["text"], "n": 1, "seed": -1, "stop": None, "logit_bias": {}},
    {"temperature": 0, "top_p": 1, "max_tokens": None, "stream": False, "octo": None},
    {"messages": [{"role": "assistant", "content": "x", "refusal": None, "annotations": [], "tool_calls": None}]},
]

MALFORMED = {
    "nothing": (b"", "not valid JSON"),
    "a word": (b"hello", "not valid JSON"),
    "cut off": (b'{"model": "small", ', "not valid JSON"),
    "a list": (b"[]", "should be a JSON object"),
    "a number": (b"1", "should be a JSON object"),
    "no UTF-8": (b'{"model": "\xff"}', "not valid JSON"),
    "half a surrogate pair": (rb'{"model": "\ud800"}', "not valid JSON"),
    "NaN outside of any limit": (b'{"model": NaN}', "model"),
    "a million open lists": (b"[" * 1_000_000, "recursion limit"),
    "a million open objects": (b'{"a":' * 600_000, "recursion limit"),
    "deep in an ignored field": (b'{"metadata": ' + b"[" * 1_000_000, "recursion limit"),
    "a number of a million digits": (b'{"seed": ' + b"9" * 1_000_000 + b"}", "out of range"),
    "many unknown names": (b"{" + b",".join(b'"x%d":1' % i for i in range(200_000)) + b"}", "required"),
}


@pytest.mark.parametrize(("change", "param", "reason"), NOT_ALLOWED, ids=lambda value: str(value)[:40])
async def test_what_is_not_allowed_is_refused_by_name(
    http: Any, node: Any, known: Any, change: dict[str, Any], param: str, reason: str
) -> None:
    async with http.post("/v1/chat/completions", data=json.dumps({**known.question, **change})) as response:
        error = (await response.json())["error"]
        assert response.status == 400, error
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_request"
    assert error["param"] == param
    assert reason in error["message"]
    assert error["message"].startswith(f"{param}: ")
    assert node.buyer.orders == []


@pytest.mark.parametrize(("change", "param"), NOT_SUPPORTED, ids=lambda value: str(value)[:40])
async def test_what_cannot_be_honoured_is_refused_by_name(
    http: Any, node: Any, known: Any, change: dict[str, Any], param: str
) -> None:
    async with http.post("/v1/chat/completions", json={**known.question, **change}) as response:
        error = (await response.json())["error"]
        assert response.status == 400
    assert error["param"] == param
    assert "not supported yet by this node" in error["message"]
    assert node.buyer.orders == []


@pytest.mark.parametrize("change", HARMLESS, ids=lambda value: str(value)[:40])
async def test_what_asks_for_nothing_is_taken(http: Any, known: Any, change: dict[str, Any]) -> None:
    async with http.post("/v1/chat/completions", json={**known.question, **change}) as response:
        assert response.status == 200, await response.text()


@pytest.mark.parametrize(("body", "reason"), MALFORMED.values(), ids=MALFORMED)
async def test_malformed_json_is_refused_in_no_time(http: Any, body: bytes, reason: str) -> None:
    began_s = time.monotonic()
    async with http.post("/v1/chat/completions", data=body) as response:
        error = (await response.json())["error"]
        assert response.status == 400
    assert reason in error["message"]
    assert time.monotonic() - began_s < 10


async def test_a_refusal_does_not_repeat_what_was_said(http: Any, known: Any) -> None:
    question = {"model": "small", "messages": [{"role": "user", "content": {"my": "darkest secret"}}]}
    async with http.post("/v1/chat/completions", json=question) as response:
        assert response.status == 400
        assert "darkest" not in await response.text()
