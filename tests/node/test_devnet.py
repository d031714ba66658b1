"""`octo-node devnet`, `start` and `demo` as the processes that they are: what comes up, and that it all goes away."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from contracts.anvil import find_anvil
from node.devnet import _who_offers

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240  # two busy cores, several nodes


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "node.cli", *map(str, arguments)]


@contextmanager
def running(folder: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A command with its temporary folders under `folder`; killed if the test did not end it."""
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            command(*arguments), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, "TMPDIR": str(folder)},
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def wait_for(ready: Path, process: subprocess.Popen[str]) -> dict:
    eventually(lambda: ready.exists() or process.poll() is not None)
    assert ready.exists(), (ready.parent / "output").read_text()
    return json.loads(ready.read_text())


def eventually(condition: Callable[[], object], within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """All processes below it, engines and janitor too."""
    return psutil.Process(process.pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def chain_in(processes: list[psutil.Process]) -> psutil.Process:
    return next(p for p in processes if "contracts.devchain" in p.cmdline())


def temporary_folders(folder: Path) -> list[Path]:
    return list(folder.glob("octo-devnet-*"))


def test_a_devnet_comes_up_answers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    with running(
        tmp_path, "devnet", "--providers", 2, "--prices", "0.1:0.3,0.08:0.24", "--ready-file", ready
    ) as devnet:
        facts = wait_for(ready, devnet)
        assert stat.S_IMODE(ready.stat().st_mode) == 0o600  # it holds the API key
        members = [*facts["providers"], facts["client"]]
        assert len({member["pid"] for member in members}) == 3
        for member in members:
            assert set(member) == {"peer_id", "multiaddrs", "url", "data_dir", "pid"}
            assert Path(member["data_dir"]).is_relative_to(temporary_folders(tmp_path)[0])
        assert facts["rpc"].startswith("http://127.0.0.1:")
        assert facts["chain_id"] == 31337
        assert set(facts["contracts"]) == {"Octo", "OctoA", "StakeRegistry", "PaymentChannels"}

        client = openai.OpenAI(base_url=facts["gateway"] + "/v1", api_key=facts["api_key"], max_retries=0)
        answer = client.chat.completions.create(
            model=facts["model"], messages=[{"role": "user", "content": "Say hello."}], max_tokens=8
        )
        first, second = facts["providers"]
        assert answer.model_extra is not None
        assert answer.model_extra["octo"]["provider"] == second["peer_id"]  # the cheaper one

        log = Path(second["data_dir"], "node.log").read_text()
        assert "event=blocks_verified" in log
        assert "wheel_unpacked" not in log
        assert "default_model_published" in Path(first["data_dir"], "node.log").read_text()
        assert facts["api_key"] not in log + Path(facts["client"]["data_dir"], "node.log").read_text()

        processes = family(devnet)
        assert chain_in(processes).is_running()
        devnet.send_signal(signal.SIGINT)
        assert devnet.wait(PATIENCE_S) == 0
    assert alive(processes) == []
    with pytest.raises(httpx.ConnectError):
        httpx.post(facts["rpc"])
    assert temporary_folders(tmp_path) == []
    assert not ready.exists()


def test_a_devnet_waits_until_the_stake_behind_an_offer_was_seen() -> None:
    staked, unseen = ({"peer": name, "models": [{"model": "m"}], "unvetted": why} for name, why in
                      (("12D3a", None), ("12D3b", "its stake is being looked up")))  # fmt: skip
    assert _who_offers({"offers": [staked, unseen]}, "m") == {"12D3a"}


def test_a_devnet_that_is_killed_leaves_nothing_behind_either(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    with running(tmp_path, "devnet", "--providers", 1, "--ready-file", ready) as devnet:
        wait_for(ready, devnet)
        processes = family(devnet)
        assert len(processes) >= 5  # chain, provider, its engine, gateway, janitor
        assert chain_in(processes).is_running()
        devnet.kill()
        devnet.wait()
        eventually(lambda: not alive(processes) and not temporary_folders(tmp_path))


def test_a_devnet_that_is_killed_while_its_chain_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    with running(tmp_path, "devnet", "--providers", 1) as devnet:
        eventually(lambda: list(tmp_path.glob("octo-devnet-*/chain/chain.db")))
        processes = family(devnet)
        assert chain_in(processes).is_running()
        devnet.kill()
        devnet.wait()
        eventually(lambda: not alive(processes) and not temporary_folders(tmp_path))


def test_a_kept_devnet_goes_on_with_its_chain_and_its_money(tmp_path: Path) -> None:
    """The second run pays from the channel that the first one opened: its contracts, keys and books are the same."""
    ready = tmp_path / "ready.json"
    contracts, books = [], []
    for _ in range(2):
        kept = ("--data-dir", tmp_path / "kept", "--ready-file", ready)
        with running(tmp_path, "devnet", "--providers", 1, *kept) as devnet:
            facts = wait_for(ready, devnet)
            contracts.append(facts["contracts"])
            client = openai.OpenAI(base_url=facts["gateway"] + "/v1", api_key=facts["api_key"], max_retries=0)
            client.chat.completions.create(
                model="default", messages=[{"role": "user", "content": "Say hello."}], max_tokens=4
            )
            key = {"Authorization": f"Bearer {facts['api_key']}"}
            books.append(httpx.get(facts["gateway"] + "/api/v1/wallet", headers=key, timeout=60).json())
            devnet.send_signal(signal.SIGINT)
            assert devnet.wait(PATIENCE_S) == 0
    assert contracts[0] == contracts[1]
    (first,), (second,) = (book["channels"] for book in books)
    assert first["id"] == second["id"]
    assert 0 < first["paid"] < second["paid"]


def test_a_provider_that_fails_at_start_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    with running(tmp_path, "devnet", "--providers", 2, "--model", "nonsense", "--chain", "none") as devnet:
        assert devnet.wait(PATIENCE_S) == 1
    told = (tmp_path / "output").read_text()
    assert "provider-1 ended with exit code 1" in told
    assert "no model 'nonsense' is known" in told
    assert "Traceback" not in told
    assert temporary_folders(tmp_path) == []


def test_a_start_that_is_interrupted_leaves_nothing_behind(tmp_path: Path) -> None:
    with running(tmp_path, "devnet", "--providers", 1) as devnet:
        eventually(lambda: len(family(devnet)) >= 3)  # janitor, chain and first provider
        processes = family(devnet)
        devnet.send_signal(signal.SIGINT)
        assert devnet.wait(PATIENCE_S) == 130
        assert alive(processes) == []
    assert temporary_folders(tmp_path) == []


def demo(folder: Path, chain: str) -> dict:
    done = subprocess.run(
        command("demo", "--chain", chain, "--json"), cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=PATIENCE_S, env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "api_key" not in done.stdout
    assert temporary_folders(folder) == []
    facts = json.loads(done.stdout)
    assert facts["ok"]
    before, after = facts["balances"]["before"], facts["balances"]["after"]
    spent = after["client"]["spent"] - before["client"]["spent"]
    earned = sum(after[name]["earned"] - before[name]["earned"] for name in ("provider-1", "provider-2"))
    assert spent == earned == sum(turn["amount"] for turn in facts["turns"]) > 0
    return facts


def test_the_demo_adds_up_on_the_local_ledger(tmp_path: Path) -> None:
    facts = demo(tmp_path, "none")
    assert facts["devnet"]["rpc"] is facts["devnet"]["contracts"] is None
    assert "chain" not in facts


NO_ANVIL = pytest.mark.skipif(find_anvil() is None, reason="contracts/node_modules has no anvil (make chain-tools)")


@pytest.mark.parametrize("kind", ["embedded", pytest.param("anvil", marks=NO_ANVIL)])
def test_the_demo_adds_up_on_chain(kind: str, tmp_path: Path) -> None:
    """The cheaper provider serves, and where it was too slow the other one: each is paid for its own turns."""
    facts = demo(tmp_path, kind)
    on_chain, billed = facts["chain"], dict.fromkeys(("provider-1", "provider-2"), 0)
    names = {provider["peer_id"]: name for name, provider in zip(billed, facts["devnet"]["providers"], strict=True)}
    for turn in facts["turns"]:
        billed[names[turn["provider"]]] += turn["amount"]
    change = {name: on_chain["after"][name] - was for name, was in on_chain["before"].items()}
    deposits = 5 * 10**18 * sum(amount > 0 for amount in billed.values())
    assert change == {"client": -deposits, **billed, "escrow": deposits - sum(billed.values())}
    totals = {}
    for move in on_chain["transactions"]:
        assert move["event"] == ("Redeemed" if move["channel"] in totals else "Opened")
        totals[move["channel"]] = move["total"]
    assert sorted(totals.values()) == sorted(filter(None, billed.values()))
    assert all(stake["active"] and stake["bonded"] == 1_000 * 10**18 for stake in on_chain["stakes"].values())


def test_a_node_starts_tells_and_ends_on_sigterm(tmp_path: Path) -> None:
    ready, folder = tmp_path / "ready.json", tmp_path / "node"
    options = ("--data-dir", folder, "--model", "none", "--port", 0, "--listen", "/ip4/127.0.0.1/tcp/0")
    with running(tmp_path, "start", *options, "--ready-file", ready) as node:
        facts = wait_for(ready, node)
        assert (facts["pid"], facts["data_dir"], facts["model"]) == (node.pid, str(folder), None)
        assert facts["api_key"] not in (tmp_path / "output").read_text()
        assert f"octo-node start --join {facts['multiaddrs'][0]}" in (tmp_path / "output").read_text()

        status = subprocess.run(
            command("status", "--json", "--data-dir", folder), cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert json.loads(status.stdout)["peer"] == facts["peer_id"]

        second = subprocess.run(
            command("start", *options), cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        assert second.returncode == 1
        assert f"is held by process {node.pid}" in second.stderr
        assert "Traceback" not in second.stderr

        node.send_signal(signal.SIGTERM)
        assert node.wait(PATIENCE_S) == 0
    assert not ready.exists()
    assert not (folder / "running.json").exists()


def test_the_first_start_shows_the_api_key_once(tmp_path: Path) -> None:
    options = ("--data-dir", tmp_path / "node", "--model", "none", "--port", 0, "--listen", "/ip4/127.0.0.1/tcp/0")
    shown = []
    for _ in range(2):
        with running(tmp_path, "start", *options) as node:
            eventually(lambda: "octo-node start --join" in (tmp_path / "output").read_text())
            shown.append("API key" in (tmp_path / "output").read_text())
            node.send_signal(signal.SIGINT)
            assert node.wait(PATIENCE_S) == 0
    assert shown == [True, False]
