"""Keeps a server that we start in its place and cleans up after it: `python -m inference.warden`, orders on stdin.

Lives here: what the server is started with and without, its log, and its end. Must not know: which server it is, HTTP,
the node. vLLM leaves its engine's processes behind when its first process is killed, and a node that is killed could
not end anything at all. So this small process stands between: orphans below it become its children (it is a
subreaper), and when its standard input ends, for whatever reason, it ends them all.

What the server gets: an environment of its own, no new privileges, no core dump, a bound on private memory in each of
its processes, the first place in the kernel's line when memory runs out, and where the kernel allows it: the files it
is told (Landlock), and a network of its own that holds nothing but loopback: it is then reached through a Unix socket
and reaches nobody.
Sources: prctl(2), PR_SET_CHILD_SUBREAPER; user_namespaces(7); network_namespaces(7); netdevice(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from inference.isolation import die_with_parent, keep_to, landlock_abi

ORDERS_LIMIT_BYTES: Final = 64 * 1024
LOG_LIMIT_BYTES: Final = 8 * 1024 * 1024
"""Then the log becomes `<name>.1` and a new one begins."""
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_CHILD_SUBREAPER: Final = 36
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_SYSTEM: Final = tuple(map(Path, ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/opt", "/proc", "/sys", "/run")))
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "shm", "kfd", "dri")
_READ_BYTES: Final = 1 << 16
_LOOK_S: Final = 0.25


class Log:
    """The server's words, in a file for its owner alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._open()

    def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk costs the log, not the server
            os.write(self._file, data)
            if os.fstat(self._file).st_size > LOG_LIMIT_BYTES:
                os.close(self._file)
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._file = self._open()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def confine(*, memory_bytes: int, alone: bool) -> str:
    """Give up, for all that we start, what the server shall not have, files aside; returns the level reached.
    `alone`: no network but loopback.

    "netns+rlimits", or "rlimits" where the kernel has no user namespaces for us or the server needs a network."""
    libc = ctypes.CDLL(None, use_errno=True)
    level = "rlimits"
    if alone and _may_leave_network(libc):
        _leave_network(libc)
        level = "netns+rlimits"
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for what, amount in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_DATA, memory_bytes)):
        _, hard = resource.getrlimit(what)
        bound = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(what, (bound, bound))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("700")
    return level


def _may_leave_network(libc: ctypes.CDLL) -> bool:
    """Tried by a child first: some kernels grant the namespace and then refuse it an identity, and there is no way
    back out of it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _leave_network(libc)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def _leave_network(libc: ctypes.CDLL) -> None:
    """Raises OSError."""
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def watch(process: subprocess.Popen[bytes], log: Log) -> int:
    """Until the server ends by itself (its status), or our input does (0)."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(process.stdout, select.POLLIN)
    while True:
        for handle, _ in poll.poll(_LOOK_S * 1000):
            if handle == 0:
                if not os.read(0, 1):
                    return 0
            elif data := os.read(handle, _READ_BYTES):
                log.write(data)
            else:
                poll.unregister(handle)
        status = process.poll()
        if status is not None:
            return status


def end_all(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask the server's group to end, then end everything below us until nothing is left."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    while _children(os.getpid()):
        for pid in _below(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def _below(pid: int) -> list[int]:
    found = _children(pid)
    return found + [other for child in found for other in _below(child)]


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _orders() -> dict[str, Any]:
    """One line of JSON."""
    data = b""
    while not data.endswith(b"\n"):
        piece = os.read(0, ORDERS_LIMIT_BYTES)
        data += piece
        if not piece or len(data) > ORDERS_LIMIT_BYTES:
            sys.exit(2)
    orders: dict[str, Any] = json.loads(data)
    return orders


def main() -> int:
    orders = _orders()
    level = confine(memory_bytes=orders["memory_bytes"], alone=orders["alone"])
    readable, workplaces = ([Path(path) for path in orders[name]] for name in ("readable", "workplaces"))
    level = f"landlock+{level}" if landlock_abi() else level

    def begin() -> None:
        die_with_parent()
        if landlock_abi() and not keep_to(
            [*_SYSTEM, *readable], [*(Path("/dev") / name for name in _DEVICES), *workplaces]
        ):
            os.write(2, b"octo: this kernel did not take the rules for files\n")
            os._exit(1)

    log = Log(Path(orders["log"]))
    process = subprocess.Popen(
        orders["command"],
        env=orders["environment"],
        cwd=orders["folder"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=begin,  # noqa: PLW1509 - we have one thread
    )
    print(json.dumps({"pid": process.pid, "isolation": level}), flush=True)  # noqa: T201 - our line to the node
    status = watch(process, log)
    end_all(process, orders["grace_s"])
    print(json.dumps({"ended": status}), flush=True)  # noqa: T201 - our line to the node
    return 0


if __name__ == "__main__":
    sys.exit(main())
