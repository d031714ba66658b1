"""Grammars and schemas: what they become, what is refused and why. Matched here by Python's own means."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.grammar import GRAMMAR_LIMIT, NESTING_LIMIT, as_gbnf, canonical_grammar
from inference.ranges import integers_between
from inference.schema import DEPTH_LIMIT, schema_to_gbnf
from market.errors import RequestInvalid


def as_regex(gbnf: str) -> str:
    """A grammar as a regular expression: rules written out; one inside itself a fourth time matches nothing."""
    rules = dict(line.split(" ::= ", 1) for line in gbnf.splitlines())
    words = r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\{[^}]*\}|[a-z][a-z0-9-]*|[|()*+?]'

    def expand(name: str, path: tuple[str, ...]) -> str:
        if path.count(name) == 3:
            return "(?!)"
        out = []
        for word in re.findall(words, rules[name]):
            if word[0] == '"':
                out.append("(?:" + re.escape(word[1:-1].replace('\\"', '"').replace("\\\\", "\\")) + ")")
            elif word[0].isalpha():
                out.append("(?:" + expand(word, (*path, name)) + ")")
            else:
                out.append("(?:" if word == "(" else word)
        return "".join(out)

    return expand("root", ())


def accepts(schema: Any, text: str) -> bool:
    return re.fullmatch(as_regex(as_gbnf(json.dumps(schema))), text) is not None


PERSON = {
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "exclusiveMaximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b\n", 3, None]}, "maxItems": 2},
        "mood": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/mood"}]},
    },
    "required": ["age"],
    "additionalProperties": False,
    "$defs": {"mood": {"const": 'fine "today" \\o/'}},
}


@pytest.mark.parametrize(
    ("document", "valid"),
    [
        ({"age": 0}, True),
        ({"name": "Ann", "age": 129}, True),
        ({"age": 9, "tags": []}, True),
        ({"name": "Ann", "age": 9, "tags": ["a", "b\n"], "mood": None}, True),
        ({"age": 9, "tags": [3, None], "mood": PERSON["$defs"]["mood"]["const"]}, True),
        ({"age": 9, "mood": None}, True),
        ({}, False),
        ({"name": "Ann"}, False),
        ({"age": 130}, False),
        ({"age": -1}, False),
        ({"age": 9, "name": "Ann"}, False),
        ({"name": "", "age": 9}, False),
        ({"name": "123456789", "age": 9}, False),
        ({"age": 9, "tags": ["c"]}, False),
        ({"age": 9, "tags": ["a", "a", "a"]}, False),
        ({"age": 9, "more": 1}, False),
    ],
)
def test_an_objects_grammar_has_its_members_in_order_and_nothing_else(document, valid):
    assert accepts(PERSON, json.dumps(document)) is valid


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({}, ['{"a": [1, "x", null, true, -2.5e3]}', '""'], ["", "nul", "01", '"a\nb"', '"\\x"', "{1: 2}"]),
        ({"type": "object"}, ["{}", '{"a":1,"b":{}}'], ["[]", '{"a":1,}']),
        ({"type": ["integer", "null"]}, ["-5", "null", "0"], ["1.5", "-", "00"]),
        ({"type": "number"}, ["-0.5", "1e9", "12"], [".5", "1.", "+1", "NaN"]),
        (
            {"type": "array", "items": {"type": "boolean"}, "minItems": 2},
            ["[true, false]", "[true,true,true]"],
            ["[true]"],
        ),
        ({"type": "array", "items": {"const": 1}, "minItems": 1, "maxItems": 1}, ["[1]"], ["[]", "[1, 1]"]),
        ({"type": "array", "items": {"const": 1}, "maxItems": 0}, ["[]"], ["[1]"]),
        ({"type": "array", "maxItems": 2}, ["[]", "[1]", '[1, "a"]'], ["[1,2,3]"]),
        ({"prefixItems": [{"const": 1}, {"const": 2}]}, ["[1, 2]"], ["[1]", "[1, 2, 3]"]),
        ({"prefixItems": [{"const": 1}], "items": {"const": 2}, "minItems": 2}, ["[1, 2]", "[1, 2, 2]"], ["[1]"]),
        ({"properties": {}, "additionalProperties": {"const": 1}}, ["{}", '{"a":1, "b":1}'], ['{"a":2}']),
        ({"type": "object", "properties": {}, "additionalProperties": False}, ["{}"], ['{"a":1}']),
        ({"required": ["x"]}, ['{"x": [1]}'], ["{}"]),
        ({"type": "string", "format": "date"}, ['"2026-02-28"'], ['"2026-02-30"', '"2026-13-01"']),
        ({"type": "string", "format": "date-time"}, ['"2026-02-28T23:59:00Z"'], ['"2026-02-28"']),
        ({"type": "string", "format": "unheard"}, ['"x"'], ["x"]),
        ({"allOf": [{"type": "null"}]}, ["null"], ["1"]),
        ({"properties": {"a/b": {"const": 1}, "n": {"$ref": "#/properties/a~1b"}}}, ['{"n": 1}'], ['{"n": 2}']),
    ],
)
def test_every_kind_of_schema(schema, good, bad):
    assert [text for text in good if not accepts(schema, text)] == []
    assert [text for text in bad if accepts(schema, text)] == []


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "string", "pattern": "a+"}, "#/pattern"),
        ({"type": "array", "uniqueItems": True}, "#/uniqueItems"),
        ({"properties": {"x": {"type": "number", "minimum": 0}}}, "#/properties/x"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "no integer keeps"),
        ({"type": "integer", "minimum": 0.5}, "no integer"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "no string keeps"),
        ({"type": "string", "maxLength": 10**6}, "maxLength"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "no array keeps"),
        ({"prefixItems": [{}], "minItems": 2}, "more items than it describes"),
        ({"allOf": [{}, {}]}, "more than one part"),
        ({"enum": []}, "is not a list"),
        ({"const": 1e400}, "cannot say"),
        ({"const": "\ud800"}, "cannot say"),
        ({"$ref": "https://example.org/schema"}, "outside"),
        ({"$ref": "#/nowhere"}, "points to nothing"),
        ({"$ref": "#"}, "begins with itself"),
        ({"required": ["x"], "additionalProperties": False}, "does not allow"),
        ({"properties": {"x": False}}, "allows nothing"),
        ({"type": "whole"}, "a type that JSON has not"),
        ({"items": 7}, "is not a schema"),
        ({"not": {}}, "#/not"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(schema, reason):
    with pytest.raises(RequestInvalid, match=re.escape(reason)):
        as_gbnf(json.dumps(schema))


def test_a_schema_that_is_deep_endless_or_no_json_is_refused():
    deep: Any = {}
    for _ in range(DEPTH_LIMIT + 1):
        deep = {"items": deep}
    for text in (json.dumps(deep), "{" * 50_000, "{}}", '{"a": NaN', "{" + " " * GRAMMAR_LIMIT, '{"a":' * 30_000):
        with pytest.raises(RequestInvalid):
            as_gbnf(text)
    tree = {"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}
    assert accepts(tree, '{"left": {"right": {}}}')


@settings(max_examples=60, deadline=None)
@given(st.integers(-(10**4), 10**4), st.integers(0, 10**4), st.data())
def test_a_range_holds_its_integers_and_no_others(least, span, data):
    pattern = as_regex(f"root ::= {integers_between(least, least + span)}")
    for number in {
        least,
        least + span,
        *data.draw(st.lists(st.integers(least - 500, least + span + 500), max_size=40)),
    }:
        assert bool(re.fullmatch(pattern, str(number))) is (least <= number <= least + span), number
    assert not re.fullmatch(pattern, "00") and not re.fullmatch(pattern, "-0") and not re.fullmatch(pattern, "")


def _schemas() -> st.SearchStrategy[Any]:
    leaves = st.one_of(
        st.sampled_from([{"type": kind} for kind in ("string", "integer", "boolean", "null", "number")]),
        st.builds(lambda value: {"const": value}, st.text(max_size=5) | st.integers(-9, 9)),
    )

    def grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        members = st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
        return st.one_of(
            st.builds(
                lambda members, data: {"properties": members, "required": [k for k in members if k in data]},
                members,
                st.sets(st.text("abc", min_size=1, max_size=2), max_size=3),
            ),
            st.builds(
                lambda item, low: {"items": item, "minItems": low, "maxItems": low + 1}, inner, st.integers(0, 2)
            ),
            st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
        )

    return st.recursive(leaves, grow, max_leaves=5)


@settings(max_examples=80, deadline=None)
@given(_schemas())
def test_every_schema_makes_a_grammar_that_our_own_check_accepts(schema):
    text = json.dumps(schema)
    assert as_gbnf(text) == schema_to_gbnf(text)


# ---- GBNF ----------------------------------------------------------------------------------------


def test_gbnf_passes_unchanged():
    text = r"""# a list of words
