"""The messages of a chat as clients send them, and how they become those that a model's template renders.

A template that knows of tools is handed calls and results as they are (`handed`). For any other, which knows roles and
texts, they are folded into text, in one way:

    an assistant's call      <tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>, after what it said, one a block
    results (role `tool`)    <tool_response>\n{"name": …, "content": …}\n</tool_response>, those that follow one
                             another as one message of the user

which is how models of several families were taught it (Hermes, Qwen). Pure; knows no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from market.task import ChatMessage
from market.tools import CALLS_LIMIT, ToolCall
from node.api.clerk import Refused, unsupported
from node.api.tool_forms import CALL_CLOSE, CALL_OPEN

PARTS_LIMIT = 1024

FunctionName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]


def _text(raw: object) -> object:
    """Text parts, joined. Source: OpenAI's content parts."""
    if not isinstance(raw, list):
        return raw
    if len(raw) > PARTS_LIMIT:
        raise PydanticCustomError("too_long", "at most {limit} parts are allowed", {"limit": PARTS_LIMIT})
    texts = []
    for part in raw:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise PydanticCustomError("part", "each part should be an object with a type")
        if kind != "text":
            raise unsupported(f"{kind[:32]!r} parts are")
        if not isinstance(part.get("text"), str):
            raise PydanticCustomError("part", "a text part should have a text")
        texts.append(part["text"])
    return "".join(texts)


def _role(raw: object) -> object:
    if raw == "function":
        raise unsupported("'function' messages are")
    return "system" if raw == "developer" else raw


class _Sent(BaseModel):
    """Unknown fields are ignored: clients send back the answers that they got, with all that was in them."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class CalledFunction(_Sent):
    name: FunctionName
    arguments: Annotated[str, Field(max_length=1_000_000)]


class SentCall(_Sent):
    id: Annotated[str, Field(min_length=1, max_length=128)]
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(_Sent):
    role: Annotated[Literal["system", "user", "assistant", "tool"], BeforeValidator(_role)]
    content: Annotated[str | None, BeforeValidator(_text)]
    name: Annotated[str, Field(max_length=64)] | None = None
    tool_calls: Annotated[list[SentCall], Field(max_length=CALLS_LIMIT)] | None = None
    tool_call_id: Annotated[str, Field(max_length=128)] | None = None
    function_call: Refused = None
    audio: Refused = None

    @model_validator(mode="before")
    @classmethod
    def _content_may_be_left_out(cls, raw: Any) -> Any:
        """Where there are calls: some clients send null, some nothing."""
        return {"content": None, **raw} if isinstance(raw, dict) and raw.get("tool_calls") else raw

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("content", "should be a string or text parts", {"param": "content"})
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("calls", "only an assistant calls tools", {"param": "tool_calls"})
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise PydanticCustomError(
                "call_id", "belongs to messages of the role tool, and to each of them", {"param": "tool_call_id"}
            )
        return self


def folded(messages: Sequence[Message], *, preface: str = "") -> tuple[ChatMessage, ...]:
    """As the template gets them. `preface` (the tools on offer) ends the first system message, or is one.

    Raises PydanticCustomError for a result of a call that was never made.
    """
    out: list[ChatMessage] = []
    names: dict[str, str] = {}
    results: list[str] = []
    for place, message in enumerate(messages):
        if message.role == "tool":
            name = _answered(message, place, names)
            results.append(_block("tool_response", {"name": name, "content": message.content}))
            continue
        _flush(results, out)
        text = message.content or ""
        for call in message.tool_calls or ():
            names[call.id] = call.function.name
            text += ("\n" if text else "") + f"{CALL_OPEN}\n{plain_json(_plain_call(call.function))}\n{CALL_CLOSE}"
        out.append(ChatMessage(role=message.role, content=text, name=message.name))
    _flush(results, out)
    return _prefaced(out, preface) if preface else tuple(out)


def handed(messages: Sequence[Message], call_id: Callable[[str], str]) -> tuple[ChatMessage, ...]:
    """For a template that knows of tools. `call_id` makes ids that it takes. Raises as `folded`."""
    out: list[ChatMessage] = []
    names: dict[str, str] = {}
    for place, message in enumerate(messages):
        text, given = message.content or "", message.tool_call_id
        if given is not None:
            name = _answered(message, place, names)
            out.append(ChatMessage(role=message.role, content=text, name=name, tool_call_id=call_id(given)))
            continue
        names |= {call.id: call.function.name for call in message.tool_calls or ()}
        calls = tuple(
            ToolCall(id=call_id(call.id), name=call.function.name, arguments=call.function.arguments)
            for call in message.tool_calls or ()
        )
        out.append(ChatMessage(role=message.role, content=text, name=message.name, tool_calls=calls))
    return tuple(out)


def _answered(message: Message, place: int, names: Mapping[str, str]) -> str:
    """The function whose result a message holds."""
    name = names.get(message.tool_call_id or "")
    if name is None:
        raise PydanticCustomError(
            "call_id", "no call with that id came before it", {"param": f"messages[{place}].tool_call_id"}
        )
    return name


def _flush(results: list[str], out: list[ChatMessage]) -> None:
    if results:
        out.append(ChatMessage(role="user", content="\n".join(results)))
        results.clear()


def _prefaced(messages: Sequence[ChatMessage], preface: str) -> tuple[ChatMessage, ...]:
    if messages and messages[0].role == "system":
        first = messages[0]
        said = f"{first.content}\n\n{preface}" if first.content else preface
        return (ChatMessage(role="system", content=said, name=first.name), *messages[1:])
    return (ChatMessage(role="system", content=preface), *messages)


def _plain_call(function: CalledFunction) -> dict[str, object]:
    """Arguments that are no JSON (a model's answer that was cut off, say) stay the text that they are."""
    try:
        arguments = json.loads(function.arguments) if function.arguments.strip() else {}
    except (ValueError, RecursionError):
        arguments = function.arguments
    return {"name": function.name, "arguments": arguments}


def _block(tag: str, content: object) -> str:
    return f"<{tag}>\n{plain_json(content)}\n</{tag}>"


def plain_json(content: object) -> str:
    """JSON that closes no tag around it: `</` becomes `<\\/`, which says the same."""
    try:
        return json.dumps(content, ensure_ascii=False).replace("</", "<\\/")
    except RecursionError:
        raise PydanticCustomError("deep", "nested too deep", {"param": "messages"}) from None
