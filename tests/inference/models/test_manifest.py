"""Manifests: what is signed is what is read, and nothing odd gets in."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import libipld
import pytest

from inference.models.cid import DAG_CBOR, RAW, cid_of_block
from inference.models.manifest import (
    Format,
    HardwareNeeds,
    Manifest,
    ModelFile,
    Role,
    SignedManifest,
    SpecialTokens,
    check_manifest,
    manifest_cid,
    read_manifest,
    sign_manifest,
)
from market.errors import EncodingInvalid, SignatureInvalid
from market.signing import Secp256k1Signer
from market.values import encode

CREATOR = Secp256k1Signer(bytes([1] * 32))


def file(role: Role = Role.WEIGHTS, **changes: object) -> ModelFile:
    cid = str(cid_of_block(RAW, role.encode()))
    return replace(ModelFile(role=role, name=f"{role}.bin", cid=cid, size_bytes=1000), **changes)  # type: ignore[arg-type]


def manifest(**changes: object) -> Manifest:
    whole = Manifest(
        name="Tiny-1.5B",
        version="1.2.3",
        files=(file(), file(Role.TOKENIZER), file(Role.CHAT_TEMPLATE)),
        format=Format.GGUF,
        quantisation="Q4_0",
        licence="Apache-2.0",
        modality="text",
        context=2048,
        source="pypi:x==1#y",
        needs=HardwareNeeds(min_ram_bytes=10**9),
        tokens=SpecialTokens(bos="<s>", eos="</s>", end=(2,)),
        creator=CREATOR.address,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_a_signed_manifest_reads_back_and_its_cid_is_that_of_its_block() -> None:
    signed = sign_manifest(manifest(), CREATOR)
    assert read_manifest(signed.encoded()) == manifest()
    assert manifest_cid(signed) == str(cid_of_block(DAG_CBOR, signed.encoded()))
    assert manifest_cid(sign_manifest(manifest(), CREATOR)) == manifest_cid(signed)


def test_every_flipped_bit_is_refused() -> None:
    block = sign_manifest(manifest(), CREATOR).encoded()
    for bit in range(0, len(block) * 8, 3):
        bent = bytearray(block)
        bent[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EncodingInvalid):
            read_manifest(bytes(bent))


def test_another_wallet_cannot_sign_for_the_creator() -> None:
    with pytest.raises(SignatureInvalid):
        sign_manifest(manifest(), Secp256k1Signer(bytes([2] * 32)))
    body = encode(Manifest, manifest())
    forged = SignedManifest(
        body=body, signature=Secp256k1Signer(bytes([2] * 32)).sign_digest(hashlib.sha256(body).digest())
    )
    with pytest.raises(SignatureInvalid):
        check_manifest(forged)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../etc"},
        {"name": "a..b"},
        {"name": ""},
        {"name": "x" * 200},
        {"name": "a\n"},
        {"version": "1.2"},
        {"version": "01.2.3"},
        {"version": "v1.2.3"},
        {"files": ()},
        {"files": (file(Role.TOKENIZER),)},
        {"files": (file(), file(Role.TOKENIZER, name="weights.bin"))},
        {"files": (file(name="../weights"),)},
        {"files": (file(name="a..b"),)},
        {"files": (file(name="/etc/passwd"),)},
        {"files": (file(name="a\\b"),)},
        {"files": (file(cid="../../../../../../../../../../../../../../../../../etc/pw"),)},
        {"files": (file(cid=str(cid_of_block(DAG_CBOR, b"x"))),)},
        {"files": (file(size_bytes=0),)},
        {"files": (file(size_bytes=-1),)},
        {"files": (file(size_bytes=1 << 50),)},
        {"files": (file(), file(Role.TOKENIZER, size_bytes=1 << 30))},
        {"files": (file(), file(Role.CHAT_TEMPLATE, size_bytes=1 << 20))},
        {"context": -1},
        {"context": 1 << 40},
        {"licence": "x" * 100},
        {"parent": "not a cid"},
        {"source": "s" * 3000},
        {"tokens": SpecialTokens(end=tuple(range(100)))},
        {"kind": "octo/model/2"},
    ],
)
def test_what_a_manifest_may_not_say(changes: dict) -> None:
    body = encode(Manifest, manifest(**changes))  # signed by hand: `sign_manifest` would refuse
    from inference.models import manifest as module

    signed = SignedManifest(body=body, signature=CREATOR.sign_digest(module._digest(body)))
    with pytest.raises(EncodingInvalid) as raised:
        check_manifest(signed)
    assert not isinstance(raised.value, SignatureInvalid)


def test_a_huge_block_and_unknown_fields_are_refused() -> None:
    with pytest.raises(EncodingInvalid, match="over the limit"):
        read_manifest(bytes(1_000_000))
    with pytest.raises(EncodingInvalid):
        read_manifest(libipld.encode_dag_cbor({"body": b"", "signature": bytes(65), "more": 1}))
