"""A few whole nodes in this process that only share models: no engine, real mesh, real listeners, real stores."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from node.running import RunningNode
from node.settings import Api, Content, Mesh, ModelSettings, Settings
from node.wiring import open_node

MB = 1 << 20


@asynccontextmanager
async def a_node(
    folder: Path,
    *,
    join: tuple[RunningNode, ...] = (),
    listen: str = "127.0.0.1",
    content: str | None = None,
    dht: bool = True,
    **models: Any,
) -> AsyncIterator[RunningNode]:
    """`content`: where the content listener binds; another address than `listen` is one that nobody reaches."""
    settings = Settings(
        data_dir=folder,
        provide=False,
        join=tuple(node.addresses()[0] for node in join),
        api=Api(port=0),
        mesh=Mesh(listen=(f"/ip4/{listen}/tcp/0",), dht=dht),
        content=Content(host=content or listen),
        models=ModelSettings(**models),
    )
    async with open_node(settings) as node:
        yield node


def a_model(folder: Path, *, size: int = 5 * MB, seed: str = "one", name: str = "Otter-1B") -> Path:
    """A safetensors file with one tensor of pseudo-random bytes."""
    data = hashlib.shake_256(seed.encode()).digest(size)
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"weight": tensor, "__metadata__": {"format": "pt"}}).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


async def until(holds: Callable[[], object], *, timeout_s: float = 60.0, what: str = "") -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.05)


def wallet_of(node: RunningNode) -> str:
    return node.desk.view.address_text(node.binding.wallet)


def flip_a_bit(node: RunningNode, cid: str) -> None:
    """In the stored file, with its times put back: what a dying disk does."""
    import os

    path = node.settings.models_folder() / "files" / cid
    seen = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(seen.st_size // 2)
        byte = file.read(1)
        file.seek(seen.st_size // 2)
        file.write(bytes((byte[0] ^ 1,)))
    path.chmod(0o444)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
