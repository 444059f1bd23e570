from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from tests.support.models import BRANCHES, Build

from hasten.core.model import Model
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Subset
from hasten.inputs.models.onnx import load
from hasten.passes.base import Skipped
from hasten.passes.onnx_files import op_counts, read_onnx
from hasten.passes.static_quantization import StaticQuantization
from hasten.testing.pass_tests import (
    NARROW,
    PassTests,
    answers,
    error_between,
    host,
    run,
    samples_of,
)


def tensors(model: Model) -> dict[str, Any]:
    """Return initializers by name."""
    return {t.name: onnx.numpy_helper.to_array(t) for t in read_onnx(model).graph.initializer}


def input_scale(model: Model) -> float:
    """Return the scale that the model's input is quantized with."""
    graph = read_onnx(model).graph
    node = next(n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "x")
    return float(tensors(model)[node.input[1]])


class TestStaticQuantization(PassTests):
    bound = 0.05

    @pytest.fixture
    def value(self) -> StaticQuantization:
        return StaticQuantization(reduce_range=NARROW)

    @pytest.fixture
    def model(self, convnet: Model) -> Model:
        return convnet

    @pytest.fixture
    def idle_model(self, elementwise: Model) -> Model:
        return elementwise

    def test_products_read_dequantized_inputs_and_int8_weights(self, result: Model) -> None:
        counts = op_counts(read_onnx(result))
        assert counts["QuantizeLinear"] > 0
        assert counts["DequantizeLinear"] > counts["QuantizeLinear"]
        weights = [t for t in tensors(result).values() if t.ndim >= 2]
        assert len(weights) == 3
        assert {weight.dtype for weight in weights} == {np.dtype(np.int8)}


class TestAttention(TestStaticQuantization):
    @pytest.fixture
    def model(self, attention: Model) -> Model:
        return attention

    def test_products_read_dequantized_inputs_and_int8_weights(self, result: Model) -> None:
        weights = [t for t in tensors(result).values() if t.ndim >= 2]
        assert len(weights) == 4
        assert {weight.dtype for weight in weights} == {np.dtype(np.int8)}


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
@pytest.mark.parametrize("activations", ["asymmetric", "symmetric"])
def test_every_way_to_calibrate_keeps_the_answers(
    convnet: Model,
    tmp_path: Path,
    calibration: Literal["minmax", "percentile", "entropy"],
    activations: Literal["asymmetric", "symmetric"],
) -> None:
    value = StaticQuantization(
        calibration=calibration, activations=activations, reduce_range=NARROW
    )
    result = run(value, convnet, tmp_path)
    data = samples_of(convnet)
    exact, quick = answers(convnet, data, tmp_path / "a"), answers(result, data, tmp_path / "b")
    assert 0 < error_between(exact, quick) < 0.1


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
def test_the_range_of_the_samples_shows_in_the_scales(
    convnet: Model, tmp_path: Path, calibration: Literal["minmax", "percentile", "entropy"]
) -> None:
    value = StaticQuantization(calibration=calibration)
    small = run(value, convnet, tmp_path, "small", scale=1.0)
    large = run(value, convnet, tmp_path, "large", scale=10.0)
    assert input_scale(large) / input_scale(small) == pytest.approx(10.0, rel=0.01)


def test_the_minmax_scale_spans_every_sample_it_may_use(convnet: Model, tmp_path: Path) -> None:
    data = samples_of(convnet)
    x = data.inputs(range(32))["x"]
    result = run(StaticQuantization(), convnet, tmp_path)
    assert input_scale(result) == pytest.approx((x.max() - x.min()) / 255, rel=1e-5)
    few = run(StaticQuantization(samples=2), convnet, tmp_path, "few")
    ends = x[[0, 31]]
    assert input_scale(few) == pytest.approx((ends.max() - ends.min()) / 255, rel=1e-5)


