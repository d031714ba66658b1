"""Models whose own templates know of tools: what they are handed, and how their calls are read; by OpenAI's client."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI, BadRequestError

from inference.grammar import as_gbnf
from market.testing import ByteTokenizer
from market.tools import CallForm, Tool, ToolCall
from node.api.openai_tools import Function, Toolbox
from node.api.tool_forms import FORMS
from tests.node.api.call_kit import read_calls

HELLO: Any = [{"role": "user", "content": "Weather in Oslo?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": CITY}}
CLOCK: Any = {"type": "function", "function": {"name": "clock", "strict": True}}
TEMPLATES = [CallForm.TAGGED, CallForm.BARE, CallForm.LISTED]
TWO_CALLS = {
    CallForm.TAGGED: '<tool_call>\n{"name": "weather", "arguments": {"city": "x"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
    CallForm.BARE: '{"type": "function", "name": "weather", "parameters": {"city": "x"}}; '
    '{"name": "clock", "parameters": {}}',
    CallForm.LISTED: '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "x"}, "id": "abcdefghi"},'
    ' {"name": "clock", "arguments": {}}]',
}


def template_of(node: Any, form: CallForm) -> None:
    """The model's template is of that form from now on."""

    class Formed(ByteTokenizer):
        call_form = form

    async def tokenizer(_model: str) -> ByteTokenizer:
        return Formed()

    node.tokenizer = tokenizer


@pytest.mark.parametrize("form", TEMPLATES)
async def test_tools_calls_and_results_go_to_the_template_as_they_are(
    client: AsyncOpenAI, node: Any, form: CallForm
) -> None:
    template_of(node, form)
    calls: Any = [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "x"}'}}]
    await client.chat.completions.create(
        model="small",
        tools=[WEATHER, CLOCK],
        messages=[
            {"role": "system", "content": "Be brief."},
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ],
    )
    (order,) = node.buyer.orders
    assert order.tools == (
        Tool(name="weather", description="Now.", parameters=json.dumps(CITY)),
        Tool(name="clock"),
    )
    system, _, asked, answered = order.messages
    assert system.content == "Be brief."
    (call,) = asked.tool_calls
    assert call == ToolCall(id=call.id, name="weather", arguments='{"city": "x"}')
    assert (answered.role, answered.name, answered.content, answered.tool_call_id) == (
        "tool",
        "weather",
        "rain",
        call.id,
    )
    assert call.id.isalnum() and len(call.id) == 9 if form is CallForm.LISTED else call.id == "call_1"
    assert (order.grammar, order.stop) == ("", ())


async def test_a_model_whose_template_knows_no_tools_is_told_in_our_words(client: AsyncOpenAI, node: Any) -> None:
    await client.chat.completions.create(model="small", messages=HELLO, tools=[WEATHER])
    (order,) = node.buyer.orders
    assert order.tools == ()
    assert order.messages[0].content.startswith("You can call these functions:")


