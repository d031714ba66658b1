"""JSON Schema to GBNF: a grammar whose every text is a JSON document that the schema accepts.

Lives here: the translation, as a pure function of the schema's text. Must not know: llama.cpp, tokens, jobs.

Every text of the grammar is valid, but not every valid document is a text of the grammar: members come in the
schema's order, members that it does not name are left out, and between tokens stands at most one space. What
cannot be kept is refused by name rather than ignored. `oneOf` is read as `anyOf`, as everyone does; `format` is
kept for dates, times and UUIDs and is a remark otherwise, as the standard says.
Source: JSON Schema 2020-12, https://json-schema.org/draft/2020-12; GBNF, llama.cpp's grammars/README.md.
(llama-cpp-python's own converter lets raw control characters into strings, ignores bounds of numbers, and nests
one parenthesis for each character of a bounded string, which overflows the C++ parser's stack.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from inference.ranges import integers_between
from market.errors import RequestInvalid

DEPTH_LIMIT: Final = 24
RULES_LIMIT: Final = 2_000
REPEATS_LIMIT: Final = 1_000
_REMARKS: Final = frozenset(
    {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples", "format"}
    | {"deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding"}
)
_KEPT: Final[Mapping[str, frozenset[str]]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
}
_FIXED: Final = {
    "sp": '" "?',
    "char": r'[^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    "string": r'"\"" char* "\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "object": '"{" sp (string ":" sp value ("," sp string ":" sp value)*)? sp "}"',
    "array": '"[" sp (value ("," sp value)*)? sp "]"',
    "value": "object | array | string | number | boolean | null",
    "date": '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])',
    "time": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? "Z"',
}
_FORMATS: Final = {
    "date": r'"\"" date "\""',
    "time": r'"\"" time "\""',
    "date-time": r'"\"" date "T" time "\""',
    "uuid": r'"\"" [0-9a-f]{8} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{12} "\""',
}


def schema_to_gbnf(text: str) -> str:
    """Raises RequestInvalid, naming the place, if the text is not a schema, or asks what a grammar cannot keep."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        raise _refused("#", "is not JSON") from None
    translation = _Translation(schema)
    translation.rules["root"] = translation.rule(schema, "#", 0)
    return "\n".join(f"{name} ::= {body}" for name, body in (translation.rules | _FIXED).items()) + "\n"