def test_symmetric_activations_are_int8_around_zero(convnet: Model, tmp_path: Path) -> None:
    result = run(StaticQuantization(activations="symmetric"), convnet, tmp_path)
    graph, values = read_onnx(result).graph, tensors(result)
    zeros = [values[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"]
    assert {zero.dtype for zero in zeros} == {np.dtype(np.int8)}
    assert not np.any(zeros)


def test_wide_activations_have_16_bits_on_engines_that_calculate_with_such(
    convnet: Model, tmp_path: Path
) -> None:
    wide = StaticQuantization(activations="wide")
    result = run(wide.suited(CompiledC()), convnet, tmp_path)
    zeros = [a for name, a in tensors(result).items() if name.endswith("_zero_point")]
    assert {a.dtype.name for a in zeros} >= {"uint16", "int8"}
    assert "uint8" not in {a.dtype.name for a in zeros}
    assert wide.words() == "int8 (ONNX Runtime, per channel, 16-bit activations, minmax)"
    assert wide.suited(OnnxRuntime()) == StaticQuantization()
    data = samples_of(convnet)
    narrow = run(StaticQuantization(), convnet, tmp_path, "narrow")
    exact, few, many = (
        answers(model, data, tmp_path / name)
        for name, model in (("a", convnet), ("b", narrow), ("c", result))
    )
    assert error_between(exact, many) < error_between(exact, few)


def test_the_profile_for_tensorrt_has_float_biases_and_no_zero_points(
    convnet: Model, tmp_path: Path
) -> None:
    value = StaticQuantization(activations="symmetric", quantize_bias=False)
    values = tensors(run(value, convnet, tmp_path))
    assert {t.dtype for t in values.values()} == {np.dtype(np.int8), np.dtype(np.float32)}
    assert not any(np.any(t) for name, t in values.items() if "zero_point" in name)
    assert any(
        t.dtype == np.int32
        for t in tensors(run(StaticQuantization(), convnet, tmp_path, "q")).values()
    )


def test_per_tensor_weights_have_one_scale(convnet: Model, tmp_path: Path) -> None:
    def scales(value: StaticQuantization, name: str) -> set[int]:
        values = tensors(run(value, convnet, tmp_path, name))
        return {
            t.size for key, t in values.items() if key.startswith("w") and key.endswith("scale")
        }

    assert scales(StaticQuantization(per_channel=False), "one") == {1}
    assert scales(StaticQuantization(), "many") == {16, 5}


def test_reduced_weights_use_seven_bits(convnet: Model, tmp_path: Path) -> None:
    values = tensors(run(StaticQuantization(reduce_range=True), convnet, tmp_path))
    weights = [t for t in values.values() if t.dtype == np.int8 and t.ndim >= 2]
    assert max(int(np.abs(weight).max()) for weight in weights) == 64


def test_what_lies_between_products_stays_in_float_where_asked(
    convnet: Model, tmp_path: Path
) -> None:
    def quantized(value: StaticQuantization, name: str) -> set[str]:
        graph = read_onnx(run(value, convnet, tmp_path, name)).graph
        makers = {out: node.name for node in graph.node for out in node.output}
        into = {n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
        return {makers[tensor] for tensor in into if tensor in makers}

    assert "add" in quantized(StaticQuantization(), "all")
    assert "add" not in quantized(StaticQuantization(compute_only=True), "compute")


def test_a_kept_node_keeps_its_float_weights(convnet: Model, tmp_path: Path) -> None:
    result = run(StaticQuantization(keep_float=("conv2",)), convnet, tmp_path)
    assert tensors(result)["w2"].dtype == np.float32
    assert "w1" not in tensors(result)


def test_a_kept_node_between_quantized_ones_really_runs_in_float(
    convnet: Model, tmp_path: Path
) -> None:
    """ONNX Runtime would quantize its weights as it loads the model."""
    value = StaticQuantization(reduce_range=NARROW, keep_float=("conv2",))
    engine, target = OnnxRuntime(), host()
    (tmp_path / "built").mkdir()
    artifact = engine.build(run(value, convnet, tmp_path), target, tmp_path / "built")
    x = np.zeros((1, 3, 16, 16), np.float32)
    steps = engine.profile(artifact, target, [{"x": x}])
    precision = {n: step.precision for step in steps for n in step.sources if "conv" in n}
    assert precision == {"conv1": "i8", "conv2": "f32"}


def test_a_name_that_is_unknown_gets_the_nearest_ones(convnet: Model, tmp_path: Path) -> None:
    message = r"^keep_float: the model has no node 'conv3'; did you mean conv2, conv1\?$"
    with pytest.raises(InputError, match=message):
        run(StaticQuantization(keep_float=("conv3",)), convnet, tmp_path)
    message = r"^keep_float: the model has no node 'zzz'; it has conv1, clip1, conv2, \.\.\.$"
    with pytest.raises(InputError, match=message):
        run(StaticQuantization(keep_float=("zzz",)), convnet, tmp_path, "other")


def test_keeping_everything_leaves_nothing_to_do(convnet: Model, tmp_path: Path) -> None:
    value = StaticQuantization(keep_float=("conv1", "conv2", "head"))
    message = r"^nothing to quantize: there is no convolution or matrix product to quantize$"
    with pytest.raises(Skipped, match=message):
        run(value, convnet, tmp_path)


def test_products_inside_branches_are_named_as_the_reason(build: Build, tmp_path: Path) -> None:
    message = (
        r"^nothing to quantize: the model's convolutions and matrix products are inside If, where "
        r"none is quantized$"
    )
    with pytest.raises(Skipped, match=message):
        run(StaticQuantization(), build(BRANCHES, "branches"), tmp_path)


def test_without_samples_it_fails_and_says_so(convnet: Model, tmp_path: Path) -> None:
    none = Subset(samples_of(convnet), np.array([], np.int64))
    (tmp_path / "w").mkdir()
    message = r"^calibration needs at least one sample: got 0 and samples=100$"
    with pytest.raises(CandidateError, match=message):
        StaticQuantization()(convnet, none, tmp_path / "w")


def test_a_quantizer_that_changes_nothing_is_refused(
    convnet: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.quantization import qdq_quantizer

    # The real quantizer, made to know no operator: it writes the model back as it was.
    monkeypatch.setattr(qdq_quantizer.QDQQuantizer, "should_quantize_node", lambda *_: False)
    message = r"^ONNX Runtime's quantizer left all 3 convolutions and matrix products in float$"
    with pytest.raises(CandidateError, match=message):
        run(StaticQuantization(), convnet, tmp_path)


def test_external_data_stays_external(outside: Model, tmp_path: Path) -> None:
    result = run(StaticQuantization(reduce_range=NARROW), outside, tmp_path)
    assert [file.name for file in result.files] == ["quantized.onnx.data"]
    assert result.files[0].stat().st_size >= 64 * 64
    data = samples_of(outside)
    exact, quick = answers(outside, data, tmp_path / "a"), answers(result, data, tmp_path / "b")
    assert 0 < error_between(exact, quick) < 0.05


def test_two_inputs_of_unlike_ranks_are_calibrated_together(build: Any, tmp_path: Path) -> None:
    model = build(
        """
        <ir_version: 10, opset_import: ["": 20]>
        two (float[batch, 8] a, float[batch, 4, 8] b) => (float[batch, 4, 8] y)
        <float[8, 8] w, int64[1] one = {1}>
        {
            [left] p = MatMul (a, w)
            [lift] q = Unsqueeze (p, one)
            [sum] y = Add (q, b)
        }
        """
    )
    assert isinstance(samples_of(model), ArrayDataset)
    result = run(StaticQuantization(), model, tmp_path)
    assert op_counts(read_onnx(result))["QuantizeLinear"] > 0


def test_a_model_whose_shapes_cannot_be_inferred_leaves_no_file_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20, "mine": 1]>
        custom (float[batch, 4] x) => (float[batch, 4] y)
        <float[4, 4] w> { t = mine.Twice (x)  y = MatMul (t, w) }
    """
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    onnx.save(proto, tmp_path / "custom.onnx")
    model = load(tmp_path / "custom.onnx").settled_by({"x": np.ones(4, np.float32)})
    here, work = tmp_path / "here", tmp_path / "work"
    here.mkdir()
    work.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(CandidateError, match=r"^ONNX Runtime's quantizer failed: .*mine:Twice"):
        StaticQuantization()(model, ArrayDataset({"x": np.ones((4, 4), np.float32)}), work)
    assert list(here.iterdir()) == []


def test_a_node_without_a_name_is_kept_by_its_output(convnet: Model, tmp_path: Path) -> None:
    proto = onnx.load(str(convnet.path))
    for node in proto.graph.node:
        node.name = ""
    onnx.save(proto, str(convnet.path))
    result = run(StaticQuantization(reduce_range=NARROW, keep_float=("c2",)), convnet, tmp_path)
    assert tensors(result)["w2"].dtype == np.float32
    assert "w1" not in tensors(result)
