from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx import numpy_helper
from tests.support.models import Build

from hasten.core.model import Model
from hasten.engines.openvino.engine import OpenVino
from hasten.passes.already_quantized import quantized_lstms, quantized_products, words
from hasten.passes.base import Pass, Skipped
from hasten.passes.dynamic_quantization import DynamicQuantization
from hasten.passes.half_precision import HalfPrecision
from hasten.passes.litert_quantization import LitertQuantization
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.onnx_files import COMPUTE_OPS, read_onnx
from hasten.passes.openvino_graphs import PRODUCTS, converted
from hasten.passes.sensitivity import sensitivities
from hasten.passes.static_quantization import StaticQuantization
from hasten.testing.pass_tests import NARROW, answers, error_between, run, samples_of


@pytest.mark.parametrize(
    "value",
    [
        StaticQuantization(),
        DynamicQuantization(),
        NncfQuantization(),
        LitertQuantization(),
        HalfPrecision(),
    ],
)
def test_what_a_model_has_in_int8_is_kept_and_said(
    value: Pass, convnet: Model, tmp_path: Path
) -> None:
    given = run(StaticQuantization(reduce_range=NARROW), convnet, tmp_path, "given")
    with pytest.raises(
        Skipped,
        match=r"^3 of the model's 3 convolutions and matrix products are already quantized: they stay "
        r"as they are, and no pass quantizes the rest$",
    ):
        run(value, given, tmp_path)


def with_one_in_int8(model: Model, tmp_path: Path, *names: str) -> Model:
    """Return a model whose products are in int8, except some."""
    value = StaticQuantization(reduce_range=NARROW, compute_only=True, keep_float=names)
    return run(value, model, tmp_path, "given")


