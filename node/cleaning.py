"""The devnet's side of `node.janitor`: a process that outlives us, and what it is told.

Opened before anything else starts and closed last, so that there is no moment at which a kill leaves something.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from node import janitor

Note = Callable[[int], None]
"""Takes the process group of what was started."""


@asynccontextmanager
async def open_cleaning(folder: Path | None) -> AsyncIterator[Note]:
    """If we are killed before the end of the block, the noted groups are ended and `folder` is removed."""
    watcher = subprocess.Popen(  # noqa: ASYNC220 - 10 ms, once; it must not hang on our event loop
        [sys.executable, "-I", janitor.__file__, *([str(folder)] if folder is not None else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    pipe = watcher.stdin
    assert pipe is not None

    def tell(line: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(line, file=pipe, flush=True)

    try:
        yield lambda group: tell(f"group {group}")
    finally:
        tell("done")
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
        await asyncio.to_thread(watcher.wait)
