"""The real model, for tests that run real weights; and jobs for it."""

from __future__ import annotations

from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parents[2] / ".cache" / "models"


def _prepared(name: str) -> Path:
    path = MODELS / name
    if not path.is_file():
        pytest.fail(f"{path.relative_to(MODELS.parents[1])} is missing: run make model", pytrace=False)
    return path


@pytest.fixture(scope="session")
def default_model() -> Path:
    return _prepared("SmolLM2-135M-Instruct.Q4_0.gguf")


@pytest.fixture(scope="session")
def wheel_model() -> Path:
    """The file as it comes in the wheel."""
    return _prepared("SmolLM2-135M-Instruct.Q4_1.gguf")
