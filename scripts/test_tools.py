"""`make test-tools`: programs of the operating system that some tests run for real, where they may be installed.

A machine without them, and without the right to install them, still runs every other test: these are skipped, and say
why.
"""

from __future__ import annotations

import ctypes.util
import shutil
import sys
from pathlib import Path

import system_packages
from progress import StepFailed

LOGS = Path(__file__).resolve().parent.parent / ".cache" / "logs"


def missing() -> list[str]:
    """Debian's names of what is not here."""
    needs = {
        "curl": shutil.which("curl") is not None,
        "iproute2": shutil.which("ip") is not None,
        "espeak-ng": shutil.which("espeak-ng") is not None and ctypes.util.find_library("espeak-ng") is not None,
        "flite": ctypes.util.find_library("flite") is not None,
    }
    return [package for package, there in needs.items() if not there]


def main() -> int:
    packages = missing()
    if packages:
        LOGS.mkdir(parents=True, exist_ok=True)
        try:
            system_packages.install(packages, LOGS)
        except StepFailed as error:
            print(f"{error}\n[octo] Going on without: tests that want them are skipped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
