from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from tests.support.models import CONVNET, built

from hasten.core.model import Model
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import CandidateError, InputError
from hasten.passes.base import Skipped
from hasten.passes.float_layers import FloatLayers
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.testing.pass_tests import NARROW, answers, error_between, run, samples_of

F32 = OpenVino(precision="f32")


def quantized(model: Model, folder: Path, **settings: Any) -> Model:
    made = run(NncfQuantization(reduce_range=NARROW, **settings), model, folder, "quantized")
    return replace(made, origin=model)


@pytest.fixture(scope="module")
def in_int8(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The network with two convolutions and a classifier, quantized; read its files, don't change them."""
    folder = tmp_path_factory.mktemp("in_int8")
    return quantized(built(folder / "source", CONVNET), folder)


@pytest.fixture
def convnet(in_int8: Model) -> Model:
    """The network before that."""
    assert in_int8.origin is not None
    return in_int8.origin


def rounded_inputs(model: Model) -> set[str]:
    """Products whose activations are rounded, by name up to the first slash."""
    import openvino

    found = set()
    for operation in openvino.Core().read_model(model.path).get_ordered_ops():
        if operation.get_type_name() not in ("Convolution", "GroupConvolution", "MatMul"):
            continue
        node = operation.input_value(0).get_node()
        while node.get_type_name() == "Reshape":
            node = node.input_value(0).get_node()
        if node.get_type_name() == "FakeQuantize":
            found.add(operation.get_friendly_name().partition("/")[0])
    return found


def test_only_the_named_layers_leave_int8(in_int8: Model, tmp_path: Path) -> None:
    assert rounded_inputs(in_int8) == {"conv1", "conv2", "head"}
    after = run(FloatLayers(("conv2",)), in_int8, tmp_path)
    assert rounded_inputs(after) == {"conv1", "head"}
    assert after.format == "openvino"
    assert {after.path, *after.files} == set((tmp_path / "result").iterdir())


@pytest.mark.parametrize("name", ["conv1", "head"])
def test_each_layer_that_is_given_back_brings_the_answers_nearer(
    convnet: Model, in_int8: Model, tmp_path: Path, name: str
) -> None:
    data = samples_of(convnet)
    exact = answers(convnet, data, tmp_path / "a")
    after = run(FloatLayers((name,)), in_int8, tmp_path)
    far = error_between(exact, answers(in_int8, data, tmp_path / "b", F32))
    near = error_between(exact, answers(after, data, tmp_path / "c", F32))
    assert 0 < near < far


CHAIN = """
<ir_version: 10, opset_import: ["": 20]>
chain (float[batch, 3, 8, 8] x) => (float[batch, 5] y)
<float[8, 3, 3, 3] w1, float[8] b1, float[8, 1, 3, 3] w2, float[8] b2, float[8, 5] w3, float[5] b3>
{
    [conv1] c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    [relu1] r1 = Relu (c1)
    [conv2] c2 = Conv <pads = [1, 1, 1, 1], group = 8> (r1, w2, b2)
    [relu2] r2 = Relu (c2)
    [pool] p = GlobalAveragePool (r2)
    [flat] f = Flatten (p)
    [head] y = Gemm (f, w3, b3)
}
"""


def test_with_all_layers_given_back_the_answers_are_the_originals(
    build: Any, tmp_path: Path
) -> None:
    model = build(CHAIN)
    data = samples_of(model)
    exact = answers(model, data, tmp_path / "a", F32)
    before = quantized(model, tmp_path, fast_bias_correction=False)
    after = run(FloatLayers(("conv1", "conv2", "head")), before, tmp_path)
    assert error_between(exact, answers(before, data, tmp_path / "b", F32)) > 1e-4
    assert error_between(exact, answers(after, data, tmp_path / "c", F32)) < 1e-6


def test_the_scaling_before_a_product_goes_with_its_rounding(
    attention: Model, tmp_path: Path
) -> None:
    """SmoothQuant divides activations by what it multiplies weights with."""
    data = samples_of(attention)
    exact = answers(attention, data, tmp_path / "a", F32)
    before = quantized(attention, tmp_path, transformer=True)
    names = ("query", "key", "value", "mix", "out")
    after = run(FloatLayers(names), before, tmp_path)
    assert error_between(exact, answers(before, data, tmp_path / "b", F32)) > 1e-2
    assert error_between(exact, answers(after, data, tmp_path / "c", F32)) < 1e-5


def test_rounding_that_no_product_in_int8_is_left_to_read_goes_too(
    build: Any, tmp_path: Path
) -> None:
    """That before the pooling, once the classifier behind it is in float."""
    import openvino

    after = run(FloatLayers(("head",)), quantized(build(CHAIN), tmp_path), tmp_path)
    graph = openvino.Core().read_model(after.path)
    left = {
        operation.input_value(0).get_node().get_friendly_name()
        for operation in graph.get_ordered_ops()
        if operation.get_type_name() == "FakeQuantize"
    }
    assert left == {"x", "relu1"}


def test_layers_that_were_never_in_int8_are_refused(convnet: Model, tmp_path: Path) -> None:
    before = quantized(convnet, tmp_path, keep_float=("conv1",))
    with pytest.raises(CandidateError, match=r"^none of the 1 layers was in int8$"):
        run(FloatLayers(("conv1",)), before, tmp_path)


def test_no_layers_is_nothing_to_do(in_int8: Model, tmp_path: Path) -> None:
    with pytest.raises(Skipped, match=r"^nothing to return to float: no layer is named$"):
        run(FloatLayers(()), in_int8, tmp_path)


def test_an_unknown_layer_gets_the_nearest_names(in_int8: Model, tmp_path: Path) -> None:
    message = r"^keep_float: the model has no node 'conv3'; did you mean conv2, conv1\?$"
    with pytest.raises(InputError, match=message):
        run(FloatLayers(("conv3",)), in_int8, tmp_path)


def test_a_model_whose_origin_is_unknown_is_refused(in_int8: Model, tmp_path: Path) -> None:
    stray = replace(in_int8, origin=None)
    message = r"^can't return layers to float: the original model is missing$"
    with pytest.raises(CandidateError, match=message):
        run(FloatLayers(("conv1",)), stray, tmp_path)


def test_layers_without_names_are_given_back_by_their_outputs(build: Any, tmp_path: Path) -> None:
    convnet = build(CONVNET)
    proto = onnx.load(str(convnet.path))
    for node in proto.graph.node:
        node.name = ""
    onnx.save(proto, str(convnet.path))
    before = quantized(convnet, tmp_path)
    assert rounded_inputs(before) == {"c1", "c2", "y"}
    assert rounded_inputs(run(FloatLayers(("c2",)), before, tmp_path)) == {"c1", "y"}
