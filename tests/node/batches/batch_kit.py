"""A crew for a desk, and programs that are killed over their work."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


@asynccontextmanager
async def crew(desk: Any, work: Any) -> AsyncIterator[None]:
    """Works the desk's queue off with `work`, until the end of the block."""
    task = asyncio.create_task(desk.run(work))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def said_until_killed(program: str, folder: Path, *, lines: int) -> list[str]:
    """Runs a Python `program` on `folder`, kills it when it has said so many lines; all that it said. Its second
    argument is how many it may say: the kill may come late."""
    command = [sys.executable, "-c", program, str(folder), str(lines)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [await asyncio.to_thread(process.stdout.readline) for _ in range(lines)]
    process.kill()
    said += process.stdout.read().splitlines()
    process.wait()
    return said
