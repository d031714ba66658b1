"""Chat templates: Jinja written by strangers, rendered without giving them the machine.

Lives here: a sandbox with a short list of filters and methods and a meter that counts steps and characters.
The stock sandbox keeps a template from Python's insides, but not from eating all memory (`s ~ s` in a loop)
or all time (three nested loops): every loop, call, filter, `+`, `~` and output passes the meter here.
Rendering is a pure function of template and messages: no clock, no randomness, so buyer and provider agree.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inference.models.call_form import call_form
from inference.models.tool_values import size_of
from market.errors import ModelFileInvalid, RequestInvalid

TEMPLATE_LIMIT_CHARS = 64 * 1024
_STEPS = 200_000
_CHARACTERS = 1 << 20
_PER_INPUT_CHARACTER = 16
"""A template may handle each character of the conversation this often (a copy, a trim, a join …)."""
_RANGE_LIMIT = 10_000
_DEPTH_LIMIT = 32
_NUMBER_LIMIT = 1 << 53

_FILTERS = (
    "capitalize count d default dictsort first int items last length list lower map reject rejectattr reverse "
    "select selectattr sort string title trim unique upper"
)
_TEXT_METHODS = (
    "capitalize count endswith find index isalnum isalpha isdigit islower isnumeric isspace isupper lower lstrip "
    "partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines "
    "startswith strip title upper"
)
_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(_TEXT_METHODS.split()),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
}


class ChatTemplate:
    """Compiled once, rendered by any thread."""

    def __init__(self, source: str) -> None:
        """Raises ModelFileInvalid for a template that is too long, does not parse, or wants what it may not have."""
        if len(source) > TEMPLATE_LIMIT_CHARS:
            raise ModelFileInvalid(f"The chat template has {len(source)} characters, over {TEMPLATE_LIMIT_CHARS}.")
        self.source = source
        environment = _Environment()
        try:
            tree = environment.parse(source)
            self.call_form = call_form(tree)
            _guard(tree)
            self._template = environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError, MemoryError) as error:
            raise ModelFileInvalid(f"The chat template does not compile: {type(error).__name__}.") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        bos: str = "",
        eos: str = "",
    ) -> str:
        """The conversation as the model wants to read it, generation prompt included; messages and tools in the shapes
        of `tool_values`. Raises RequestInvalid."""
        size = sum(size_of(item) for given in (*messages, *tools) for item in given.values())
        meter = _METER.set(_Meter(_STEPS + size, _CHARACTERS + _PER_INPUT_CHARACTER * size))
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=list(tools) or None,  # none at all, by the convention, is None and not an empty list
                add_generation_prompt=True,
                bos_token=bos,
                eos_token=eos,
                raise_exception=_raise,
            )
        except _TooMuch:
            raise RequestInvalid("The model's chat template does too much work for this conversation.") from None
        except _Refused as refusal:
            # Only the template's own words may be repeated: a message that it builds may quote the prompt.
            said = f" It says: {refusal}" if len(str(refusal)) > 3 and str(refusal) in self.source else ""
            raise RequestInvalid(f"The model's chat template refuses this conversation.{said}") from None
        except Exception as error:  # noqa: BLE001 - a stranger's program may fail in any way
            raise RequestInvalid(
                f"The model's chat template cannot render this conversation ({type(error).__name__}).",
                next_step="Check the order of the roles, or choose another model.",
            ) from None
        finally:
            _METER.reset(meter)


class _TooMuch(Exception):
    pass


class _Refused(Exception):
    pass


class _Meter:
    def __init__(self, steps: int, characters: int) -> None:
        self.steps = steps
        self.characters = characters
        self.depth = 0


_METER: ContextVar[_Meter | None] = ContextVar("octo_template_meter", default=None)


def _charge(characters: int = 0) -> None:
    """One step and this many characters (or list items); refuses before anything that large is made."""
    meter = _METER.get()
    if meter is not None:
        meter.steps -= 1
        meter.characters -= characters
        if meter.steps < 0 or meter.characters < 0:
            raise _TooMuch


@contextmanager
def _deeper() -> Iterator[None]:
    """A macro that calls itself ends here, whatever recursion limit a library has left the process with."""
    meter = _METER.get()
    if meter is None:
        yield
        return
    meter.depth += 1
    try:
        if meter.depth > _DEPTH_LIMIT:
            raise _TooMuch
        yield
    finally:
        meter.depth -= 1


def _size(item: object) -> int:
    return len(item) if isinstance(item, (str, list, tuple, dict)) else 1


def _charged(item: Any) -> Any:
    _charge(_size(item))
    return item


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _charge(1)
        yield item


def _joined(items: Iterable[Any], separator: object = "") -> str:
    texts, between = [], str(separator)
    for item in items:
        text = str(item)
        _charge(len(text) + len(between))
        texts.append(text)
    return between.join(texts)


def _replaced(text: object, old: object, new: object) -> str:
    plain, before, after = str(text), str(old), str(new)
    _charge(len(plain) + (plain.count(before) if before else len(plain) + 1) * len(after))
    return plain.replace(before, after)


def _to_json(
    item: object,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    *,
    sort_keys: bool = False,
    ensure_ascii: bool = False,  # noqa: ARG001 - escapes say the same, and would show where control tokens were broken
) -> str:
    width = None if indent is None else min(max(int(indent), 0), 8)
    between = None if separators is None else (str(separators[0])[:8], str(separators[1])[:8])
    return str(_charged(json.dumps(item, ensure_ascii=False, indent=width, separators=between, sort_keys=sort_keys)))


def _range(*bounds: int) -> list[int]:
    steps = range(*bounds)
    if len(steps) > _RANGE_LIMIT:
        raise _TooMuch
    return list(_charged(list(steps)))


def _raise(message: object = "") -> None:
    raise _Refused(str(message)[:200])


def _metered(filter_: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(filter_)  # keeps jinja's marks (pass_environment and the like)
    def metered(*arguments: Any, **named: Any) -> Any:
        _charge(sum(_size(argument) for argument in arguments))
        return filter_(*arguments, **named)

    return metered


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        # trim_blocks and lstrip_blocks are part of how published chat templates are meant (transformers does so)
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_charged,
            extensions=["jinja2.ext.loopcontrols"],
        )
        self.filters = {name: _metered(self.filters[name]) for name in _FILTERS.split()}
        self.filters.update(tojson=_to_json, join=_joined, replace=_replaced, octo_counted=_counted)
        self.globals = {"range": _range, "namespace": self.globals["namespace"]}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, (str, list, tuple)):
            _charge(_size(left) + _size(right))
            return left + right
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if not numbers or operator == "**" or max(abs(left), abs(right)) > _NUMBER_LIMIT:
            raise _TooMuch  # 'x' * 10**9 and '%999999999d' % 1 are ways to fill the memory
        _charge(1)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> None:
        """The stock sandbox lends out a safe `str.format`; safe from Python's insides, not from '{:999999999}'."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        allowed = next((names for kind, names in _METHODS.items() if isinstance(obj, kind)), None)
        return super().is_safe_attribute(obj, attr, value) and (allowed is None or attr in allowed)

    def call(self, context: Any, obj: Any, *arguments: Any, **named: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and getattr(obj, "__name__", "") == "replace":
            return _replaced(owner, *arguments[:2])
        _charge(_size(owner))
        with _deeper():
            return super().call(context, obj, *arguments, **named)


def _guard(tree: nodes.Template) -> None:
    """Send every loop through the meter, and every `~` through the metered join."""
    for loop in tree.find_all(nodes.For):
        if loop.recursive:
            raise jinja2.TemplateSyntaxError("recursive loops are not allowed", loop.lineno)
        loop.iter = _filter(loop.iter, "octo_counted")
    for parent in list(tree.find_all(nodes.Node)):
        for name, child in list(parent.iter_fields()):
            if isinstance(child, nodes.Concat):
                setattr(parent, name, _concat(child))
            elif isinstance(child, list):
                child[:] = [_concat(item) if isinstance(item, nodes.Concat) else item for item in child]
    for kind in (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends):
        if tree.find(kind):
            raise jinja2.TemplateSyntaxError("a chat template is one file", 1)


def _concat(node: nodes.Concat) -> nodes.Filter:
    return _filter(nodes.List(node.nodes, lineno=node.lineno), "join")


def _filter(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
