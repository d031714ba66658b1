"""A model as a signed list of files: what it is called, which CIDs it is made of, who says so.

Lives here: the Manifest, its checks and its signature. Knows no store, no file and no network. The id of a
model everywhere in the market is the CID of its signed manifest, so the same bytes signed by another wallet
are another model with equal files.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Annotated, Literal

from pydantic import Field

from inference.models.cid import DAG_CBOR, DAG_PB, RAW, parse_cid
from inference.models.filenames import check_file_names
from market.errors import EncodingInvalid, SignatureInvalid
from market.identity import WalletSigner
from market.signing import Address, TypedStruct, recover_address
from market.values import Word, cid_of, decode, decode_plain, encode, value

MANIFEST_LIMIT_BYTES = 128 * 1024
FILES_LIMIT = 512
"""The largest open models have 163 shards; 512 files of 200 bytes each fit the limit above."""
TOTAL_LIMIT_BYTES = 4 * 1024**4

_KIND = "octo/model/1"
_TYPE = TypedStruct("ModelManifest(bytes32 body)")
_DOMAIN = "octo/models"
"""One domain for all networks: a model is the same model everywhere."""
_RESERVED_NAMES = frozenset(("default",))
"""What a user types for "the model of this node": a stranger's model must not answer to it."""

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$")]
Semver = Annotated[
    str,
    Field(
        pattern=r"^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})(-[0-9A-Za-z.-]{1,64})?$",
        max_length=96,
    ),
]
OpenWord = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+/-]{0,63}$")]
"""A word whose list nobody can close: licences, quantisations, modalities, accelerators."""
CidText = Annotated[str, Field(min_length=59, max_length=59)]
Size = Annotated[int, Field(ge=1, le=TOTAL_LIMIT_BYTES)]
ContextTokens = Annotated[int, Field(ge=0, le=1 << 24)]


class Format(Word):
    """What the weights are. `pytorch` is a pickled state dict, `tensorrt` an opaque plan for one kind of card,
    `ctranslate2` what faster-whisper reads. `remote`: there are none; a server that the provider names runs the model,
    and nobody can say from here what it is. `voice`: there are none; a library of the operating system speaks."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"
    ONNX = "onnx"
    PYTORCH = "pytorch"
    TENSORRT = "tensorrt"
    CTRANSLATE2 = "ctranslate2"
    REMOTE = "remote"
    VOICE = "voice"


class Role(Word):
    """`weights` may be several files, shards in the order of the list. `config` is JSON that describes the model,
    `vocabulary` what a tokenizer of another kind needs, `projector` the image or audio side of a language model,
    `adapter` a LoRA, `extra` all that an engine reads beside these (voices, external tensors)."""

    WEIGHTS = "weights"
    TOKENIZER = "tokenizer"
    CHAT_TEMPLATE = "chat_template"
    CONFIG = "config"
    VOCABULARY = "vocabulary"
    PROJECTOR = "projector"
    ADAPTER = "adapter"
    EXTRA = "extra"


ROLE_LIMIT_BYTES = {
    Role.WEIGHTS: TOTAL_LIMIT_BYTES,
    Role.TOKENIZER: 64 * 1024 * 1024,
    Role.CHAT_TEMPLATE: 64 * 1024,
    Role.CONFIG: 16 * 1024 * 1024,
    Role.VOCABULARY: 64 * 1024 * 1024,
    Role.PROJECTOR: TOTAL_LIMIT_BYTES,
    Role.ADAPTER: TOTAL_LIMIT_BYTES,
    Role.EXTRA: TOTAL_LIMIT_BYTES,
}
_ONCE = frozenset((Role.TOKENIZER, Role.CHAT_TEMPLATE, Role.PROJECTOR))


@value
class ModelFile:
    """`name` is a relative path by the rules of `filenames`; `cid` is the root of a UnixFS file."""

    role: Role
    name: Annotated[str, Field(min_length=1, max_length=255)]
    cid: CidText
    size_bytes: Size


@value
class SpecialTokens:
    """What a tokenizer file does not say: `bos` and `eos` as text for the template, whether the prompt starts with
    `bos`, and the ids that end an answer."""

    bos: Annotated[str, Field(max_length=256)] = ""
    eos: Annotated[str, Field(max_length=256)] = ""
    add_bos: bool = False
    end: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(max_length=64)] = ()


@value
class HardwareNeeds:
    """What one slot needs, 0 for unknown: `min_ram_bytes` on a machine without a graphics card, `min_vram_bytes` on
    one with. `accelerators`: the model runs on one of these kinds only (`cuda`, `cuda-sm90`, …); empty: on CPUs too."""

    min_ram_bytes: Annotated[int, Field(ge=0, lt=2**53)] = 0
    min_vram_bytes: Annotated[int, Field(ge=0, lt=2**53)] = 0
    accelerators: Annotated[tuple[OpenWord, ...], Field(max_length=16)] = ()


@value
class Manifest:
    """`parent` is the manifest CID that this one was made from, or empty; `source` where the bytes came from, in
    words (`pypi:…`); `directory` the root of a UnixFS directory of the files, or empty: a gateway can browse it.
    `context` is in tokens, 0 for a model that has none."""

    kind: Literal["octo/model/1"] = "octo/model/1"
    name: ModelName
    version: Semver
    files: Annotated[tuple[ModelFile, ...], Field(min_length=1, max_length=FILES_LIMIT)]
    directory: Annotated[str, Field(max_length=59)] = ""
    format: Format
    quantisation: OpenWord
    licence: OpenWord
    modality: OpenWord
    context: ContextTokens
    parent: Annotated[str, Field(max_length=59)] = ""
    source: Annotated[str, Field(max_length=2048)] = ""
    needs: HardwareNeeds = HardwareNeeds()
    tokens: SpecialTokens = SpecialTokens()
    creator: Address

    def file(self, role: Role) -> ModelFile:
        """The first file of a role. Raises EncodingInvalid if the manifest has no such file."""
        for file in self.files:
            if file.role == role:
                return file
        raise EncodingInvalid(f"The manifest of {self.name} {self.version} has no {role} file.")

    @property
    def weights(self) -> tuple[ModelFile, ...]:
        """All shards, in order."""
        return tuple(file for file in self.files if file.role == Role.WEIGHTS)

    @property
    def cited(self) -> ModelFile:
        """What offers and receipts name as the weights: the first of them; of a remote model, what describes it."""
        return (self.weights or self.files)[0]

    @property
    def size_bytes(self) -> int:
        """Of all files; bytes that two names share count once."""
        return sum({file.cid: file.size_bytes for file in self.files}.values())


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
    body = encode(Manifest, manifest)
    decode(Manifest, body, limit_bytes=MANIFEST_LIMIT_BYTES)
    _check(manifest)
    return SignedManifest(body=body, signature=creator.sign_digest(_digest(body)))


def check_manifest(signed: SignedManifest) -> Manifest:
    """The Manifest inside, once its fields and the creator's signature hold."""
    _check_kind(signed.body)
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


