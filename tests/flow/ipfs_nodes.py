"""Real IPFS implementations as child processes: Helia, and js-ipfs with Kubo's RPC. `make ipfs-tools` installs them."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).parent / "ipfs"
NODE = ROOT / ".cache" / "ipfs" / "node"
PYTHON = ROOT / ".cache" / "ipfs" / "python"
START_S = 60
PEER = "12D3KooWQb6dXhe9SMdH7yjKQw4pAvH8XW7wGtnN5VPy6AsLa8RT"


def installed() -> bool:
    return NODE.exists() and (SCRIPTS / "node_modules" / "octo-set-up.stamp").exists()


@asynccontextmanager
async def open_node(script: str, *arguments: str) -> AsyncIterator[dict[str, str]]:
    """What the script prints first. It ends with its stdin, so also when this process dies; else by its id."""
    process = await asyncio.create_subprocess_exec(
        NODE, SCRIPTS / script, *arguments, cwd=SCRIPTS, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_S):
            yield json.loads(await process.stdout.readline())
    except TimeoutError:
        raise AssertionError(f"{script} is not ready after {START_S} s") from None
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


class Helia:
    """helia.mjs, asked over HTTP."""

    def __init__(self, gateway: str, session: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self._session = session

    async def add(self, data: bytes, **options: Any) -> str:
        async with self._session.put(f"{self.gateway}/add", params={"options": json.dumps(options)}, data=data) as said:
            return await _text(said)

    async def add_folder(self, files: dict[str, str], **options: Any) -> str:
        params = {"options": json.dumps(options)}
        async with self._session.post(f"{self.gateway}/folder", params=params, json=files) as said:
            return await _text(said)

    async def fetch(self, path: str) -> bytes:
        """A file that Helia has to find by its router."""
        async with self._session.get(f"{self.gateway}/fetch/{path}") as said:
            body = await said.read()
            assert said.status == 200, body
            return body


class JsIpfs:
    """js_ipfs.mjs: `rpc` and `gateway` are its URLs."""

    def __init__(self, rpc: str, gateway: str, session: aiohttp.ClientSession) -> None:
        self.rpc = rpc
        self.gateway = gateway
        self._session = session

    async def add(self, data: bytes, **options: str) -> str:
        """`ipfs add` by the daemon's own importer; without options, by its defaults."""
        form = aiohttp.FormData()
        form.add_field("file", data, filename="file")
        async with self._session.post(f"{self.rpc}/api/v0/add", params=options, data=form) as said:
            return str(json.loads((await _text(said)).splitlines()[-1])["Hash"])

    async def cat(self, root: str) -> bytes:
        async with self._session.post(f"{self.rpc}/api/v0/cat", params={"arg": root}) as said:
            return await said.read()


async def _text(said: aiohttp.ClientResponse) -> str:
    text = await said.text()
    assert said.status == 200, text
    return text
