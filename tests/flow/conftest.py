import asyncio
import inspect
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from no_waiting import NO_WAITING, NoWaitingLoop
from shop import Shop


@pytest.fixture
def shop():
    return Shop()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """On a loop of its own: anyio has one for all tests as long as a fixture of the session lives on it."""
    if pyfuncitem.funcargs.get("anyio_backend") != NO_WAITING or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    with asyncio.Runner(loop_factory=NoWaitingLoop) as runner:
        runner.run(pyfuncitem.obj(**arguments))
    return True
