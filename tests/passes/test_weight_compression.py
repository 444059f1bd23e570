from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from tests.support.models import Build

from hasten.core.model import Model
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import CandidateError, InputError
from hasten.passes.base import Skipped
from hasten.passes.weight_compression import WeightCompression
from hasten.testing.pass_tests import PassTests, host, run

PERCEPTRON = """
<ir_version: 10, opset_import: ["": 20]>
perceptron (float[batch, 64] x) => (float[batch, 16] y)
<float[64, 512] w1, float[512] b1, float[512, 512] w2, float[512, 16] w3>
{
    [first] a = Gemm (x, w1, b1)
    [bend] r = Relu (a)
    [second] b = MatMul (r, w2)
    [last] y = MatMul (b, w3)
}
"""


def narrow(model: Model) -> Counter[str]:
    """Count an IR's constants in 8 and in 4 bits."""
    import openvino

    graph = openvino.Core().read_model(model.path)
    return Counter(
        operation.get_output_element_type(0).get_type_name()
        for operation in graph.get_ordered_ops()
        if operation.get_type_name() == "Constant"
        and operation.get_output_element_type(0).get_type_name() in ("i8", "i4")
    )


class InBits(PassTests):
    engine = OpenVino(precision="f32")
    bits: Literal[8, 4]

    @pytest.fixture
    def value(self) -> WeightCompression:
        return WeightCompression(self.bits)

    @pytest.fixture
    def model(self, build: Build) -> Model:
        return build(PERCEPTRON.replace("512", "256"))

    @pytest.fixture
    def idle_model(self, elementwise: Model) -> Model:
        return elementwise

    def test_weights_have_so_many_bits(self, result: Model) -> None:
        assert result.format == "openvino"
        assert narrow(result) == {f"i{self.bits}": 3}


class TestIn8Bits(InBits):
    bits = 8
    bound = 0.02


class TestIn4Bits(InBits):
    bits = 4
    bound = 0.2


del InBits


def test_the_activations_are_left_alone(attention: Model, tmp_path: Path) -> None:
    import openvino

    result = run(WeightCompression(), attention, tmp_path)
    graph = openvino.Core().read_model(result.path)
    assert "FakeQuantize" not in {
        operation.get_type_name() for operation in graph.get_ordered_ops()
    }


def test_a_kept_product_stays_in_float(attention: Model, tmp_path: Path) -> None:
    assert narrow(run(WeightCompression(), attention, tmp_path)) == {"i8": 4}
    kept = run(WeightCompression(keep_float=("key",)), attention, tmp_path, "kept")
    assert narrow(kept) == {"i8": 3}


def test_a_node_that_is_unknown_is_said(attention: Model, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^keep_float: the model has no node 'quary'; did you mean"
    ):
        run(WeightCompression(keep_float=("quary",)), attention, tmp_path)


def test_it_is_tried_where_matrix_products_have_most_of_many_weights(
    build: Build, convnet: Model, attention: Model
) -> None:
    assert [value.bits for value in WeightCompression.variants(build(PERCEPTRON), host())] == [8, 4]
    for model in (convnet, attention):
        assert list(WeightCompression.variants(model, host())) == []


def test_nothing_to_do_is_said(convnet: Model, build: Build, tmp_path: Path) -> None:
    lookup = build(
        '<ir_version: 10, opset_import: ["": 20]>\n'
        "lookup (float[batch, 4] x) => (float[batch, 4] y) <float[4] w> { y = Mul (x, w) }",
        "lookup",
    )
    with pytest.raises(Skipped, match=r"there is no matrix product with constant weights$"):
        run(WeightCompression(), lookup, tmp_path)


def test_the_first_of_equal_numbers_comes_first_here_too(build: Build, tmp_path: Path) -> None:
    model = build("""<ir_version: 10, opset_import: ["": 20]>
        ranked (float[batch, 64] x) => (int64[batch, 16] y) <float[64, 16] w> {
            p = MatMul (x, w)  s = Mul (p, p)  signs = Sign (s)  count = Constant <value_ints = [16]> ()
            v, y = TopK (signs, count) }""")
    result = run(WeightCompression(), model, tmp_path)
    (folder := tmp_path / "opened").mkdir()
    engine, target = OpenVino(), host()
    with engine.open(engine.build(result, target, folder), target) as session:
        for rows in (1, 2, 5):
            x = np.random.default_rng(rows).standard_normal((rows, 64)).astype(np.float32)
            assert session.run({"x": x})["y"].tolist() == [[*range(16)]] * rows


def test_an_attribute_that_the_converter_passes_over_is_refused(
    build: Build, tmp_path: Path
) -> None:
    if onnx.defs.onnx_opset_version() < 28:
        pytest.skip("this onnx doesn't know operator set 28")
    model = build("""<ir_version: 13, opset_import: ["": 28]>
        deep (float[batch, 2, 4, 6] x) => (float[batch, 8, 2, 5] y) <float[3, 5] w> {
            [deep] d = SpaceToDepth <blocksize = 2, mode = "CRD"> (x)  y = MatMul (d, w) }""")
    with pytest.raises(CandidateError, match=r"attribute 'mode' of SpaceToDepth \(node 'deep'\)"):
        run(WeightCompression(), model, tmp_path)
