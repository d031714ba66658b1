"""Whose models this node believes: the owner says it, subject by subject.

Lives here: what a subject is and the rule, pure. A signed model is believed for its creator's wallet; files from a
place that signs nothing are believed for the place. Knows no settings and no store: what is trusted comes in.

    0x…          a creator's wallet          hf:OWNER      all that this owner publishes on Hugging Face
    https:HOST   files from this server      pypi:NAME     this package
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from inference.models.manifest import Manifest
from market.errors import ModelUntrusted, RequestInvalid
from market.signing import address_text

_WALLET = re.compile(r"0x[0-9a-fA-F]{40}")
_HUB = re.compile(r"hf:([A-Za-z0-9][A-Za-z0-9._-]{0,95})")
_HOST = re.compile(r"https:([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_PACKAGE = re.compile(r"pypi:([A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?)")


def parse_subject(text: str) -> str:
    """A subject in its one canonical form. Raises RequestInvalid, also for a wallet whose EIP-55 checksum is wrong."""
    if _WALLET.fullmatch(text):
        found = address_text(bytes.fromhex(text[2:]))
        if text[2:] not in (found[2:], text[2:].lower(), text[2:].upper()):
            raise RequestInvalid(
                f"{text} has a wrong checksum: a character of it was mistyped.", next_step="Copy the address anew."
            )
        return found
    if match := _HUB.fullmatch(text):
        return f"hf:{match[1].lower()}"  # the Hub takes no second name that differs in case only
    if _HOST.fullmatch(text):
        return text.lower().rstrip(".").removesuffix(":443")
    if match := _PACKAGE.fullmatch(text):
        return f"pypi:{re.sub('[-_.]+', '-', match[1]).lower()}"  # PEP 503
    raise RequestInvalid(
        f"{text[:80]!r} is nobody that can be trusted.",
        next_step="Name a wallet (0x…), hf:OWNER, https:HOST or pypi:NAME.",
    )


def subject_of(reference: str) -> str:
    """Whom a canonical reference of files (`hf:owner/repo…`, `https://host/…`, `pypi:name==…`) asks us to believe;
    empty for a file of this machine, which its owner has already. Raises RequestInvalid for anything else."""
    if reference.startswith("hf:"):
        return parse_subject(reference.split("/", 1)[0])
    if reference.startswith("https://"):
        try:
            return parse_subject("https:" + urlsplit(reference).netloc.rpartition("@")[2])
        except ValueError:
            raise RequestInvalid("the reference holds no host.") from None
    if reference.startswith("pypi:"):
        return parse_subject(reference.split("==", 1)[0])
    if reference.startswith("local:"):
        return ""
    raise RequestInvalid(f"{reference[:80]!r} is not a place that files come from.")


def check_trust(manifest: Manifest, *, trusted: Collection[str], own_wallet: bytes, shipped_creator: bytes) -> None:
    """A signed manifest, from whomever it came: its creator must be trusted. Raises ModelUntrusted.

    `trusted` are canonical subjects. The own wallet and whoever signed the default model always count among them.
    """
    if not is_trusted(manifest.creator, trusted=trusted, own_wallet=own_wallet, shipped_creator=shipped_creator):
        creator = address_text(manifest.creator)
        raise ModelUntrusted(
            f"{manifest.name} {manifest.version} is signed by {creator}, whom this node does not trust.",
            next_step=f"If you do: `octo-node models trust {creator}`.",
        )


def check_origin(reference: str, *, trusted: Collection[str]) -> None:
    """Unsigned files, before they are downloaded: the place must be trusted. Raises ModelUntrusted, RequestInvalid.

    The own wallet is no excuse here: this node is about to sign what somebody else has made.
    """
    subject = subject_of(reference)
    if subject and subject not in trusted:
        raise ModelUntrusted(
            f"Files from {subject} are not signed, and this node does not trust {subject}.",
            next_step=f"If you do: `octo-node models trust {subject}`.",
        )


def is_trusted(creator: bytes, *, trusted: Collection[str], own_wallet: bytes, shipped_creator: bytes) -> bool:
    return creator in (own_wallet, shipped_creator) or address_text(creator) in trusted
