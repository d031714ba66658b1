"""A model as a signed list of files: what it is called, which CIDs it is made of, who says so.

Lives here: the Manifest, its checks and its signature. Knows no store, no file and no network. The id of a
model everywhere in the market is the CID of its signed manifest, so the same bytes signed by another wallet
are another model with equal files.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import Field

from inference.models.cid import DAG_PB, RAW, parse_cid
from market.errors import EncodingInvalid, SignatureInvalid
from market.identity import WalletSigner
from market.signing import Address, TypedStruct, recover_address
from market.values import Word, cid_of, decode, encode, value

MANIFEST_LIMIT_BYTES = 64 * 1024
TOTAL_LIMIT_BYTES = 4 * 1024**4

_TYPE = TypedStruct("ModelManifest(bytes32 body)")
_DOMAIN = "octo/models"
"""One domain for all networks: a model is the same model everywhere."""

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$"
_SEMVER = r"^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})(-[0-9A-Za-z.-]{1,64})?$"
_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+/-]{0,63}$")]


class Role(Word):
    WEIGHTS = "weights"
    TOKENIZER = "tokenizer"
    CHAT_TEMPLATE = "chat_template"


ROLE_LIMIT_BYTES = {
    Role.WEIGHTS: TOTAL_LIMIT_BYTES,
    Role.TOKENIZER: 64 * 1024 * 1024,
    Role.CHAT_TEMPLATE: 64 * 1024,
}


@value
class ModelFile:
    """`name` is for people and never becomes a path of ours; `cid` is the root of a UnixFS file."""

    role: Role
    name: Annotated[str, Field(pattern=_NAME)]
    cid: Annotated[str, Field(min_length=59, max_length=59)]
    size_bytes: Annotated[int, Field(ge=1, le=TOTAL_LIMIT_BYTES)]


@value
class SpecialTokens:
    """What a tokenizer file does not say: `bos` and `eos` as text for the template, whether the prompt starts with
    `bos`, and the ids that end an answer."""

    bos: Annotated[str, Field(max_length=256)] = ""
    eos: Annotated[str, Field(max_length=256)] = ""
    add_bos: bool = False
    end: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(max_length=64)] = ()


@value
class Manifest:
    """`parent` is the manifest CID that this one was made from, or empty; `source` where the bytes came from, in
    words (`pypi:…`). `context` is in tokens, `min_ram_bytes` what one slot with a full context needs."""

    kind: Literal["octo/model/1"] = "octo/model/1"
    name: Annotated[str, Field(pattern=_NAME)]
    version: Annotated[str, Field(pattern=_SEMVER, max_length=96)]
    files: Annotated[tuple[ModelFile, ...], Field(min_length=1, max_length=64)]
    format: _Word
    quantisation: _Word
    licence: _Word
    modality: _Word
    context: Annotated[int, Field(ge=1, le=1 << 24)]
    parent: Annotated[str, Field(max_length=59)] = ""
    source: Annotated[str, Field(max_length=512)] = ""
    min_ram_bytes: Annotated[int, Field(ge=0, lt=2**53)] = 0
    tokens: SpecialTokens = SpecialTokens()
    creator: Address

    def file(self, role: Role) -> ModelFile:
        """Raises EncodingInvalid if the manifest has no such file."""
        for file in self.files:
            if file.role == role:
                return file
        raise EncodingInvalid(f"The manifest of {self.name} {self.version} has no {role} file.")

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@value
class SignedManifest:
    body: Annotated[bytes, Field(max_length=MANIFEST_LIMIT_BYTES)]
    signature: Annotated[bytes, Field(min_length=65, max_length=65)]

    def encoded(self) -> bytes:
        """The block that travels and is stored."""
        return encode(SignedManifest, self)


def manifest_cid(signed: SignedManifest) -> str:
    return cid_of(signed.encoded())


def sign_manifest(manifest: Manifest, creator: WalletSigner) -> SignedManifest:
    """Raises EncodingInvalid if the manifest breaks its own rules, SignatureInvalid for another creator's."""
    if creator.address != manifest.creator:
        raise SignatureInvalid("a manifest is signed by the wallet that it names as its creator.")
    _check(manifest)
    body = encode(Manifest, manifest)
    return SignedManifest(body=body, signature=creator.sign_digest(_digest(body)))


def check_manifest(signed: SignedManifest) -> Manifest:
    """The Manifest inside, once its fields and the creator's signature hold."""
    manifest = decode(Manifest, signed.body, limit_bytes=MANIFEST_LIMIT_BYTES)
    _check(manifest)
    if recover_address(_digest(signed.body), signed.signature) != manifest.creator:
        raise SignatureInvalid(
            f"The manifest of {manifest.name} is not signed by the creator that it names.",
            next_step="Do not use this model; ask its publisher for a manifest that checks.",
        )
    return manifest


def read_manifest(block: bytes) -> Manifest:
    """Parse and check the block of a signed manifest. Raises EncodingInvalid or SignatureInvalid."""
    return check_manifest(decode(SignedManifest, block, limit_bytes=MANIFEST_LIMIT_BYTES + 256))


def _digest(body: bytes) -> bytes:
    return _TYPE.digest(_DOMAIN, 0, hashlib.sha256(body).digest())


def _check(manifest: Manifest) -> None:
    """What the field types cannot say."""
    roles = [file.role for file in manifest.files]
    names = [file.name for file in manifest.files]
    if len(set(roles)) != len(roles) or Role.WEIGHTS not in roles or len(set(names)) != len(names):
        raise EncodingInvalid("a manifest has one weights file, at most one file a role, and no name twice.")
    if any(".." in text for text in (*names, manifest.name)):
        raise EncodingInvalid("a name in a manifest holds '..'.")
    for file in manifest.files:
        if parse_cid(file.cid).codec not in (RAW, DAG_PB):
            raise EncodingInvalid(f"the CID of {file.name} is not that of a file.")
        if file.size_bytes > ROLE_LIMIT_BYTES[file.role]:
            raise EncodingInvalid(f"{file.name} has {file.size_bytes} bytes, too many for a {file.role} file.")
    if manifest.size_bytes > TOTAL_LIMIT_BYTES:
        raise EncodingInvalid(f"the files of {manifest.name} are over {TOTAL_LIMIT_BYTES} bytes together.")
    if manifest.parent:
        parse_cid(manifest.parent)
