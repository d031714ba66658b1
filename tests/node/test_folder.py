"""One node a folder, and nobody else's hands in it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from market.errors import DiskFull, NodeMisconfigured
from node.folder import find_running, open_folder, write_whole

ROOT = Path(__file__).resolve().parents[2]

_HOLDER = """
import sys, time
from pathlib import Path
from node.folder import open_folder
with open_folder(Path(sys.argv[1])) as folder:
    folder.announce(api="http://127.0.0.1:8080", token_file=folder.path("token"))
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/octo."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, tmp_path / "octo"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_new_folder_is_the_owners_alone(tmp_path):
    with open_folder(tmp_path / "deep" / "octo") as folder:
        assert folder.root.stat().st_mode & 0o777 == 0o700
        assert folder.path("keys", "peer.key").parent.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_another_process_holds_names_it_and_the_next_step(tmp_path, holder):
    with (
        pytest.raises(NodeMisconfigured, match=rf"held by process {holder.pid}\. Stop that node first"),
        open_folder(tmp_path / "octo"),
    ):
        pass


def test_the_cli_finds_the_node_that_holds_the_folder(tmp_path, holder):
    running = find_running(tmp_path / "octo")
    assert (running.pid, running.api) == (holder.pid, "http://127.0.0.1:8080")
    assert Path(running.token_file) == tmp_path / "octo" / "token"
    assert (tmp_path / "octo" / "running.json").stat().st_mode & 0o777 == 0o600


def test_a_killed_node_lets_go_and_its_note_does_not_count(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "octo" / "running.json").exists()
    assert find_running(tmp_path / "octo") is None
    with open_folder(tmp_path / "octo"):
        assert not (tmp_path / "octo" / "running.json").exists()


def test_nothing_is_found_where_no_node_runs(tmp_path):
    assert find_running(tmp_path / "nowhere") is None
    with open_folder(tmp_path / "octo") as folder:
        assert find_running(tmp_path / "octo") is None
        folder.announce(api="http://127.0.0.1:1", token_file=folder.path("token"))
        assert find_running(tmp_path / "octo").pid == os.getpid()
    assert find_running(tmp_path / "octo") is None
    assert not (tmp_path / "octo" / "running.json").exists()


@pytest.mark.parametrize("note", [b"", b"[]", b'{"pid": "x"}', b"\xff", json.dumps({"pid": 1}).encode()])
def test_a_damaged_note_finds_nothing(tmp_path, note):
    with open_folder(tmp_path / "octo"):
        (tmp_path / "octo" / "running.json").write_bytes(note)
        assert find_running(tmp_path / "octo") is None


def test_a_folder_that_anybody_may_write_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(NodeMisconfigured, match="chmod 700"), open_folder(tmp_path):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_somebody_elses_folder_is_refused(tmp_path):
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(NodeMisconfigured, match="belongs to user 12345"), open_folder(tmp_path):
        pass


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "octo").write_text("x")
    with pytest.raises(NodeMisconfigured, match="OCTO_DATA_DIR"), open_folder(tmp_path / "octo"):
        pass


def test_a_path_cannot_leave_the_folder(tmp_path):
    with open_folder(tmp_path / "octo") as folder, pytest.raises(NodeMisconfigured, match="outside"):
        folder.path("..", "elsewhere")


def test_a_whole_write_replaces_and_leaves_nothing_else(tmp_path):
    for data in (b"first", b"second"):
        write_whole(tmp_path / "key", data)
    assert (tmp_path / "key").read_bytes() == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_write_that_does_not_fit_keeps_the_old_file(tmp_path):
    """On a real tmpfs, really full."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs takes root")
    try:
        write_whole(tmp_path / "key", b"old")
        with pytest.raises(DiskFull, match="no room"):
            write_whole(tmp_path / "key", b"x" * 100_000)
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("key", b"old")]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


_KILLED = """
import sys
from pathlib import Path
from node.folder import write_whole
print("go", flush=True)
while True:
    for letter in b"ab":
        write_whole(Path(sys.argv[1]), bytes([letter]) * 200_000)
"""


def test_a_kill_in_the_middle_of_writing_leaves_the_old_or_the_new(tmp_path):
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", _KILLED, tmp_path / "key"], stdout=subprocess.PIPE, cwd=ROOT)
        writer.stdout.readline()
        while not (tmp_path / "key").exists():
            assert writer.poll() is None
        writer.kill()
        writer.wait()
        writer.stdout.close()
        held = (tmp_path / "key").read_bytes()
        assert len(held) == 200_000
        assert len(set(held)) == 1
