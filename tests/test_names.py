"""Names and addresses: our packages are the ones that get imported, and no file ties us to one machine or mirror."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("market", "p2p", "inference", "verifier", "contracts", "node")
LOCKS = (
    "requirements/lock.txt", "requirements/build.txt", "requirements/model.txt", "requirements/node.txt",
    "requirements/slither.txt", "requirements/ipfs.txt",
)  # fmt: skip

# Put together from pieces, so that this file does not find itself.
HOSTS = re.compile(
    "|".join(
        re.escape("".join(pieces))
        for pieces in [
            ("pypi", ".org"), ("python", "hosted.org"), ("npm", "js.org"), ("npm", "js.com"), ("yarn", "pkg.com"),
            ("deb", ".debian.org"), ("security", ".debian.org"), ("crates", ".io"), ("artifactory", "/"),
        ]
    ),
    re.IGNORECASE,
)  # fmt: skip
MACHINE_PATHS = re.compile(r"(?<![\w.~$)}>/-])/(?:" + "|".join(("wo" + "rk", "ro" + "ot", "tm" + "p")) + r")/\w")
LEFT_OPEN = re.compile(
    r"\b(?:"
    + "|".join(("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error", "x" + "fail", r"mock\." + "patch"))
    + r")\b"
)


def repository_files() -> Iterator[Path]:
    """Tracked files; in an unpacked archive, all files that are not hidden or built."""
    command = ["git", "-C", ROOT, "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, check=False).stdout if shutil.which("git") else b""
    if listed:
        paths = (ROOT / name for name in listed.decode().split("\0") if name)
    else:
        skip = {"node_modules", "build", "dist", "__pycache__"}
        paths = (
            path
            for path in ROOT.rglob("*")
            if not any(part in skip or part.startswith(".") for part in path.relative_to(ROOT).parts)
        )
    yield from (path for path in paths if path.is_file())


def lines_matching(pattern: re.Pattern[str], name: str, text: str) -> list[str]:
    return [f"{name}:{n}: {line.strip()[:160]}" for n, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


def matches(pattern: re.Pattern[str]) -> list[str]:
    found: list[str] = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights, images: no text, no addresses
        found += lines_matching(pattern, str(path.relative_to(ROOT)), text)
    return found


@pytest.mark.parametrize("name", PACKAGES)
def test_our_package_is_the_one_that_is_imported(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT / name)


@pytest.mark.parametrize("name", PACKAGES)
def test_no_dependency_ships_a_package_of_our_name(name: str) -> None:
    """`octo-node` finds installed packages before ours, so a dependency's top-level `node` would win."""
    folders = [Path(entry).resolve() for entry in sys.path if entry and Path(entry).resolve() != ROOT]
    taken = [str(hit) for folder in folders if folder.is_dir() for hit in (*folder.glob(f"{name}.*"), folder / name)]
    assert [hit for hit in taken if Path(hit).exists()] == []


def test_no_file_names_a_package_registry() -> None:
    assert matches(HOSTS) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    assert matches(MACHINE_PATHS) == []


def test_nothing_is_left_open_in_the_code() -> None:
    assert [line for line in matches(LEFT_OPEN) if line.split(":")[0].endswith(".py")] == []


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (HOSTS, "https://py" + "pi.org/simple"),
        (HOSTS, "https://files.python" + "hosted.org/packages"),
        (MACHINE_PATHS, 'open("/wo' + 'rk/main/x")'),
        (MACHINE_PATHS, "see /tm" + "p/out.json"),
        (LEFT_OPEN, "# TO" + "DO later"),
        (LEFT_OPEN, "@pytest.mark.x" + "fail"),
    ],
)
def test_planted_address_is_found(pattern: re.Pattern[str], line: str) -> None:
    assert lines_matching(pattern, "planted", line)


@pytest.mark.parametrize("line", ["~/.octo/tmp/x", "https://example.org/" + "work/x", "network/root/leaf", "a/tmp/b"])
def test_relative_path_is_no_machine_path(line: str) -> None:
    assert lines_matching(MACHINE_PATHS, "planted", line) == []


def lock_faults(text: str) -> list[str]:
    """What is wrong with a lock file: an unpinned or unhashed entry, an option, an address."""
    entries = re.sub(r"(?m)^\s*#.*$", "", text).replace("\\\n", " ").splitlines()
    shape = re.compile(r"^[a-z0-9][a-z0-9._-]*==\S+( ; .*?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*$")
    return [line[:80] for line in entries if line.strip() and ("://" in line or not shape.match(line))]


@pytest.mark.parametrize("name", LOCKS)
def test_lock_pins_and_hashes_everything_and_has_no_address(name: str) -> None:
    assert lock_faults((ROOT / name).read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "rich>=15 --hash=sha256:" + "0" * 64,
        "rich==15.0.0",
        "rich==15.0.0 --hash=md5:" + "0" * 32,
        "rich @ https://example.org/rich.whl --hash=sha256:" + "0" * 64,
        "--extra-index" + "-url https://example.org",
    ],
)
def test_planted_lock_entry_is_refused(text: str) -> None:
    assert lock_faults(text)


def test_lock_agrees_with_the_build_tools_and_holds_no_torch() -> None:
    lock, build = (dict(re.findall(r"(?m)^([a-z0-9._-]+)==(\S+)", (ROOT / name).read_text())) for name in LOCKS[:2])
    assert {name: (lock[name], build[name]) for name in lock.keys() & build.keys() if lock[name] != build[name]} == {}
    assert [name for name in lock if name == "torch" or name.startswith("nvidia-cu")] == []
