"""The sampler draws what its documented rule says, the same everywhere."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.sampler import Sampler, gumbel, logprobs_of, noise_bits, read_logprobs
from market.errors import EngineFailed
from market.task import MICRO, LogitBias, Sampling

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "sampler.json").read_text())
SEED = bytes(range(32))


def sampling(**changes: object) -> Sampling:
    return Sampling(**{"seed": SEED, **changes})  # type: ignore[arg-type]


def row(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def synthetic(count: int, salt: int) -> np.ndarray:
    """Logits that any language can make: multiples of 1/4096 between -8 and 8."""
    return np.array(
        [((i * 2654435761 + salt * 40503 + 12345) % 2**32 >> 16) / 4096 - 8 for i in range(count)], dtype=np.float32
    )


def reference_draw(logits: np.ndarray, how: Sampling, generated: list[int]) -> int:
    """The rule of the module's docstring once more, slowly, over every token."""
    counts = Counter(generated)
    micro = Counter({b.token: 0 for b in how.logit_bias})
    for bias in how.logit_bias:
        micro[bias.token] += bias.bias_micro
    for token, count in counts.items():
        micro[token] -= how.frequency_penalty_micro * count + how.presence_penalty_micro
    values = [float(x) + micro[t] / MICRO for t, x in enumerate(logits)]
    ranked = sorted(range(len(values)), key=lambda t: (-values[t], t))
    if how.temperature_micro == 0:
        return ranked[0]
    ranked = ranked[: how.top_k or 256]
    scores = [values[t] / (how.temperature_micro / MICRO) for t in ranked]
    if how.top_p_micro < MICRO:
        mass = np.cumsum(np.exp(np.array(scores) - scores[0]))
        ranked = ranked[: int(np.argmax(mass >= how.top_p_micro / MICRO * mass[-1])) + 1]
    noisy = {}
    for token, score in zip(ranked, scores, strict=False):
        noisy[token] = score + reference_noise(how, len(generated), token)
    return min(noisy, key=lambda t: (-noisy[t], t))


def reference_noise(how: Sampling, position: int, token: int) -> float:
    words = hashlib.sha256(
        b"octo/gumbel/1" + how.seed + how.choice.to_bytes(4, "big") + position.to_bytes(8, "big")
    ).digest()
    first, second = int.from_bytes(words[:8], "big"), int.from_bytes(words[8:16], "big")

    def mix(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    bits = mix(mix((first + (token + 1) * 0x9E3779B97F4A7C15) % 2**64) ^ second) >> 11 | 1
    return float(-np.log(-np.log(bits / 2**53)))


def test_noise_equals_the_vectors_bit_for_bit():
    for vector in VECTORS["noise"]:
        key = b"octo/gumbel/1" + bytes.fromhex(vector["seed"]) + vector["choice"].to_bytes(4, "big")
        got = noise_bits(key, vector["position"], np.array(vector["tokens"]))
        assert [int(bits) for bits in got] == [int(text) for text in vector["bits"]]


def test_draws_equal_the_vectors():
    for vector in VECTORS["draws"]:
        how = sampling(
            **{
                **vector["sampling"],
                "seed": bytes.fromhex(vector["sampling"]["seed"]),
                "logit_bias": tuple(LogitBias(token=t, bias_micro=b) for t, b in vector["sampling"]["logit_bias"]),
            }
        )
        sampler = Sampler(how)
        drawn = []
        for salt in range(len(vector["tokens"])):
            drawn.append(sampler.draw(synthetic(vector["vocabulary"], salt)))
            sampler.accept(drawn[-1])
        assert drawn == vector["tokens"], vector["name"]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6000),
    st.integers(0, 2 * MICRO),
    st.sampled_from([0, 1, 2, 40, 256]),
    st.sampled_from([1, 300_000, 900_000, MICRO]),
    st.integers(-2 * MICRO, 2 * MICRO),
    st.integers(-2 * MICRO, 2 * MICRO),
    st.lists(st.tuples(st.integers(0, 5999), st.integers(-100 * MICRO, 100 * MICRO)), max_size=5),
    st.integers(0, 1000),
)
def test_fast_and_slow_sampler_agree(vocabulary, temperature, top_k, top_p, frequency, presence, biases, salt):
    how = sampling(
        temperature_micro=temperature,
        top_k=top_k,
        top_p_micro=top_p,
        frequency_penalty_micro=frequency,
        presence_penalty_micro=presence,
        logit_bias=tuple(LogitBias(token=t, bias_micro=b) for t, b in biases if t < vocabulary),
    )
    sampler, generated = Sampler(how), []
    for step in range(4):
        # 64 levels over thousands of tokens: ties everywhere, at the cut too
        logits = np.round(synthetic(vocabulary, salt + step) * 4) / 4
        token = sampler.draw(logits)
        assert token == reference_draw(logits, how, generated)
        sampler.accept(token)
        generated.append(token)


