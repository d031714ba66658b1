"""Files and folders of this machine, and what is not taken from them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inference.models.local import DEPTH_LIMIT, LocalOrigin
from inference.models.origins import OriginFile
from inference.models.progress import quiet
from inference.models.references import LocalReference
from market.errors import ContentUnavailable, RequestInvalid


def origin(path: Path) -> LocalOrigin:
    return LocalOrigin(LocalReference(path=str(path)))


async def test_a_file_is_itself_and_its_reference_does_not_say_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "my model.gguf"
    path.write_bytes(b"1234")
    one = origin(path)
    assert one.reference == "local:my model.gguf"
    assert await one.files() == [OriginFile(name="my model.gguf", size_bytes=4)]
    assert await one.bring((await one.files())[0], tmp_path / "unused", quiet) == path
    with pytest.raises(RequestInvalid):
        await one.bring(OriginFile(name="other"), tmp_path, quiet)


async def test_a_link_that_the_user_names_is_followed_and_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"1234")
    (tmp_path / "model.gguf").symlink_to("blob")
    one = origin(tmp_path / "model.gguf")
    assert await one.files() == [OriginFile(name="model.gguf", size_bytes=4)]
    assert await one.bring((await one.files())[0], tmp_path, quiet) == tmp_path / "blob"


async def test_a_folder_gives_what_lies_in_it_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a/config.json", ".git/config", "a/.cache"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "inner.link").symlink_to("a/config.json")
    one = origin(tmp_path)
    files = await one.files()
    assert [file.name for file in files] == ["a/config.json", "b.safetensors", "inner.link"]
    assert [(await one.bring(file, tmp_path, quiet)).read_bytes() for file in files] == [
        b"a/config.json", b"b.safetensors", b"a/config.json",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["out", "folder", "nowhere", "loop", "pipe", "deep", "name", "empty"])
async def test_what_is_no_plain_file_of_the_folder_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    if kind == "out":
        (folder / "x").symlink_to("../secret")
    elif kind == "folder":
        (folder / "x").symlink_to("a")
    elif kind == "nowhere":
        (folder / "x").symlink_to("nothing")
    elif kind == "loop":
        (folder / "x").symlink_to("x")
    elif kind == "pipe":
        os.mkfifo(folder / "x")
    elif kind == "deep":
        (folder / "/".join("d" * (DEPTH_LIMIT + 1))).mkdir(parents=True)
    elif kind == "name":
        (folder / "a\nb").write_bytes(b"x")
    with pytest.raises((RequestInvalid, ContentUnavailable)):
        await origin(folder).files()


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "x", "nothing", "a/../b"])
async def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "b").write_bytes(b"b")
    (folder / "x").symlink_to("../secret")
    with pytest.raises((RequestInvalid, ContentUnavailable)):
        await origin(folder).bring(OriginFile(name=name), tmp_path, quiet)


async def test_a_path_that_is_not_there_or_a_device_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", Path("/dev/zero"), Path("~no-such-user-here/a")):
        with pytest.raises((RequestInvalid, ContentUnavailable)):
            await origin(path).files()
