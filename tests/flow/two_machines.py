"""Two machines on one: network namespaces with addresses of their own, joined by a wire of a given speed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

PROVIDER, CLIENT = "10.77.0.1", "10.77.0.2"


@dataclass(frozen=True)
class Machine:
    name: str
    address: str
    device: str

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]

    def received_bytes(self) -> int:
        path = f"/sys/class/net/{self.device}/statistics/rx_bytes"
        return int(subprocess.run(self.command("cat", path), check=True, capture_output=True, text=True).stdout)


def why_not() -> str | None:
    """Why there can be no second machine here; None if there can."""
    try:
        _run("ip", "netns", "add", f"octo-probe-{os.getpid()}")
        _run("ip", "netns", "del", f"octo-probe-{os.getpid()}")
    except (OSError, subprocess.CalledProcessError):
        return "network namespaces need iproute2 and root"
    return None


@contextmanager
def open_wire(*, rate: str = "") -> Iterator[tuple[Machine, Machine]]:
    """(provider, client). `rate` as tc writes it (`200mbit`) bounds what the provider sends; empty: no bound."""
    tag = f"octo{os.getpid() % 100_000}"
    ends = (Machine(f"{tag}p", PROVIDER, f"{tag}p"), Machine(f"{tag}c", CLIENT, f"{tag}c"))
    try:
        for end in ends:
            _run("ip", "netns", "add", end.name)
        _run("ip", "link", "add", ends[0].device, "type", "veth", "peer", "name", ends[1].device)
        for end in ends:
            _run("ip", "link", "set", end.device, "netns", end.name)
            _run(*end.command("ip", "addr", "add", f"{end.address}/24", "dev", end.device))
            _run(*end.command("ip", "link", "set", end.device, "up"))
            _run(*end.command("ip", "link", "set", "lo", "up"))
        if rate:
            qdisc = ("tc", "qdisc", "add", "dev", ends[0].device, "root", "tbf")
            _run(*ends[0].command(*qdisc, "rate", rate, "burst", "256kb", "latency", "50ms"))
        yield ends
    finally:
        for end in ends:
            with suppress(OSError, subprocess.CalledProcessError):
                _run("ip", "netns", "del", end.name)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=30)
