"""Model files and machines that are no good: the engine says why, and who uses it stays up."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from gguf import GGUFReader

from inference.engines.batched import BatchedEngine
from inference.engines.llama_cpp import open_llama_engine
from inference.engines.onnx import open_onnx_engine
from inference.models.plain_encoder import load_plain_encoder
from inference.orders import WorkerSettings
from inference.supervisor import JobStream, Worker
from inference.work.meters import EmbedMeter
from market.errors import EngineFailed, ModelFileInvalid, NodeMisconfigured, OctoError
from tests.inference import onnx_kit
from tests.inference.engine_kit import SEEDED, answer, job, own_children, until
from tests.inference.models.model_kit import CHAT, gguf_bytes

pytestmark = pytest.mark.model

MIB = 1 << 20


@pytest.fixture(autouse=True)
def tidy(tmp_path):
    """Copies of models are large, and pytest keeps the folders of three runs."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


# ---- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({**CHAT, "general.architecture": "octopus"}, "unknown model architecture: 'octopus'"),
        ({"general.name": "nothing"}, "key not found in model: general.architecture|unknown model architecture"),
        (CHAT, "llama.feed_forward_length|missing tensor|key not found"),
        ({**CHAT, "llama.block_count": 2**31}, "cannot load|worker ended while loading"),
        ({**CHAT, "llama.attention.head_count": 0}, "cannot load|worker ended while loading"),
    ],
)
async def test_a_file_of_another_architecture_is_named_with_the_reason(tmp_path, fields, reason):
    path = tmp_path / "odd.gguf"
    path.write_bytes(gguf_bytes(fields))
    before = own_children()
    with pytest.raises(ModelFileInvalid, match=reason):
        async with open_llama_engine(path, workers=1, slots=1, context=256):
            pass
    assert own_children() == before


@pytest.fixture
def without_numbers(default_model, tmp_path) -> Path:
    """The default model with the weights of its last norm no numbers: every logit is NaN."""
    [norm] = [tensor for tensor in GGUFReader(default_model).tensors if tensor.name == "output_norm.weight"]
    path = tmp_path / "nan.gguf"
    shutil.copyfile(default_model, path)
    with path.open("r+b") as file:
        file.seek(norm.data_offset)
        file.write(b"\xff" * norm.n_bytes)
    return path


async def test_weights_that_are_no_numbers_cost_each_job_and_no_worker(without_numbers):
    schema = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'
    works = [
        job(20, 8),
        job(70, 8, sampling=SEEDED, salt=1),
        job(20, 8, salt=2, logprobs=5),
        job(20, 8, salt=3, sampling=SEEDED, scope="a"),
        job(20, 8, salt=4, grammar=schema),
    ]
    async with open_llama_engine(without_numbers, workers=1, slots=4, context=512) as engine:
        pids = engine.worker_pids
        async with asyncio.timeout(120):
            ends = await asyncio.gather(*(answer(engine, work) for work in works), return_exceptions=True)
        assert all(isinstance(end, EngineFailed) and "not numbers" in str(end) for end in ends), ends
        assert engine.worker_pids == pids and engine.load().running == engine.load().waiting == 0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "model.onnx"),
        (lambda data: data[:40], "model.onnx"),
        (lambda data: b"", "model.onnx"),
        (lambda data: b"\0" * len(data), "model.onnx"),
        (lambda data: data.replace(b"Gather", b"Octopu"), "model.onnx"),
        (lambda data: data[:30] + b"\xff" * 200 + data[230:], "no numbers"),  # in the weights
    ],
)
async def test_a_damaged_onnx_file_is_named_with_the_reason(tmp_path, damage, reason):
    files = {"model_onnx": damage(onnx_kit.embedder()), "tokenizer_json": onnx_kit.tokenizer_json()}
    folder = onnx_kit.write_model(tmp_path / "m", **files)
    meter = EmbedMeter(load_plain_encoder(folder / "tokenizer.json", limit=64))
    before = own_children()
    with pytest.raises(ModelFileInvalid, match=reason):
        async with open_onnx_engine(folder, kind="embed", models=["model.onnx"], meter=meter, context=64):
            pass
    assert own_children() == before


# ---- the machine ---------------------------------------------------------------------------------

_SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
limit = int(Path(sys.argv[1]).read_text())
if limit:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from inference.worker import main
sys.exit(main())
"""


@asynccontextmanager
async def open_short_engine(model: Path, limit: Path):
    """An engine with one worker, whose process may take as much memory as the file `limit` says; 0: any."""
    engine: list[BatchedEngine] = []

    def lost(stream: JobStream, error: OctoError) -> None:
        engine[0].lost(stream, error)

    worker = Worker(
        WorkerSettings(
            parent=os.getpid(),
            model=str(model),
            slots=8,
            context=2048,
            threads=1,
            window=64,
            memory_bytes=8 << 30,
            core=-1,
        ),
        hang_s=20.0,
        on_change=lambda: [each.dispatch() for each in engine],
        on_lost=lost,
        command=[sys.executable, "-c", _SHORT_OF_MEMORY, str(limit)],
    )
    life = asyncio.create_task(worker.run())
    try:
        await worker.started
        assert worker.facts is not None
        engine.append(BatchedEngine([worker], worker.facts, context=2048, slots=8))
        yield engine[0]
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)


@pytest.mark.parametrize("mib", [40, 80, 120, 200, 450])
async def test_memory_that_ends_while_loading_is_said_to_be_short(default_model, tmp_path, mib):
    """In Python, in the library, with the weights, with the contexts: nobody waits, nobody blames the file alone."""
    limit = tmp_path / "limit"
    limit.write_text(str(mib * MIB))
    before = own_children()
    with pytest.raises((NodeMisconfigured, ModelFileInvalid)) as caught:
        async with asyncio.timeout(120), open_short_engine(default_model, limit):
            pass
    assert "too little memory" in str(caught.value)
    if mib > 100:  # the library lives to say it
        assert isinstance(caught.value, NodeMisconfigured) and "fewer slots" in caught.value.next_step
    assert own_children() == before


async def test_a_worker_that_finds_no_memory_again_fails_its_jobs_until_there_is_some(default_model, tmp_path):
    limit = tmp_path / "limit"
    limit.write_text("0")
    async with open_short_engine(default_model, limit) as engine:
        whole = await answer(engine, job(20, 8))
        limit.write_text(str(120 * MIB))
        os.kill(engine.worker_pids[0], signal.SIGKILL)
        await until(lambda: not engine.worker_pids)
        with pytest.raises(EngineFailed, match="too little memory"):
            async with asyncio.timeout(60):
                await answer(engine, job(20, 8))
        limit.write_text("0")
        await until(lambda: engine.worker_pids)
        assert await answer(engine, job(20, 8)) == whole
