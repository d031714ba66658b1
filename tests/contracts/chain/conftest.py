"""The worlds of `worlds.py` as fixtures."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import World, anvil_world, devchain_world, needs_anvil


@pytest.fixture(scope="session", params=["devchain", "anvil"])
async def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    if request.param == "anvil":
        needs_anvil()
        async with anvil_world() as found:
            yield found
    else:
        async with devchain_world(tmp_path_factory.mktemp("devchain")) as found:
            yield found


@pytest.fixture
async def anvil() -> AsyncIterator[World]:
    """An anvil of the test's own, which it may bend: blocks taken back, no mining, other fees."""
    needs_anvil()
    async with anvil_world() as found:
        yield found
