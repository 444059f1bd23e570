import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.engines.litert.engine import LiteRt
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.passes import litert_quantization
from hasten.passes.base import Skipped
from hasten.passes.litert_quantization import LitertQuantization
from hasten.passes.weight_rounding import round_weights
from hasten.testing.pass_tests import PassTests, answers, error_between, host, run, samples_of

SILU = """
<ir_version: 10, opset_import: ["": 20]>
silu (float[batch, 3, 16, 16] x) => (float[batch, 5] y)
<float[16, 3, 3, 3] w1, float[16] b1, float[16, 1, 3, 3] w2, float[16] b2, float[4, 16, 1, 1] w3,
 float[16, 4, 1, 1] w4, float[16, 5] w5>
{
    [stem] c1 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w1, b1)
    [gate1] g1 = Sigmoid (c1)
    [silu1] s1 = Mul (c1, g1)
    [depthwise] c2 = Conv <pads = [1, 1, 1, 1], group = 16> (s1, w2, b2)
    [gate2] g2 = Sigmoid (c2)
    [silu2] s2 = Mul (c2, g2)
    [mean] m = GlobalAveragePool (s2)
    [squeeze] q = Conv (m, w3)
    [relu] r = Relu (q)
    [excite] e = Conv (r, w4)
    [weigh] h = Sigmoid (e)
    [scale] s3 = Mul (s2, h)
    [skip] a = Add (s3, s1)
    [pool] p = GlobalAveragePool (a)
    [flat] f = Flatten (p)
    [head] y = MatMul (f, w5)
}
"""

HARD = """
<ir_version: 10, opset_import: ["": 20]>
hard (float[batch, 3, 16, 16] x) => (float[batch, 5] y)
<float[16, 3, 3, 3] w1, float[16] b1, float[5, 16, 1, 1] w2>
{
    [stem] c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w1, b1)
    [act] a = HardSwish (c)
    [pool] p = GlobalAveragePool (a)
    [head] h = Conv (p, w2)
    [flat] y = Flatten (h)
}
"""


@dataclass
class Operator:
    """One operator of a .tflite file, and what it reads."""

    code: str
    name: str
    types: list[str]
    model: Any
    inputs: list[Any]

    def values(self, position: int) -> Array:
        """Return a constant as it is stored, and as it counts."""
        tensor = self.inputs[position]
        stored = np.asarray(self.model.buffers[tensor.buffer].data, np.uint8).view(np.int8)
        shape = [1] * len(tensor.shape)
        shape[tensor.quantization.quantizedDimension] = -1
        scale = np.asarray(tensor.quantization.scale).reshape(shape)
        return np.asarray(stored.reshape(tensor.shape) * scale)


def operators(model: Model) -> Iterator[Operator]:
    """Yield what a .tflite file does, in order."""
    codes = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    types = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
    whole = schema.ModelT.InitFromPackedBuf(model.path.read_bytes())
    graph = whole.subgraphs[0]
    for operator in graph.operators:
        inputs = [graph.tensors[i] for i in operator.inputs]
        yield Operator(
            codes[whole.operatorCodes[operator.opcodeIndex].builtinCode],
            graph.tensors[operator.outputs[0]].name.decode(),
            [types[tensor.type] for tensor in inputs],
            whole,
            inputs,
        )


def precisions(model: Model) -> dict[str, str]:
    """Return the type that each operator computes in, by name."""
    return {operator.name: operator.types[0] for operator in operators(model)}


class TestLitertQuantization(PassTests):
    bound = 0.05
    engine = LiteRt()

    @pytest.fixture
    def value(self) -> LitertQuantization:
        return LitertQuantization()

    @pytest.fixture
    def model(self, convnet: Model) -> Model:
        return convnet

    @pytest.fixture
    def idle_model(self, elementwise: Model) -> Model:
        return elementwise

    def test_all_between_float_inputs_and_outputs_is_int8(self, result: Model) -> None:
        found = list(operators(result))
        assert (found[0].code, found[-1].code) == ("QUANTIZE", "DEQUANTIZE")
        assert {operator.types[0] for operator in found[1:]} == {"INT8"}
        assert result.format == "tflite"
        assert result.files == ()

    def test_weights_have_a_scale_per_channel_around_zero(self, result: Model) -> None:
        products = [
            o
            for o in operators(result)
            if o.code in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
        ]
        assert [o.name for o in products] == ["conv1", "conv2", "head"]
        for product in products:
            quantization = product.inputs[1].quantization
            assert (
                len(quantization.scale) == product.inputs[1].shape[quantization.quantizedDimension]
            )
            assert not np.any(quantization.zeroPoint)


