"""Who may import whom (docs/architecture.md), read from the syntax trees of all six packages.

The rules are a function over (module name, source), so that each of them is seen to refuse a planted line.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("market", "p2p", "inference", "verifier", "contracts", "node")
MAY_KNOW = {
    "market": {"market"},
    "p2p": {"market", "p2p"},
    "inference": {"market", "inference"},
    "verifier": {"market", "verifier"},
    "contracts": {"market", "contracts"},
    "node": set(PACKAGES),
}
NOT_SHIPPED = {"tests", "bench", "scripts"}

# market/ touches nothing: no sockets, files, processes, clocks, chance or environment.
IMPURE = {
    "concurrent", "ctypes", "datetime", "fcntl", "ftplib", "glob", "http", "importlib", "io", "logging", "mmap",
    "multiprocessing", "os", "pathlib", "platform", "random", "resource", "sched", "secrets", "select", "selectors",
    "shutil", "signal", "smtplib", "socket", "socketserver", "sqlite3", "ssl", "subprocess", "sys", "tempfile",
    "threading", "time", "urllib", "uuid", "webbrowser", "zoneinfo",
}  # fmt: skip
MARKET_LIBRARIES = {"coincurve", "eth_hash", "libipld", "nacl", "pydantic", "pydantic_core"}
IMPURE_CALLS = {"open", "print", "input", "eval", "exec", "__import__"}
# The two stories, each told over a few files: they wait (for tokens, vouchers, the other side) and say what they do.
MARKET_STORIES = {
    "market.buyer", "market.deal", "market.reception", "market.purse",
    "market.seller", "market.delivery", "market.till", "market.talk", "market.loopback", "market.testing",
}  # fmt: skip
ASYNCIO_REACHES_OUT = {"open_connection", "open_unix_connection", "start_server", "start_unix_server", "to_thread",
                       "create_subprocess_exec", "create_subprocess_shell", "run", "Runner"}  # fmt: skip

READS_ENVIRONMENT = {"node.config"}
KNOWS_SETTINGS = READS_ENVIRONMENT | {"node.settings"}  # the tree of settings, filled by node.config
# A child sets up its own, before its library loads.
CHILD_ENVIRONMENT = ("inference.worker", "inference.isolation", "inference.work.diffusion_runner")
LINES_LIMIT = 400


def violations(module: str, source: str) -> list[str]:
    """Every rule that `source`, as the module `module`, breaks; one readable line each."""
    tree = ast.parse(source)
    package = module.split(".", maxsplit=1)[0]
    imports = list(_imports(module, tree))
    tops = {name.split(".")[0] for name in imports}
    found = [
        f"{module} imports {name}: {package}/ may know {' '.join(sorted(MAY_KNOW[package]))} only"
        for name in imports
        if name.split(".")[0] in (set(PACKAGES) | NOT_SHIPPED) - MAY_KNOW[package]
    ]
    if "trio" in tops and package != "p2p":
        found.append(f"{module} imports trio, which lives inside p2p/ only")
    if "libp2p" in tops and package != "p2p":
        found.append(f"{module} imports libp2p, which lives inside p2p/ only")
    if {"trio", "asyncio"} <= tops and module != "p2p.bridge":
        found.append(f"{module} imports asyncio and trio: the two meet in p2p/bridge.py only")
    if package == "market":
        found += _impurities(module, tree, tops)
    found += _environment(module, tree, tops)
    return found


def _imports(module: str, tree: ast.AST) -> Iterator[str]:
    """Absolute names of all modules imported anywhere, in functions and by constant strings too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])]) or module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def _impurities(module: str, tree: ast.AST, tops: set[str]) -> Iterator[str]:
    for name in sorted(tops & IMPURE):
        yield f"{module} imports {name}: market/ touches nothing"
    told = module in MARKET_STORIES or module.startswith("market.testing")
    if "asyncio" in tops and not told:
        yield f"{module} imports asyncio: only {' '.join(sorted(MARKET_STORIES))} may"
    libraries = MARKET_LIBRARIES | ({"structlog"} if told else set())
    for name in sorted(tops - sys.stdlib_module_names - libraries - set(PACKAGES) - NOT_SHIPPED):
        yield f"{module} imports {name}, a library that market/ does not use"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            yield f"{module} calls {node.func.id}(): market/ touches nothing"
        if (isinstance(node, ast.Attribute) and node.attr in ASYNCIO_REACHES_OUT
                and isinstance(node.value, ast.Name) and node.value.id == "asyncio"):  # fmt: skip
            yield f"{module} uses asyncio.{node.attr}: market/ opens nothing"


