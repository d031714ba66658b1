"""Quantising: the default model's exact bytes, every format, whole files or none, clear errors, nothing left behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from inference.models.inspection import inspect_file
from inference.models.manifest import Format
from inference.quantization.plan import plan_quantisation
from inference.quantization.targets import TARGETS, is_quantised, parse_target, warning_of
from inference.quantize import quantize
from market.errors import DiskFull, ModelFileInvalid, NodeMisconfigured, RequestInvalid

ROOT = Path(__file__).resolve().parents[2]
Q4_0_BYTES = 91_726_912


@pytest.fixture(autouse=True)
def tidy(tmp_path):
    """What models leave is large, and pytest keeps the folders of three runs."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.model
async def test_the_default_model_comes_out_as_the_prepared_file(wheel_model, default_model, tmp_path, capfd):
    target = tmp_path / "model.gguf"
    heard = []
    plan = await quantize(wheel_model, target, heard=lambda done, total: heard.append((done, total)))
    ours = hashlib.sha256(target.read_bytes()).hexdigest()
    assert target.stat().st_size == Q4_0_BYTES
    assert ours == hashlib.sha256(default_model.read_bytes()).hexdigest()
    assert names(tmp_path) == ["model.gguf"]
    assert capfd.readouterr() == ("", "")
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert all(0 <= done <= total == plan.target_bytes for done, total in heard)


@pytest.mark.model
@pytest.mark.parametrize("to", ["F16", "Q4_K_M"])
async def test_each_format_is_what_it_says_and_about_as_large_as_reckoned(wheel_model, tmp_path, to):
    target = tmp_path / "model.gguf"
    plan = await quantize(wheel_model, target, to.lower())
    assert inspect_file(target).quantisation == to
    assert 1 <= plan.target_bytes / target.stat().st_size < 1.08


async def test_what_is_no_model_is_refused(tmp_path):
    source = tmp_path / "model.gguf"
    source.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ModelFileInvalid):
        await quantize(source, tmp_path / "out.gguf")


@pytest.mark.model
@pytest.mark.parametrize("size", [300, 5_000_000])
async def test_a_truncated_file_leaves_no_target_and_no_scraps(wheel_model, tmp_path, size):
    source = tmp_path / "short.gguf"
    source.write_bytes(wheel_model.read_bytes()[:size])
    with pytest.raises(ModelFileInvalid, match=r"short\.gguf"):
        await quantize(source, tmp_path / "out.gguf")
    assert names(tmp_path) == ["short.gguf"]


@pytest.mark.model
async def test_a_file_that_lies_about_its_tensors_kills_the_child_at_most(wheel_model, tmp_path):
    """The tensor table's bytes are garbled: whatever llama.cpp does about it, the node's own process goes on."""
    source, data = tmp_path / "bent.gguf", bytearray(wheel_model.read_bytes())
    at = data.index(b"blk.0.attn_norm.weight")
    data[at + 22 + 4 : at + 22 + 12] = (577).to_bytes(8, "little")
    source.write_bytes(data)
    with pytest.raises(ModelFileInvalid, match=r"bent\.gguf"):
        await quantize(source, tmp_path / "out.gguf")
    assert names(tmp_path) == ["bent.gguf"]


async def test_an_older_target_survives_a_failure(tmp_path):
    source, target = tmp_path / "bad.gguf", tmp_path / "out.gguf"
    source.write_bytes(b"GGUF" + b"\xff" * 100)
    target.write_bytes(b"older")
    with pytest.raises(ModelFileInvalid):
        await quantize(source, target)
    assert target.read_bytes() == b"older"


@pytest.mark.model
async def test_missing_paths_and_unknown_formats_are_named(default_model, tmp_path):
    with pytest.raises(NodeMisconfigured, match="cannot read"):
        await quantize(tmp_path / "none.gguf", tmp_path / "out.gguf")
    with pytest.raises(RequestInvalid, match=r"Q9.*Q4_0"):
        await quantize(default_model, tmp_path / "out.gguf", "Q9")
    with pytest.raises(NodeMisconfigured, match="cannot write"):
        await quantize(default_model, tmp_path / "no" / "out.gguf")


