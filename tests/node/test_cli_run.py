"""`octo-node run` and `octo-node tasks` against the real API, with a scripted buyer behind it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from market.errors import NoProvider
from market.values import encode
from market.work import Finding, SpeakRequest
from node.folder import open_folder
from tests.node.api.conftest import TOKEN, ScriptedNode, api, desk, node
from tests.node.api.test_inference import PNG

__all__ = ["api", "desk", "node"]

Run = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]


class Said(NamedTuple):
    stdout: str
    stderr: str


@pytest.fixture
async def run(api: str, tmp_path: Path) -> AsyncIterator[Run]:
    """The command line, in the folder of the node that answers."""
    with open_folder(tmp_path / "home") as folder:
        token = folder.path("token")
        token.write_text(TOKEN)
        folder.announce(api=api, token_file=token)

        async def run(*words: str, input: str = "", code: int = 0) -> Said:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "node.cli", *words, "--data-dir", str(tmp_path / "home"),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
            )  # fmt: skip
            out, err = await process.communicate(input.encode())
            assert process.returncode == code, (out, err)
            return Said(out.decode(), err.decode())

        yield run


async def test_a_text_is_answered_with_its_receipt(run: Run, node: ScriptedNode) -> None:
    result = await run("run", "Hi", "--max-tokens", "7", "--temperature", "0")
    assert result.stdout == "Hello!\n"
    assert "receipt bafy" in result.stderr
    assert node.buyer.orders[0].max_tokens == 7
    told = json.loads((await run("run", "-", "--json", input="Hi there")).stdout)
    assert told["result"]["choices"][0]["message"]["content"] == "Hello!"
    assert node.buyer.orders[1].messages[0].content == "Hi there"


async def test_an_image_is_looked_at(run: Run, node: ScriptedNode, tmp_path: Path) -> None:
    node.buyer.steps = [encode(Finding, Finding(label="cat\x1b[2J", score_micro=900_000, box=(1, 2, 30, 40)))]
    (tmp_path / "cat.png").write_bytes(PNG)
    out = tmp_path / "seen.json"
    result = await run("run", "--file", str(tmp_path / "cat.png"), "--what", "detect", "--out", str(out))
    assert result.stdout == "0.90  cat\ufffd[2J  1,2 30,40\n"
    assert json.loads(out.read_text())["findings"][0]["score"] == 0.9
    assert node.buyer.orders[0].blob == PNG


async def test_pictures_and_sound_go_into_files(run: Run, node: ScriptedNode, tmp_path: Path) -> None:
    node.buyer.steps = (PNG, PNG + b"2")
    await run("run", "--input", '{"prompt": "a cat", "count": 2}', "--out", str(tmp_path / "cat.png"))
    assert (tmp_path / "cat.png").read_bytes() == PNG
    assert (tmp_path / "cat-2.png").read_bytes() == PNG + b"2"
    node.buyer.steps = (b"\1\0" * 9,)
    result = await run("run", "Hi", "--work", "speak")
    assert node.buyer.orders[-1].request == SpeakRequest(text="Hi", voice="en-us")
    id = result.stderr.split("tasks save ")[1].split()[0]
    await run("tasks", "save", id, str(tmp_path / "hi.wav"))
    assert (tmp_path / "hi.wav").read_bytes()[:4] == b"RIFF"


async def test_a_result_that_cannot_be_written_is_not_lost(run: Run, tmp_path: Path) -> None:
    result = await run("run", "Hi", "--out", str(tmp_path / "nowhere" / "hi.json"), code=1)
    id = result.stderr.split("tasks save ")[1].split()[0]
    await run("tasks", "save", id, str(tmp_path / "hi.json"))
    assert json.loads((tmp_path / "hi.json").read_text())["choices"][0]["message"]["content"] == "Hello!"


async def test_vectors_are_told_by_how_they_begin(run: Run, node: ScriptedNode) -> None:
    node.buyer.steps = tuple(np.full(9, 0.25 * n, "<f4").tobytes() for n in range(12))
    texts = json.dumps({"texts": [f"text {n}" for n in range(12)]})
    result = await run("run", "--work", "embed", "--input", texts)
    lines = result.stdout.splitlines()
    assert lines[1] == "[0.2500, 0.2500, 0.2500, 0.2500, …]  9 numbers"
    assert lines[10:] == ["and 2 more vectors"]
    assert "tasks save" in result.stderr
    assert "12 units out" not in result.stdout


async def test_a_detached_task_is_shown_followed_cancelled_and_removed(run: Run, node: ScriptedNode) -> None:
    node.buyer.steps = ("Hel", 0.5, "lo")
    id = (await run("run", "Hi", "--detach", "--mode", "async", "--key", "k")).stdout.strip()
    assert (await run("run", "Hi", "--detach", "--mode", "async", "--key", "k")).stdout.strip() == id
    assert id in (await run("tasks")).stdout
    assert (await run("tasks", "follow", id)).stdout in ("Hello\n", "Hello")
    shown = await run("tasks", "show", id)
    assert "done" in shown.stdout and "Hello" in shown.stdout
    node.buyer.steps = (3600.0,)
    other = (await run("run", "Ho", "--detach")).stdout.strip()
    await run("tasks", "cancel", other)
    await run("tasks", "cancel", other, code=1)
    for each in (id, other):
        await run("tasks", "remove", each)
    assert json.loads((await run("tasks", "list", "--json")).stdout)["data"] == []


async def test_what_fails_says_why_and_ends_with_a_code(run: Run, node: ScriptedNode, tmp_path: Path) -> None:
    node.buyer.steps = (NoProvider("no provider can serve this task.", reasons={"12D3": "is asleep"}),)
    assert "no provider can serve" in (await run("run", "Hi", code=5)).stderr
    told = json.loads((await run("tasks", "list", "--json", "--status", "failed")).stdout)
    assert told["data"][0]["error"]["octo"]["reasons"] == {"12D3": "is asleep"}
    for words in ((), ("Hi", "--input", "{}"), ("--input", "{"), ("--input", "[" * 3000)):
        await run("run", *words, code=2)
    (tmp_path / "cat.png").write_bytes(PNG)
    assert "--what detect" in (await run("run", "--file", str(tmp_path / "cat.png"), code=2)).stderr
    assert "base64" in (await run("run", "--input", '{"image": "!", "what": "read"}', code=1)).stderr
    await run("tasks", "show", "../../stake", code=1)
