from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.support.models import BRANCHES, Build

from hasten.core.model import Model
from hasten.engines.base import Engine
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import CandidateError, InputError
from hasten.passes.base import Skipped
from hasten.passes.dynamic_quantization import DynamicQuantization
from hasten.passes.onnx_files import op_counts, read_onnx
from hasten.testing.pass_tests import (
    NARROW,
    PassTests,
    answers,
    error_between,
    host,
    run,
    samples_of,
)

PATCHES = """
<ir_version: 10, opset_import: ["": 20]>
patches (float[batch, 3, 16, 16] x) => (float[batch, 4, 32] y)
<float[32, 3, 8, 8] kernel, float[32, 128] w1, float[128, 32] w2>
{
    cut = Conv <kernel_shape = [8, 8], strides = [8, 8]> (x, kernel)
    shape = Constant <value_ints = [0, 32, 4]> ()
    rows = Reshape (cut, shape)
    tokens = Transpose <perm = [0, 2, 1]> (rows)
    up = MatMul (tokens, w1)
    active = Relu (up)
    y = MatMul (active, w2)
}
"""


VECTOR = """
<ir_version: 10, opset_import: ["": 20]>
kernel (float[batch, 16] x) => (float[batch] y)
<float[16, 60] seen, float[60] known>
{
    [like] k = MatMul (x, seen)
    [mean] y = MatMul (k, known)
}
"""

READER = """
<ir_version: 10, opset_import: ["": 20]>
reader (float[batch, 5, 16] x) => (float[batch, 5, 8] y)
<float[2, 96, 16] w, float[2, 96, 24] r, float[2, 192] b, float[48, 8] head>
{
    [first] f = Transpose <perm = [1, 0, 2]> (x)
    [read] both, last, cell = LSTM <hidden_size = 24, direction = "bidirectional"> (f, w, r, b)
    [turn] t = Transpose <perm = [2, 0, 1, 3]> (both)
    shape = Constant <value_ints = [-1, 5, 48]> ()
    [join] j = Reshape (t, shape)
    [head] y = MatMul (j, head)
}
"""

STACK = """
<ir_version: 10, opset_import: ["": 20]>
stack (float[batch, 16] x) => (float[batch, 8] y)
<float[32, 16] w1, float[32] b1, float[32, 32] w2, float[32] b2, float[32, 8] w3>
{
    [first] a = Gemm <transB = 1> (x, w1, b1)
    ra = Relu (a)
    c = Gemm (ra, w2, b2)
    rc = Relu (c)
    y = MatMul (rc, w3)
}
"""
"""The usual layers of PyTorch, and two nodes without a name."""

TOWERS = """
<ir_version: 10, opset_import: ["": 20]>
towers (float[batch, 5, 16] x, float[batch, 5, 16] z) => (float[batch, 8] y)
<float[1, 96, 16] w, float[1, 96, 24] r, float[1, 192] b, float[48, 8] head>
{
    xf = Transpose <perm = [1, 0, 2]> (x)
    zf = Transpose <perm = [1, 0, 2]> (z)
    [left] left_all, left_last, left_cell = LSTM <hidden_size = 24> (xf, w, r, b)
    [right] right_all, right_last, right_cell = LSTM <hidden_size = 24> (zf, w, r, b)
    both = Concat <axis = 2> (left_last, right_last)
    shape = Constant <value_ints = [-1, 48]> ()
    row = Reshape (both, shape)
    [head] y = MatMul (row, head)
}
"""
"""Two LSTMs that share their weights, as twins over two texts do."""


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


class TestLstm(PassTests):
    bound = 0.05

    @pytest.fixture
    def value(self) -> DynamicQuantization:
        return DynamicQuantization(reduce_range=NARROW)

    @pytest.fixture
    def model(self, build: Build) -> Model:
        return build(READER, "reader")

    @pytest.fixture
    def idle_model(self, elementwise: Model) -> Model:
        return elementwise

    def test_its_weights_are_int8_in_both_directions(self, result: Model) -> None:
        proto = read_onnx(result)
        counts = op_counts(proto)
        assert (counts["DynamicQuantizeLSTM"], counts["LSTM"], counts["MatMulInteger"]) == (1, 0, 1)
        stored = [onnx.numpy_helper.to_array(one) for one in proto.graph.initializer]
        assert {one.dtype for one in stored if one.ndim == 3} == {np.dtype(np.int8)}

    def test_it_may_stay_in_float(self, model: Model, tmp_path: Path) -> None:
        for number, value in enumerate(
            (DynamicQuantization(recurrent=False), DynamicQuantization(keep_float=("read",)))
        ):
            counts = op_counts(read_onnx(run(value, model, tmp_path, f"kept{number}")))
            assert (counts["DynamicQuantizeLSTM"], counts["LSTM"]) == (0, 1)
            assert counts["MatMulInteger"] == 1

    def test_both_ways_are_tried(self, model: Model, attention: Model) -> None:
        found = list(DynamicQuantization.variants(model, host()))
        assert [one.recurrent for one in found] == [True, True, False]
        assert all(one.recurrent for one in DynamicQuantization.variants(attention, host()))


