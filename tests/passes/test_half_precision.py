from pathlib import Path
from typing import Any

import onnx
import pytest

from hasten.core.model import Model
from hasten.engines.tensorrt.profile import alterations, violations
from hasten.errors import CandidateError, InputError
from hasten.passes import half_precision
from hasten.passes.half_precision import HalfPrecision
from hasten.passes.onnx_files import read_onnx
from hasten.testing.pass_tests import PassTests, host, run

GPU = host().with_device("cuda:sm80", present=False)
LARGE = """
<ir_version: 10, opset_import: ["": 20]>
large (float[batch, 4] x) => (float[batch, 4] y)
<float[4, 4] small, float huge = {1000000.0}>
{
    [first] a = MatMul (x, small)
    [scaled] b = Mul (a, huge)
    [second] y = MatMul (b, small)
}
"""


class TestHalfPrecision(PassTests):
    bound = 2e-3

    @pytest.fixture
    def value(self) -> HalfPrecision:
        return HalfPrecision()

    @pytest.fixture
    def model(self, convnet: Model) -> Model:
        return convnet

    @pytest.fixture
    def idle_model(self, elementwise: Model) -> Model:
        return elementwise

    def test_weights_are_float16_and_tensorrt_takes_it(self, result: Model) -> None:
        kinds = {t.data_type for t in read_onnx(result).graph.initializer if len(t.dims) > 1}
        assert kinds == {onnx.TensorProto.FLOAT16}
        assert violations(result.path, "sm75") == alterations(result.path) == ()


class TestAttention(TestHalfPrecision):
    @pytest.fixture
    def model(self, attention: Model) -> Model:
        return attention


def test_it_is_for_nvidias_gpus_alone(convnet: Model) -> None:
    assert list(HalfPrecision.variants(convnet, host())) == []
    assert list(HalfPrecision.variants(convnet, GPU)) == [HalfPrecision()]


def test_a_node_whose_weights_are_beyond_float16_stays_as_it_is(build: Any, tmp_path: Path) -> None:
    model = build(LARGE)
    result = run(HalfPrecision(), model, tmp_path)
    kinds = {t.name: t.data_type for t in read_onnx(result).graph.initializer}
    assert kinds["huge"] == onnx.TensorProto.FLOAT
    assert onnx.TensorProto.FLOAT16 in kinds.values()


def test_a_layer_that_is_kept_computes_in_float32(convnet: Model, tmp_path: Path) -> None:
    kept = next(n.name for n in read_onnx(convnet).graph.node if n.op_type == "Conv")
    result = run(HalfPrecision((kept,)), convnet, tmp_path)
    node = next(n for n in read_onnx(result).graph.node if n.name == kept)
    kinds = {t.name: t.data_type for t in read_onnx(result).graph.initializer}
    assert kinds[node.input[1]] == onnx.TensorProto.FLOAT


def test_a_layer_that_isnt_there_is_said(convnet: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^keep_float: the model has no node 'nowhere'; "):
        run(HalfPrecision(("nowhere",)), convnet, tmp_path)


def test_a_converter_that_does_nothing_is_found_out(
    convnet: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_precision, "_converted", lambda proto, left: proto)
    with pytest.raises(CandidateError, match=r"^ONNX Runtime's float16 converter left all \d+ "):
        run(HalfPrecision(), convnet, tmp_path)
