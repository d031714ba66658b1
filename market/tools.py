"""Tools of a chat: functions that a model may ask for, calls that it made, and how templates have them written.

Only models whose own chat template tells them of tools get these; for the others the buyer puts tools into plain
words (node/api). Values alone: knows no template and no HTTP.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from market.values import Word, value

TOOLS_LIMIT = 128
CALLS_LIMIT = 128
ARGUMENTS_LIMIT = 1_000_000


class CallForm(Word):
    """How a model is told of tools, and writes its calls."""

    PLAIN = "plain"
    """Its template knows of no tools, or of none in a form known here: they are told in our own words."""
    TAGGED = "tagged"
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Hermes and Qwen do."""
    BARE = "bare"
    """`{"name": …, "parameters": {…}}` and nothing else, as Llama 3 does."""
    LISTED = "listed"
    """`[TOOL_CALLS] [{"name": …, "arguments": {…}}]`, as Mistral does."""


@value
class Tool:
    """A function on offer. `parameters` is the JSON text of a schema."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: Annotated[str, Field(max_length=65_536)] = ""
    parameters: Annotated[str, Field(max_length=ARGUMENTS_LIMIT)] = '{"type": "object", "properties": {}}'


@value
class ToolCall:
    """A call that the assistant made. `arguments` is JSON text of an object, or whatever the model wrote instead."""

    id: Annotated[str, Field(min_length=1, max_length=128)]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    arguments: Annotated[str, Field(max_length=ARGUMENTS_LIMIT)]
