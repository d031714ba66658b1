"""What this machine is: its tier, graphics cards, cores, memory and instruction set.

Lives here: the rules, pure, and the few readings they need (NVML, /proc, cgroups). Must not know: engines.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

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
    """`gpus` are what one engine can use together; `cores` those this process may run on; `ram_bytes` is what it may
    have, a container's limit included."""

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


def cpu_name(cpu_info: str | None = None) -> str:
    """What the processor calls itself in the text of /proc/cpuinfo; empty where it does not say."""
    if cpu_info is None:
        cpu_info = _CPU_INFO.read_text() if _CPU_INFO.exists() else ""
    for line in cpu_info.splitlines():
        name, _, rest = line.partition(":")
        if name.strip().lower() in ("model name", "cpu model"):
            return rest.strip()[:128]
    return ""


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

    return read_nvml(pynvml, pynvml.NVMLError)


def read_nvml(nvml: Any, failure: type[Exception]) -> tuple[Gpu, ...]:
    """The cards that one engine can use together, as NVIDIA's library `nvml` tells; its errors are `failure`.

    A card in MIG mode is no card but its slices, and a process sees one slice at a time: of several only the largest
    counts, and none beside a whole card. A card that does not tell its memory (the chip shares the machine's) is left
    out, and so is one that fell off the bus: the others still count. No driver, no cards.
    Source: NVIDIA Multi-Instance GPU User Guide, "CUDA Device Enumeration".
    """
    try:
        nvml.nvmlInit()
    except failure:
        return ()
    cards: list[Gpu] = []
    slices: list[Gpu] = []
    try:
        for at in range(int(nvml.nvmlDeviceGetCount())):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(at)
                if _has_mig(nvml, failure, handle):
                    slices += _slices(nvml, failure, handle)
                else:
                    cards.append(_gpu(nvml, handle))
            except failure:
                continue
    except failure:
        pass
    finally:
        with suppress(failure):
            nvml.nvmlShutdown()
    if cards or not slices:
        return tuple(cards)
    return (max(slices, key=lambda slice_: slice_.vram_bytes),)


def _gpu(nvml: Any, handle: object) -> Gpu:
    name = nvml.nvmlDeviceGetName(handle)
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return Gpu(name=text[:128], vram_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total))


def _has_mig(nvml: Any, failure: type[Exception], handle: object) -> bool:
    """Now, not after the next reset. Cards without MIG say that they do not support the question."""
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except failure:
        return False
    return int(current) == 1


def _slices(nvml: Any, failure: type[Exception], handle: object) -> list[Gpu]:
    found = []
    for at in range(int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle))):
        with suppress(failure):  # places without a slice are holes in the list
            found.append(_gpu(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, at)))
    return found