LSTM = """
<ir_version: 8, opset_import: ["": OPSET]>
lstm (float[batch, 5, 16] x) => (float[batch, 5, 24] y)
<float[1, 96, 16] w, float[1, 96, 24] r, float[1, 192] b, float[1, 1, 24] h, float[1, 1, 24] c,
 float[1, 72] peepholes, int32[1] lengths = {4}>
{
    f = Transpose <perm = [1, 0, 2]> (x)
    [read] all, last, cell = LSTM <hidden_size = 24> (f, w, r, INPUTS)
    turned = Transpose <perm = [2, 0, 1, 3]> (all)
    shape = Constant <value = int64[3] {-1, 5, 24}> ()
    y = Reshape (turned, shape)
}
"""
"""An LSTM over 5 steps of one sample, since its states and lengths are constant."""


def lstm(build: Build, inputs: str = "b", opset: int = 20, external: bool = False) -> Model:
    """Return an LSTM with these inputs after its weights."""
    text = LSTM.replace("INPUTS", inputs).replace("OPSET", str(opset))
    return build(text, "lstm", external=external)


def loss(
    value: DynamicQuantization, model: Model, tmp_path: Path, engine: Engine | None = None
) -> float:
    """Return how far a pass moves an LSTM's answers, once it is seen to be in integers."""
    result = run(value, model, tmp_path)
    counts = op_counts(read_onnx(result))
    assert (counts["DynamicQuantizeLSTM"], counts["LSTM"]) == (1, 0)
    data = samples_of(model)
    exact = answers(model, data, tmp_path / "before")
    return error_between(exact, answers(result, data, tmp_path / "after", engine))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    "inputs", ["b", "b, lengths", "b, , h, c", "b, , h, c, peepholes", ", lengths, , , peepholes"]
)
def test_an_lstm_keeps_its_states_lengths_and_peepholes(
    build: Build, tmp_path: Path, per_channel: bool, inputs: str
) -> None:
    value = DynamicQuantization(per_channel, NARROW)
    assert loss(value, lstm(build, inputs), tmp_path) < 0.08


@pytest.mark.parametrize("opset", [7, 11, 13])
def test_an_lstm_of_an_older_operator_set_is_quantized(
    build: Build, tmp_path: Path, opset: int
) -> None:
    value = DynamicQuantization(reduce_range=NARROW)
    assert loss(value, lstm(build, "b, lengths, h, c", opset), tmp_path) < 0.08


def test_an_lstm_whose_weights_lie_outside_the_file_is_quantized(
    build: Build, tmp_path: Path
) -> None:
    model = lstm(build, external=True)
    assert model.files
    assert loss(DynamicQuantization(reduce_range=NARROW), model, tmp_path) < 0.08


@pytest.mark.parametrize("per_channel", [True, False])
def test_openvino_runs_an_lstm_in_int8(build: Build, tmp_path: Path, per_channel: bool) -> None:
    pytest.importorskip("openvino")
    assert loss(DynamicQuantization(per_channel), lstm(build), tmp_path, OpenVino()) < 0.08


