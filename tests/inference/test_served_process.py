"""A server of our own behind its warden: what it gets, when it is started again, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from inference.engines.served_process import Served, open_served_process
from inference.isolation import child_environment, landlock_abi
from market.errors import EngineFailed
from tests.inference.engine_kit import runs
from tests.inference.upstream_kit import until

PYTHON = (Path(sys.prefix), Path(sys.base_prefix))

_SERVER = """
import os, pathlib, resource, socket, subprocess, sys, time
print("a word for the log", flush=True)
facts = {
    "pid": os.getpid(),
    "environment": dict(os.environ),
    "data": resource.getrlimit(resource.RLIMIT_DATA)[0],
    "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
    "interfaces": sorted(name for _, name in socket.if_nameindex()),
    "oom": int(pathlib.Path("/proc/self/oom_score_adj").read_text()),
    "status": pathlib.Path("/proc/self/status").read_text(),
}
with socket.create_server(("127.0.0.1", 0)) as server:  # its own loopback works
    socket.create_connection(server.getsockname(), 1).close()
subprocess.Popen(["sleep", "1000"], start_new_session=True)  # an orphan to be, in a group of its own
subprocess.Popen(["sh", "-c", "sleep 1001 & sleep 1002"])
pathlib.Path("ready.part").write_text(repr(facts))
os.rename("ready.part", "ready")
time.sleep(1000)
"""


class Case:
    """A server that serves by writing the file `ready`; `serves` False makes it seem silent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ready = folder / "ready"
        self.log = folder / "log"
        self.serves = True
        self.warmed = 0

    async def check(self) -> None:
        if not self.serves or not self.ready.exists():
            raise EngineFailed("not yet.")

    async def warm_up(self) -> None:
        self.warmed += 1

    def served(self, script: str = _SERVER, **more: object) -> Served:
        values = {
            "command": [sys.executable, "-P", "-c", script],
            "environment": {"GREETING": "hello"},
            "folder": self.folder,
            "log": self.log,
            "memory_bytes": 1 << 30,
            "readable": PYTHON,
            "fresh": (self.ready,),
            "start_s": 20.0,
            "health_s": 0.05,
            "grace_s": 1.0,
        }
        return Served(**{**values, **more})  # type: ignore[arg-type]

    @asynccontextmanager
    async def running(self, script: str = _SERVER, **more: object):
        opened = open_served_process(self.served(script, **more), check=self.check, warm_up=self.warm_up)
        async with opened as process:
            yield process

    def left(self) -> list[psutil.Process]:
        """All processes that work in our folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.cwd() == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


async def test_a_server_gets_what_it_is_given_and_nothing_else(case):
    async with case.running() as process:
        facts = eval(case.ready.read_text())
        assert set(facts["environment"]) - {"LC_CTYPE"} == {"GREETING"}  # Python sets that one itself
        assert (facts["data"], facts["core"], facts["oom"]) == (1 << 30, 0, 700)
        assert "NoNewPrivs:\t1" in facts["status"]
        assert facts["interfaces"] == ["lo"] if "netns" in process.isolation else "lo" in facts["interfaces"]
        assert process.ready and process.unavailable() is None and case.warmed == 1
        assert case.log.read_text() == "a word for the log\n" and case.log.stat().st_mode & 0o777 == 0o600
        assert len(case.left()) >= 4
    assert case.left() == []


async def test_a_server_that_needs_a_network_keeps_it(case):
    async with case.running(alone=False) as process:
        assert "netns" not in process.isolation and process.isolation.endswith("rlimits")
        assert os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink("/proc/self/ns/net")


_ATTEMPTS = """
import os, pathlib, sys
def attempt(action):
    try:
        action()
        return "ok"
    except OSError as error:
        return type(error).__name__