@pytest.mark.parametrize("form", TEMPLATES)
async def test_without_tools_the_template_is_handed_none_but_the_history(
    client: AsyncOpenAI, node: Any, form: CallForm
) -> None:
    template_of(node, form)
    calls: Any = [{"id": "123456789", "type": "function", "function": {"name": "clock", "arguments": ""}}]
    history: Any = [
        *HELLO,
        {"role": "assistant", "content": "Wait.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "123456789", "content": "noon"},
    ]
    await client.chat.completions.create(model="small", messages=history)
    await client.chat.completions.create(model="small", messages=history, tools=[CLOCK], tool_choice="none")
    for order in node.buyer.orders:
        assert order.tools == ()
        assert [len(message.tool_calls) for message in order.messages] == [0, 1, 0]
        assert order.messages[1].content == "Wait."
    with pytest.raises(BadRequestError, match="no call with that id"):
        await client.chat.completions.create(model="small", messages=[history[0], history[2]])


@pytest.mark.parametrize("form", TEMPLATES)
@pytest.mark.parametrize("stream", [True, False])
async def test_several_calls_come_back_as_openai_has_them(
    client: AsyncOpenAI, node: Any, form: CallForm, stream: bool
) -> None:
    template_of(node, form)
    node.buyer.steps = list(TWO_CALLS[form])
    asked: Any = {"model": "small", "messages": HELLO, "tools": [WEATHER, CLOCK]}
    calls: dict[int, list[str]] = {}
    text, finish = "", None
    if stream:
        async for chunk in await client.chat.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
                for part in choice.delta.tool_calls or ():
                    held = calls.setdefault(part.index, ["", ""])
                    held[0] += part.function.name or ""
                    held[1] += part.function.arguments or ""
    else:
        (choice,) = (await client.chat.completions.create(**asked)).choices
        text, finish = choice.message.content or "", choice.finish_reason
        for at, call in enumerate(choice.message.tool_calls or ()):
            calls[at] = [call.function.name, call.function.arguments]
    assert calls == {0: ["weather", '{"city": "x"}'], 1: ["clock", "{}"]}
    assert (text, finish) == ("", "tool_calls")


@pytest.mark.parametrize("form", TEMPLATES)
async def test_a_call_that_must_be_made_is_held_to_the_forms_own_json(
    client: AsyncOpenAI, node: Any, form: CallForm
) -> None:
    template_of(node, form)
    key = "parameters" if form is CallForm.BARE else "arguments"
    said = f'{{"name": "clock", "{key}": {{}}}}'
    node.buyer.steps = list(f"[{said}]" if form is CallForm.LISTED else said)
    named: Any = {"type": "function", "function": {"name": "clock"}}
    for choice in ("required", named):
        answer = await client.chat.completions.create(
            model="small", messages=HELLO, tools=[WEATHER, CLOCK], tool_choice=choice
        )
        (call,) = answer.choices[0].message.tool_calls or ()
        assert (call.function.name, call.function.arguments) == ("clock", "{}")
    both, one = (json.loads(order.grammar) for order in node.buyer.orders)
    assert [len(order.tools) for order in node.buyer.orders] == [2, 1]
    assert len(both["anyOf"]) == 2
    schema = one
    if form is CallForm.LISTED:
        assert (one["type"], one["minItems"], one["maxItems"]) == ("array", 1, 1)
        schema = one["items"]
    assert schema["required"] == ["name", key]
    assert schema["properties"]["name"] == {"const": "clock"}
    for order in node.buyer.orders:
        as_gbnf(order.grammar)


@pytest.mark.parametrize("form", TEMPLATES)
async def test_one_call_only_where_calls_may_not_be_several(client: AsyncOpenAI, node: Any, form: CallForm) -> None:
    template_of(node, form)
    node.buyer.steps = (TWO_CALLS[form],)
    answer = await client.chat.completions.create(
        model="small", messages=HELLO, tools=[WEATHER, CLOCK], parallel_tool_calls=False
    )
    assert node.buyer.orders[0].stop == (("</tool_call>",) if form is CallForm.TAGGED else ())
    assert [call.function.name for call in answer.choices[0].message.tool_calls or ()] == ["weather"]
    assert answer.choices[0].message.content is None


# ---- the reader, for itself ----


def read(form: CallForm, *pieces: str) -> list[Any]:
    toolbox = Toolbox(functions=[Function(name="f"), Function(name="g")], must=False, parallel=True, form=FORMS[form])
    return read_calls(toolbox, pieces)


F, G = ["f", '{"a": [1, "]}"]}'], ["g", "{}"]


@pytest.mark.parametrize(
    ("form", "text", "heard"),
    [
        (
            "tagged",
            'Well.\n<tool_call>{"name": "f", "arguments": {"a": [1, "]}"]}}</tool_call>'
            '<tool_call>{"name": "g", "arguments": {}}</tool_call>',
            ["Well.\n", F, G],
        ),
        ("tagged", '{"name": "g", "arguments": {}}', [G]),
        ("tagged", '<tool_call>{"name": "h", "arguments": {}}</tool_call>', None),
        ("tagged", '[TOOL_CALLS] [{"name": "f", "arguments": {}}]', None),
        ("bare", '{"name": "f", "parameters": {"a": [1, "]}"]}}', [F]),
        ("bare", '\n{"type": "function", "name": "g", "parameters": {}}\n', [G]),
        ("bare", '<|python_tag|>{"name": "g", "parameters": {}}', [G]),
        ("bare", '{"parameters": {}, "name": "g"}', [G]),
        (
            "bare",
            '{"name": "g", "parameters": {}}\n{"name": "g", "parameters": {}} ; {"name": "h"}',
            [G, G, ' ; {"name": "h"}'],
        ),
        ("bare", '{"name": "h", "parameters": {}}', None),
        ("bare", 'So: {"name": "g", "parameters": {}}', None),
        ("bare", '<tool_call>{"name": "g", "parameters": {}}</tool_call>', None),
        ("bare", '{"name": "g", "parameters": {}} Done.', [G, "Done."]),
        (
            "listed",
            '[TOOL_CALLS] [{"name": "f", "arguments": {"a": [1, "]}"]}}, {"name": "g", "arguments": {}}]',
            [F, G],
        ),
        ("listed", '[TOOL_CALLS][{"name":"g","arguments":{},"id":"abcdefghi"}]', [G]),
        ("listed", ' [ {"id": "x", "name": "g", "arguments": {}} , {"name": "g", "arguments": {}} ] ', [G, G]),
        ("listed", 'Well. [TOOL_CALLS] [{"name": "g", "arguments": {}}] Done.', ["Well. ", G, "Done."]),
        ("listed", '[{"arguments": {}, "name": "g"}, {"name": "g"}]', [G, G]),
        ("listed", '[{"name": "g", "arguments": {}}, {"arguments": {}, "name": "g"}]', [G, G]),
        ("listed", '[TOOL_CALLS] [{"name": "h", "arguments": {}}]', None),
        (
            "listed",
            '[{"name": "g", "arguments": {}}, {"name": "h", "arguments": {}}]',
            [G, ', {"name": "h", "arguments": {}}]'],
        ),
        ("listed", "[1, 2, 3]", None),
        ("listed", ' \n[TOOL_CALLS] [{"name": "g", "arguments": {}}]', [G]),
        ("tagged", '\n<tool_call>{"name": "g", "arguments": {}}</tool_call>', [G]),
        ("tagged", " " * 600 + '<tool_call>{"name": "g", "arguments": {}}</tool_call>', [" " * 600, G]),
        ("bare", " " * 600 + '{"name": "g", "parameters": {}}', None),
        ("listed", '[{"name": "g", "arguments": {}, "id": "x"' + " " * 90 + "}]", [G]),
        ("bare", '{"name": "g", "parameters": {}, "id": "x"' + " " * 200 + "}", [G, ', "id": "x"' + " " * 200 + "}"]),
        ("listed", "[TOOL_CALLS] []", None),
        ("listed", "[TOOL", None),
        ("listed", '{"name": "g", "arguments": {}}', None),
    ],
)
def test_what_is_a_call_in_each_form_and_what_is_text(form: str, text: str, heard: list[Any] | None) -> None:
    wanted = [text] if heard is None else heard
    assert read(CallForm(form), text) == wanted
    assert read(CallForm(form), *text) == wanted


PARTS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", '{"name": "f", "arguments": ',
    '{"type": "function", "name": "f", "parameters": ', '{"name": ', ', "id": "x"', "{}", "[", "]", "{", "}", ",", ";",
    '"', "\\", " ", "x" * 300, "\n" * 140,
]  # fmt: skip


