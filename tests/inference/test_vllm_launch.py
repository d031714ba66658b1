"""How vLLM is found, set up, started and, if it does not come up, explained: without vLLM."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from inference.engines.vllm import Installed, check_memory, find_vllm, open_vllm_engine
from inference.engines.vllm_command import ARGUMENTS, VllmSetup, command_of, environment_of
from market.errors import EngineFailed, NodeMisconfigured
from tests.inference.fake_vllm import ANSWER, write_environment
from tests.inference.upstream_kit import job

CONFIG = {"vocab_size": 49152, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
CONFIG |= {"hidden_size": 576, "architectures": ["LlamaForCausalLM"]}
GIB = 1 << 30


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_environment(tmp_path_factory.mktemp("fake") / "vllm")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "model.safetensors").write_bytes(b"x" * 1000)
    return path


def command(setup: VllmSetup, device: str = "cpu") -> list[str]:
    return command_of(setup, python=Path("/e/bin/python"), folder=Path("/m"), socket=Path("/r/s"), device=device)


def environment(setup: VllmSetup) -> dict[str, str]:
    return environment_of(setup, python=Path("/e/bin/python"), run=Path("/r"), key="a secret")


def after(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


# ---- its command line and environment ------------------------------------------------------------


def test_the_key_is_in_the_environment_and_never_in_the_command_line() -> None:
    assert environment(VllmSetup())["VLLM_API_KEY"] == "a secret"
    assert "secret" not in " ".join(command(VllmSetup()))


def test_no_setting_makes_it_run_a_strangers_code() -> None:
    assert not any("remote" in word for word in command(VllmSetup(arguments=tuple(sorted(ARGUMENTS)))))
    for argument in ("--trust-remote-code", "--hf-overrides={}", "--worker-cls=x", "--logits-processors=x", "--port=1"):
        with pytest.raises(NodeMisconfigured, match="no argument"):
            VllmSetup(arguments=(argument,))


@pytest.mark.parametrize(
    "argument", ["", "-", "--", "x", "--block-size=", "--block-size=a b", "--block-size=/etc", "-tp"]
)
def test_an_argument_that_is_malformed_is_refused(argument: str) -> None:
    with pytest.raises(NodeMisconfigured):
        VllmSetup(arguments=(argument,))


def test_splitting_devices_and_ray_are_passed_on_and_make_a_class_of_their_own() -> None:
    setup = VllmSetup(tensor_parallel=4, pipeline_parallel=2, ray="10.0.0.1:6379", devices=("0", "3"))
    words = command(setup, "cuda")
    assert (after(words, "--tensor-parallel-size"), after(words, "--pipeline-parallel-size")) == ("4", "2")
    assert after(words, "--distributed-executor-backend") == "ray"
    around = environment(setup)
    assert (around["RAY_ADDRESS"], around["CUDA_VISIBLE_DEVICES"]) == ("10.0.0.1:6379", "0,3")
    assert "VLLM_HOST_IP" not in around
    assert setup.engine_class("0.32.0", "cuda") == "openai_http/vllm/0.32.0/cuda/bfloat16/tp4pp2"
    alone = VllmSetup()
    assert "--distributed-executor-backend" not in command(alone)
    assert environment(alone)["VLLM_HOST_IP"] == "127.0.0.1"
    assert alone.engine_class("0.32.0", "cpu") == "openai_http/vllm/0.32.0/cpu/bfloat16"


def test_memory_for_keys_and_values_is_told_in_the_way_of_the_device() -> None:
    setup = VllmSetup(kv_cache_bytes=3 * GIB)
    assert environment(setup)["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert "--kv-cache-memory-bytes" not in command(setup, "cpu")
    assert after(command(setup, "cuda"), "--kv-cache-memory-bytes") == str(3 * GIB)
    assert "--kv-cache-memory-bytes" not in command(VllmSetup(), "cuda")
    assert "--enforce-eager" in command(VllmSetup(), "cpu") and "--enforce-eager" not in command(VllmSetup(), "cuda")


@pytest.mark.parametrize(
    "more",
    [
        {"slots": 0},
        {"context": -1},
        {"dtype": "int3"},
        {"tensor_parallel": 0},
        {"pipeline_parallel": 5000},
        {"ray": "somewhere else"},
        {"ray": "--head"},
        {"devices": ("0,1",)},
        {"devices": ("all",)},
    ],
)
def test_what_cannot_be_meant_is_refused(more: dict) -> None:
    with pytest.raises(NodeMisconfigured):
        VllmSetup(**more)


# ---- where it is ---------------------------------------------------------------------------------


async def test_vllm_is_found_with_its_version_its_device_and_the_folders_it_needs(python: Path, tmp_path: Path) -> None:
    found = await find_vllm(python)
    assert found == Installed(version="0.32.0", device="cpu", homes=found.homes)
    assert python.parent.parent in found.homes
    cards = await find_vllm(write_environment(tmp_path / "cards", name="vllm", version="0.33.1rc2"))
    assert (cards.version, cards.device) == ("0.33.1rc2", "cuda")


async def test_one_that_is_too_old_is_refused_with_what_to_do(tmp_path: Path) -> None:
    for number, version in enumerate(("0.11.2", "0.9.1", "0.1.dev7")):
        with pytest.raises(NodeMisconfigured, match=f"{version}, which is too old.*Install 0.12 or newer"):
            await find_vllm(write_environment(tmp_path / str(number), version=version))


async def test_without_vllm_the_error_says_where_to_get_it(folder: Path, tmp_path: Path) -> None:
    other = write_environment(tmp_path / "other", name="something-else")
    for at, words in (
        (Path("/no/such/python"), "cannot be run"),
        (tmp_path, "cannot be run"),
        (Path("/bin/false"), "There is no vLLM under"),
        (Path("/bin/echo"), "There is no vLLM under"),
        (other, "There is no vLLM under"),
    ):
        with pytest.raises(NodeMisconfigured, match=f"{words}.*make vllm-tools"):
            async with open_vllm_engine(folder, log=tmp_path / "log", python=at):
                pass


async def test_ray_is_asked_for_before_anything_is_started(python: Path, tmp_path: Path) -> None:
    with pytest.raises(NodeMisconfigured, match="There is no Ray"):
        await find_vllm(python, ray=True)
    await find_vllm(write_environment(tmp_path / "ray", ray=True), ray=True)


# ---- memory --------------------------------------------------------------------------------------


def test_too_little_memory_is_told_before_anything_is_started() -> None:
    def check(free: int, **more: object) -> None:
        check_memory(VllmSetup(**more), weights_bytes=GIB, config=CONFIG, free_bytes=free)

    check(5 * GIB)
    with pytest.raises(NodeMisconfigured, match=r"1\.1 GB of weights.*2\.1 GB is free.*Lower vllm\.memory"):
        check(2 * GIB)
    with pytest.raises(NodeMisconfigured, match="is free"):
        check(5 * GIB, tensor_parallel=2)
    # 46,080 bytes a token: 30 layers, 3 heads of 64, keys and values of 2 bytes.
    with pytest.raises(NodeMisconfigured, match=r"100000 tokens take 2\.3 GB.*vllm\.max_model_len"):
        check(50 * GIB, context=100_000)
    check(50 * GIB, context=100_000, kv_cache_bytes=3 * GIB)
    with pytest.raises(NodeMisconfigured, match=r"take 4\.6 GB"):
        check(50 * GIB, context=100_000, kv_cache_bytes=3 * GIB, dtype="float32")


def test_over_ray_this_machines_memory_is_no_bound_and_one_job_must_still_fit() -> None:
    setup = VllmSetup(ray="auto", pipeline_parallel=4)
    check_memory(setup, weights_bytes=900 * GIB, config=CONFIG, free_bytes=2 * GIB)
    with pytest.raises(NodeMisconfigured, match=r"vllm\.max_model_len"):
        check_memory(replace(setup, context=1_000_000), weights_bytes=GIB, config=CONFIG, free_bytes=2 * GIB)


# ---- its life ------------------------------------------------------------------------------------


async def test_it_is_started_with_what_it_needs_and_leaves_nothing_behind(python: Path, folder: Path) -> None:
    log = folder.parent / "log"
    setup = VllmSetup(slots=3, context=256, arguments=("--block-size=16",))
    async with open_vllm_engine(folder, log=log, python=python, setup=setup) as engine:
        assert (engine.info.name, engine.info.slots) == ("openai_http/vllm/0.32.0/cpu/bfloat16", 3)
        items = [i async for i in engine.generate(job(20, prompt=(1, 5, 9), end_tokens=frozenset((2,))))]
        assert tuple(t for i in items for t in i.tokens) == ANSWER and items[-1].finish == "stop"
        words, names = _said(log)
        assert after(words, "--max-num-seqs") == "3" and "--block-size=16" in words
        assert not {"USER", "SHELL", "PYTHONPATH"} & set(names) and "VLLM_API_KEY" in names
        below = [child.pid for child in psutil.Process().children(recursive=True) if _is_ours(child, python)]
        assert below and set(engine.worker_pids) <= set(below) and len(engine.worker_pids) == 1
    assert not [pid for pid in below if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]


async def test_one_that_is_killed_fails_its_streams_and_is_started_again(python: Path, folder: Path) -> None:
    async with open_vllm_engine(folder, log=folder.parent / "log", python=python) as engine:
        streams = [engine.generate(job(400, prompt=(1, 5, 9))) for _ in range(8)]
        for stream in streams:
            await anext(stream)
        await engine.check()
        (first,) = engine.worker_pids
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(60):
            for stream in streams:
                with pytest.raises(EngineFailed):
                    async for _ in stream:
                        pass
        async with asyncio.timeout(60):
            while not engine.down:  # it says so itself as soon as it knows
                await asyncio.sleep(0.01)
            with pytest.raises(EngineFailed, match="being started again"):
                await engine.check()
            while True:
                try:
                    items = [i async for i in engine.generate(job(5, prompt=(1, 5, 9)))]
                    break
                except EngineFailed:
                    await asyncio.sleep(0.1)
        assert items[-1].finish == "length" and not engine.down


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        ({"context": 777}, r"vLLM did not start: ValueError: 777 tokens need.*Raise vllm\.memory, or lower"),
        ({"slots": 66}, r"ModuleNotFoundError: No module named 'no_such_module'.*install vLLM there anew"),
        ({"arguments": ("--cpu-offload-gb=1",)}, r"exit status 2.*Its own words are in"),
    ],
)
async def test_a_start_that_fails_says_the_servers_own_reason(python: Path, folder: Path, setup, words) -> None:
    log = folder.parent / "log"
    log.write_text("ValueError: what an earlier start said\n")
    with pytest.raises(EngineFailed, match=f"(?s){words}") as refused:
        async with open_vllm_engine(folder, log=log, python=python, setup=VllmSetup(**setup)):
            pass
    assert "earlier" not in str(refused.value) and str(log) in str(refused.value)


def _said(log: Path) -> tuple[list[str], list[str]]:
    """argv and the names in the environment."""
    decoder = json.JSONDecoder()
    line = log.read_text().splitlines()[0].removeprefix("started ")
    words, at = decoder.raw_decode(line)
    return words, json.loads(line[at:])


def _is_ours(process: psutil.Process, python: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and str(python.parent) in " ".join(process.cmdline())
    except psutil.Error:
        return False
