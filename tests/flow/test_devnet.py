"""A small real market: separate processes, real libp2p, the real model, the official client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import httpx
import openai
import pytest
from devnets import ROOT, Devnet, open_devnet, wait_until

from contracts.deployments import read_deployment
from node.devnet_chain import DevnetChain
from node.onlooker import ESCROW, Onlooker

pytestmark = pytest.mark.processes

MODEL = "default"
HELLO = [{"role": "user", "content": "Say hello in one short sentence."}]
STORY = [{"role": "user", "content": "Write a long story about a ship, a cat and a lighthouse."}]


@pytest.fixture(scope="module")
def devnet(tmp_path_factory):
    with open_devnet(tmp_path_factory.mktemp("devnet"), chain="embedded") as running:
        yield running


def wallet(url: str, data_dir: str) -> dict:
    """A node's own view of its money, asked as its CLI would."""
    out = subprocess.run(
        [sys.executable, "-m", "node.cli", "wallet", "--json", "--data-dir", data_dir],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(out.stdout)


def test_the_ready_file_names_everyone(devnet: Devnet):
    assert len(devnet.providers) == 2
    for member in (*devnet.providers, devnet.ready["client"]):
        assert member["peer_id"].startswith("12D3KooW")
        assert member["multiaddrs"][0].startswith("/ip4/127.0.0.1/tcp/")
        assert member["url"].startswith("http://127.0.0.1:")
        os.kill(member["pid"], 0)


def test_the_official_client_gets_an_answer_with_its_receipt(devnet: Devnet):
    raw = devnet.openai().chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, max_tokens=24, temperature=0
    )
    answer = raw.parse()
    octo = answer.model_extra["octo"]
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 24
    assert raw.headers["x-octo-receipt"] == octo["receipt"]
    assert octo["provider"] in {p["peer_id"] for p in devnet.providers}


def test_a_stream_carries_usage_and_the_receipt_in_its_last_chunks(devnet: Devnet):
    stream = devnet.openai().chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=24, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text
    assert chunks[-1].usage.completion_tokens > 0
    receipts = [c.model_extra["octo"]["receipt"] for c in chunks if c.model_extra and c.model_extra.get("octo")]
    assert receipts


def test_the_same_seed_gives_the_same_answer_from_either_provider(devnet: Devnet):
    def ask() -> tuple[str, str]:
        answer = devnet.openai().chat.completions.create(
            model=MODEL, messages=STORY, max_tokens=40, temperature=0.9, seed=7
        )
        return answer.choices[0].message.content, answer.model_extra["octo"]["provider"]

    assert len({text for text, _ in (ask() for _ in range(3))}) == 1


def test_the_second_provider_pulled_the_model_by_cid_and_its_log_shows_the_blocks(devnet: Devnet):
    log = devnet.provider_log(devnet.providers[1]["peer_id"])
    assert "blocks_verified" in log


def test_a_receipt_verifies_in_another_folder_without_network(devnet: Devnet, tmp_path):
    answer = devnet.openai().chat.completions.create(model=MODEL, messages=HELLO, max_tokens=24, temperature=0)
    cid = answer.model_extra["octo"]["receipt"]
    file = tmp_path / "receipt.cbor"
    file.write_bytes(devnet.get(f"/api/v1/receipts/{cid}").raise_for_status().content)
    text = answer.choices[0].message.content

    def verify(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "node.cli", "receipts", "verify", *arguments]
        if os.geteuid() == 0:  # a network namespace of its own has nothing but an idle loopback
            command = ["unshare", "--net", *command]
        environment = {**os.environ, "OCTO_DATA_DIR": str(tmp_path / "elsewhere")}
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment, check=False
        )

    good = verify(str(file), "--answer", text)
    assert good.returncode == 0, good.stdout + good.stderr
    assert cid in good.stdout
    altered = verify(str(file), "--answer", text + "!")
    assert altered.returncode == 4
    broken = bytearray(file.read_bytes())
    broken[len(broken) // 2] ^= 1
    file.write_bytes(bytes(broken))
    assert verify(str(file)).returncode != 0


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "gpt-9"}, 404, "model_not_found"),
        ({"temperature": -1}, 400, None),
        ({"temperature": 1e9}, 400, None),
        ({"max_tokens": -5}, 400, None),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, 400, "context_length_exceeded"),
    ],
)
def test_bad_requests_get_a_clear_error_in_openai_shape(devnet: Devnet, change, status, code):
    with pytest.raises(openai.APIStatusError) as raised:
        devnet.openai().chat.completions.create(**{"model": MODEL, "messages": HELLO, **change})
    assert raised.value.status_code == status
    if code:
        assert raised.value.code == code


def test_an_unknown_model_is_answered_with_what_is_on_offer(devnet: Devnet):
    with pytest.raises(openai.NotFoundError, match="SmolLM2"):
        devnet.openai().chat.completions.create(model="gpt-9", messages=HELLO)


def test_without_the_key_nothing_is_answered(devnet: Devnet):
    for path in ("/v1/models", "/api/v1/status", "/api/v1/wallet"):
        assert httpx.get(devnet.gateway + path, timeout=60).status_code == 401
    assert httpx.get(devnet.gateway + "/healthz", timeout=60).status_code == 200


