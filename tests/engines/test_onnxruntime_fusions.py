"""Which nodes went into each node of an executed graph, told from the two graphs alone."""

import onnx

from hasten.engines.onnxruntime.fusions import covered

PRODUCTS = frozenset({"Conv", "FusedConv", "MatMul"})


def nodes(original: str, executed: str) -> list[tuple[str, ...]]:
    """Parse two graphs of an input x and weights w; return what each node of the second covers."""
    head = "(float[1, 4] x, float[4, 4] w = {1.0}) => (float[1, 4] y)"
    before, after = (
        onnx.parser.parse_graph(f"g {head} {{ {text} }}") for text in (original, executed)
    )
    return covered(before, after, PRODUCTS)


def test_a_layout_between_two_nodes_is_of_neither_and_hides_no_name() -> None:
    original = "[conv] c = Conv(x, w) [relu] r = Relu(c) [exp] y = Exp(r)"
    executed = """
        [a] t0 = ReorderInput(x) [b] t1 = Conv(t0, w) [c] t2 = Transpose(t1)
        [d] r = ReorderOutput(t2) [exp] y = Exp(r)"""
    assert nodes(original, executed) == [(), ("conv", "relu"), (), (), ("exp",)]


def test_what_was_fused_in_front_is_found_through_a_change_of_layout() -> None:
    original = "[pad] p = Pad(x) [conv] c = Conv(p, w) [relu] y = Relu(c)"
    executed = "[a] t0 = ReorderInput(x) [b] t1 = Conv(t0, w) [d] y = ReorderOutput(t1)"
    assert nodes(original, executed) == [(), ("pad", "conv", "relu"), ()]


def test_a_transposition_of_the_models_own_is_no_layout() -> None:
    original = "[conv] c = Conv(x, w) [turn] t = Transpose(c) [exp] y = Exp(t)"
    executed = "[conv] c = Conv(x, w) [turned] t = Transpose(c) [exp] y = Exp(t)"
    assert nodes(original, executed) == [("conv",), ("turn",), ("exp",)]


def test_a_name_made_unique_or_blocked_is_still_known() -> None:
    original = "[conv] c = Conv(x, w) [other] d = Conv(c, w) [exp] y = Exp(d)"
    executed = "[conv_token_12] t1 = Conv(x, w) [d_nchwc] t2 = Conv(t1, w) [exp] y = Exp(t2)"
    assert nodes(original, executed) == [("conv",), ("other",), ("exp",)]


def test_a_node_that_is_called_as_another_nodes_tensor_is_still_itself() -> None:
    original = "[d] c = Conv(x, w) [c] d = Exp(c) [e] y = Exp(d)"
    executed = "[d] c = Conv(x, w) [c] d = Exp(c) [e] y = Exp(d)"
    assert nodes(original, executed) == [("d",), ("c",), ("e",)]


def test_a_product_between_tensors_without_names_is_looked_for_backwards() -> None:
    original = """
        [first] a = Conv(x, w) [relu1] r = Relu(a) [second] b = Conv(r, w) [relu2] s = Relu(b)
        [exp] y = Exp(s)"""
    executed = "[r_nchwc] t1 = Conv(x, w) [s_nchwc] t2 = Conv(t1, w) [exp] y = Exp(t2)"
    assert nodes(original, executed) == [("first", "relu1"), ("second", "relu2"), ("exp",)]


def test_what_follows_a_product_and_has_no_step_was_fused_into_the_last_that_it_reads() -> None:
    original = """
        [first] a = Conv(x, w) [second] b = Conv(a, w) [skip] s = Add(a, b) [relu] r = Relu(s)
        [exp] y = Exp(r)"""
    executed = "[a_nchwc] t1 = Conv(x, w) [b_nchwc] t2 = Conv(t1, w, t1) [exp] y = Exp(t2)"
    assert nodes(original, executed) == [("first",), ("second", "skip", "relu"), ("exp",)]


def test_a_product_that_cannot_be_found_is_given_to_nobody() -> None:
    original = "[exp] e = Exp(x) [first] a = Conv(e, w) [second] b = Conv(a, w) [relu] y = Relu(b)"
    executed = "[exp] e = Exp(x) [strange] t1 = Conv(e, w) [stranger] y = Conv(t1, w)"
    assert nodes(original, executed) == [("exp",), (), ("second", "relu")]


def test_a_folded_shape_takes_no_values_with_it() -> None:
    original = """
        [conv] c = Conv(x, w) [relu] r = Relu(c) [pool] p = MaxPool(r)
        [shape] s = Shape(r) [gather] g = Gather(s, w) [reshape] y = Reshape(x, g)"""
    executed = """
        [c_nchwc] t1 = Conv(x, w) [p_nchwc] t2 = MaxPool(t1) [back] p = ReorderOutput(t2)
        [reshape] y = Reshape(x, w)"""
    assert nodes(original, executed) == [
        ("conv", "relu"),
        ("pool",),
        (),
        ("shape", "gather", "reshape"),
    ]


def test_an_operator_made_of_many_covers_them_all_and_no_more() -> None:
    original = """
        [product] m = MatMul(x, w) [half] h = Mul(m, w) [erf] e = Erf(h) [one] o = Add(e, w)
        [times] t = Mul(m, o) [last] y = Exp(t)"""
    executed = "[product] m = MatMul(x, w) [fresh] t = Gelu(m) [last] y = Exp(t)"
    assert nodes(original, executed) == [
        ("product",),
        ("half", "erf", "one", "times"),
        ("last",),
    ]


def test_quantizers_and_folded_nodes_are_not_named() -> None:
    original = """
        [constant] v = Neg(w) [q] a = QuantizeLinear(x, w) [dq] b = DequantizeLinear(a, w)
        [conv] c = Conv(b, v) [q2] d = QuantizeLinear(c, w) [dq2] y = DequantizeLinear(d, w)"""
    executed = (
        "[q] a = QuantizeLinear(x, w) [conv] d = QLinearConv(a, w) [dq2] y = DequantizeLinear(d, w)"
    )
    assert nodes(original, executed) == [(), ("conv",), ()]
