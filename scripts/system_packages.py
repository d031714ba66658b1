"""What the set-up needs from the operating system: finds out what is missing, and installs it where it may.

Standard library only. Knows Debian's package names; on other systems it names what to install.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from progress import StepFailed, run_step


def missing_packages() -> list[str]:
    """Debian packages that the set-up needs and this machine lacks, in a stable order; empty when all is there."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    needs = {
        # Source-only dependencies: llama-cpp-python wants a C++ compiler, fastecdsa wants Python's and GMP's headers.
        "g++": shutil.which("c++") is not None and shutil.which("cc") is not None,
        f"python{version}-dev": Path(sysconfig.get_path("include"), "Python.h").is_file(),
        "libgmp-dev": _compiles("#include <gmp.h>"),
        # Debian splits `python -m venv` off.
        f"python{version}-venv": find_spec("ensurepip") is not None and find_spec("venv") is not None,
        "make": shutil.which("make") is not None,
        "ca-certificates": _has_certificates(),
    }
    return [package for package, there in needs.items() if not there]


def install(packages: list[str], logs: Path) -> None:
    """Installs `packages` with apt-get as root or through passwordless sudo; raises StepFailed naming them if not."""
    prefix = _root_prefix()
    names = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise StepFailed(
            f"[octo] this machine lacks what Debian calls: {names}. Install them with your package manager and run the "
            "same command again."
        )
    if prefix is None:
        raise StepFailed(
            f"[octo] missing system packages, and no right to install them. As root: apt-get install -y {names}"
            " - then run the same command again."
        )
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]
    run_step("Reading Debian's package lists", [*apt, "update"], log=logs / "apt-update.log", env=env, usually="10 s")
    run_step(
        f"Installing system packages: {names}",
        [*apt, "install", "-y", "--no-install-recommends", *packages],
        log=logs / "apt-install.log",
        env=env,
        usually="1 minute",
    )


def _root_prefix() -> list[str] | None:
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        return None
    asked = subprocess.run(["sudo", "-n", "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return ["sudo", "-n"] if asked.returncode == 0 else None


def _compiles(source: str) -> bool:
    """Whether the preprocessor takes `source`; without a compiler, whether Debian's usual place has the header."""
    compiler = shutil.which("cc")
    if compiler is None:
        return Path("/usr/include/gmp.h").is_file() or any(Path("/usr/include").glob("*-linux-gnu*/gmp.h"))
    command = [compiler, "-E", "-x", "c", "-", "-o", os.devnull]
    return subprocess.run(command, input=source.encode(), capture_output=True, check=False).returncode == 0


def _has_certificates() -> bool:
    """Whether TLS peers can be checked: pip brings its own roots, apt's https sources and our downloads do not."""
    if os.environ.get("SSL_CERT_FILE"):
        return True
    return Path("/etc/ssl/certs/ca-certificates.crt").is_file() or sys.platform != "linux"