class _Translation:
    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._refs: dict[str, str] = {}
        self.rules: dict[str, str] = {}

    def rule(self, schema: Any, at: str, depth: int) -> str:
        """What stands for `schema`: the name of a rule, or an expression that may stand anywhere."""
        if depth > DEPTH_LIMIT:
            raise _refused(at, f"is more than {DEPTH_LIMIT} levels deep")
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            raise _refused(at, "allows nothing" if schema is False else "is not a schema")
        for word in ("const", "enum", "$ref", "anyOf", "oneOf", "allOf"):
            if word in schema:
                self._only(schema, at, word, "type" if word in ("const", "enum") else word)
                return self._special(word, schema[word], at, depth)
        kinds = schema.get("type", _guessed(schema))
        if isinstance(kinds, list):
            return self._named(" | ".join(self._typed(kind, schema, at, depth, kinds) for kind in _list(kinds, at)))
        return self._typed(kinds, schema, at, depth, [kinds])

    def _special(self, word: str, given: Any, at: str, depth: int) -> str:
        place = f"{at}/{word}"
        if word == "const":
            return _literal(given, place)
        if word == "enum":
            return self._named(" | ".join(_literal(item, place) for item in _list(given, place)))
        if word == "$ref":
            return self._reference(given, place, depth)
        options = _list(given, place)
        if word == "allOf" and len(options) != 1:
            raise _refused(place, "has more than one part")
        return self._named(" | ".join(self.rule(item, f"{place}/{n}", depth + 1) for n, item in enumerate(options)))

    def _reference(self, ref: Any, at: str, depth: int) -> str:
        if not isinstance(ref, str) or not ref.startswith("#"):
            raise _refused(at, "points outside of the schema")
        if ref not in self._refs:
            target = self._schema
            for part in ref[1:].split("/")[1:]:
                key = part.replace("~1", "/").replace("~0", "~")
                if not isinstance(target, dict) or key not in target:
                    raise _refused(at, "points to nothing")
                target = target[key]
            self._refs[ref] = self._named("")
            self.rules[self._refs[ref]] = self.rule(target, ref, depth + 1)
        return self._refs[ref]

    def _typed(self, kind: Any, schema: Mapping[str, Any], at: str, depth: int, kinds: Sequence[Any]) -> str:
        if kind not in _KEPT:
            raise _refused(at, "has a type that JSON has not")
        kept = frozenset().union(*(_KEPT.get(other, frozenset()) for other in kinds if isinstance(other, str)))
        self._only(schema, at, *kept, "type")
        match kind:
            case "object" if schema.keys() & _KEPT[kind]:
                return self._object(schema, at, depth)
            case "array" if schema.keys() & _KEPT[kind]:
                return self._array(schema, at, depth)
            case "string":
                return self._string(schema, at)
            case "integer" if schema.keys() & _KEPT[kind]:
                return self._integer(schema, at)
            case "number" if schema.keys() & _KEPT["integer"]:
                raise _refused(at, "bounds a number; bounds can be kept for integers only")
        return str(kind)

    def _object(self, schema: Mapping[str, Any], at: str, depth: int) -> str:
        """Members in the schema's order: rule i says what may follow once some (or none) of the first i were said."""
        members = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(members, dict) or not isinstance(required, list):
            raise _refused(at, "has malformed properties")
        others = schema.get("additionalProperties", {})
        missing = [name for name in required if name not in members]
        if missing and others is False:
            raise _refused(at, "requires a property that it does not allow")
        members = {**members, **dict.fromkeys(missing, others)}
        if not members:
            if others is False:
                return r'"{" sp "}"'
            pair = f'string ":" sp {self.rule(others, f"{at}/additionalProperties", depth + 1)}'
            return self._named(f'"{{" sp ({pair} ("," sp {pair})*)? sp "}}"')
        after, first = "", ""
        for name, member in reversed(members.items()):
            value = self.rule(member, f"{at}/properties/{name}", depth + 1)
            pair = f'{_literal(name, at)} ":" sp {value}'
            begun, fresh = f'"," sp {pair} {after}'.strip(), f"{pair} {after}".strip()
            if name in required:
                after, first = self._named(begun), self._named(fresh)
            else:
                after, first = (
                    self._named(f"{begun} | {after}" if after else f"({begun})?"),
                    self._named(f"{fresh} | {first}" if first else f"({fresh})?"),
                )
        return self._named(f'"{{" sp {first} sp "}}"')

    def _array(self, schema: Mapping[str, Any], at: str, depth: int) -> str:
        low, high = self._count(schema, "minItems", at, 0), self._count(schema, "maxItems", at, -1)
        prefix = schema.get("prefixItems", [])
        if not isinstance(prefix, list) or 0 <= high < low:
            raise _refused(at, "has bounds that no array keeps")
        prefix = prefix[:high] if high >= 0 else prefix
        heads = [self.rule(item, f"{at}/prefixItems/{n}", depth + 1) for n, item in enumerate(prefix)]
        if schema.get("items") is False or (heads and "items" not in schema):
            if low > len(heads):
                raise _refused(at, "asks for more items than it describes")
            return self._named(f'"[" sp {_listed(heads, "value", 0, 0)} sp "]"')
        item = self.rule(schema.get("items", True), f"{at}/items", depth + 1)
        most = -1 if high < 0 else high - len(heads)
        return self._named(f'"[" sp {_listed(heads, item, max(0, low - len(heads)), most)} sp "]"')

    def _string(self, schema: Mapping[str, Any], at: str) -> str:
        low, high = self._count(schema, "minLength", at, 0), self._count(schema, "maxLength", at, -1)
        if 0 <= high < low:
            raise _refused(at, "has bounds that no string keeps")
        if schema.get("format") in _FORMATS and not (low or high >= 0):
            return self._named(_FORMATS[schema["format"]])
        if not low and high < 0:
            return "string"
        return self._named(rf'"\"" char{{{low},{high if high >= 0 else ""}}} "\""')

    def _integer(self, schema: Mapping[str, Any], at: str) -> str:
        low, high = schema.get("minimum"), schema.get("maximum")
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        for bound in (low, high, above, below):
            if bound is not None and (not isinstance(bound, int) or isinstance(bound, bool) or abs(bound) >= 10**15):
                raise _refused(at, "has a bound that is no integer of at most 15 digits")
        lows = [bound for bound in (low, None if above is None else above + 1) if bound is not None]
        highs = [bound for bound in (high, None if below is None else below - 1) if bound is not None]
        least, most = max(lows, default=1 - 10**16), min(highs, default=10**16 - 1)
        if least > most:
            raise _refused(at, "has bounds that no integer keeps")
        return self._named(integers_between(least, most))

    def _count(self, schema: Mapping[str, Any], word: str, at: str, default: int) -> int:
        count = schema.get(word, default)
        if word in schema and (
            not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= REPEATS_LIMIT
        ):
            raise _refused(f"{at}/{word}", f"is not a number from 0 to {REPEATS_LIMIT}")
        return int(count)

    def _only(self, schema: Mapping[str, Any], at: str, *words: str) -> None:
        for word in schema:
            if word not in words and word not in _REMARKS:
                raise _refused(f"{at}/{word}", "cannot be kept by a grammar here")

    def _named(self, body: str) -> str:
        if len(self.rules) >= RULES_LIMIT:
            raise _refused("#", f"needs more than {RULES_LIMIT} grammar rules")
        name = f"r{len(self.rules)}"
        self.rules[name] = body
        return name


def _listed(heads: Sequence[str], item: str, least: int, most: int) -> str:
    """`heads`, then `least` to `most` (-1: any number of) items, with commas between."""
    parts = list(heads)
    if not parts:
        if most == 0:
            return ""
        tail = f'("," sp {item}){{{max(least - 1, 0)},{most - 1 if most > 0 else ""}}}'
        whole = f"{item} {tail}" if most != 1 else item
        return whole if least > 0 else f"({whole})?"
    tail = f'("," sp {item}){{{least},{most if most >= 0 else ""}}}' if most != 0 else ""
    comma = '"," sp'
    return f"{f' {comma} '.join(parts)} {tail}".strip()


def _guessed(schema: Mapping[str, Any]) -> Any:
    """The type that a schema without one speaks of."""
    for kind, words in _KEPT.items():
        if schema.keys() & words:
            return kind
    return ["object", "array", "string", "number", "boolean", "null"]


def _literal(item: Any, at: str) -> str:
    """A GBNF literal of the JSON text of `item`."""
    try:
        text = json.dumps(item, ensure_ascii=False, allow_nan=False)
        text.encode()  # half a surrogate pair has no bytes
    except (ValueError, RecursionError):
        raise _refused(at, "holds what JSON cannot say") from None
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _list(given: Any, at: str) -> Sequence[Any]:
    if not isinstance(given, list) or not given:
        raise _refused(at, "is not a list with something in it")
    return given


def _refused(at: str, why: str) -> RequestInvalid:
    return RequestInvalid(
        f"the JSON schema {why} (at {at[:200]}).",
        next_step="Simplify the schema, and check the rest yourself.",
        param="response_format",
    )