def test_temperature_zero_takes_the_first_of_equals():
    assert Sampler(sampling(temperature_micro=0)).draw(row(1, 3, 3, 2)) == 1


def test_a_bias_that_makes_a_tie_goes_to_the_lowest_id():
    lower = sampling(temperature_micro=0, logit_bias=(LogitBias(token=0, bias_micro=2 * MICRO),))
    higher = sampling(temperature_micro=0, logit_bias=(LogitBias(token=3, bias_micro=MICRO),))
    assert Sampler(lower).draw(row(1, 3, 3, 2)) == 0
    assert Sampler(higher).draw(row(1, 3, 3, 2)) == 1


def test_penalties_follow_what_was_generated():
    sampler = Sampler(sampling(temperature_micro=0, frequency_penalty_micro=600_000, presence_penalty_micro=500_000))
    drawn = []
    for _ in range(5):
        drawn.append(sampler.draw(row(3.0, 2.0, 0.0)))
        sampler.accept(drawn[-1])
    # 3.0, then 1.9 against 2.0, then 1.9 against 0.9, then 1.3 against 0.9, then 0.7 against 0.9
    assert drawn == [0, 1, 0, 0, 1]


def test_a_continuation_draws_what_the_first_provider_would_have():
    how = sampling(frequency_penalty_micro=300_000)
    whole, tokens = Sampler(how), []
    for step in range(8):
        tokens.append(whole.draw(synthetic(500, step)))
        whole.accept(tokens[-1])
    second = Sampler(how, generated=tokens[:5])
    for step in range(5, 8):
        assert second.draw(synthetic(500, step)) == tokens[step]
        second.accept(tokens[step])


def test_at_most_256_tokens_survive():
    drawn = set()
    for position in range(400):
        sampler = Sampler(sampling(temperature_micro=2 * MICRO))
        sampler.position = position
        drawn.add(sampler.draw(np.zeros(5000, dtype=np.float32)))
    assert max(drawn) < 256 and len(drawn) > 150


def test_frequencies_follow_the_softmax():
    logits, draws = row(2.0, 1.0, 0.0, -1.0), 4000
    sampler, counts = Sampler(sampling(temperature_micro=MICRO)), Counter()
    for position in range(draws):
        sampler.position = position
        counts[sampler.draw(logits)] += 1
    mass = np.exp(logits.astype(np.float64))
    for token, share in enumerate(mass / mass.sum()):
        assert abs(counts[token] / draws - share) < 5 * math.sqrt(share * (1 - share) / draws)


def test_choice_and_position_and_seed_change_the_noise():
    tokens = np.arange(8)
    base = gumbel(b"octo/gumbel/1" + SEED + bytes(4), 0, tokens)
    for key, position in (
        (b"octo/gumbel/1" + SEED + b"\0\0\0\1", 0),
        (b"octo/gumbel/1" + SEED + bytes(4), 1),
        (b"octo/gumbel/1" + bytes(32) + bytes(4), 0),
    ):
        assert not np.any(gumbel(key, position, tokens) == base)


