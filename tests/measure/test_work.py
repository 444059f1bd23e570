"""What is counted of a graph, and what costs nothing."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from hasten.core.model import Model
from hasten.errors import InputError
from hasten.inputs.models.onnx import load
from hasten.measure.roofline import LayerWork
from hasten.measure.work import work
from hasten.testing import models

HEADER = '<ir_version: 10, opset_import: ["": 20, "own": 1]>'


def of(folder: Path, text: str, **weights: tuple[int, ...]) -> tuple[LayerWork, ...]:
    """Count a graph; its inputs, all float, are settled by their shapes in the text."""
    proto = onnx.parser.parse_model(HEADER + text)
    for name, shape in weights.items():
        value = np.ones(shape, np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(proto, folder / "model.onnx")
    return counted(load(folder / "model.onnx"))


def counted(model: Model) -> tuple[LayerWork, ...]:
    """Count for a request of ones."""
    inputs = model.request or model.inputs
    return work(model, {spec.name: np.ones(spec.sizes, spec.dtype) for spec in inputs})


def settled(path: Path, *shape: int) -> Model:
    return load(path).settled_by({"x": np.zeros(shape, np.float32)})


def test_a_small_cnn_is_counted_layer_by_layer(tmp_path: Path) -> None:
    model = settled(models.small_cnn(tmp_path), 3, 32, 32)
    assert counted(model) == (
        LayerWork("conv1", "Conv", 2 * 16 * 3 * 94**2, 3 * 32**2, 16 * 3 * 9, 16 * 32**2),
        LayerWork("conv2", "Conv", 2 * 32 * 16 * 47**2, 16 * 32**2, 32 * 16 * 9, 32 * 16**2),
        LayerWork("classifier", "Gemm", 2 * 320, 32, 320, 10),
    )


def test_scores_of_attention_are_neither_written_nor_read(tmp_path: Path) -> None:
    model = settled(models.tiny_transformer_block(tmp_path), 16, 32)
    layers = {layer.name: layer for layer in counted(model)}
    assert list(layers) == ["q", "k", "v", "qk", "mixed", "up", "down"]
    assert layers["q"] == LayerWork("q", "MatMul", 2 * 16 * 32 * 32, 512, 1024, 512)
    assert layers["qk"] == LayerWork("qk", "MatMul", 2 * 16 * 16 * 32, 1024, 0, 0)
    assert layers["mixed"] == LayerWork("mixed", "MatMul", 2 * 16 * 16 * 32, 512, 0, 512)


def test_a_request_settles_open_dimensions_and_those_that_follow(tmp_path: Path) -> None:
    path = tmp_path / "open.onnx"
    text = """
        open (float[batch, n, 8] x) => (float[batch, m, 4] y) {
            shape = Shape(x)
            zero = Constant <value = int64[1] {0}> ()
            batch = Gather(shape, zero)
            rest = Constant <value = int64[2] {-1, 8}> ()
            to = Concat <axis = 0> (batch, rest)
            r = Relu(x)
            flat = Reshape(r, to)
            y = MatMul(flat, w)
        }"""
    proto = onnx.parser.parse_model(HEADER + text)
    weight = onnx.numpy_helper.from_array(np.ones((8, 4), np.float32), "w")
    proto.graph.initializer.append(weight)
    onnx.save(proto, path)
    assert counted(settled(path, 5, 8)) == (LayerWork("y", "MatMul", 2 * 5 * 8 * 4, 40, 32, 20),)


def test_an_open_request_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        work(load(models.linear_classifier(tmp_path)), {})
    assert str(error.value) == "x: float32[batch, 16]: every dimension must be fixed"


def test_a_model_that_is_not_onnx_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        work(Model(tmp_path / "model.xml", "openvino", (), ()), {})
    assert str(error.value) == "work is counted in an ONNX model; got one of format 'openvino'"


def test_what_no_output_needs_and_what_no_input_changes_costs_nothing(tmp_path: Path) -> None:
    layers = of(
        tmp_path,
        """
        spare (float[1, 4] x) => (float[1, 4] y) {
            [unused] dead = MatMul(x, w)
            [folded] ww = MatMul(w, w)
            [real] y = MatMul(x, ww)
        }""",
        w=(4, 4),
    )
    assert layers == (LayerWork("real", "MatMul", 2 * 16, 4, 16, 4),)


def test_weights_that_two_layers_share_are_read_once(tmp_path: Path) -> None:
    layers = of(
        tmp_path,
        """
        tied (float[1, 4] x) => (float[1, 4] y) {
            a = MatMul(x, w)
            wt = Transpose(w)
            y = MatMul(a, wt)
        }""",
        w=(4, 4),
    )
    assert [layer.weights for layer in layers] == [16, 0]


def test_quantized_weights_are_weights(tmp_path: Path) -> None:
    """As a model that came as QDQ has them: behind DequantizeLinear."""
    layers = of(
        tmp_path,
        """
        qdq (float[1, 4] x) => (float[1, 4] y)
        <float s = {0.5}, int8 z = {0}, int8[4, 4] q = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}> {
            w = DequantizeLinear(q, s, z)
            y = MatMul(x, w)
        }""",
    )
    assert layers == (LayerWork("y", "MatMul", 2 * 16, 4, 16, 4),)


def test_an_operator_that_is_not_known_may_cost_nothing_and_hides_the_shapes_behind_it(
    tmp_path: Path,
) -> None:
    layers = of(
        tmp_path,
        """
        custom (float[1, 4] x) => (float[1, 4] y) {
            [before] a = MatMul(x, w)
            [own] b = own.Operator(a)
            [after] y = MatMul(b, w2)
        }""",
        w=(4, 4),
        w2=(4, 4),
    )
    assert layers == (
        LayerWork("before", "MatMul", 2 * 16, 4, 16, 4),
        LayerWork("own", "Operator"),
        LayerWork("after", "MatMul"),
    )


def test_of_two_branches_the_one_that_the_request_takes_is_counted(tmp_path: Path) -> None:
    text = """
        branches (float[1, 4] x, bool c) => (float[1, 4] y) {
            condition = CONDITION (c)
            [choose] y = If(condition) <
                then_branch = yes () => (float[1, 4] a) {
                    b = Relu(x)
                    [inside] a = MatMul(b, w)
                },
                else_branch = no () => (float[1, 4] a) {
                    b = Sigmoid(x)
                    [elsewhere] c2 = MatMul(b, w)
                    [after] a = MatMul(c2, w)
                }
            >
            [behind] z = MatMul(y, w)
        }""".replace("float[1, 4] y)", "float[1, 4] z)")
    taken = of(tmp_path, text.replace("CONDITION", "Identity"), w=(4, 4))
    assert taken == (
        LayerWork("inside", "MatMul", 2 * 16, 4, 16, 4),
        LayerWork("behind", "MatMul", 2 * 16, 4, 0, 4),
    )
    other = of(tmp_path, text.replace("CONDITION", "Not"), w=(4, 4))
    assert [layer.name for layer in other] == ["elsewhere", "after", "behind"]


LOOPED = """
    looped (float[1, 4] x) => (float[1, 4] y)
    <int64 times = {5}, bool always = {1}, float[1, 4] zeros = {0, 0, 0, 0}> {
        [loop] y = Loop(times, always, zeros) <
            body = step (int64 i, bool on, float[1, 4] state)
                => (bool still, float[1, 4] after)
            <float[4, 4] own = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}> {
                still = Identity(on)
                a = MatMul(state, w)
                b = MatMul(a, own)
                after = Add(b, x)
            }
        >
    }"""


def test_a_layer_in_a_loop_counts_as_often_as_it_runs_and_its_weights_once(tmp_path: Path) -> None:
    assert of(tmp_path, LOOPED, w=(4, 4)) == (
        LayerWork("a", "MatMul", 5 * 2 * 16, 4, 16, 4),
        LayerWork("b", "MatMul", 5 * 2 * 16, 4, 16, 4),
    )


def test_a_loop_that_the_runtime_cannot_watch_is_not_counted(tmp_path: Path) -> None:
    unknown = LOOPED.replace("after = Add(b, x)", "after = own.Add(b, x)")
    assert of(tmp_path, unknown, w=(4, 4)) == (LayerWork("loop", "Loop"),)


def test_weights_outside_the_file_are_not_needed_but_shapes_there_are(tmp_path: Path) -> None:
    text = """
        outside (float[1, 64] x) => (float y) {
            flat = Reshape(x, to)
            y = MatMul(flat, w)
        }"""
    proto = onnx.parser.parse_model(HEADER + text)
    for name, value in (("w", np.ones((32, 64), np.float32)), ("to", np.array([2, 32]))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    path = tmp_path / "outside.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="outside.data", size_threshold=0)
    assert counted(load(path)) == (LayerWork("y", "MatMul", 2 * 2 * 32 * 64, 64, 2048, 128),)


@pytest.mark.parametrize(("lengths", "operations"), [("", 2 * 7 * 12 * (5 + 3)), ("steps", 0)])
def test_a_recurrent_layer_whose_sequences_may_end_early_may_cost_nothing(
    tmp_path: Path, lengths: str, operations: int
) -> None:
    layers = of(
        tmp_path,
        f"""
        recurrent (float[7, 1, 5] x, int32[1] steps) => (float y) {{
            [lstm] y = LSTM <hidden_size = 3> (x, w, r, , {lengths})
        }}""".replace(", , )", ")"),
        w=(1, 12, 5),
        r=(1, 12, 3),
    )
    assert [(layer.name, layer.operations) for layer in layers] == [("lstm", operations)]


def test_the_models_own_functions_are_counted_by_what_they_do(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20, "own": 1]>
        calls (float[1, 4] x) => (float[1, 4] y)
        <float[2, 2] s = {1, 1, 1, 1}, int64[2] by = {2, 2}> {
            w = Tile(s, by)
            y = own.twice(x, w)
        }
        <domain: "own", opset_import: ["": 20]>
        twice (a, b) => (d) {
            c = MatMul(a, b)
            d = MatMul(c, b)
        }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "calls.onnx")
    layers = counted(load(tmp_path / "calls.onnx"))
    assert [(layer.operator, layer.operations) for layer in layers] == [("MatMul", 32)] * 2
    assert [(layer.read, layer.weights) for layer in layers] == [(4, 16), (4, 0)]
