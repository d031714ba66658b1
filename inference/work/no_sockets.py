"""A filter on system calls: no new socket, for a process that must go on opening files.

Landlock does not cover UDP, and a process that can open a file can open a socket.
Source: seccomp(2), SECCOMP_SET_MODE_FILTER.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Mapping
from typing import Final

_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_FILTER, _ALL_THREADS = 1, 1  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE: Final = 0x00050000 | errno.EPERM
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # in struct seccomp_data
_X32: Final = 0x40000000
_INSTRUCTION: Final = struct.Struct("=HBBI")

_MACHINES: Final[Mapping[str, tuple[int, int, tuple[int, ...]]]] = {
    "x86_64": (317, 0xC000003E, (41, 53, 425)),
    "aarch64": (277, 0xC00000B7, (198, 199, 425)),
}
"""The number of seccomp; AUDIT_ARCH, and the numbers of socket, socketpair and io_uring_setup (through which sockets
can be made too)."""


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def forbid_sockets() -> None:
    """For all threads of this process and what it starts, for good: EPERM. Raises OSError where the kernel has no
    filters."""
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no filter for {machine}")
    seccomp, architecture, numbers = _MACHINES[machine]
    code = _program(architecture, numbers)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    program = _Program(len(code) // _INSTRUCTION.size, code)
    if libc.syscall(seccomp, _SET_FILTER, _ALL_THREADS, ctypes.byref(program)):  # the id of a thread that cannot: > 0
        raise OSError(ctypes.get_errno(), "the kernel takes no filter of system calls")


def _program(architecture: int, numbers: tuple[int, ...]) -> bytes:
    """Calls of another architecture's table end the process: their numbers mean something else."""
    count = len(numbers)
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, count + 1, 0, _X32),
        *((_EQUAL, count - at, 0, number) for at, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(_INSTRUCTION.pack(*step) for step in steps)
