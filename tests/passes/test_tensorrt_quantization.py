from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hasten.core.model import Model
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.tensorrt.profile import alterations, violations
from hasten.passes.onnx_files import COMPUTE_OPS, read_onnx
from hasten.passes.static_quantization import StaticQuantization
from hasten.passes.tensorrt_quantization import TensorrtQuantization
from hasten.testing.pass_tests import PassTests, host, run

GPU = host().with_device("cuda:sm80", present=False)


class TestTensorrtQuantization(PassTests):
    bound = 0.02
    engine = OnnxRuntime(graph_optimization="disabled")

    @pytest.fixture
    def value(self) -> TensorrtQuantization:
        return TensorrtQuantization()

    @pytest.fixture
    def model(self, convnet: Model) -> Model:
        return convnet

    @pytest.fixture
    def idle_model(self, elementwise: Model) -> Model:
        return elementwise

    def test_tensorrt_takes_it(self, result: Model) -> None:
        assert violations(result.path) == alterations(result.path) == ()

    def test_products_read_pairs_around_zero_and_nothing_else_is_quantized(
        self, result: Model
    ) -> None:
        graph = read_onnx(result).graph
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        makers = {name: node for node in graph.node for name in node.output}
        products = [node for node in graph.node if node.op_type in COMPUTE_OPS]
        pairs = set()
        for product in products:
            for name in product.input[:2]:
                back = makers[name]
                there = makers[back.input[0]]
                assert (there.op_type, back.op_type) == ("QuantizeLinear", "DequantizeLinear")
                assert constants[back.input[2]].dtype == np.int8
                assert not constants[back.input[2]].any()
                pairs |= {there.name, back.name}
            assert all(name in constants for name in product.input[2:])
        assert {n.name for n in graph.node if n.op_type.endswith("Linear")} == pairs

    def test_weights_have_a_scale_for_each_output_channel(self, result: Model) -> None:
        graph = read_onnx(result).graph
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        scaled = [
            (constants[n.input[0]].shape, constants[n.input[1]].size)
            for n in graph.node
            if n.op_type == "QuantizeLinear" and n.input[0] in constants
        ]
        assert scaled
        assert all(scales in shape and scales > 1 for shape, scales in scaled)


class TestAttention(TestTensorrtQuantization):
    bound = 0.05

    @pytest.fixture
    def model(self, attention: Model) -> Model:
        return attention


class TestWithTheRestInHalfPrecision(TestTensorrtQuantization):
    @pytest.fixture
    def value(self) -> TensorrtQuantization:
        return TensorrtQuantization(half=True)

    def test_every_gpu_takes_it_and_scales_are_float16(self, result: Model) -> None:
        assert violations(result.path, "sm75") == ()
        graph = read_onnx(result).graph
        kinds = {t.name: t.data_type for t in graph.initializer}
        scales = {kinds[n.input[1]] for n in graph.node if n.op_type == "QuantizeLinear"}
        assert scales == {onnx.TensorProto.FLOAT16}


class TestAttentionWithTheRestInHalfPrecision(TestWithTheRestInHalfPrecision):
    bound = 0.05

    @pytest.fixture
    def model(self, attention: Model) -> Model:
        return attention


def test_an_older_operator_set_is_converted_for_scales_in_half_precision(
    build: Any, tmp_path: Path
) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 17]>
    older (float[batch, 16] x) => (float[batch, 8] y) <float[16, 8] w> { y = MatMul (x, w) }
    """
    result = run(TensorrtQuantization(half=True), build(text, "older"), tmp_path)
    assert read_onnx(result).opset_import[0].version >= 19
    assert violations(result.path, "sm75") == ()


def test_it_is_for_nvidias_gpus_alone(convnet: Model, attention: Model) -> None:
    assert list(TensorrtQuantization.variants(convnet, host())) == []
    assert list(TensorrtQuantization.variants(convnet, GPU)) == [
        TensorrtQuantization(half=True),
        TensorrtQuantization(half=True, rounding="layer"),
        TensorrtQuantization(),
    ]
    assert list(TensorrtQuantization.variants(attention, GPU)) == [
        TensorrtQuantization(half=True),
        TensorrtQuantization(),
    ]
    turing = replace(GPU, device="cuda:sm75")
    assert list(TensorrtQuantization.variants(attention, turing)) == [
        TensorrtQuantization(half=True)
    ]
    assert list(StaticQuantization.variants(convnet, GPU)) == []


def test_a_layer_that_is_kept_in_float_reads_no_pair(convnet: Model, tmp_path: Path) -> None:
    whole = read_onnx(convnet).graph
    kept = next(node.name for node in whole.node if node.op_type == "Conv")
    result = run(replace(TensorrtQuantization(), keep_float=(kept,)), convnet, tmp_path)
    graph = read_onnx(result).graph
    pairs = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    node = next(node for node in graph.node if node.name == kept)
    assert pairs.isdisjoint(node.input)
