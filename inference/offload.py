"""Whether llama.cpp, as it was built, can compute on this machine's cards: asked of a child, confined as a worker is.

Lives here: the question, and the child that answers it: `python -m inference.offload`. Must not know: models. The
library answers only once it is loaded and has found a card it can use, and it is never loaded into the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from inference.devices import card_access
from inference.isolation import child_command, child_environment, confine, die_with_parent

TIME_LIMIT_S: Final = 60.0
"""A driver that was idle takes some seconds a card."""
_MEMORY_BYTES: Final = 4 << 30
_YES: Final = b"yes"


async def supports_offload(command: Sequence[str] = (), *, limit_s: float = TIME_LIMIT_S) -> bool:
    """False too if the library crashes on the question, or takes longer than `limit_s`."""
    process = await asyncio.create_subprocess_exec(
        *(command or child_command("inference.offload")),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=child_environment(),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(limit_s):
            said, _ = await process.communicate()
    except TimeoutError:
        return False
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
    return process.returncode == 0 and said.strip() == _YES


def main() -> int:
    die_with_parent()
    import llama_cpp  # as a worker does: it wants /dev/null; cards are looked for later

    cards = card_access()
    confine(map(Path, cards.readable), memory_bytes=_MEMORY_BYTES, devices=[Path(path) for path in cards.devices])
    llama_cpp.llama_backend_init()
    sys.stdout.write("yes" if llama_cpp.llama_supports_gpu_offload() else "no")
    return 0


if __name__ == "__main__":
    sys.exit(main())
