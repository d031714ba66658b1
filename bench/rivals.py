"""Other people's servers of the same model file, started for a benchmark and ended with it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp

MODEL = Path(__file__).resolve().parents[1] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"
_START_S = 60


@contextlib.asynccontextmanager
async def open_llama_cpp_server() -> AsyncIterator[str]:
    """llama-cpp-python's own, on a free loopback port; its base URL once it answers."""
    port = _free_port()
    command = ["-m", "llama_cpp.server", "--model", str(MODEL), "--n_ctx", "512"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--verbose", "False"]
    async with _serving(command, port, "llama_cpp.server") as base:
        yield base


def has_xllamacpp() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None


_XLLAMACPP = """
import sys, xllamacpp
model, port, threads, slots, context = sys.argv[1], *map(int, sys.argv[2:])
p = xllamacpp.CommonParams()
p.model.path, p.port, p.n_parallel, p.n_ctx = model, port, slots, slots * context
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(p)
sys.stdin.read()
"""


@contextlib.asynccontextmanager
async def open_xllamacpp(*, threads: int, spin: int, slots: int, context: int) -> AsyncIterator[str]:
    """llama.cpp's server in xllamacpp's build, with its own continuous batching over `slots`; its threads look so many
    times before they sleep."""
    port = _free_port()
    arguments = [str(MODEL), *map(str, (port, threads, slots, context))]
    async with _serving(["-c", _XLLAMACPP, *arguments], port, "xllamacpp", spin=spin) as base:
        yield base


@contextlib.asynccontextmanager
async def _serving(arguments: Sequence[str], port: int, name: str, *, spin: int = 0) -> AsyncIterator[str]:
    # With OpenMP's default, two threads on busy cores stand still.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(spin)}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet
    )
    try:
        base = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession() as session, asyncio.timeout(_START_S):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{base}/v1/models") as response:
                        if response.status == 200:
                            break
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended: are its extras installed? (pip install '.[bench]')")
                await asyncio.sleep(0.1)
        yield base
    finally:
        process.kill()
        process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
