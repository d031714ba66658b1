"""Makes a smaller or faster file of the same model: weights in, weights out, in a child process.

Lives here: room and memory checked first, the child's life, progress, the look at what it made, the rename at the
end. Must not know: where models come from, under which CID they go out, or who asked.

The work runs in a process of its own because a damaged file can make a library abort, or worse: see
`inference.quantization.child`. Default Q4_0: of all 4-bit formats the one with a repacked kernel on CPUs (at batch
16, one thread: 590 tokens/s against 203 for Q4_1).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from inference.hardware import available_ram
from inference.isolation import child_command, child_environment
from inference.models.gguf_metadata import read_gguf_head
from inference.models.inspection import inspect_file
from inference.models.manifest import Format
from inference.quantization.onnx_file import check_onnx_tools
from inference.quantization.plan import Plan, plan_quantisation
from market.errors import DiskFull, EngineFailed, ModelFileInvalid, NodeMisconfigured, OctoError, RequestInvalid

TIME_LIMIT_S: Final = 6 * 3600.0
"""0.3 s for the default model; a 70B model on a slow disk takes an hour."""
_LOOK_EVERY_S: Final = 0.1
_LAST_WORDS_BYTES: Final = 64 * 1024
_SLACK_BYTES: Final = 64 * 1024 * 1024
_ERRORS: Final[dict[str, type[OctoError]]] = {
    error.code: error for error in (ModelFileInvalid, RequestInvalid, NodeMisconfigured, EngineFailed, DiskFull)
}

Heard = Callable[[int, int], None]
"""Bytes written so far, and about how many there will be."""


def nobody(_done: int, _total: int) -> None:
    """For callers that show nothing."""


async def quantize(source: Path, target: Path, to: str = "Q4_0", *, heard: Heard = nobody) -> Plan:
    """Write the weights file `source` (of GGUF shards the first) in the format `to` to `target`, which appears whole
    or not at all. Returns what was reckoned beforehand. A cancelled caller leaves nothing behind.

    Raises RequestInvalid for a format that there is not, ModelFileInvalid for a source that cannot be read, DiskFull,
    NodeMisconfigured for a path or package that is missing, or too little memory; EngineFailed for anything else.
    """
    plan = await asyncio.to_thread(_planned, source, to)
    _check_room(plan, target.parent)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise NodeMisconfigured(
            f"cannot write {target.name} to {target.parent}: {error.strerror}.", next_step="Check the folder."
        ) from None
    try:
        made = folder / f"made.{plan.format}"
        await _run(plan, folder, made, heard)
        await asyncio.to_thread(_check_result, plan, made)
        made.chmod(0o644)
        made.rename(target)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return plan


def _planned(source: Path, to: str) -> Plan:
    try:
        plan = plan_quantisation(source.resolve(), to)
    except OSError as error:
        raise NodeMisconfigured(
            f"cannot read the model {source}: {error.strerror}.", next_step="Pull it again, or correct the path."
        ) from None
    if plan.format == Format.ONNX:
        check_onnx_tools(plan.to)
    return plan


def _check_room(plan: Plan, folder: Path) -> None:
    """Better told now than after an hour."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise NodeMisconfigured(f"cannot write to {folder}: {error.strerror}.", next_step="Check the folder.") from None
    if free < plan.target_bytes:
        raise DiskFull(
            f"{plan.to} takes about {plan.target_bytes >> 20} MiB, and {free >> 20} MiB are free in {folder}.",
            next_step="Free some space and try again.",
        )
    if (room := available_ram()) < plan.memory_bytes:
        raise NodeMisconfigured(
            f"quantising this takes up to {plan.memory_bytes >> 20} MiB of memory, and {room >> 20} MiB are free.",
            next_step="Stop what else runs here, or do it on a larger machine.",
        )


async def _run(plan: Plan, folder: Path, made: Path, heard: Heard) -> None:
    orders = {
        "parent": os.getpid(),
        "format": plan.format,
        "to": plan.to,
        "sources": [str(path) for path in plan.sources],
        "folder": str(folder),
        "out": str(made),
        "threads": len(os.sched_getaffinity(0)),
        "memory_bytes": plan.memory_bytes,
        "file_bytes": 2 * max(plan.target_bytes, plan.source_bytes) + _SLACK_BYTES,
    }
    with (folder / "last-words").open("w+b") as words:
        process = await asyncio.create_subprocess_exec(
            *child_command("inference.quantization.child"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=words,
            env=child_environment(),
            start_new_session=True,  # Ctrl-C is for the node, which then ends its children itself
        )
        try:
            async with asyncio.timeout(TIME_LIMIT_S):
                status = await _watched(process, json.dumps(orders).encode(), made, plan.target_bytes, heard)
        except TimeoutError:
            raise EngineFailed(f"quantising took over {TIME_LIMIT_S / 3600:.0f} h and was ended.") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())
        words.seek(0)
        last = words.read(_LAST_WORDS_BYTES)
    if status != 0:
        raise _failed(plan, status, last, folder)


async def _watched(process: asyncio.subprocess.Process, orders: bytes, made: Path, total: int, heard: Heard) -> int:
    """The child's exit status; tells how far its file has come meanwhile."""
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(orders)
        await process.stdin.drain()
        process.stdin.close()
    ending = asyncio.ensure_future(process.wait())
    try:
        while not ending.done():
            heard(min(_written(made), total), total)
            await asyncio.wait([ending], timeout=_LOOK_EVERY_S)
        return ending.result()
    finally:
        ending.cancel()


def _written(path: Path) -> int:
    """Blocks, not length: one of the formats sets its file's length first."""
    try:
        seen = path.stat()
    except FileNotFoundError:
        return 0
    return min(seen.st_blocks * 512, seen.st_size)


def _failed(plan: Plan, status: int, last: bytes, folder: Path) -> OctoError:
    free = shutil.disk_usage(folder).free
    lines = last.decode(errors="replace").strip().splitlines()
    if free < 1 << 20:
        return DiskFull(f"no room left in {folder.parent} for {plan.to}.", next_step="Free some space and try again.")
    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
        told = json.loads(lines[-1])
        kind = _ERRORS.get(told["code"], EngineFailed)
        return kind(str(told["message"])[:500], next_step=str(told["next_step"])[:500])
    return ModelFileInvalid(
        f"{plan.sources[0].name} cannot be turned into {plan.to}: the quantiser ended with {status}.",
        next_step="Pull it again, or give it more memory.",
    )


def _check_result(plan: Plan, made: Path) -> None:
    """What the child made is looked at as a stranger's file is: it may have been taken over."""
    facts = inspect_file(made)
    if facts.format != plan.format:
        raise EngineFailed(f"the quantiser made a {facts.format} file of a {plan.format} one.")
    if plan.format == Format.GGUF:
        before = {tensor.name: tensor.shape for path in plan.sources for tensor in read_gguf_head(path).tensors}
        after = {tensor.name: tensor.shape for tensor in read_gguf_head(made).tensors}
        if facts.quantisation != plan.to or before != after:
            raise EngineFailed(
                f"the quantiser's file is {facts.quantisation}, not {plan.to}, or lost tensors.",
                next_step="Report this: name the model and the format.",
            )
    elif plan.format == Format.SAFETENSORS and made.stat().st_size != plan.target_bytes:
        raise EngineFailed("the converted file is not as long as its header says.")