def test_weights_that_are_computed_stay_in_float(build: Build, tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 20]>
    odd (float[1, 1, 16] x) => (float[1, 1, 1, 24] y)
    <float[1, 96, 16] w, float[1, 96, 24] r>
    { s = Sigmoid (r)  [read] y, last, cell = LSTM <hidden_size = 24> (x, w, s) }
    """
    with pytest.raises(Skipped):
        run(DynamicQuantization(), build(text, "odd"), tmp_path)


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
    message = r"^nothing to quantize: there is no matrix product or LSTM with constant weights$"
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


def test_a_transformer_that_begins_with_a_convolution_is_tried_and_keeps_that_in_float(
    build: Build, tmp_path: Path
) -> None:
    model = build(PATCHES, "patches")
    assert list(DynamicQuantization.variants(model, host())) != []
    counts = op_counts(read_onnx(run(DynamicQuantization(reduce_range=NARROW), model, tmp_path)))
    assert (counts["MatMulInteger"], counts["Conv"], counts["ConvInteger"]) == (2, 1, 0)


def test_a_quantizer_that_changes_nothing_is_refused(
    attention: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.quantization import onnx_quantizer

    monkeypatch.setattr(onnx_quantizer.ONNXQuantizer, "should_quantize_node", lambda *_: False)
    message = r"^ONNX Runtime's quantizer left all 4 products and LSTMs in float$"
    with pytest.raises(CandidateError, match=message):
        run(DynamicQuantization(), attention, tmp_path)


@pytest.mark.parametrize(
    ("kept", "left"), [("first", {"c", "y"}), ("c", {"first", "y"}), ("y", {"first", "c"})]
)
def test_a_gemm_and_a_node_without_a_name_may_stay_in_float(
    build: Build, tmp_path: Path, kept: str, left: set[str]
) -> None:
    graph = read_onnx(
        run(DynamicQuantization(keep_float=(kept,)), build(STACK, "stack"), tmp_path)
    ).graph
    integer = {node.name for node in graph.node if node.op_type == "MatMulInteger"}
    assert integer == {f"{name}_quant" for name in left}
    assert [node.name for node in graph.node if node.op_type in ("Gemm", "MatMul")] == [kept]


def test_a_quantizer_that_ignores_what_stays_in_float_is_refused(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.quantization import onnx_quantizer

    monkeypatch.setattr(onnx_quantizer.ONNXQuantizer, "should_quantize_node", lambda *_: True)
    message = r"^ONNX Runtime's quantizer quantized 'first' despite keep_float$"
    with pytest.raises(CandidateError, match=message):
        run(DynamicQuantization(keep_float=("first",)), build(STACK, "stack"), tmp_path)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kept", [(), ("left",)])
def test_lstms_that_share_weights_answer_as_before(
    build: Build, tmp_path: Path, per_channel: bool, kept: tuple[str, ...]
) -> None:
    model = build(TOWERS, "towers")
    value = DynamicQuantization(per_channel, NARROW, keep_float=kept)
    result = run(value, model, tmp_path)
    counts = op_counts(read_onnx(result))
    assert (counts["DynamicQuantizeLSTM"], counts["LSTM"]) == (2 - len(kept), len(kept))
    data = samples_of(model)
    exact = answers(model, data, tmp_path / "before")
    assert error_between(exact, answers(result, data, tmp_path / "after")) < 0.08


def test_weights_that_lstms_share_are_stored_once(build: Build, tmp_path: Path) -> None:
    result = run(DynamicQuantization(), build(TOWERS, "towers"), tmp_path)
    stored = [onnx.numpy_helper.to_array(one) for one in read_onnx(result).graph.initializer]
    assert sorted(one.shape for one in stored if one.ndim == 3) == [(1, 16, 96), (1, 24, 96)]


@pytest.mark.parametrize("name", ["float16", "float64"])
def test_weights_that_arent_float32_are_skipped_in_words(
    build: Build, tmp_path: Path, name: str
) -> None:
    short = {"float64": "double"}.get(name, name)
    model = build(STACK.replace("float[", f"{short}["), "stack")
    message = rf"^the model's weights are in {name}, and this pass takes float32$"
    with pytest.raises(Skipped, match=message):
        run(DynamicQuantization(), model, tmp_path)


def test_products_in_float32_of_a_model_in_two_types_are_quantized(
    build: Build, tmp_path: Path
) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 20]>
    two (float[batch, 16] x) => (float[batch, 8] y)
    <float[16, 32] w1, float16[32, 8] w2>
    {
        [wide] a = MatMul (x, w1)
        h = Cast <to = 10> (a)
        [half] b = MatMul (h, w2)
        y = Cast <to = 1> (b)
    }
    """
    model = build(text, "two")
    result = run(DynamicQuantization(reduce_range=NARROW), model, tmp_path)
    graph = read_onnx(result).graph
    products = {node.name for node in graph.node if node.op_type.startswith("MatMul")}
    assert products == {"wide_quant", "half"}
    data = samples_of(model)
    exact = answers(model, data, tmp_path / "before")
    assert error_between(exact, answers(result, data, tmp_path / "after")) < 0.05


def test_products_inside_branches_are_named_as_the_reason(build: Build, tmp_path: Path) -> None:
    message = (
        r"^nothing to quantize: the model's matrix products and LSTMs are inside If, where none is "
        r"quantized$"
    )
    with pytest.raises(Skipped, match=message):
        run(DynamicQuantization(), build(BRANCHES, "branches"), tmp_path)


def test_weights_that_an_lstms_states_meet_count(build: Build) -> None:
    """The convolution has 640 weights, and the LSTM 512 and 256."""
    text = """
    <ir_version: 10, opset_import: ["": 20]>
    reader (float[batch, 1, 4, 25] x) => (float[16, 1, batch, 8] y)
    <float[16, 1, 4, 10] kernel, float[1, 32, 16] w, float[1, 32, 8] r>
    {
        cut = Conv (x, kernel)
        shape = Constant <value_ints = [0, 16, 16]> ()
        rows = Reshape (cut, shape)
        frames = Transpose <perm = [2, 0, 1]> (rows)
        y, last, cell = LSTM <hidden_size = 8> (frames, w, r)
    }
    """
    assert list(DynamicQuantization.variants(build(text, "reader"), host())) != []


def test_a_product_with_a_vector_stays_in_float(build: Build, tmp_path: Path) -> None:
    model = build(VECTOR)
    quantized = run(DynamicQuantization(), model, tmp_path)
    assert op_counts(read_onnx(quantized))["MatMul"] == 1
    data = samples_of(model)
    before, after = answers(model, data, tmp_path / "a"), answers(quantized, data, tmp_path / "b")
    assert error_between(before, after) < 0.05
