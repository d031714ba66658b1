"""The ABIs of our own contracts, parsed once, and the bytecode that creates them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from contracts.abi import Abi


@cache
def _artifact(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / "artifacts" / f"{name}.json").read_text())
    return found


@cache
def abi_of(name: str) -> Abi:
    return Abi(_artifact(name)["abi"])


def bytecode_of(name: str) -> bytes:
    return bytes.fromhex(_artifact(name)["bytecode"][2:])
