"""What a name means among several models that have it: one of them, or a question back.

Lives here: the rule, pure. Where the models are from, and who may be believed, is `node.models.view`'s to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from inference.models.catalog import CatalogEntry
from inference.models.manifest import Manifest
from market.errors import RequestInvalid
from market.values import value

_SHOWN_LIMIT: Final = 8


@value
class Namesake:
    """A model under a name. `content`: the CIDs that say what it is; `rank`: whatever has a lower one is not meant."""

    cid: str
    version: str
    format: str
    quantisation: str
    size_bytes: int
    content: frozenset[str]
    parent: str = ""
    rank: tuple[bool, bool] = (False, False)
    own: bool = False


def namesake_of(cid: str, manifest: Manifest, *, rank: tuple[bool, bool], own: bool) -> Namesake:
    return Namesake(
        cid=cid,
        version=manifest.version,
        format=str(manifest.format),
        quantisation=manifest.quantisation,
        size_bytes=manifest.size_bytes,
        content=frozenset(file.cid for file in (manifest.weights or manifest.files)),
        parent=manifest.parent,
        rank=rank,
        own=own,
    )


def listed_namesake(entry: CatalogEntry) -> Namesake:
    """An entry of a catalog does not tell its files: another manifest is another model."""
    return Namesake(
        cid=entry.manifest,
        version=entry.version,
        format=str(entry.format),
        quantisation=entry.quantisation,
        size_bytes=entry.size_bytes,
        content=frozenset({entry.manifest}),
    )


def the_one_called(name: str, found: Iterable[Namesake]) -> str:
    """The CID of the model that is meant: of the highest rank, and of each format the highest version.

    Manifests of the same weights are one model: the one that was signed again last, this node's own first. Raises
    RequestInvalid for several models, with their CIDs, and ValueError for none.
    """
    models = list(found)
    rank = max(model.rank for model in models)
    models = [model for model in models if model.rank == rank]
    newest: dict[str, tuple[int, ...]] = {}
    for model in models:
        newest[model.format] = max(newest.get(model.format, ()), _version(model))
    models = [model for model in models if _version(model) == newest[model.format]]
    if len({model.content for model in models}) > 1:
        raise _ambiguous(name, models)
    old = {model.parent for model in models}
    latest = [model for model in models if model.cid not in old] or models
    return max(latest, key=lambda model: (model.own, model.cid)).cid


def _ambiguous(name: str, models: Sequence[Namesake]) -> RequestInvalid:
    shown = sorted(models, key=lambda model: (model.format, model.cid))[:_SHOWN_LIMIT]
    told = "; ".join(f"{model.cid} ({_what(model)})" for model in shown)
    more = f"; and {len(models) - len(shown)} more" if len(models) > len(shown) else ""
    return RequestInvalid(
        f"{name[:128]!r} is the name of {len(models)} models: {told}{more}.",
        next_step="Say which by its CID, in place of the name.",
    )


def _what(model: Namesake) -> str:
    precision = "" if model.quantisation == "unknown" else f" {model.quantisation}"
    return f"{model.format}{precision}, {model.version}, {model.size_bytes / 1e6:.1f} MB"


def _version(model: Namesake) -> tuple[int, ...]:
    return tuple(int(part) for part in model.version.partition("-")[0].split("."))
