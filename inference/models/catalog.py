"""A signed catalog: the models that a creator stands for under one name, with what a search needs to know of them.

Lives here: the Catalog, its checks, its signature and which of two is the newer. A catalog names manifests by CID and
vouches for them; a model's own manifest has the last word on every fact. Knows no store, no clock and no network.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import Field

from inference.models.cid import DAG_CBOR, parse_cid
from inference.models.manifest import (
    CidText,
    ContextTokens,
    Format,
    Manifest,
    ModelName,
    OpenWord,
    Semver,
    Size,
)
from market.errors import EncodingInvalid, ModelUntrusted, SignatureInvalid
from market.identity import WalletSigner
from market.signing import Address, TypedStruct, address_text, recover_address
from market.values import decode, decode_plain, encode, value

CATALOG_LIMIT_BYTES = 1024 * 1024
ENTRIES_LIMIT = 2048
"""Of some 400 bytes each."""

_KIND = "octo/catalog/1"
_TYPE = TypedStruct("ModelCatalog(bytes32 body)")
_DOMAIN = "octo/models"


@value
class CatalogEntry:
    """One model; `manifest` is its CID, the rest is copied from it, so that it can be searched before it is here."""

    name: ModelName
    version: Semver
    manifest: CidText
    format: Format
    quantisation: OpenWord
    modality: OpenWord
    licence: OpenWord
    size_bytes: Size
    context: ContextTokens
    min_ram_bytes: Annotated[int, Field(ge=0, lt=2**53)] = 0
    min_vram_bytes: Annotated[int, Field(ge=0, lt=2**53)] = 0
    parent: Annotated[str, Field(max_length=59)] = ""


@value
class Catalog:
    """`seq` grows with every issue; `issued_ms` is the creator's clock, for people."""

    kind: Literal["octo/catalog/1"] = "octo/catalog/1"
    name: ModelName
    creator: Address
    seq: Annotated[int, Field(ge=1, lt=2**53)]
    issued_ms: Annotated[int, Field(ge=0, lt=2**53)]
    entries: Annotated[tuple[CatalogEntry, ...], Field(max_length=ENTRIES_LIMIT)]


@value
class SignedCatalog:
    body: Annotated[bytes, Field(max_length=CATALOG_LIMIT_BYTES)]
    signature: Annotated[bytes, Field(min_length=65, max_length=65)]

    def encoded(self) -> bytes:
        """The block that travels and is stored."""
        return encode(SignedCatalog, self)


def entry_of(cid: str, manifest: Manifest) -> CatalogEntry:
    return CatalogEntry(
        name=manifest.name,
        version=manifest.version,
        manifest=cid,
        format=manifest.format,
        quantisation=manifest.quantisation,
        modality=manifest.modality,
        licence=manifest.licence,
        size_bytes=manifest.size_bytes,
        context=manifest.context,
        min_ram_bytes=manifest.needs.min_ram_bytes,
        min_vram_bytes=manifest.needs.min_vram_bytes,
        parent=manifest.parent,
    )


def sign_catalog(catalog: Catalog, creator: WalletSigner) -> SignedCatalog:
    """Raises EncodingInvalid if the catalog breaks its own rules, SignatureInvalid for another creator's."""
    if creator.address != catalog.creator:
        raise SignatureInvalid("a catalog is signed by the wallet that it names as its creator.")
    body = encode(Catalog, catalog)
    decode(Catalog, body, limit_bytes=CATALOG_LIMIT_BYTES)
    _check(catalog)
    return SignedCatalog(body=body, signature=creator.sign_digest(_digest(body)))


def read_catalog(block: bytes) -> Catalog:
    """Parse and check the block of a signed catalog. Raises EncodingInvalid or SignatureInvalid."""
    signed = decode(SignedCatalog, block, limit_bytes=CATALOG_LIMIT_BYTES + 256)
    plain = decode_plain(signed.body, limit_bytes=CATALOG_LIMIT_BYTES)
    kind = plain.get("kind") if isinstance(plain, dict) else None
    if isinstance(kind, str) and kind.startswith("octo/catalog/") and kind != _KIND:
        raise EncodingInvalid(
            f"This catalog is of version {kind[:32]!r}; this node reads {_KIND!r}.", next_step="Update octo-node."
        )
    if kind != _KIND:
        raise EncodingInvalid("the block is not a catalog of models.")
    catalog = decode(Catalog, signed.body, limit_bytes=CATALOG_LIMIT_BYTES)
    _check(catalog)
    if recover_address(_digest(signed.body), signed.signature) != catalog.creator:
        raise SignatureInvalid(f"The catalog {catalog.name} is not signed by the creator that it names.")
    return catalog


def newer(known: Catalog, offered: Catalog) -> bool:
    """Whether `offered` replaces `known`; both are checked catalogs. False for the same one, and for an older one:
    a catalog never goes back, or whoever serves it could bring back a model that was withdrawn.

    Raises EncodingInvalid for another creator's or another name's, ModelUntrusted for two with one number: the
    creator told two stories, and neither can be believed.
    """
    if (known.creator, known.name) != (offered.creator, offered.name):
        raise EncodingInvalid(
            f"the catalog {offered.name} by {address_text(offered.creator)} is not the one that is followed."
        )
    if known.seq == offered.seq and known != offered:
        creator = address_text(known.creator)
        raise ModelUntrusted(
            f"{creator} has signed two different catalogs {known.name} with number {known.seq}.",
            next_step=f"The known one stays. Ask its publisher, or stop following it ({creator}/{known.name}).",
        )
    return offered.seq > known.seq


def _digest(body: bytes) -> bytes:
    return _TYPE.digest(_DOMAIN, 0, hashlib.sha256(body).digest())


def _check(catalog: Catalog) -> None:
    if len({entry.manifest for entry in catalog.entries}) != len(catalog.entries):
        raise EncodingInvalid("a catalog names a manifest twice.")
    if len({(entry.name.lower(), entry.version) for entry in catalog.entries}) != len(catalog.entries):
        raise EncodingInvalid("a catalog names two models by one name and version.")
    for entry in catalog.entries:
        if parse_cid(entry.manifest).codec != DAG_CBOR:
            raise EncodingInvalid(f"the CID of {entry.name} in a catalog is not that of a manifest.")
        if entry.parent and parse_cid(entry.parent).codec != DAG_CBOR:
            raise EncodingInvalid(f"the parent of {entry.name} in a catalog is not the CID of a manifest.")
