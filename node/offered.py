"""What this node offers: the models on offer, which of them are loaded, and what their engines tell.

Lives here: the one list that offers, quotes, status and metrics read. Loads nothing, decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from inference.engines.batched import BatchedEngine
from inference.engines.on_demand import OnDemandEngine, OnDemandWork
from market.offer import ModelOffer
from market.parts import Served, ServedWork, Serving
from market.ports import Engine, EngineLoad, WorkEngine
from market.task import Privacy
from node.model_cache import ModelCache
from node.serving import Reader

_SLOTS_LIMIT = 4096


class Providing:
    """What this node serves. A model's face (`Serving`) stands on offer whether it is loaded or not; its engine loads
    it when it is used. Empty until something is put here. `troubles`: what should be on offer and is not, and why."""

    def __init__(self) -> None:
        self._faces: dict[str, Serving] = {}
        self._loaded: dict[str, Serving] = {}
        self._withdrawn: set[str] = set()
        self._past: Counter[str] = Counter()
        self.cache: ModelCache | None = None
        self.know_reader: Callable[[str, Reader], None] = lambda _model, _reader: None
        self.troubles: Callable[[], Sequence[str]] = tuple

    # ---- what is on offer ----

    def served(self) -> Mapping[str, Serving]:
        return {
            model: face
            for model, face in self._faces.items()
            if model not in self._withdrawn and not self._is_down(model)
        }

    def offers(self) -> Sequence[ModelOffer]:
        return [replace(face.model, warm=model in self._loaded) for model, face in self.served().items()]

    def face(self, model: str) -> Serving | None:
        return self._faces.get(model)

    def put(self, face: Serving, reader: Reader) -> None:
        """On offer from now on; its answers are counted with `reader`."""
        self.know_reader(face.model.model, reader)
        self._faces[face.model.model] = face

    def arrange(self, models: Sequence[str]) -> None:
        """Offer these first, in this order: it is what people who name no model get."""
        first = {model: self._faces[model] for model in models if model in self._faces}
        self._faces = first | self._faces

    def withdraw(self, model: str) -> bool:
        """Off the next offer; tasks that run go on. Whether that is news."""
        news = model in self._faces and model not in self._withdrawn
        self._withdrawn.add(model)
        return news

    def restore(self, model: str) -> bool:
        news = model in self._withdrawn
        self._withdrawn.discard(model)
        return news

    # ---- what is loaded ----

    def arrived(self, model: str, serving: Serving) -> None:
        self._loaded[model] = serving
        match (self._faces.get(model), serving):
            case (Served(engine=OnDemandEngine() as engine), Served()):
                engine.know(serving.engine)
            case (ServedWork(engine=OnDemandWork() as work), ServedWork()):
                work.know(serving.engine)

    def left(self, model: str) -> None:
        """It may come back with the next task, however it went."""
        serving = self._loaded.pop(model, None)
        if serving is not None:
            self._past.update(_prefix_counts(serving.engine))
        match self._faces.get(model):
            case Served(engine=OnDemandEngine() as engine):
                engine.know(None)
            case ServedWork(engine=OnDemandWork() as work):
                work.know(None)
        self.restore(model)

    def loaded(self) -> Mapping[str, Serving]:
        """With the engines that run, not those that stand for them."""
        return dict(self._loaded)

    # ---- what engines tell ----

    def slots(self) -> int:
        """Of what is loaded; where nothing is, of the largest that could be."""
        running = sum(serving.engine.info.slots for serving in self._loaded.values())
        return min(_SLOTS_LIMIT, running or max((engine.info.slots for engine in self._engines()), default=0))

    def load(self) -> EngineLoad:
        loads = [engine.load() for engine in self._engines()]
        return EngineLoad(running=sum(load.running for load in loads), waiting=sum(load.waiting for load in loads))

    def isolation(self) -> str:
        """How workers are confined, in a word; of several, all of them: a buyer looks for the weakest."""
        words = [getattr(engine, "isolation", "none") for engine in self._engines()]
        return ", ".join(dict.fromkeys(words))[:64] or "none"

    def worker_pids(self) -> tuple[int, ...]:
        return tuple(pid for engine in self._engines() for pid in getattr(engine, "worker_pids", ()))

    def privacy(self) -> Sequence[Privacy]:
        """Public alone as soon as one engine sends prompts on to another machine: an offer speaks for all models."""
        leaves_host = any(getattr(engine, "leaves_host", False) for engine in self._engines())
        return (Privacy.PUBLIC,) if leaves_host else (Privacy.PUBLIC, Privacy.SHARED)

    def counts(self) -> Mapping[str, int]:
        """Of all engines that share prefixes, unloaded ones included, and of the model cache."""
        counts = Counter(self._past)
        for serving in self._loaded.values():
            counts.update(_prefix_counts(serving.engine))
        return {**counts, **self.cache_counts()}

    def gauges(self) -> Mapping[str, int]:
        size_bytes = self.cache.size_bytes if self.cache is not None else 0
        return {"models_offered": len(self.served()), "models_loaded": len(self._loaded), "models_bytes": size_bytes}

    def cache_counts(self) -> Mapping[str, int]:
        if self.cache is None:
            return {}
        counts = self.cache.counts
        return {
            "model_hits": counts.hits,
            "model_misses": counts.misses,
            "model_loads": counts.loads,
            "model_evictions": counts.evictions,
            "model_load_failures": counts.failures,
        }

    def _is_down(self, model: str) -> bool:
        """Its engine says itself that it is being started again: nobody is asked to prepay for it meanwhile."""
        serving = self._loaded.get(model)
        return serving is not None and getattr(serving.engine, "down", False)

    def _engines(self) -> Sequence[Engine | WorkEngine]:
        return [face.engine for face in self.served().values()]


def _prefix_counts(engine: Engine | WorkEngine) -> Mapping[str, int]:
    if not isinstance(engine, BatchedEngine):
        return {}
    facts = engine.prefix_facts
    return {
        "prefix_jobs": facts.jobs,
        "prefix_hits": facts.hits,
        "prefix_prompt_tokens": facts.prompt_tokens,
        "prefix_cached_tokens": facts.cached_tokens,
    }
