"""A store for every test of the content listener."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.models.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "models")
    yield opened
    opened.close()