class TestByLayer(TestLitertQuantization):
    @pytest.fixture
    def value(self) -> LitertQuantization:
        return LitertQuantization("layer")


class TestSilu(TestLitertQuantization):
    @pytest.fixture
    def model(self, build: Any) -> Model:
        model: Model = build(SILU, "silu")
        return model

    def test_weights_have_a_scale_per_channel_around_zero(self, result: Model) -> None:
        convolutions = [o for o in operators(result) if o.code.endswith("CONV_2D")]
        assert [len(o.inputs[1].quantization.scale) for o in convolutions] == [16, 16, 4, 16]


class TestAttention(TestLitertQuantization):
    bound = 0.1

    @pytest.fixture
    def model(self, attention: Model) -> Model:
        return attention

    def test_all_between_float_inputs_and_outputs_is_int8(self, result: Model) -> None:
        found = precisions(result)
        products = ("query", "key", "value", "score", "mix", "out")
        assert {found[name] for name in products} == {"INT8"}

    def test_weights_have_a_scale_per_channel_around_zero(self, result: Model) -> None:
        weights = [o.inputs[1] for o in operators(result) if o.code == "FULLY_CONNECTED"]
        assert [len(tensor.quantization.scale) for tensor in weights] == [32] * 4

    def test_a_normalization_stays_in_float(self, result: Model) -> None:
        found = [o for o in operators(result) if ":norm" in o.name and o.code != "QUANTIZE"]
        assert {o.code for o in found} == {"MEAN", "SUB", "MUL", "ADD", "RSQRT"}
        assert {o.types[0] for o in found} == {"FLOAT32"}


@pytest.mark.parametrize("text", [SILU, HARD])
def test_xnnpack_runs_all_of_a_quantized_network(build: Any, text: str, tmp_path: Path) -> None:
    model = build(text)
    result = run(LitertQuantization(), model, tmp_path)
    (tmp_path / "built").mkdir()
    engine = LiteRt()
    with engine.open(engine.build(result, host(), tmp_path / "built"), host()) as session:
        part, _, whole, _ = session.properties()["xnnpack"].split()
    assert part == whole == str(len(list(operators(result))))
    data = samples_of(model)
    exact = answers(model, data, tmp_path / "a")
    assert 0 < error_between(exact, answers(result, data, tmp_path / "b", engine)) < 0.05


def input_scale(model: Model) -> float:
    """Return the scale that the model's input is quantized with."""
    second = list(operators(model))[1]
    return float(second.inputs[0].quantization.scale[0])


def test_the_range_of_the_samples_shows_in_the_result(convnet: Model, tmp_path: Path) -> None:
    scale = input_scale(run(LitertQuantization(), convnet, tmp_path, "small"))
    wide = input_scale(run(LitertQuantization(), convnet, tmp_path, "large", scale=10))
    assert wide == pytest.approx(10 * scale, rel=0.01)
    drawn = samples_of(convnet).inputs(range(32))["x"]
    assert scale == pytest.approx((drawn.max() - drawn.min()) / 255, rel=0.01)
    assert input_scale(run(LitertQuantization(samples=2), convnet, tmp_path, "few")) < scale


@pytest.mark.parametrize("name", ["conv1", "conv2", "head"])
def test_a_kept_node_stays_in_float_and_the_others_do_not(
    convnet: Model, tmp_path: Path, name: str
) -> None:
    result = run(LitertQuantization(keep_float=(name,)), convnet, tmp_path)
    found = precisions(result)
    assert found[name] == "FLOAT32"
    assert {found[other] for other in {"conv1", "conv2", "head"} - {name}} == {"INT8"}
    data = samples_of(convnet)
    exact = answers(convnet, data, tmp_path / "a")
    assert 0 < error_between(exact, answers(result, data, tmp_path / "b", LiteRt())) < 0.05


