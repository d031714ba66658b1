"""ONNX in INT8 and INT4: a small network that still says the same, and what cannot be quantised."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from inference.models.onnx_header import read_onnx_header
from inference.quantization.onnx_file import check_onnx_tools
from inference.quantization.plan import plan_quantisation
from inference.quantize import quantize
from market.errors import ModelFileInvalid, NodeMisconfigured, RequestInvalid

with_tools = pytest.mark.skipif(
    find_spec("onnx") is None or find_spec("onnx_ir") is None, reason="needs the extra [onnx]"
)
WIDTH = 256


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
    check_onnx_tools("INT8", lambda package: package == "onnx")
    for to, missing, there in (("INT8", "onnx", ()), ("INT4", "onnx_ir", ("onnx",))):
        with pytest.raises(NodeMisconfigured, match=rf"package {missing},.*\.\[onnx\]"):
            check_onnx_tools(to, lambda package, there=there: package in there)


def network(path, *, matrices: bool = True, external: bool = False):
    """Embedding, two matrices and a bias; or an addition alone."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(3)
    table = rng.standard_normal((300, WIDTH)).astype(np.float32)
    first = (rng.standard_normal((WIDTH, WIDTH)) / 16).astype(np.float32)
    second = (rng.standard_normal((WIDTH, WIDTH)) / 16).astype(np.float32)
    weights = {"table": table, "first": first, "second": second, "bias": rng.standard_normal(WIDTH).astype(np.float32)}
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x"])]
    if matrices:
        nodes += [
            helper.make_node("MatMul", ["x", "first"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "second"], ["c"]),
            helper.make_node("Add", ["c", "bias"], ["y"]),
        ]
    else:
        nodes = [helper.make_node("Relu", ["ids_f"], ["y"])]
        weights = {}
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])]
    if not matrices:
        inputs = [helper.make_tensor_value_info("ids_f", TensorProto.FLOAT, ["n"])]
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path), save_as_external_data=external, location="weights.bin", size_threshold=64)
    return path


def answers(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": np.arange(300, dtype=np.int64)})[0]


@with_tools
@pytest.mark.parametrize(("to", "larger_than", "close"), [("INT8", 0.25, 0.02), ("INT4", 0.3, 0.2)])
async def test_the_answers_stay_close_and_the_file_shrinks(tmp_path, to, larger_than, close):
    source, target = network(tmp_path / "model.onnx"), tmp_path / "out.onnx"
    plan = await quantize(source, target, to)
    before, after = answers(source), answers(target)
    assert np.abs(before - after).mean() < close * np.abs(before).mean()
    assert not np.array_equal(before, after)
    ratio = target.stat().st_size / source.stat().st_size
    assert larger_than < ratio < 0.62
    assert plan.target_bytes > 0
    assert read_onnx_header(target).inputs == ("ids",)


@with_tools
@pytest.mark.parametrize("to", ["INT8", "INT4"])
async def test_a_network_without_matrices_is_refused(tmp_path, to):
    with pytest.raises(RequestInvalid, match="no matrices"):
        await quantize(network(tmp_path / "model.onnx", matrices=False), tmp_path / "out.onnx", to)
    assert not (tmp_path / "out.onnx").exists()


@with_tools
async def test_a_torn_file_is_refused(tmp_path):
    source = network(tmp_path / "model.onnx")
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(ModelFileInvalid):
        await quantize(source, tmp_path / "out.onnx", "INT8")


@with_tools
def test_weights_in_other_files_are_refused_with_the_way_out(tmp_path):
    source = network(tmp_path / "model.onnx", external=True)
    with pytest.raises(RequestInvalid, match="Merge"):
        plan_quantisation(source, "INT8")
