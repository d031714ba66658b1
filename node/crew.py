"""The processes of a devnet: started, watched, and ended with all that they started themselves.

Each node is `python -m node.cli start …` in a folder and a process group of its own. It asks the kernel
to be told when we die; `node.janitor`, which hears of each (`node.cleaning`), then ends what does not listen.
Knows processes and the nodes' ready files; nothing of offers or chains.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from market.errors import NodeMisconfigured, OctoError
from node.cleaning import Note
from node.cli.remote import Remote, find_node
from node.folder import write_whole

_LOG = "node.log"
_READY = "ready.json"
_CONFIG = '[content]\nhost = "127.0.0.1"\nport = 0\n'  # has no option of its own: on loopback, any port
_TAIL_LINES = 12
_END_S = 12.0
PACKAGES = Path(__file__).resolve().parent.parent
Tell = Callable[[str], None]


class MemberFailed(OctoError):
    """A node of the devnet ended, or did not come up."""

    code = "devnet_member_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A node that is up. `model` is the manifest CID that it serves, if any."""

    name: str
    peer_id: str
    multiaddrs: tuple[str, ...]
    url: str
    data_dir: Path
    pid: int
    model: str | None

    def facts(self) -> dict[str, Any]:
        return {
            "peer_id": self.peer_id,
            "multiaddrs": list(self.multiaddrs),
            "url": self.url,
            "data_dir": str(self.data_dir),
            "pid": self.pid,
        }

    @property
    def log(self) -> Path:
        return self.data_dir / _LOG

    def remote(self) -> Remote:
        """This node's API, with the token in its folder."""
        return find_node(self.data_dir)


class Crew:
    """The child processes, in the order in which they started."""

    def __init__(self, root: Path, *, network: str, config: str, start_timeout_s: float, note: Note) -> None:
        self._root = root
        self._network = network
        self._config = config
        self._start_timeout_s = start_timeout_s
        self._note = note
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._watching: list[asyncio.Task[None]] = []

    async def start(
        self,
        name: str,
        *,
        model: str,
        prices: tuple[str, str] | None = None,
        join: Sequence[str] = (),
        workers: int = 1,
    ) -> Member:
        """Start a node in `root/name` and wait until it is usable; raises MemberFailed with the end of its log."""
        data_dir = self._root / name
        data_dir.mkdir(mode=0o700, exist_ok=True)
        ready = data_dir / _READY
        ready.unlink(missing_ok=True)
        config = data_dir / "devnet.toml"
        write_whole(config, (_CONFIG + self._config).encode())
        command = [
            sys.executable, "-m", "node.cli", "start", "--data-dir", data_dir, "--config", config,
            "--network", self._network, "--port", "0", "--listen", "/ip4/127.0.0.1/tcp/0", "--model", model,
            "--workers", workers, "--ready-file", ready, "--parent", os.getpid(),
        ]  # fmt: skip
        if prices is not None:
            command += ["--price-in", prices[0], "--price-out", prices[1]]
        for address in join:
            command += ["--join", address]
        with _open_log(data_dir / _LOG) as log:
            process = await asyncio.create_subprocess_exec(
                *map(str, command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=PACKAGES,  # where `-m node.cli` finds itself, installed or not
                start_new_session=True,  # Ctrl-C reaches us alone, and we end them in order
            )
        self._running[name] = process
        self._note(process.pid)
        facts = await self._ready(name, ready)
        return Member(
            name=name,
            peer_id=facts["peer_id"],
            multiaddrs=tuple(facts["multiaddrs"]),
            url=facts["url"],
            data_dir=data_dir,
            pid=process.pid,
            model=facts.get("model"),
        )

    async def _ready(self, name: str, ready: Path) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._start_timeout_s):
                while (facts := _read_json(ready)) is None:
                    self.check(name)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise self._failed(name, f"was not ready after {self._start_timeout_s:.0f} s") from None
        return facts

    def check(self, name: str | None = None) -> None:
        """Raises MemberFailed if this node, or any, has ended."""
        for known, process in self._running.items():
            if name in (None, known) and process.returncode is not None:
                raise self._failed(known, f"ended {_how(process.returncode)}")

    def started(self, tell: Tell) -> None:
        """From here on a node that ends is told about, and the others go on: killing one is what a devnet is for."""

        async def watch(name: str, process: asyncio.subprocess.Process) -> None:
            tell(f"{name} ended {_how(await process.wait())}; its log: {self._root / name / _LOG}")

        self._watching = [asyncio.create_task(watch(*item)) for item in self._running.items()]

    async def end(self) -> None:
        """The gateway first, so that it still settles with its providers; then those, together."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        client = self._running.pop("client", None)
        if client is not None:
            await _end(client)
        await asyncio.gather(*(_end(process) for process in self._running.values()))

    def _failed(self, name: str, what: str) -> MemberFailed:
        log = self._root / name / _LOG
        tail = "\n".join(f"  {line}" for line in _tail(log))
        return MemberFailed(f"{name} {what}. The end of its log:\n{tail}", next_step="All nodes were ended.")


@asynccontextmanager
async def open_crew(
    root: Path, *, network: str, config: str, note: Note, start_timeout_s: float
) -> AsyncIterator[Crew]:
    """Nodes in folders under `root` until the end of the block. `config` is TOML that all of them are told."""
    crew = Crew(root, network=network, config=config, start_timeout_s=start_timeout_s, note=note)
    try:
        yield crew
    finally:
        await asyncio.shield(crew.end())


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM and a little patience; then SIGKILL to the whole group, for an engine that outlived its node."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _open_log(path: Path) -> Any:
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")
    except OSError as error:
        raise NodeMisconfigured(f"{path} cannot be written ({error.strerror}).") from None


def _tail(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    except OSError:
        return ["(no log)"]


def _read_json(path: Path) -> dict[str, Any] | None:
    """What a node wrote about itself; None as long as it has not (the file appears whole)."""
    with contextlib.suppress(FileNotFoundError):
        facts: dict[str, Any] = json.loads(path.read_bytes())
        return facts
    return None


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