secret, model, place, foreign = map(pathlib.Path, sys.argv[1:])
results = [
    attempt(secret.read_bytes),
    attempt(lambda: os.listdir(secret.parent)),
    attempt(lambda: (secret.parent / "new").write_text("x")),
    attempt(lambda: (model / "new").write_text("x")),
    attempt(lambda: os.kill(int(foreign.name), 0)),
    attempt((model / "weights").read_bytes),
    attempt(lambda: (place / "new").write_text("x")),
    attempt(lambda: pathlib.Path("/dev/null").write_text("x")),
]
pathlib.Path("ready.part").write_text(" ".join(results))
os.rename("ready.part", "ready")
__import__("time").sleep(1000)
"""


@pytest.mark.skipif(landlock_abi() < 6, reason="this kernel's Landlock keeps no signals in")
async def test_a_server_touches_no_file_and_no_process_but_its_own(case, tmp_path_factory):
    secret, model, place = (tmp_path_factory.mktemp(name) for name in ("secret", "model", "place"))
    (secret / "key").write_text("secret")
    (model / "weights").write_text("weights")
    arguments = [str(secret / "key"), str(model), str(place), str(os.getpid())]
    command = [sys.executable, "-P", "-c", _ATTEMPTS, *arguments]
    async with case.running(command=command, readable=(*PYTHON, model), workplaces=(place,)) as process:
        assert process.isolation.startswith("landlock+")
        assert case.ready.read_text().split() == ["PermissionError"] * 5 + ["ok"] * 3


@pytest.mark.parametrize("death", ["server", "warden", "silence", "order"])
async def test_a_server_that_dies_or_falls_silent_is_started_again_and_nothing_is_left_of_the_first(case, death):
    async with case.running() as process:
        before = case.left()
        group = [old for old in before if os.getpgid(old.pid) == process.pid]
        if death == "server":
            os.kill(process.pid, signal.SIGKILL)
        elif death == "warden":
            os.kill(psutil.Process(process.pid).ppid(), signal.SIGKILL)
        elif death == "silence":
            case.serves = False
        else:
            process.restart()
        await until(lambda: not process.ready)
        assert isinstance(process.unavailable(), EngineFailed)
        case.serves = True
        await until(lambda: process.ready)
        assert case.warmed == 2
        assert eval(case.ready.read_text())["pid"] == process.pid
        # Once a warden is killed itself, what left the server's group is beyond our reach.
        gone = group if death == "warden" else before
        assert not any(runs(old) for old in gone)
        for old in before:
            with suppress(psutil.NoSuchProcess):
                old.kill()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; print('no such model'); sys.exit(3)", r"exit status 3.*log"),
        ("import os; os.abort()", "SIGABRT"),
        ("x = bytearray(2 << 30)", "exit status 1"),
        ("import time; time.sleep(100)", "did not come up in 1 s"),
    ],
)
async def test_a_first_start_that_fails_says_how_and_is_the_last(case, script, words):
    with pytest.raises(EngineFailed, match=words):
        async with case.running(script, start_s=1.0 if "sleep" in script else 120.0):
            pass
    assert case.left() == []
    if "no such" in script:
        assert case.log.read_text() == "no such model\n"


async def test_a_command_that_is_not_there_is_a_failure(case):
    with pytest.raises(EngineFailed, match="could not be started"):
        async with case.running(command=["/no/such/program"]):
            pass


async def test_a_server_that_will_not_end_is_ended(case):
    stubborn = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{_SERVER}"
    async with case.running(stubborn, grace_s=0.2):
        pass
    assert case.left() == []


async def test_a_server_does_not_outlive_a_node_that_is_killed(case, tmp_path):
    script = f"""
import asyncio
from pathlib import Path
from inference.engines.served_process import Served, open_served_process
from market.errors import EngineFailed
ready = Path({str(case.ready)!r})
async def check():
    if not ready.exists():
        raise EngineFailed("not yet.")
async def warm_up():
    print("up", flush=True)
async def main():
    served = Served(command={[sys.executable, "-c", _SERVER]!r}, environment={{}}, folder=ready.parent,
                    log=ready.parent / "log", memory_bytes=1 << 30, grace_s=0.5,
                    readable=[Path(path) for path in {[str(path) for path in PYTHON]!r}])
    async with open_served_process(served, check=check, warm_up=warm_up):
        await asyncio.sleep(60)
asyncio.run(main())
"""
    node = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=child_environment(), text=True)
    assert "up" in next(node.stdout)
    assert len(case.left()) >= 4
    node.kill()
    node.wait()
    await until(lambda: case.left() == [])


def test_the_log_does_not_grow_for_ever(tmp_path):
    from inference.warden import LOG_LIMIT_BYTES, Log

    log = Log(tmp_path / "log")
    piece = b"x" * (1 << 20)
    for _ in range(3 * (LOG_LIMIT_BYTES >> 20)):
        log.write(piece)
    assert {path.name for path in tmp_path.iterdir()} == {"log", "log.1"}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * LOG_LIMIT_BYTES


def test_a_warden_without_orders_ends(tmp_path):
    for orders in (b"", b"x" * 100_000, json.dumps({"command": []}).encode() + b"\n"):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "inference.warden"],
            input=orders,
            env=child_environment(),
            capture_output=True,
            check=False,
            timeout=120,
        )
        assert done.returncode != 0
