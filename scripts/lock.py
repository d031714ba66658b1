"""`make lock`: resolves pyproject.toml and requirements/build.in into exact versions with hashes and no addresses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_COMPILE = [
    "pip", "compile", "--quiet", "--no-config", "--universal", "--python-version", "3.11", "--generate-hashes",
    "--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate", "--upgrade",
]  # fmt: skip


def _extras(*names: str) -> list[str]:
    return [word for name in names for word in ("--extra", name)]


def main() -> int:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    for arguments in (
        ["pyproject.toml", *_extras("dev", "bench", "devnet", "onnx"), "--output-file", "requirements/lock.txt"],
        ["requirements/build.in", "--constraint", "requirements/lock.txt", "--output-file", "requirements/build.txt"],
    ):
        subprocess.run([str(ROOT / ".venv/bin/uv"), *_COMPILE, *arguments], cwd=ROOT, env=env, check=True)
    print("requirements/lock.txt and requirements/build.txt are new; run `make test` before you commit them.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
