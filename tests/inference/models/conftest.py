"""Stores in temporary folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.models.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield from _store(tmp_path / "models")


@pytest.fixture
def other_store(tmp_path: Path) -> Iterator[Store]:
    yield from _store(tmp_path / "others")


def _store(root: Path) -> Iterator[Store]:
    opened = Store(root)
    yield opened
    opened.close()
