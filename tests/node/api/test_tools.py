"""Tools, asked by OpenAI's own client: told to the model, called, streamed, and answered."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI

from inference.grammar import as_gbnf
from node.api.openai_tools import Function, Toolbox
from node.api.tool_calls import CallReader
from tests.node.api.call_kit import read_calls

HELLO: Any = [{"role": "user", "content": "Weather in Oslo?"}]
CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "$defs": {"city": {"type": "string"}}}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": CITY}}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Os}l\\"o", "in": [{}]}}\n</tool_call>'
ARGUMENTS = {"city": 'Os}l"o', "in": [{}]}


def spelled(text: str) -> list[str]:
    """One letter at a time."""
    return list(text)


async def test_tools_are_told_in_the_system_message_and_a_call_comes_back(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = spelled(CALL)
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    answer = await client.chat.completions.create(model="small", messages=messages, tools=[WEATHER, CLOCK])
    (order,) = node.buyer.orders
    assert order.messages[0].content.startswith("Be brief.\n\nYou can call these functions:\n<tools>\n")
    assert '"name": "weather"' in order.messages[0].content
    assert (order.grammar, order.stop) == ("", ())
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == ARGUMENTS
    assert call.id.startswith("call_")


async def test_a_streamed_call_begins_with_its_name_and_goes_on_as_it_comes(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = spelled(f"I'll look. {CALL}\n{CALL}")
    stream = await client.chat.completions.create(
        model="small", messages=HELLO, tools=[WEATHER], stream=True, stream_options={"include_usage": True}
    )
    text, calls, pieces, finish = "", {}, 0, None
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for part in choice.delta.tool_calls or ():
                if part.id:
                    calls[part.index] = [part.id, part.function.name, ""]
                else:
                    pieces += 1
                    calls[part.index][2] += part.function.arguments
    assert text == "I'll look. "
    assert [call[1] for call in calls.values()] == ["weather", "weather"]
    assert len({call[0] for call in calls.values()}) == 2
    assert [json.loads(call[2]) for call in calls.values()] == [ARGUMENTS, ARGUMENTS]
    assert pieces > 20
    assert finish == "tool_calls"


async def test_an_answer_in_words_stays_one(client: AsyncOpenAI, node: Any) -> None:
    for said in ("It rains <tool", "{x} is a set", "<tool_call>{broken}</tool_call>", '{"name": "other"}', "\n  "):
        node.buyer.steps = spelled(said)
        answer = await client.chat.completions.create(model="small", messages=HELLO, tools=[WEATHER])
        assert answer.choices[0].message.content == said
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].finish_reason == "stop"


async def test_a_call_that_was_cut_off_ends_for_length(client: AsyncOpenAI, node: Any, known: Any) -> None:
    node.buyer.steps = (CALL[:60],)
    node.buyer.outcome_of = lambda order: known.outcome(order, finish="length")
    answer = await client.chat.completions.create(model="small", messages=HELLO, tools=[WEATHER])
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls[0].function.arguments.startswith('{"city"')  # type: ignore[index]


async def test_without_parallel_calls_the_first_call_ends_the_answer(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = (CALL + CALL,)
    answer = await client.chat.completions.create(
        model="small", messages=HELLO, tools=[WEATHER], parallel_tool_calls=False, stop=["END"]
    )
    assert node.buyer.orders[0].stop == ("END", "</tool_call>")
    assert len(answer.choices[0].message.tool_calls or ()) == 1


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "clock"}}])
async def test_a_call_that_must_be_made_is_held_to_a_schema(client: AsyncOpenAI, node: Any, choice: Any) -> None:
    node.buyer.steps = spelled('{"name": "clock", "arguments": {}}')
    answer = await client.chat.completions.create(
        model="small", messages=HELLO, tools=[WEATHER, CLOCK], tool_choice=choice
    )
    (order,) = node.buyer.orders
    schema = json.loads(order.grammar)
    options = schema.get("anyOf", [schema])
    wanted = ["weather", "clock"] if choice == "required" else ["clock"]
    assert [option["properties"]["name"]["const"] for option in options] == wanted
    assert '"clock"' in as_gbnf(order.grammar).replace("\\", "")
    assert ("weather" in order.messages[0].content) == (choice == "required")
    assert answer.choices[0].message.tool_calls[0].function.name == "clock"  # type: ignore[index]
    assert answer.choices[0].finish_reason == "tool_calls"


NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
ANY_FLAGS = {"type": "object", "additionalProperties": {"type": "boolean"}}


@pytest.mark.parametrize(
    ("parameters", "held_to"),
    [
        (None, NO_ARGUMENTS),
        ({}, NO_ARGUMENTS),
        ({"type": "object", "properties": {}, "title": "now"}, NO_ARGUMENTS),
        (ANY_FLAGS, ANY_FLAGS),
    ],
)
async def test_no_arguments_are_made_up_for_a_function_that_takes_none(
    client: AsyncOpenAI, node: Any, parameters: Any, held_to: Any
) -> None:
    node.buyer.steps = spelled('{"name": "now", "arguments": {}}')
    tool: Any = {"type": "function", "function": {"name": "now", "parameters": parameters}}
    await client.chat.completions.create(model="small", messages=HELLO, tools=[tool], tool_choice="required")
    assert json.loads(node.buyer.orders[0].grammar)["$defs"]["arguments_0"] == held_to


async def test_references_inside_parameters_keep_their_meaning(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = ('{"name": "weather", "arguments": {"city": "x"}}',)
    await client.chat.completions.create(model="small", messages=HELLO, tools=[WEATHER], tool_choice="required")
    moved = json.loads(node.buyer.orders[0].grammar)["$defs"]["arguments_0"]
    assert moved["properties"]["city"] == {"$ref": "#/$defs/arguments_0/$defs/city"}


async def test_tools_beside_a_schema_allow_either(client: AsyncOpenAI, node: Any) -> None:
    answer = {"type": "object", "properties": {"rain": {"type": "boolean"}}, "required": ["rain"]}
    for said, called in (('{"rain": true}', False), ('{"name": "clock", "arguments": {}}', True)):
        node.buyer.steps = spelled(said)
        heard = await client.chat.completions.create(
            model="small",
            messages=HELLO,
            tools=[CLOCK],
            response_format={"type": "json_schema", "json_schema": {"name": "rain", "schema": answer}},
        )
        assert bool(heard.choices[0].message.tool_calls) == called
        assert called or heard.choices[0].message.content == said
    assert len(json.loads(node.buyer.orders[0].grammar)["anyOf"]) == 2


async def test_no_tool_is_told_of_where_none_may_be_called(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = (CALL,)
    answer = await client.chat.completions.create(model="small", messages=HELLO, tools=[WEATHER], tool_choice="none")
    assert [message.role for message in node.buyer.orders[0].messages] == ["user"]
    assert answer.choices[0].message.content == CALL


async def test_calls_and_results_in_the_history_become_text(client: AsyncOpenAI, node: Any) -> None:
    calls: Any = [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"id": "2", "type": "function", "function": {"name": "clock", "arguments": ""}},
    ]
    await client.chat.completions.create(
        model="small",
        messages=[
            *HELLO,
            {"role": "assistant", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "1", "content": "rain</tool_response>"},
            {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "noon"}]},
            {"role": "user", "content": "So?"},
        ],
    )
    told = [(message.role, message.content) for message in node.buyer.orders[0].messages]
    assert told == [
        ("user", "Weather in Oslo?"),
        (
            "assistant",
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
        ),
        (
            "user",
            '<tool_response>\n{"name": "weather", "content": "rain<\\/tool_response>"}\n</tool_response>\n'
            '<tool_response>\n{"name": "clock", "content": "noon"}\n</tool_response>',
        ),
        ("user", "So?"),
    ]


# ---- the reader, for itself ----

TOOLBOX = Toolbox(functions=[Function(name="f"), Function(name="g")], must=False, parallel=True)


def read(*pieces: str) -> list[Any]:
    return read_calls(TOOLBOX, pieces)


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', [["f", '{"a": 1}']]),
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', [["f", '{"a": 1}']]),
        ('<tool_call>{"name": "f"}</tool_call>', [["f", "{}"]]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [["f", '{"a": 1}']]),
        ('<tool_call>{"name": "f", "parameters": {}}', [["f", "{}"]]),
        ('Well. <tool_call>{"name": "f", "arguments": {}}</tool_call> Done.', ["Well. ", ["f", "{}"], "Done."]),
        ('<tool_call>{"name": "h"}</tool_call>', ['<tool_call>{"name": "h"}</tool_call>']),
        ('{"name": "f", "age": 3}', ['{"name": "f", "age": 3}']),
        (
            '{"name": "f", "arguments": {}} {"name": "g", "arguments": {}}',
            [["f", "{}"], '{"name": "g", "arguments": {}}'],
        ),
        ("<tool_call>" * 3, ["<tool_call>" * 3]),
        ("", []),
    ],
)
def test_what_is_a_call_and_what_is_not(text: str, heard: list[Any]) -> None:
    assert read(text) == heard
    assert read(*text) == heard


PARTS = [
    "<tool_call>",
    "</tool_call>",
    '{"name": "f", "arguments": ',
    '{"name": ',
    "{}",
    '"',
    "}",
    "\\",
    " ",
    "x" * 300,
    "\n",
]


@given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join), st.lists(st.integers(0, 900), max_size=8))
def test_however_it_is_cut_the_same_is_heard(text: str, cuts: list[int]) -> None:
    places = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    assert read(*(text[a:b] for a, b in pairwise(places))) == read(text)


@given(st.text(alphabet="abc <tool_cal>\n", max_size=80))
def test_words_without_calls_come_out_as_they_went_in(text: str) -> None:
    assert "".join(read(*text)) == text


def test_what_is_held_back_is_bounded() -> None:
    reader = CallReader(TOOLBOX)
    assert reader.feed("{" + " " * 100) == []
    assert reader.feed("x" * 500) != []
