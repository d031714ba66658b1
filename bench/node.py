"""Start to ready, and resident memory: our node against llama-cpp-python's own server with the same file.

Start: from the process's first moment to the first moment at which a request would be answered, the model
in the store (a first start has put it there). Memory: after 100 requests, of the gateway, and of the
provider with its worker, against the server after the same requests.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from bench.prompts import fresh_prompts
from bench.rivals import open_llama_cpp_server
from bench.rows import as_dicts, compared
from node.devnet import Devnet, Plan, open_devnet

STARTS = 5
REQUESTS = 100
START_S = 6.0
GATEWAY_MB = 250.0
RIVAL = "llama-cpp-python's own server"


def run() -> list[dict[str, Any]]:
    """Rows `node_start_s`, `node_gateway_rss_mb` and `node_provider_rss_mb`."""
    return asyncio.run(_run())


async def _run() -> list[dict[str, Any]]:
    ours: list[float] = []
    rival: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        await asyncio.to_thread(_start, Path(folder))  # the first start puts the model into the store
        for _ in range(STARTS):
            ours.append(await asyncio.to_thread(_start, Path(folder)))
            began = time.perf_counter()
            async with open_llama_cpp_server():
                rival.append(time.perf_counter() - began)
    start = compared("node_start_s", "s", ours, rival, RIVAL)
    start = start.against(f"<= {START_S:g} s", met=start.ours <= START_S)

    plan = Plan(prices=(("0.1", "0.3"),), workers=1)
    async with open_devnet(plan, tell=lambda _: None) as devnet, open_llama_cpp_server() as base:
        await _requests(devnet, base)
        theirs = [_memory_mb(_listening(base))]
        gateway = compared("node_gateway_rss_mb", "MB", [_memory_mb(psutil.Process(devnet.client.pid))], theirs, RIVAL)
        gateway = gateway.against(f"<= {GATEWAY_MB:g} MB", met=gateway.ours <= GATEWAY_MB)
        provider = psutil.Process(devnet.providers[0].pid)
        both = compared("node_provider_rss_mb", "MB", [_memory_mb(provider)], theirs, RIVAL)
    return as_dicts([start, gateway, both])


def _start(folder: Path) -> float:
    """Seconds until the node is ready."""
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "node.cli", "start", "--data-dir", str(folder / "node"), "--port", "0"]
    command += ["--listen", "/ip4/127.0.0.1/tcp/0", "--ready-file", str(ready)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not ready.exists():
            if process.poll() is not None or time.perf_counter() - began > 120:
                raise RuntimeError("octo-node start did not become ready")
            time.sleep(0.01)
        return time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(30)


async def _requests(devnet: Devnet, base: str) -> None:
    """The same short requests to both, one after the other."""
    headers = {"Authorization": f"Bearer {devnet.api_key}"}
    prompts = next(fresh_prompts())
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        for number in range(REQUESTS):
            prompt = prompts[number % len(prompts)]
            chat = {"model": devnet.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 8}
            async with session.post(f"{devnet.client.url}/v1/chat/completions", json=chat, headers=headers) as answer:
                answer.raise_for_status()
            async with session.post(f"{base}/v1/completions", json={"prompt": prompt, "max_tokens": 8}) as answer:
                answer.raise_for_status()


def _listening(base: str) -> psutil.Process:
    """The child of ours that listens on the port of `base`."""
    port = int(base.rpartition(":")[2])
    children: Iterable[psutil.Process] = psutil.Process().children(recursive=True)
    for child in children:
        if any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in child.net_connections("tcp")):
            return child
    raise RuntimeError("the rival's server is gone")


def _memory_mb(process: psutil.Process) -> float:
    """Resident memory of a process and its children; a page that two share counts for both."""
    family = [process, *process.children(recursive=True)]
    return float(sum(member.memory_info().rss for member in family)) / 2**20


if __name__ == "__main__":
    from bench.__main__ import main

    sys.exit(main(["node"]))
