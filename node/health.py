"""Whether the engines that run still answer: an offer that nobody could serve is withdrawn until one does again.

Lives here: who is asked, how often, and what follows. An engine's own restarts are its own business.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from inference.engines.openai_http import OpenAiEngine
from market.errors import EngineFailed
from market.ports import Engine, WorkEngine
from node.offered import Providing

EVERY_S: Final = 5.0
MISSES: Final = 2
"""A worker that was killed is back before the second look; a server that restarts may not be, and a buyer who comes
meanwhile is better served elsewhere."""

log = structlog.get_logger()


class Health:
    """`changed` is called when another offer should go out at once."""

    def __init__(self, providing: Providing, changed: Callable[[], None], *, every_s: float = EVERY_S) -> None:
        self._providing = providing
        self._changed = changed
        self._every_s = every_s
        self._misses: Counter[str] = Counter()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.look()

    async def look(self) -> None:
        """Ask every engine that is loaded, all at once."""
        loaded = self._providing.loaded()
        alive = await asyncio.gather(*(self._answers(serving.engine) for serving in loaded.values()))
        for model, well in zip(loaded, alive, strict=True):
            if model not in self._providing.loaded():  # it was unloaded meanwhile
                continue
            if well and self._misses.pop(model, 0) and self._providing.restore(model):
                log.info("offer_restored", model=model)
                self._changed()
            if not well:
                self._misses[model] += 1
            if self._misses[model] >= MISSES and self._providing.withdraw(model):
                log.warning("offer_withdrawn", model=model, why="its engine does not answer")
                self._changed()

    async def _answers(self, engine: Engine | WorkEngine) -> bool:
        if isinstance(engine, OpenAiEngine):
            try:
                async with asyncio.timeout(self._every_s):
                    await engine.check()
            except (EngineFailed, TimeoutError):
                return False
            return True
        pids: object = getattr(engine, "worker_pids", None)
        return pids is None or bool(pids)