def _environment(module: str, tree: ast.AST, tops: set[str]) -> Iterator[str]:
    if module in READS_ENVIRONMENT or module.startswith(CHILD_ENVIRONMENT):
        return
    names = {"environ", "environb", "getenv", "getenvb"}
    for node in ast.walk(tree):
        attribute = isinstance(node, ast.Attribute) and node.attr in names
        imported = isinstance(node, ast.ImportFrom) and node.module == "os" and names & {a.name for a in node.names}
        if attribute or imported:
            yield f"{module} reads the environment: only node/config.py does"
    if "pydantic_settings" in tops and module not in KNOWS_SETTINGS:
        yield f"{module} imports pydantic_settings: only {' '.join(sorted(KNOWS_SETTINGS))} may"


def _sources() -> dict[str, Path]:
    files = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    named = ((path.relative_to(ROOT).with_suffix("").parts, path) for path in files if "node_modules" not in path.parts)
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for parts, path in named}


SOURCES = _sources()


@pytest.mark.parametrize("module", SOURCES)
def test_module_keeps_to_its_floor(module: str) -> None:
    path = SOURCES[module]
    name = f"{module}.__init__" if path.name == "__init__.py" else module
    assert violations(name, path.read_text(encoding="utf-8")) == []


def test_all_six_packages_are_looked_at() -> None:
    assert {name.split(".")[0] for name in SOURCES} == set(PACKAGES)


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("market.offer", "from node.config import Settings", "imports node.config"),
        ("market.offer", "def f():\n    import p2p.network", "imports p2p.network"),
        ("market.offer", "from tests.fakes import X", "imports tests.fakes"),
        ("market.offer", "import time", "imports time"),
        ("market.offer", "from os import path", "imports os"),
        ("market.offer", "import secrets, random", "imports secrets"),
        ("market.offer", "import asyncio", "imports asyncio"),
        ("market.offer", "import aiohttp", "imports aiohttp"),
        ("market.offer", "import structlog", "imports structlog"),
        ("market.offer", "open('x')", "calls open()"),
        ("market.buyer", "import asyncio\nasyncio.open_connection()", "asyncio.open_connection"),
        ("market.offer", "__import__('socket')", "imports socket"),
        ("p2p.network", "from inference.scheduler import Scheduler", "imports inference.scheduler"),
        ("p2p.network", "import trio\nimport asyncio", "the two meet"),
        ("inference.worker", "import verifier", "imports verifier"),
        ("inference.engines.llama_cpp", "from ...node import wiring", "imports node"),
        ("inference.worker", "import trio", "imports trio"),
        ("verifier.receipts", "from contracts import ledger", "imports contracts"),
        ("contracts.ledger", "import importlib\nimportlib.import_module('node.store')", "imports node.store"),
        ("contracts.ledger", "import bench.speed", "imports bench.speed"),
        ("node.devnet", "import trio", "imports trio"),
        ("node.wiring", "import libp2p.host", "imports libp2p"),
        ("node.cli.main", "import os\nos.environ['HOME']", "reads the environment"),
        ("node.cli.main", "from os import getenv", "reads the environment"),
        ("p2p.keys", "import pydantic_settings", "imports pydantic_settings"),
    ],
)
def test_planted_line_is_refused(module: str, source: str, words: str) -> None:
    assert any(words in line for line in violations(module, source)), violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("market.offer", "from market.money import Amount\nfrom . import values\nimport hashlib, pydantic"),
        ("market.till", "import asyncio, structlog\nasyncio.Lock()"),
        ("p2p.bridge", "import asyncio\nimport trio"),
        ("p2p.host", "import trio\nimport libp2p\nfrom p2p.wire import x\nfrom market.offer import Offer"),
        ("inference.worker", "import os\nos.environ['OMP_WAIT_POLICY'] = 'PASSIVE'"),
        ("node.config", "import os\nos.environ.get('OCTO_DATA_DIR')\nimport pydantic_settings"),
        ("node.wiring", "import p2p.network, inference.worker, verifier.receipts, contracts.ledger, market.buyer"),
    ],
)
def test_allowed_line_passes(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_tests_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("module", SOURCES)
def test_module_fits_in_the_head(module: str) -> None:
    assert len(SOURCES[module].read_text(encoding="utf-8").splitlines()) <= LINES_LIMIT