def test_a_foreign_host_or_origin_is_turned_away(devnet: Devnet):
    key = {"Authorization": f"Bearer {devnet.api_key}"}
    for foreign in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert httpx.get(devnet.gateway + "/v1/models", headers=key | foreign, timeout=60).status_code == 403


def test_a_client_that_hangs_up_stops_the_provider_and_both_settle(devnet: Devnet):
    served = "finish=cancelled"
    before = sum(devnet.provider_log(p["peer_id"]).count(served) for p in devnet.providers)
    stream = devnet.openai().chat.completions.create(model=MODEL, messages=STORY, max_tokens=900, stream=True)
    for count, _ in enumerate(stream):
        if count == 5:
            break
    stream.close()
    wait_until(lambda: sum(devnet.provider_log(p["peer_id"]).count(served) for p in devnet.providers) > before)


def test_many_clients_at_once_are_all_answered(devnet: Devnet):
    from concurrent.futures import ThreadPoolExecutor

    def ask(number: int) -> str:
        question = [{"role": "user", "content": f"Count from {number} upwards."}]
        answer = devnet.openai().chat.completions.create(model=MODEL, messages=question, max_tokens=16)
        return answer.choices[0].message.content

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(24)))


def test_what_the_client_spent_is_what_the_providers_earned(devnet: Devnet):
    def books() -> tuple[dict, list[dict]] | None:
        client = wallet(devnet.gateway, devnet.ready["client"]["data_dir"])
        providers = [wallet(p["url"], p["data_dir"]) for p in devnet.providers]
        earned = sum(int(provider["balances"]["earned"]) for provider in providers)
        return (client, providers) if 0 < int(client["balances"]["spent"]) == earned else None

    client, providers = wait_until(books, every_s=0.5)
    for provider in devnet.providers:
        devnet.settle(provider)
    # And so the chain says, asked by somebody who is none of them.
    chain = DevnetChain(
        kind="embedded",
        url=devnet.ready["rpc"],
        deployment=read_deployment(devnet.log.parent / "devnet" / "chain" / "deployment.json"),
        deployment_file="",
    )
    assert devnet.ready["contracts"] == chain.facts()["contracts"]
    wallets = {account["wallet"]: bytes.fromhex(account["wallet"][2:]) for account in (client, *providers)}
    onlooker = Onlooker(chain)
    has = onlooker.balances(wallets)
    channels = onlooker.channels([bytes.fromhex(channel["id"]) for channel in client["channels"]])
    deposited = sum(channel.deposit for channel in channels.values())
    drawn, spent = 1_000 * 10**18, int(client["balances"]["spent"])  # what the faucet gave each of them
    assert sum(channel.redeemed for channel in channels.values()) == spent
    assert has[client["wallet"]] == drawn - deposited
    assert has[ESCROW] == deposited - spent
    for provider in providers:
        assert has[provider["wallet"]] == drawn + int(provider["balances"]["earned"])


def test_a_provider_killed_mid_stream_is_a_clean_error_and_the_next_task_goes_elsewhere(tmp_path):
    with open_devnet(tmp_path) as devnet:
        stream = devnet.openai().chat.completions.create(model=MODEL, messages=STORY, max_tokens=900, stream=True)
        seen = 0
        with pytest.raises(openai.APIError) as raised:
            for _ in stream:
                seen += 1
                if seen == 8:
                    by_log = [p for p in devnet.providers if "task_accepted" in devnet.provider_log(p["peer_id"])]
                    os.kill(by_log[0]["pid"], signal.SIGKILL)
        assert "in the middle of the answer" in str(raised.value)
        dead = by_log[0]["peer_id"]
        answer = devnet.openai().chat.completions.create(model=MODEL, messages=HELLO, max_tokens=16)
        assert answer.model_extra["octo"]["provider"] != dead
        receipts = devnet.get("/api/v1/receipts").json()
        assert receipts


def test_a_gateway_killed_mid_stream_leaves_the_provider_serving_others(tmp_path):
    with open_devnet(tmp_path, providers=1) as devnet:
        stream = devnet.openai().chat.completions.create(model=MODEL, messages=STORY, max_tokens=900, stream=True)
        next(iter(stream))
        os.kill(devnet.ready["client"]["pid"], signal.SIGKILL)
        peer = devnet.providers[0]["peer_id"]
        wait_until(lambda: "client_gone" in devnet.provider_log(peer))
        own = json.loads((tmp_path / "ready.json").read_text())["providers"][0]
        health = httpx.get(own["url"] + "/healthz", timeout=60).json()
        assert health["ready"] is True


def test_ctrl_c_ends_every_process_and_leaves_nothing_behind(tmp_path):
    with open_devnet(tmp_path, providers=1) as devnet:
        pids = [devnet.ready["client"]["pid"], *(p["pid"] for p in devnet.providers)]
        devnet.process.send_signal(signal.SIGINT)
        assert devnet.process.wait(60) == 0
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
