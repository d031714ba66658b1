"""Grammars as clients send them: GBNF or a JSON schema, checked before a worker sees them.

Lives here: what a grammar may cost, its canonical form, a parser of GBNF that says what is wrong. Must not know:
llama.cpp, tokens, jobs.

llama.cpp's parser and matcher are C++ that runs beside other people's jobs. What is known to hurt it is refused
here: deep nesting (its parser recurses), repetition of what may be empty (it tries every way to divide nothing:
400 ms a token for `("a"?){50}`), left recursion, huge counts. A worker bounds the time of what remains.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Set
from typing import Final

from inference.schema import REPEATS_LIMIT, schema_to_gbnf
from market.errors import RequestInvalid

GRAMMAR_LIMIT: Final = 64 * 1024
"""Characters that a client may send; the rules made of a schema may be four times as many."""
NESTING_LIMIT: Final = 48
_RULES_LIMIT: Final = 4_000
_PASSES_LIMIT: Final = 16
_TOKEN: Final = re.compile(
    r"""(?P<space>(?:[ \t\r]|\#[^\n]*)+)|(?P<line>\n)|(?P<name>[a-zA-Z][a-zA-Z0-9-]*)|(?P<define>::=)"""
    r"""|(?P<text>"(?:[^"\\\n]|\\[^\n])*")|(?P<set>\[\^?(?:[^\]\\\n]|\\[^\n])+\])"""
    r"""|(?P<count>\{\s*\d{1,4}\s*(?:,\s*(?:\d{1,4})?\s*)?\})|(?P<mark>[|()*+?.])"""
)


def as_gbnf(grammar: str) -> str:
    """The GBNF of what a job carries. Raises RequestInvalid, saying what is wrong where."""
    if len(grammar) > GRAMMAR_LIMIT:
        raise _invalid(f"the grammar has {len(grammar)} characters; {GRAMMAR_LIMIT} is the limit.")
    if "\0" in grammar or any("\ud800" <= letter <= "\udfff" for letter in grammar):
        raise _invalid("the grammar holds a character that no text may hold.")
    text = schema_to_gbnf(grammar) if _is_schema(grammar) else grammar
    if len(text) > 4 * GRAMMAR_LIMIT:
        raise _invalid("the schema makes too large a grammar.")
    _Rules(text).check()
    return text


def canonical_grammar(grammar: str) -> bytes:
    """The bytes that stand for a grammar in a digest: equal for a schema spaced differently, or for other line ends.

    A schema's members keep their order, because the answer's members follow it. Raises RequestInvalid.
    """
    if not _is_schema(grammar):
        lines = grammar.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return "\n".join(line.rstrip(" \t") for line in lines).strip("\n").encode()
    try:
        return json.dumps(json.loads(grammar), ensure_ascii=True, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        raise _invalid("the JSON schema is not JSON.") from None


def _is_schema(grammar: str) -> bool:
    return grammar.lstrip()[:1] == "{"


def _invalid(message: str) -> RequestInvalid:
    return RequestInvalid(message, param="response_format")


class _Rules:
    """A grammar, parsed. Each rule becomes a list of alternatives, each a list of items."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0
        self._line = 1
        self._rules: dict[str, list[list[object]]] = {}
        self._used: dict[str, int] = {}
        self._repeated: list[tuple[int, list[list[object]]]] = []
        while self._skip_lines():
            self._definition()

    def check(self) -> None:
        if "root" not in self._rules:
            raise _invalid('the grammar has no rule "root".')
        for name, line in self._used.items():
            if name not in self._rules:
                raise _invalid(f'the grammar uses a rule "{name[:64]}" (line {line}) that it does not define.')
        empty = self._empty_rules()
        for line, body in self._repeated:
            if _may_be_empty(body, empty):
                raise _invalid(f"the grammar repeats what may be empty (line {line}).")
        self._check_left_recursion(empty)

    def _definition(self) -> None:
        name = self._take("name", "a rule's name")
        self._take("define", "::=")
        if name in self._rules:
            raise self._wrong(f'a second rule "{name[:64]}"')
        if len(self._rules) >= _RULES_LIMIT:
            raise _invalid(f"the grammar has more than {_RULES_LIMIT} rules.")
        self._rules[name] = self._alternatives(0)
        if self._at < len(self._tokens) and self._tokens[self._at][0] != "line":
            raise self._wrong(self._tokens[self._at][1])

    def _alternatives(self, depth: int) -> list[list[object]]:
        if depth > NESTING_LIMIT:
            raise _invalid(f"the grammar nests more than {NESTING_LIMIT} parentheses.")
        options: list[list[object]] = [[]]
        while self._at < len(self._tokens):
            kind, word = self._tokens[self._at]
            if kind == "line":
                if not self._goes_on(depth):
                    break
                self._skip_lines()
                continue
            if word == ")":
                break
            self._at += 1
            if word == "|":
                options.append([])
            elif kind == "name":
                self._used.setdefault(word, self._line)
                self._item(options[-1], word)
            elif kind in ("text", "set") or word == ".":
                self._item(options[-1], word != '""')
            elif word == "(":
                body = self._alternatives(depth + 1)
                if self._at >= len(self._tokens) or self._tokens[self._at][1] != ")":
                    raise self._wrong("the end, where a parenthesis is open")
                self._at += 1
                self._item(options[-1], body)
            else:
                raise self._wrong(word)
        return options

    def _item(self, option: list[object], item: object) -> None:
        """`item`: a rule's name, alternatives, or whether a text has something in it; with what follows it."""
        if self._suffix():
            low, high = _bounds(word := self._tokens[self._at][1])
            self._at += 1
            if max(low, high) > REPEATS_LIMIT or 0 <= high < low:
                raise self._wrong(f"{word}, where {REPEATS_LIMIT} is the highest count")
            if self._suffix():
                raise self._wrong("a repetition of a repetition")
            body = [[item]]
            if word != "?":
                self._repeated.append((self._line, body))
            item = [*body, []] if low == 0 else body
        option.append(item)

    def _suffix(self) -> bool:
        kind, word = self._tokens[self._at] if self._at < len(self._tokens) else ("", "")
        return kind == "count" or word in ("*", "+", "?")

    def _goes_on(self, depth: int) -> bool:
        """Whether a line end is inside an expression: in parentheses, around a bar, or after `::=`."""
        if depth or self._tokens[self._at - 1][1] in ("|", "::="):
            return True
        ahead = next((word for kind, word in self._tokens[self._at :] if kind != "line"), "")
        return ahead == "|"

    def _skip_lines(self) -> bool:
        while self._at < len(self._tokens) and self._tokens[self._at][0] == "line":
            self._at += 1
            self._line += 1
        return self._at < len(self._tokens)

    def _take(self, kind: str, what: str) -> str:
        found, word = self._tokens[self._at] if self._at < len(self._tokens) else ("", "the end")
        if found != kind:
            raise self._wrong(f"{word}, where {what} belongs")
        self._at += 1
        return word

    def _wrong(self, what: str) -> RequestInvalid:
        return _invalid(f"the grammar makes no sense in line {self._line}: {what[:80]}.")

    def _empty_rules(self) -> frozenset[str]:
        """The rules that may match nothing: the least fixed point."""
        empty: set[str] = set()
        names = list(self._rules)
        for _ in range(_PASSES_LIMIT):
            before = len(empty)
            empty.update(name for name in names if name not in empty and _may_be_empty(self._rules[name], empty))
            if len(empty) == before:
                return frozenset(empty)
            names.reverse()  # rules may be written from the root down or up to it
        raise _invalid("the grammar's rules are too entangled to say which of them may be empty.")

    def _check_left_recursion(self, empty: frozenset[str]) -> None:
        first = {name: set(_beginnings(body, empty)) for name, body in self._rules.items()}
        done: set[str] = set()
        for start, beginnings in first.items():
            path, stack = {start}, [(start, iter(beginnings))]
            while stack:
                name, rest = stack[-1]
                following = next((other for other in rest if other not in done), None)
                if following is None:
                    done.add(name)
                    path.discard(name)
                    stack.pop()
                elif following in path:
                    raise _invalid(f'the grammar\'s rule "{following[:64]}" begins with itself.')
                else:
                    path.add(following)
                    stack.append((following, iter(first[following])))


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = line = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            raise _invalid(f"the grammar makes no sense in line {line + 1}: {text[at : at + 20]!r}.")
        at = found.end()
        line += found.lastgroup == "line"
        if found.lastgroup != "space":
            yield found.lastgroup, found.group()


def _bounds(word: str) -> tuple[int, int]:
    """Lowest and highest count of a repetition; -1 for any."""
    simple: Mapping[str, tuple[int, int]] = {"*": (0, -1), "+": (1, -1), "?": (0, 1)}
    if word in simple:
        return simple[word]
    low, comma, high = word.strip("{} ").partition(",")
    return int(low), int(high) if high.strip() else (-1 if comma else int(low))


def _may_be_empty(item: object, empty: Set[str]) -> bool:
    if isinstance(item, bool):
        return not item
    if isinstance(item, str):
        return item in empty
    assert isinstance(item, list)
    return any(all(_may_be_empty(part, empty) for part in option) for option in item)


def _beginnings(item: object, empty: Set[str]) -> Iterator[str]:
    """Rules that may stand at the very beginning of an expression."""
    if isinstance(item, str):
        yield item
    elif isinstance(item, list):
        for option in item:
            for part in option:
                yield from _beginnings(part, empty)
                if not _may_be_empty(part, empty):
                    break
