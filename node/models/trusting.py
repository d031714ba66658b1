"""Whom this node believes now: the owner's list, the catalogs that are followed, and names that look like another's.

Joins the pure rules of `inference.models.trust` and `lookalikes` with what the owner has decided.
"""

from __future__ import annotations

from inference.models.library import TrustRule
from inference.models.lookalikes import check_lookalike
from inference.models.manifest import Manifest
from inference.models.trust import check_origin, check_trust, is_trusted, parse_subject
from node.models.catalogs import Catalogs
from node.models.choices import Choices
from node.models.view import ModelView


class Trusting:
    def __init__(self, choices: Choices, catalogs: Catalogs, view: ModelView, *, own_wallet: bytes) -> None:
        self._choices = choices
        self._catalogs = catalogs
        self._view = view
        self._own_wallet = own_wallet

    def check_place(self, reference: str) -> None:
        """Raises ModelUntrusted for unsigned files of a place that is not believed."""
        check_origin(reference, trusted=self._subjects())

    async def rule_for(self, cid: str) -> TrustRule:
        """The check of one manifest: its creator, or a catalog that is followed, must stand for it."""
        known = await self._view.trusted_models()

        def check(manifest: Manifest) -> None:
            if any(entry.manifest == cid for _, entry in self._catalogs.entries()):
                return
            rule = {"own_wallet": self._own_wallet, "shipped_creator": self._view.shipped_creator}
            if not is_trusted(manifest.creator, trusted=self._subjects(), **rule):
                check_lookalike(manifest.name, manifest.creator, known)
            check_trust(manifest, trusted=self._subjects(), **rule)

        return check

    def _subjects(self) -> frozenset[str]:
        return frozenset(parse_subject(entry) for entry in self._choices.all("trust"))