def test_a_value_may_be_read_in_int8_and_in_float(build: Any, tmp_path: Path) -> None:
    model = build(
        """
        <ir_version: 10, opset_import: ["": 20]>
        both (float[batch, 8] x) => (float[batch, 8] y)
        <float[8, 8] w, float[8, 8] u, float[8, 8] v>
        {
            [product] p = MatMul (x, w)
            [int8] a = MatMul (p, u)
            [leaky] l = LeakyRelu (p)
            [mixed] s = Add (a, l)
            [kept] k = MatMul (p, v)
            [sum] y = Add (s, k)
        }
        """
    )
    result = run(LitertQuantization(keep_float=("kept",)), model, tmp_path)
    found = precisions(result)
    assert (found["kept"], found["leaky"], found["int8"]) == ("FLOAT32", "FLOAT32", "INT8")
    data = samples_of(model)
    exact = answers(model, data, tmp_path / "a")
    assert 0 < error_between(exact, answers(result, data, tmp_path / "b", LiteRt())) < 0.05


def test_a_name_that_begins_like_a_kept_one_is_quantized(build: Any, tmp_path: Path) -> None:
    model = build(
        """
        <ir_version: 10, opset_import: ["": 20]>
        alike (float[batch, 8] x) => (float[batch, 8] y) <float[8, 8] w, float[8, 8] v>
        {
            [a] t = MatMul (x, w)
            [a1] y = MatMul (t, v)
        }
        """
    )
    found = precisions(run(LitertQuantization(keep_float=("a",)), model, tmp_path))
    assert (found["a"], found["a1"]) == ("FLOAT32", "INT8")


def test_weights_rounded_by_layer_are_stored_as_they_are(convnet: Model, tmp_path: Path) -> None:
    for name in ("rounded", "alone"):
        (tmp_path / name).mkdir()
    from onnx import numpy_helper

    from hasten.passes.onnx_files import read_onnx

    rounded = round_weights(convnet, samples_of(convnet), tmp_path / "rounded")
    wanted = {t.name: numpy_helper.to_array(t) for t in read_onnx(rounded).graph.initializer}
    result = run(LitertQuantization("layer"), convnet, tmp_path)
    stored = {o.name: o.values(1) for o in operators(result) if len(o.inputs) == 3}
    np.testing.assert_allclose(stored["conv1"], wanted["w1"].transpose(0, 2, 3, 1), atol=1e-6)
    np.testing.assert_allclose(stored["conv2"], wanted["w2"].transpose(1, 2, 3, 0), atol=1e-6)
    np.testing.assert_allclose(stored["head"], wanted["w3"].T, atol=1e-6)
    plain = run(LitertQuantization(), convnet, tmp_path, "nearest")
    nearest = {o.name: o.values(1) for o in operators(plain) if len(o.inputs) == 3}
    assert np.abs(nearest["conv1"] - stored["conv1"]).max() > 1e-3


def test_an_output_may_be_an_input_or_twice_or_read_on(build: Any, tmp_path: Path) -> None:
    model = build(
        """
        <ir_version: 10, opset_import: ["": 20]>
        handed (float[batch, 8] x) => (float[batch, 8] y, float[batch, 8] same, float[batch, 8] z,
                                       float[batch, 8] r, float[batch, 8] v)
        <float[8, 8] w, float[8, 8] u>
        {
            [product] y = MatMul (x, w)
            [relu] r = Relu (y)
            [next] v = MatMul (r, u)
            [input] same = Identity (x)
            [again] z = Identity (y)
        }
        """
    )
    result = run(LitertQuantization(), model, tmp_path)
    data = samples_of(model)
    quick = answers(result, data, tmp_path / "b", LiteRt())
    np.testing.assert_array_equal(quick["y"], quick["z"])
    np.testing.assert_allclose(quick["r"], np.maximum(quick["y"], 0), atol=0.1)
    assert 0 < error_between(answers(model, data, tmp_path / "a"), quick) < 0.05


def test_a_name_that_is_unknown_gets_the_nearest_ones(convnet: Model, tmp_path: Path) -> None:
    message = r"^keep_float: the model has no node 'conv3'; did you mean conv2, conv1\?$"
    with pytest.raises(InputError, match=message):
        run(LitertQuantization(keep_float=("conv3",)), convnet, tmp_path)


def test_why_it_was_skipped_is_said_in_full(elementwise: Model, tmp_path: Path) -> None:
    message = r"^nothing to quantize: there is no convolution or matrix product to quantize$"
    with pytest.raises(Skipped, match=message):
        run(LitertQuantization(), elementwise, tmp_path)


def test_a_quantizer_that_changes_nothing_is_refused(
    convnet: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litert_quantization, "_NORMALIZATIONS", "")
    message = r"^the AI Edge Quantizer left all 3 convolutions and matrix products in float$"
    with pytest.raises(CandidateError, match=message):
        run(LitertQuantization(), convnet, tmp_path)


