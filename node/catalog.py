"""Which models are on offer, under which names, and their tokenizers.

A buyer needs a model's tokenizer and chat template, not its weights: they are pulled by CID from the
providers that offer it, as soon as an offer names a new model, so that the first request need not wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from inference.models.library import WITHOUT_WEIGHTS, pull_model
from inference.models.manifest import Role
from inference.models.store import Store
from market.errors import ModelUnknown, OctoError
from market.offer import CheckedOffer
from market.ports import Meter, Tokenizer
from market.work import Work
from node.models.finding import SourceFinder
from node.node import ModelOnOffer
from node.serving import Reader, open_reader

log = structlog.get_logger()

_LACKING = {
    Work.CHAT: "writes no text",
    Work.EMBED: "makes no embeddings",
    Work.RERANK: "ranks no documents",
    Work.TRANSCRIBE: "transcribes no speech",
    Work.SPEAK: "does not speak",
    Work.IMAGE: "makes no images",
    Work.LOOK: "does not look at images",
}
DEFAULT_NAME = "default"


class MeshCatalog:
    """`changed` waits until the version of offers and peers is above the given one, and returns it."""

    def __init__(
        self,
        *,
        offers: Callable[[], Sequence[CheckedOffer]],
        store: Store,
        finder: SourceFinder,
        changed: Callable[[int], Awaitable[int]],
    ) -> None:
        self._offers = offers
        self._store = store
        self._finder = finder
        self._changed = changed
        self._readers: dict[str, asyncio.Task[Reader]] = {}

    def on_offer(self) -> Sequence[ModelOnOffer]:
        """One entry a model, most providers first, with the lowest prices."""
        found: dict[str, ModelOnOffer] = {}
        for checked in self._offers():
            for offered in checked.offer.models:
                known = found.get(offered.model)
                found[offered.model] = ModelOnOffer(
                    model=offered.model,
                    name=known.name if known else offered.name,
                    weights=offered.weights,
                    context=max(offered.context, known.context if known else 0),
                    price_in=min(offered.price_in, known.price_in) if known else offered.price_in,
                    price_out=min(offered.price_out, known.price_out) if known else offered.price_out,
                    providers=(*(known.providers if known else ()), checked.offer.peer),
                    works=tuple(dict.fromkeys((*(known.works if known else ()), *offered.works))),
                )
        return sorted(found.values(), key=lambda model: (-len(model.providers), model.price_out, model.model))

    def resolve(self, name: str) -> str:
        """The manifest CID of a name, a CID or `default`: of several by one name, the one most widely served; `default`
        is one that writes text, if there is any."""
        models = self.on_offer()
        if name == DEFAULT_NAME:
            models = sorted(models, key=lambda model: Work.CHAT not in model.works)
        for model in models:
            if name in (model.model, DEFAULT_NAME) or name.lower() == model.name.lower():
                return model.model
        names = ", ".join(dict.fromkeys(model.name for model in models)) or "nothing yet"
        raise ModelUnknown(
            f"the model {name[:128]!r} is not on offer; on offer: {names}.",
            next_step="`octo-node models list` lists what can be asked for.",
        )

    async def tokenizer(self, model: str) -> Tokenizer:
        """Fetched and verified once; everybody who asks meanwhile waits for the same pull. Raises ModelUnknown."""
        tokenizer = (await self._reader(model)).tokenizer
        if tokenizer is None:
            raise self._not_for(model, Work.CHAT)
        return tokenizer

    async def meter(self, model: str, work: Work) -> Meter:
        """How work with a model is counted. Raises ModelUnknown."""
        meter = (await self._reader(model)).meter
        offered = next((other for other in self.on_offer() if other.model == model), None)
        if meter is None or (offered is not None and work not in offered.works):
            raise self._not_for(model, work)
        return meter

    def _not_for(self, model: str, work: Work) -> ModelUnknown:
        others = [other.name for other in self.on_offer() if work in other.works]
        name = next((other.name for other in self.on_offer() if other.model == model), model)
        does = f"On offer for that: {', '.join(dict.fromkeys(others))}." if others else "Nothing on offer does."
        return ModelUnknown(f"the model {name!r} {_LACKING[work]}.", next_step=does)

    def put(self, model: str, reader: Reader) -> None:
        """What counts the answers of a model that this node serves itself."""

        async def known() -> Reader:
            return reader

        self._readers[model] = asyncio.create_task(known())

    async def _reader(self, model: str) -> Reader:
        loading = self._readers.get(model)
        if loading is None:
            loading = self._readers[model] = asyncio.create_task(self._load(model))
        try:
            return await asyncio.shield(loading)
        except OctoError:
            self._readers.pop(model, None)  # the next one tries again
            raise

    async def _load(self, model: str) -> Reader:
        sources = self._finder.on_offer(model)
        manifest = await pull_model(
            self._store,
            model,
            sources,
            roles={*WITHOUT_WEIGHTS, Role.CONFIG},
            allow_pickled=True,
            blame=self._finder.blame,
        )
        return await open_reader(self._store, manifest)

    async def watch(self) -> None:
        """Fetch the tokenizers of new models as they are offered, until cancelled."""
        version = -1
        while True:
            version = await self._changed(version)
            for model in self.on_offer():
                if model.model not in self._readers and self._finder.on_offer(model.model):
                    try:
                        await self._reader(model.model)
                    except OctoError as error:
                        log.info("tokenizer_not_fetched", model=model.model, why=str(error))

    def close(self) -> None:
        for loading in self._readers.values():
            loading.cancel()
