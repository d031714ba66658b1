"""How an engine's child process is kept in its place: what it is started with, and what it gives up.

Lives here: the cleared environment and command line of our children, and `confine`, which a child calls
on itself: no_new_privs, resource limits, Landlock. Must not know: engines, models, frames.

A model file comes from strangers and is parsed by a large C++ library. If that goes wrong, the process
can read the model and Python's libraries, and nothing else: no keys, no writing, no network.
Source: Landlock, https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import stat
import struct
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from inference.work.no_sockets import forbid_sockets

PACKAGE_ROOT: Final = Path(__file__).resolve().parent.parent

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_SYS_CREATE_RULESET: Final = 444
_SYS_ADD_RULE: Final = 445
_SYS_RESTRICT_SELF: Final = 446
_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1

_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_WRITE = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8
"""In a folder: write to files, remove files and folders, make files and folders."""
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
_USE = 1 << 1 | _IOCTL
"""Of a device: write to it, control it."""
_ON_FILES = _EXECUTE | 1 << 1 | _READ_FILE | _TRUNCATE | _IOCTL
"""Of all rights, those that mean something for what is no folder."""
_FS_RIGHTS: Final[Mapping[int, int]] = {1: 13, 2: 14, 3: 15, 5: 16}
"""How many access rights each ABI added; a ruleset may only name rights that the kernel knows."""


def child_command(module: str) -> list[str]:
    """`python -m module`, without the current folder on its path: a file there must not shadow ours."""
    return [sys.executable, "-P", "-m", module]


def child_environment(threads: int = 1) -> dict[str, str]:
    """All that a child inherits: no keys, tokens, proxies or loader settings of the parent.

    How OpenMP waits must be set before the library loads: with its default spin-wait, two threads on two busy cores
    made 0.26 tokens/s; passive, 28. GNU's OpenMP spins a few microseconds before it sleeps: 16 rows of the default
    model take 16.8 ms so, 30.5 without it, 28.6 with one thread; beside two busy loops 41, 79 and 43.
    """
    return {
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(PACKAGE_ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "1000",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
    }


def die_with_parent() -> None:
    """SIGKILL for this process as soon as the thread that started it is gone (prctl(2), PR_SET_PDEATHSIG)."""
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def confine(
    readable: Iterable[Path],
    *,
    memory_bytes: int,
    writable: Path | None = None,
    file_bytes: int = 0,
    devices: Sequence[Path] = (),
) -> str:
    """Give up everything but reading `readable` and Python's libraries; returns the level reached.

    "landlock+rlimits", or "rlimits" on a kernel without Landlock. There is no way back, for this
    process and what it starts. `memory_bytes` bounds private memory (RLIMIT_DATA): a leak ends this
    process, not the machine. In the folder `writable`, if any, files of up to `file_bytes` may be made.

    `devices`, those of graphics cards, may be opened and controlled too, and the level says so. Their drivers map
    windows as large as their cards and make files that have no name: then `memory_bytes` bounds no memory (the kernel
    ends this process first when there is none left), and files without a name alone.
    """
    _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _limit(resource.RLIMIT_CORE, 0)  # a core dump would hold prompts
    if devices:
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
    rules = [(path, 0) for path in (*readable, *_libraries())]
    rules += [(path, _USE) for path in devices]
    rules += [] if writable is None else [(writable, _WRITE | _TRUNCATE)]
    level = "landlock+rlimits" if _landlock(rules, net=True) else "rlimits"
    nameless = devices and level != "rlimits"  # Landlock lets no file with a name be made
    _limit(resource.RLIMIT_FSIZE, max(file_bytes, memory_bytes) if nameless else file_bytes)
    if not devices:
        _limit(resource.RLIMIT_DATA, memory_bytes)
    return f"{level}+devices" if devices else level


def keep_to(readable: Iterable[Path], workplaces: Iterable[Path]) -> bool:
    """For a server that needs sockets and files: it may read and run what is beneath `readable`, do anything beneath
    `workplaces` (folders, or devices), and signal nobody outside. False without Landlock. no_new_privs comes first."""
    abi = landlock_abi()
    rights = _rights(abi)
    return _landlock([*((path, 0) for path in readable), *((path, rights) for path in workplaces)], net=False)


def close_the_door(*, devices: bool = False) -> None:
    """No new file descriptor from here on: no file, pipe, socket (UDP too, which Landlock does not cover).

    Open ones stay open, so this comes last. 0, 1 and 2 are taken, hence nothing below 3 is free. A process with
    `devices` opens them again for each mapping of the card's memory: it loses sockets alone, in all its threads.
    """
    if devices:
        forbid_sockets()
    else:
        _limit(resource.RLIMIT_NOFILE, 3)


def landlock_abi() -> int:
    """The kernel's Landlock version; 0 without."""
    return max(0, int(_libc().syscall(_SYS_CREATE_RULESET, None, 0, _RULESET_VERSION)))


def _rights(abi: int) -> int:
    return (1 << max((count for version, count in _FS_RIGHTS.items() if version <= abi), default=0)) - 1


def _landlock(rules: Iterable[tuple[Path, int]], *, net: bool) -> bool:
    """`rules`: paths that may be read, each with what else may be done there. `net`: no TCP."""
    abi = landlock_abi()
    if abi < 1:
        return False
    libc = _libc()
    ports = 0b11 if net and abi >= 4 else 0  # TCP bind and connect
    scope = 0b11 if abi >= 6 else 0  # abstract UNIX sockets, signals to processes outside
    attributes = struct.pack("=QQQ", _rights(abi), ports, scope)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = int(libc.syscall(_SYS_CREATE_RULESET, attributes, len(attributes), 0))
    if ruleset < 0:
        return False
    try:
        for path, more in rules:
            if not _allow(ruleset, path, more=more & _rights(abi)):
                return False
        return int(libc.syscall(_SYS_RESTRICT_SELF, ruleset, 0)) == 0
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, *, more: int) -> bool:
    """Reading, and `more` access rights."""
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        access = _READ_FILE | _READ_DIR | _EXECUTE | more if is_folder else _READ_FILE | (more & _ON_FILES)
        rule = struct.pack("=Qi", access, handle)
        return int(_libc().syscall(_SYS_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)) == 0
    finally:
        os.close(handle)


def _libraries() -> list[Path]:
    """Folders of Python, its packages and the C library: public files, read late by imports and dlopen."""
    paths = sysconfig.get_paths()
    folders = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {str(PACKAGE_ROOT / "inference"), str(PACKAGE_ROOT / "market"), "/usr/lib", "/lib", "/lib64"}
    return [Path(folder) for folder in sorted(folders)]


def _limit(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