def test_a_quantizer_that_takes_on_a_kept_node_is_refused(
    convnet: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = run(LitertQuantization(), convnet, tmp_path).path.read_bytes()
    monkeypatch.setattr(LitertQuantization, "_quantized", lambda *_: content)
    message = r"^the AI Edge Quantizer quantized 'conv2' despite keep_float$"
    with pytest.raises(CandidateError, match=message):
        run(LitertQuantization(keep_float=("conv2",)), convnet, tmp_path, "kept")


def test_a_quantizer_that_fails_is_one_line(
    convnet: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ai_edge_quantizer import quantizer

    def broken(*_: object, **__: object) -> None:
        raise ValueError("no such thing\nand more")

    monkeypatch.setattr(quantizer.Quantizer, "quantize", broken)
    with pytest.raises(CandidateError, match=r"^the AI Edge Quantizer failed: no such thing$"):
        run(LitertQuantization(), convnet, tmp_path)


def test_an_operator_that_cannot_be_converted_is_named(build: Any, tmp_path: Path) -> None:
    model = build(
        """
        <ir_version: 10, opset_import: ["": 20]>
        odd (float[batch, 8] x) => (float[batch, 8] y) <float[8, 8] w>
        {
            [product] t = MatMul (x, w)
            [sine] y = Sin (t)
        }
        """
    )
    message = r"^LiteRT can't take the operator Sin \(node 'sine'\)$"
    with pytest.raises(CandidateError, match=message):
        run(LitertQuantization(), model, tmp_path)


def test_external_data_is_read(outside: Model, tmp_path: Path) -> None:
    result = run(LitertQuantization(), outside, tmp_path)
    data = samples_of(outside)
    exact = answers(outside, data, tmp_path / "a")
    assert 0 < error_between(exact, answers(result, data, tmp_path / "b", LiteRt())) < 0.05


def test_without_the_quantizer_there_is_nothing_to_try(
    convnet: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = list(LitertQuantization.variants(convnet, host()))
    assert variants == [LitertQuantization(), LitertQuantization("layer")]
    find_spec = importlib.util.find_spec
    for name in ("ai_edge_litert", "ai_edge_quantizer"):

        def hidden(wanted: str, name: str = name) -> Any:
            return None if wanted == name else find_spec(wanted)

        monkeypatch.setattr("importlib.util.find_spec", hidden)
        assert list(LitertQuantization.variants(convnet, host())) == []


def test_what_leads_to_a_layer_in_float_is_in_float_up_to_products_and_sums(
    build: Any, tmp_path: Path
) -> None:
    found = precisions(
        run(LitertQuantization(keep_float=("squeeze",)), build(SILU, "silu"), tmp_path)
    )
    floats = {name for name, kind in found.items() if kind == "FLOAT32" and ":" not in name}
    assert {"squeeze", "mean", "silu2", "gate2"} <= floats
    assert not floats & {"stem", "silu1", "depthwise", "excite", "skip", "head"}
    none = precisions(run(LitertQuantization(), build(SILU, "silu"), tmp_path, "none"))
    assert {none[name] for name in ("mean", "silu2", "gate2")} == {"INT8"}


def test_a_divisor_that_int8_would_make_0_stays_in_float(build: Any, tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        embedding (float[batch, 16] x) => (float[batch, 8] y)
        <float[16, 8] w, int64[1] axes = {1}, float least = {1.0e-12}>
        {
            [product] p = MatMul (x, w)
            [length] l = ReduceL2 <keepdims = 1> (p, axes)
            [above] a = Max (l, least)
            [unit] y = Div (p, a)
        }
    """
    model = build(text, "embedding")
    data = samples_of(model)
    scaled = {name: array.copy() for name, array in data.inputs(range(len(data))).items()}
    scaled["x"][1:] /= 1000  # beside the first, all others have next to no length
    uneven = ArrayDataset(scaled)
    (tmp_path / "result").mkdir()
    result = LitertQuantization()(model, uneven, tmp_path / "result")
    found = answers(result, uneven, tmp_path / "int8", LiteRt())["y"]
    assert np.isfinite(found).all()
    assert np.linalg.norm(found[0]) == pytest.approx(1, abs=0.1)
    divisions = [o for o in operators(result) if o.code == "DIV"]
    assert [o.inputs[1].type for o in divisions] == [schema.TensorType.FLOAT32]
