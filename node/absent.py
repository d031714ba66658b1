"""Models that the settings name and that could not be brought: each is tried again, later each time, until it has come.

Lives here: who is missing, why, and when the next try is. How one comes is the caller's to say; one that has come and
cannot be loaded is `node.model_cache`'s, which waits in the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from inference.restarting import pause_s
from market.errors import EngineFailed, OctoError
from node.model_cache import RETRY_FIRST_S, RETRY_LIMIT_S

log = structlog.get_logger()


class Absent:
    """`come` brings the model that a reference names, or raises why not. A task for each that is missing."""

    def __init__(self, come: Callable[[str], Awaitable[None]], *, first_s: float = RETRY_FIRST_S) -> None:
        self._come = come
        self._first_s = first_s
        self._errors: dict[str, OctoError] = {}
        self._tries: set[asyncio.Task[None]] = set()

    def errors(self) -> Mapping[str, OctoError]:
        """Why each one did not come when it was last tried, by its reference."""
        return dict(self._errors)

    def expect(self, reference: str, error: OctoError) -> None:
        """It did not come, for this reason; from now on it is tried again."""
        self._errors[reference] = error
        task = asyncio.create_task(self._keep_trying(reference), name=f"absent {reference}")
        self._tries.add(task)
        task.add_done_callback(self._tries.discard)

    async def aclose(self) -> None:
        for task in self._tries:
            task.cancel()
        await asyncio.gather(*self._tries, return_exceptions=True)

    async def _keep_trying(self, reference: str) -> None:
        failures = 0
        while (error := self._errors.get(reference)) is not None:
            wait_s = pause_s(failures, first_s=self._first_s, limit_s=RETRY_LIMIT_S)
            log.warning(
                "model_not_loaded", model=reference, why=error.message, next_step=error.next_step, again_s=wait_s
            )
            await asyncio.sleep(wait_s)
            failures += 1
            try:
                await self._come(reference)
            except Exception as caught:  # noqa: BLE001 - whatever it is, the other models still serve
                failed = caught if isinstance(caught, OctoError) else EngineFailed(f"it failed with {caught!r:.200}.")
                self._errors[reference] = failed
            else:
                del self._errors[reference]
