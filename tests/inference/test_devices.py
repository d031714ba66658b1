"""Children that compute on cards: which devices they reach, and what they cannot do all the same.

There is no card here. Harmless devices stand in for one: `full` and `random`, beside `zero`, which is never allowed.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from inference.devices import NO_CARDS, CardAccess, card_access
from inference.isolation import child_environment, landlock_abi
from inference.offload import supports_offload
from inference.work.engine import open_work_engine
from inference.work.onnx_session import choose_providers
from market.errors import NodeMisconfigured
from market.testing_work import ByteMeter
from market.work import Work

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
landlock = pytest.mark.skipif(landlock_abi() < 1, reason="the kernel has no Landlock")

_ATTEMPTS = """
import fcntl, os, socket, sys, threading
from pathlib import Path
from inference.isolation import close_the_door, confine
folder, devices = Path(sys.argv[1]), [Path("/dev") / name for name in sys.argv[2:]]
go, told = threading.Event(), []
def attempt(name, action):
    try:
        action()
        told.append(f"{name} ok")
    except (OSError, MemoryError) as error:
        told.append(f"{name} {type(error).__name__}")
def late():
    go.wait()
    attempt("socket-in-thread", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
early = threading.Thread(target=late)
early.start()
print(confine([], memory_bytes=1 << 28, devices=devices))
def use(name, flags=os.O_RDWR):
    handle = os.open(f"/dev/{name}", flags)
    if name == "random":
        fcntl.ioctl(handle, 0x80045200, bytes(4))  # RNDGETENTCNT: how much it holds
    os.close(handle)
def nameless():
    handle = os.memfd_create("x")
    os.ftruncate(handle, 1 << 20)
attempt("random", lambda: use("random"))
attempt("full", lambda: use("full"))
attempt("zero", lambda: use("zero"))
attempt("zero-read", lambda: use("zero", os.O_RDONLY))
attempt("memory", lambda: bytearray(1 << 30))
attempt("nameless", nameless)
attempt("write", lambda: (folder / "x").write_bytes(b"x"))
close_the_door(devices=bool(devices))
attempt("random-late", lambda: use("random"))
attempt("zero-late", lambda: use("zero"))
attempt("socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
go.set()
early.join()
print(*told, sep="\\n")
"""


def attempts(folder, *devices: str) -> tuple[str, dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-c", _ATTEMPTS, str(folder), *devices],
        check=False, env=child_environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    level, *lines = done.stdout.splitlines()
    return level, dict(line.split() for line in lines)


@landlock
def test_a_child_with_devices_uses_these_and_no_others_and_speaks_to_nobody(tmp_path):
    level, did = attempts(tmp_path, "random", "full")
    assert level == "landlock+rlimits+devices"
    assert {name for name, how in did.items() if how == "ok"} == {"random", "full", "memory", "nameless", "random-late"}
    assert {did[name] for name in ("zero", "zero-read", "zero-late", "write")} == {"PermissionError"}
    assert did["socket"] == did["socket-in-thread"] == "PermissionError", "in all its threads"


@landlock
def test_a_child_without_devices_opens_none_and_its_memory_is_bounded(tmp_path):
    level, did = attempts(tmp_path)
    assert level == "landlock+rlimits"
    assert "ok" not in did.values()
    assert did["memory"] == "MemoryError"


def test_only_device_files_count_as_cards_and_facts_come_with_them(tmp_path):
    for name in ("dev/nvidia-caps", "proc/driver/nvidia/gpus", "usr/local/cuda-13.0/lib64", "etc"):
        (tmp_path / name).mkdir(parents=True)
    assert card_access(tmp_path) == NO_CARDS, "a machine without cards"
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap1"):
        (tmp_path / "dev" / name).symlink_to("/dev/null")
    (tmp_path / "dev" / "nvidia1").write_text("no device")
    (tmp_path / "dev" / "nvidia2").symlink_to("nowhere")
    (tmp_path / "dev" / "sda").symlink_to("/dev/null")
    (tmp_path / "etc" / "ld.so.cache").touch()
    found = card_access(tmp_path)
    names = {path.removeprefix(f"{tmp_path}/dev/") for path in found.devices}
    assert names == {"nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap1"}
    readable = {path.removeprefix(f"{tmp_path}/") for path in found.readable}
    assert readable == {"proc/driver/nvidia", "usr/local/cuda-13.0", "etc/ld.so.cache"}


@landlock
@pytest.mark.parametrize(("devices", "word"), [((), "landlock+rlimits"), (("/dev/full",), "landlock+rlimits+devices")])
async def test_an_engines_children_get_the_devices_that_it_names_and_its_offer_says_so(tmp_path, devices, word):
    cards = CardAccess(devices=devices)
    async with open_work_engine(
        "tests.inference.toy_runner", tmp_path, works=frozenset((Work.EMBED,)), meter=ByteMeter(), cards=cards,
        memory_bytes=1 << 30,
    ) as engine:  # fmt: skip
        assert engine.isolation == word


def test_providers_are_taken_in_the_order_named_and_the_processor_comes_last():
    everything = [CPU, CUDA, TENSORRT]
    assert choose_providers(["tensorrt", "cuda"], everything, fall_back=False) == [TENSORRT, CUDA, CPU]
    assert choose_providers(["cpu"], everything, fall_back=False) == [CPU]
    assert choose_providers([], everything, fall_back=False) == [CPU]


def test_a_provider_that_the_library_lacks_is_refused_by_name_and_left_out_otherwise():
    with pytest.raises(NodeMisconfigured, match=CUDA):
        choose_providers(["cuda"], [CPU], fall_back=False)
    assert choose_providers(["cuda", "cpu"], [CPU], fall_back=True) == [CPU]
    with pytest.raises(NodeMisconfigured, match="no execution provider"):
        choose_providers(["rocket"], [CPU], fall_back=True)


@pytest.mark.parametrize(
    ("code", "able"),
    [
        ("print('yes')", True),
        ("print('no')", False),
        ("print('yes'); raise SystemExit(1)", False),
        ("import os; os.abort()", False),
        ("print('yes' * 1000)", False),
    ],
)
async def test_a_library_that_crashes_on_the_question_has_no_cards(code, able):
    assert await supports_offload([sys.executable, "-c", code]) is able


async def test_a_library_that_never_answers_has_no_cards_and_its_process_is_ended():
    started = asyncio.get_running_loop().time()
    assert not await supports_offload([sys.executable, "-c", "import time; time.sleep(60)"], limit_s=0.5)
    assert asyncio.get_running_loop().time() - started < 30


@pytest.mark.skipif(bool(card_access().devices), reason="there is a card")
async def test_the_library_itself_says_that_there_is_no_card_here():
    assert not await supports_offload()
