"""`make docs`: every relative link in the documents leads somewhere, every `make` target they name exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def faults(document: Path, targets: set[str]) -> list[str]:
    text, name = document.read_text(encoding="utf-8"), document.relative_to(ROOT)
    links = {link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    lost = [f"{name}: no such file: {link}" for link in links if link and not (document.parent / link).exists()]
    named = set(re.findall(r"(?m)(?:`|^)make ([a-z-]+)", text))
    return lost + [f"{name}: no such target: make {target}" for target in named - targets]


def main() -> int:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    documents = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
    found = [fault for document in documents for fault in faults(document, targets)]
    print("\n".join(found) or f"{len(documents)} documents: all links and targets exist")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
