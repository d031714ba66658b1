"""What POST /v1/chat/completions takes: OpenAI's request, parsed once, within limits, into orders for the buyer.

Knows no HTTP. Source: OpenAI's API reference, "Create chat completion".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from inference.grammar import as_gbnf, canonical_grammar
from market.buyer import Order
from market.errors import RequestInvalid
from market.task import GRAMMAR_LIMIT, MESSAGES_LIMIT, ChatMessage
from market.tools import TOOLS_LIMIT, CallForm
from market.tools import Tool as ToolToTell
from node.api.bodies import Shape, parse_body
from node.api.clerk import Clerk, Ignored, Refused
from node.api.openai_messages import Message, folded, handed
from node.api.openai_text import LOGPROBS_LIMIT, TextRequest, TokenCount
from node.api.openai_tools import Tool, Toolbox, ToolChoice
from node.api.tool_forms import FORMS, ToolForm


class NamedSchema(Shape):
    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
    description: Annotated[str, Field(max_length=65_536)] | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Shape):
    """With or without `strict` the answer matches the schema: it cannot be generated otherwise."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise PydanticCustomError(
                "schema", "belongs to the type json_schema, and to no other", {"param": "json_schema"}
            )
        return self

    def schema_of_answer(self) -> Mapping[str, Any] | None:
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class ChatRequest(TextRequest):
    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=MESSAGES_LIMIT)]
    max_completion_tokens: TokenCount | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=TOOLS_LIMIT)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=LOGPROBS_LIMIT)] | None = None

    functions: Refused = None
    function_call: Refused = None
    modalities: Refused = None
    audio: Refused = None
    web_search_options: Refused = None
    reasoning_effort: Refused = None
    verbosity: Refused = None
    moderation: Refused = None

    prediction: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("logprobs", "only a request with logprobs has them", {"param": "top_logprobs"})
        names = {tool.function.name for tool in self.tools or ()}
        if len(names) != len(self.tools or ()):
            raise PydanticCustomError("tools", "two functions have the same name", {"param": "tools"})
        wanted = self.tool_choice
        if wanted is not None and wanted.function is not None and wanted.function.name not in names:
            raise PydanticCustomError("tools", "no tool has that name", {"param": "tool_choice"})
        if wanted is not None and wanted.type == "required" and not names:
            raise PydanticCustomError("tools", "there are no tools", {"param": "tool_choice"})
        self.told(FORMS[CallForm.PLAIN])  # raises for results without their calls
        return self

    @property
    def about_tools(self) -> bool:
        """Whether it matters in which form the model knows of tools."""
        return bool(self.tools) or any(message.tool_calls or message.role == "tool" for message in self.messages)

    async def form(self, clerk: Clerk) -> ToolForm:
        """What the model's own template says. Raises ModelUnknown, or ContentUnavailable if it cannot be had."""
        if not self.about_tools:
            return FORMS[CallForm.PLAIN]
        return FORMS[(await clerk.tokenizer(clerk.resolve(self.model))).call_form]

    def toolbox(self, form: ToolForm) -> Toolbox | None:
        """None if no tool may be called."""
        wanted = self.tool_choice
        if not self.tools or (wanted is not None and wanted.type == "none"):
            return None
        only = wanted.function.name if wanted is not None and wanted.function is not None else None
        return Toolbox(
            functions=[tool.function for tool in self.tools if only in (None, tool.function.name)],
            must=wanted is not None and wanted.type in ("required", "function"),
            parallel=self.parallel_tool_calls is not False,
            form=form,
        )

    def told(self, form: ToolForm) -> tuple[tuple[ChatMessage, ...], tuple[ToolToTell, ...]]:
        """The messages and tools that the model's template gets."""
        toolbox = self.toolbox(form)
        if form.by_template:
            return handed(self.messages, form.call_id), toolbox.handed() if toolbox else ()
        return folded(self.messages, preface=toolbox.preface() if toolbox else ""), ()

    async def grammar(self, toolbox: Toolbox | None) -> str:
        """What the answer has to match, as `Order.grammar`. Raises RequestInvalid for what no engine could keep:
        here, before anything is paid."""
        answer = self.response_format.schema_of_answer() if self.response_format is not None else None
        schema = answer if toolbox is None else toolbox.grammar(answer)
        if schema is None:
            return ""
        param = "response_format" if answer is not None else "tools"
        try:
            text = json.dumps(schema)
            if len(text) <= 2 * GRAMMAR_LIMIT:  # with its spaces; a larger one is refused below
                text = canonical_grammar(text).decode()
            await asyncio.to_thread(as_gbnf, text)
        except RequestInvalid as error:
            raise RequestInvalid(f"{param}: {error.message}", next_step=error.next_step, param=param) from None
        except RecursionError:
            raise RequestInvalid(f"{param}: the JSON schema is nested too deep.", param=param) from None
        return text

    async def orders(self, clerk: Clerk, form: ToolForm) -> tuple[Order, ...]:
        """One order a choice."""
        toolbox = self.toolbox(form)
        messages, tools = self.told(form)
        order = Order(
            model=clerk.resolve(self.model),
            messages=messages,
            tools=tools,
            sampling=self.sampling(clerk),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            stop=(*(self.stop or ()), *(toolbox.stop() if toolbox else ())),
            grammar=await self.grammar(toolbox),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            seeded=self.seed is not None,
            **clerk.terms(self.octo),
        )
        return tuple(replace(order, sampling=replace(order.sampling, choice=i)) for i in range(self.n or 1))


def parse_chat(data: bytes) -> ChatRequest:
    """The request in a JSON body; raises RequestInvalid naming the first parameter that is wrong."""
    return parse_body(ChatRequest, data)
