"""Tools told by a model's own chat template, between two nodes: bought with OpenAI's client, receipted alike."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from program import octo

from market.tools import CallForm
from node.running import RunningNode
from node.settings import Api, Content, EngineSettings, Mesh, Settings
from node.wiring import open_node
from tests.inference.models.tool_templates import BARE, LISTED, TAGGED

pytestmark = [pytest.mark.net, pytest.mark.model]

Q4_0 = Path(__file__).resolve().parents[2] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"
TEMPLATES = {CallForm.TAGGED: TAGGED, CallForm.BARE: BARE, CallForm.LISTED: LISTED}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def settings_in(folder: Path, **changes: Any) -> Settings:
    return Settings(
        data_dir=folder,
        api=Api(port=0),
        mesh=Mesh(listen=("/ip4/127.0.0.1/tcp/0",)),
        content=Content(host="127.0.0.1"),
        engine=EngineSettings(workers=1, slots=2, context=1024),
        **changes,
    )


@pytest.fixture(params=list(TEMPLATES))
async def market(request: Any, tmp_path: Path) -> AsyncIterator[tuple[CallForm, RunningNode, openai.AsyncOpenAI]]:
    """(form, a client whose provider runs the default model under a template of that form, OpenAI's client there)."""
    if not Q4_0.exists():
        pytest.skip("the default model is not prepared in this checkout: run `make model`")
    folder = tmp_path / "brought" / "caller"
    folder.mkdir(parents=True)
    shutil.copy(Q4_0, folder / "caller.gguf")
    (folder / "chat_template.jinja").write_text(TEMPLATES[request.param])
    async with AsyncExitStack() as stack:
        async with open_node(settings_in(tmp_path / "p", provide=False)) as node:
            added = await node.desk.add(str(folder))
        provider = await stack.enter_async_context(open_node(settings_in(tmp_path / "p", model=added["model"])))
        joined = settings_in(tmp_path / "c", provide=False, join=(provider.addresses()[0],))
        client = await stack.enter_async_context(open_node(joined))
        async with asyncio.timeout(60):
            while not client.catalog.on_offer():
                await asyncio.sleep(0.05)
        sdk = await stack.enter_async_context(
            openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key=str(client.first_api_key), max_retries=0)
        )
        yield request.param, client, sdk


async def test_a_call_and_its_result_go_through_the_models_own_template(
    market: tuple[CallForm, RunningNode, openai.AsyncOpenAI], tmp_path: Path
) -> None:
    form, client, sdk = market
    (offered,) = client.catalog.on_offer()
    assert (await client.catalog.tokenizer(offered.model)).call_form is form
    asked: Any = {
        "model": offered.name,
        "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
        "tools": [WEATHER],
        "max_tokens": 60,
        "temperature": 0,
    }
    first = await sdk.chat.completions.create(**asked, tool_choice="required")
    (choice,) = first.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or ()
    assert call.function.name == "weather"
    assert list(json.loads(call.function.arguments)) == ["city"]
    name, arguments = "", ""
    async for chunk in await sdk.chat.completions.create(**asked, tool_choice="required", stream=True):
        for part in (chunk.choices[0].delta.tool_calls or ()) if chunk.choices else ():
            name += part.function.name or ""
            arguments += part.function.arguments or ""
    assert (name, arguments) == ("weather", call.function.arguments)
    told = [
        *asked["messages"],
        choice.message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    more = {**asked, "messages": told}
    second = await sdk.chat.completions.create(**more)
    assert second.usage is not None and first.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    for answer, request in ((first, {**asked, "tool_choice": "required"}), (second, more)):
        cid = (answer.model_extra or {})["octo"]["receipt"]
        findings = await asyncio.to_thread(verified, await receipt(client, cid), request, tmp_path)
        assert {findings[what] for what in ("signature", "transcript", "prompt")} == {"holds"}
    changed = {**more, "tools": [{"type": "function", "function": {"name": "clock"}}]}
    findings = await asyncio.to_thread(verified, await receipt(client, cid), changed, tmp_path, ok=False)
    assert findings["prompt"] == "broken"


async def receipt(client: RunningNode, cid: str) -> bytes:
    headers = {"Authorization": f"Bearer {client.first_api_key}"}
    async with aiohttp.ClientSession(client.url, headers=headers) as http, http.get(f"/api/v1/receipts/{cid}") as got:
        got.raise_for_status()
        return await got.read()


def verified(file: bytes, request: Any, folder: Path, *, ok: bool = True) -> dict[str, str]:
    """What `receipts verify` says to the receipt of a request."""
    (folder / "receipt").write_bytes(file)
    (folder / "request.json").write_text(json.dumps(request))
    words = ["--model-dir", str(folder / "c"), "--prompt-file", str(folder / "request.json")]
    done = octo(folder / "c", "receipts", "verify", str(folder / "receipt"), *words, ok=ok)
    return {finding["what"]: finding["verdict"] for finding in done["findings"]}
