"""Which nodes of a model the steps of a profile are of."""

import onnx
import pytest

from hasten.engines.layers import Kind, LayerTime
from hasten.engines.origins import node_names, traced


def step(*sources: str, kind: Kind = "elementwise") -> LayerTime:
    return LayerTime("s", "Any", kind, "f32", "", sources, (1,))


def found(text: str, *layers: LayerTime) -> list[tuple[str, ...]]:
    graph = onnx.parser.parse_graph(text)
    return [layer.sources for layer in traced(layers, graph)]


NET = onnx.parser.parse_model(
    """
    <ir_version: 10, opset_import: ["": 17]>
    net (float[1, 4] x, float[4, 4] w) => (float[1, 4] y, float[1, 4] first) {
        [conv] c = MatMul(x, w)
        [conv_2] first = Relu(c)
        [blockconv] d = MatMul(first, w)
        lo, hi = Split <axis = 1, num_outputs = 2> (d)
        [join] y = Concat <axis = 1> (hi, lo)
    }"""
)
NET.graph.node[2].name = "/block/conv"


def test_a_node_is_known_by_its_name_and_its_outputs() -> None:
    names = node_names(NET.graph)
    assert names["conv"] == names["c"] == "conv"
    assert names["first"] == "conv_2"
    assert names["lo"] == names["hi"] == "lo"
    assert "x" not in names


@pytest.mark.parametrize(
    ("source", "node"),
    [
        ("conv", "conv"),
        ("conv/WithoutBiases", "conv"),
        ("conv_quant", "conv"),
        ("conv_2", "conv_2"),
        ("conv_2_quant_scales_mul", "conv_2"),
        ("/block/conv", "/block/conv"),
        ("/block/conv/WithoutBiases", "/block/conv"),
        ("first", "conv_2"),
        ("hi", "lo"),
    ],
)
def test_a_piece_is_of_the_node_that_it_is_named_after(source: str, node: str) -> None:
    (layer,) = traced([step(source)], NET.graph)
    assert layer.sources == (node,)


@pytest.mark.parametrize(
    "source", ["convolution", "Multiply_12", "/block", "/block/other", "_", ""]
)
def test_what_no_node_is_named_like_is_left_out(source: str) -> None:
    (layer,) = traced([step(source)], NET.graph)
    assert layer.sources == ()


def test_the_pieces_of_a_node_name_it_once_in_the_order_of_the_graph() -> None:
    (layer,) = traced([step("join", "conv/WithoutBiases", "conv", "y")], NET.graph)
    assert layer.sources == ("conv", "join")


ATTENTION = """
attention (float[1, 4] x, float[4, 4] w) => (float[1, 4] y) {
    [query] q = MatMul(x, w)
    [turn] k = Transpose(x)
    [score] s = MatMul(q, k)
    [soft] p = Softmax(s)
    [mix] y = MatMul(p, x)
}
"""


def test_a_product_without_a_name_is_the_nameless_step_between_its_neighbours() -> None:
    steps = [step(kind="arithmetic"), step("query", kind="arithmetic"), step(kind="conversion")]
    steps += [step(kind="arithmetic"), step(), step("mix", kind="arithmetic")]
    assert found(ATTENTION, *steps) == [(), ("query",), (), ("score",), (), ("mix",)]


def test_a_product_without_a_step_was_fused_into_the_one_that_reads_it() -> None:
    steps = [step("query", kind="arithmetic"), step("mix", kind="arithmetic")]
    assert found(ATTENTION, *steps) == [("query",), ("score", "soft", "mix")]


def test_what_lies_before_an_elementwise_step_was_not_fused_into_it() -> None:
    steps = [step("query", kind="arithmetic"), step("soft"), step("mix", kind="arithmetic")]
    assert found(ATTENTION, *steps) == [("query",), ("soft",), ("mix",)]


SHARED = """
shared (float[1, 4] x, float[4, 4] w) => (float[1, 4] y, float[1, 4] z) {
    [product] p = MatMul(x, w)
    [left] y = MatMul(p, w)
    [right] z = MatMul(p, w)
}
"""


def test_a_product_that_two_steps_read_was_fused_into_neither() -> None:
    steps = [step("left", kind="arithmetic"), step("right", kind="arithmetic")]
    assert found(SHARED, *steps) == [("left",), ("right",)]


CLAMPED = """
clamped (float[1, 4] x, float[4, 4] w, float lo, float hi) => (float[1, 4] y) {
    [product] p = MatMul(x, w)
    [relu] r = Relu(p)
    [exp] e = Exp(r)
    [clip] c = Clip(e, lo, hi)
    [tanh] t = Tanh(c)
    [last] y = MatMul(t, w)
}
"""


def test_a_clamp_that_quantizing_swallowed_is_of_the_product_before_it() -> None:
    steps = [step("product", kind="arithmetic"), step("exp"), step("last", kind="arithmetic")]
    assert found(CLAMPED, *steps) == [("product", "relu"), ("exp",), ("last",)]


FOLDED = """
folded (float[1, 4] x) => (float[1, 4] y)
<float[1, 4] a = {1.0, 1.0, 1.0, 1.0}, float[4, 4] b = {1.0}> {
    [weights] w = MatMul(a, b)
    [add] y = Add(x, w)
}
"""


def test_a_product_of_constants_is_of_no_step() -> None:
    assert found(FOLDED, step("add", kind="arithmetic")) == [("add",)]
