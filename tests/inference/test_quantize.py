"""Requantising: the default model's exact bytes, whole files or none, clear errors."""

from __future__ import annotations

import hashlib

import pytest

from inference.quantize import quantize
from market.errors import ModelFileInvalid, NodeMisconfigured, RequestInvalid

Q4_0_BYTES = 91_726_912


@pytest.mark.model
def test_the_default_model_comes_out_as_the_prepared_file(wheel_model, default_model, tmp_path, capfd):
    target = tmp_path / "model.gguf"
    quantize(wheel_model, target)
    ours = hashlib.sha256(target.read_bytes()).hexdigest()
    assert target.stat().st_size == Q4_0_BYTES
    assert ours == hashlib.sha256(default_model.read_bytes()).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert capfd.readouterr() == ("", "")


def test_what_is_no_gguf_is_refused(tmp_path):
    source = tmp_path / "model.gguf"
    source.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ModelFileInvalid, match="not a GGUF"):
        quantize(source, tmp_path / "out.gguf")


@pytest.mark.model
def test_a_truncated_file_leaves_no_target_and_no_scraps(wheel_model, tmp_path):
    source = tmp_path / "short.gguf"
    source.write_bytes(wheel_model.read_bytes()[:5_000_000])
    with pytest.raises(ModelFileInvalid, match=r"short\.gguf cannot be turned into Q4_0"):
        quantize(source, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["short.gguf"]


def test_an_older_target_survives_a_failure(tmp_path):
    source, target = tmp_path / "bad.gguf", tmp_path / "out.gguf"
    source.write_bytes(b"GGUF" + b"\xff" * 100)
    target.write_bytes(b"older")
    with pytest.raises(ModelFileInvalid):
        quantize(source, target)
    assert target.read_bytes() == b"older"


def test_missing_paths_and_unknown_formats_are_named(tmp_path):
    with pytest.raises(NodeMisconfigured, match="cannot read"):
        quantize(tmp_path / "none.gguf", tmp_path / "out.gguf")
    with pytest.raises(RequestInvalid, match="Q4_0"):
        quantize(tmp_path / "none.gguf", tmp_path / "out.gguf", format="Q9")
    source = tmp_path / "model.gguf"
    source.write_bytes(b"GGUF")
    with pytest.raises(NodeMisconfigured, match="cannot write"):
        quantize(source, tmp_path / "no" / "out.gguf")
