"""The environment in which the set-up calls pip: how to reach the network is the user's, what to install is ours.

A find-links folder, an extra index or a constraint from someone's configuration would slip other builds in (and fail
the hashes), so only the settings that say *how* to download are carried over. Standard library only.
"""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

_REACH = (
    "index-url",
    "proxy",
    "cert",
    "client-cert",
    "trusted-host",
    "timeout",
    "default-timeout",
    "retries",
    "cache-dir",
)
_NOT_OURS = ("PIP_", "UV_", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "VIRTUAL_ENV", "PYTHONNOUSERSITE")


def pip_environment(python: Path) -> dict[str, str]:
    """os.environ without pip's and uv's settings, plus those of `python -m pip` that say how to reach the network."""
    listed = subprocess.run(
        [str(python), "-m", "pip", "config", "list"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return clean_environment(os.environ, reach_settings(listed.stdout))


def reach_settings(listing: str) -> dict[str, str]:
    """`global.index-url='…'` lines, lowest rank first, as {"PIP_INDEX_URL": "…"}; everything else is left out."""
    ranked: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        key, equals, text = line.partition("=")
        section, _, name = key.rpartition(".")
        if not equals or name not in _REACH or section not in ("global", "install", ":env:"):
            continue
        try:
            value = str(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            continue
        rank = ("global", "install", ":env:").index(section)
        if value.strip() and rank >= ranked.get(name, (-1, ""))[0]:
            ranked[name] = (rank, " ".join(value.split()))
    return {f"PIP_{name.upper().replace('-', '_')}": value for name, (_, value) in ranked.items()}


def clean_environment(environment: Mapping[str, str], reach: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in environment.items() if not name.startswith(_NOT_OURS)}
    fixed = {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    return {**kept, **reach, **fixed}
