"""Models that this node keeps and serves without running them: a storage peer (the seed's OCTO-S role).

Lives here: pulling what is pinned until it is here, again and again. What is pinned is in `choices`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from market.errors import ModelUntrusted, OctoError
from market.identity import PeerId
from node.models.choices import Choices

log = structlog.get_logger()

_AGAIN_S = (5.0, 15.0, 60.0, 300.0)
_LOOK_S = 3600.0
"""A pinned model that was evicted or found damaged is brought back within the hour."""


class Keeper:
    """`bring` pulls one model by reference and is quick when it is here already."""

    def __init__(self, choices: Choices, bring: Callable[[str], Awaitable[None]]) -> None:
        self._choices = choices
        self._bring = bring
        self._news = asyncio.Event()
        self.waiting: dict[str, str] = {}
        """Pins that are not here yet, with the latest reason."""

    async def want(self, manifest: str, peer: PeerId) -> None:
        """A peer that may do so asks us to keep a model. Raises DiskFull, RequestInvalid."""
        if await asyncio.to_thread(self._choices.add, "pins", manifest):
            log.info("pin_asked_for", model=manifest, peer=peer)
        self._news.set()

    def wake(self) -> None:
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            self._news.clear()
            missing = False
            for reference in self._choices.all("pins"):
                missing |= not await self._keep(reference)
            failures = failures + 1 if missing else 0
            pause = _AGAIN_S[min(failures, len(_AGAIN_S)) - 1] if missing else _LOOK_S
            try:
                async with asyncio.timeout(pause):
                    await self._news.wait()
                    failures = 0
            except TimeoutError:
                pass

    async def _keep(self, reference: str) -> bool:
        """False if it may be here later; what needs its owner's word is not tried every minute."""
        try:
            await self._bring(reference)
        except OctoError as error:
            if self.waiting.get(reference) != error.message:
                log.warning("pinned_model_not_here", model=reference, why=str(error))
            self.waiting[reference] = error.message
            return isinstance(error, ModelUntrusted)
        self.waiting.pop(reference, None)
        return True
