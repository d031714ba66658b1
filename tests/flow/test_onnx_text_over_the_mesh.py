"""A chat with a decoder in ONNX on another node: added as a folder, offered, counted by its buyer, receipted."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import openai
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from market.errors import NodeMisconfigured
from node.running import RunningNode
from node.settings import Api, Content, EngineSettings, Mesh, Settings
from node.wiring import open_node
from tests.inference.decoder_kit import Export, Shape, config_json, decoder, random_weights

pytestmark = pytest.mark.net

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


def settings_in(folder: Path, **changes) -> Settings:
    return Settings(
        data_dir=folder,
        api=Api(port=0),
        mesh=Mesh(listen=(LOOPBACK,)),
        content=Content(host="127.0.0.1"),
        engine=EngineSettings(workers=1, threads=1, slots=2, context=256),
        **changes,
    )


def write_export(folder: Path, **generation: object) -> Path:
    """As transformers.js lays a model out: the graph and its weights in a folder of their own. Tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={text: at for at, text in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    shape = Shape(vocabulary=tokenizer.get_vocab_size())
    graph, data = decoder(shape, random_weights(shape), Export(external="model.onnx_data"))
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "model.onnx").write_bytes(graph)
    (folder / "onnx" / "model.onnx_data").write_bytes(data)
    (folder / "config.json").write_text(config_json(shape))
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "<|end|>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 256, **generation}))
    return folder


async def a_market(stack: AsyncExitStack, tmp_path: Path) -> tuple[RunningNode, RunningNode]:
    """(provider of the decoder, client)."""
    folder = write_export(tmp_path / "tiny-writer")
    async with open_node(settings_in(tmp_path / "p", provide=False)) as node:
        added = await node.desk.add(str(folder))
    provider = await stack.enter_async_context(open_node(settings_in(tmp_path / "p", model=added["model"])))
    joined = settings_in(tmp_path / "c", provide=False, join=(provider.addresses()[0],))
    client = await stack.enter_async_context(open_node(joined))
    async with asyncio.timeout(60):
        while not client.catalog.on_offer():
            await asyncio.sleep(0.05)
    return provider, client


async def test_a_chat_is_bought_from_a_decoder_in_onnx(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        provider, client = await a_market(stack, tmp_path)
        (offered,) = client.catalog.on_offer()
        sdk = await stack.enter_async_context(
            openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key=str(client.first_api_key), max_retries=0)
        )
        asked = {
            "model": offered.name,
            "messages": [{"role": "user", "content": "octopus"}],
            "max_tokens": 20,
            "logit_bias": {"256": -100},  # random weights end when they like
        }
        answers = [await sdk.chat.completions.create(**asked, seed=7, logprobs=True, top_logprobs=2) for _ in range(2)]
        assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
        first = answers[0]
        assert first.usage is not None and first.usage.prompt_tokens == len("user: octopus\nassistant: ")
        assert first.usage.completion_tokens == 20
        octo = (first.model_extra or {})["octo"]
        assert octo["provider"] == provider.peer
        record = await client.receipts.receipt_by_cid(octo["receipt"])
        assert record is not None
        assert b"onnxruntime/" in record.receipt.body
        streamed = await sdk.chat.completions.create(**asked, seed=7, stream=True)
        text = "".join([piece.choices[0].delta.content or "" async for piece in streamed if piece.choices])
        assert text == first.choices[0].message.content
        with pytest.raises(openai.APIStatusError, match="schema"):
            await sdk.chat.completions.create(**asked, response_format={"type": "json_object"})


async def test_a_folder_that_does_not_say_what_ends_an_answer_is_not_served(tmp_path: Path) -> None:
    folder = write_export(tmp_path / "endless")
    (folder / "generation_config.json").unlink()
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": said["chat_template"]}))
    async with open_node(settings_in(tmp_path / "p", provide=False)) as node:
        added = await node.desk.add(str(folder))
    with pytest.raises(NodeMisconfigured, match="which token ends an answer"):
        async with open_node(settings_in(tmp_path / "p", model=added["model"])):
            pass
