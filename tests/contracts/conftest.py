"""The tools of `make chain-tools`, for the tests of the contracts."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="session")
def forge_tool() -> ModuleType:
    """scripts/forge.py, by file: scripts/ is no package."""
    spec = importlib.util.spec_from_file_location("octo_scripts_forge", SCRIPTS / "forge.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
