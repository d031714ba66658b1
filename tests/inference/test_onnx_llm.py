"""Decoders in ONNX as the batch sees them: equal bits in any company, and graphs that must not be believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference.batch import Batch, Row, Work
from inference.onnx_llm import OnnxContext
from market.errors import EngineFailed, ModelFileInvalid, NodeMisconfigured
from market.task import Sampling
from tests.inference.decoder_kit import FLOAT, FLOAT16, Export, Shape, decoder, random_weights
from tests.inference.engine_kit import GREEDY, SEEDED

SHAPE, PLAIN = Shape(width=16), Export()
WEIGHTS = random_weights(SHAPE)


def write(folder: Path, export: Export = PLAIN, shape: Shape = SHAPE, **changes: np.ndarray) -> Path:
    graph, data = decoder(shape, random_weights(shape) | changes, export)
    path = folder / "model.onnx"
    path.write_bytes(graph)
    if export.external:
        (folder / export.external).write_bytes(data)
    return path


def opened(path: Path, *, slots: int = 4, size: int = 256, **more: int) -> OnnxContext:
    settings = {"threads": 1, "memory_bytes": 1 << 30, **more}
    return OnnxContext(path, slots=slots, size=size, engine_words="avx2/f32", **settings)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> OnnxContext:
    return opened(write(tmp_path_factory.mktemp("decoder")))


def prompt(length: int, salt: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(salt).integers(0, SHAPE.vocabulary, length)]


def work(length: int, tokens: int = 12, salt: int = 0, *, sampling: Sampling = SEEDED, **more: object) -> Work:
    return Work(prompt=prompt(length, salt), sampling=sampling, max_tokens=tokens, logprobs=3, **more)  # type: ignore[arg-type]


def run(context: OnnxContext, *works: Work, slots: int = 4, stagger: int = 0) -> list[list[tuple[int, bytes]]]:
    """(token, log probabilities) of each job; a newcomer joins every `stagger` steps."""
    batch = Batch(context, slots=slots, window=1000)
    made: list[list[tuple[int, bytes]]] = [[] for _ in works]
    waiting = list(range(len(works)))
    for step in range(10_000):
        while waiting and len(batch) < slots and (not stagger or step % stagger == 0):
            assert batch.join(waiting[0], works[waiting[0]]) is None
            waiting.pop(0)
            if stagger:
                break
        for emission in batch.step():
            assert not emission.error, emission.error
            if emission.token >= 0:
                made[emission.job].append((emission.token, emission.logprobs))
        if not waiting and not len(batch):
            break
    return made


def numpy_logits(tokens: list[int]) -> np.ndarray:
    """The last token's, by another hand: float64, no cache, no graph."""
    s, w = SHAPE, {name: value.astype(np.float64) for name, value in WEIGHTS.items()}
    turns = 1.0 / s.theta ** (np.arange(s.width // 2) * 2 / s.width)
    angle = np.outer(np.arange(len(tokens)), turns)

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + s.epsilon) * w[name]

    def heads(x: np.ndarray, count: int, *, turn: bool) -> np.ndarray:
        x = x.reshape(len(tokens), count, s.width).transpose(1, 0, 2)
        if turn:
            a, b = x[..., : s.width // 2], x[..., s.width // 2 :]
            x = np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)
        return x.repeat(s.heads // count, 0)

    x = w["embed"][tokens]
    for at in range(s.layers):
        h = normed(x, f"{at}.attn_norm")
        q = heads(h @ w[f"{at}.attn_q"].T, s.heads, turn=True)
        k = heads(h @ w[f"{at}.attn_k"].T, s.kv_heads, turn=True)
        v = heads(h @ w[f"{at}.attn_v"].T, s.kv_heads, turn=False)
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(s.width)
        scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
        share = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (share / share.sum(-1, keepdims=True)) @ v
        x = x + mixed.transpose(1, 0, 2).reshape(len(tokens), -1) @ w[f"{at}.attn_output"].T
        h = normed(x, f"{at}.ffn_norm")
        gate = h @ w[f"{at}.ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[f"{at}.ffn_up"].T)) @ w[f"{at}.ffn_down"].T
    return (normed(x, "norm") @ w["embed"].T)[-1]


# ---- right, and the same in any company --------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 5, 63, 64, 65, 130])
def test_greedy_tokens_are_those_of_a_plain_reference(context: OnnxContext, length: int) -> None:
    [made] = run(context, work(length, 8, sampling=GREEDY))
    told = prompt(length)
    for token, _ in made:
        logits = numpy_logits(told)
        assert logits[token] > np.sort(logits)[-1] - 1e-3
        told.append(token)


def test_a_job_has_the_same_bits_alone_and_in_any_company(context: OnnxContext) -> None:
    works = [work(length, 30 + length // 9, salt=length) for length in (3, 70, 64, 1, 129, 20)]
    alone = [run(context, one)[0] for one in works]
    assert context.together
    assert run(context, *works) == alone
    assert run(context, *works, stagger=5) == alone
    assert run(context, *works, slots=2) == alone


@pytest.mark.parametrize("length", [64, 65, 67, 100, 128])
def test_a_resumed_job_goes_on_with_the_bits_it_would_have_had(context: OnnxContext, length: int) -> None:
    """A prompt of whole chunks is the hard case: what was generated begins where another chunk would."""
    [whole] = run(context, work(length, 100))
    for cut in (1, 40, 63, 64, 70):
        told = [token for token, _ in whole[:cut]]
        [rest] = run(context, work(length, 100, generated=told))
        assert rest == whole[cut:]


def test_a_prefix_that_another_job_left_changes_no_bit(context: OnnxContext) -> None:
    works = [work(length, 10, scope=b"us") for length in (200, 200, 131)]
    alone = [run(context, replace(one, scope=b""))[0] for one in works]
    batch = Batch(context, slots=4, window=1000)
    for job, one in enumerate(works):
        batch.join(job, one)
        made = []
        while len(batch):
            made += batch.step()
        assert made[0].cached == (0, 192, 128)[job]
        assert [(emission.token, emission.logprobs) for emission in made] == alone[job]


def test_two_threads_and_weights_beside_the_graph_change_no_bit(context: OnnxContext, tmp_path: Path) -> None:
    works = [work(length, 20, salt=length) for length in (3, 70, 129)]
    other = opened(write(tmp_path, Export(external="model.onnx_data")), threads=2)
    assert run(other, *works) == run(context, *works)


@pytest.mark.parametrize(
    "export",
    [
        Export(cache=FLOAT16),
        Export(positions=False),
        Export(present="present_key_values"),
        Export(fused=True),
        Export(fused=True, positions=False),
    ],
)
def test_other_exporters_habits(context: OnnxContext, tmp_path: Path, export: Export) -> None:
    works = [work(length, 15, sampling=GREEDY, salt=length) for length in (3, 70, 20)]
    other = opened(write(tmp_path, export))
    assert other.together
    alone = [run(other, one)[0] for one in works]
    assert run(other, *works) == alone
    if export.cache == FLOAT:
        expected = run(context, *works)
        assert [[token for token, _ in job] for job in alone] == [[token for token, _ in job] for job in expected]


@pytest.mark.parametrize("export", [Export(sociable=True), Export(drifting=True)])
def test_rows_that_change_one_another_run_alone(tmp_path: Path, export: Export) -> None:
    other = opened(write(tmp_path, export))
    assert not other.together
    works = [work(length, 20, salt=length) for length in (3, 70, 64, 1)]
    assert run(other, *works) == [run(other, one)[0] for one in works]


def test_a_graph_that_takes_no_hole_is_asked_without_one(tmp_path: Path) -> None:
    """It reckons positions by the length of the past: a hole would be taken for tokens."""
    other = opened(write(tmp_path, Export(positions=False, blind=True)))
    assert not other.together
    works = [work(length, 12, sampling=GREEDY, salt=length) for length in (3, 70)]
    for one, made in zip(works, run(other, *works), strict=True):
        told = list(one.prompt)
        for token, _ in made:
            logits = numpy_logits(told)
            assert logits[token] > np.sort(logits)[-1] - 1e-3
            told.append(token)


def test_tokens_that_were_dropped_leave_nothing_behind(context: OnnxContext) -> None:
    """NaN in a dropped token's values would spread through its weight of zero."""
    expected = run(context, work(5, 6))
    lanes = context._lanes
    for array in lanes._arrays:
        array[:] = np.nan
    assert run(context, work(5, 6)) == expected


def test_a_sequence_takes_tokens_at_its_end_alone(context: OnnxContext) -> None:
    context.forget(0, 0)
    with pytest.raises(EngineFailed, match="position 7"):
        context.decode([Row(0, 1, 7, True)])
    context.forget(0, 0)


# ---- graphs that are none ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("export", "why"),
    [
        (Export(without=("past_key_values.1.key",)), "cannot load|loads|without"),
        (Export(without=("present.1.key",)), "without an output of its own"),
        (Export(without=("logits",)), "no output 'logits'"),
        (Export(past="cache"), "no inputs for keys and values"),
        (Export(cache=7), "loads|int64"),
    ],
)
def test_what_a_graph_lacks_is_named(tmp_path: Path, export: Export, why: str) -> None:
    with pytest.raises(ModelFileInvalid, match=why):
        opened(write(tmp_path, export))


def test_an_input_that_nobody_can_fill_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileInvalid, match="'encoder_hidden_states', which nobody here can fill"):
        opened(write(tmp_path, Export(more="encoder_hidden_states")))


def test_a_model_whose_logits_are_never_numbers_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelFileInvalid, match="not numbers"):
        opened(write(tmp_path, norm=np.full(SHAPE.hidden, np.nan, np.float32)))


def test_one_word_of_poison_fails_its_own_job(tmp_path: Path) -> None:
    embed = WEIGHTS["embed"].copy()
    embed[50] = np.nan
    output = WEIGHTS["embed"]
    context = opened(write(tmp_path, embed=embed, output=output))
    batch = Batch(context, slots=4, window=1000)
    batch.join(0, work(20, 12, sampling=GREEDY))
    batch.join(1, Work(prompt=[1, 50, 2], sampling=GREEDY, max_tokens=9))
    made = []
    while len(batch):
        made += batch.step()
    assert ["not numbers" in emission.error for emission in made if emission.job == 1] == [True]
    [alone] = run(context, work(20, 12, sampling=GREEDY))
    assert [emission.token for emission in made if emission.job == 0] == [token for token, _ in alone]


def test_what_does_not_fit_is_refused_with_what_would(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(NodeMisconfigured, match="1000000 tokens need") as caught:
        opened(path, size=1_000_000, slots=8, memory_bytes=2 << 30)
    assert "at most 1 slots" in caught.value.next_step
    with pytest.raises(NodeMisconfigured) as caught:
        opened(path, memory_bytes=1 << 20)
    assert "smaller model" in caught.value.next_step


def test_an_absurd_width_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    wide = Shape(layers=1, heads=1, kv_heads=1, width=8, hidden=8)
    graph, _ = decoder(wide, random_weights(wide), Export(said_width=1 << 26))
    path = tmp_path / "model.onnx"
    path.write_bytes(graph)
    with pytest.raises(ModelFileInvalid, match=r"does not say how many heads|loads"):
        opened(path)
