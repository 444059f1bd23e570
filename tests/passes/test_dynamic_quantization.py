from pathlib import Path

import numpy as np
import onnx
import pytest

from hasten.core.model import Model
from hasten.errors import CandidateError, InputError
from hasten.passes.base import Skipped
from hasten.passes.dynamic_quantization import DynamicQuantization
from hasten.passes.onnx_files import op_counts, read_onnx
from hasten.testing.pass_tests import NARROW, PassTests, host, run


class TestDynamicQuantization(PassTests):
    bound = 0.03

    @pytest.fixture
    def value(self) -> DynamicQuantization:
        return DynamicQuantization(reduce_range=NARROW)

    @pytest.fixture
    def model(self, attention: Model) -> Model:
        return attention

    @pytest.fixture
    def idle_model(self, elementwise: Model) -> Model:
        return elementwise

    def test_every_product_with_weights_is_an_integer_one(self, result: Model) -> None:
        counts = op_counts(read_onnx(result))
        assert counts["MatMulInteger"] == 4
        assert counts["MatMul"] == 2
        weights = [onnx.numpy_helper.to_array(t) for t in read_onnx(result).graph.initializer]
        assert {w.dtype for w in weights if w.ndim == 2} == {np.dtype(np.int8)}


def test_a_kept_product_stays_in_float(attention: Model, tmp_path: Path) -> None:
    result = run(DynamicQuantization(keep_float=("out", "key")), attention, tmp_path)
    graph = read_onnx(result).graph
    assert op_counts(read_onnx(result))["MatMulInteger"] == 2
    assert {"out", "key"} < {node.name for node in graph.node if node.op_type == "MatMul"}


def test_a_name_that_is_unknown_gets_the_nearest_ones(attention: Model, tmp_path: Path) -> None:
    message = r"^keep_float: the model has no node 'quary'; did you mean query\?$"
    with pytest.raises(InputError, match=message):
        run(DynamicQuantization(keep_float=("quary",)), attention, tmp_path)


def test_why_it_was_skipped_is_said_in_full(elementwise: Model, tmp_path: Path) -> None:
    message = r"^nothing to quantize: there is no matrix product with constant weights$"
    with pytest.raises(Skipped, match=message):
        run(DynamicQuantization(), elementwise, tmp_path)


def test_per_channel_weights_have_a_scale_per_column(attention: Model, tmp_path: Path) -> None:
    def sizes(value: DynamicQuantization, name: str) -> set[int]:
        graph = read_onnx(run(value, attention, tmp_path, name)).graph
        return {onnx.numpy_helper.to_array(t).size for t in graph.initializer if "scale" in t.name}

    assert sizes(DynamicQuantization(), "columns") == {32}
    assert sizes(DynamicQuantization(per_channel=False), "one") == {1}


def test_convolutional_networks_are_not_worth_trying(convnet: Model, attention: Model) -> None:
    assert list(DynamicQuantization.variants(convnet, host())) == []
    assert list(DynamicQuantization.variants(attention, host())) != []


def test_a_quantizer_that_changes_nothing_is_refused(
    attention: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.quantization import onnx_quantizer

    monkeypatch.setattr(onnx_quantizer.ONNXQuantizer, "should_quantize_node", lambda *_: False)
    message = r"^ONNX Runtime's quantizer left all 4 matrix products in float$"
    with pytest.raises(CandidateError, match=message):
        run(DynamicQuantization(), attention, tmp_path)
