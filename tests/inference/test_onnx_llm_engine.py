"""The engine of decoders in ONNX, whole: real processes, hostile files, sudden deaths, and real weights."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from inference.engines.onnx_llm import open_onnx_llm_engine
from inference.isolation import landlock_abi
from inference.onnx_llm import OnnxContext
from market.errors import ModelFileInvalid, NodeMisconfigured, PromptTooLong, RequestInvalid
from market.ports import Job
from market.testing_engine import check_engine
from tests.inference.decoder_kit import Export, Shape, decoder, random_weights, write_gguf_export
from tests.inference.engine_kit import GREEDY, SEEDED, answer, job, plain_logits, prompt_of, until
from tests.inference.models.model_kit import onnx_bytes

SHAPE = Shape(vocabulary=300)
BESIDE = Export(external="model.onnx_data")


def write(folder: Path, export: Export = BESIDE) -> Path:
    folder.mkdir(exist_ok=True)
    graph, data = decoder(SHAPE, random_weights(SHAPE), export)
    (folder / "model.onnx").write_bytes(graph)
    if export.external == BESIDE.external:
        (folder / export.external).write_bytes(data)
    return folder / "model.onnx"


def small(length: int, tokens: int, **more: object) -> Job:
    made = job(length, tokens, **more)  # type: ignore[arg-type]
    return replace(made, prompt=tuple(token % SHAPE.vocabulary for token in made.prompt))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
async def engine(model: Path):
    async with open_onnx_llm_engine(model, workers=1, slots=4, context=512, precision="F32") as opened:
        yield opened


async def test_it_passes_the_kit_that_every_engine_passes(engine) -> None:
    await check_engine(engine, small(12, 1).prompt)


async def test_it_says_what_it_is(engine) -> None:
    library, version, place, precision = engine.info.name.split("/")
    assert (library, precision) == ("onnxruntime", "f32")
    assert version[0].isdigit()
    assert place.startswith("cpu-")
    assert engine.info.features == {"prefix", "logprobs", "bias", "preempt"}
    assert engine.isolation == ("landlock+rlimits" if landlock_abi() else "rlimits")
    assert (engine.vocabulary, engine.info.context, engine.info.slots) == (SHAPE.vocabulary, 512, 4)


async def test_what_it_cannot_do_is_refused(engine) -> None:
    for bad, kind, why in (
        (small(512, 1), PromptTooLong, "512 is the context"),
        (replace(small(3, 1), prompt=(1, 300)), RequestInvalid, "does not have"),
        (small(3, 1, grammar='root ::= "a"'), RequestInvalid, "no grammars"),
    ):
        with pytest.raises(kind, match=why):
            await answer(engine, bad)


async def test_jobs_draw_the_same_tokens_alone_together_and_preempted(engine) -> None:
    works = [small(length, 150, sampling=SEEDED, salt=length) for length in (3, 64, 65, 200)]
    alone = [await answer(engine, work) for work in works]
    assert await asyncio.gather(*(answer(engine, work) for work in works)) == alone
    async with AsyncExitStack() as stack:
        jobs = [engine.generate(replace(work, priority=2)) for work in works]
        streams = [await stack.enter_async_context(aclosing(job)) for job in jobs]
        told = [list((await anext(stream)).tokens) for stream in streams]
        assert engine.load().running == 4, "each has more to say than its reader has room for"
        assert await asyncio.gather(*(answer(engine, work) for work in works)) == alone
        for tokens, stream in zip(told, streams, strict=True):
            tokens += [token async for item in stream for token in item.tokens]
    assert told == alone


async def test_a_killed_worker_loses_no_job(model: Path) -> None:
    async with open_onnx_llm_engine(model, workers=2, slots=4, context=512) as engine:
        works = [small(20 + at, 200, sampling=SEEDED, salt=at) for at in range(6)]
        alone = [await answer(engine, work) for work in works]
        running = [asyncio.create_task(answer(engine, work)) for work in works]
        await until(lambda: engine.load().running == 6)
        os.kill(engine.worker_pids[0], signal.SIGKILL)
        assert await asyncio.gather(*running) == alone
        await until(lambda: len(engine.worker_pids) == 2)


async def test_a_worker_that_hangs_is_ended_and_its_job_goes_on(model: Path) -> None:
    async with open_onnx_llm_engine(model, workers=1, slots=2, context=512, hang_s=3.0) as engine:
        expected = await answer(engine, small(9, 100))
        first = engine.worker_pids[0]
        async with aclosing(engine.generate(small(9, 100))) as stream:
            told = list((await anext(stream)).tokens)
            os.kill(first, signal.SIGSTOP)
            async with asyncio.timeout(60):
                told += [token async for item in stream for token in item.tokens]
        assert told == expected
        assert engine.worker_pids[0] != first


# ---- files ---------------------------------------------------------------------------------------------


async def _refused(path: Path, kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=why):
        async with open_onnx_llm_engine(path, context=128, slots=1):
            pass


async def test_weights_outside_of_the_folder_are_not_read(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    path = write(inside)
    for location in ("../model.onnx_data", str(tmp_path / "model.onnx_data"), "a/../../model.onnx_data"):
        shutil.copy(inside / "model.onnx_data", tmp_path)
        graph, _ = decoder(SHAPE, random_weights(SHAPE), Export(external=location))
        path.write_bytes(graph)
        await _refused(path, ModelFileInvalid, "outside of its folder")


async def test_a_link_to_weights_elsewhere_is_not_followed(tmp_path: Path) -> None:
    path = write(tmp_path / "inside")
    (path.parent / "model.onnx_data").rename(tmp_path / "elsewhere")
    (path.parent / "model.onnx_data").symlink_to(tmp_path / "elsewhere")
    await _refused(path, ModelFileInvalid, "outside of its folder")


async def test_weights_that_are_missing_or_cut_off_are_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    data = (tmp_path / "model.onnx_data").read_bytes()
    (tmp_path / "model.onnx_data").write_bytes(data[: len(data) // 2])
    await _refused(path, ModelFileInvalid, "ONNX Runtime")
    (tmp_path / "model.onnx_data").unlink()
    await _refused(path, ModelFileInvalid, "is not there")


async def test_files_that_are_no_decoder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    await _refused(path, NodeMisconfigured, "cannot read the model")
    whole = write(tmp_path, Export()).read_bytes()
    for bad in (b"", b"GGUF" + bytes(64), whole[: len(whole) // 2]):
        path.write_bytes(bad)
        await _refused(path, ModelFileInvalid, "ONNX")
    path.write_bytes(onnx_bytes(inputs=("input_ids",)))
    await _refused(path, ModelFileInvalid, "attention_mask")
    bent = bytearray(whole)
    for at in np.random.default_rng(1).integers(200, len(whole) // 8, 200):
        bent[at] ^= 0x55
    path.write_bytes(bytes(bent))
    await _refused(path, ModelFileInvalid, "ONNX|worker ended")


# ---- real weights --------------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.heavy
def test_real_weights_say_what_llama_cpp_says_of_the_same_in_float32(default_model: Path, tmp_path: Path) -> None:
    """1.2 GB on disk for a moment: the weights as ONNX, and the same in GGUF."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize, options.nthread = llama_cpp.LLAMA_FTYPE_ALL_F32, True, 1
    plain = tmp_path / "plain.gguf"
    assert llama_cpp.llama_model_quantize(str(default_model).encode(), str(plain).encode(), options) == 0
    path = write_gguf_export(tmp_path / "export", plain) / "model.onnx"
    context = OnnxContext(path, slots=2, size=256, threads=1, memory_bytes=4 << 30, engine_words="x/f32")
    assert context.together
    from inference.batch import Row, Work
    from tests.inference.test_onnx_llm import run

    for length in (5, 64, 100):
        prompt = prompt_of(length)
        expected = plain_logits(plain, prompt, 16)
        [made] = run(context, Work(prompt=list(prompt), sampling=GREEDY, max_tokens=16), slots=2)
        assert [token for token, _ in made] == [int(row.argmax()) for row in expected]
        context.forget(0, 0)
        for start in range(0, length, 64):
            rows = [Row(0, prompt[at], at, at == length - 1) for at in range(start, min(start + 64, length))]
            logits = context.decode(rows)
        assert np.abs(logits[0] - expected[0]).max() < 0.05
    shutil.rmtree(tmp_path)
