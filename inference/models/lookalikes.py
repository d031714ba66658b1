"""Names that look like another's: the same word to a hurried eye, or the same but for one letter.

Lives here: the skeleton of a name and the comparison, pure. Names are ASCII (`manifest.ModelName`), so the tables of
Unicode's UTS 39 shrink to a few pairs. Numbers are never "nearly" equal: 7B and 8B are two honest models.
Source of the idea: UTS 39 section 4, https://www.unicode.org/reports/tr39/#Confusable_Detection
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from market.errors import ModelUntrusted
from market.signing import address_text

_NOISE = re.compile(
    r"[^a-z0-9]+(?:gguf|ggml|safetensors|onnx|awq|gptq|exl2|mlx|hf|imatrix|quants?|quanti[sz]ed|official|original|real"
    r"|true|verified|final|latest|new|fixed|b?f16|f32|fp[0-9]+|int[48]"
    r"|i?q[0-9](?:[^a-z0-9]+(?:[01k]|xxs|xs|nl|s|m))?(?:[^a-z0-9]+(?:xs|s|m|l|xl))?)$"
)
"""What a copy puts behind the name of the original and what makes no other model of it."""
_PAIRS = (("rn", "m"), ("vv", "w"), ("0", "o"), ("1", "l"), ("i", "l"))
_NEAR_FROM = 6
"""Shorter skeletons must be equal: one letter of five is another word."""


class KnownModel(NamedTuple):
    """A model of a creator who is trusted."""

    name: str
    creator: bytes


def skeleton(name: str) -> str:
    """What two names that look alike share."""
    text = re.sub(r"[^a-z0-9]+", "", _plain(name))
    for seen, read in _PAIRS:
        text = text.replace(seen, read)
    return text


def look_alike(name: str, other: str) -> bool:
    """Whether a hurried reader could take one name for the other; true for equal names."""
    first, second = skeleton(name), skeleton(other)
    if first == second:
        return True
    if min(len(first), len(second)) < _NEAR_FROM or _numbers(name) != _numbers(other):
        return False
    return _one_edit_apart(first, second)


def lookalike_of(name: str, creator: bytes, known: Iterable[KnownModel]) -> KnownModel | None:
    """The trusted creator's model that a stranger's name looks like; None if there is none.

    Ask it about creators who are not trusted; one who has models in `known` may name things as it likes.
    """
    models = list(known)
    if any(model.creator == creator for model in models):
        return None
    return next((model for model in models if look_alike(name, model.name)), None)


def check_lookalike(name: str, creator: bytes, known: Iterable[KnownModel]) -> None:
    """Raises ModelUntrusted with both names."""
    other = lookalike_of(name, creator, known)
    if other is not None:
        stranger = address_text(creator)
        raise ModelUntrusted(
            f"{name} by {stranger} looks like {other.name} by {address_text(other.creator)}, whom this node trusts.",
            next_step=f"Ask for {other.name}; or, if you know this creator too: `octo-node models trust {stranger}`.",
        )


def _plain(name: str) -> str:
    """In lower case, without what a copy adds behind. One ending at a time: a pattern that repeats could be made to
    run for ages by a name that repeats."""
    name = name.lower()
    while found := _NOISE.search(name):
        name = name[: found.start()]
    return name


def _numbers(name: str) -> list[str]:
    """The numbers in a name; a 0 or 1 right before a letter is a letter in disguise."""
    return re.findall(r"[0-9]+", re.sub(r"(?<![0-9.])[01](?=[a-z])", "", _plain(name)))


def _one_edit_apart(first: str, second: str) -> bool:
    """One letter added, dropped, changed, or two neighbours swapped."""
    short, long = sorted((first, second), key=len)
    if len(long) - len(short) > 1:
        return False
    at = next((n for n, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(long) > len(short):
        return short[at:] == long[at + 1 :]
    swapped = short[at : at + 2][::-1] == long[at : at + 2] and short[at + 2 :] == long[at + 2 :]
    return swapped or short[at + 1 :] == long[at + 1 :]