@pytest.mark.parametrize("temperature", [0, MICRO])
@pytest.mark.parametrize("size", [4, 5000])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 2, 3])
@pytest.mark.parametrize("biased", [False, True])
def test_logits_that_are_not_numbers_fail_the_engine(temperature, size, bad, at, biased):
    logits = np.zeros(size, dtype=np.float32)
    logits[at] = bad
    bias = (LogitBias(token=at, bias_micro=MICRO),) if biased else (LogitBias(token=1, bias_micro=MICRO),)
    with pytest.raises(EngineFailed):
        Sampler(sampling(temperature_micro=temperature, logit_bias=bias)).draw(logits)


@pytest.mark.parametrize("temperature", [0, MICRO])
def test_a_row_of_minus_infinity_fails_the_engine_and_one_value_is_enough(temperature):
    logits = np.full(5000, -np.inf, dtype=np.float32)
    sampler = Sampler(sampling(temperature_micro=temperature))
    with pytest.raises(EngineFailed):
        sampler.draw(logits)
    logits[4321] = -3.0
    assert sampler.draw(logits) == 4321


# ---- what a grammar permits ----------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([0, 700_000, 1_300_000]),
    st.sampled_from([0, 1, 40]),
    st.sampled_from([1_000_000, 900_000]),
    st.integers(1, 4000),
    st.integers(0, 99),
)
def test_a_permitted_draw_is_a_draw_from_a_row_without_the_rest(temperature, top_k, top_p, some, salt):
    logits = synthetic(5000, salt)
    permitted = np.zeros(5000, dtype=np.bool_)
    permitted[np.random.default_rng(salt).choice(5000, some, replace=False)] = True
    how = sampling(
        temperature_micro=temperature,
        top_k=top_k,
        top_p_micro=top_p,
        frequency_penalty_micro=500_000,
        logit_bias=tuple(LogitBias(token=token, bias_micro=3_000_000) for token in range(0, 5000, 611)),
    )
    one, other = Sampler(how, [7, 7, 12]), Sampler(how, [7, 7, 12])
    bare = np.where(permitted, logits, np.float32(-np.inf))
    if permitted[[*range(0, 5000, 611), 7, 12]].all() or np.isfinite(bare).any():
        assert one.draw(logits, lambda ids: permitted[ids]) == other.draw(bare)


def test_a_grammar_that_permits_nothing_is_named():
    for temperature in (0, 1_000_000):
        with pytest.raises(EngineFailed, match="grammar permits no token"):
            Sampler(sampling(temperature_micro=temperature)).draw(
                synthetic(5000, 1), lambda ids: np.zeros(len(ids), np.bool_)
            )


def test_numbers_that_are_none_are_an_error_with_a_grammar_too():
    for bad in (np.nan, np.inf):
        logits = synthetic(5000, 1)
        logits[4000] = bad
        for temperature in (0, 1_000_000):
            with pytest.raises(EngineFailed, match="not numbers"):
                Sampler(sampling(temperature_micro=temperature)).draw(logits, lambda ids: np.ones(len(ids), np.bool_))
        with pytest.raises(EngineFailed, match="not numbers"):
            logprobs_of(logits, 3, 5)


# ---- log probabilities ---------------------------------------------------------------------------


def test_logprobs_are_the_softmax_of_the_bare_row():
    logits = synthetic(5000, 3)
    own, top = read_logprobs(logprobs_of(logits, 17, 20))
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    ranked = sorted(range(5000), key=lambda token: (-exact[token], token))[:20]
    assert [token for token, _ in top] == ranked
    assert own == pytest.approx(exact[17], abs=1e-5)
    assert [value for _, value in top] == pytest.approx([exact[token] for token in ranked], abs=1e-5)
    assert read_logprobs(logprobs_of(logits, 17, 0)) == (own, ())
    assert math.isclose(
        sum(math.exp(value) for _, value in read_logprobs(logprobs_of(logits, 0, 256))[1]), 1, abs_tol=1
    )


@pytest.mark.parametrize("data", [b"", b"abc", bytes(4) + b"x", b"\xff\xff\xff\x7f", bytes(8) + b"\0\0\xc0\x7f"])
def test_bytes_that_are_no_logprobs_are_refused(data):
    with pytest.raises(ValueError, match="no log prob"):
        read_logprobs(data)
