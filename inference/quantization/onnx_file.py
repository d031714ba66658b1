"""ONNX in fewer bits, by onnxruntime's own tools: INT8 with activations scaled as they come, or INT4 weights alone.

Lives here: two calls, in the child process. Must not know: stores, manifests. onnxruntime reads and writes models with
the packages `onnx` and `onnx-ir`, which are an extra: without them this says so and nothing else of the node misses
them. Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from market.errors import NodeMisconfigured, RequestInvalid

BLOCK: Final = 32
"""Weights that share one scale in INT4: 4.5 bits a weight, and the best quality of the usual sizes."""


def is_installed(package: str) -> bool:
    return find_spec(package) is not None


def check_onnx_tools(to: str, installed: Callable[[str], bool] = is_installed) -> None:
    """Raises NodeMisconfigured if what it takes is not installed."""
    for package in ("onnx", *(("onnx_ir",) if to == "INT4" else ())):
        if not installed(package):
            raise NodeMisconfigured(
                f"quantising ONNX models to {to} takes the package {package}, which is not installed.",
                next_step="Install the extra: .venv/bin/pip install -e '.[onnx]'.",
            )


def quantize_onnx(source: Path, out: Path, to: str) -> None:
    """Blocking. Raises RequestInvalid if the model has nothing to quantise, and whatever the libraries raise."""
    if to == "INT8":
        _int8(source, out)
    else:
        _int4(source, out)


def _int8(source: Path, out: Path) -> None:
    """Matrices, and embeddings that are looked up; convolutions stay: their integer kernels are slower on CPUs."""
    onnx = _onnx()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(source), load_external_data=False)
    before = len(model.graph.node)
    operators = ["MatMul", "Gemm", "Gather", "Attention", "LSTM", "EmbedLayerNormalization"]
    quantize_dynamic(model, str(out), op_types_to_quantize=operators, per_channel=True, weight_type=QuantType.QInt8)
    _need_change(before, out, source)


def _int4(source: Path, out: Path) -> None:
    onnx = _onnx()
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(str(source), load_external_data=False)
    quantizer = MatMulNBitsQuantizer(model, bits=4, block_size=BLOCK, is_symmetric=True)
    quantizer.process()
    onnx.save(quantizer.model.model, str(out))
    if not any(node.op_type == "MatMulNBits" for node in quantizer.model.model.graph.node):
        raise _nothing(source)


def _need_change(before: int, out: Path, source: Path) -> None:
    made = _onnx().load(str(out), load_external_data=False)
    if len(made.graph.node) <= before:
        raise _nothing(source)


def _onnx() -> Any:
    """An extra, so it is named by its text: type checks run without it."""
    return import_module("onnx")


def _nothing(source: Path) -> RequestInvalid:
    return RequestInvalid(
        f"{source.name} has no matrices that could be quantised.", next_step="Leave it as it is: it gains nothing."
    )
