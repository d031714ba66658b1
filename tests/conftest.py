"""What every test may ask for. Nothing here patches or configures the code under test."""

import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest

# Busy machines are slow, not wrong. CI draws the same examples each time: a new find belongs on a desk.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, like the node; trio lives inside p2p alone."""
    return "asyncio"


@pytest.fixture(autouse=True)
def recursion_limit() -> Iterator[None]:
    """eth-account (here for reference digests) brings py_ecc, which lifts the limit to 100,000 for the whole
    process: deep input would then overflow the C stack instead of raising RecursionError."""
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(1000)
