from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hasten.core.model import Model
from hasten.errors import CandidateError
from hasten.inputs.models.onnx import load
from hasten.passes import upgrading
from hasten.passes.base import Pass
from hasten.passes.dynamic_quantization import DynamicQuantization
from hasten.passes.onnx_files import op_counts, read_onnx
from hasten.passes.sensitivity import sensitivities
from hasten.passes.static_quantization import StaticQuantization
from hasten.passes.upgrading import opset_of, upgraded
from hasten.testing.pass_tests import NARROW, answers, error_between, run, samples_of


def old_model(tmp_path: Path, opset: int, ir: int = 6, *, resized: bool = False) -> Model:
    """Write a convolution, a normalization, a ReLU6 and a product as an old exporter did.

    Before IR version 4 weights are inputs too, and before operator set 11 Clip has attributes.
    """
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    one = numpy_helper.from_array(np.ones(8, np.float32), "one")
    weights = [
        weight("w", 8, 3, 3, 3),
        weight("b", 8),
        weight("head", 5, 8),
        weight("bias", 5),
        one,
    ]
    clip = helper.make_node("Relu", ["n"], ["r"])
    if opset < 11:
        clip = helper.make_node("Clip", ["n"], ["r"], min=0.0, max=6.0)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "one", "b", "b", "one"], ["n"]),
        clip,
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "head", "bias"], ["y"], transB=1),
    ]
    if resized:
        scales = numpy_helper.from_array(np.array([1, 1, 2.5, 2.5], np.float32), "scales")
        weights.append(scales)
        kind = "Upsample" if opset < 10 else "Resize"
        nodes.insert(3, helper.make_node(kind, ["r", "scales"], ["large"], mode="linear"))
        nodes[4].input[0] = "large"
        nodes.insert(5, helper.make_node("ReduceMax", ["p"], ["m"], axes=[2], keepdims=1))
        nodes[4] = helper.make_node("Mul", ["large", "large"], ["p"])
        nodes[6] = helper.make_node("ReduceMax", ["m"], ["f"], axes=[2, 3], keepdims=0)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])]
    if ir < 4:
        inputs += [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])]
    graph = helper.make_graph(nodes, "old", inputs, outputs, weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    proto.ir_version = ir
    path = tmp_path / f"old{opset}.onnx"
    onnx.save(proto, path)
    return load(path).settled_by({"x": np.zeros((3, 8, 8), np.float32)})


@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (9, 4), (11, 6)])
@pytest.mark.parametrize(
    "value", [StaticQuantization(reduce_range=NARROW), DynamicQuantization(reduce_range=NARROW)]
)
def test_old_models_are_quantized_with_scales_per_channel(
    tmp_path: Path, opset: int, ir: int, value: Pass
) -> None:
    model = old_model(tmp_path, opset, ir)
    result = run(value, model, tmp_path)
    data = samples_of(model)
    own = answers(model, data, tmp_path / "own")
    assert error_between(own, answers(result, data, tmp_path / "int8")) < 0.05
    assert opset_of(read_onnx(model)) == opset
    assert op_counts(read_onnx(result)).keys() & {"DequantizeLinear", "MatMulInteger"}


def test_a_node_of_an_old_model_is_left_in_float_by_its_name(tmp_path: Path) -> None:
    model = old_model(tmp_path, 11)
    result = run(StaticQuantization(reduce_range=NARROW, keep_float=("stem",)), model, tmp_path)
    stem = next(node for node in read_onnx(result).graph.node if node.name == "stem")
    assert stem.input[1] == "w"


@pytest.mark.parametrize("opset", [9, 10])
def test_enlarged_pictures_of_old_models_stay_where_they_were(tmp_path: Path, opset: int) -> None:
    model = old_model(tmp_path, opset, resized=True)
    (tmp_path / "new").mkdir()
    new = upgraded(model, samples_of(model), tmp_path / "new")
    assert opset_of(read_onnx(new)) == 13
    data = samples_of(model)
    own = answers(model, data, tmp_path / "own")
    assert error_between(own, answers(new, data, tmp_path / "other")) < 1e-6


def test_an_upgraded_model_that_answers_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = old_model(tmp_path, 9, resized=True)
    monkeypatch.setattr(upgrading, "_resize_as_before", lambda proto: None)  # as onnx 1.23 has it
    with pytest.raises(
        CandidateError,
        match=r"^the model has operator set 9, but this pass needs 13; the model that onnx's "
        "converter "
        r"wrote differs in 'y', by 0\.\d+ of its largest value$",
    ):
        run(StaticQuantization(), model, tmp_path)


def test_what_the_converter_refuses_is_said_in_one_line(tmp_path: Path) -> None:
    model = old_model(tmp_path, 11)
    proto = read_onnx(model)
    proto.graph.node[2].op_type = "Frobnicate"
    onnx.save(proto, model.path)
    with pytest.raises(
        CandidateError,
        match=r"^the model has operator set 11, but this pass needs 13; onnx's converter failed: "
        "[^\n]+$",
    ):
        run(StaticQuantization(), model, tmp_path)


def test_layers_of_a_model_from_before_roundings_are_measured(tmp_path: Path) -> None:
    model = old_model(tmp_path, 9)
    noise = sensitivities(model, samples_of(model), samples=8)
    assert set(noise) == {"stem", "y"}


def test_a_new_model_is_left_as_it_is(convnet: Model, tmp_path: Path) -> None:
    assert upgraded(convnet, samples_of(convnet), tmp_path) is convnet
