"""What this machine is: its tier, graphics cards, cores, memory and instruction set.

Lives here: the rules, pure, and the few readings they need (NVML, /proc, cgroups). Must not know: engines.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

import psutil

from market.offer import Tier
from market.values import value

PROSUMER_VRAM_BYTES: Final = 22 * 10**9
"""A "24 GB" card shows 24.1 to 25.8 * 10^9 bytes, with error correction on about 6 % less."""
ENTERPRISE_VRAM_BYTES: Final = 76 * 10**9

_CPU_INFO: Final = Path("/proc/cpuinfo")
_CGROUP_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@value
class Gpu:
    name: str
    vram_bytes: int


@value
class Hardware:
    """`cores` are those this process may run on; `ram_bytes` is what it may have, a container's limit included."""

    tier: Tier
    gpus: tuple[Gpu, ...]
    cores: int
    ram_bytes: int
    isa: str


def detect_hardware() -> Hardware:
    """Look around. A machine without NVIDIA's driver has no GPUs as far as we are concerned."""
    gpus = _nvidia_gpus()
    return Hardware(
        tier=tier_for(sum(gpu.vram_bytes for gpu in gpus)),
        gpus=gpus,
        cores=len(os.sched_getaffinity(0)),
        ram_bytes=min(psutil.virtual_memory().total, _cgroup_limit()),
        isa=isa_word(cpu_flags(_CPU_INFO.read_text() if _CPU_INFO.exists() else "")),
    )


def tier_for(vram_bytes: int) -> Tier:
    """DESIGN section 3, by the memory of all cards together: consumer below 24 GB or without a GPU, enterprise
    from 80 GB. What falls between the named sizes belongs to the tier below."""
    if vram_bytes >= ENTERPRISE_VRAM_BYTES:
        return Tier.ENTERPRISE
    return Tier.PROSUMER if vram_bytes >= PROSUMER_VRAM_BYTES else Tier.CONSUMER


def isa_word(flags: Collection[str]) -> str:
    """One word for the instruction set that decides which kernels run, from the names of /proc/cpuinfo or of
    llama.cpp's system info. Two words are two engine classes: their logits may differ in the last bits."""
    for word, names in (
        ("avx512", ("avx512f", "avx512")),
        ("avx2", ("avx2",)),
        ("avx", ("avx",)),
        ("sse3", ("sse3", "pni", "ssse3")),
        ("sve", ("sve",)),
        ("neon", ("asimd", "neon")),
    ):
        if any(name in flags for name in names):
            return word
    return "generic"


def cpu_flags(cpu_info: str) -> frozenset[str]:
    """The flags of the first processor in the text of /proc/cpuinfo (x86 says "flags", ARM "Features")."""
    for line in cpu_info.splitlines():
        name, _, rest = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(rest.split())
    return frozenset()


def available_ram() -> int:
    """Bytes that can be taken now without swapping, within the container's limit."""
    memory = psutil.virtual_memory()
    used_here = memory.total - memory.available
    return max(0, min(int(memory.available), _cgroup_limit() - int(used_here)))


def _cgroup_limit() -> int:
    limits = []
    for path in _CGROUP_LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(limits, default=1 << 62)


def _nvidia_gpus() -> tuple[Gpu, ...]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(at) for at in range(pynvml.nvmlDeviceGetCount())]
        return tuple(
            Gpu(name=str(pynvml.nvmlDeviceGetName(each)), vram_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(each).total))
            for each in handles
        )
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()
