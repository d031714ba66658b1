"""`python -m bench [name …]`: run the benchmarks, write `bench/results/*.json`, print one table.

A figure that misses its goal is printed as such; the exit status is 1 only if a benchmark could not run.
"""

from __future__ import annotations

import importlib
import sys
import traceback

from bench.rows import Row, print_table, write_rows

BENCHMARKS = (
    "engine",
    "sharing",
    "path",
    "receipts",
    "money",
    "node",
    "adding",
    "pulling",
    "embeddings",
    "quantisation",
    "vllm",
)
"""Modules of this package with a `run() -> list[dict]`."""


def main(names: list[str]) -> int:
    rows: list[Row] = []
    failed = False
    for name in names or BENCHMARKS:
        print(f"bench: {name} …", file=sys.stderr)
        try:
            found = [Row(**row) for row in importlib.import_module(f"bench.{name}").run()]
        except Exception:  # noqa: BLE001 - one broken benchmark must not hide the figures of the others
            traceback.print_exc()
            failed = True
            continue
        write_rows(found)
        rows += found
    print_table(rows)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
