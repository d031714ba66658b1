"""Which form a chat template has calls of tools written in, told from its own text: nothing is rendered.

Lives here: what a template must have to be handed tools at all, and the marks of the forms that we can read back.
What is not surely one of them is PLAIN: the tools are then told in our own words, which every model gets alike.
"""

from __future__ import annotations

from typing import Final

from jinja2 import nodes
from jinja2.meta import find_undeclared_variables

from market.tools import CallForm

_OTHER_FORMS: Final = (
    "<function=",
    "<arg_key>",
    "[ARGS]",
    "<|tool_call|>",
    "<|tool_calls_section_begin|>",
    "<\uff5ctool",
)
"""Marks of forms that nobody here reads: XML inside of the tags, names outside of the JSON, tags of their own."""


def call_form(tree: nodes.Template) -> CallForm:
    """`tree` is the template as parsed. Raises jinja2.TemplateError for one that would not compile.

    It is handed tools if it asks its caller for `tools`, looks at `tool_calls` of messages, and knows the role `tool`:
    one that lacked any of these would lose a part of the conversation without a word.
    """
    if "tools" not in find_undeclared_variables(tree):
        return CallForm.PLAIN
    words = [const.value for const in tree.find_all(nodes.Const) if isinstance(const.value, str)]
    looks_at = {*words, *(found.attr for found in tree.find_all(nodes.Getattr))}
    if not {"tool_calls", "tool"} <= looks_at:
        return CallForm.PLAIN
    text = "\n".join((*words, *(data.data for data in tree.find_all(nodes.TemplateData))))
    if any(mark in text for mark in _OTHER_FORMS):
        return CallForm.PLAIN
    if "[TOOL_CALLS]" in text:
        return CallForm.LISTED
    if "<tool_call>" in text:
        return CallForm.TAGGED if '"name"' in text and '"arguments"' in text else CallForm.PLAIN
    return CallForm.BARE if '"name"' in text and '"parameters"' in text else CallForm.PLAIN
