"""A server of our own that serves one engine: started, waited for, watched, started again, ended.

Lives here: the lives of the process, behind its warden. Must not know: which server it is, what is asked of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from inference.isolation import child_command, child_environment
from inference.restarting import pause_s
from market.errors import EngineFailed, OctoError
from market.values import value

RESTART_LIMIT_S: Final = 60.0
_LOOK_S: Final = 0.1
_WARDEN_S: Final = 15.0
_MISSES: Final = 3

Work = Callable[[], Awaitable[None]]

log = structlog.get_logger()


@value
class Served:
    """`command` is run in `folder` with `environment` and nothing else of ours, its words go to `log`. `memory_bytes`
    bounds each of its processes. `alone`: without a network. It reads the system's folders, `folder` and what
    `readable` names, and writes into `folder` and `workplaces`; all this as far as the kernel can. `fresh` are files
    (sockets) that must not be there when it starts. It has `start_s` to come up, and `grace_s` to end by itself."""

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    memory_bytes: int
    alone: bool = True
    readable: Sequence[Path] = ()
    workplaces: Sequence[Path] = ()
    fresh: Sequence[Path] = ()
    start_s: float = 300.0
    health_s: float = 5.0
    grace_s: float = 5.0


class ServedProcess:
    """`run` is its whole story; made by `open_served_process`."""

    def __init__(self, served: Served, check: Work, warm_up: Work) -> None:
        self._served = served
        self._check = check
        self._warm_up = warm_up
        self._told_to_restart = asyncio.Event()
        self.pid = 0
        self.isolation = ""
        self.ready = False
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def unavailable(self) -> EngineFailed | None:
        return None if self.ready else EngineFailed("the engine's server is being started again.")

    def restart(self) -> None:
        """It does not do its work: end it and start it again."""
        self._told_to_restart.set()

    async def run(self) -> None:
        """Live, die and live again, ever more slowly if it never comes up. A first start that fails is the last."""
        failures = 0
        while True:
            error = EngineFailed("the engine's server ended.")
            try:
                await self._live()
            except OctoError as caught:
                error = EngineFailed(caught.message, next_step=caught.next_step)
            came_up, self.ready = self.ready, False
            failures = 0 if came_up else failures + 1
            if not self.started.done():
                self.started.set_exception(error)
                return
            log.warning("served_engine_lost", reason=error.message, failures=failures)
            await asyncio.sleep(pause_s(failures, first_s=0.25, limit_s=RESTART_LIMIT_S))

    async def _live(self) -> None:
        self._told_to_restart.clear()
        for path in self._served.fresh:
            path.unlink(missing_ok=True)
        warden = await asyncio.create_subprocess_exec(
            *child_command("inference.warden"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=child_environment(),
            start_new_session=True,  # Ctrl-C is for the node, which then ends it
        )
        try:
            try:
                await self._give_orders(warden)
            except (OSError, TimeoutError):
                raise self._failed("could not be started") from None
            await self._until_first([self._serve(), self._ended(warden), self._told_to_restart.wait()])
            if self._told_to_restart.is_set():
                raise EngineFailed("the engine's server did not do its work and was ended.")
        finally:
            await _to_its_end(self._end(warden))

    async def _give_orders(self, warden: asyncio.subprocess.Process) -> None:
        served = self._served
        orders = {
            "command": list(served.command),
            "environment": dict(served.environment),
            "folder": str(served.folder),
            "log": str(served.log),
            "memory_bytes": served.memory_bytes,
            "alone": served.alone,
            "readable": [str(path) for path in served.readable],
            "workplaces": [str(path) for path in (served.folder, *served.workplaces)],
            "grace_s": served.grace_s,
        }
        assert warden.stdin is not None
        warden.stdin.write(json.dumps(orders).encode() + b"\n")
        async with asyncio.timeout(_WARDEN_S):
            facts = await self._line(warden, "could not be started")
        self.pid, self.isolation = int(facts.get("pid", 0)), str(facts.get("isolation", ""))

    async def _serve(self) -> None:
        """Until it does not answer. Raises EngineFailed."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._served.start_s
        while not self.ready:
            try:
                async with asyncio.timeout_at(until):
                    await self._check()
                    await self._warm_up()
                self.ready = True
            except (EngineFailed, TimeoutError):
                if loop.time() >= until:
                    raise self._failed(f"did not come up in {self._served.start_s:.0f} s") from None
                await asyncio.sleep(_LOOK_S)
        if not self.started.done():
            self.started.set_result(None)
        log.info("served_engine_ready", pid=self.pid, isolation=self.isolation)
        misses = 0
        while misses < _MISSES:
            await asyncio.sleep(self._served.health_s)
            try:
                async with asyncio.timeout(2 * self._served.health_s):
                    await self._check()
                misses = 0
            except (EngineFailed, TimeoutError):
                misses += 1
        raise self._failed("does not answer any more")

    async def _ended(self, warden: asyncio.subprocess.Process) -> None:
        said = await self._line(warden, "lost its warden")
        status = int(said.get("ended", 1))
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        raise self._failed(f"ended ({how})")

    async def _line(self, warden: asyncio.subprocess.Process, failure: str) -> dict[str, Any]:
        assert warden.stdout is not None
        with contextlib.suppress(ValueError):
            said = json.loads(await warden.stdout.readline())
            if isinstance(said, dict):
                return said
        raise self._failed(failure)

    async def _until_first(self, works: Sequence[Any]) -> None:
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _end(self, warden: asyncio.subprocess.Process) -> None:
        """The end of its input is the warden's sign; if it is gone itself, what it started is ended here."""
        assert warden.stdin is not None
        warden.stdin.close()
        try:
            async with asyncio.timeout(self._served.grace_s + _WARDEN_S):
                await warden.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                warden.kill()
        if warden.returncode != 0 and self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self.pid = 0

    def _failed(self, what: str) -> EngineFailed:
        return EngineFailed(f"the engine's server {what}.", next_step=f"Its own words are in {self._served.log}.")


@asynccontextmanager
async def open_served_process(served: Served, *, check: Work, warm_up: Work) -> AsyncIterator[ServedProcess]:
    """Start a server and wait until `check`, which raises EngineFailed while it does not serve, holds, and `warm_up` is
    done, as after each later start. Raises EngineFailed if it does not come up the first time."""
    process = ServedProcess(served, check, warm_up)
    life = asyncio.create_task(process.run(), name="served engine")
    try:
        await process.started
        yield process
    finally:
        life.cancel()
        process.started.cancel()
        await asyncio.gather(life, process.started, return_exceptions=True)


async def _to_its_end(work: Any) -> None:
    """A process half ended may not be left because somebody is in a hurry."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