root ::= item ("," ws item)*   # more
item ::= [a-z]+ | "\"" [^"\\]{0,10} "\""
  | "(" root ")"
ws ::=
  " "?
"""
    assert as_gbnf(text) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", 'no rule "root"'),
        ('start ::= "a"', 'no rule "root"'),
        ("root ::= missing", '"missing" (line 1)'),
        ('root ::= "a" )', "line 1"),
        ('root ::= ("a"', "parenthesis is open"),
        ('root ::= "a', "line 1"),
        ('root ::= "a"\nroot ::= "b"', "a second rule"),
        ('root ::= "a"{2000}', "1000 is the highest"),
        ('root ::= "a"{3,2}', "1000 is the highest"),
        ('root ::= "a"*?', "a repetition of a repetition"),
        ('root ::= ("a"?)*', "may be empty"),
        ('root ::= (x y){50}\nx ::= "a"?\ny ::= x | ""', "may be empty"),
        ('root ::= root "a" | "b"', "begins with itself"),
        ('root ::= a\na ::= b? c\nb ::= "x"\nc ::= a "y"', "begins with itself"),
        ("root ::= " + "(" * (NESTING_LIMIT + 1) + '"a"' + ")" * (NESTING_LIMIT + 1), "parentheses"),
        ('root ::= "a" * 3', "line 1"),
        ("root ::= [", "line 1"),
        ("= nonsense", "line 1"),
        ('root ::= "\0"', "no text may hold"),
        ('root ::= "\ud800"', "no text may hold"),
        ('root ::= "a"' + " " * GRAMMAR_LIMIT, "limit"),
    ],
)
def test_a_malformed_or_costly_grammar_is_refused_with_its_line(text, reason):
    with pytest.raises(RequestInvalid, match=re.escape(reason)):
        as_gbnf(text)


def test_the_canonical_form_keeps_what_matters():
    assert canonical_grammar('{ "b": 1,\n "a": "é" }') == canonical_grammar('{"b":1,"a":"\\u00e9"}')
    assert canonical_grammar('{"b":1,"a":2}') != canonical_grammar('{"a":2,"b":1}'), "order is the answer's order"
    assert canonical_grammar('root ::= "a"  \r\n\r\n') == b'root ::= "a"'
    with pytest.raises(RequestInvalid):
        canonical_grammar("{")


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from('ab ()|*+?{1,}[]"\\:=\n#.r'), max_size=60))
def test_any_text_is_parsed_or_refused(text):
    with contextlib.suppress(RequestInvalid):
        as_gbnf("root ::= " + text)
