"""vLLM's command line and environment, and what of them an owner may choose; pure.

Lives here: the numbers, the arguments that may be added, what a failed start's last words mean. Knows no process.
Never among the arguments: anything that runs a stranger's code (`--trust-remote-code`, plugins, classes by name), that
opens a door or a file (`--host`, `--allowed-local-media-path`, `--otlp-traces-endpoint`), that makes the weights others
than the receipt cites (`--quantization`, `--kv-cache-dtype`, adapters), or that our own settings say. No key and no
prompt either: a command line is everybody's to read.
Source: https://docs.vllm.ai/en/latest/configuration/engine_args.html, tried with 0.32.0 for processors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from inference.engines.openai_dialect import LOGPROBS_LIMIT
from inference.engines.openai_http import SLOTS_LIMIT
from market.errors import EngineFailed, NodeMisconfigured
from market.values import value

NAME: Final = "octo"
"""What the model is called between us and the server."""
OLDEST: Final = (0, 12)
"""The first that has `structured_outputs` in place of the fields before it."""
DTYPES: Final = ("bfloat16", "float16", "float32")
ARGUMENTS: Final = frozenset(
    (
        "--attention-backend", "--block-size", "--cpu-offload-gb", "--cudagraph-capture-sizes",
        "--disable-custom-all-reduce", "--enable-chunked-prefill", "--enable-expert-parallel", "--enforce-eager",
        "--gpu-memory-utilization", "--long-prefill-token-threshold", "--max-num-batched-tokens",
        "--max-parallel-loading-workers", "--moe-backend", "--no-async-scheduling", "--no-enable-chunked-prefill",
        "--num-gpu-blocks-override", "--safetensors-load-strategy",
    )
)  # fmt: skip
KV_ON_PROCESSORS_BYTES: Final = 1 << 30
_VALUE: Final = re.compile(r"[A-Za-z0-9._,:-]{1,64}")
_DEVICE: Final = re.compile(r"\d{1,3}|(GPU|MIG)-[0-9a-fA-F-]{1,64}")
_RAY: Final = re.compile(r"auto|[A-Za-z0-9.-]{1,253}:\d{1,5}|\[[0-9a-fA-F:]{2,45}\]:\d{1,5}")
_CONTEXT_LIMIT: Final = 1 << 24
_PARALLEL_LIMIT: Final = 1024
_ERROR: Final = re.compile(r"\b(?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception)): ([ -~]{1,400})")
_ECHOES: Final = ("Engine core initialization failed", "WorkerProc initialization failed", "See root cause above")
_SHOWN_LENGTH: Final = 300


@value
class VllmSetup:
    """`slots` jobs share the batch, each with `context` tokens. `kv_cache_bytes` for all keys and values, of each
    device; 0: 1 GiB on processors, on cards what vLLM finds free. `tensor_parallel` splits every layer over so many
    devices, `pipeline_parallel` the layers over so many. `ray` is the address of a Ray cluster whose machines they may
    be on (`auto`: the one that runs here); then the server has a network, and prompts leave this host. `devices` are
    the cards to use, as CUDA_VISIBLE_DEVICES names them; none: all. `arguments` go to vLLM as they are.

    Raises NodeMisconfigured for what cannot be meant."""

    slots: int = 16
    context: int = 2048
    dtype: str = "bfloat16"
    kv_cache_bytes: int = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    ray: str = ""
    devices: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, number, limit in (
            ("slots", self.slots, SLOTS_LIMIT),
            ("context", self.context, _CONTEXT_LIMIT),
            ("tensor_parallel", self.tensor_parallel, _PARALLEL_LIMIT),
            ("pipeline_parallel", self.pipeline_parallel, _PARALLEL_LIMIT),
        ):
            if not 1 <= number <= limit:
                raise NodeMisconfigured(f"vLLM's {name} is {number}.", next_step=f"Choose 1 to {limit}.")
        if self.dtype not in DTYPES:
            raise NodeMisconfigured(
                f"{self.dtype!r:.40} is no number format.", next_step=f"Choose one of {', '.join(DTYPES)}."
            )
        if self.ray and not _RAY.fullmatch(self.ray):
            raise NodeMisconfigured(
                f"{self.ray!r:.80} is no address of a Ray cluster.", next_step="Write HOST:PORT, or auto."
            )
        for device in self.devices:
            if not _DEVICE.fullmatch(device):
                raise NodeMisconfigured(
                    f"{device!r:.80} is no card.", next_step="Name cards by number, or by UUID as nvidia-smi -L does."
                )
        for argument in self.arguments:
            _check_argument(argument)

    @property
    def parallel(self) -> int:
        """How many processes hold a part of the model."""
        return self.tensor_parallel * self.pipeline_parallel

    def engine_class(self, version: str, device: str) -> str:
        """What a receipt names: two splits add up in two orders, so each is a class of its own."""
        split = f"/tp{self.tensor_parallel}pp{self.pipeline_parallel}" if self.parallel > 1 else ""
        return f"openai_http/vllm/{version}/{device}/{self.dtype}{split}"


def command_of(setup: VllmSetup, *, python: Path, folder: Path, socket: Path, device: str) -> list[str]:
    """`device` is "cpu" or "cuda"."""
    command = [str(python), "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", NAME, "--uds", str(socket), "--load-format", "safetensors"]
    command += ["--dtype", setup.dtype, "--max-model-len", str(setup.context), "--max-num-seqs", str(setup.slots)]
    command += ["--max-logprobs", str(LOGPROBS_LIMIT), "--generation-config", "vllm", "--no-enable-prefix-caching"]
    command += ["--tensor-parallel-size", str(setup.tensor_parallel)]
    command += ["--pipeline-parallel-size", str(setup.pipeline_parallel)]
    command += ["--disable-uvicorn-access-log", "--disable-log-stats"]
    if setup.ray:
        command += ["--distributed-executor-backend", "ray"]
    if device == "cpu" and "--enforce-eager" not in setup.arguments:
        command += ["--enforce-eager"]  # compiling takes minutes, and a compiler
    if device != "cpu" and setup.kv_cache_bytes:
        command += ["--kv-cache-memory-bytes", str(setup.kv_cache_bytes)]
    return [*command, *setup.arguments]


def environment_of(setup: VllmSetup, *, python: Path, run: Path, key: str) -> dict[str, str]:
    """All that the server inherits. No usage statistics, no model hub; without Ray it knows loopback alone."""
    kv_gib = max(1, (setup.kv_cache_bytes or KV_ON_PROCESSORS_BYTES) >> 30)
    alone = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    return {
        "LANG": "C.UTF-8",
        "PATH": f"{python.parent}:/usr/bin:/bin",
        "HOME": str(run),
        "TMPDIR": str(run),
        "VLLM_API_KEY": key,
        "VLLM_CPU_KVCACHE_SPACE": str(kv_gib),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        **({"RAY_ADDRESS": setup.ray} if setup.ray else alone),
        **({"CUDA_VISIBLE_DEVICES": ",".join(setup.devices)} if setup.devices else {}),
    }


def explained(failed: EngineFailed, said: str) -> EngineFailed:
    """A failed start with the cause that the server named in its log: the last error that is no echo of another."""
    errors = [found for found in _ERROR.finditer(said) if not any(echo in found[2] for echo in _ECHOES)]
    if not errors:
        return failed
    kind, words = errors[-1][1], errors[-1][2].strip()[:_SHOWN_LENGTH]
    return EngineFailed(f"vLLM did not start: {kind}: {words}", next_step=f"{_advice(kind, words)}{failed.next_step}")


def _advice(kind: str, words: str) -> str:
    low = words.lower()
    if kind in ("ImportError", "ModuleNotFoundError", "PackageNotFoundError"):
        return "Its environment is not whole: install vLLM there anew. "
    if "kv cache" in low:
        return "Raise vllm.memory, or lower vllm.max_model_len. "
    if kind in ("OutOfMemoryError", "MemoryError") or "allocate memory" in low or "out of memory" in low:
        return "There is too little memory: lower vllm.memory or vllm.slots, or serve a smaller model. "
    return ""


def _check_argument(argument: str) -> None:
    name, equals, text = argument.partition("=")
    if name not in ARGUMENTS or (equals and not _VALUE.fullmatch(text)):
        raise NodeMisconfigured(
            f"{argument[:80]!r} is no argument that vLLM is given here.",
            next_step=f"Write --name or --name=value; there are {', '.join(sorted(ARGUMENTS))}.",
        )
