"""Weights on the grid of int8 that move what their layers give less than the nearest do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from tests.support.models import depthwise_cnn

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import CandidateError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.onnx import load
from hasten.passes.base import Skipped
from hasten.passes.float_layers import _constant
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.static_quantization import StaticQuantization
from hasten.passes.weight_rounding import HIGHEST, round_weights, rounded
from hasten.testing import models


def data(model: Model) -> Array:
    """Pictures of a kind: neighbours are alike."""
    shape = [size for size in model.inputs[0].shape[1:] if isinstance(size, int)]
    drawn = np.random.default_rng(0).standard_normal((48, *shape), np.float32)
    return np.asarray(drawn.cumsum(axis=-1) / 4)


def settled(path: Path) -> Model:
    model = load(path)
    return model.settled_by({model.inputs[0].name: data(model)[0]})


def calibration(model: Model) -> ArrayDataset:
    return ArrayDataset({model.inputs[0].name: data(model)})


def constants(path: Path) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def nearest(weights: Array) -> Array:
    scale = np.abs(weights).max(axis=-1, keepdims=True) / HIGHEST
    return np.asarray(np.round(weights / scale) * scale)


def error(weights: Array, given: Array, moments: Array) -> float:
    off = given - weights
    return float(np.einsum("goi,gij,goj->", off, moments, off))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(1, 16, 40), (1, 8, 300), (24, 1, 9), (3, 4, 18)])
def test_rounded_weights_are_on_the_grid_and_give_less_error_than_the_nearest(
    shape: tuple[int, int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(shape)
    inputs = rng.standard_normal((shape[0], shape[2], 400)) + 1.0  # alike, as after a ReLU
    moments = inputs @ inputs.transpose(0, 2, 1) / 400
    given = rounded(weights, moments)
    scale = np.abs(weights).max(axis=2, keepdims=True) / HIGHEST
    np.testing.assert_allclose(given / scale, np.round(given / scale), atol=1e-9)
    assert np.abs(given / scale).max() == pytest.approx(HIGHEST)
    np.testing.assert_allclose(
        np.abs(given).max(axis=2), np.abs(weights).max(axis=2)
    )  # so that a quantizer finds the same grid
    assert error(weights, given, moments) < 0.9 * error(weights, nearest(weights), moments)


def test_an_input_that_is_always_zero_and_weights_that_are_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((1, 4, 6))
    weights[0, 2] = 0
    moments = np.zeros((1, 6, 6))
    moments[0, :3, :3] = np.eye(3)
    given = rounded(weights, moments)
    np.testing.assert_allclose(given, nearest(weights + 1e-30), atol=1e-9)
    assert np.isfinite(rounded(weights, np.zeros((1, 6, 6)))).all()


def given(path: Path, name: str, inputs: Array) -> Array:
    """What a tensor of a network is for these inputs."""
    proto = onnx.load(path)
    if name not in {value.name for value in proto.graph.output}:
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return np.asarray(session.run([name], {session.get_inputs()[0].name: inputs})[0])


def test_each_layer_of_a_network_gives_less_error(tmp_path: Path) -> None:
    path = depthwise_cnn(tmp_path)
    model = settled(path)
    found = round_weights(model, calibration(model), tmp_path)
    before, after = constants(path), constants(found.path)
    proto = onnx.load(path)
    nodes = [n for n in proto.graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(nodes) == 4
    for node in nodes:
        name, result = node.input[1], node.output[0]
        weights = before[name]
        assert not np.array_equal(weights, after[name])
        turned = node.op_type == "Gemm"
        flat = (weights.T if turned else weights).reshape(weights.shape[turned], -1)
        plain = nearest(flat)
        plain = plain.T if turned else plain.reshape(weights.shape)
        errors = []
        for values in (after[name], plain):
            only = onnx.ModelProto()
            only.CopyFrom(proto)
            for tensor in only.graph.initializer:
                if tensor.name == name:
                    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
            onnx.save(only, tmp_path / "only.onnx")
            own = given(tmp_path / "only.onnx", result, data(model))
            exact = given(path, result, data(model))
            errors.append(float(((own - exact) ** 2).mean()))
        assert errors[0] < errors[1], node.name


def weights_in_ir(path: Path) -> dict[str, Array]:
    import openvino

    graph = openvino.Core().read_model(str(path))
    return {
        operation.get_friendly_name(): _constant(operation.input_value(1))
        for operation in graph.get_ordered_ops()
        if operation.get_type_name() in ("Convolution", "GroupConvolution", "MatMul")
    }


def test_both_quantizers_find_the_weights_on_their_grid(tmp_path: Path) -> None:
    path = models.small_cnn(tmp_path)
    model = settled(path)
    for name in ("alone", "nncf", "static"):
        (tmp_path / name).mkdir()
    alone = constants(round_weights(model, calibration(model), tmp_path / "alone").path)
    step: Any = NncfQuantization(rounding="layer")
    found = weights_in_ir(step(model, calibration(model), tmp_path / "nncf").path)
    for values in (alone["w1"], alone["w2"]):
        close = [
            own
            for own in found.values()
            if own.shape == values.shape and np.allclose(own, values, atol=1e-4)
        ]
        assert len(close) == 1
    static = StaticQuantization(rounding="layer")(model, calibration(model), tmp_path / "static")
    kept = constants(static.path)
    for name in ("w1", "w2"):
        int8 = kept[f"{name}_quantized"].astype(np.float32)
        scale = kept[f"{name}_scale"].reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(int8 * scale, alone[name], atol=1e-5)
    assert sorted(p.name for p in (tmp_path / "nncf").iterdir()) == [
        "quantized.bin",
        "quantized.xml",
    ]
    assert sorted(p.name for p in (tmp_path / "static").iterdir()) == ["quantized.onnx"]


def test_what_is_to_stay_in_float_keeps_its_weights(tmp_path: Path) -> None:
    path = models.small_cnn(tmp_path)
    model = settled(path)
    after = constants(round_weights(model, calibration(model), tmp_path, ("conv2",)).path)
    before = constants(path)
    np.testing.assert_array_equal(after["w2"], before["w2"])
    assert not np.array_equal(after["w1"], before["w1"])


def test_without_a_convolution_there_is_nothing_to_round(tmp_path: Path) -> None:
    model = load(models.tiny_transformer_block(tmp_path))
    with pytest.raises(Skipped) as skipped:
        round_weights(model, ArrayDataset({"x": np.zeros((1, 1), np.float32)}), tmp_path)
    assert str(skipped.value) == ("nothing to round: there is no suitable convolution or Gemm")


def test_a_network_that_cannot_run_is_one_line(tmp_path: Path) -> None:
    path = models.small_cnn(tmp_path)
    model = settled(path)
    proto = onnx.load(path)
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "NoSuch", "no.such"
    proto.opset_import.append(onnx.helper.make_opsetid("no.such", 1))
    onnx.save(proto, path)
    with pytest.raises(CandidateError) as failed:
        round_weights(model, calibration(model), tmp_path)
    assert str(failed.value).startswith("can't round the weights: ")
    assert "\n" not in str(failed.value)


def test_inputs_that_overflow_are_one_line(tmp_path: Path) -> None:
    model = settled(models.small_cnn(tmp_path))
    huge = ArrayDataset({"x": np.full((4, 3, 32, 32), 1e30, np.float32)})
    with pytest.raises(CandidateError) as failed:
        round_weights(model, huge, tmp_path)
    assert str(failed.value) == (
        "can't round the weights: the inputs of the node that makes 'c1' aren't finite, "
        "or are too large"
    )


@pytest.mark.parametrize(
    ("step", "takes"),
    [
        (NncfQuantization(rounding="layer", reduce_range=True), "8 bits"),
        (
            StaticQuantization(rounding="layer", reduce_range=True),
            "one scale per channel and 8 bits",
        ),
        (
            StaticQuantization(rounding="layer", per_channel=False),
            "one scale per channel and 8 bits",
        ),
    ],
)
def test_weights_are_not_rounded_for_another_grid(tmp_path: Path, step: Any, takes: str) -> None:
    model = settled(models.small_cnn(tmp_path))
    with pytest.raises(CandidateError) as failed:
        step(model, calibration(model), tmp_path)
    assert str(failed.value) == f"weights rounded by layer need {takes}"


def test_seven_bits_are_rounded_to_the_nearest(tmp_path: Path) -> None:
    model = load(models.small_cnn(tmp_path))
    wide = replace(Target.host(), isa=("avx2", "avx512_vnni"))
    narrow = replace(wide, isa=("avx2",))
    for kind in (NncfQuantization, StaticQuantization):
        assert "layer" in [v.rounding for v in kind.variants(model, wide)]
        seven = [v for v in kind.variants(model, narrow) if getattr(v, "activations", "") != "wide"]
        assert {v.rounding for v in seven} == {"nearest"}


def test_eight_bits_are_rounded_by_layer_where_activations_have_16(tmp_path: Path) -> None:
    narrow = replace(Target.host(), isa=("avx2",))
    *_, wide = StaticQuantization.variants(load(models.small_cnn(tmp_path)), narrow)
    given = [wide.suited(engine) for engine in (CompiledC(), OnnxRuntime())]
    assert [(one.activations, one.rounding, one.reduce_range) for one in given] == [
        ("wide", "layer", False),
        ("asymmetric", "nearest", True),
    ]
