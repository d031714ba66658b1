"""Whole devnets as separate processes, for tests that talk to them, and kill them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai

ROOT = Path(__file__).resolve().parents[2]
START_S = 200


class Devnet:
    def __init__(self, process: subprocess.Popen, ready: dict, log: Path) -> None:
        self.process = process
        self.ready = ready
        self.gateway: str = ready["gateway"]
        self.api_key: str = ready["api_key"]
        self.providers: list[dict] = ready["providers"]
        self.log = log

    def openai(self, **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.gateway}/v1", api_key=self.api_key, max_retries=0, timeout=120, **options)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.gateway + path, headers={"Authorization": f"Bearer {self.api_key}"}, timeout=120)

    def settle(self, member: dict) -> dict:
        """Have a node redeem its vouchers, as its owner: with the token in its folder."""
        note = json.loads(Path(member["data_dir"], "running.json").read_text())
        token = Path(note["token_file"]).read_text().strip()
        answer = httpx.post(
            member["url"] + "/api/v1/settle", json={}, headers={"Authorization": f"Bearer {token}"}, timeout=120
        )
        return answer.raise_for_status().json()

    def provider(self, peer: str) -> dict:
        return next(p for p in self.providers if p["peer_id"] == peer)

    def provider_log(self, peer: str) -> str:
        folder = Path(self.provider(peer)["data_dir"])
        return "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))


@contextmanager
def open_devnet(
    folder: Path, *, providers: int = 2, chain: str = "none", extra: tuple[str, ...] = ()
) -> Iterator[Devnet]:
    ready, log = folder / "ready.json", folder / "devnet.log"
    command = [sys.executable, "-m", "node.cli", "devnet", "--providers", str(providers), "--ready-file", str(ready)]
    command += ["--data-dir", str(folder / "devnet"), "--chain", chain, *extra]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            deadline = time.monotonic() + START_S
            while not ready.exists():
                assert process.poll() is None, f"the devnet ended at start:\n{log.read_text()[-3000:]}"
                assert time.monotonic() < deadline, (
                    f"the devnet is not ready after {START_S} s:\n{log.read_text()[-3000:]}"
                )
                time.sleep(0.1)
            yield Devnet(process, json.loads(ready.read_text()), log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def wait_until(condition, timeout_s: float = 60.0, every_s: float = 0.05):
    """The condition's first truthy result; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"not so within {timeout_s} s"
        time.sleep(every_s)