def scales_of(model: Model, name: str) -> list[bytes]:
    """Return the scales, zero points and weights that a product in int8 reads."""
    graph = read_onnx(model).graph
    values = {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    product = next(node for node in graph.node if node.name == name)
    opened = [makers[product.input[place]] for place in range(2)]
    assert [node.op_type for node in opened] == ["DequantizeLinear"] * 2
    return [values[one] for node in opened for one in node.input if one in values]


def test_the_rest_of_a_model_mostly_in_float_is_quantized_and_what_it_has_is_kept(
    convnet: Model, tmp_path: Path
) -> None:
    names = [node.name for node in read_onnx(convnet).graph.node if node.op_type in COMPUTE_OPS]
    given = with_one_in_int8(convnet, tmp_path, *names[1:])
    assert quantized_products(read_onnx(given)) == (1, 3)
    assert words(read_onnx(given)) == (
        "1 of the model's 3 convolutions and matrix products is already quantized: they stay as they are, "
        "and the rest is left to the passes that take partly quantized models"
    )
    data = samples_of(given)
    result = run(StaticQuantization(reduce_range=NARROW), given, tmp_path)
    assert quantized_products(read_onnx(result)) == (3, 3)
    assert scales_of(result, names[0]) == scales_of(given, names[0])
    own = answers(given, data, tmp_path / "own")
    assert error_between(own, answers(result, data, tmp_path / "new")) < 0.05
    kept = run(
        StaticQuantization(reduce_range=NARROW, keep_float=(names[1],)), given, tmp_path, "kept"
    )
    assert quantized_products(read_onnx(kept)) == (2, 3)
    assert set(sensitivities(given, data, samples=8)) == set(names[1:])


def test_products_with_constant_weights_of_such_a_model_are_quantized_at_run_time(
    attention: Model, tmp_path: Path
) -> None:
    names = [node.name for node in read_onnx(attention).graph.node if node.op_type in COMPUTE_OPS]
    given = with_one_in_int8(attention, tmp_path, *names[1:])
    result = run(DynamicQuantization(reduce_range=NARROW), given, tmp_path)
    assert quantized_products(read_onnx(result)) == (4, 6)
    assert scales_of(result, names[0]) == scales_of(given, names[0])


@pytest.mark.parametrize("drafted", [False, True])
def test_nncf_quantizes_the_rest_and_leaves_what_there_is(
    convnet: Model, tmp_path: Path, drafted: bool
) -> None:
    openvino = pytest.importorskip("openvino")
    names = [node.name for node in read_onnx(convnet).graph.node if node.op_type in COMPUTE_OPS]
    given = with_one_in_int8(convnet, tmp_path, *names[1:])
    value, data, workdir = NncfQuantization(reduce_range=NARROW), samples_of(given), tmp_path / "r"
    workdir.mkdir()
    result = (value.draft if drafted else value)(given, data, workdir)
    before = ranges_of(converted(given))
    after = ranges_of(openvino.Core().read_model(str(result.path)))
    assert len(before) == 1
    assert len(after) == 3
    assert after[names[0]] == before[names[0]]
    if not drafted:
        own = answers(given, data, tmp_path / "own")
        new = answers(result, data, tmp_path / "new", OpenVino())
        assert error_between(own, new) < 0.1


def ranges_of(graph: Any) -> dict[str, list[float]]:
    """Return the range to which OpenVINO rounds the input of each product in int8, by name."""
    found = {}
    for operation in graph.get_ordered_ops():
        if operation.get_type_name() not in PRODUCTS:
            continue
        source = operation.input_value(0).get_node()
        while source.get_type_name() in ("Reshape", "Squeeze"):
            source = source.input_value(0).get_node()
        if source.get_type_name() == "FakeQuantize":
            ends = [source.input_value(i).get_node().get_data().ravel() for i in (1, 2)]
            found[operation.get_friendly_name().removesuffix("/WithoutBiases")] = [
                float(one) for end in ends for one in end
            ]
    return found


@pytest.mark.parametrize("value", [LitertQuantization(), HalfPrecision()])
def test_passes_for_models_in_float_say_that_such_a_model_isnt_for_them(
    value: Pass, convnet: Model, tmp_path: Path
) -> None:
    names = [node.name for node in read_onnx(convnet).graph.node if node.op_type in COMPUTE_OPS]
    given = with_one_in_int8(convnet, tmp_path, *names[1:])
    with pytest.raises(
        Skipped,
        match=r"^1 of the model's 3 convolutions and matrix products is already quantized, and this pass "
        r"takes models in float alone$",
    ):
        run(value, given, tmp_path)


def test_products_in_integers_count_too(attention: Model, tmp_path: Path) -> None:
    given = run(DynamicQuantization(reduce_range=NARROW), attention, tmp_path)
    assert quantized_products(read_onnx(given)) == (4, 6)  # two products are of activations


READERS = """
<ir_version: 10, opset_import: ["": 20]>
readers (float[batch, 5, 16] x) => (float[batch, 24] y)
<float[1, 96, 16] w1, float[1, 96, 24] r1, float[1, 96, 24] w2, float[1, 96, 24] r2, float[24, 24] head,
 int64[1] first = {0}, int64[1] second = {1}>
{
    f = Transpose <perm = [1, 0, 2]> (x)
    [lower] a, last1, cell1 = LSTM <hidden_size = 24> (f, w1, r1)
    b = Squeeze (a, second)
    [upper] c, last2, cell2 = LSTM <hidden_size = 24> (b, w2, r2)
    d = Squeeze (last2, first)
    [head] y = MatMul (d, head)
}
"""


ONE = "1 of the model's 1 convolutions and matrix products"


@pytest.mark.parametrize(
    ("kept", "counts", "said", "then"),
    [
        (("head",), (0, 1), "2 of the model's 2 LSTMs are", "the rest is left"),
        (("lower", "upper"), (1, 1), f"{ONE} is", "the rest is left"),
        (("lower",), (1, 1), f"{ONE} and 1 of the model's 2 LSTMs are", "no pass quantizes"),
    ],
)
def test_lstms_are_counted_by_themselves(
    build: Build,
    tmp_path: Path,
    kept: tuple[str, ...],
    counts: tuple[int, int],
    said: str,
    then: str,
) -> None:
    """Who quantized LSTMs alone, or products alone, chose nothing among the others."""
    value = DynamicQuantization(reduce_range=NARROW)
    given = run(replace(value, keep_float=kept), build(READERS), tmp_path, "given")
    lstms = 2 - len({*kept} - {"head"})
    assert quantized_products(read_onnx(given)) == counts
    assert quantized_lstms(read_onnx(given)) == (lstms, 2)
    line = words(read_onnx(given))
    assert line.startswith(f"{said} already quantized")
    assert f"they stay as they are, and {then}" in line
    if then == "no pass quantizes":
        with pytest.raises(Skipped, match=r"no pass quantizes the rest$"):
            run(value, given, tmp_path)
        return
    result = run(value, given, tmp_path)
    assert quantized_products(read_onnx(result)) == (1, 1)
    assert quantized_lstms(read_onnx(result)) == (2, 2)


def test_nothing_is_said_of_a_model_in_float(convnet: Model) -> None:
    assert words(read_onnx(convnet)) == ""
