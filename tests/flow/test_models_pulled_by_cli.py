"""`octo-node models` as a user runs it: from a second machine's address, killed in the middle, without a node."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from devnets import ROOT
from model_town import a_model
from program import PROGRAM, environment, octo, running
from two_machines import PROVIDER, open_wire, why_not

from inference.models.default_model import shipped_manifest
from inference.models.manifest import manifest_cid, read_manifest

pytestmark = [pytest.mark.processes, pytest.mark.model]

DEFAULT = manifest_cid(shipped_manifest())
SIZE = read_manifest(shipped_manifest().encoded()).size_bytes
MB = 1 << 20


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """A data folder that has the default model."""
    folder = tmp_path_factory.mktemp("filled") / "a"
    told = octo(folder, "models", "pull", "default")
    assert told["model"] == DEFAULT
    return folder


def test_the_default_model_is_pulled_from_a_second_machines_address(filled: Path, tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    with open_wire() as (provider, client), running(filled, "--model", "none", machine=provider) as ready:
        address = next(a for a in ready["multiaddrs"] if PROVIDER in a)
        told = octo(tmp_path / "b", "models", "pull", DEFAULT, "--from", address, machine=client)
        assert told["model"] == DEFAULT
        by_name = octo(tmp_path / "c", "models", "pull", "default", "--join", address, machine=client)
        assert by_name["model"] == DEFAULT
        assert octo(tmp_path / "c", "models", "verify", machine=client)["damaged"] == []


def test_a_client_killed_in_the_middle_fetches_only_what_is_missing(filled: Path, tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    wire = open_wire(rate="100mbit")
    with wire as (provider, client), running(filled, "--model", "none", machine=provider) as ready:
        address = next(a for a in ready["multiaddrs"] if PROVIDER in a)
        command = [*PROGRAM, "models", "pull", DEFAULT, "--from", address]
        killed = subprocess.Popen(
            client.command(*command),
            cwd=ROOT,
            env=environment(tmp_path / "b", client.address),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while client.received_bytes() < 40 * MB:
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait(60)
        before = client.received_bytes()
        assert octo(tmp_path / "b", "models", "pull", DEFAULT, "--from", address, machine=client)["model"] == DEFAULT
        again = client.received_bytes() - before
        # On the wire: headers, the mesh, and what stood in socket buffers or came after the last saved map (2 s).
        assert again < SIZE - 20 * MB, f"{again / MB:.1f} MB came again of {SIZE / MB:.1f}"


def test_a_model_is_added_and_removed_while_no_node_runs(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    weights = a_model(tmp_path / "files", name="Otter-1B")
    added = octo(folder, "models", "add", str(weights), "--version", "2.1.0", "--licence", "MIT")
    listed = octo(folder, "models", "list", "--here")["stored"]
    assert [(m["model"], m["version"], m["state"], m["creator_is"]) for m in listed] == [
        (added["model"], "2.1.0", "whole", "this node")
    ]
    assert octo(folder, "models", "rm", "otter-1b@2.1.0")["freed_bytes"] > 5 * MB
    assert not any((folder / "models" / "files").iterdir())


@pytest.fixture(scope="module")
def node(tmp_path_factory) -> Iterator[Path]:
    """The data folder of a node that runs, and only buys."""
    folder = tmp_path_factory.mktemp("node") / "a"
    with running(folder, "--model", "none"):
        yield folder


def test_everything_about_models_can_be_done_by_command(node: Path) -> None:
    weights = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"
    added = octo(node, "models", "add", str(weights), "--name", "Otter")
    shown = octo(node, "models", "show", "otter")
    assert shown["model"] == added["model"]
    assert {file["role"] for file in shown["files"]} == {"weights", "tokenizer", "chat_template"}
    assert any(fit["ok"] for fit in shown["fits"] if fit["engine"] == "llama_cpp" and fit["tier"] == "here")
    assert all(fit["reason"] for fit in shown["fits"] if not fit["ok"])
    assert octo(node, "models", "search", "ott")["models"][0]["model"] == added["model"]
    assert octo(node, "models", "trust", "hf:owner")["changed"]
    assert octo(node, "models", "trust")["trust"] == [{"entry": "hf:owner", "note": ""}]
    published = octo(node, "models", "catalog", "publish", "zoo", "Otter")
    assert octo(node, "models", "catalog", "list")["catalogs"][0]["entry"] == published["catalog"]
    assert octo(node, "models", "pin", "Otter")["changed"]
    assert octo(node, "models", "rm", "Otter", ok=False)["error"]["code"] == "invalid_request"
    assert octo(node, "models", "pin", "Otter", "--remove")["changed"]
    assert octo(node, "models", "push", "Otter")["model"] == added["model"]
    assert octo(node, "models", "sign", "Otter")["model"] == added["model"]  # it is ours already
    assert octo(node, "models", "verify")["damaged"] == []
    assert octo(node, "models", "rm", "Otter")["freed_bytes"] > 80 * MB
    assert octo(node, "models", "gc")["freed_bytes"] >= 0


def test_errors_say_the_cause_and_the_next_step(node: Path) -> None:
    for words, code in (
        (("pull", "https://example.org/model.gguf"), "invalid_request"),
        (("pull", "hf:owner2/repo/model.gguf"), "model_untrusted"),
        (("pull", "no-such-model"), "model_not_found"),
        (("show", "no-such-model"), "model_not_found"),
        (("rm", "no-such-model"), "model_not_found"),
        (("pull", DEFAULT, "--from", "ftp://nowhere"), "invalid_request"),
        (("trust", "somebody"), "invalid_request"),
        (("catalog", "follow", "birds"), "invalid_request"),
    ):
        error = octo(node, "models", *words, ok=False)["error"]
        assert error["code"] == code, words
        assert error["next_step"], words
