"""Finding a model among those that are here, on offer or in catalogs.

Lives here: matching and ranking, pure. Knows no place that models come from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from inference.models.catalog import CatalogEntry
from inference.models.manifest import Format
from market.errors import RequestInvalid
from market.values import value

WORDS_LIMIT = 16


@value
class Filters:
    """None: any. `ram_bytes` and `vram_bytes` describe a machine that must be enough for the model."""

    format: Format | None = None
    modality: str | None = None
    licence: str | None = None
    max_size_bytes: int | None = None
    min_context: int | None = None
    ram_bytes: int | None = None
    vram_bytes: int | None = None


ANY = Filters()


def search(models: Sequence[CatalogEntry], query: str = "", filters: Filters = ANY) -> list[CatalogEntry]:
    """The models that have every word of `query` in name, version, format, quantisation, modality or licence (case
    and separators do not count), and pass the filters.

    Best first: the name is the query; the name starts with it; all words are in the name; the rest. Within each of
    these by name, then the highest version, then the smallest file, then the CID: equal input gives equal order.
    Raises RequestInvalid for a query of over 16 words.
    """
    words = _words(query)
    if len(words) > WORDS_LIMIT:
        raise RequestInvalid(f"A search takes at most {WORDS_LIMIT} words.")
    found = [model for model in models if _passes(model, filters) and _has(model, words)]
    found.sort(key=lambda model: (model.size_bytes, model.manifest))
    found.sort(key=_version, reverse=True)  # sorts are stable: the later one counts more
    found.sort(key=lambda model: (_rank(model, words), model.name.lower()))
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _plain(text: str) -> str:
    return "".join(_words(text))


def _has(model: CatalogEntry, words: Sequence[str]) -> bool:
    facts = (model.name, model.version, model.format, model.quantisation, model.modality, model.licence)
    told = [_plain(fact) for fact in facts]
    return all(any(word in fact for fact in told) for word in words)


def _rank(model: CatalogEntry, words: Sequence[str]) -> int:
    name, query = _plain(model.name), "".join(words)
    if not query or name == query:
        return 0
    if name.startswith(query):
        return 1
    return 2 if all(word in name for word in words) else 3


def _version(model: CatalogEntry) -> tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]]:
    """Semver's order, section 11: a pre-release comes before its release; numbers in it by size, before words."""
    core, _, pre = model.version.partition("-")
    parts = tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in pre.split(".") if part)
    return tuple(int(number) for number in core.split(".")), not pre, parts


def _passes(model: CatalogEntry, filters: Filters) -> bool:
    return (
        filters.format in (None, model.format)
        and (filters.modality is None or filters.modality.lower() == model.modality.lower())
        and (filters.licence is None or filters.licence.lower() == model.licence.lower())
        and (filters.max_size_bytes is None or model.size_bytes <= filters.max_size_bytes)
        and (filters.min_context is None or model.context >= filters.min_context)
        and _fits(model, filters)
    )


def _fits(model: CatalogEntry, filters: Filters) -> bool:
    """In the memory of one or the other; a model that does not say counts as its size."""
    if filters.ram_bytes is None and filters.vram_bytes is None:
        return True
    card_only = bool(model.min_vram_bytes) and not model.min_ram_bytes
    in_ram = not card_only and (model.min_ram_bytes or model.size_bytes) <= (filters.ram_bytes or 0)
    return in_ram or (model.min_vram_bytes or model.size_bytes) <= (filters.vram_bytes or 0)