def test_a_shard_that_is_missing_is_named(tmp_path):
    first = tmp_path / "big-00001-of-00002.gguf"
    first.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ModelFileInvalid, match="big-00002-of-00002"):
        plan_quantisation(first, "Q8_0")


@pytest.mark.model
async def test_a_cancelled_caller_leaves_no_child_and_no_scraps(wheel_model, tmp_path):
    started = asyncio.Event()
    work = asyncio.create_task(
        quantize(wheel_model, tmp_path / "out.gguf", "IQ4_NL", heard=lambda done, _: done and started.set())
    )
    await asyncio.wait([work, asyncio.create_task(started.wait())], return_when=asyncio.FIRST_COMPLETED)
    assert not work.done()
    assert children() != []
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert children() == []
    assert names(tmp_path) == []


def children():
    """Quantising children of this process."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if "inference.quantization.child" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.model
@pytest.mark.processes
async def test_the_child_dies_with_its_parent(wheel_model, tmp_path):
    program = (
        "import asyncio, sys; from pathlib import Path; from inference.quantize import quantize;"
        "asyncio.run(quantize(Path(sys.argv[1]), Path(sys.argv[2]), 'IQ4_NL'))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, wheel_model, tmp_path / "out.gguf"], cwd=ROOT)
    child = None
    while child is None:
        assert parent.poll() is None
        working = [path for path in tmp_path.glob(".out.gguf.*/made.gguf") if path.stat().st_size]
        child = next(iter(psutil.Process(parent.pid).children()), None) if working else None
        await asyncio.sleep(0.02)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    gone, _ = await asyncio.to_thread(psutil.wait_procs, [child], 60)
    assert gone
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.model
async def test_a_disk_that_is_too_small_is_told_before_anything_is_run(wheel_model, tmp_path, small_disk):
    with pytest.raises(DiskFull, match="Q8_0 takes about 138 MiB"):
        await quantize(wheel_model, small_disk / "out.gguf", "Q8_0")
    assert names(small_disk) == []


@pytest.mark.model
async def test_a_disk_that_fills_up_meanwhile_is_a_full_disk_and_not_a_bad_model(wheel_model, small_disk):
    """There is room when it begins; somebody else takes it."""

    def fill(done, _total):
        if not (small_disk / "else").exists():
            free = shutil.disk_usage(small_disk).free
            with suppress(OSError), (small_disk / "else").open("wb", 0) as file:
                for _ in range(free // (1 << 20) + 1):
                    file.write(bytes(1 << 20))

    with pytest.raises(DiskFull):
        await quantize(wheel_model, small_disk / "out.gguf", "Q4_K_M", heard=fill)
    assert names(small_disk) == ["else"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 120 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_safetensors_go_through_the_same_door(tmp_path):
    header = b'{"up.weight":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}}'
    source = tmp_path / "model.safetensors"
    source.write_bytes(len(header).to_bytes(8, "little") + header + np.arange(16, dtype="<f4").tobytes())
    target = tmp_path / "out.safetensors"
    for to, word in (("FP16", "F16"), ("bf16", "BF16"), ("fp8", "F8_E4M3")):
        plan = await quantize(source, target, to)
        assert plan.target_bytes == target.stat().st_size
        assert inspect_file(target).quantisation == word


def test_words_are_taken_as_people_write_them_and_choices_named():
    assert parse_target("fp16", Format.SAFETENSORS).word == "F16"
    assert parse_target(" q4_k_m ", Format.GGUF).word == "Q4_K_M"
    for format, word in ((Format.GGUF, "FP8"), (Format.ONNX, "Q4_0"), (Format.PYTORCH, "F16")):
        with pytest.raises(RequestInvalid) as refused:
            parse_target(word, format)
        assert refused.value.next_step
    assert set(TARGETS) == {Format.GGUF, Format.ONNX, Format.SAFETENSORS}


def test_quantising_what_is_quantised_is_warned_of():
    assert is_quantised("Q4_1")
    assert is_quantised("INT8")
    assert not is_quantised("bf16")
    assert not is_quantised("unknown")
    assert "Q4_1" in warning_of("Q4_1", "Q8_0")
    assert warning_of("F32", "Q8_0") == ""
