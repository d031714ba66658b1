"""Programs that we start and own: they end when we do, however we end.

A few lines of Python stand in front of the program: they ask the kernel for SIGTERM at the end of the thread
that started them (prctl(2), PR_SET_PDEATHSIG; it survives execve) and then become the program. No preexec_fn:
it runs our code between fork and exec, in a process whose threads are gone and whose locks may be held.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from market.errors import NodeMisconfigured

_BECOME = (
    "import ctypes, os, sys; c = ctypes.CDLL(None)\n"
    "if hasattr(c, 'prctl'): c.prctl(1, 15, 0, 0, 0)\n"
    "if os.getppid() == int(sys.argv[1]): os.execv(sys.argv[2], sys.argv[2:])"
)
GRACE_S = 5.0


@asynccontextmanager
async def open_child(
    command: Sequence[str], *, environment: Mapping[str, str], errors: Path | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start `command` (a full path first); SIGTERM at the end, SIGKILL if that is not heard in GRACE_S.

    Its stdout is a pipe, its stderr goes to the file `errors`. A session of its own: Ctrl-C at the terminal is
    ours to answer first.
    """
    log = open(errors, "wb") if errors else None  # noqa: SIM115, PTH123, ASYNC230 - closed as soon as the child has it
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *command,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=log or asyncio.subprocess.DEVNULL, env=dict(environment), start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise NodeMisconfigured(f"{command[0]} does not start ({error.strerror}).") from None
    finally:
        if log is not None:
            log.close()
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), GRACE_S)
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
