"""What every test may ask for. Nothing here patches or configures the code under test."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, like the node; trio lives inside p2p alone."""
    return "asyncio"
