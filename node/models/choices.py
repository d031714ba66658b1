"""What the owner of this node has decided about models: whom to trust, which catalogs to follow, what to keep.

Lives here: one small JSON file in the data folder, written whole. The settings may name more; a setting cannot be
taken back here. Knows no manifest and no network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from market.errors import NodeMisconfigured, RequestInvalid
from node.folder import write_whole

_LIMIT_BYTES = 1 << 20
_ENTRIES_LIMIT = 4096
_ENTRY_LIMIT = 4096


class Choices:
    """`kind` is `trust`, `catalogs` or `pins`; entries are words without spaces, kept in the order they came."""

    KINDS = ("trust", "catalogs", "pins")

    def __init__(self, path: Path, *, settled: dict[str, Sequence[str]]) -> None:
        """`settled` is what the settings say. Raises NodeMisconfigured if the file cannot be read."""
        self._path = path
        self._settled = settled
        self._own = _read(path)

    def all(self, kind: str) -> Sequence[str]:
        return tuple(dict.fromkeys((*self._settled.get(kind, ()), *self._own[kind])))

    def add(self, kind: str, entry: str) -> bool:
        """Blocking. False if it was there already. Raises RequestInvalid, DiskFull."""
        if not 0 < len(entry) <= _ENTRY_LIMIT or any(c.isspace() for c in entry):
            raise RequestInvalid(f"{entry[:80]!r} is not one word.")
        if entry in self.all(kind):
            return False
        if len(self._own[kind]) >= _ENTRIES_LIMIT:
            raise RequestInvalid(f"there are {_ENTRIES_LIMIT} entries already.", next_step="Remove some first.")
        self._save({**self._own, kind: [*self._own[kind], entry]})
        return True

    def remove(self, kind: str, entry: str) -> bool:
        """Blocking. False if it was not there. Raises RequestInvalid for what the settings say."""
        if entry in self._settled.get(kind, ()):
            raise RequestInvalid(
                f"{entry} is named in the settings.", next_step="`octo-node config check` says where; remove it there."
            )
        if entry not in self._own[kind]:
            return False
        self._save({**self._own, kind: [held for held in self._own[kind] if held != entry]})
        return True

    def _save(self, choices: dict[str, list[str]]) -> None:
        write_whole(self._path, json.dumps(choices, indent=1).encode())
        self._own = choices


def _read(path: Path) -> dict[str, list[str]]:
    empty: dict[str, list[str]] = {kind: [] for kind in Choices.KINDS}
    try:
        with path.open("rb") as file:
            said = json.loads(file.read(_LIMIT_BYTES))
        if not isinstance(said, dict):
            raise TypeError
        for kind, entries in empty.items():
            entries.extend(str(entry) for entry in said.get(kind, ()))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError):
        raise NodeMisconfigured(
            f"{path} cannot be read.", next_step="Correct the JSON in it, or move it away to decide anew."
        ) from None
    return empty
