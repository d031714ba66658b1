"""The node to ask: the one that runs in the data folder, or, while none does, one for the length of a command.

A command about models needs the store, the wallet that signs, and the mesh to pull from. The node that is started for
it serves nothing, buys nothing and settles nothing; it holds the folder, so no second one can start meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.remote import Remote, find_node
from node.folder import find_running

if TYPE_CHECKING:
    from node.settings import Settings

_QUICK_S = 10.0


@contextmanager
def open_node_to_ask(data_dir: Path | None, *, join: Sequence[str] = ()) -> Iterator[Remote]:
    """Raises what starting a node raises. `join` counts only for a node that is started here."""
    from node.config import load_settings

    settings = load_settings(overrides={"data_dir": data_dir, "join": tuple(join) or None})
    if find_running(settings.data_dir) is not None:
        yield find_node(settings.data_dir, timeout_s=_QUICK_S)
        return
    from node.logs import open_logs

    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = open_logs(level=settings.log.level, format=settings.log.format, file=settings.data_dir / "node.log")
    with log, _started(settings):
        yield find_node(settings.data_dir, timeout_s=_QUICK_S)


@contextmanager
def _started(settings: Settings) -> Iterator[None]:
    """The node on a thread of its own: the command blocks on HTTP, like any other client."""
    from node.settings import ChainSettings

    quiet = settings.model_copy(
        update={
            "provide": False,
            "api": settings.api.model_copy(update={"port": 0}),
            "models": settings.models.model_copy(update={"pin": ()}),
            "chain": ChainSettings(),
        }
    )
    started: Future[None] = Future()
    loop_there: Future[asyncio.Task[None]] = Future()
    thread = threading.Thread(target=asyncio.run, args=(_hold(quiet, started, loop_there),), name="octo-own-node")
    thread.start()
    task = loop_there.result()
    try:
        started.result()
        yield
    finally:
        task.get_loop().call_soon_threadsafe(task.cancel)
        thread.join()


async def _hold(settings: Settings, started: Future[None], here: Future[asyncio.Task[None]]) -> None:
    from node.wiring import open_node

    async def run() -> None:
        try:
            async with open_node(settings):
                started.set_result(None)
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    task = asyncio.create_task(run())
    here.set_result(task)
    await asyncio.wait([task])
