"""A folder of safetensors, added, served by vLLM and bought by another node, as a user does it: by command and client.

Everything runs twice: with a vLLM of a few lines, which shows the way there and back, and (heavy) with vLLM itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from devnets import ROOT, wait_until
from program import octo, running

from tests.inference.fake_vllm import write_environment
from tests.inference.vllm_kit import write_folder

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.timeout(900)]

REAL = ROOT / ".cache" / "vllm" / "bin" / "python"
WHEEL_MODEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


@dataclass
class Market:
    """`client` is the data folder of the node that buys, `sdk` talks to it; `provider` is the other's process."""

    folder: Path
    client: Path
    model: str
    provider: psutil.Process
    sdk: openai.OpenAI

    def ask(self, text: str = QUESTION, **more: object) -> openai.types.chat.ChatCompletion:
        messages = [{"role": "user", "content": text}]
        return self.sdk.chat.completions.create(
            **{"model": "Otter", "messages": messages, "max_tokens": 40, "temperature": 0, **more}
        )

    def get(self, path: str) -> bytes:
        url = f"{str(self.sdk.base_url).removesuffix('/v1/')}{path}"
        return httpx.get(url, headers={"Authorization": f"Bearer {self.sdk.api_key}"}).raise_for_status().content

    def servers(self) -> list[psutil.Process]:
        """vLLM's own processes below the provider, the first one first."""
        found = []
        for process in self.provider.children(recursive=True):
            try:
                if process.status() != psutil.STATUS_ZOMBIE and "vllm" in " ".join(process.cmdline()).lower():
                    found.append(process)
            except psutil.Error:
                continue
        return sorted(found, key=lambda process: process.create_time())


def add_model(folder: Path, *, layers: int | None = None) -> tuple[Path, str]:
    """A data folder with the default model's weights in safetensors, and the model's id."""
    if not WHEEL_MODEL.is_file():
        pytest.fail("the default model is missing: run make model", pytrace=False)
    write_folder(WHEEL_MODEL, folder / "files", layers=layers)
    told = octo(folder / "p", "models", "add", str(folder / "files"), "--name", "Otter", "--licence", "Apache-2.0")
    return folder / "p", told["model"]


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """With one layer: nothing that runs it here looks at the weights."""
    return add_model(tmp_path_factory.mktemp("otter"), layers=1)


@pytest.fixture(scope="module", params=["small", pytest.param("vllm", marks=pytest.mark.heavy)])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "small":
        return write_environment(tmp_path_factory.mktemp("environment") / "vllm")
    if not REAL.exists():
        pytest.fail("vLLM is missing: run make vllm-tools", pytrace=False)
    return REAL


@pytest.fixture(scope="module")
def market(python: Path, added: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    folder, model = add_model(tmp_path_factory.mktemp("whole")) if python == REAL else added
    place = tmp_path_factory.mktemp("client")
    settings = {"OCTO_VLLM__PYTHON": str(python), "OCTO_VLLM__MAX_MODEL_LEN": "1024"}
    with (
        running(folder, "--model", "Otter", settings=settings, start_s=300) as provider,
        running(place / "c", "--model", "none", "--join", provider["multiaddrs"][0]) as client,
        openai.OpenAI(base_url=f"{client['url']}/v1", api_key=client["api_key"], max_retries=0, timeout=120) as sdk,
    ):
        wait_until(lambda: any(known.id in ("Otter", model) for known in sdk.models.list()))
        process = psutil.Process(provider["pid"])
        found = Market(folder=folder, client=place / "c", model=model, provider=process, sdk=sdk)
        yield found
        left = found.servers()
        assert left
    assert not [server for server in left if server.is_running() and server.status() != psutil.STATUS_ZOMBIE]


def test_without_the_setting_the_error_says_which_one(added: tuple[Path, str]) -> None:
    folder, _ = added
    error = octo(folder, "start", "--model", "Otter", ok=False)["error"]
    assert "cannot run here" in error["message"] and "set vllm.python" in error["message"]
    fits = octo(folder, "models", "show", "Otter")["fits"]
    (here,) = [fit for fit in fits if (fit["engine"], fit["tier"]) == ("vllm", "here")]
    assert not here["ok"] and here["reason"].startswith("set vllm.python")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"OCTO_VLLM__PYTHON": "/no/such/python"}, "cannot be run"),
        ({"OCTO_VLLM__PYTHON": "/bin/false"}, "There is no vLLM under /bin/false"),
        ({"OCTO_VLLM__PYTHON": "/bin/false", "OCTO_VLLM__ARGUMENTS": "--trust-remote-code"}, "no argument that vLLM"),
        ({"OCTO_VLLM__PYTHON": "/bin/false", "OCTO_VLLM__RAY": "--head"}, "no address of a Ray cluster"),
    ],
)
def test_a_setting_that_does_not_hold_ends_the_start_with_its_reason(added, settings, words) -> None:
    error = octo(added[0], "start", "--model", "Otter", settings=settings, ok=False)["error"]
    assert words in error["message"] and error["next_step"]


