"""What a confined child must reach to compute on NVIDIA's cards: device files, the driver's facts, its libraries.

Lives here: the paths, of those that exist. Must not know: engines, who confines. Nobody is given these who has no work
for a card: a driver is a million lines of kernel behind one device file, and `isolation` says so in its word.
Sources: NVIDIA Container Toolkit, "Support for Container Device Interface" (device nodes); ld.so(8) (the cache that
names libraries outside the default folders).
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from market.values import value

_DEVICES: Final = (
    "dev/nvidiactl",
    "dev/nvidia[0-9]*",
    "dev/nvidia-uvm",
    "dev/nvidia-uvm-tools",
    "dev/nvidia-modeset",
    "dev/nvidia-caps/*",  # slices of a card (MIG)
    "dev/dxg",  # Windows Subsystem for Linux
)
_FACTS: Final = (
    "proc/driver/nvidia",
    "proc/devices",
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/self",
    "sys/bus/pci",
    "sys/devices/system",
    "sys/devices/pci*",
    "sys/module/nvidia*",
)
_LIBRARIES: Final = (
    "etc/ld.so.cache",
    "usr/lib64",
    "usr/local/lib",
    "usr/local/cuda*",
    "usr/local/nvidia",
    "opt/cuda",
    "usr/share/nvidia",
)


@value
class CardAccess:
    """`devices` to read, write and control; `readable` beside a child's other paths. Without devices: no card."""

    devices: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()


NO_CARDS: Final = CardAccess()


def card_access(root: Path = Path("/")) -> CardAccess:
    """Of this machine, or of the tree at `root`. Blocking. Something that lies under a device's name and is no
    character device is left out."""
    devices = tuple(str(path) for path in _found(root, _DEVICES) if _is_device(path))
    if not devices:
        return NO_CARDS
    return CardAccess(devices=devices, readable=tuple(map(str, _found(root, (*_FACTS, *_LIBRARIES)))))


def _found(root: Path, patterns: tuple[str, ...]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(root.glob(pattern))]


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False
