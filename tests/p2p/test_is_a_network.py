"""The mesh and its in-memory double run the market's own kit."""

import asyncio

import pytest

from market.ports import Conversation
from market.testing import FixedClock, MemoryMesh, Party, check_network


async def _hand_over(arrived: "asyncio.Queue[Conversation]", conversation: Conversation) -> None:
    """Serve by handing the conversation to the test, until the test closes it."""
    arrived.put_nowait(conversation)
    await asyncio.sleep(3600)


@pytest.mark.net
async def test_the_mesh_is_a_network(join) -> None:
    arrived: asyncio.Queue[Conversation] = asyncio.Queue()
    async with join("far", serve=lambda c: _hand_over(arrived, c)) as far, join("near", to=far) as near:
        await check_network(near, far, arrived)


async def test_the_memory_mesh_is_a_network() -> None:
    arrived: asyncio.Queue[Conversation] = asyncio.Queue()
    mesh = MemoryMesh(FixedClock())
    far = mesh.join(Party("far").peer, lambda c: _hand_over(arrived, c))
    near = mesh.join(Party("near").peer, lambda c: _hand_over(arrived, c))
    await check_network(near, far, arrived)