def _check_kind(body: bytes) -> None:
    """A manifest of a later version gets told so, instead of an error about its first unknown field."""
    plain = decode_plain(body, limit_bytes=MANIFEST_LIMIT_BYTES)
    kind = plain.get("kind") if isinstance(plain, dict) else None
    if isinstance(kind, str) and kind.startswith("octo/model/") and kind != _KIND:
        raise EncodingInvalid(
            f"This manifest is of version {kind[:32]!r}; this node reads {_KIND!r}.", next_step="Update octo-node."
        )
    if kind != _KIND:
        raise EncodingInvalid("the block is not a model's manifest.")


def _check(manifest: Manifest) -> None:
    """What the field types cannot say."""
    if ".." in manifest.name or manifest.name.lower() in _RESERVED_NAMES or _is_cid(manifest.name):
        raise EncodingInvalid(f"{manifest.name!r} cannot be a model's name: it holds '..', is reserved, or is a CID.")
    roles = Counter(file.role for file in manifest.files)
    if (Role.WEIGHTS in roles) == (manifest.format in (Format.REMOTE, Format.VOICE)):
        raise EncodingInvalid("a manifest names weights; that of a remote model or a voice names none.")
    if twice := [role for role in _ONCE if roles[role] > 1]:
        raise EncodingInvalid(f"a manifest names at most one {twice[0]} file.")
    check_file_names(file.name for file in manifest.files)
    sizes: dict[str, int] = {}
    for file in manifest.files:
        if parse_cid(file.cid).codec not in (RAW, DAG_PB):
            raise EncodingInvalid(f"the CID of {file.name} is not that of a file.")
        if file.size_bytes > ROLE_LIMIT_BYTES[file.role]:
            raise EncodingInvalid(f"{file.name} has {file.size_bytes} bytes, too many for a {file.role} file.")
        if sizes.setdefault(file.cid, file.size_bytes) != file.size_bytes:
            raise EncodingInvalid(f"{file.name} has the CID of another file, and another size.")
    if manifest.size_bytes > TOTAL_LIMIT_BYTES:
        raise EncodingInvalid(f"the files of {manifest.name} are over {TOTAL_LIMIT_BYTES} bytes together.")
    if manifest.parent and parse_cid(manifest.parent).codec != DAG_CBOR:
        raise EncodingInvalid("the parent of a model is the CID of a manifest.")
    if manifest.directory and parse_cid(manifest.directory).codec != DAG_PB:
        raise EncodingInvalid("the directory of a model is the CID of a UnixFS directory.")


def _is_cid(name: str) -> bool:
    try:
        parse_cid(name)
    except EncodingInvalid:
        return False
    return True
