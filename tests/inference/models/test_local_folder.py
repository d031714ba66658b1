"""A folder is added as it is, in one order, or refused with the reason."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from inference.models.cid import RAW, cid_of_block
from inference.models.directory import build_folder
from inference.models.local_folder import LocalFolder, folder_entries
from market.errors import EncodingInvalid


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    for path in ("b.gguf", "sub/z", "sub/a", "Z", "sub/deeper/x", "more/q", ".git/config", "sub/.hidden", "ä"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    (root / "nothing").mkdir()
    return root


def test_files_and_folders_come_in_the_order_of_their_bytes(folder: Path) -> None:
    assert folder_entries(folder) == LocalFolder(
        files=["Z", "b.gguf", "ä", "more/q", "sub/a", "sub/z", "sub/deeper/x"],
        folders=["more", "nothing", "sub", "sub/deeper"],
    )


def test_hidden_files_come_only_when_asked_for(folder: Path) -> None:
    found = folder_entries(folder, hidden=True)
    assert {".git/config", "sub/.hidden"} <= set(found.files)
    assert ".git" in found.folders


def test_what_is_found_can_be_built(folder: Path) -> None:
    found = folder_entries(folder)
    files = {path: (cid_of_block(RAW, path.encode()), len(path.encode())) for path in found.files}
    assert len(build_folder(files, found.folders).nodes) == 5


@pytest.mark.parametrize("target", ["z", "deeper", "..", "nowhere", "/etc/passwd", "/etc"])
def test_a_link_is_refused_wherever_it_points(folder: Path, target: str) -> None:
    (folder / "sub" / "link").symlink_to(target)
    with pytest.raises(EncodingInvalid, match="'sub/link' is a link"):
        folder_entries(folder)


def test_a_pipe_or_socket_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(EncodingInvalid, match="'pipe' is a link, a device or a pipe"):
        folder_entries(folder)
    (folder / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket"))
        with pytest.raises(EncodingInvalid, match="'socket'"):
            folder_entries(folder)


def test_a_name_that_is_not_utf_8_is_refused(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_text("x")
    with pytest.raises(EncodingInvalid, match="not UTF-8"):
        folder_entries(folder)


def test_a_folder_too_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "/".join("d" * 31)).mkdir(parents=True)
    assert len(folder_entries(tmp_path).folders) == 31
    (tmp_path / "/".join("d" * 32)).mkdir()
    with pytest.raises(EncodingInvalid, match="deeper than 32"):
        folder_entries(tmp_path)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        folder_entries(tmp_path / "nowhere")