@given(
    st.sampled_from(list(CallForm)),
    st.lists(st.sampled_from(PARTS), max_size=14).map("".join),
    st.lists(st.integers(0, 900), max_size=8),
)
def test_however_an_answer_is_cut_the_same_is_heard(form: CallForm, text: str, cuts: list[int]) -> None:
    places = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    whole = read(form, text)
    assert read(form, *(text[a:b] for a, b in pairwise(places))) == whole
    assert read(form, *text) == whole


@given(st.sampled_from(list(CallForm)), st.text(alphabet="ab <tool_cal>[TOOL_CALLS]|;,\n", max_size=80))
def test_words_without_calls_come_out_as_they_went_in(form: CallForm, text: str) -> None:
    assert "".join(read(form, *text)) == text


@pytest.mark.parametrize("form", list(CallForm))
@pytest.mark.parametrize("hostile", ["[" * 10_000_000, '{"a":' * 2_000_000, " " * 10_000_000, "[{" * 5_000_000])
def test_ten_megabytes_of_nesting_are_text_or_arguments_and_soon_read(form: CallForm, hostile: str) -> None:
    began = time.process_time()
    assert "".join(read(form, *(hostile[at : at + 4096] for at in range(0, len(hostile), 4096)))) == hostile
    call = '{"name": "f", "arguments": {"a": '
    ((name, arguments),) = read(form, (f"[{call}" if form is CallForm.LISTED else call) + hostile)
    assert name == "f"
    assert len(arguments) == len('{"a": ') + len(hostile)
    assert time.process_time() - began < 60  # a step back for each piece would take hours
