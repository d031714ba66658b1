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
_CGROUPS: Final = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
NO_LIMIT: Final = 1 << 62


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
        ram_bytes=min(int(psutil.virtual_memory().total), *(cgroup_limit(folder) for folder in _CGROUPS)),
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
    return min(int(psutil.virtual_memory().available), *(cgroup_room(folder) for folder in _CGROUPS))


def cgroup_limit(folder: Path) -> int:
    """A container's memory limit (cgroup v2, then v1); NO_LIMIT without one."""
    return next(filter(None, (_number(folder / name) for name in ("memory.max", "memory.limit_in_bytes"))), NO_LIMIT)


def cgroup_room(folder: Path) -> int:
    """What is left below that limit. Page cache that can be dropped counts in the group's usage, but not here."""
    limit = cgroup_limit(folder)
    usage = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
    return limit if limit >= NO_LIMIT else max(0, limit - usage + _inactive_file(folder / "memory.stat"))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _inactive_file(path: Path) -> int:
    try:
        words = dict(line.split(maxsplit=1) for line in path.read_text().splitlines())
        return int(words.get("total_inactive_file") or words.get("inactive_file", "0"))
    except (OSError, ValueError):
        return 0


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