def test_a_model_larger_than_this_machines_memory_is_served_over_ray_and_refused_without(added, tmp_path: Path) -> None:
    folder, python = tmp_path / "p", write_environment(tmp_path / "vllm", ray=True)
    shutil.copytree(added[0], folder, symlinks=True)
    settings = {"OCTO_VLLM__PYTHON": str(python), "OCTO_VLLM__MEMORY": "100 GiB", "OCTO_ENGINE__MEMORY": "3 GiB"}
    error = octo(folder, "start", "--model", "Otter", settings=settings, ok=False)["error"]
    assert "and models may have 3.2 GB here" in error["message"]
    with running(folder, "--model", "Otter", settings=settings | {"OCTO_VLLM__RAY": "auto"}, start_s=300):
        task = octo(folder, "run", QUESTION, "--model", "Otter", "--privacy", "public", "--max-tokens", "40")
        assert task["result"]["choices"][0]["message"]["content"] == ANSWER


def test_a_chat_is_bought_from_vllm_over_the_mesh_and_its_receipt_holds(market: Market, tmp_path: Path) -> None:
    answer = market.ask()
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    cid = answer.model_extra["octo"]["receipt"]
    receipt = octo(market.client, "receipts", "show", cid)
    assert '"openai_http/vllm/' in json.dumps(receipt)
    file = tmp_path / "receipt"
    file.write_bytes(market.get(f"/api/v1/receipts/{cid}"))
    words = ("--answer", ANSWER, "--model-dir", str(market.client), "--prompt-file", str(tmp_path / "prompt"))
    (tmp_path / "prompt").write_text(QUESTION)
    # The buyer has the tokenizer and no weights: enough to count, and to compare prompt and answer.
    assert not any("safetensors" in path.name for path in market.client.rglob("*"))
    verdicts = {f["what"]: f for f in octo(tmp_path, "receipts", "verify", str(file), *words)["findings"]}
    assert {verdicts[what]["verdict"] for what in ("signature", "transcript", "prompt")} == {"holds"}
    assert verdicts["weights"]["verdict"] == "unknown" and "tolerance" in verdicts["weights"]["detail"]


def test_counts_are_those_of_the_models_own_tokenizer(market: Market) -> None:
    usage = market.ask().usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (37, 7)


def test_the_command_line_shows_neither_key_nor_prompt(market: Market) -> None:
    said = " ".join(" ".join(server.cmdline()) for server in market.servers())
    assert QUESTION not in said and "trust" not in said
    first = market.servers()[0]
    assert first.environ()["VLLM_API_KEY"] not in said
    assert not [name for name in first.environ() if name.startswith("OCTO_")]


@pytest.mark.parametrize("victim", ["first", "largest"])
def test_killed_under_eight_streams_each_ends_with_an_error_and_it_serves_again(market: Market, victim: str) -> None:
    ends: list[str] = []
    begun = threading.Semaphore(0)

    def stream(number: int) -> None:
        try:
            answer = market.ask(f"Tell me a long story about the number {number}.", max_tokens=800, stream=True)
            for at, _ in enumerate(answer):
                if at == 1:
                    begun.release()
            ends.append("whole")
        except openai.APIError as error:
            ends.append(str(error))
        finally:
            begun.release()

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert begun.acquire(timeout=90)
    servers = market.servers()
    chosen = servers[0] if victim == "first" else max(servers, key=lambda server: server.memory_info().rss)
    os.kill(chosen.pid, signal.SIGKILL)
    for thread in threads:
        thread.join(60)
    assert len(ends) == 8, "a stream hangs"
    assert all(end and end != "whole" for end in ends), ends

    def serves() -> bool:
        try:
            return market.ask().choices[0].message.content == ANSWER
        except openai.APIError:
            return False

    wait_until(serves, 180, 1.0)
    assert chosen.pid not in [server.pid for server in market.servers()]
