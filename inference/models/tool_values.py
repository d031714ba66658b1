"""Messages and tools as chat templates get them: Hugging Face's convention, each text changed on its way in.

Lives here: the shapes, and the limits on JSON that a stranger sent. Knows no control token and no template.
Source: transformers, "Chat templates: tools": a tool is {"type": "function", "function": {name, description,
parameters}}, a call has its arguments as a dictionary, a result is a message of the role `tool`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from market.errors import RequestInvalid
from market.task import ChatMessage
from market.tools import Tool, ToolCall

_DEPTH_LIMIT: Final = 64
Change = Callable[[str], str]


def plain_message(message: ChatMessage, change: Change) -> dict[str, Any]:
    """The keys are those of the convention, and the role is left as it is; all other texts go through `change`.

    Raises RequestInvalid.
    """
    plain: dict[str, Any] = {"role": message.role, "content": change(message.content)}
    if message.name is not None:
        plain["name"] = change(message.name)
    if message.tool_calls:
        plain["tool_calls"] = [_call(call, change) for call in message.tool_calls]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = change(message.tool_call_id)
    return plain


def plain_tool(tool: Tool, change: Change) -> dict[str, Any]:
    """Raises RequestInvalid for parameters that are not the JSON of an object."""
    parameters = _json(tool.parameters)
    if not isinstance(parameters, dict):
        raise RequestInvalid("a tool's parameters are not the JSON of an object.", param="tools")
    function = {"name": change(tool.name), "description": change(tool.description)}
    return {"type": "function", "function": {**function, "parameters": _changed(parameters, change)}}


def refuse_tools(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> None:
    """For who has no template that knows of tools. Raises RequestInvalid: they would be lost without a word."""
    if tools or any(message.tool_calls or message.tool_call_id is not None for message in messages):
        raise RequestInvalid("the model's chat template knows of no tools.", param="tools")


def size_of(item: object) -> int:
    """Characters, and one for all else."""
    if isinstance(item, str):
        return len(item)
    if isinstance(item, dict):
        return sum(len(key) + size_of(value) for key, value in item.items())
    if isinstance(item, list):
        return sum(map(size_of, item))
    return 1


def _call(call: ToolCall, change: Change) -> dict[str, Any]:
    """What is not the JSON of an object (a call that was cut off, say) stays the text that it is."""
    arguments = _json(call.arguments) if call.arguments.strip() else {}
    told = _changed(arguments, change) if isinstance(arguments, dict) else change(call.arguments)
    return {"id": change(call.id), "type": "function", "function": {"name": change(call.name), "arguments": told}}


def _json(text: str) -> Any:
    """None for what is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _changed(item: Any, change: Change, depth: int = 0) -> Any:
    if depth > _DEPTH_LIMIT:
        raise RequestInvalid(f"the JSON of a tool is nested deeper than {_DEPTH_LIMIT} levels.", param="tools")
    if isinstance(item, str):
        return change(item)
    if isinstance(item, dict):
        return {change(key): _changed(value, change, depth + 1) for key, value in item.items()}
    if isinstance(item, list):
        return [_changed(value, change, depth + 1) for value in item]
    return item
