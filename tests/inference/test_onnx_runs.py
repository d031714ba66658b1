"""A run of a graph that takes long is no hang, one that nobody waits for is ended, and a hang is noticed still."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference.engines.onnx import open_onnx_engine
from inference.engines.onnx_llm import open_onnx_llm_engine
from inference.models.plain_encoder import load_plain_encoder
from inference.work.engine import SupervisedEngine
from inference.work.meters import EmbedMeter
from inference.work.onnx_session import LIMIT_S, Patience, Session
from inference.work.onnx_text import open_onnx_texts
from inference.work.runner import RanTooLong, Task, always
from market.errors import EngineFailed, OctoError
from market.work import EmbedRequest
from tests.inference import onnx_kit as kit
from tests.inference.decoder_kit import Export, Shape, decoder, random_weights
from tests.inference.engine_kit import answer, job
from tests.inference.test_onnx_text import ListDesk, embed_folder, embedded

CONTEXT = 8192
ROUNDS = 3
"""For each token; a token then takes some 0.4 ms."""
LONG = "red " * 4000
HANG_S = 1.0


def opened(folder: Path, *, hang_s: float = HANG_S, rounds: int = ROUNDS):
    embed_folder(folder, kit.slow_embedder(rounds))
    meter = EmbedMeter(load_plain_encoder(folder / "tokenizer.json", limit=CONTEXT))
    return open_onnx_engine(folder, kind="embed", models=["model.onnx"], meter=meter, context=CONTEXT, hang_s=hang_s)


def session(folder: Path, patience: Patience | None = None) -> Session:
    embed_folder(folder, kit.slow_embedder(ROUNDS))
    return Session(folder / "model.onnx", threads=1, patience=patience)


def feeds(*words: str) -> dict[str, np.ndarray]:
    ids = np.array([[kit.WORDS.index(word) for word in words]], np.int64)
    return dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids)


class RefusingDesk(ListDesk):
    def __init__(self, *tasks: Task) -> None:
        super().__init__(*tasks)
        self.refused: list[OctoError] = []

    def refuse(self, task: Task, error: OctoError) -> None:
        self.refused.append(error)


class Evenly(Patience):
    """For which no run takes more than a millisecond: one that a busy machine holds up makes it no more patient."""

    def took(self, size: int, seconds: float) -> None:
        super().took(size, min(seconds, 0.001))


async def running(engine: SupervisedEngine, jobs: int) -> None:
    async with asyncio.timeout(60):
        while engine.load().running < jobs:
            await asyncio.sleep(0.005)


# ---- in the worker process -------------------------------------------------------------------------------


async def test_a_text_that_takes_longer_than_a_hang_is_none(tmp_path):
    for rounds in (ROUNDS, 5 * ROUNDS, 25 * ROUNDS):  # on a fast machine it must be more work
        async with opened(tmp_path / str(rounds), rounds=rounds) as engine:
            [pid] = engine.worker_pids
            began = time.monotonic()
            assert len(await embedded(engine, LONG)) == 1
            took_s = time.monotonic() - began
            assert engine.worker_pids == (pid,)
        if took_s > HANG_S:
            return
    pytest.fail("the test's text is too short for this machine")


async def test_a_run_that_nobody_waits_for_any_more_is_ended_and_the_next_one_begins(tmp_path):
    async with opened(tmp_path, hang_s=20.0) as engine:
        [pid] = engine.worker_pids
        jobs = [asyncio.create_task(embedded(engine, f"{kit.ENDLESS} red", "red", "blue")) for _ in range(20)]
        await running(engine, 20)
        await asyncio.sleep(0.5)  # it runs by now
        for one in jobs:
            one.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        async with asyncio.timeout(60):  # it would take ten minutes
            assert len(await embedded(engine, "red")) == 1
        assert engine.worker_pids == (pid,)


async def test_a_process_that_stops_in_the_middle_of_a_run_is_replaced_and_the_run_begun_again_once(tmp_path):
    async with opened(tmp_path) as engine:
        [pid] = engine.worker_pids
        text = asyncio.create_task(embedded(engine, kit.ENDLESS))
        await running(engine, 1)
        await asyncio.sleep(2 * HANG_S)
        assert not text.done() and engine.worker_pids == (pid,)
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(60):
            while engine.worker_pids in ((), (pid,)):
                await asyncio.sleep(0.005)
            assert not text.done() and engine.load().running == 1
            os.kill(engine.worker_pids[0], signal.SIGSTOP)
            with pytest.raises(EngineFailed, match="silent"):
                await text
            assert len(await embedded(engine, "red")) == 1


async def test_a_prompt_that_takes_longer_than_a_hang_is_answered_by_the_worker_that_has_it(tmp_path):
    shape, model = Shape(vocabulary=300), tmp_path / "model.onnx"
    work = replace(job(64, 2), prompt=tuple(range(64)))
    for rounds in (150, 750, 3750):  # on a fast machine it must be more work
        model.write_bytes(decoder(shape, random_weights(shape), Export(rounds=rounds))[0])
        async with open_onnx_llm_engine(model, workers=1, slots=1, context=128, hang_s=HANG_S) as engine:
            pids = engine.worker_pids
            began = time.monotonic()
            assert len(await answer(engine, work)) == 2
            took_s = time.monotonic() - began
            assert engine.worker_pids == pids
        if took_s > HANG_S:
            return
    pytest.fail("the test's prompt is too short for this machine")


# ---- one run -------------------------------------------------------------------------------------------


def test_it_is_asked_all_along_whether_to_go_on(tmp_path):
    asked: list[float] = []

    def go_on() -> bool:
        asked.append(time.monotonic())
        return len(asked) < 8

    with pytest.raises(EngineFailed, match="nobody waits"):
        session(tmp_path).run(feeds(kit.ENDLESS), "last_hidden_state", go_on)
    assert len(asked) >= 8


def test_what_nobody_waits_for_is_not_begun(tmp_path):
    ready, began = session(tmp_path), time.monotonic()
    for _ in range(200):
        with pytest.raises(EngineFailed, match="nobody waits"):
            ready.run(feeds(kit.ENDLESS), "last_hidden_state", lambda: False)
    assert time.monotonic() - began < 10


def test_what_asking_raises_ends_the_run_and_comes_out_behind_it(tmp_path):
    class Gone(BaseException):
        pass

    def go_on() -> bool:
        if time.monotonic() - began > 0.3:
            raise Gone
        return True

    ready, began = session(tmp_path), time.monotonic()
    with pytest.raises(Gone):
        ready.run(feeds(kit.ENDLESS), "last_hidden_state", go_on)
    assert ready.run(feeds("red"), "last_hidden_state", always).shape == (1, 1, kit.WIDTH)


def test_a_run_that_takes_longer_than_its_like_is_ended_and_not_vouched_for(tmp_path):
    ready = session(tmp_path, Evenly(least_s=0.5))
    ready.run(feeds("red"), "last_hidden_state", always)
    asked = 0

    def go_on() -> bool:
        nonlocal asked
        asked += 1
        return True

    with pytest.raises(RanTooLong, match="longer"):
        ready.run(feeds(kit.ENDLESS), "last_hidden_state", go_on)
    assert asked <= 7, "ten times a second, for half a second"
    assert ready.run(feeds("red"), "last_hidden_state", always).shape == (1, 1, kit.WIDTH)


def test_rows_of_a_call_that_took_too_long_are_not_tried_one_by_one(tmp_path):
    class Counting(Patience):
        runs = 0
        limit_s = LIMIT_S

        def of(self, size: int) -> float:
            self.runs += 1
            return self.limit_s

    patience = Counting()
    ready = session(tmp_path, patience)
    encoder = load_plain_encoder(tmp_path / "tokenizer.json", limit=64)
    runner = open_onnx_texts(tmp_path, ready, encoder, kind="embed")
    assert runner.together
    patience.limit_s = 1.0
    tried, desk = patience.runs, RefusingDesk(Task(1, EmbedRequest(inputs=(kit.ENDLESS,) * 30), b"", 30))
    runner.run(desk)
    assert patience.runs == tried + 1 and [type(error) for error in desk.refused] == [RanTooLong]


def test_patience_grows_with_the_work_and_with_what_it_took():
    patience = Patience(least_s=2.0)
    assert patience.of(1) == LIMIT_S  # a first run: nothing is known
    patience.took(100, 1.0)
    assert patience.of(100) == 20.0 and patience.of(1000) == 200.0 and patience.of(1) == 2.0
    patience.took(1000, 1.0)
    assert patience.of(100) == 20.0
    patience.took(100, 2.0)
    assert patience.of(100) == 40.0 and patience.of(1 << 40) == LIMIT_S
